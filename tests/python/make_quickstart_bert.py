"""Writes the checkpoint that the repository ships: `python make_quickstart_bert.py examples/data/tiny-bert`.

A BERT with two layers and random weights, saved by transformers in several shards, with a WordPiece
tokenizer. `expected.json` holds sentences, what the tokenizer made of them (padded batch) and what
transformers computed:

    {"writer": "transformers 5.23.0",
     "sentences": [str], "input_ids": [[int]], "token_type_ids": [[int]], "attention_mask": [[int]],
     "embeddings": [[float]],                  mean over the mask, L2-normalised, float32
     "last_hidden_state_first_8": [[float]]}   of each sentence's first token

Every run writes the same bytes.
"""

import string

from oracle import expect_embeddings, out_dir, randomize

import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = """a an and are as at be by can each file files for from has in is it its model models name names
new no not of old on one open or other read same save shard shards small tensor tensors that the then
this to two we weights what when where which with write""".split()
SENTENCES = [
    "A checkpoint is a set of named tensors.",
    "It lives in one file, or in shards with an index.",
    "Open it, check it, read any part of it!",
    "the old or the new, for every reader",
    "42",
]


def vocabulary():
    pieces = string.ascii_lowercase + string.digits
    suffixes = ["##ed", "##er", "##ing", "##ly", "##tion"]
    tokens = [*SPECIAL, *string.punctuation, *pieces, *("##" + piece for piece in pieces)]
    tokens += suffixes + [word for word in WORDS if len(word) > 1]
    assert len(set(tokens)) == len(tokens)
    return {token: number for number, token in enumerate(tokens)}


def make_tokenizer(vocab):
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, vocab[token]) for token in ["[CLS]", "[SEP]"]],
    )
    tokenizer.decoder = decoders.WordPiece()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        model_max_length=64,
        **{f"{token.strip('[]').lower()}_token": token for token in SPECIAL},
    )


def main():
    folder = out_dir()
    vocab = vocabulary()
    tokenizer = make_tokenizer(vocab)
    config = transformers.BertConfig(
        vocab_size=len(vocab),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    model = randomize(transformers.BertModel(config), seed=20)
    model.save_pretrained(folder, max_shard_size="36KB")
    tokenizer.save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(vocab) + "\n")
    expect_embeddings(folder, SENTENCES)
    for path in folder.iterdir():
        path.chmod(0o644)


main()

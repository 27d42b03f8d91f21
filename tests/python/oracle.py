"""What the generators share: offline, reproducible models, and descriptions by a foreign reader.

`describe` writes `expected.json` (or `expected.VARIANT.json`) into a folder:

    {"writer": "transformers 5.23.0",
     "path": ".",                      what to open, relative to this folder
     "variant": "fp16" | null,
     "index": "model.safetensors.index.json" | null,
     "files": {"model-00001-of-00003.safetensors": {"format": "pt"}},    __metadata__ or {}
     "tensors": {"a.weight": {"dtype": "BF16", "shape": [2, 3], "sha256": "...", "file": "..."}},
     "aliases": {"dropped": "kept"},   recorded in the files
     "tied": {"name": "kept"}}         tied by the model's code, recorded nowhere

Files are relative to `path`; `tensors` has every stored tensor once, read by the `safetensors`
Python package; `sha256` is of its raw little-endian bytes.
"""

import hashlib
import json
import os
import sys
from pathlib import Path

# Before transformers and huggingface_hub are imported: nothing may reach for the network.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"

import torch
import transformers
from safetensors import safe_open

transformers.utils.logging.disable_progress_bar()


def out_dir(argv=sys.argv):
    """The folder named on the command line, made."""
    if len(argv) != 2:
        sys.exit(f"usage: {argv[0]} OUTDIR")
    folder = Path(argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def raw_bytes(tensor):
    """The tensor's bytes in C order; hosts that run this are little-endian."""
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def randomize(model, seed):
    """Gives every parameter and float buffer values whose loss or swap would show."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            is_scale = "norm" in name.lower() and name.endswith("weight")
            parameter.copy_(1 + 0.2 * noise if is_scale else 0.3 * noise)
    return model.eval()


def describe(folder, writer, path=".", variant=None, aliases=None, tied=None):
    """Writes what the Python reader sees; returns the description."""
    root = folder / path
    suffix = f".{variant}" if variant else ""
    index = root / f"model.safetensors.index{suffix}.json"
    if index.exists():
        weight_map = json.loads(index.read_text())["weight_map"]
        names = sorted(set(weight_map.values()))
    else:
        weight_map = None
        names = [f"model{suffix}.safetensors"]
    files, tensors = {}, {}
    for name in names:
        with safe_open(root / name, "pt") as file:
            files[name] = file.metadata() or {}
            for key in file.keys():
                stored = file.get_slice(key)
                tensors[key] = {
                    "dtype": stored.get_dtype(),
                    "shape": stored.get_shape(),
                    "sha256": hashlib.sha256(raw_bytes(file.get_tensor(key))).hexdigest(),
                    "file": name,
                }
    if weight_map is not None:
        assert {key: entry["file"] for key, entry in tensors.items()} == weight_map
    expected = {
        "writer": writer,
        "path": path,
        "variant": variant,
        "index": index.name if weight_map is not None else None,
        "files": files,
        "tensors": dict(sorted(tensors.items())),
        "aliases": aliases or {},
        "tied": tied or {},
    }
    write_json(folder / f"expected{suffix}.json", expected)
    return expected


def write_json(path, value):
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def expect_embeddings(folder, sentences):
    """Writes `expected.json`, as `make_quickstart_bert.py` documents it, into a model's folder.

    What is expected comes from the saved files, not from the model in memory.
    """
    model = transformers.AutoModel.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    writer = f"transformers {transformers.__version__}"
    write_json(folder / "expected.json", {"writer": writer} | embed(model, tokenizer, sentences))


def embed(model, tokenizer, sentences):
    """Sentence embeddings as sentence-transformers makes them, with what went in.

    Mean over the tokens that the mask keeps, then L2 normalisation, all in float32.
    """
    batch = tokenizer(sentences, padding=True, truncation=True, return_tensors="pt")
    with torch.no_grad():
        hidden = model(**batch).last_hidden_state
    mask = batch["attention_mask"].unsqueeze(-1).float()
    mean = (hidden * mask).sum(1) / mask.sum(1).clamp(min=1e-9)
    one_type = torch.zeros_like(batch["input_ids"])  # for models that know no token types
    return {
        "sentences": sentences,
        "input_ids": batch["input_ids"].tolist(),
        "token_type_ids": batch.get("token_type_ids", one_type).tolist(),
        "attention_mask": batch["attention_mask"].tolist(),
        "embeddings": torch.nn.functional.normalize(mean, p=2, dim=1).tolist(),
        "last_hidden_state_first_8": hidden[:, 0, :8].tolist(),
    }

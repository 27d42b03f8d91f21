"""Loads what safeshard saved with every reader of the Python world: `python load_saved.py JOBS.json`.

The file lists jobs; each is

    {"saved": folder,        what safeshard saved, beside the original's config.json
     "original": folder,     what transformers saved
     "architecture": "LlamaForCausalLM",
     "variant": "fp16" | null}

Every reader must give, bit for bit, what transformers gives of the original. One line is printed for
each job; the first difference ends the program.
"""

import json
import sys
from pathlib import Path

from oracle import raw_bytes

import accelerate
import huggingface_hub
import torch
import torch.distributed.checkpoint as dcp
import transformers
from safetensors import safe_open


def main():
    for job in json.loads(Path(sys.argv[1]).read_text()):
        kind = getattr(transformers, job["architecture"])
        saved, variant = Path(job["saved"]), job["variant"]
        original = kind.from_pretrained(job["original"], variant=variant, dtype="auto")
        stored = stored_names(saved, variant)
        by_transformers(kind, saved, variant, original)
        # The others know nothing of variants.
        if variant is None:
            by_hub(kind, saved, stored, original)
            by_accelerate(kind, saved, stored, original)
            by_dcp(saved, stored, original)
        print("loaded", saved, flush=True)


def stored_names(folder, variant):
    """What the files hold, after the index, or the single file, has led to them."""
    suffix = f".{variant}" if variant else ""
    index = folder / f"model.safetensors.index{suffix}.json"
    if not index.exists():
        return set(names_in(folder / f"model{suffix}.safetensors"))
    weight_map = json.loads(index.read_text())["weight_map"]
    held = {name: file for file in set(weight_map.values()) for name in names_in(folder / file)}
    assert held == weight_map, (held, weight_map)
    return set(held)


def names_in(path):
    with safe_open(path, "pt") as file:
        assert file.metadata()["format"] == "pt"
        return list(file.keys())


def by_transformers(kind, folder, variant, original):
    model, info = kind.from_pretrained(
        folder, variant=variant, dtype="auto", output_loading_info=True
    )
    assert {"missing_keys", "unexpected_keys", "mismatched_keys"} <= set(info)
    assert not any(info.values()), info
    check_same(model.state_dict(), original)
    assert ties(model) == ties(original)


def by_hub(kind, folder, stored, original):
    model = blank(kind, original)
    missing = set(original.state_dict()) - stored
    # Neither its own records of tied tensors nor the model's ties count for its strict mode.
    result = huggingface_hub.load_torch_model(model, folder, strict=not missing)
    assert set(result.missing_keys) == missing and not result.unexpected_keys, result
    check_same(model.state_dict(), original)


def by_accelerate(kind, folder, stored, original):
    model = blank(kind, original)
    # Its strict mode wants the whole model in each file.
    whole = (folder / "model.safetensors").exists() and set(original.state_dict()) == stored
    accelerate.load_checkpoint_in_model(model, str(folder), strict=whole)
    check_same(model.state_dict(), original)


def by_dcp(folder, stored, original):
    state = {name: tensor for name, tensor in original.state_dict().items() if name in stored}
    assert set(state) == stored
    loaded = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    dcp.load(loaded, storage_reader=dcp.HuggingFaceStorageReader(str(folder)), no_dist=True)
    for name, tensor in state.items():
        assert raw_bytes(loaded[name]) == raw_bytes(tensor), name


def blank(kind, original):
    """The same model with nothing in it, its ties included."""
    model = kind(original.config).to(original.dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert ties(model) == ties(original)
    return model


def ties(model):
    """Which names of the model are one tensor."""
    names = {}
    for name, tensor in model.state_dict().items():
        names.setdefault(tensor.data_ptr(), set()).add(name)
    return sorted(sorted(group) for group in names.values() if len(group) > 1)


def check_same(state, original):
    wanted = original.state_dict()
    assert state.keys() == wanted.keys(), state.keys() ^ wanted.keys()
    for name, tensor in wanted.items():
        assert (state[name].dtype, state[name].shape) == (tensor.dtype, tensor.shape), name
        assert raw_bytes(state[name]) == raw_bytes(tensor), name


main()

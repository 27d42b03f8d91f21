"""Loads what safeshard saved with every reader of the Python world: `python load_saved.py JOBS.json`.

The file lists jobs; each is

    {"saved": folder,        what safeshard saved, beside the original's config.json
     "original": folder,     what transformers saved
     "architecture": "LlamaForCausalLM" | null where it is no model,
     "variant": "fp16" | null}

Every reader must give, bit for bit, what transformers gives of the original; where it is no model,
torch's distributed reader must give what the original's files hold. One line is printed for each job;
the first difference ends the program.
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
        original, saved, variant = Path(job["original"]), Path(job["saved"]), job["variant"]
        stored = stored_tensors(saved, variant)
        if job["architecture"] is None:
            held = stored_tensors(original, variant)
            check_same(stored, held)
            by_dcp(saved, held)
        else:
            kind = getattr(transformers, job["architecture"])
            model = kind.from_pretrained(original, variant=variant, dtype="auto")
            check_model(kind, saved, variant, set(stored), model)
        print("loaded", saved, flush=True)


def stored_tensors(folder, variant):
    """What the files hold, after the index, or the single file, has led to them."""
    suffix = f".{variant}" if variant else ""
    index = folder / f"model.safetensors.index{suffix}.json"
    if not index.exists():
        return tensors_in(folder / f"model{suffix}.safetensors")
    weight_map = json.loads(index.read_text())["weight_map"]
    files = {file: tensors_in(folder / file) for file in weight_map.values()}
    held = {name: file for file, tensors in files.items() for name in tensors}
    assert held == weight_map, (held, weight_map)
    return {name: files[file][name] for name, file in weight_map.items()}


def tensors_in(path):
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}


def check_model(kind, folder, variant, stored, original):
    wanted = original.state_dict()
    by_transformers(kind, folder, variant, original)
    # The others know nothing of variants.
    if variant is None:
        by_hub(kind, folder, stored, original)
        by_accelerate(kind, folder, stored, original)
        assert stored <= set(wanted), stored
        by_dcp(folder, {name: wanted[name] for name in stored})


def by_transformers(kind, folder, variant, original):
    model, info = kind.from_pretrained(
        folder, variant=variant, dtype="auto", output_loading_info=True
    )
    assert {"missing_keys", "unexpected_keys", "mismatched_keys"} <= set(info)
    assert not any(info.values()), info
    check_same(model.state_dict(), original.state_dict())
    assert ties(model) == ties(original)


def by_hub(kind, folder, stored, original):
    model = blank(kind, original)
    missing = set(original.state_dict()) - stored
    # Neither its own records of tied tensors nor the model's ties count for its strict mode.
    result = huggingface_hub.load_torch_model(model, folder, strict=not missing)
    assert set(result.missing_keys) == missing and not result.unexpected_keys, result
    check_same(model.state_dict(), original.state_dict())


def by_accelerate(kind, folder, stored, original):
    model = blank(kind, original)
    # Its strict mode wants the whole model in each file.
    whole = (folder / "model.safetensors").exists() and set(original.state_dict()) == stored
    accelerate.load_checkpoint_in_model(model, str(folder), strict=whole)
    check_same(model.state_dict(), original.state_dict())


def by_dcp(folder, wanted):
    loaded = {name: torch.zeros_like(tensor) for name, tensor in wanted.items()}
    dcp.load(loaded, storage_reader=dcp.HuggingFaceStorageReader(str(folder)), no_dist=True)
    check_same(loaded, wanted)


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


def check_same(state, wanted):
    assert state.keys() == wanted.keys(), state.keys() ^ wanted.keys()
    for name, tensor in wanted.items():
        assert (state[name].dtype, state[name].shape) == (tensor.dtype, tensor.shape), name
        assert raw_bytes(state[name]) == raw_bytes(tensor), name


main()

"""Compares what safeshard converted with what torch makes of it: `python load_converted.py JOBS.json`.

The file lists jobs; each is

    {"saved": folder,        what safeshard converted
     "original": folder,     what it was made from
     "dtype": "bfloat16"}    what floats became

Every tensor must have the very bits that `.to(dtype)` gives, where it is of 16 bits or more and real; all
others must be as they were. NaNs, which have several spellings, need only be NaNs. One line is printed for
each job; the first difference ends the program.
"""

import json
import sys
from pathlib import Path

from oracle import raw_bytes

import torch
from safetensors import safe_open

WIDE = {torch.float16, torch.bfloat16, torch.float32, torch.float64}


def main():
    for job in json.loads(Path(sys.argv[1]).read_text()):
        dtype = getattr(torch, job["dtype"])
        original, saved = tensors_in(job["original"]), tensors_in(job["saved"])
        assert original.keys() == saved.keys(), original.keys() ^ saved.keys()
        for name, tensor in original.items():
            wanted = tensor.to(dtype) if tensor.dtype in WIDE else tensor
            found = saved[name]
            assert (found.dtype, found.shape) == (wanted.dtype, wanted.shape), name
            if wanted.dtype in WIDE:
                assert torch.equal(found.isnan(), wanted.isnan()), name
                found, wanted = found.nan_to_num(0), wanted.nan_to_num(0)
            assert raw_bytes(found) == raw_bytes(wanted), name
        print("loaded", job["saved"], flush=True)


def tensors_in(folder):
    """What all files of a folder hold."""
    tensors = {}
    for path in Path(folder).glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            for name in file.keys():
                assert name not in tensors, name
                tensors[name] = file.get_tensor(name)
    return tensors


main()

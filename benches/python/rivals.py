"""The Python contenders: rivals.py FUNCTION PATH TOUCH [--check].

Each function gets the path and returns tensors by name. See src/sample.rs for what is said on the
pipes, and src/digest.rs for the checksum.
"""

import gc
import json
import os
import re
import shutil
import sys
import time
import zlib

import torch
from safetensors import safe_open
from safetensors.torch import load_file


def load_and_clone(path):
    return {name: tensor.clone() for name, tensor in load_file(path).items()}


def load_lazily(path):
    return load_file(path)


def slice_dim_0(path):
    return sliced(path, lambda part, rank: part[rank(0)])


def slice_dim_1(path):
    return sliced(path, lambda part, rank: part[:, rank(1)])


def reshard(path):
    """As huggingface_hub does it; what was saved is read once the clock has stopped."""
    folder = saved_in(path)
    save_torch_state_dict(load_file(path), folder, max_shard_size=1 << 30)
    return lambda: load_folder(folder)


def saved_in(path):
    return os.path.join(os.path.dirname(path), "saved")


def load_folder(folder):
    tensors = {}
    for name in os.listdir(folder):
        if name.endswith(".safetensors"):
            tensors |= load_file(os.path.join(folder, name))
    return tensors


def prepare(function, path):
    """What is not measured."""
    if function == "reshard":
        global save_torch_state_dict
        from huggingface_hub import save_torch_state_dict

        shutil.rmtree(saved_in(path), ignore_errors=True)
        os.mkdir(saved_in(path))
        os.sync()


def sliced(path, take):
    """Rank 3 of 8, of every tensor that is no vector."""
    tensors = {}
    with safe_open(path, "pt") as file:
        for name in file.keys():
            part = file.get_slice(name)
            shape = part.get_shape()
            if len(shape) > 1:
                rank = lambda dim: slice(3 * shape[dim] // 8, 4 * shape[dim] // 8)
                view = take(part, rank)
                tensors[name] = view.clone(memory_format=torch.contiguous_format)
    return tensors


DTYPES = {torch.bfloat16: "BF16", torch.float32: "F32"}


def digest(tensors):
    lines, size = [], 0
    for name, tensor in tensors.items():
        data = tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
        size += data.nbytes
        shape = list(tensor.shape)
        lines.append(f"{name} {DTYPES[tensor.dtype]} {shape} {zlib.crc32(data):08x}\n")
    text = "".join(sorted(lines)).encode()
    return {"tensors": len(lines), "bytes": size, "crc32": zlib.crc32(text)}


def resident():
    status = open("/proc/self/status").read()
    kib = lambda field: int(re.search(rf"^{field}:\s+(\d+) kB", status, re.M)[1])
    return kib("RssAnon") << 10, kib("RssFile") << 10, kib("VmHWM") << 10


def main(function, path, touch, *check):
    prepare(function, path)
    gc.collect()
    print("ready", flush=True)
    sys.stdin.readline()
    if not check:
        torch.empty(int(touch), dtype=torch.uint8).fill_(1)  # and freed at once

    open("/proc/self/clear_refs", "w").write("5")
    anonymous, mapped, _ = resident()
    cpu = os.times()
    clock = time.perf_counter()
    tensors = globals()[function](path)
    seconds = time.perf_counter() - clock
    cpu_after = os.times()
    anonymous_after, mapped_after, peak = resident()
    measured = {
        "seconds": seconds,
        "user": cpu_after.user - cpu.user,
        "system": cpu_after.system - cpu.system,
        "resident": {
            "anonymous": max(0, anonymous_after - anonymous),
            "mapped": max(0, mapped_after - mapped),
            "peak": max(0, peak - anonymous - mapped),
        },
    }
    print(json.dumps(measured), flush=True)
    if check:
        print(json.dumps(digest(tensors() if callable(tensors) else tensors)), flush=True)


main(*sys.argv[1:])

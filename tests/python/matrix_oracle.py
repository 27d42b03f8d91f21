"""torch and numpy as two of the frameworks of the matrix, served over pipes: `python matrix_oracle.py`.

Each line on standard input is a request, and each line on standard output its answer:

    {"do": "save", "framework": "torch" | "numpy", "folder": "...", "shard_bytes": 8 | null,
     "dtype": "BF16", "buffer": "hex of a whole buffer",
     "tensors": [{"name": "x", "offset": 0, "dims": [2, 3], "strides": [3, 1]}]}     in elements
        -> {}
    {"do": "load", "framework": "torch" | "numpy", "folder": "..."}
        -> {"tensors": {"x": {"dtype": "BF16", "shape": [2, 3], "bytes": "hex"}}}
    {"do": "resave", "from": "...", "to": "...", "max_shard_size": "20MB"}     a model, by transformers
        -> {}

What a library refuses is answered as {"error": "ValueError", "message": "..."}. Tensors are made as
views of one buffer and saved by the means that the libraries themselves recommend; nothing here reads
or writes the format.
"""

import json
import sys
from pathlib import Path

from oracle import raw_bytes

import huggingface_hub
import numpy as np
import safetensors.numpy
import safetensors.torch
import torch
import transformers
from safetensors import safe_open

INDEX = "model.safetensors.index.json"

TORCH = {
    "BOOL": "bool",
    "F4": "float4_e2m1fn_x2",
    "F6_E2M3": "float6_e2m3",
    "F6_E3M2": "float6_e3m2",
    "U8": "uint8",
    "I8": "int8",
    "F8_E5M2": "float8_e5m2",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E8M0": "float8_e8m0fnu",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "I16": "int16",
    "U16": "uint16",
    "F16": "float16",
    "BF16": "bfloat16",
    "I32": "int32",
    "U32": "uint32",
    "F32": "float32",
    "C64": "complex64",
    "F64": "float64",
    "I64": "int64",
    "U64": "uint64",
}


class Torch:
    def tensors(self, dtype, buffer, views):
        dtype = getattr(torch, TORCH[dtype])
        buffer = torch.frombuffer(bytearray(buffer), dtype=torch.uint8).view(dtype)
        tensors = {}
        for view in views:
            place = view["dims"], view["strides"], view["offset"]
            if dtype is torch.float4_e2m1fn_x2:
                place = in_pairs(*place)
            tensors[view["name"]] = torch.as_strided(buffer, *place)
        return tensors

    def save(self, tensors, folder, shard_bytes):
        # hub refuses a view of part of a storage, so that nobody saves the whole of it by mistake.
        tensors = {
            name: tensor if tensor.nbytes == tensor.untyped_storage().nbytes() else tensor.clone()
            for name, tensor in (tensors | anchors(torch.tensor, torch.uint8)).items()
        }
        huggingface_hub.save_torch_state_dict(tensors, folder, max_shard_size=shard_bytes or "5GB")

    def load_file(self, path):
        return safetensors.torch.load_file(path)

    def describe(self, tensor):
        name = str(tensor.dtype).removeprefix("torch.")
        dtype = next(format for format, torchs in TORCH.items() if torchs == name)
        shape = list(tensor.shape)
        if dtype == "F4":  # the last dimension counts pairs
            shape[-1] *= 2
        return {"dtype": dtype, "shape": shape, "bytes": raw_bytes(tensor).hex()}


def in_pairs(dims, strides, offset):
    """A place among elements of four bits as a place among torch's pairs of them."""
    *outer, last = strides or [0]
    if last != 1 or any(number % 2 for number in [dims[-1], offset, *outer]):
        raise ValueError("torch holds pairs of F4, and this view divides one")
    return [*dims[:-1], dims[-1] // 2], [*(stride // 2 for stride in outer), 1], offset // 2


class Numpy:
    def tensors(self, dtype, buffer, views):
        dtype = np.dtype(TORCH[dtype])
        buffer = np.frombuffer(buffer, dtype)
        return {
            view["name"]: np.lib.stride_tricks.as_strided(
                buffer[view["offset"] :],
                view["dims"],
                [stride * dtype.itemsize for stride in view["strides"]],
            )
            for view in views
        }

    def save(self, tensors, folder, shard_bytes):
        # The package writes memory as it lies, whatever the strides.
        tensors = {
            name: np.ascontiguousarray(array).reshape(array.shape)
            for name, array in (tensors | anchors(np.array, np.uint8)).items()
        }
        if shard_bytes is None:
            safetensors.numpy.save_file(tensors, folder / "model.safetensors")
            return
        # Hugging Face shards torch's tensors only, so each array has a shard of its own.
        names = {
            name: f"model-{number:05}-of-{len(tensors):05}.safetensors"
            for number, name in enumerate(tensors, 1)
        }
        for name, file in names.items():
            safetensors.numpy.save_file({name: tensors[name]}, folder / file)
        total_size = sum(array.nbytes for array in tensors.values())
        index = {"metadata": {"total_size": total_size}, "weight_map": names}
        (folder / INDEX).write_text(json.dumps(index))

    def load_file(self, path):
        return safetensors.numpy.load_file(path)

    def describe(self, array):
        dtype = next(format for format, numpys in TORCH.items() if numpys == array.dtype.name)
        return {"dtype": dtype, "shape": list(array.shape), "bytes": array.tobytes().hex()}


def anchors(make, dtype):
    """What every checkpoint holds besides, so that shards of 8 bytes are several."""
    return {name: make([first + i for i in range(8)], dtype=dtype) for name, first in [("a", 1), ("z", 101)]}


def load(framework, folder):
    """All tensors under all their names, with those that are recorded as tied."""
    index = folder / INDEX
    if index.exists():
        index = json.loads(index.read_text())
        files = sorted(set(index["weight_map"].values()))
        records = [index["metadata"]]
    else:
        files, records = ["model.safetensors"], []
    tensors = {}
    for file in files:
        tensors |= framework.load_file(folder / file)
        with safe_open(folder / file, "np") as opened:
            records.append(opened.metadata() or {})
    for record in records:
        for dropped, kept in record.items():
            if kept in tensors and dropped not in tensors:
                tensors[dropped] = tensors[kept]
    return {name: framework.describe(tensor) for name, tensor in tensors.items()}


def answer(request):
    do = request.pop("do")
    if do == "resave":
        model = transformers.AutoModel.from_pretrained(request["from"])
        model.save_pretrained(request["to"], max_shard_size=request["max_shard_size"])
        return {}
    framework = {"torch": Torch, "numpy": Numpy}[request["framework"]]()
    folder = Path(request["folder"])
    if do == "load":
        return {"tensors": load(framework, folder)}
    buffer = bytes.fromhex(request["buffer"])
    tensors = framework.tensors(request["dtype"], buffer, request["tensors"])
    framework.save(tensors, folder, request["shard_bytes"])
    return {}


for line in sys.stdin:
    try:
        result = answer(json.loads(line))
    except Exception as error:
        result = {"error": type(error).__name__, "message": str(error)}
    print(json.dumps(result), flush=True)

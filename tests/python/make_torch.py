"""Files of torch, and what torch finds in them: `python make_torch.py OUTDIR`.

`expected.json` has a line for each file that is to be opened:

    {"file": "views-zip.pt",
     "key": "ema" | null,          which part of it is meant
     "warnings": ["pickle-object"],
     "tensors": {"w": {"dtype": "F32", "shape": [2, 3], "sha256": "..."}},
     "tied": [["a", "b"]]}         names of tensors that torch holds once

or, where nothing is to be had of it, "refused" with the code. Shapes and bytes are those of what `torch.load`
gives of the very file, conjugated, negated and made contiguous by torch; of names, those that
`state_dict()` gives.
"""

import collections
import hashlib
import io
import json
import os
import pickle
import warnings
import zipfile
from collections import OrderedDict

import numpy as np
import torch

from oracle import out_dir

warnings.filterwarnings("ignore")

DTYPES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16",
    "int64": "I64", "int32": "I32", "int16": "I16", "int8": "I8",
    "uint8": "U8", "uint16": "U16", "uint32": "U32", "uint64": "U64",
    "bool": "BOOL", "complex64": "C64",
    "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2",
    "float8_e4m3fnuz": "F8_E4M3FNUZ", "float8_e5m2fnuz": "F8_E5M2FNUZ",
    "float8_e8m0fnu": "F8_E8M0", "float4_e2m1fn_x2": "F4",
}  # fmt: skip
# torch has no typed storage for these, and cannot load the legacy files that it writes of them.
UNTYPED = ("float8", "float4", "uint16", "uint32", "uint64")
CONTAINERS = {"zip": {}, "legacy": {"_use_new_zipfile_serialization": False}}


class Net(torch.nn.Module):
    """Parameters that are tied, buffers that are kept and not, a module without any."""

    def __init__(self):
        super().__init__()
        self.fc = torch.nn.Linear(3, 3)
        self.again = self.fc
        self.norm = torch.nn.BatchNorm1d(3)
        self.act = torch.nn.ReLU()
        self.register_buffer("kept", torch.arange(4))
        self.register_buffer("passing", torch.arange(5), persistent=False)
        self.register_parameter("absent", None)

    def forward(self, x):
        return self.norm(self.act(self.fc(x)))


class Subclass(torch.Tensor):
    pass


def main():
    torch.manual_seed(7)
    files = Files(out_dir())
    for container in CONTAINERS:
        protocols(files, container)
        dtypes(files, container)
        views(files, container)
        values(files, container)
        selections(files, container)
    bits(files)
    refused_kinds(files)
    repacked(files)
    script(files)
    code(files)
    files.finish()


class Files:
    def __init__(self, folder):
        self.folder, self.expected = folder, []

    def save(self, name, value, container, **more):
        path = self.folder / f"{name}-{container}.pt"
        torch.save(value, path, **CONTAINERS[container], **more)
        return path

    def expect(self, path, key=None, warnings=(), value=None, tensors=None):
        """That the tensors of `value` are found, or of what torch finds under the key, if it loads it."""
        if tensors is None:
            value = load(path) if value is None else value
            for step in key.split(".") if key not in (None, ".") else ():
                value = value[int(step) if step.isdecimal() else step]
            tensors = dict(flat(value))
        described = {name: describe(tensor) for name, tensor in tensors.items()}
        self.expected.append(
            {
                "file": path.relative_to(self.folder).as_posix(),
                "key": key,
                "warnings": sorted(warnings),
                "tensors": described,
                "tied": tied(tensors),
            }
        )

    def refuse(self, path, code, key=None):
        name = path.relative_to(self.folder).as_posix()
        self.expected.append({"file": name, "key": key, "refused": code})

    def finish(self):
        text = json.dumps(self.expected, indent=1)
        (self.folder / "expected.json").write_text(text)


def load(path):
    return torch.load(path, map_location="cpu", weights_only=False)


def flat(value, path=()):
    """Names and tensors, in the order of the file."""
    if isinstance(value, torch.Tensor):
        yield ".".join(map(str, path)) or "tensor", value
    elif isinstance(value, torch.nn.Module):
        yield from flat(value.state_dict(keep_vars=True), path)
    elif isinstance(value, dict):
        for key, entry in value.items():
            yield from flat(entry, (*path, key))
    elif isinstance(value, (list, tuple)):
        for key, entry in enumerate(value):
            yield from flat(entry, (*path, key))


def raw(tensor):
    tensor = tensor.detach().as_subclass(torch.Tensor)
    tensor = tensor.resolve_conj().resolve_neg().contiguous()
    if tensor.numel() == 0:
        return b""
    return tensor.reshape(-1).view(torch.uint8).numpy().tobytes()


def describe(tensor):
    dtype = DTYPES[str(tensor.dtype).removeprefix("torch.")]
    shape = list(tensor.shape)
    if dtype == "F4":
        shape[-1] *= 2
    digest = hashlib.sha256(raw(tensor)).hexdigest()
    return {"dtype": dtype, "shape": shape, "sha256": digest}


def tied(tensors):
    """Groups of names that are one tensor: one place, one shape, one way of reading it."""
    groups = collections.defaultdict(list)
    for name, tensor in tensors.items():
        if tensor.numel():
            how = (tuple(tensor.stride()), tensor.is_conj(), tensor.is_neg())
            if tensor.is_contiguous():
                how = (None, *how[1:])
            place = (tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), *how)
            groups[place].append(name)
    return sorted(sorted(names) for names in groups.values() if len(names) > 1)


def base():
    weight = torch.arange(6, dtype=torch.float32).reshape(2, 3)
    return OrderedDict(w=weight, b=torch.arange(3, dtype=torch.float16))


def protocols(files, container):
    for protocol in range(1, 6):
        path = files.save(f"protocol-{protocol}", base(), container, pickle_protocol=protocol)
        files.expect(path)
    path = files.save("protocol-0", base(), container, pickle_protocol=0)
    files.refuse(path, "pickle-persistent")


def dtypes(files, container):
    every = OrderedDict()
    for name in DTYPES:
        dtype, bytes_ = getattr(torch, name), torch.arange(64, dtype=torch.uint8)
        tensor = (bytes_ % 2).bool() if name == "bool" else bytes_.view(dtype)
        every[name] = tensor
        if name != "float4_e2m1fn_x2":
            every[f"{name}.t"] = tensor.reshape(2, -1).t()
    # What torch cannot load again is what it was.
    typed = {k: v for k, v in every.items() if not k.startswith(UNTYPED)}
    path = files.save("dtypes", typed, container)
    files.expect(path)
    untyped = {k: v for k, v in every.items() if k.startswith(UNTYPED)}
    path = files.save("dtypes-untyped", untyped, container)
    files.expect(path, tensors=untyped)


def views(files, container):
    b = torch.arange(24, dtype=torch.float32)
    m, cube = b.reshape(4, 6), b.reshape(2, 3, 4)
    large = torch.randn(1100, 900)
    path = files.save(
        "views",
        OrderedDict(
            t=m.t(), col=m[:, 1:3], row=m[2], step=b[1::5], perm=cube.permute(2, 0, 1),
            one=m[1:2, ::2], whole=m, part=b[:12], same=m.t(), again=b[:12],
            overlap=torch.as_strided(b, (4, 4), (1, 1)), windows=b.unfold(0, 5, 2),
            expanded=torch.tensor([1.0, 2.0]).unsqueeze(1).expand(2, 300),
            expanded_outside=torch.arange(3).expand(200, 3), scalar=b[7],
            large_t=large.t(), large_step=large[::7, ::3], large_part=large[5:, 7:],
            large_cube=large.reshape(11, 100, 900).permute(2, 1, 0),
            far=torch.arange(1 << 19, dtype=torch.int64)[:: 1 << 15],
        ),
        container,
    )  # fmt: skip
    files.expect(path)


def values(files, container):
    parameter = torch.nn.Parameter(torch.randn(5, 4))
    tagged = torch.nn.Parameter(torch.randn(2))
    tagged.tag = "x"
    hooked = torch.randn(2).requires_grad_()
    with_attribute = torch.randn(3)
    with_attribute.note = 5
    dict_of_tied = OrderedDict(
        [("lm_head.weight", parameter), ("embed.weight", parameter), ("tagged", tagged)]
    )
    dict_of_tied.update(grad=hooked, attribute=with_attribute, plain=parameter.data)
    files.expect(files.save("tied", dict_of_tied, container))
    empty = {"e0": torch.empty(0), "e1": torch.empty(2, 0, 3), "s": torch.tensor(3.5)}
    empty["wide"] = torch.empty(0, 2**40)
    files.expect(files.save("empties", empty, container))
    other = {
        "w": torch.randn(2), "epoch": 3, "lr": 1e-3, "name": "é", "tags": ("a", None, True),
        "big": 2**70, "neg": -(2**40), "best": np.float64(0.5), "dtype": torch.float16,
        "size": torch.Size([1, 2]), "device": torch.device("cuda:0"), "set": {1, 2},
        "bytes": b"\0\1", "array": bytearray(b"x"), "complex": 1j, "list": [1.0, 2],
        "surrogate": "\ud800",
    }  # fmt: skip
    files.expect(files.save("others", other, container))
    subclass = {"w": torch.randn(2).as_subclass(Subclass)}
    files.expect(files.save("subclass", subclass, container))
    for name, top in [
        ("top-tensor", torch.randn(3)),
        ("top-list", [torch.randn(1), torch.randn(2)]),
        ("top-tuple", (torch.randn(1), {"w": torch.randn(2)})),
        ("int-keys", {0: torch.randn(2), 1: {"w": torch.randn(1)}}),
        ("ordered", OrderedDict(a=collections.defaultdict(list, w=torch.randn(2)))),
    ]:
        files.expect(files.save(name, top, container))
    # Pickled with the class's name, made without the class.
    net = Net().eval()
    files.expect(files.save("state-dict", net.state_dict(), container))
    files.expect(files.save("module", net, container), warnings=[])
    looped = []
    looped.append(looped)
    path = files.save("loop", {"loop": looped, "w": torch.randn(1)}, container)
    loaded = load(path)
    files.expect(path, value={"w": loaded["w"]})
    path = files.save("no-tensors", {"a": 1}, container)
    files.refuse(path, "not-weights")
    for name, colliding in [
        ("collision", {"a.b": torch.randn(1), "a": {"b": torch.randn(1)}}),
        ("collision-of-kinds", {"1": torch.randn(1), 1: torch.randn(1)}),
    ]:
        files.refuse(files.save(name, colliding, container), "name-collision")
    path = files.save("odd-key", {"w": torch.randn(1), (1, 2): torch.randn(1)}, container)
    files.refuse(path, "key-type")


def selections(files, container):
    net = Net()
    adam = torch.optim.Adam(net.parameters())
    net(torch.randn(4, 3)).sum().backward()
    adam.step()
    training = {
        "epoch": 3, "state_dict": net.state_dict(), "optimizer": adam.state_dict(),
        "rng": torch.get_rng_state(), "args": {"lr": 1e-3},
    }  # fmt: skip
    path = files.save("training", training, container)
    loaded = load(path)
    files.expect(path, value=loaded["state_dict"], warnings=["unselected-tensor"])
    files.expect(path, key="state_dict")
    files.expect(path, key="optimizer.state.0")
    files.expect(path, key=".")
    files.refuse(path, "key-missing", key="model")
    files.refuse(path, "key-missing", key="args")
    two = {"model": {"enc": {"w": torch.randn(2)}}, "ema": {"enc": {"w": torch.randn(2)}}}
    path = files.save("two", two, container)
    files.refuse(path, "ambiguous-key")
    files.expect(path, key="ema")
    files.expect(path, key="model.enc")
    shared = OrderedDict(w=torch.randn(2))
    path = files.save("shared-dict", {"model": shared, "ema": shared}, container)
    files.expect(path, value=load(path)["model"])
    files.expect(path, key=".")
    path = files.save("dotted", {"a.b": {"w": torch.randn(2)}}, container)
    loaded = load(path)
    files.expect(path, key="a\\.b", tensors=dict(flat(loaded["a.b"])))


def bits(files):
    # No zeros: of a negated complex 0, torch makes 0 or -0 as its vectors have it.
    pairs = torch.view_as_complex(torch.arange(1, 25.0).reshape(3, 4, 2))
    signed = OrderedDict(
        conj=pairs.conj(), conj_t=pairs.conj().t(), again=pairs.conj(), plain=pairs,
        both=torch._neg_view(pairs.conj()), neg_complex=torch._neg_view(pairs),
        imag=pairs.clone().conj().imag,
    )  # fmt: skip
    for dtype in ("float64", "float32", "float16", "bfloat16", "int64", "int16", "int8", "uint8"):
        signed[dtype] = torch._neg_view(torch.arange(300).to(getattr(torch, dtype)))
    files.expect(files.save("signs", signed, "zip"))


def refused_kinds(files):
    t = torch.tensor([[0, 1.0], [2, 0]])
    for name, kind, code in [
        ("complex128", torch.zeros(2, dtype=torch.complex128), "torch-dtype"),
        ("complex32", torch.zeros(2, dtype=torch.complex32), "torch-dtype"),
        ("sparse", t.to_sparse(), "torch-tensor-kind"),
        ("sparse-rows", t.to_sparse_csr(), "torch-tensor-kind"),
        ("quantised", torch.quantize_per_tensor(t, 0.1, 3, torch.qint8), "torch-tensor-kind"),
        ("nested", torch.nested.nested_tensor([t[0], t[1, :1]]), "torch-tensor-kind"),
        ("meta", torch.empty(2, device="meta"), "torch-tensor-kind"),
        ("lazy", torch.nn.UninitializedParameter(), "torch-tensor-kind"),
    ]:
        path = files.save(f"kind-{name}", {"fine": {"w": t}, "odd": kind}, "zip")
        files.refuse(path, code)
        # Only that tensor.
        files.expect(path, key="fine", value={"w": t}, tensors={"w": t})


def repacked(files):
    """Archives that others packed, or torch did otherwise."""
    path = files.save("a-name-of-21-letters-", base(), "zip")
    files.expect(path)
    torch.serialization.set_crc32_options(False)
    files.expect(files.save("no-checksums", base(), "zip"))
    torch.serialization.set_crc32_options(True)
    buffer = io.BytesIO()
    torch.save(base(), buffer)
    path = files.folder / "no-extension"
    path.write_bytes(buffer.getvalue())
    files.expect(path)
    original = files.save("original", base(), "zip")

    def pack(name, change=lambda name, data: (name, data), reverse=False, **more):
        path = files.folder / name
        force = more.pop("force_zip64", False)
        comment = more.pop("comment", b"")
        before = more.pop("before", b"")
        with zipfile.ZipFile(original) as old, open(path, "wb") as file:
            file.write(before)
            with zipfile.ZipFile(file, "w", **more) as new:
                new.comment = comment
                entries = [(entry.filename, old.read(entry)) for entry in old.infolist()]
                for entry in reversed(entries) if reverse else entries:
                    changed = change(*entry)
                    if changed:
                        info = zipfile.ZipInfo(changed[0])
                        info.compress_type = new.compression
                        with new.open(info, "w", force_zip64=force) as out:
                            out.write(changed[1])
        return path

    def bare(name, data):
        return None if name.endswith(("byteorder", ".format_version", "_id")) else (name, data)

    def big(name, data):
        swap = {"0": ">u4", "1": ">u2"}
        if name.endswith("/byteorder"):
            data = b"big"
        elif name.rsplit("/", 2)[1] == "data":
            to = swap[name.rsplit("/", 1)[1]]
            data = np.frombuffer(data, to.replace(">", "<")).astype(to).tobytes()
        return name, data

    files.expect(pack("unaligned.pt"))
    files.expect(pack("zip64.pt", force_zip64=True))
    files.expect(pack("comment.pt", comment=b"hello"))
    files.expect(pack("reversed.pt", reverse=True))
    files.expect(pack("as-1.6.pt", bare))
    path = pack("rootless.pt", lambda name, data: (name.split("/", 1)[1], data))
    files.expect(path, value=base())
    files.expect(pack("big-endian.pt", big))
    files.refuse(pack("deflated.pt", compression=zipfile.ZIP_DEFLATED), "zip-method")
    # torch takes neither for one of its files.
    files.refuse(pack("prefixed.pt", before=b"\x01\0\0\0\0\0\0\0#"), "header-not-object")
    middle = pack("byteorder.pt", lambda n, d: (n, b"pdp") if n.endswith("byteorder") else (n, d))
    files.refuse(middle, "torch-byteorder")
    for name, value in [("tensor", {"w": torch.randn(2)}), ("numpy", {"w": np.arange(3.0)})]:
        path = files.folder / f"plain-pickle-{name}.pkl"
        path.write_bytes(pickle.dumps(value, protocol=4))
        files.refuse(path, "not-safetensors")


def script(files):
    net = Net().eval()
    made = {"script": torch.jit.script(net), "trace": torch.jit.trace(net, torch.randn(1, 3))}
    for name, module in made.items():
        path = files.folder / f"{name}.pt"
        module.save(path)
        loaded = torch.jit.load(path)
        tensors = dict(loaded.named_parameters(remove_duplicate=False))
        tensors |= dict(loaded.named_buffers(remove_duplicate=False))
        files.expect(path, tensors=tensors, warnings=["torchscript-attributes"])


class Command:
    """What Python would run when it loads it."""

    def __reduce__(self):
        return os.system, ("false",)


def code(files):
    path = files.folder / "code.pt"
    torch.save({"x": Command(), "w": torch.arange(3.0)}, path)
    files.refuse(path, "pickle-code")


main()

"""What the Python writers make of what we save too: `python save_oracle.py OUTDIR`.

    plans.json   [{"max": 5, "sizes": [3, 3], "shards": [[0], [1]], "ends": [FIRST, LAST]}]
                 positions in the shards that huggingface_hub plans, its first and its last file name
    sizes.json   [{"text": "1.005KB", "hub": 1004, "exact": 1005}]
                 what huggingface_hub reads, in binary floats, and what it is in rational numbers
    CASE/        the files of one save, and `input.json`, what went in:

    {"dialect": "hub" | "transformers" | "dcp",
     "variant": "fp16" | null,
     "max_shard_size": "3KB" | null,
     "shards": [["a", "b"], ["c"]] | null,        where they are given instead of a size
     "metadata": [["key", "value"]],
     "index_metadata": [["key", VALUE]],          a float is {"float": its bits in hexadecimal}
     "tensors": [{"name": "a", "memory": 0, "dtype": "F32", "shape": [2]}]}

Tensors are in the order in which the writer got them; those of the same `memory` are tied. The bytes
are in the files, under the name that the writer kept.
"""

import json
import random
import shutil
import struct
import warnings
from fractions import Fraction

from oracle import out_dir, randomize

import accelerate
import huggingface_hub
import torch
import torch.distributed.checkpoint as dcp
import transformers
from huggingface_hub.serialization import split_state_dict_into_shards_factory
from huggingface_hub.serialization._base import parse_size_to_int
from safetensors import safe_open

# Everything that JSON escapes, and what sorts otherwise in UTF-16 than by code points.
ODD_NAMES = [
    "plain",
    "größe",
    "重み",
    "😀",
    "\uffff",
    "\U0010ffff",
    "e\u0301",
    "\ufeff",
    "\u2028 \u2029",
    '"quoted"',
    "back\\slash",
    "a/b",
    "{}:,[]",
    "tab\tline\nreturn\r",
    "\b\f",
    "nul\0",
    "\x01\x1f ~",
    "del\x7f\x80\x9f",
    " ",
    "Zebra",
    "10",
    "9",
]
DTYPES = [
    torch.bool,
    torch.uint8,
    torch.int8,
    torch.int16,
    torch.uint16,
    torch.int32,
    torch.uint32,
    torch.int64,
    torch.uint64,
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
    torch.complex64,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.float8_e4m3fnuz,
    torch.float8_e5m2fnuz,
    torch.float8_e8m0fnu,
    torch.float4_e2m1fn_x2,
]


def main():
    root = out_dir()
    write(root / "plans.json", list(plans()))
    write(root / "sizes.json", list(sizes()))
    hub(root)
    transformers_models(root)
    accelerate_model(root)
    distributed(root)


def write(path, value):
    path.write_text(json.dumps(value), encoding="ascii")


# ---- plans and sizes


def plans():
    most = 5
    edges = [
        [],
        [0],
        [0, 0, 0],
        [5],
        [6],
        [2, 3],
        [2, 3, 0],
        [2, 3, 1],
        [0, 5, 0, 5, 0],
        [5, 5, 5],
        [6, 7, 8],
        [20, 1, 1],
        [1, 20, 1],
        [1, 1, 20],
        [1, 20, 1, 20, 1, 20],
        [4, 20, 4, 1, 20, 0, 5],
        [6, 0],
        [0, 6],
        [3] * 12,
        [1] * 5,
        [1] * 6,
    ]
    for sizes in edges:
        yield plan(most, sizes)
    # The numbers in names grow beyond five digits.
    yield plan(1, [1] * 100_001)
    generator = random.Random(1)
    for _ in range(600):
        most = generator.choice([1, 2, 5, 10, 100, 10**9])
        near = [0, 1, most - 1, most, most + 1]
        count = generator.randrange(30)
        yield plan(
            most,
            [
                generator.choice([*near, generator.randint(0, most), generator.randint(0, 3 * most)])
                for _ in range(count)
            ],
        )


def plan(most, sizes):
    split = split_state_dict_into_shards_factory(
        dict(enumerate(sizes)),
        get_storage_size=lambda size: size,
        # Of tensors without bytes, torch says that all have the same storage.
        get_storage_id=lambda size: "nowhere" if size == 0 else None,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=most,
    )
    files = list(split.filename_to_tensors)
    assert split.metadata["total_size"] == sum(sizes)
    return {
        "max": most,
        "sizes": sizes,
        "shards": list(split.filename_to_tensors.values()),
        "ends": [files[0], files[-1]] if files else [],
    }


def sizes():
    generator = random.Random(2)
    units = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
    for _ in range(500):
        unit = generator.choice(list(units))
        places = generator.choice([0, 0, 1, 2, 3])
        number = f"{generator.uniform(0.001, 999):.{places}f}"
        text = number + generator.choice(["", " "]) + generator.choice([unit, unit.lower()])
        exact = Fraction(number) * units[unit]
        yield {"text": text, "hub": parse_size_to_int(text), "exact": exact.__floor__()}


# ---- whole checkpoints


def hub(root):
    generator = torch.Generator().manual_seed(1)

    def matrix(*shape):
        return torch.randn(shape, generator=generator)

    def save(case, state, size, metadata=None):
        folder = fresh(root / case)
        # The call changes both dictionaries.
        given = dict(metadata or {})
        huggingface_hub.save_torch_state_dict(
            dict(state), folder, max_shard_size=size, metadata=dict(given)
        )
        texts = {key: value for key, value in given.items() if isinstance(value, str)}
        others = {key: value for key, value in given.items() if key not in texts}
        assert [*texts, *others] == list(given), "texts come first"
        describe(folder, "hub", state, max_shard_size=size, metadata=texts, index_metadata=others)

    odd = {name: matrix(1 + number % 3, 4) for number, name in enumerate(reversed(ODD_NAMES))}
    odd[""] = matrix(2)
    save("hub-odd-names", odd, "100.5KB")
    save("hub-odd-names-sharded", odd, "0.1KB")

    typed = {}
    for number, dtype in enumerate(DTYPES):
        size = torch.empty(0, dtype=dtype).element_size()
        top = 2 if dtype is torch.bool else 256
        pattern = torch.randint(0, top, (3, 8 * size), generator=generator, dtype=torch.uint8)
        typed[f"{99 - number}.matrix"] = pattern.view(dtype)
        typed[f"{number}.empty"] = torch.empty(0, 8 * size, dtype=torch.uint8).view(dtype)
        if dtype is not torch.float4_e2m1fn_x2:
            typed[f"{number}.scalar"] = pattern[0, :size].clone().view(dtype).reshape(())
    save("hub-dtypes", typed, "1MB")
    save("hub-dtypes-sharded", typed, "0.3KB")

    big, small = (lambda: matrix(100)), (lambda: matrix(2))
    save("hub-large-first", {"c": big(), "b": small(), "a": small()}, "0.1KB")
    save("hub-large-last", {"c": small(), "b": small(), "a": big()}, "0.1KB")
    mixed = {"a": small(), "b": big(), "c": small(), "d": matrix(25), "e": big(), "f": small()}
    save("hub-large-between", mixed, "0.1KB")

    tied = {f"layers.{number}.weight": matrix(4, 4) for number in range(5)}
    tied |= {"head.weight": matrix(8, 4), "z.größe": matrix(3, 3)}
    tied["embed.weight"] = tied["head.weight"]
    tied["copy.2.weight"] = tied["layers.3.weight"]
    tied["a\\\x7f😀"] = tied["z.größe"]
    tied["Copy.10.weight"] = tied["layers.3.weight"]
    tied["lone.weight"] = tied["layers.3.weight"].clone()
    save("hub-tied", tied, "1MB", {"note": "zwölf \x7f\U0010ffff", "größe": ""})
    save("hub-tied-sharded", tied, "0.15KB")
    values = {
        "note": 'zwölf\x7f "\\" 😀\0',
        "": "the empty key",
        "epochs": 3,
        "most": 2**64 - 1,
        "least": -(2**63),
        "none": None,
        "flags": [True, False, [], {}, [[]]],
        "nested": {"z": {"größe": [1, {"deep": None}]}, "a": "b"},
        "loss": 0.1,
        "floats": list(floats()),
    }
    save("hub-tied-metadata-sharded", tied, "0.15KB", values)


def floats():
    """Where Python turns to exponents, the ends of the range, and random bit patterns."""
    yield from [0.0, -0.0, 1.0, -1.5, 5.0, 1e15, 9999999999999998.0, 1e16, 1e17, 1e22, 1e23]
    yield from [0.001, 0.0001, 0.00012345, 0.00009999999999999999, 1e-5, 1e-10, 1e100, 1e-100]
    yield from [5e-324, 2.2250738585072014e-308, 1.7976931348623157e308, 2.0**53, 1 / 3]
    # The neighbours of a power of two are not equally far from it.
    yield from [2.0**exponent for exponent in range(-1074, 1024)]
    generator = random.Random(3)
    for _ in range(1500):
        (value,) = struct.unpack("<d", generator.randbytes(8))
        if value - value == 0:
            yield value
        yield generator.uniform(-1, 1) * 10.0 ** generator.randint(-8, 20)
        # Exactly between two spellings, where there is one digit too few for the eighths.
        yield generator.randint(10**14, 2**50) + generator.choice([0.125, 0.375, 0.625, 0.875])


class OddModel(transformers.BertPreTrainedModel):
    """Parameters whose names no module path has."""

    def __init__(self, config):
        super().__init__(config)
        for number, name in enumerate(reversed(ODD_NAMES)):
            weight = torch.nn.Parameter(torch.zeros(1 + number % 3, 4))
            self.register_parameter(name, weight)
        self.post_init()


def transformers_models(root):
    sizes = {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.BertConfig(
        **sizes, intermediate_size=64, max_position_embeddings=32, architectures=[]
    )
    bert = randomize(transformers.BertModel(config), seed=11)
    transformers_save(root / "transformers-single", bert, "50GB")
    transformers_save(root / "transformers-sharded", bert, "12KB")
    transformers_save(root / "transformers-variant", bert.bfloat16(), "9KB", variant="fp16")
    transformers_save(root / "transformers-odd-names", OddModel(config), "0.1KB")

    config = transformers.GPT2Config(vocab_size=96, n_positions=32, n_embd=32, n_layer=2, n_head=2)
    gpt2 = randomize(transformers.GPT2LMHeadModel(config), seed=12)
    transformers_save(root / "transformers-tied", gpt2, "20KB")
    # `json.dumps` sorts what is nested, too.
    nested = {"z": [1.5, {"é": 1e-7, "z": None, "B": True}], "a": {}, "\uffff": 1, "😀": list(floats())}
    gpt2.num_parameters = lambda: nested
    transformers_save(root / "transformers-nested", gpt2, "20KB")


def transformers_save(folder, model, size, variant=None):
    fresh(folder)
    given = {}
    split = transformers.modeling_utils.split_torch_state_dict_into_shards

    def recording(state, **options):
        given.update(state)
        return split(state, **options)

    transformers.modeling_utils.split_torch_state_dict_into_shards = recording
    model.save_pretrained(folder, max_shard_size=size, variant=variant)
    transformers.modeling_utils.split_torch_state_dict_into_shards = split
    parameters = {"total_parameters": model.num_parameters()}
    describe(
        folder, "transformers", given, max_shard_size=size, variant=variant, index_metadata=parameters
    )


def accelerate_model(root):
    layers = [torch.nn.Linear(16, 16) for _ in range(12)]
    model = torch.nn.Sequential(*layers, torch.nn.BatchNorm1d(16))
    randomize(model, seed=13)
    folder = fresh(root / "accelerate")
    accelerate.Accelerator(cpu=True).save_model(model, folder, max_shard_size="2KB")
    describe(folder, "transformers", model.state_dict(), max_shard_size="2KB")


def distributed(root):
    generator = torch.Generator().manual_seed(14)
    names = [*reversed(ODD_NAMES), "layer.10.weight", "layer.9.weight"]
    state = {name: torch.randn(4, 3, generator=generator) for name in names}
    state["half"] = torch.randn(5, generator=generator).bfloat16()
    state["empty"] = torch.empty(0, 3)
    # As many files as a number with two digits, filled in turn.
    files = {name: 1 + number % 11 for number, name in enumerate(state)}
    shards = [[name for name in state if files[name] == 1 + shard] for shard in range(11)]
    for case, consolidate in [("dcp-rank0", False), ("dcp-consolidated", True)]:
        folder = fresh(root / case)
        writer = dcp.HuggingFaceStorageWriter(
            str(folder),
            fqn_to_index_mapping=files,
            save_distributed=consolidate,
            enable_consolidation=consolidate,
        )
        with warnings.catch_warnings(action="ignore"):  # that it saves without a process group
            dcp.save(state, storage_writer=writer, no_dist=True)
        shutil.rmtree(folder / "sharded", ignore_errors=True)
        describe(folder, "dcp", state, shards=shards)


# ---- descriptions


def fresh(folder):
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


def describe(folder, dialect, state, metadata=(), index_metadata=(), **input):
    stored = {}
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            for name in file.keys():
                part = file.get_slice(name)
                stored[name] = {"dtype": part.get_dtype(), "shape": part.get_shape()}
    memories = {}
    for name, tensor in state.items():
        place = tensor.data_ptr() if tensor.numel() else name
        memories.setdefault(place, []).append(name)
    tensors = {}
    for memory, names in enumerate(memories.values()):
        (kept,) = [name for name in names if name in stored] if len(names) > 1 else names
        for name in names:
            tensors[name] = {"name": name, "memory": memory, **stored[kept]}
    assert stored.keys() <= tensors.keys()
    unasked = {"variant": None, "max_shard_size": None, "shards": None}
    write(
        folder / "input.json",
        {
            "dialect": dialect,
            **unasked,
            **input,
            "metadata": list(dict(metadata).items()),
            "index_metadata": [[key, exact(value)] for key, value in dict(index_metadata).items()],
            "tensors": [tensors[name] for name in state],
        },
    )


def exact(value):
    """The value with its floats as bits: no parser of decimals shall come in between."""
    match value:
        case float():
            return {"float": struct.pack(">d", value).hex()}
        case list():
            return [exact(member) for member in value]
        case dict():
            return {key: exact(member) for key, member in value.items()}
        case _:
            return value


main()

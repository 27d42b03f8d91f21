"""Checkpoints as each writer of the Python world leaves them: `python make_fixtures.py OUTDIR`.

Every fixture is a folder with the files of one `save` of a tiny random model and an `expected.json`
(`oracle.describe` documents it). Where the writer has a loader of its own, what that loader gives is
compared with the stored bytes here, before any of our code sees them.

    bert-single                model.safetensors
    bert-sharded               shards and model.safetensors.index.json
    bert-bf16-sharded          the same in BF16
    bert-variant-fp16-sharded  model.fp16-*.safetensors and model.safetensors.index.fp16.json
    bert-variant-single        model.fp16.safetensors
    bert-two-variants          F32 shards and fp16 shards in one folder (expected.fp16.json too)
    gpt2-tied-sharded          lm_head.weight is left out and recorded nowhere
    llama-untied-sharded, llama-tied-single
    hub-tied-single            aliases recorded in the file's __metadata__
    hub-tied-sharded           aliases recorded in the index's metadata; a non-ASCII name
    dcp-consolidated           torch DCP, consolidated: header not padded, data unaligned, rank files
                               left in sharded/
    dcp-consolidated-one       the same in one file that is named and indexed as a shard
    dcp-rank0                  torch DCP without consolidation
    accelerate-sharded         buffers, and an I64 tensor without dimensions
    all-dtypes                 every dtype that torch can put in a file, 0-d and empty tensors, metadata
    hf-cache                   bert-sharded as a hub download: snapshots/REV/* are links into blobs/
"""

import hashlib
import json
import shutil
import warnings

from oracle import describe, out_dir, randomize, raw_bytes

import accelerate
import huggingface_hub
import safetensors
import torch
import torch.distributed.checkpoint as dcp
import transformers
from safetensors.torch import load_file, save_file

TRANSFORMERS = f"transformers {transformers.__version__}"
HUB = f"huggingface_hub {huggingface_hub.__version__}"
TORCH = f"torch {torch.__version__.split('+')[0]}"
ACCELERATE = f"accelerate {accelerate.__version__}"
SAFETENSORS = f"safetensors {safetensors.__version__}"


def main():
    root = out_dir()
    bert(root)
    causal(root)
    hub(root)
    distributed(root)
    accelerated(root)
    all_dtypes(root / "all-dtypes")
    hf_cache(root / "bert-sharded", root / "hf-cache")


def bert(root):
    config = transformers.BertConfig(
        vocab_size=96,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=32,
    )
    model = randomize(transformers.BertModel(config), seed=1)
    transformers_save(model, root / "bert-single")
    transformers_save(model, root / "bert-sharded", max_shard_size="30KB")
    transformers_save(model, root / "bert-two-variants", max_shard_size="30KB")
    model = model.bfloat16()
    transformers_save(model, root / "bert-bf16-sharded", max_shard_size="15KB")
    model = randomize(transformers.BertModel(config), seed=2).half()
    for name in ["bert-variant-fp16-sharded", "bert-two-variants"]:
        transformers_save(model, root / name, max_shard_size="15KB", variant="fp16")
    transformers_save(model, root / "bert-variant-single", variant="fp16")


def causal(root):
    config = transformers.GPT2Config(vocab_size=96, n_positions=32, n_embd=32, n_layer=2, n_head=2)
    model = randomize(transformers.GPT2LMHeadModel(config), seed=3)
    tied = {"lm_head.weight": "transformer.wte.weight"}
    transformers_save(model, root / "gpt2-tied-sharded", tied, max_shard_size="40KB")

    sizes = {
        "vocab_size": 96,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    config = transformers.LlamaConfig(**sizes, tie_word_embeddings=False)
    model = randomize(transformers.LlamaForCausalLM(config), seed=4)
    transformers_save(model, root / "llama-untied-sharded", max_shard_size="30KB")
    config = transformers.LlamaConfig(**sizes, tie_word_embeddings=True)
    model = randomize(transformers.LlamaForCausalLM(config), seed=5)
    tied = {"lm_head.weight": "model.embed_tokens.weight"}
    transformers_save(model, root / "llama-tied-single", tied)


def transformers_save(model, folder, tied=None, variant=None, **options):
    model.save_pretrained(folder, variant=variant, **options)
    expected = describe(folder, TRANSFORMERS, variant=variant, tied=tied)
    loaded = type(model).from_pretrained(folder, variant=variant, dtype="auto").state_dict()
    check_same(expected, {name: loaded[name] for name in expected["tensors"]})
    check_shards(expected, "max_shard_size" in options)
    left_out = set(loaded) - set(expected["tensors"])
    assert left_out == set(expected["tied"]), left_out


def hub(root):
    generator = torch.Generator().manual_seed(6)
    state = {f"layers.{i}.weight": torch.randn(16, 16, generator=generator) for i in range(6)}
    state["embed.weight"] = torch.randn(24, 16, generator=generator)
    state["head.weight"] = state["embed.weight"]
    state["head.bias"] = torch.randn(24, generator=generator).half()
    state["a.copy.weight"] = state["layers.3.weight"]
    state["größe.weight"] = torch.randn(3, generator=generator)
    for name, size in [("hub-tied-single", "1MB"), ("hub-tied-sharded", "3KB")]:
        folder = root / name
        folder.mkdir(exist_ok=True)
        # The call removes the duplicates from the very dictionary that it is given.
        huggingface_hub.save_torch_state_dict(
            dict(state), folder, max_shard_size=size, metadata={"note": "zwölf"}
        )
        # hub keeps the first name of each group that shares memory, and records the others.
        aliases = {"head.weight": "embed.weight", "layers.3.weight": "a.copy.weight"}
        expected = describe(folder, HUB, aliases=aliases)
        record = next(iter(expected["files"].values()))
        if expected["index"]:
            record = json.loads((folder / expected["index"]).read_text())["metadata"]
        assert record.items() >= aliases.items(), record
        check_same(expected, {key: state[key] for key in state if key not in aliases})
        check_shards(expected, size == "3KB")


def distributed(root):
    generator = torch.Generator().manual_seed(7)
    state = {f"layers.{i}.weight": torch.randn(16, 9, generator=generator) for i in range(11)}
    state["layers.0.bias"] = torch.randn(7, generator=generator).bfloat16()
    state["layers.1.scale"] = torch.randn(5, generator=generator).to(torch.float8_e4m3fn)
    state["empty"] = torch.empty(0, 3)
    dcp_save(state, root / "dcp-consolidated", shards=3, consolidate=True)
    dcp_save(state, root / "dcp-consolidated-one", shards=None, consolidate=True)
    # Consolidation fails on integers and writes zeros for tensors without dimensions.
    state["step"] = torch.tensor(1234)
    state["mask"] = torch.tensor([True, False, True])
    dcp_save(state, root / "dcp-rank0", shards=3, consolidate=False)


def dcp_save(state, folder, shards, consolidate):
    files = None
    if shards is not None:
        files = {name: 1 + number * shards // len(state) for number, name in enumerate(state)}
    writer = dcp.HuggingFaceStorageWriter(
        str(folder),
        fqn_to_index_mapping=files,
        save_distributed=consolidate,
        enable_consolidation=consolidate,
    )
    with warnings.catch_warnings(action="ignore"):  # that it saves without a process group
        dcp.save(state, storage_writer=writer, no_dist=True)
    expected = describe(folder, f"{TORCH} distributed.checkpoint")
    check_same(expected, state)
    assert len(expected["files"]) == (shards or 1)
    if consolidate:
        name = next(iter(expected["files"]))
        assert header_length(folder / name) % 8 != 0, "this fixture is here for its unaligned data"


def accelerated(root):
    model = torch.nn.Sequential(
        *(torch.nn.Linear(16, 16) for _ in range(6)),
        torch.nn.BatchNorm1d(16),
        torch.nn.Embedding(12, 16),
    )
    randomize(model, seed=8)
    folder = root / "accelerate-sharded"
    accelerate.Accelerator(cpu=True).save_model(model, folder, max_shard_size="2KB")
    expected = describe(folder, ACCELERATE)
    check_same(expected, model.state_dict())
    check_shards(expected, True)


def all_dtypes(folder):
    folder.mkdir(exist_ok=True)
    dtypes = {
        "bool": torch.bool,
        "u8": torch.uint8,
        "i8": torch.int8,
        "i16": torch.int16,
        "u16": torch.uint16,
        "i32": torch.int32,
        "u32": torch.uint32,
        "i64": torch.int64,
        "u64": torch.uint64,
        "f16": torch.float16,
        "bf16": torch.bfloat16,
        "f32": torch.float32,
        "f64": torch.float64,
        "c64": torch.complex64,
        "f8_e4m3": torch.float8_e4m3fn,
        "f8_e5m2": torch.float8_e5m2,
        "f8_e4m3fnuz": torch.float8_e4m3fnuz,
        "f8_e5m2fnuz": torch.float8_e5m2fnuz,
        "f8_e8m0": torch.float8_e8m0fnu,
        "f4": torch.float4_e2m1fn_x2,
    }
    generator = torch.Generator().manual_seed(9)
    tensors = {}
    for name, dtype in dtypes.items():
        top, size = (2, 1) if name == "bool" else (256, torch.empty(0, dtype=dtype).element_size())
        pattern = torch.randint(0, top, (3, 8 * size), generator=generator, dtype=torch.uint8)
        tensors[f"{name}.matrix"] = pattern.view(dtype)
        tensors[f"{name}.empty"] = torch.empty(0, 8 * size, dtype=torch.uint8).view(dtype)
        # torch packs two F4 values in one element, so the file cannot say that there are no dimensions.
        if name != "f4":
            tensors[f"{name}.scalar"] = pattern[0, :size].clone().view(dtype).reshape(())
    path = folder / "model.safetensors"
    save_file(tensors, path, metadata={"format": "pt", "größe": "12 €", "empty": ""})
    expected = describe(folder, SAFETENSORS)
    assert len({entry["dtype"] for entry in expected["tensors"].values()}) == len(dtypes)
    check_same(expected, tensors)


def hf_cache(source, folder):
    """Lays a checkpoint out as `huggingface_hub` does: content-addressed blobs and links to them."""
    repository = folder / "models--org--tiny"
    revision = hashlib.sha1(b"tiny").hexdigest()
    snapshot = repository / "snapshots" / revision
    for directory in [snapshot, repository / "blobs", repository / "refs"]:
        directory.mkdir(parents=True, exist_ok=True)
    (repository / "refs" / "main").write_text(revision)
    for file in sorted(source.iterdir()):
        if file.name != "expected.json":
            blob = hashlib.sha256(file.read_bytes()).hexdigest()
            shutil.copyfile(file, repository / "blobs" / blob)
            (snapshot / file.name).unlink(missing_ok=True)
            (snapshot / file.name).symlink_to(f"../../blobs/{blob}")
    cached = huggingface_hub.snapshot_download("org/tiny", cache_dir=folder, local_files_only=True)
    assert cached == str(snapshot)
    describe(folder, f"{HUB} cache of {TRANSFORMERS}", path=str(snapshot.relative_to(folder)))


def check_same(expected, tensors):
    """What the writer was given, or its own loader gave, is what the files hold."""
    hashes = {name: hashlib.sha256(raw_bytes(tensor)).hexdigest() for name, tensor in tensors.items()}
    assert hashes == {name: entry["sha256"] for name, entry in expected["tensors"].items()}


def check_shards(expected, sharded):
    assert (len(expected["files"]) >= 3) == sharded == (expected["index"] is not None)


def header_length(path):
    return int.from_bytes(path.read_bytes()[:8], "little")


main()

"""Quantised weights and their values as their libraries compute them: `python quantized_oracle.py OUTDIR`.

Writes `NAME/model.safetensors`, `NAME/config.json` and `NAME/values.safetensors`, where the values are named
`DTYPE:WEIGHT` for the dtypes F32, BF16 and F16.

    transformers-*      FP8 through transformers' own `Fp8Dequantize`
    compressed-*        the formula of compressed-tensors' `dequantize`:
                        `(x_q.to(scale.dtype) - zero_point.to(scale.dtype)) * scale`, then `.to(dtype)`
"""

import json

import torch
from oracle import out_dir
from safetensors.torch import save_file
from transformers.integrations.finegrained_fp8 import Fp8Dequantize

DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


def every_number(dtype, *shape):
    """All bit patterns but NaN and infinity, again and again."""
    numbers = torch.arange(256).to(torch.uint8).view(dtype)
    numbers = numbers[torch.isfinite(numbers.float())]
    count = torch.Size(shape).numel()
    repeated = numbers.view(torch.uint8).repeat(count // len(numbers) + 1)[:count]
    return repeated.view(dtype).reshape(shape)


def scales(*shape, dtype=torch.float32):
    return (torch.rand(shape) * 0.05 + 1e-4).to(dtype)


def write(folder, name, tensors, values, config):
    folder = folder / name
    folder.mkdir(parents=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    save_file({key: value.contiguous() for key, value in values.items()}, folder / "values.safetensors")
    config = {"model_type": "llama", "quantization_config": config, "vocab_size": 7}
    (folder / "config.json").write_text(json.dumps(config))


def transformers_fp8(folder):
    dequantize = Fp8Dequantize(None)._dequantize_one
    cases = {
        "block": (torch.float8_e4m3fn, (256, 384), (2, 3)),
        "tensor": (torch.float8_e4m3fn, (5, 7), (1, 1)),
        "e5m2": (torch.float8_e5m2, (128, 256), (1, 2)),
        "channel": (torch.float8_e4m3fn, (6, 50), (6, 1)),
        "narrow": (torch.float8_e4m3fn, (64, 32), (4, 8)),
        "experts": (torch.float8_e4m3fn, (3, 128, 256), (3, 1, 2)),
    }
    for scale_name, scale_dtype in [("f32", torch.float32), ("bf16", torch.bfloat16), ("e8m0", None)]:
        tensors, values = {"norm.weight": torch.rand(3, dtype=torch.bfloat16)}, {}
        for name, (dtype, shape, grid) in cases.items():
            weight = every_number(dtype, *shape)
            if scale_dtype is None:
                scale = (torch.randint(100, 130, grid, dtype=torch.uint8)).view(torch.float8_e8m0fnu)
            else:
                scale = scales(*grid, dtype=scale_dtype)
            tensors |= {f"{name}.weight": weight, f"{name}.weight_scale_inv": scale}
            for key, output in DTYPES.items():
                values[f"{key}:{name}.weight"] = dequantize(weight, scale, output)
        config = {"quant_method": "fp8", "weight_block_size": [128, 128]}
        write(folder, f"transformers-{scale_name}", tensors, values, config)


def compressed(folder):
    for scale_name, scale_dtype in [("f32", torch.float32), ("bf16", torch.bfloat16), ("f16", torch.float16)]:
        tensors, values = {"norm.weight": torch.rand(3, dtype=torch.bfloat16)}, {}
        for name, dtype, grid in [
            ("float", torch.float8_e4m3fn, (6, 1)),
            ("one", torch.float8_e4m3fn, (1,)),
            ("int", torch.int8, (6, 1)),
            ("shifted", torch.int8, (6, 1)),
            ("groups", torch.int8, (6, 4)),
        ]:
            weight = every_number(dtype, 6, 128)
            scale = scales(*grid, dtype=scale_dtype)
            tensors |= {f"{name}.weight": weight, f"{name}.weight_scale": scale}
            spread = scale
            product = weight.to(scale.dtype)
            if name == "shifted":
                zero_point = torch.randint(-128, 127, grid, dtype=torch.int8)
                tensors[f"{name}.weight_zero_point"] = zero_point
                product = product - zero_point.to(scale.dtype)
            if name == "groups":
                spread = scale.repeat_interleave(32, dim=1)
            product = product * spread
            for key, output in DTYPES.items():
                values[f"{key}:{name}.weight"] = product.to(output)
        tensors["float.input_scale"] = scales(1)
        write(folder, f"compressed-{scale_name}", tensors, values, {"quant_method": "compressed-tensors"})


def main():
    torch.manual_seed(15)
    folder = out_dir()
    transformers_fp8(folder)
    compressed(folder)


main()

"""What torch makes of every cast: `python cast_oracle.py OUTDIR`.

Writes `FROM-to-TO.safetensors` for all ordered pairs of F16, BF16, F32 and F64, and from the 8-bit
floats to each of these. Tensors, all of rank one and of the dtypes in the name:

    input           16-bit and 8-bit sources: every bit pattern, in order; F32 and F64: see `wide_inputs`
    output          `input.to(TO)`, contiguous: the path that torch vectorises
    output_strided  the same through a strided view: the path that it does not

Both outputs have the same bits wherever the result is a number, which is checked here. A NaN stays a
NaN, but its sign and payload depend on torch's path and on the processor (F32 NaN 0x7FF92C0B becomes
BF16 0xFFFF or 0x7FC0), so no single NaN pattern is torch's: compare NaNs as NaNs.

F64 to F16 and BF16 is two roundings in torch, by way of F32, and the inputs hold cases that show it.
"""

from oracle import out_dir

import numpy as np
import torch
from safetensors.torch import save_file

FLOATS = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64}
FLOAT8 = {
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "F8_E8M0": torch.float8_e8m0fnu,
}
# Powers of two that F16 cannot hold: not a cast that is offered.
NOT_OFFERED = ("F8_E8M0", "F16")
BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
RANDOM = 200_000


def bits(tensor):
    return tensor.view(BITS[tensor.element_size()])


def every_pattern(dtype):
    size = torch.empty(0, dtype=dtype).element_size()
    return torch.arange(256**size).to(BITS[size]).view(dtype)


def midpoints(values):
    """Halfway between neighbours, where rounding must go to the even one; exact in F64."""
    values = np.sort(values[np.isfinite(values)])
    with np.errstate(over="ignore"):
        return (values[:-1] + values[1:]) / 2


def wide_inputs(name, seed):
    """Edge values of all narrower formats, what lies just beside them, and random bit patterns."""
    random = np.random.default_rng(seed)
    float_type, int_type = (np.float32, np.uint32) if name == "F32" else (np.float64, np.uint64)

    f16 = every_pattern(torch.float16).double().numpy()
    bf16 = every_pattern(torch.bfloat16).double().numpy()
    narrower = [f16, bf16]
    ties = [midpoints(f16), midpoints(bf16)]
    if name == "F64":
        low = random.integers(0, 2**32 - 1, 50_000, dtype=np.uint32)
        pairs = np.stack([low, low + np.uint32(1)]).view(np.float32)
        pairs = pairs[:, np.isfinite(pairs).all(0)].astype(np.float64)
        narrower.append(pairs.ravel())
        ties.append((pairs[0] + pairs[1]) / 2)
    # The first value that overflows each format: its largest plus half its last step.
    for exponent, mantissa_bits in [(15, 10), (127, 7), (127, 23)]:
        edge = 2.0**exponent * (2 - 2.0 ** -(mantissa_bits + 1))
        ties.append(np.array([edge, -edge]))
    with np.errstate(over="ignore", invalid="ignore"):
        ties = np.concatenate(ties).astype(float_type)
        values = np.concatenate([np.concatenate(narrower).astype(float_type), ties])
        inf = float_type(np.inf)
        values = np.concatenate([values, np.nextafter(ties, inf), np.nextafter(ties, -inf)])

    info = np.finfo(float_type)
    edges = [0.0, info.tiny, info.smallest_subnormal, info.max, np.inf]
    values = np.concatenate([values, edges, np.negative(edges)]).astype(float_type)

    mantissa, width = (23, 32) if name == "F32" else (52, 64)
    quiet, top = 1 << (mantissa - 1), ((1 << (width - mantissa - 1)) - 1) << mantissa
    payloads = [1, 2, quiet, quiet | 1, quiet - 1, 2 * quiet - 1, quiet >> 1, 1 << (mantissa // 2)]
    payloads += [1 << bit for bit in range(mantissa)]
    nans = np.array([sign | top | p for p in payloads for sign in (0, 1 << (width - 1))], dtype=int_type)

    # Uniform patterns are mostly out of the narrow formats' range in F64; half are drawn inside it.
    patterns = random.integers(0, 2**width, RANDOM, dtype=np.uint64).astype(int_type)
    half = RANDOM // 2
    if name == "F64":
        exponents = random.uniform(-160, 130, half)
        patterns[:half] = (random.normal(size=half) * 2.0**exponents).view(np.uint64)
    joined = np.concatenate([values.view(int_type), nans, patterns])
    return torch.from_numpy(joined.view(float_type))


def cast(source, dtype):
    vectorised = source.to(dtype)
    spaced = torch.stack([bits(source), bits(source)], dim=1).reshape(-1).view(source.dtype)
    strided = spaced[::2].to(dtype).contiguous()
    is_nan = torch.isnan(vectorised.double())
    assert torch.equal(is_nan, torch.isnan(strided.double()))
    assert torch.equal(bits(vectorised)[~is_nan], bits(strided)[~is_nan])
    return vectorised, strided


def main():
    folder = out_dir()
    inputs = {name: every_pattern(dtype) for name, dtype in FLOAT8.items()}
    inputs |= {name: every_pattern(FLOATS[name]) for name in ["F16", "BF16"]}
    inputs |= {"F32": wide_inputs("F32", seed=32), "F64": wide_inputs("F64", seed=64)}
    for source, values in inputs.items():
        for target, dtype in FLOATS.items():
            if source != target and (source, target) != NOT_OFFERED:
                output, strided = cast(values, dtype)
                tensors = {"input": values, "output": output, "output_strided": strided}
                save_file(tensors, folder / f"{source}-to-{target}.safetensors")


main()

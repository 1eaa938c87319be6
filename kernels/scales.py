"""How a group's scale is stored: 16 or 32 bits of a number, or eight bits that stand for one.

    activation   the dtype of the activations, fp16 or bf16
    fp32
    e8m0         a power of two, 2^(code - 127) (OCP Microscaling Formats, revision 1.0). Quantization writes
                 codes 1 to 254: kernels read 0, which stands for 2^-127, as 0; 255 is NaN
    e4m3         an FP8 number, times one fp32 of the whole matrix (NVIDIA's NVFP4)
    nested       bitsandbytes' double quantization: a code of 256 numbers, times one fp32 per 256 blocks, plus
                 one fp32 offset

What is stored besides the codes is the *second level*, float32 [levels]:

    e4m3         [scale of the matrix]
    nested       [the 256 numbers, the offset, a scale per 256 codes ...], codes counted row after row

Sources: the OCP specification, section 5.4; `nvfp4_quantize` and `to_mx` of torchao 0.17 (rounding and limits);
`create_dynamic_map` of bitsandbytes 0.50, after "8-bit Optimizers via Block-wise Quantization"
(arXiv 2110.02861).
"""

from __future__ import annotations

from functools import cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from kernels.codebooks import codebook, nearest_float, nearest_level

ScaleType = Literal["activation", "fp32", "e8m0", "e4m3", "nested"]
SCALE_BITS: dict[ScaleType, int] = {
    "activation": 16,
    "fp32": 32,
    "e8m0": 8,
    "e4m3": 8,
    "nested": 8,
}

E8M0_BIAS = 127
E4M3_LARGEST, E4M3_SMALLEST_NORMAL = 448.0, 2.0**-6
NESTED_BLOCK = 256  # codes of nested scales that share a number of the second level
NESTED_LEVELS, OFFSET = 256, 256  # the second level's numbers, and where its offset is


def second_level_numbers(scale_type: ScaleType, scales: int) -> int:
    """How many fp32 numbers the second level of a matrix with that many scales has."""
    if scale_type == "nested":
        return NESTED_LEVELS + 1 + -(-scales // NESTED_BLOCK)
    return int(scale_type == "e4m3")


def encode_e8m0(exponents: NDArray[np.integer]) -> NDArray[np.uint8]:
    """Codes of 2^exponent, uint8, limited to 1 .. 254."""
    codes: NDArray[np.uint8] = np.clip(exponents + E8M0_BIAS, 1, 254).astype(np.uint8)
    return codes


def decode_e8m0(codes: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The powers of two that codes stand for, float32; NaN for 255."""
    powers = np.ldexp(1.0, codes.astype(np.int64) - E8M0_BIAS).astype(np.float32)
    return np.where(codes == 255, np.float32(np.nan), powers)


def encode_e4m3(
    scales: NDArray[np.float64], matrix_scale: np.float32
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Codes of scales [n, groups] over the scale of the matrix, and the second level.

    Limited to [2^-6, 448], as torchao does: a block of zeros keeps a scale that is no zero.
    """
    steps = (scales.astype(np.float32) / matrix_scale).astype(np.float32)
    limited = np.clip(steps, E4M3_SMALLEST_NORMAL, E4M3_LARGEST)
    return nearest_float(limited, "e4m3"), np.array([matrix_scale], np.float32)


@cache
def dynamic_map() -> NDArray[np.float32]:
    """The 256 numbers of bitsandbytes' dynamic 8-bit type, float32 [256], ascending.

    Seven decades, 2^i numbers of each sign in decade i: the middles of 2^i equal parts of [0.1, 1] times
    10^(i - 6); and 0 and 1.
    """
    numbers = [0.0, 1.0]
    for decade in range(7):
        edges = np.linspace(0.1, 1, 2**decade + 1, dtype=np.float32)
        middles = (edges[:-1] + edges[1:]) / 2 * np.float32(10.0 ** (decade - 6))
        numbers += [*middles, *-middles]
    return np.sort(np.array(numbers, np.float32))


def encode_nested(
    absmax: NDArray[np.float32],
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Codes of scales [n, groups], and the second level."""
    flat = absmax.astype(np.float32).reshape(-1)
    offset = flat.mean(dtype=np.float32)
    blocks = -(-len(flat) // NESTED_BLOCK)
    padded = np.zeros(blocks * NESTED_BLOCK, np.float32)
    padded[: len(flat)] = flat - offset
    shared = np.abs(padded.reshape(blocks, NESTED_BLOCK)).max(axis=1)
    shared = np.where(shared > 0, shared, np.float32(1))
    codes = nearest_level(padded / np.repeat(shared, NESTED_BLOCK), dynamic_map())
    second = np.concatenate([dynamic_map(), [offset], shared]).astype(np.float32)
    return codes[: len(flat)].reshape(absmax.shape), second


def decode(
    scale_type: ScaleType, codes: NDArray[np.uint8], second: NDArray[np.float32] | None
) -> NDArray[np.float32]:
    """What scales [n, groups] stored in eight bits stand for, float32, rounded after each operation.

    Raises:
        ValueError: a type whose scales are numbers themselves, or that lacks its second level.
    """
    if scale_type == "e8m0":
        return decode_e8m0(codes)
    if scale_type not in ("e4m3", "nested") or second is None:
        raise ValueError(f"scales of type {scale_type!r} cannot be made of codes and {second}.")
    if scale_type == "e4m3":
        scales: NDArray[np.float32] = codebook("e4m3")[codes] * second[0]
        return scales
    flat = codes.reshape(-1)
    shared = np.repeat(second[OFFSET + 1 :], NESTED_BLOCK)[: len(flat)]
    scales = second[flat] * shared + second[OFFSET]
    return scales.reshape(codes.shape)

"""How a group's scale is stored: 16 or 32 bits of a number, or eight bits that stand for one.

    activation   the dtype of the activations, fp16 or bf16
    fp32
    e8m0         a power of two, 2^(code - 127) (OCP Microscaling Formats, revision 1.0); 255 is NaN.
                 Quantization writes 1 to 254, and 0 for a group of zeros, whatever 0 stands for: 2^-127 by
                 the specification, 0 in kernels that shift the code into an exponent
    e4m3         an FP8 number, times one fp32 of the whole matrix (NVIDIA's NVFP4)
    nested       bitsandbytes' double quantization: one of 256 numbers, times one fp32 per 256 of them, plus
                 one fp32 offset

What such scales need besides their codes is the *second level*, float32:

    e4m3         [scale of the matrix]
    nested       [the 256 numbers, the offset, a scale per 256 codes ...], codes counted row after row

Sources: the OCP specification, section 5.4; `nvfp4_quantize` and `to_mx` of torchao 0.18 (rounding and limits);
`create_dynamic_map` and `quantize_4bit` of bitsandbytes 0.50, after "8-bit Optimizers via Block-wise
Quantization" (arXiv 2110.02861).

Where theirs is not copied:

    e8m0      below 2^-126 torchao stores 0 but divides by 2^-126, so that it reads half of what it wrote;
              here the code is 1, which is what was divided by
    e4m3      the scale of the matrix is at least 2^-120, so that no reciprocal is infinite; theirs is 0 / 0
              for a matrix of zeros
    nested    the offset is the mean rounded once: theirs has the last bit of an fp32 sum in some order. On
              a CPU bitsandbytes looks codes up in a table of 65536 places, and misses the nearest about
              once in 1000 times, by less than 3e-5; codes here are the nearest, as in its other back ends
"""

from __future__ import annotations

from functools import cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from kernels.codebooks import codebook, nearest_code, nearest_level

ScaleType = Literal["activation", "fp32", "e8m0", "e4m3", "nested"]
SCALE_BITS: dict[ScaleType, int] = {
    "activation": 16,
    "fp32": 32,
    "e8m0": 8,
    "e4m3": 8,
    "nested": 8,
}

Float = Literal["fp16", "bf16", "fp32"]

E8M0_BIAS = 127
E4M3_LARGEST, E4M3_SMALLEST_NORMAL = np.float32(448), np.float32(2.0**-6)
MATRIX_SCALE_SMALLEST = np.float32(2.0**-120)
ABSMAX_SMALLEST = np.float32(
    1e-38
)  # what bitsandbytes divides by where the largest magnitude is less
NESTED_BLOCK = 256  # codes of nested scales that share a number of the second level
NESTED_LEVELS, OFFSET = 256, 256  # the second level's numbers, and where its offset is


def round_to(values: NDArray[np.floating], dtype: Float) -> NDArray[np.float32]:
    """Values rounded to nearest even in `dtype`, returned as float32 (which holds all three exactly)."""
    single = np.asarray(values, np.float32)
    if dtype == "fp16":
        return single.astype(np.float16).astype(np.float32)
    if dtype == "bf16":
        bits = single.view(np.uint32)
        rounded = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
        return (rounded & np.uint32(0xFFFF0000)).view(np.float32)
    return single


def second_level_numbers(scale_type: ScaleType, scales: int) -> int:
    """How many fp32 numbers the second level of a matrix with that many scales has."""
    if scale_type == "nested":
        return NESTED_LEVELS + 1 + -(-scales // NESTED_BLOCK)
    return int(scale_type == "e4m3")


def encode_e8m0(largest: NDArray[np.float32], emax: int) -> NDArray[np.uint8]:
    """Codes of 2^(exponent of the largest magnitude - emax), uint8: OCP Microscaling, section 6.3."""
    exponents = np.frexp(largest)[1] - 1 - emax
    codes = np.clip(exponents + E8M0_BIAS, 1, 254).astype(np.uint8)
    return np.where(largest > 0, codes, np.uint8(0))


def decode_e8m0(codes: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The powers of two that codes stand for, float32; NaN for 255."""
    powers = np.ldexp(np.float32(1), np.minimum(codes, 254).astype(np.int64) - E8M0_BIAS)
    return np.where(codes == 255, np.float32(np.nan), powers)


def encode_e4m3(
    largest: NDArray[np.float32], most: float
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Codes of scales that let `most` stand for the largest magnitudes [n, groups], and the second level.

    The largest group of the matrix has the code of 448. Limited to [2^-6, 448], as torchao does: a group of
    zeros keeps a scale that is no zero.
    """
    of_matrix = largest.max() / (np.float32(most) * E4M3_LARGEST)
    of_matrix = np.maximum(of_matrix, MATRIX_SCALE_SMALLEST)
    limited = np.clip(largest / np.float32(most) / of_matrix, E4M3_SMALLEST_NORMAL, E4M3_LARGEST)
    return nearest_code(limited, "e4m3"), np.array([of_matrix], np.float32)


def decode_e4m3(codes: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The FP8 numbers that codes stand for, float32."""
    numbers: NDArray[np.float32] = codebook("e4m3")[codes]
    return numbers


@cache
def dynamic_map() -> NDArray[np.float32]:
    """The 256 numbers of bitsandbytes' dynamic 8-bit type, float32 [256], ascending.

    Seven decades, 2^i numbers of each sign in decade i: the middles of 2^i equal parts of [0.1, 1] times
    10^(i - 6); and 0 and 1. The edges of the parts are rounded as torch.linspace rounds them: counted from
    the nearer end in steps of fp32, one rounding for the product and the sum (a fused multiply-add).
    """
    numbers = [0.0, 1.0]
    for decade in range(7):
        parts = 2**decade
        first, last = np.float32(0.1), np.float32(1)
        step = np.float64((last - first) / np.float32(parts))
        i = np.arange(parts + 1)
        nearer_first = i < (parts + 1) // 2
        edges = np.where(nearer_first, first + step * i, last - step * (parts - i)).astype(
            np.float32
        )
        middles = (edges[:-1] + edges[1:]) / np.float32(2) * np.float32(10.0 ** (decade - 6))
        numbers += [*middles, *-middles]
    return np.sort(np.array(numbers, np.float32))


def encode_nested(
    absmax: NDArray[np.float32],
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Codes of scales [n, groups], and the second level."""
    flat = absmax.reshape(-1)
    offset = np.float32(flat.mean(dtype=np.float64))
    blocks = -(-len(flat) // NESTED_BLOCK)
    padded = np.zeros(blocks * NESTED_BLOCK, np.float32)
    padded[: len(flat)] = flat - offset
    blocked = padded.reshape(blocks, NESTED_BLOCK)
    shared = np.abs(blocked).max(axis=1)
    codes = nearest_level(blocked * reciprocal(shared)[:, None], dynamic_map())
    second = np.concatenate([dynamic_map(), [offset], shared]).astype(np.float32)
    return codes.reshape(-1)[: len(flat)].reshape(absmax.shape), second


def reciprocal(absmax: NDArray[np.float32]) -> NDArray[np.float32]:
    """What bitsandbytes multiplies by to divide by a largest magnitude, float32; finite for every input."""
    divisors: NDArray[np.float32] = np.maximum(absmax, ABSMAX_SMALLEST)
    return np.reciprocal(divisors)


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
        scales: NDArray[np.float32] = decode_e4m3(codes) * second[0]
        return scales
    flat = codes.reshape(-1)
    shared = np.repeat(second[OFFSET + 1 :], NESTED_BLOCK)[: len(flat)]
    scales = second[flat] * shared + second[OFFSET]
    return scales.reshape(codes.shape)

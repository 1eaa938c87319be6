"""What the codes of non-integer formats stand for: sixteen levels of NF4, 256 numbers of each FP8.

NF4: levels of a normal distribution, scaled so that the largest is 1 (QLoRA, arXiv 2305.14314, appendix E;
the constants are those of bitsandbytes, `functional.py: get_4bit_type("nf4")` and `csrc/kernels.cu`,
read in version 0.50). Code 7 is zero.

FP8 (OCP 8-bit Floating Point Specification, revision 1.0): sign, exponent, mantissa.

    e4m3   s eeee mmm     bias 7;  no infinities, S.1111.111 is NaN; largest 448
    e5m2   s eeeee mm     bias 15; infinities and NaNs as in IEEE 754; largest 57344

Policy: weights are finite, so quantization saturates at the largest number and never writes a NaN or an
infinity. Kernels are not asked what they would make of one.
"""

from __future__ import annotations

from functools import cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Encoding = Literal["int", "nf4", "e4m3", "e5m2"]

NF4 = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)
FP8 = {"e4m3": (3, 7), "e5m2": (2, 15)}  # bits of the mantissa, bias of the exponent


@cache
def codebook(encoding: Encoding) -> NDArray[np.float32]:
    """The number of every code, float32 [2^bits]; NaN and infinity where FP8 has them.

    Raises:
        ValueError: integers have no codebook, since their zero point moves.
    """
    if encoding == "int":
        raise ValueError("integer codes stand for code - zero; they have no codebook.")
    if encoding == "nf4":
        return np.array(NF4, np.float32)
    mantissa_bits, bias = FP8[encoding]
    codes = np.arange(256)
    exponent = codes >> mantissa_bits & 0x7F >> mantissa_bits
    mantissa = codes & (1 << mantissa_bits) - 1
    fraction = mantissa / (1 << mantissa_bits) + (exponent > 0)
    numbers = np.ldexp(fraction, np.maximum(exponent, 1) - bias)
    if encoding == "e4m3":
        numbers[codes & 0x7F == 0x7F] = np.nan
    else:
        special = exponent == 31
        numbers[special] = np.where(mantissa[special] == 0, np.inf, np.nan)
    signed: NDArray[np.float32] = np.where(codes & 0x80, -numbers, numbers).astype(np.float32)
    return signed


def full_scale(encoding: Encoding) -> float:
    """The number that quantization lets stand for a group's largest magnitude: 1, or 448.

    e5m2 reaches 57344, but gains nothing by it: its numbers are equally fine everywhere above 2^-14, and
    near 57344 their products, and scales near 2^-20, would leave fp16.
    """
    return 1.0 if encoding == "nf4" else 448.0


def nearest_nf4(values: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Codes of the nearest levels, uint8; of two that are equally near the lower, as bitsandbytes has it."""
    levels = codebook("nf4").astype(np.float64)
    middles = (levels[1:] + levels[:-1]) / 2
    return np.searchsorted(middles, values, side="left").astype(np.uint8)


def nearest_fp8(values: NDArray[np.floating], encoding: Encoding) -> NDArray[np.uint8]:
    """Codes of the nearest numbers, uint8, ties to even, saturated at the largest; the sign of zero stays."""
    numbers = codebook(encoding)[:128].astype(np.float64)
    finite = numbers[np.isfinite(numbers)]
    middles = (finite[1:] + finite[:-1]) / 2
    magnitude = np.abs(np.asarray(values, np.float64))
    code = np.searchsorted(middles, magnitude, side="left")
    at = np.minimum(code, len(middles) - 1)
    code += (magnitude == middles[at]) & (code % 2 == 1)
    signed: NDArray[np.uint8] = code.astype(np.uint8)
    signed[np.signbit(values)] |= 0x80
    return signed

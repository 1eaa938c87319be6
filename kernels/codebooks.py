"""What the codes of non-integer formats stand for: the levels of NF4 and FP4, the numbers of small floats.

NF4: levels of a normal distribution, scaled so that the largest is 1 (QLoRA, arXiv 2305.14314, appendix E;
the constants are those of bitsandbytes, `functional.py: get_4bit_type("nf4")` and `csrc/kernels.cu`,
read in version 0.50). Code 7 is zero.

FP4 of bitsandbytes (same files): sign, and eight magnitudes in no order, 0, 1/192, 2/3, 1, 1/3, 1/2, 1/6, 1/4.

Small floats (OCP 8-bit Floating Point Specification, revision 1.0; Microscaling Formats, revision 1.0): sign,
exponent, mantissa.

    e5m2   s eeeee mm     bias 15; infinities and NaNs as in IEEE 754; largest 57344
    e4m3   s eeee mmm     bias 7;  no infinities, S.1111.111 is NaN; largest 448
    e3m2   s eee mm       bias 3;  all codes finite, as in those below; largest 28
    e2m3   s ee mmm       bias 1;  largest 7.5
    e2m1   s ee m         bias 1;  largest 6: 0, 0.5, 1, 1.5, 2, 3, 4, 6

Policy: weights are finite (quantize.py refuses others), so quantization saturates at the largest number and
never writes a NaN or an infinity. Kernels are not asked what they would make of one.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Encoding = Literal["int", "nf4", "fp4", "e5m2", "e4m3", "e3m2", "e2m3", "e2m1"]

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
FP4_TWELFTHS = (0.0, 0.0625, 8.0, 12.0, 4.0, 6.0, 2.0, 3.0)


@dataclass(frozen=True)
class SmallFloat:
    """Widths in bits of a small float's exponent and mantissa, and the exponent's bias."""

    exponent: int
    mantissa: int
    bias: int

    @property
    def bits(self) -> int:
        """Width of a code, the sign included."""
        return 1 + self.exponent + self.mantissa


SMALL_FLOATS: dict[Encoding, SmallFloat] = {
    "e5m2": SmallFloat(5, 2, 15),
    "e4m3": SmallFloat(4, 3, 7),
    "e3m2": SmallFloat(3, 2, 3),
    "e2m3": SmallFloat(2, 3, 1),
    "e2m1": SmallFloat(2, 1, 1),
}


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
    if encoding == "fp4":
        magnitudes = np.array(FP4_TWELFTHS) / 12
        return np.concatenate([magnitudes, -magnitudes]).astype(np.float32)
    layout = SMALL_FLOATS[encoding]
    codes = np.arange(1 << (layout.bits - 1))
    exponent = codes >> layout.mantissa
    mantissa = codes & (1 << layout.mantissa) - 1
    fraction = mantissa / (1 << layout.mantissa) + (exponent > 0)
    numbers = np.ldexp(fraction, np.maximum(exponent, 1) - layout.bias)
    if encoding == "e4m3":
        numbers[-1] = np.nan
    elif encoding == "e5m2":
        special = exponent == 31
        numbers[special] = np.where(mantissa[special] == 0, np.inf, np.nan)
    return np.concatenate([numbers, -numbers]).astype(np.float32)


def full_scale(encoding: Encoding) -> float:
    """The number that quantization lets stand for a group's largest magnitude: 1, 6 (e2m1) or 448 (FP8).

    e5m2 reaches 57344, but gains nothing by it: its numbers are equally fine everywhere above 2^-14, and
    near 57344 their products, and scales near 2^-20, would leave fp16.

    Raises:
        KeyError: an encoding that only microscaling uses, whose scales are chosen by `largest_exponent`.
    """
    return {"nf4": 1.0, "fp4": 1.0, "e2m1": 6.0, "e4m3": 448.0, "e5m2": 448.0}[encoding]


def largest_exponent(encoding: Encoding) -> int:
    """The exponent of an encoding's largest number: emax of the OCP specification; of int8, 6 (64 to 127)."""
    if encoding == "int":
        return 6
    numbers = codebook(encoding)
    return int(np.frexp(numbers[np.isfinite(numbers)].max())[1]) - 1


def nearest_code(values: NDArray[np.floating], encoding: Encoding) -> NDArray[np.uint8]:
    """Codes of the nearest numbers to values rounded to fp32, uint8, for every encoding but integers."""
    single = np.asarray(values, np.float32)
    if encoding == "nf4":
        return nearest_level(single, codebook("nf4"))
    if encoding == "fp4":
        return _nearest_fp4(single)
    return _nearest_float(single, encoding)


def nearest_level(values: NDArray[np.float32], levels: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Indices of the nearest of at most 256 ascending levels, uint8; of two equally near the lower.

    What lies halfway is the mean of two levels in fp32, as in bitsandbytes. Counting the middles below a
    value is several times faster than searching them, since it needs no branch.
    """
    codes = np.zeros(values.shape, np.uint8)
    for middle in (levels[1:] + levels[:-1]) / np.float32(2):
        codes += values > middle
    return codes


def _nearest_fp4(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Codes of FP4, uint8; of two magnitudes equally near the lower. A small negative number is -0, code 8.

    So does the tree of bitsandbytes' CUDA kernel, whose printed thresholds 0.00260417, 0.4166667 and 0.583333
    lie up to 4e-7 beside the middles. Its CPU path gives a tie of negative numbers to the larger magnitude,
    and chooses between 0 and -0 by another rule.
    """
    magnitudes = codebook("fp4")[:8]
    order = np.argsort(magnitudes).astype(np.uint8)
    codes = order[nearest_level(np.abs(values), magnitudes[order])]
    signed: NDArray[np.uint8] = codes | (values < 0).view(np.uint8) << np.uint8(3)
    return signed


def _nearest_float(values: NDArray[np.float32], encoding: Encoding) -> NDArray[np.uint8]:
    """Codes of a small float, uint8, ties to even, saturated at the largest; the sign of zero stays.

    A magnitude is counted in steps of its binade, 2^mantissa steps to a power of two. Every operation but
    the rounding is exact, and since codes ascend by one from step to step, even steps are even codes.
    """
    layout = SMALL_FLOATS[encoding]
    numbers = codebook(encoding)
    largest = numbers[np.isfinite(numbers)].max()
    magnitude = np.minimum(np.abs(values), largest)
    subnormal = np.float32(2.0 ** (1 - layout.bias)).view(
        np.uint32
    )  # their binade has the steps of this
    power = np.maximum(magnitude.view(np.uint32) & np.uint32(0xFF << 23), subnormal)
    steps = np.rint(magnitude * np.float32(1 << layout.mantissa) / power.view(np.float32))
    code = steps.astype(np.uint32) + (power - subnormal >> np.uint32(23 - layout.mantissa))
    negative = np.signbit(values).view(np.uint8)
    signed: NDArray[np.uint8] = code.astype(np.uint8) | negative << np.uint8(layout.bits - 1)
    return signed

"""From packed words to scaled weights: what the kernels of every batch and stage have in common.

    weight = (code - zero) * scale   or   codebook[code] * scale

Sixteen lanes hold one field of a vector of weights (planes.py). Where several groups share a vector, their
scales are spread over the lanes: `parts` groups, 16 / parts lanes each.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit

from kernels.codebooks import Encoding
from kernels.cpu.planes import (
    bypass_of,
    code_of,
    e2m1_numbers,
    e2m3_magnitudes,
    e3m2_magnitudes,
    fp4_levels,
    load_halves,
    load_numbers,
    load_spread,
    nf4_levels,
)
from kernels.cpu.simd import (
    BF16,
    FP16,
    add_f32,
    and_,
    as_f32,
    as_i32,
    mul_f32,
    or_i32,
    shift_left,
    shift_right,
    splat_f32,
    splat_i32,
    sub_i32,
    to_f32,
    xor_i32,
)
from kernels.scales import OFFSET, ScaleType

STREAM, UNPACK, SCALE, FUSED, BYPASS = range(5)
STAGES = {"stream": STREAM, "unpack": UNPACK, "scale": SCALE, "fused": FUSED, "bypass": BYPASS}
INTEGER, NF4, FP4, E4M3, E5M2, E2M1, E2M3, E3M2 = range(8)
ENCODINGS: dict[Encoding, int] = {
    "int": INTEGER,
    "nf4": NF4,
    "fp4": FP4,
    "e4m3": E4M3,
    "e5m2": E5M2,
    "e2m1": E2M1,
    "e2m3": E2M3,
    "e3m2": E3M2,
}
FP32, E8M0, E4M3_SCALE, NESTED = range(2, 6)  # and BF16, FP16, where scales have the type of x
SCALE_TYPES: dict[ScaleType, int] = {
    "fp32": FP32,
    "e8m0": E8M0,
    "e4m3": E4M3_SCALE,
    "nested": NESTED,
}
SIGN = np.int32(-(1 << 31))
MINUS_HALF = np.float32(-0.5).view(np.int32)


class Storage(NamedTuple):
    """How weights are stored, as far as a compiled kernel depends on it.

    Attributes:
        bits: of a code, 1 to 8.
        encoding: of ENCODINGS.
        scale_type: BF16, FP16, or of SCALE_TYPES.
        parts: groups in a vector of weights; 1 also where a group spans several.
        has_zero: whether zero points are stored.
    """

    bits: int
    encoding: int
    scale_type: int
    parts: int
    has_zero: bool

    @property
    def zero(self) -> int:
        """The code that stands for zero where no zero point is stored; one bit has none."""
        return 1 << (self.bits - 1)


@njit(inline="always")
def weight_of(planes, field, bits, encoding, zero, stage):
    """Sixteen weights, before scaling: one field of a vector's planes."""
    if stage == BYPASS:
        return bypass_of(planes, field, bits)
    if encoding == NF4:
        return nf4_levels(shift_right(planes[0], 4 * field))
    if encoding == FP4:
        return fp4_levels(shift_right(planes[0], 4 * field))
    if encoding == E2M1:
        return e2m1_numbers(shift_right(planes[0], 4 * field))
    if encoding in (E2M3, E3M2):
        code = code_of(planes, field, bits)
        magnitude = e2m3_magnitudes(code) if encoding == E2M3 else e3m2_magnitudes(code)
        return as_f32(or_i32(as_i32(magnitude), and_(shift_left(code, 26), SIGN)))
    if encoding in (E4M3, E5M2):
        return fp8_of(planes[0], field, encoding)
    if bits == 1:  # 0 and 1 stand for -1/2 and 1/2: the code becomes the sign
        sign = shift_left(code_of(planes, field, bits), 31)
        return as_f32(xor_i32(sign, splat_i32(MINUS_HALF)))
    return to_f32(sub_i32(code_of(planes, field, bits), zero))


@njit(inline="always")
def fp8_of(words, field, encoding):
    """Sixteen numbers of one FP8 field: exponent and mantissa moved to where a float32 has them.

    The product mends the exponent's bias. Codes below the smallest normal number, one weight in ten
    thousand, reach it as subnormal float32, which many processors multiply slowly.
    """
    at = 20 if encoding == E4M3 else 21
    unbias = np.float32(2.0**120) if encoding == E4M3 else np.float32(2.0**112)
    moved = words
    if 8 * field < at:
        moved = shift_left(words, at - 8 * field)
    else:
        moved = shift_right(words, 8 * field - at)
    sign = and_(shift_left(words, 24 - 8 * field), SIGN)
    return mul_f32(as_f32(or_i32(sign, and_(moved, 0x7F << at))), splat_f32(unbias))


@njit(inline="always")
def scale_of(scales, second, at, parts, scale_type):
    """A vector of the scales of `parts` neighbouring groups, from the stored ones at scales.flat[at].

    Args:
        scales: uint16 (bf16, fp16), uint32 (fp32) or uint8 (codes) [n, groups].
        second: the second level, float32, empty where there is none (scales.py).
        at: place of the first.
        parts: how many.
        scale_type: BF16, FP16, or of SCALE_TYPES.
    """
    if scale_type == NESTED:
        shared = splat_f32(second[OFFSET + 1 + (at >> 8)])  # neighbours share it: 256 is a multiple
        return add_f32(
            mul_f32(load_numbers(second, scales, at, parts), shared), splat_f32(second[OFFSET])
        )
    if scale_type in (BF16, FP16):
        return load_halves(scales, at, parts, scale_type)
    if scale_type == E8M0:
        return as_f32(load_spread(scales, at, parts, 23))
    stored = load_spread(scales, at, parts, 0)
    if scale_type == E4M3_SCALE:
        return mul_f32(fp8_of(stored, 0, E4M3), splat_f32(second[0]))
    return as_f32(stored)

"""The CPU ladder at batch 1: lanes run along k, one row of W after another, nothing leaves the registers.

    y[n] = sum over groups g of  scale[n, g] * sum over i in g of (code[n, i] - zero[n, g]) * x[i]

Sixteen packed words are one 512-bit load; one field of all sixteen is one vector of weights. Stages, one
compile-time constant apart:

    stream   loads words, scales and zero points; sums them
    unpack   + shifts and masks; sums the codes
    scale    + conversion, zero point and scale; sums the weights
    fused    + multiplies with x
    bypass   as fused, but a word's bits are used as one fp32 for each of its weights

Every stage stores its sum, so the loads stay alive and the result can be checked (packing.reference).
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numba import njit, prange

from kernels.codebooks import Encoding
from kernels.cpu.simd import (
    LANES,
    add_f32,
    add_i32,
    and_,
    as_f32,
    bf16_of_float,
    float_of_bits,
    fma,
    load_f32,
    load_i32,
    mul_f32,
    nf4_levels,
    or_i32,
    prefetch,
    shift_left,
    shift_right,
    signed_bits,
    splat_f32,
    splat_i32,
    splat_two,
    sub_i32,
    sum_f32,
    sum_i32,
    to_f32,
)

STREAM, UNPACK, SCALE, FUSED, BYPASS = range(5)
STAGES = {"stream": STREAM, "unpack": UNPACK, "scale": SCALE, "fused": FUSED, "bypass": BYPASS}
INTEGER, NF4, E4M3, E5M2 = range(4)
HALVES = (1, 2, 1, 1)  # groups in a vector, at least: NF4's 64 weights are 8 of its 16 words
ENCODINGS: dict[Encoding, int] = {"int": INTEGER, "nf4": NF4, "e4m3": E4M3, "e5m2": E5M2}
SIGN = np.int32(-(1 << 31))
PREFETCH_WORDS = (
    1024  # 4 KiB ahead: without it arithmetic and DRAM time add up instead of overlapping
)


@njit(inline="always")
def weight_of(words, field, bits, encoding, zero, stage):
    """Sixteen weights, before scaling: one field of sixteen packed words."""
    if stage == BYPASS:
        return as_f32(words)
    if encoding == NF4:
        return nf4_levels(shift_right(words, 4 * field))
    if encoding == INTEGER:
        return to_f32(sub_i32(code_of(words, field, bits), zero))
    return fp8_of(words, field, encoding)


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
def scale_of(scales, row, group, halves):
    """A vector of scales: of one group, or where a group is half a vector, of two that are neighbours."""
    if halves == 2:
        low, high = scales[row, 2 * group], scales[row, 2 * group + 1]
        return splat_two(float_of_bits(low), float_of_bits(high))
    return splat_f32(float_of_bits(scales[row, group]))


@njit(inline="always")
def scale_checksum(scales, row, group, halves):
    """The bits of those scales as signed integers, summed."""
    if halves == 2:
        return signed_bits(scales[row, 2 * group]) + signed_bits(scales[row, 2 * group + 1])
    return signed_bits(scales[row, group])


@njit(inline="always")
def code_of(words, field, bits):
    """Sixteen codes: one field of sixteen packed words."""
    codes = words
    if field > 0:
        codes = shift_right(codes, bits * field)
    if field < 32 // bits - 1:
        codes = and_(codes, (1 << bits) - 1)
    return codes


@cache
def build(bits: int, encoding: int, has_zero: bool, stage: int):
    """The compiled kernel of one packed width, encoding (ENCODINGS) and stage.

    Its arguments: words int32 [n * words_per_row]; scales uint16 (bf16) or uint32 (fp32) [n, groups];
    zeros uint8 [n, groups], or [0, 0] without zero points; x float32 [k] from to_fields;
    sums float32 [n] (scale) or int32 [n] (stream, unpack); y uint16 (bf16) [1, n].
    """
    fields = 32 // bits
    middle = 1 << (bits - 1)
    halves = HALVES[encoding]

    @njit(parallel=True, cache=True, error_model="numpy", nogil=True)
    def gemv(words, scales, zeros, x, sums, y):
        n, groups = scales.shape
        groups //= halves
        words_per_row = words.shape[0] // n
        vectors = words_per_row // LANES
        per_group = vectors // groups
        nothing = splat_f32(np.float32(0))
        for row in prange(n):
            total = splat_f32(np.float32(0))
            count = splat_i32(np.int32(0))
            stored = np.int32(0)
            for group in range(groups):
                scale = scale_of(scales, row, group, halves)
                zero_point = np.int32(middle)
                if has_zero:
                    zero_point = np.int32(zeros[row, group])
                    if stage == BYPASS and zero_point == 255:
                        scale = nothing  # never so: keeps the zero points' load alive
                if stage < SCALE:
                    stored += scale_checksum(scales, row, group, halves)
                    if has_zero:
                        stored += zero_point
                zero = splat_i32(zero_point)
                for vector in range(group * per_group, (group + 1) * per_group):
                    at = row * words_per_row + vector * LANES
                    prefetch(words, at + PREFETCH_WORDS)
                    packed = load_i32(words, at)
                    if stage == STREAM:
                        count = add_i32(count, packed)
                    elif stage == UNPACK:
                        for field in range(fields):
                            count = add_i32(count, code_of(packed, field, bits))
                    elif stage == SCALE:
                        part = nothing
                        for field in range(fields):
                            part = add_f32(
                                part, weight_of(packed, field, bits, encoding, zero, stage)
                            )
                        total = fma(part, scale, total)
                    else:
                        part = nothing
                        for field in range(fields):
                            w = weight_of(packed, field, bits, encoding, zero, stage)
                            part = fma(w, load_f32(x, (vector * fields + field) * LANES), part)
                        total = fma(part, scale, total)
            if stage < SCALE:
                sums[row] = sum_i32(count) + stored
            elif stage == SCALE:
                sums[row] = sum_f32(total)
            else:
                y[0, row] = bf16_of_float(sum_f32(total))

    return gemv

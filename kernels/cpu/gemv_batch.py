"""The CPU ladder for batches 2 to 15: as gemv.py, two rows of W against four rows of x at a time.

    y[b, n] = sum over groups g of  scale[n, g] * sum over i in g of (code[n, i] - zero[n, g]) * x[b, i]

A register tile of 2 x 4 dot products uses each x four times as often and each unpacked weight four times.
Larger batches take another pass over the row, dequantization included: phi(B) = phi1 * ceil(B / 4), the
step form with BLOCK_M = 4.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numba import njit, prange

from kernels.cpu.gemv import PREFETCH_WORDS
from kernels.cpu.planes import (
    add_planes,
    code_of,
    load_padded,
    load_planes,
    load_spread,
    weights_of_lane,
)
from kernels.cpu.simd import (
    LANES,
    add_f32,
    add_i32,
    fma,
    half_of_float,
    load_f32,
    or_i32,
    splat_f32,
    splat_i32,
    sum_f32,
    sum_i32,
)
from kernels.cpu.weights import BYPASS, SCALE, STREAM, UNPACK, Storage, scale_of, weight_of

BATCH_TILE = 4


@njit(inline="always")
def store_rows(y, first, row, t0, t1, t2, t3, half):
    """Writes the sums of a tile's rows of x, as many as there are from the first on, to a column of y."""
    y[first, row] = half_of_float(sum_f32(t0), half)
    if first + 1 < y.shape[0]:
        y[first + 1, row] = half_of_float(sum_f32(t1), half)
    if first + 2 < y.shape[0]:
        y[first + 2, row] = half_of_float(sum_f32(t2), half)
    if first + 3 < y.shape[0]:
        y[first + 3, row] = half_of_float(sum_f32(t3), half)


@cache
def build(storage: Storage, stage: int, half: int):
    """The compiled kernel of one storage, stage and type; arguments as gemv.build, x in tiles of four."""
    bits, encoding, scale_type, parts, has_zero = storage
    fields, middle = weights_of_lane(bits), storage.zero
    words_per_vector = LANES * fields * bits // 32

    @njit(parallel=True, cache=True, error_model="numpy", nogil=True)
    def gemv_batch(words, scales, second, zeros, x, sums, y):
        n, groups = scales.shape
        groups //= parts
        batch = y.shape[0] if stage > SCALE else 1  # what multiplies nothing reads the weights once
        vectors = words.shape[0] // n // words_per_vector
        per_group = vectors // groups if parts == 1 else 1
        nothing = splat_f32(np.float32(0))
        for pair in prange((n + 1) // 2):
            row0 = 2 * pair
            row1 = min(row0 + 1, n - 1)  # an odd last row is computed twice
            for first in range(0, batch, BATCH_TILE):
                t00 = t01 = t02 = t03 = nothing
                t10 = t11 = t12 = t13 = nothing
                count0 = count1 = splat_i32(np.int32(0))
                for group in range(groups):
                    at0 = (row0 * groups + group) * parts
                    at1 = (row1 * groups + group) * parts
                    scale0 = scale_of(scales, second, at0, parts, scale_type)
                    scale1 = scale_of(scales, second, at1, parts, scale_type)
                    zero0 = zero1 = splat_i32(np.int32(middle))
                    if has_zero:
                        zero0 = load_spread(zeros, at0, parts, 0)
                        zero1 = load_spread(zeros, at1, parts, 0)
                        if stage == BYPASS:
                            count0 = or_i32(count0, or_i32(zero0, zero1))
                    if stage < SCALE:
                        count0 = add_i32(count0, load_padded(scales, at0, parts))
                        count1 = add_i32(count1, load_padded(scales, at1, parts))
                        if has_zero:
                            count0 = add_i32(count0, load_padded(zeros, at0, parts))
                            count1 = add_i32(count1, load_padded(zeros, at1, parts))
                    for vector in range(group * per_group, (group + 1) * per_group):
                        planes0 = load_planes(words, row0, vectors, vector, bits, PREFETCH_WORDS)
                        planes1 = load_planes(words, row1, vectors, vector, bits, PREFETCH_WORDS)
                        p00 = p01 = p02 = p03 = nothing
                        p10 = p11 = p12 = p13 = nothing
                        if stage == STREAM:
                            count0 = add_planes(count0, planes0)
                            count1 = add_planes(count1, planes1)
                        for field in range(fields):
                            if stage == UNPACK:
                                count0 = add_i32(count0, code_of(planes0, field, bits))
                                count1 = add_i32(count1, code_of(planes1, field, bits))
                            if stage < SCALE:
                                continue
                            w0 = weight_of(planes0, field, bits, encoding, zero0, stage)
                            w1 = weight_of(planes1, field, bits, encoding, zero1, stage)
                            if stage == SCALE:
                                p00 = add_f32(p00, w0)
                                p10 = add_f32(p10, w1)
                                continue
                            at_x = (first * vectors + vector * BATCH_TILE) * fields
                            at_x = (at_x + field * BATCH_TILE) * LANES
                            x0 = load_f32(x, at_x)
                            x1 = load_f32(x, at_x + LANES)
                            x2 = load_f32(x, at_x + 2 * LANES)
                            x3 = load_f32(x, at_x + 3 * LANES)
                            p00 = fma(w0, x0, p00)
                            p01 = fma(w0, x1, p01)
                            p02 = fma(w0, x2, p02)
                            p03 = fma(w0, x3, p03)
                            p10 = fma(w1, x0, p10)
                            p11 = fma(w1, x1, p11)
                            p12 = fma(w1, x2, p12)
                            p13 = fma(w1, x3, p13)
                        t00 = fma(p00, scale0, t00)
                        t01 = fma(p01, scale0, t01)
                        t02 = fma(p02, scale0, t02)
                        t03 = fma(p03, scale0, t03)
                        t10 = fma(p10, scale1, t10)
                        t11 = fma(p11, scale1, t11)
                        t12 = fma(p12, scale1, t12)
                        t13 = fma(p13, scale1, t13)
                if stage < SCALE:
                    sums[row0] = sum_i32(count0)
                    sums[row1] = sum_i32(count1)
                elif stage == SCALE:
                    sums[row0] = sum_f32(t00)
                    sums[row1] = sum_f32(t10)
                else:
                    if stage == BYPASS and has_zero and sum_i32(count0) == -n:
                        t00 = nothing  # never so: keeps the zero points' load alive
                    store_rows(y, first, row0, t00, t01, t02, t03, half)
                    store_rows(y, first, row1, t10, t11, t12, t13, half)

    return gemv_batch

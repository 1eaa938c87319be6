"""The CPU ladder at batch 1: lanes run along k, one row of W after another, nothing leaves the registers.

    y[n] = sum over groups g of  scale[n, g] * sum over i in g of (code[n, i] - zero[n, g]) * x[i]

Sixteen packed words are one 512-bit load; one field of all sixteen is one vector of weights (planes.py).
Stages, one compile-time constant apart:

    stream   loads words, scales and zero points; sums them
    unpack   + shifts and masks; sums the codes
    scale    + conversion, zero point and scale; sums the weights
    fused    + multiplies with x
    bypass   as fused, but a word's bits are used as one fp32 for each of its weights (packing.words_of_pairs)

Every stage stores its sum, so the loads stay alive and the result can be checked (packing.reference).
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numba import njit, prange

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

PREFETCH_WORDS = (
    1024  # 4 KiB ahead: without it arithmetic and DRAM time add up instead of overlapping
)


@cache
def build(storage: Storage, stage: int, half: int):
    """The compiled kernel of one way of storing weights, stage, and type of y: BF16 or FP16.

    Its arguments: words int32 [n * words_per_row]; scales [n, groups] as in scale_of; second float32, the
    second level of scales, or [0]; zeros uint8 [n, groups], or [0, 0] without zero points; x float32 [k] from
    to_fields; sums float32 [n] (scale) or int32 [n] (stream, unpack); y uint16 [1, n], bits of 16-bit floats.
    """
    bits, encoding, scale_type, parts, has_zero = storage
    fields, middle = weights_of_lane(bits), storage.zero
    words_per_vector = LANES * fields * bits // 32

    @njit(parallel=True, cache=True, error_model="numpy", nogil=True)
    def gemv(words, scales, second, zeros, x, sums, y):
        n, groups = scales.shape
        groups //= parts
        vectors = words.shape[0] // n // words_per_vector
        per_group = vectors // groups if parts == 1 else 1
        nothing = splat_f32(np.float32(0))
        for row in prange(n):
            total = nothing
            count = splat_i32(np.int32(0))
            for group in range(groups):
                at = (row * groups + group) * parts
                scale = scale_of(scales, second, at, parts, scale_type)
                zero = splat_i32(np.int32(middle))
                if has_zero:
                    zero = load_spread(zeros, at, parts, 0)
                    if stage == BYPASS:
                        count = or_i32(count, zero)
                if stage < SCALE:
                    count = add_i32(count, load_padded(scales, at, parts))
                    if has_zero:
                        count = add_i32(count, load_padded(zeros, at, parts))
                for vector in range(group * per_group, (group + 1) * per_group):
                    planes = load_planes(words, row, vectors, vector, bits, PREFETCH_WORDS)
                    if stage == STREAM:
                        count = add_planes(count, planes)
                    elif stage == UNPACK:
                        for field in range(fields):
                            count = add_i32(count, code_of(planes, field, bits))
                    elif stage == SCALE:
                        part = nothing
                        for field in range(fields):
                            w = weight_of(planes, field, bits, encoding, zero, stage)
                            part = add_f32(part, w)
                        total = fma(part, scale, total)
                    else:
                        part = nothing
                        for field in range(fields):
                            w = weight_of(planes, field, bits, encoding, zero, stage)
                            part = fma(w, load_f32(x, (vector * fields + field) * LANES), part)
                        total = fma(part, scale, total)
            if stage < SCALE:
                sums[row] = sum_i32(count)
            elif stage == SCALE:
                sums[row] = sum_f32(total)
            else:
                if stage == BYPASS and has_zero and sum_i32(count) == -n:
                    total = nothing  # never so: keeps the zero points' load alive
                y[0, row] = half_of_float(sum_f32(total), half)

    return gemv

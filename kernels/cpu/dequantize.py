"""Packed words to a bf16 matrix in memory: the first of the two launches of the unfused path.

    W16[n, k] = round((code[n, k] - zero[n, g]) * scale[n, g])

A word's weights 2i and 2i + 1 become one 32-bit pair of bf16, so the packed order is undone by interleaving
whole vectors: four per word for 4-bit codes, two for 8-bit.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numba import njit, prange

from kernels.cpu.gemv import FUSED, HALVES, PREFETCH_WORDS, scale_of, weight_of
from kernels.cpu.simd import (
    LANES,
    bf16_bits,
    load_i32,
    mul_f32,
    or_i32,
    prefetch,
    shift_left,
    splat_i32,
    store_i32,
    zip_high,
    zip_low,
)


@njit(inline="always")
def pair_of(words, pair, bits, encoding, zero, scale):
    """Weights 2 * pair and 2 * pair + 1 of sixteen words as bf16 in the halves of sixteen lanes."""
    low = pair if bits == 4 else 2 * pair
    high = pair + 4 if bits == 4 else 2 * pair + 1
    even = bf16_bits(mul_f32(weight_of(words, low, bits, encoding, zero, FUSED), scale))
    odd = bf16_bits(mul_f32(weight_of(words, high, bits, encoding, zero, FUSED), scale))
    return or_i32(even, shift_left(odd, 16))


@cache
def build(bits: int, encoding: int, has_zero: bool):
    """The compiled kernel of one packed width.

    Its arguments: words int32 [n * words_per_row]; scales uint16 (bf16) or uint32 (fp32) [n, groups];
    zeros uint8 [n, groups], or [0, 0] without zero points; matrix int32 [n * k / 2], two bf16 each.
    """
    fields = 32 // bits
    middle = 1 << (bits - 1)
    halves = HALVES[encoding]

    @njit(parallel=True, cache=True, error_model="numpy", nogil=True)
    def dequantize(words, scales, zeros, matrix):
        n, groups = scales.shape
        groups //= halves
        words_per_row = words.shape[0] // n
        per_group = words_per_row // LANES // groups
        for row in prange(n):
            for group in range(groups):
                scale = scale_of(scales, row, group, halves)
                zero = splat_i32(np.int32(middle))
                if has_zero:
                    zero = splat_i32(np.int32(zeros[row, group]))
                for vector in range(group * per_group, (group + 1) * per_group):
                    at = row * words_per_row + vector * LANES
                    prefetch(words, at + PREFETCH_WORDS)
                    packed = load_i32(words, at)
                    out = at * fields // 2
                    a = pair_of(packed, 0, bits, encoding, zero, scale)
                    b = pair_of(packed, 1, bits, encoding, zero, scale)
                    if bits == 8:
                        store_i32(matrix, out, zip_low(a, b))
                        store_i32(matrix, out + LANES, zip_high(a, b))
                    else:
                        c = pair_of(packed, 2, bits, encoding, zero, scale)
                        d = pair_of(packed, 3, bits, encoding, zero, scale)
                        even, odd = zip_low(a, c), zip_low(b, d)
                        store_i32(matrix, out, zip_low(even, odd))
                        store_i32(matrix, out + LANES, zip_high(even, odd))
                        even, odd = zip_high(a, c), zip_high(b, d)
                        store_i32(matrix, out + 2 * LANES, zip_low(even, odd))
                        store_i32(matrix, out + 3 * LANES, zip_high(even, odd))

    return dequantize

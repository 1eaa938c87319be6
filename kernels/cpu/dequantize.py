"""Packed words to a 16-bit matrix in memory: the first of the two launches of the unfused path.

    W16[n, k] = round((code[n, k] - zero[n, g]) * scale[n, g])

A lane's weights 2i and 2i + 1 become one 32-bit pair of 16-bit floats, so the order of fields is undone by
interleaving whole vectors: four where a lane has eight weights, two where it has four.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numba import njit, prange

from kernels.cpu.gemv import PREFETCH_WORDS
from kernels.cpu.planes import load_planes, load_spread, weights_of_lane
from kernels.cpu.simd import (
    LANES,
    half_bits,
    mul_f32,
    or_i32,
    shift_left,
    splat_i32,
    store_i32,
    zip_high,
    zip_low,
)
from kernels.cpu.weights import FUSED, Storage, scale_of, weight_of


@njit(inline="always")
def pair_of(planes, pair, bits, encoding, zero, scale, half):
    """Weights 2 * pair and 2 * pair + 1 of sixteen lanes as 16-bit floats, two in a lane."""
    low = 2 * pair if bits == 8 else pair
    high = 2 * pair + 1 if bits == 8 else pair + 4
    even = half_bits(mul_f32(weight_of(planes, low, bits, encoding, zero, FUSED), scale), half)
    odd = half_bits(mul_f32(weight_of(planes, high, bits, encoding, zero, FUSED), scale), half)
    return or_i32(even, shift_left(odd, 16))


@cache
def build(storage: Storage, half: int):
    """The compiled kernel of one way of storing weights, and type of the matrix: BF16 or FP16.

    Its arguments: words, scales, second and zeros as gemv.build; matrix int32 [n * k / 2], two weights each.
    """
    bits, encoding, scale_type, parts, has_zero = storage
    fields, middle = weights_of_lane(bits), storage.zero
    words_per_vector = LANES * fields * bits // 32

    @njit(parallel=True, cache=True, error_model="numpy", nogil=True)
    def dequantize(words, scales, second, zeros, matrix):
        n, groups = scales.shape
        groups //= parts
        vectors = words.shape[0] // n // words_per_vector
        per_group = vectors // groups if parts == 1 else 1
        for row in prange(n):
            for group in range(groups):
                at = (row * groups + group) * parts
                scale = scale_of(scales, second, at, parts, scale_type)
                zero = splat_i32(np.int32(middle))
                if has_zero:
                    zero = load_spread(zeros, at, parts, 0)
                for vector in range(group * per_group, (group + 1) * per_group):
                    planes = load_planes(words, row, vectors, vector, bits, PREFETCH_WORDS)
                    out = (row * vectors + vector) * LANES * fields // 2
                    a = pair_of(planes, 0, bits, encoding, zero, scale, half)
                    b = pair_of(planes, 1, bits, encoding, zero, scale, half)
                    if bits == 8:
                        store_i32(matrix, out, zip_low(a, b))
                        store_i32(matrix, out + LANES, zip_high(a, b))
                    else:
                        c = pair_of(planes, 2, bits, encoding, zero, scale, half)
                        d = pair_of(planes, 3, bits, encoding, zero, scale, half)
                        even, odd = zip_low(a, c), zip_low(b, d)
                        store_i32(matrix, out, zip_low(even, odd))
                        store_i32(matrix, out + LANES, zip_high(even, odd))
                        even, odd = zip_high(a, c), zip_high(b, d)
                        store_i32(matrix, out + 2 * LANES, zip_low(even, odd))
                        store_i32(matrix, out + 3 * LANES, zip_high(even, odd))

    return dequantize

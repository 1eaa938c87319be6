"""Hand-written 16-bit kernels on weights dequantized beforehand: the "dequantize at load" choice.

    y[b, n] = sum over i of  w[n, i] * x[b, i]

Weights are widened in registers and multiplied in fp32, since Numba has no access to the 16-bit dot product
or tile units of a CPU; the library's kernel (torch_ops.py) has, where the CPU has them for the type.
From batch 16 on, gemm.py with 16-bit weights takes over.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numba import njit, prange

from kernels.cpu.gemv_batch import BATCH_TILE, store_rows
from kernels.cpu.simd import (
    LANES,
    add_f32,
    fma,
    half_of_float,
    load_f32,
    load_half,
    prefetch,
    splat_f32,
    sum_f32,
)

STRIDE = (
    4 * LANES
)  # weights of a row per step: enough independent sums to hide the latency of an FMA
PREFETCH = 2048  # 4 KiB ahead


@cache
def build_gemv(half: int):
    """The kernel of a type, BF16 or FP16: weights uint16 [n * k], x float32 [k], y uint16 [1, n]."""

    @njit(parallel=True, cache=True, error_model="numpy", nogil=True)
    def gemv(weights, x, y):
        n = y.shape[1]
        k = weights.shape[0] // n
        for row in prange(n):
            a = b = c = d = splat_f32(np.float32(0))
            for i in range(0, k, STRIDE):
                at = row * k + i
                prefetch(weights, at + PREFETCH)
                prefetch(weights, at + PREFETCH + 2 * LANES)
                a = fma(load_half(weights, at, half), load_f32(x, i), a)
                b = fma(load_half(weights, at + LANES, half), load_f32(x, i + LANES), b)
                c = fma(load_half(weights, at + 2 * LANES, half), load_f32(x, i + 2 * LANES), c)
                d = fma(load_half(weights, at + 3 * LANES, half), load_f32(x, i + 3 * LANES), d)
            y[0, row] = half_of_float(sum_f32(add_f32(add_f32(a, b), add_f32(c, d))), half)

    return gemv


@cache
def build_gemv_batch(half: int):
    """The same: weights uint16 [n * k], x float32 in tiles of four from to_fields, y uint16 [batch, n]."""

    @njit(parallel=True, cache=True, error_model="numpy", nogil=True)
    def gemv_batch(weights, x, y):
        batch, n = y.shape
        k = weights.shape[0] // n
        for pair in prange((n + 1) // 2):
            row0 = 2 * pair
            row1 = min(row0 + 1, n - 1)  # an odd last row is computed twice
            for first in range(0, batch, BATCH_TILE):
                t00 = t01 = t02 = t03 = splat_f32(np.float32(0))
                t10 = t11 = t12 = t13 = splat_f32(np.float32(0))
                for i in range(0, k, LANES):
                    prefetch(weights, row0 * k + i + PREFETCH)
                    prefetch(weights, row1 * k + i + PREFETCH)
                    w0 = load_half(weights, row0 * k + i, half)
                    w1 = load_half(weights, row1 * k + i, half)
                    at = first * k + BATCH_TILE * i
                    x0 = load_f32(x, at)
                    x1 = load_f32(x, at + LANES)
                    x2 = load_f32(x, at + 2 * LANES)
                    x3 = load_f32(x, at + 3 * LANES)
                    t00, t10 = fma(w0, x0, t00), fma(w1, x0, t10)
                    t01, t11 = fma(w0, x1, t01), fma(w1, x1, t11)
                    t02, t12 = fma(w0, x2, t02), fma(w1, x2, t12)
                    t03, t13 = fma(w0, x3, t03), fma(w1, x3, t13)
                store_rows(y, first, row0, t00, t01, t02, t03, half)
                store_rows(y, first, row1, t10, t11, t12, t13, half)

    return gemv_batch

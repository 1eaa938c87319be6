"""The CPU ladder from batch 16: unpack a block of weights once into the L1 cache, multiply it with the batch.

    y[b, n] = sum over i of  w[n, i] * x[b, i]           w = (code - zero) * scale

ROWS rows x CHUNK weights of W become fp32 in a small buffer, which is then multiplied with the whole batch,
lanes running along the batch. Dequantization is paid once per block whatever the batch: the phi(B) of the
step form is flat here. The stages are those of gemv.py; stream, unpack and scale do their share of the
filling and multiply nothing.
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
    ROWS,
    add_f32,
    add_i32,
    fma_tile,
    half_of_float,
    load_f32,
    load_half,
    load_i32,
    load_tile,
    mul_f32,
    or_i32,
    prefetch,
    splat_i32,
    store_f32,
    store_i32,
    store_tile,
    sum_f32,
    sum_i32,
)
from kernels.cpu.weights import BYPASS, SCALE, STREAM, UNPACK, Storage, scale_of, weight_of

CHUNK = 128  # weights of a row in the buffer: ROWS x CHUNK x 4 bytes = 4 KiB
PANEL = 64  # rows that share a pass over the activations, a multiple of ROWS


@njit(inline="always")
def fill_row(
    words,
    scales,
    second,
    zeros,
    row,
    chunk,
    bits,
    encoding,
    scale_type,
    parts,
    has_zero,
    middle,
    fields,
    stage,
    buffer,
    at,
    counts,
    totals,
    slot,
):
    """Dequantize CHUNK weights of one row into buffer[at:], or do the part of it that a stage names."""
    n = scales.shape[0]
    groups = scales.shape[1] // parts
    vectors = words.shape[0] * 32 // (n * bits * LANES * fields)  # of one row
    in_chunk = CHUNK // (LANES * fields)
    per_group = vectors // groups if parts == 1 else 1
    ahead = in_chunk * LANES
    for i in range(in_chunk):
        vector = chunk * in_chunk + i
        planes = load_planes(words, row, vectors, vector, bits, ahead)
        at_group = (row * groups + vector // per_group) * parts
        scale = scale_of(scales, second, at_group, parts, scale_type)
        zero = splat_i32(np.int32(middle))
        if has_zero:
            zero = load_spread(zeros, at_group, parts, 0)
        count = load_i32(counts, slot * LANES)
        if stage == BYPASS and has_zero:
            store_i32(counts, slot * LANES, or_i32(count, zero))
        if stage < SCALE:
            if stage == STREAM:
                count = add_planes(count, planes)
            for field in range(fields):
                if stage == UNPACK:
                    count = add_i32(count, code_of(planes, field, bits))
            if vector % per_group == 0:
                count = add_i32(count, load_padded(scales, at_group, parts))
                if has_zero:
                    count = add_i32(count, load_padded(zeros, at_group, parts))
            store_i32(counts, slot * LANES, count)
        else:
            total = load_f32(totals, slot * LANES)
            for field in range(fields):
                w = mul_f32(weight_of(planes, field, bits, encoding, zero, stage), scale)
                store_f32(buffer, at + (i * fields + field) * LANES, w)
                if stage == SCALE:
                    total = add_f32(total, w)
            if stage == SCALE:
                store_f32(totals, slot * LANES, total)


@njit(inline="always")
def copy_row(weights, row, k, chunk, half, buffer, at):
    """Widen CHUNK 16-bit weights of one row into buffer[at:]: the native kernel's fill."""
    for i in range(CHUNK // LANES):
        first = row * k + chunk * CHUNK + i * LANES
        store_f32(buffer, at + i * LANES, load_half(weights, first, half))
    prefetch(weights, row * k + (chunk + 1) * CHUNK)
    prefetch(weights, row * k + (chunk + 1) * CHUNK + 32)
    prefetch(weights, row * k + (chunk + 1) * CHUNK + 64)
    prefetch(weights, row * k + (chunk + 1) * CHUNK + 96)


@njit(inline="always")
def multiply(buffer, x, padded, k, chunk, partial, at):
    """partial[row, b] += buffer[row, i] * x[i, b], lanes along the batch, 32 at a time where there are."""
    width = 2 * LANES if padded >= 2 * LANES else LANES
    for first in range(0, padded, width):
        at_x = first * k + chunk * CHUNK * width
        low = load_tile(partial, at + first, padded)
        if width == LANES:
            for i in range(CHUNK):
                low = fma_tile(buffer, i, CHUNK, load_f32(x, at_x + i * width), low)
        else:
            high = load_tile(partial, at + first + LANES, padded)
            for i in range(CHUNK):
                x_low = load_f32(x, at_x + i * width)
                x_high = load_f32(x, at_x + i * width + LANES)
                low = fma_tile(buffer, i, CHUNK, x_low, low)
                high = fma_tile(buffer, i, CHUNK, x_high, high)
            store_tile(partial, at + first + LANES, padded, high)
        store_tile(partial, at + first, padded, low)


@cache
def build(storage: Storage, stage: int, half: int):
    """The compiled kernel of one way of storing weights (bits 16: in the type of y), stage, and type of y.

    Its arguments: words int32 [n * words_per_row] (uint16 [n * k] for 16-bit weights); scales, second, zeros as
    gemv.build; x float32 [k * padded] from to_columns; k; padded, the batch in whole vectors; sums float32 [n]
    (scale) or int32 [n]; y uint16 [batch, n], the bits of 16-bit floats.
    """
    bits, encoding, scale_type, parts, has_zero = storage
    fields, middle = weights_of_lane(bits), storage.zero

    @njit(parallel=True, cache=True, error_model="numpy", nogil=True)
    def gemm(words, scales, second, zeros, x, k, padded, sums, y):
        batch, n = y.shape
        for first in prange((n + PANEL - 1) // PANEL):
            buffer = np.zeros(ROWS * CHUNK, np.float32)
            partial = np.zeros(PANEL * padded, np.float32)
            counts = np.zeros(PANEL * LANES, np.int32)
            totals = np.zeros(PANEL * LANES, np.float32)
            rows = min(PANEL, n - first * PANEL)
            for chunk in range(k // CHUNK):
                for block in range(0, rows, ROWS):
                    for r in range(min(ROWS, rows - block)):
                        row = first * PANEL + block + r
                        if bits == 16:
                            copy_row(words, row, k, chunk, half, buffer, r * CHUNK)
                        else:
                            fill_row(
                                words, scales, second, zeros, row, chunk,
                                bits, encoding, scale_type, parts, has_zero, middle, fields, stage,
                                buffer, r * CHUNK, counts, totals, block + r,
                            )  # fmt: skip
                    if stage > SCALE:
                        multiply(buffer, x, padded, k, chunk, partial, block * padded)
            for r in range(rows):
                row = first * PANEL + r
                count = sum_i32(load_i32(counts, r * LANES))
                if stage < SCALE:
                    sums[row] = count
                elif stage == SCALE:
                    sums[row] = sum_f32(load_f32(totals, r * LANES))
                else:
                    if stage == BYPASS and has_zero and count == -n:
                        partial[r * padded] = 0  # never so: keeps the zero points' load alive
                    for b in range(batch):
                        y[b, row] = half_of_float(partial[r * padded + b], half)

    return gemm

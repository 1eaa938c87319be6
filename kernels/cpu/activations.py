"""Activations as the CPU kernels want them: fp32, in the order in which packed words give up their weights.

Sixteen words side by side hold 16 * weights_per_word weights; extracting one field of all sixteen yields a
vector whose lanes lie weights_per_word apart in k. Rather than shuffle every weight, x is reordered once per
launch (inside the timed call):

    fields    x[b, k] -> out[tile, vector, field, b, lane]       lanes of a dot product run along k
    columns   x[b, k] -> out[strip, vector, field, lane, b]      lanes run along the batch
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numba import njit, prange

from kernels.cpu.simd import LANES, float_of_half

_OPTIONS = {"cache": True, "error_model": "numpy", "nogil": True}


@njit(inline="always")
def field_weight(field, bits):
    """Which of a word's weights sits in a field: packing.code_order as arithmetic."""
    if bits == 4:
        return 2 * field if field < 4 else 2 * field - 7
    return field


@cache
def build_to_fields(half: int):
    """The function for x of a type, BF16 or FP16."""

    @njit(**_OPTIONS)
    def to_fields(x, bits, tile, out):
        """Reorder x uint16 [batch, k] into float32 out [whole tiles of the batch * k], zero past it."""
        batch, k = x.shape
        per_word = 32 // bits if bits < 16 else 1
        span = LANES * per_word
        for b in range((batch + tile - 1) // tile * tile):
            at_tile = (b // tile) * tile * k + (b % tile) * LANES
            for vector in range(k // span):
                for field in range(per_word):
                    source = vector * span + field_weight(field, bits)
                    at = at_tile + (vector * per_word + field) * tile * LANES
                    for lane in range(LANES):
                        value = np.float32(0)
                        if b < batch:
                            value = float_of_half(x[b, source + lane * per_word], half)
                        out[at + lane] = value

    return to_fields


@cache
def build_to_columns(half: int):
    """The function for x of a type, BF16 or FP16."""

    @njit(parallel=True, **_OPTIONS)
    def to_columns(x, bits, padded, out):
        """Reorder x uint16 [batch, k] into float32 out [k * padded], zero past the batch.

        The batch is cut into strips of 32 (16 where there is but one vector), each contiguous over k.
        """
        batch, k = x.shape
        per_word = 32 // bits if bits < 16 else 1
        span = LANES * per_word
        width = 2 * LANES if padded >= 2 * LANES else LANES
        for vector in prange(k // span):
            for b in range(padded):
                at = (b // width) * width * k + b % width
                for field in range(per_word):
                    source = vector * span + field_weight(field, bits)
                    target = at + (vector * span + field * LANES) * width
                    for lane in range(LANES):
                        value = np.float32(0)
                        if b < batch:
                            value = float_of_half(x[b, source + lane * per_word], half)
                        out[target + lane * width] = value

    return to_columns

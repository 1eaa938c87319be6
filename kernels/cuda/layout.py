"""The order in which the tensor-core kernels read their weights: a re-packing of kernels/packing.py.

A lane of a warp multiplies words of two rows, g and g + 8 of a tile of 16 (tiles.cuh). So that a warp reads
512 bytes side by side, words that are needed together lie together:

    block of 32 rows | 8 words of each row | tile 0 or 1 | lane 4 g + t | 4 words

        0: row g, word 2t      1: row g+8, word 2t      2: row g, word 2t+1      3: row g+8, word 2t+1

of the 16 rows of the tile and the 8 words. Scales follow: block | group | tile | g | rows g and g + 8. Rows
past the end are zeros. Within a word codes may be put in another order, which the kernel's source shows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

BLOCK_ROWS = 32
ROW_WORDS = 8  # of a tile: two for each of the four lanes of a row
TILES, HALVES, G, T = 2, 2, 8, 4  # row = 16 tile + 8 half + g


def reorder(words: NDArray[np.uint32], bits: int, order: Sequence[int]) -> NDArray[np.uint32]:
    """Words with their fields moved: field i becomes what was field order[i]."""
    moved = np.zeros_like(words)
    mask = np.uint32((1 << bits) - 1)
    for to, source in enumerate(order):
        moved |= (words >> np.uint32(bits * source) & mask) << np.uint32(bits * to)
    return moved


def tile_words(words: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Words [n, w] as [blocks, w / 8, 2, 32, 4].

    Raises:
        ValueError: w is not a multiple of 8.
    """
    if words.shape[1] % ROW_WORDS:
        raise ValueError(
            f"the tensor-core kernels take {ROW_WORDS} words of a row at a time, "
            f"but a row has {words.shape[1]}; choose a k that divides."
        )
    rows = by_rows(words).reshape(-1, TILES, HALVES, G, words.shape[1] // ROW_WORDS, T, 2)
    tiled = rows.transpose(0, 4, 1, 3, 5, 6, 2)  # block, words, tile, g, t, word, half
    return np.ascontiguousarray(tiled).reshape(*tiled.shape[:3], G * T, 4)


def tile_scales(scales: NDArray[Any]) -> NDArray[Any]:
    """Scales [n, groups] as [blocks, groups, 2, 8, 2]."""
    rows = by_rows(scales).reshape(-1, TILES, HALVES, G, scales.shape[1])
    return np.ascontiguousarray(rows.transpose(0, 4, 1, 3, 2))


def by_rows(matrix: NDArray[Any]) -> NDArray[Any]:
    """The matrix with rows of zeros added until whole blocks are full."""
    return np.pad(matrix, ((0, -len(matrix) % BLOCK_ROWS), (0, 0)))

"""The tile functions in inline PTX against those without, and both against NumPy: every bit, every input."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from kernels import packing
from kernels.triton import tuned
from tests.aot_ptx import Ptx, execute
from tests.aot_tiles import BLOCK, Tile, compile_tiles

TARGETS = (80, 90, 120)
TILES = [
    Tile(bits, has_zero, is_tuned, capability)
    for (bits, has_zero), is_tuned, capability in product(
        ((4, False), (4, True), (8, False)), (True, False), TARGETS
    )
    if is_tuned or capability == TARGETS[0]
]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[Tile, Ptx]:
    return compile_tiles(TILES, tmp_path_factory.mktemp("triton"))


def words_of_every_half() -> np.ndarray:
    """Every 16 bits in the lower half of a word and in the upper, beside random others."""
    every = np.arange(1 << 16, dtype=np.uint32)
    others = np.random.default_rng(1).permutation(every)
    return np.concatenate([every | others << np.uint32(16), others | every << np.uint32(16)])


def run(tile: Tile, ptx: Ptx, words: np.ndarray, zeros: np.ndarray) -> np.ndarray:
    """Every weight of every word, float32 [words, 32 / bits]."""
    out = np.full((len(words), 32 // tile.bits), np.nan, np.float32)
    execute(replace(ptx, grid=(len(words) // BLOCK,)), [words.view(np.int32), zeros, out])
    return out


@pytest.mark.parametrize("tile", TILES, ids=str)
def test_every_word_becomes_its_weights(tile: Tile, compiled: dict[Tile, Ptx]) -> None:
    words = words_of_every_half()
    zeros = (np.random.default_rng(2).integers(0, 16, len(words))).astype(np.uint8)
    got = run(tile, compiled[tile], words, zeros)
    codes = packing.unpack(words[:, None], tile.bits).reshape(got.shape).astype(np.float32)
    zero = zeros[:, None] if tile.has_zero else 1 << (tile.bits - 1)
    expected = (codes - zero) * np.float32(tuned.unit(tile.bits))
    np.testing.assert_array_equal(got.view(np.uint32), (expected + 0).view(np.uint32))

"""The tile functions in inline PTX against those without, and both against NumPy: every bit, every input."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from kernels import packing
from kernels.codebooks import codebook
from kernels.triton import tuned
from tests.aot_ptx import Ptx, execute
from tests.aot_tiles import BLOCK, Tile, compile_tiles

TARGETS = (80, 90, 120)
CODES = ((4, "int", False), (4, "int", True), (8, "int", False), (4, "nf4", False))
CODES += ((8, "e4m3", False), (8, "e5m2", False))
TILES = [
    Tile(*code, is_tuned, capability)
    for code, is_tuned, capability in product(CODES, (True, False), TARGETS)
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
    """What stands for no finite number is left out: quantization writes none (codebooks.py)."""
    words = words_of_every_half()
    zeros = (np.random.default_rng(2).integers(0, 16, len(words))).astype(np.uint8)
    got = run(tile, compiled[tile], words, zeros)
    codes = packing.unpack(words[:, None], tile.bits).reshape(got.shape)
    if tile.encoding == "int":
        zero = zeros[:, None] if tile.has_zero else 1 << (tile.bits - 1)
        numbers = codes.astype(np.float32) - zero
    else:
        numbers = codebook(tile.encoding)[codes]
    expected = (numbers * tuned.unit(tile.bits, tile.encoding)).astype(np.float32)
    finite = np.isfinite(expected)
    assert finite.mean() > 0.9
    np.testing.assert_array_equal(got.view(np.uint32)[finite], expected.view(np.uint32)[finite])

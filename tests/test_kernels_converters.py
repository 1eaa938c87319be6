"""Checkpoints as others write them: packed here by the book, or recorded from the library itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kernels import converters, packing
from kernels.codebooks import codebook
from kernels.formats import find_format

RECORDED = Path(__file__).parent / "data" / "bitsandbytes_nf4.json"
N, K, GROUP = 16, 256, 128


@pytest.fixture(scope="module")
def stored() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Codes [k, n], zero points [groups, n] and scales [groups, n], as these formats see them."""
    rng = np.random.default_rng(8)
    codes = rng.integers(0, 16, (K, N), dtype=np.uint8)
    zeros = rng.integers(1, 16, (K // GROUP, N), dtype=np.uint8)
    return codes, zeros, rng.uniform(0.01, 0.02, zeros.shape).astype(np.float16)


def expected(codes: np.ndarray, zeros: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """W [n, k] by the definition, group after group."""
    rows = np.arange(K) // GROUP
    return ((codes.astype(np.float64) - zeros[rows]) * scales[rows].astype(np.float64)).T


def test_gptq(stored: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    """AutoGPTQ's own loops: eight rows of W^T into a word; eight columns' zero points minus one."""
    codes, zeros, scales = stored
    qweight = np.zeros((K // 8, N), np.uint32)
    for row in range(K):
        qweight[row // 8] |= codes[row].astype(np.uint32) << np.uint32(4 * (row % 8))
    for minus in (1, 0):
        qzeros = np.zeros((K // GROUP, N // 8), np.uint32)
        for column in range(N):
            lowered = (zeros[:, column] - minus).astype(np.uint32)
            qzeros[:, column // 8] |= lowered << np.uint32(4 * (column % 8))
        words = (qweight.view(np.int32), qzeros.view(np.int32))
        weights = converters.from_gptq(*words, scales, stored_minus=minus)
        assert weights.format == find_format("int4-g128-zp")
        np.testing.assert_array_equal(weights.values, expected(*stored))


def test_awq(stored: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    """AutoAWQ's own loops: order_map = [0, 2, 4, 6, 1, 3, 5, 7] along the outputs."""
    codes, zeros, scales = stored
    packed = []
    for numbers in (codes, zeros):
        words = np.zeros((len(numbers), N // 8), np.uint32)
        for column in range(N // 8):
            for i, place in enumerate([0, 2, 4, 6, 1, 3, 5, 7]):
                taken = numbers[:, 8 * column + place].astype(np.uint32)
                words[:, column] |= taken << np.uint32(4 * i)
        packed.append(words.view(np.int32))
    weights = converters.from_awq(*packed, scales)
    np.testing.assert_array_equal(weights.values, expected(*stored))


def test_other_groups_are_refused(stored: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    words = np.zeros((K, N // 8), np.int32)
    with pytest.raises(ValueError, match="zero points and groups of 16; quantize with groups of"):
        converters.from_awq(words, np.zeros((16, N // 8), np.int32), np.ones((16, N), np.float16))


def recorded() -> dict[str, Any]:
    raw = json.loads(RECORDED.read_text("utf-8"))
    return {
        name: np.frombuffer(bytes.fromhex(value), kind(name))
        for name, value in raw.items()
        if name not in ("made_by", "weights", "nested_offset")
    } | {"nested_offset": raw["nested_offset"]}


def kind(name: str) -> type:
    return np.uint8 if name.endswith(("packed", "codes")) else np.float32


def test_bitsandbytes_as_recorded() -> None:
    """Its levels, codes, absmax and dequantized values, bit for bit; and what we would have packed."""
    theirs = recorded()
    np.testing.assert_array_equal(codebook("nf4"), theirs["levels"])
    weights = converters.from_bitsandbytes(theirs["packed"], theirs["absmax"], 8, 256)
    values = weights.values.astype(np.float32).reshape(-1)
    np.testing.assert_array_equal(values, theirs["dequantized"])
    original = np.random.default_rng(11).standard_normal((8, 256), dtype=np.float32)
    ours = packing.quantize(original * np.float32(0.02), find_format("nf4-b64"), "fp16")
    np.testing.assert_array_equal(ours.codes, weights.codes)
    np.testing.assert_array_equal(ours.scales, weights.scales)


def test_double_quantized_absmax_as_recorded() -> None:
    theirs = recorded()
    nested = converters.NestedAbsmax(
        theirs["nested_codes"],
        theirs["nested_numbers"],
        theirs["nested_absmax"],
        theirs["nested_offset"],
    )
    weights = converters.from_bitsandbytes(theirs["nested_packed"], nested, 8, 256)
    assert weights.format == find_format("nf4-b64-dq")
    assert weights.scale_codes is not None
    np.testing.assert_array_equal(weights.scale_codes.reshape(-1), theirs["nested_codes"])
    values = (codebook("nf4")[weights.codes] * weights.per_weight(weights.scales)).reshape(-1)
    np.testing.assert_array_equal(values, theirs["nested_dequantized"])

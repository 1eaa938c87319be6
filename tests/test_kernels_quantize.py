"""Limits of quantization: what is refused, what becomes zero, what saturates, for every format."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels import codebooks, packing
from kernels.codebooks import codebook
from kernels.formats import FORMATS, find_format

QUANTIZED = [f.name for f in FORMATS if f.quantized]
K = 256
HARD = {  # what float32 can hold and most code forgets
    "zero": np.zeros(K),
    "minus zero": np.full(K, -0.0),
    "one": np.eye(1, K)[0],
    "outlier": np.where(np.arange(K) == 5, 1e4, 1e-4),
    "subnormal": np.full(K, 1e-41),
    "smallest": np.full(K, -1.4e-45),
    "positive": np.linspace(1, 2, K),
    "negative": np.linspace(-2, -1, K),
    "alternating": np.where(np.arange(K) % 2, 3e-8, -3e-8),
    "sixteenths": np.arange(-128, 128) / 16,
}


@pytest.mark.parametrize("name", QUANTIZED)
@pytest.mark.parametrize("activation", ["fp16", "bf16"])
def test_nothing_finite_becomes_nan_or_infinite(name: str, activation: packing.Float) -> None:
    """Every hard row beside every other, the sign of the largest error, and every zero kept."""
    weight_format = find_format(name)
    rows = np.array(list(HARD.values()), np.float32)
    weights = packing.quantize(rows, weight_format, activation)
    assert np.isfinite(weights.values).all()
    assert np.isfinite(weights.scales).all()
    assert (weights.codes < 1 << weight_format.bits).all()
    np.testing.assert_array_equal(packing.unpack(weights.words, weight_format.bits), weights.codes)
    if weight_format.bits > 1:
        assert (weights.values[:2] == 0).all()
        grouped = np.abs(rows).reshape(len(rows), -1, weight_format.group_size or K)
        largest = np.repeat(grouped.max(axis=2), grouped.shape[2], axis=1)
        if name not in ("nf4-b64-dq", "fp4-b64-dq", "nvfp4", "nvint4"):  # which share among groups
            assert (np.abs(weights.values - rows) <= 1.01 * largest).all()


@pytest.mark.parametrize("name", QUANTIZED)
def test_huge_weights_are_quantized_or_refused_with_their_place(name: str) -> None:
    """Scales in fp16 end at 65504, those in 8 or 32 bits hold whatever fp32 does."""
    weight_format = find_format(name)
    rows = np.ones((3, K), np.float32)
    rows[1, -1] = 3e38
    if weight_format.scale_type == "activation":
        groups = weight_format.groups(K)
        with pytest.raises(
            ValueError, match=rf"{name} cannot hold row 1, group {groups - 1}: its scale .* fp16"
        ):
            packing.quantize(rows, weight_format, "fp16")
    else:
        weights = packing.quantize(rows, weight_format, "fp16")
        assert np.isfinite(weights.values).all()
        assert weights.values[1, -1] > 1.8e38  # a power of two saturates at 3/4 or more of it


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf, 1e39])
@pytest.mark.parametrize("name", QUANTIZED)
def test_what_is_not_finite_is_refused_with_its_place(name: str, wrong: float) -> None:
    rows = np.ones((2, K))
    rows[1, 77] = wrong
    with pytest.raises(ValueError, match="must be finite as fp32, but row 1, column 77 is"):
        packing.quantize(rows, find_format(name), "bf16")


@pytest.mark.parametrize(
    "name", ["int4-g128", "int4-g128-zp", "int8-ch", "nf4-b64-s16", "int1-g128"]
)
def test_a_scale_that_rounds_to_zero_makes_zeros(name: str) -> None:
    """In fp16, half of the smallest subnormal, 2^-25, rounds to even, which is 0; anything above does not."""
    weight_format = find_format(name)
    most = {"int4-g128": 7, "int4-g128-zp": 15, "int8-ch": 127}.get(name, 1)
    most = 0.5 if name == "int1-g128" else most
    at_limit = np.full((1, K), most * 2.0**-25, np.float32)
    above = np.nextafter(at_limit, np.float32(1))
    assert (packing.quantize(at_limit, weight_format, "fp16").values == 0).all()
    assert (packing.quantize(above, weight_format, "fp16").values > 0).all()
    assert (packing.quantize(at_limit, weight_format, "bf16").values > 0).all()


@pytest.mark.parametrize("name", [f.name for f in FORMATS if f.zero_point])
@settings(max_examples=25, deadline=None)
@given(
    low=st.floats(-1e3, 1e3),
    width=st.floats(1e-3, 1e3),
    seed=st.integers(0, 99),
)
def test_zero_point_equation(name: str, low: float, width: float, seed: int) -> None:
    """weight = (code - zero) * scale: zero exact, no weight further than a step from its value."""
    weight_format = find_format(name)
    rows = np.random.default_rng(seed).uniform(low, low + width, (2, K)).astype(np.float32)
    rows[:, ::7] = 0
    weights = packing.quantize(rows, weight_format, "bf16")
    assert weights.zeros is not None
    zeros = weights.per_weight(weights.zeros).astype(np.int64)
    scales = weights.per_weight(weights.scales).astype(np.float64)
    np.testing.assert_array_equal(weights.values, (weights.codes - zeros) * scales)
    assert (weights.values[:, ::7] == 0).all()
    ends = (
        (1 << weight_format.bits) - 1
    ) * 2.0**-9 + 1.01  # a scale rounded down in bf16, and a step
    assert (np.abs(weights.values - rows) <= ends * scales).all()


@pytest.mark.parametrize("name", QUANTIZED)
@settings(max_examples=10, deadline=None)
@given(exponent=st.integers(-10, 10), seed=st.integers(0, 99))
def test_a_power_of_two_moves_scales_and_no_codes(name: str, exponent: int, seed: int) -> None:
    """As long as nothing is subnormal: every operation of every format commutes with it."""
    rows = np.random.default_rng(seed).standard_normal((2, K), dtype=np.float32)
    weight_format = find_format(name)
    once = packing.quantize(rows, weight_format, "bf16")
    moved = packing.quantize(np.ldexp(rows, exponent), weight_format, "bf16")
    np.testing.assert_array_equal(moved.codes, once.codes)
    np.testing.assert_array_equal(moved.values, np.ldexp(once.values, exponent))


@pytest.mark.parametrize("name", [f.name for f in FORMATS if f.encoding != "int"])
def test_numbers_of_a_codebook_are_kept(name: str) -> None:
    """Every finite code that a group can hold, in the first group; the rest are its largest number."""
    weight_format = find_format(name)
    numbers = codebook(weight_format.encoding)
    most = np.abs(numbers[np.isfinite(numbers)]).max()
    if weight_format.scale_type == "fp32":
        most = min(most, codebooks.full_scale(weight_format.encoding))
    kept = np.flatnonzero(np.abs(numbers) <= most)
    size = weight_format.group_size or 256
    rows = np.full((len(kept), 2 * size), most, np.float32)
    rows[:, 1] = numbers[kept]
    weights = packing.quantize(rows, weight_format, "fp16")
    zero = numbers[kept] == 0
    np.testing.assert_array_equal(weights.codes[~zero, 1], kept[~zero])
    np.testing.assert_array_equal(weights.values[:, 1], numbers[kept])


@settings(max_examples=200, deadline=None)
@given(
    value=st.floats(width=32, allow_nan=False, allow_infinity=False),
    encoding=st.sampled_from(sorted(codebooks.SMALL_FLOATS)),
)
def test_no_number_is_nearer(value: float, encoding: codebooks.Encoding) -> None:
    """Brute force over the codebook; of two equally near the even code; the sign stays."""
    numbers = codebook(encoding).astype(np.float64)
    code = int(codebooks.nearest_code(np.array([value], np.float32), encoding)[0])
    largest = numbers[np.isfinite(numbers)].max()
    within = np.clip(value, -2 * largest, 2 * largest)  # lest a difference be rounded
    distance = np.abs(np.where(np.isfinite(numbers), numbers, np.inf) - within)
    assert distance[code] == distance.min()
    assert code % 2 == 0 or (distance == distance.min()).sum() == 1
    assert np.signbit(numbers[code]) == np.signbit(value)


def test_a_scale_rounded_down_saturates_and_leaves_the_lowest_code_unused() -> None:
    """1.4 of fp16's smallest number is kept as 1: nearly 10 steps of it end at 7, on both sides."""
    row = np.zeros((1, 128), np.float32)
    row[0, :2] = np.array([-7, 7]) * 1.4 * 2.0**-24
    weights = packing.quantize(row, find_format("int4-g128"), "fp16")
    assert weights.scales.tolist() == [[2.0**-24]]
    assert weights.codes[0, :3].tolist() == [1, 15, 8]


def test_nvfp4_is_multiplied_by_the_reciprocal_of_both_scales() -> None:
    """As torchao has it, which decides ties: here rounded by ml_dtypes, and other than a division."""
    rows = np.random.default_rng(4).integers(-48, 49, (64, K)).astype(np.float32) / np.float32(8)
    weights = packing.quantize(rows, find_format("nvfp4"), "fp16")
    assert weights.scale_codes is not None
    assert weights.second_level is not None
    blocks = weights.scale_codes.view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    reciprocals = np.float32(1) / weights.second_level[0] / blocks
    at_once = np.float32(1) / (weights.second_level[0] * blocks)
    codes = [
        np.clip(scaled, -6, 6).astype(ml_dtypes.float4_e2m1fn).view(np.uint8)
        for scaled in (
            rows * weights.per_weight(reciprocals),
            rows * weights.per_weight(at_once),
            rows / weights.per_weight(weights.scales),
        )
    ]
    np.testing.assert_array_equal(weights.codes, codes[0])
    assert (codes[1] != codes[0]).any()
    assert (codes[2] != codes[0]).any()

"""Codebooks against what others make of them: bitsandbytes' recorded constants, ml_dtypes, torch."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import torch

from kernels import codebooks, packing, scales
from kernels.codebooks import codebook
from kernels.formats import FORMATS, find_format

ML_DTYPES = {
    "e5m2": ml_dtypes.float8_e5m2,
    "e4m3": ml_dtypes.float8_e4m3fn,
    "e3m2": ml_dtypes.float6_e3m2fn,
    "e2m3": ml_dtypes.float6_e2m3fn,
    "e2m1": ml_dtypes.float4_e2m1fn,
}
TORCH = {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}
EVERY = np.arange(256, dtype=np.uint8)


@pytest.mark.parametrize("encoding", ML_DTYPES)
def test_every_code_is_the_number_that_others_read(encoding: codebooks.Encoding) -> None:
    ours = codebook(encoding)
    theirs = EVERY[: len(ours)].view(ML_DTYPES[encoding]).astype(np.float32)
    np.testing.assert_array_equal(ours, theirs)
    finite = ~np.isnan(ours)
    np.testing.assert_array_equal(np.signbit(ours)[finite], np.signbit(theirs)[finite])
    if encoding in TORCH:
        np.testing.assert_array_equal(ours, torch.from_numpy(EVERY).view(TORCH[encoding]).float())


@pytest.mark.parametrize("encoding", ML_DTYPES)
def test_rounding_is_that_of_others(encoding: codebooks.Encoding) -> None:
    """Every number, every tie, both its neighbours in float32, both zeros, and a million in between."""
    numbers = codebook(encoding)
    numbers = numbers[: len(numbers) // 2]
    finite = numbers[np.isfinite(numbers)]
    ties = (finite[1:] + finite[:-1]) / 2
    near = [np.nextafter(ties, np.float32(side)) for side in (-np.inf, np.inf)]
    rng = np.random.default_rng(5)
    some = np.exp2(rng.uniform(-20, np.log2(finite[-1]), 1 << 20)).astype(np.float32)
    magnitudes = np.concatenate([finite, ties, *near, some])
    values = np.concatenate([magnitudes, -magnitudes])
    ours = codebooks.nearest_code(values, encoding)
    np.testing.assert_array_equal(ours, values.astype(ML_DTYPES[encoding]).view(np.uint8))


@pytest.mark.parametrize(
    ("encoding", "largest"),
    [("e5m2", 57344), ("e4m3", 448), ("e3m2", 28), ("e2m3", 7.5), ("e2m1", 6)],
)
def test_what_is_too_large_becomes_the_largest(
    encoding: codebooks.Encoding, largest: float
) -> None:
    """As the GPU's cvt.rn.satfinite has it, where ml_dtypes writes a NaN or an infinity."""
    codes = codebooks.nearest_code(np.array([largest * 1.2, -1e30, np.inf]), encoding)
    assert codebook(encoding)[codes].tolist() == [largest, -largest, largest]


def test_levels_of_nf4() -> None:
    """The constants of bitsandbytes 0.50, functional.py, as recorded from its get_4bit_type('nf4')."""
    assert codebook("nf4")[[0, 1, 7, 8, 15]].tolist() == [
        -1.0, np.float32(-0.6961928), 0.0, np.float32(0.0795803), 1.0,
    ]  # fmt: skip
    assert (np.diff(codebook("nf4")) > 0).all()
    # QLoRA, appendix E: the mean of two quantiles each, normalized; here with Python's own inverse.
    from statistics import NormalDist

    offset = 0.9677083
    quantile = NormalDist().inv_cdf
    upper = [quantile(0.5 + (offset - 0.5) * i / 8) for i in range(1, 9)]
    lower = [-quantile(0.5 + (offset - 0.5) * i / 7) for i in range(7, 0, -1)]
    levels = np.array([*lower, 0.0, *upper]) / upper[-1]
    np.testing.assert_allclose(codebook("nf4"), levels, atol=2e-6)


def test_ties_of_nf4_go_down() -> None:
    """At the thresholds of bitsandbytes' CUDA kernel, dQuantizeNF4, as printed there."""
    thresholds = [
        -0.8480964004993439, -0.6106329262256622, -0.4599952697753906, -0.33967943489551544,
        -0.23460740596055984, -0.13791173323988914, -0.045525018125772476, 0.03979014977812767,
        0.1202552504837513, 0.2035212516784668, 0.2920137718319893, 0.3893125355243683,
        0.5016634166240692, 0.6427869200706482, 0.8614784181118011,
    ]  # fmt: skip
    middles = np.array(thresholds, np.float32)
    above = np.nextafter(middles, np.float32(2))
    assert codebooks.nearest_code(middles, "nf4").tolist() == list(range(15))
    assert codebooks.nearest_code(above, "nf4").tolist() == list(range(1, 16))


def test_fp4_of_bitsandbytes() -> None:
    """Its tree of decisions, csrc/kernels.cu: dQuantizeFP4 and dDequantizeFP4Tree, as printed there."""
    tree = [0.0, 5.208333333e-03, 0.66666667, 1.0, 0.33333333, 0.5, 0.16666667, 0.25]
    printed = np.array([*tree, *(-np.array(tree))], np.float32)
    np.testing.assert_array_equal(codebook("fp4"), printed)
    pivots = [0.00260417, 0.0859375, 0.20833333, 0.29166667, 0.4166667, 0.583333, 0.8333333]
    steps = [0b000, 0b001, 0b110, 0b111, 0b100, 0b101, 0b010, 0b011]
    below = codebooks.nearest_code(np.array(pivots) - 1e-6, "fp4")
    above = codebooks.nearest_code(np.array(pivots) + 1e-6, "fp4")
    assert below.tolist() == steps[:-1]
    assert above.tolist() == steps[1:]
    assert codebooks.nearest_code(-np.array(pivots) - 1e-6, "fp4").tolist() == [
        8 + code for code in steps[1:]
    ]
    assert codebooks.nearest_code(np.array([-1e-9, 0.0, -0.0]), "fp4").tolist() == [8, 0, 0]


def test_every_power_of_two_is_the_one_that_others_read() -> None:
    """All 256 codes of e8m0, and the code of every power, of its neighbour below, and of zero."""
    theirs = EVERY.view(ml_dtypes.float8_e8m0fnu).astype(np.float32)
    np.testing.assert_array_equal(scales.decode_e8m0(EVERY), theirs)
    powers = np.ldexp(np.float32(1), np.arange(-126, 128))
    np.testing.assert_array_equal(scales.encode_e8m0(powers, 0), np.arange(1, 255))
    below = np.nextafter(powers, np.float32(0))
    np.testing.assert_array_equal(scales.encode_e8m0(below, 0), np.maximum(np.arange(254), 1))
    assert scales.encode_e8m0(np.array([0, 1e-45, 3.4e38], np.float32), 0).tolist() == [0, 1, 254]


def test_numbers_of_nested_scales() -> None:
    """By hand: the decades of one, two and four numbers, and both ends (bitsandbytes' own: peers)."""
    numbers = scales.dynamic_map()
    assert numbers.shape == (256,)
    assert (np.diff(numbers) > 0).all()
    np.testing.assert_allclose(
        numbers[127:135],
        [0, 0.55e-6, 3.25e-6, 7.75e-6, 21.25e-6, 43.75e-6, 66.25e-6, 88.75e-6],
        rtol=1e-6,
    )
    np.testing.assert_array_equal(numbers[:127], -numbers[254:127:-1])
    assert numbers[255] == 1


@pytest.mark.parametrize("name", [f.name for f in FORMATS if f.quantized])
def test_every_code_through_words_to_its_weight(name: str) -> None:
    """A row for each code, in every place of a group: packed, unpacked, dequantized with another scale each."""
    weight_format = find_format(name)
    codes = np.repeat(np.arange(1 << weight_format.bits, dtype=np.uint8)[:, None], 128, axis=1)
    groups = weight_format.groups(128)
    scale = np.ldexp(np.float32(1), np.arange(len(codes)) % 16 - 8)[:, None].repeat(groups, 1)
    zeros = np.full(scale.shape, 5, np.uint8) if weight_format.zero_point else None
    weights = packing.Weights(weight_format, "fp16", codes, scale, zeros)
    again = packing.unpack(weights.words, weight_format.bits)
    np.testing.assert_array_equal(again, codes)
    if weight_format.encoding == "int":
        middle = 0.5 if weight_format.bits == 1 else 1 << weight_format.bits - 1
        numbers = np.arange(len(codes)) - (5 if weight_format.zero_point else middle)
    elif weight_format.encoding in ML_DTYPES:
        stored = EVERY[: len(codes)].view(ML_DTYPES[weight_format.encoding])
        numbers = stored.astype(np.float64)
    else:
        numbers = codebook(weight_format.encoding).astype(np.float64)
    expected = np.repeat((numbers * scale[:, 0])[:, None], 128, axis=1)
    np.testing.assert_array_equal(weights.values, expected)


def test_integers_have_no_codebook() -> None:
    with pytest.raises(ValueError, match="no codebook"):
        codebook("int")

"""NF4 and FP8 against what others make of them: bitsandbytes' recorded constants, ml_dtypes, torch."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import torch

from kernels import codebooks
from kernels.codebooks import codebook

FP8 = ("e4m3", "e5m2")
ML_DTYPES = {"e4m3": ml_dtypes.float8_e4m3fn, "e5m2": ml_dtypes.float8_e5m2}
TORCH = {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}
EVERY = np.arange(256, dtype=np.uint8)


@pytest.mark.parametrize("encoding", FP8)
def test_every_code_is_the_number_that_others_read(encoding: codebooks.Encoding) -> None:
    ours = codebook(encoding)
    np.testing.assert_array_equal(ours, EVERY.view(ML_DTYPES[encoding]).astype(np.float32))
    np.testing.assert_array_equal(ours, torch.from_numpy(EVERY).view(TORCH[encoding]).float())
    signs = np.signbit(ours)
    np.testing.assert_array_equal(signs[~np.isnan(ours)], (EVERY >= 0x80)[~np.isnan(ours)])


@pytest.mark.parametrize("encoding", FP8)
def test_rounding_is_that_of_others(encoding: codebooks.Encoding) -> None:
    """Every number, every tie, both its neighbours in float32, and a million in between."""
    numbers = codebook(encoding)[:128]
    finite = numbers[np.isfinite(numbers)]
    ties = (finite[1:] + finite[:-1]) / 2
    near = [np.nextafter(ties, np.float32(side)) for side in (-np.inf, np.inf)]
    rng = np.random.default_rng(5)
    some = np.exp2(rng.uniform(-20, np.log2(finite[-1]), 1 << 20)).astype(np.float32)
    magnitudes = np.concatenate([finite, ties, *near, some])
    values = np.concatenate([magnitudes, -magnitudes])
    ours = codebooks.nearest_fp8(values, encoding)
    np.testing.assert_array_equal(ours, values.astype(ML_DTYPES[encoding]).view(np.uint8))


@pytest.mark.parametrize(("encoding", "largest"), [("e4m3", 448), ("e5m2", 57344)])
def test_what_is_too_large_becomes_the_largest(
    encoding: codebooks.Encoding, largest: float
) -> None:
    """As the GPU's cvt.rn.satfinite has it, where ml_dtypes writes a NaN or an infinity."""
    codes = codebooks.nearest_fp8(np.array([largest * 1.2, -1e30, 1e300]), encoding)
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
    levels = codebook("nf4").astype(np.float64)
    middles = (levels[1:] + levels[:-1]) / 2
    assert codebooks.nearest_nf4(middles).tolist() == list(range(15))
    assert codebooks.nearest_nf4(np.nextafter(middles, 2)).tolist() == list(range(1, 16))


def test_integers_have_no_codebook() -> None:
    with pytest.raises(ValueError, match="no codebook"):
        codebook("int")

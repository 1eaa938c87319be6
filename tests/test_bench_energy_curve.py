"""The fit of joules per token over batch: planted curves, coverage, and curves that it does not describe."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import curve_fit

from bench.analysis.energy_curve import curve
from profiles.schema import Quantity, absent

BATCHES = (1, 8, 64, 256)
A_J, B_J = 0.002, 0.5
T3, Z = 3.182446, 1.959964  # from printed tables


def exact(batch: int, relative: float = 0.01, a: float = A_J, b: float = B_J) -> Quantity:
    value = a + b / batch
    return Quantity(value=value, low=value * (1 - relative), high=value * (1 + relative), n=4)


def test_a_planted_curve_is_found() -> None:
    found = curve([(b, exact(b)) for b in BATCHES], "simulated", gain_uncertainty=0.0)
    assert found.per_token_j.value == pytest.approx(A_J)
    assert found.shared_j.value == pytest.approx(B_J)
    assert found.largest_residual == pytest.approx(0, abs=1e-9)
    assert (found.fits, found.reason, found.batches) == (True, "", BATCHES)
    assert found.per_token_j.kind == "simulated"
    assert found.at(10) == pytest.approx(A_J + B_J / 10)


def test_the_fit_is_that_of_scipy_for_relative_errors() -> None:
    rng = np.random.default_rng(3)
    y = (A_J + B_J / np.array(BATCHES)) * (1 + 0.01 * rng.normal(size=4))
    points = [
        (b, Quantity(value=v, low=v * 0.97, high=v * 1.03)) for b, v in zip(BATCHES, y, strict=True)
    ]
    found = curve(points, gain_uncertainty=0.0)
    fitted, covariance = curve_fit(
        lambda x, a, b: a + b / x, BATCHES, y, sigma=y * 0.03 / Z, absolute_sigma=True
    )
    for got, value, variance in zip(
        (found.per_token_j, found.shared_j), fitted, np.diag(covariance), strict=True
    ):
        assert got.value == pytest.approx(value, rel=1e-5)
        assert got.high is not None
        assert got.high - value == pytest.approx(Z * variance**0.5, rel=1e-4)


@pytest.mark.parametrize(
    "spreads",
    [(0.01,) * 4, (0.003, 0.01, 0.01, 0.02), (0.02, 0.003, 0.01, 0.01), (0.02, 0.02, 0.02, 0.002)],
    ids=["alike", "rising", "first worse", "last better"],
)
@pytest.mark.parametrize("gain", [0.0, 0.05])
def test_intervals_cover_the_planted_curve(spreads: tuple[float, ...], gain: float) -> None:
    """Points of four trials each; the gain is normal, common to all, with 95 % within it."""
    rng = np.random.default_rng(7)
    runs, held = 2000, np.zeros(2)
    true = A_J + B_J / np.array(BATCHES)
    for _ in range(runs):
        trials = true * (1 + np.array(spreads) * rng.normal(size=(4, 4)))
        trials *= 1 + gain / Z * rng.normal()
        value = trials.mean(axis=0)
        half = np.hypot(T3 * trials.std(axis=0, ddof=1) / 2, gain * value)
        points = [
            (b, Quantity(value=v, low=v - h, high=v + h, n=4))
            for b, v, h in zip(BATCHES, value, half, strict=True)
        ]
        found = curve(points, "simulated", gain)
        held += [
            q.low <= truth <= q.high
            for q, truth in ((found.per_token_j, A_J), (found.shared_j, B_J))
        ]
    assert (held / runs >= 0.93).all()
    assert (held / runs <= 0.985).all()


def test_the_gain_scales_both_and_leaves_the_fit_alone() -> None:
    plain = curve([(b, exact(b, 0.01)) for b in BATCHES], gain_uncertainty=0.0)
    gained = curve([(b, exact(b, (0.01**2 + 0.05**2) ** 0.5)) for b in BATCHES])
    for a, b in ((plain.per_token_j, gained.per_token_j), (plain.shared_j, gained.shared_j)):
        assert a.value is not None
        assert a.high is not None
        assert b.high is not None
        assert b.value == pytest.approx(a.value)
        expected = ((a.high - a.value) ** 2 + (0.05 * a.value) ** 2) ** 0.5
        assert b.high - a.value == pytest.approx(expected)


def test_a_curve_of_another_form_is_said_to_be_one() -> None:
    """A kernel that dequantizes once per 16 rows: a step from one row tile to the next."""
    steps = [
        (b, Quantity(value=v, low=0.99 * v, high=1.01 * v, n=4))
        for b in (1, 8, 16, 32, 64, 256)
        for v in [A_J + (0.5 + 0.3 * np.ceil(b / 16)) / b]
    ]
    found = curve(steps, gain_uncertainty=0.0)
    straight = curve([s for s in steps if s[0] <= 16], gain_uncertainty=0.0)
    assert straight.fits
    assert found.fits is False
    assert found.largest_residual is not None
    assert found.largest_residual > 0.1
    assert "a + b / batch does not describe batch" in found.reason
    assert "with an interval of 1.0%" in found.reason
    assert found.shared_j.high is not None
    assert found.shared_j.value is not None
    assert found.shared_j.high - found.shared_j.value > 0.05 * found.shared_j.value


def test_residuals_that_intervals_explain_are_no_misfit() -> None:
    points = [(b, exact(b, 0.2)) for b in BATCHES]
    points[2] = (64, Quantity(value=0.0112, low=0.009, high=0.0134, n=4))
    wide = curve(points, gain_uncertainty=0.0)
    assert wide.fits
    assert wide.largest_residual is not None
    assert wide.largest_residual > 0.03


def test_fewer_than_three_batches_are_refused() -> None:
    points = [(1, exact(1)), (8, exact(8)), (64, absent("the GPU was lost")), (8, exact(8))]
    found = curve(points, "measured")
    assert found.reason == "2 batches have joules; a fit of two unknowns needs 3"
    assert found.per_token_j.value is found.shared_j.value is None
    assert found.per_token_j.reason == found.reason
    assert found.fits is found.largest_residual is None
    assert found.at(4) is None
    lone = Quantity(value=1.0, reason="one trial has no spread")
    assert curve([*points, (256, lone)]).fits is None

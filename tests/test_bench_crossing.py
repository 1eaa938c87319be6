"""Crossings of planted ratios: sign, interval in measured batches, value within it."""

from __future__ import annotations

import math

import pytest

from bench.analysis.crossing import crossing, inverse
from profiles.schema import Quantity, absent


def q(value: float, half: float = 0.02) -> Quantity:
    return Quantity(value=value, low=value - half, high=value + half)


def of(*ratios: float | Quantity) -> list[tuple[float, Quantity]]:
    batches = (1, 2, 4, 8, 16, 32, 64, 128)
    each = [r if isinstance(r, Quantity) else q(r) for r in ratios]
    return list(zip(batches, each, strict=False))


def test_a_crossing_lies_between_the_last_win_and_the_first_loss() -> None:
    found = crossing(of(3.0, 2.8, 2.0, 0.5, 0.4), "measured")
    assert found.sign == "wins_below"
    (at,) = found.at
    assert (at.low, at.high) == (4, 8)
    assert at.value == pytest.approx(math.sqrt(32))  # 2 and 1/2: the middle, in logarithms
    assert found.words == "wins_below 5.7 (4 to 8)"


def test_undecided_batches_widen_the_interval_and_are_named() -> None:
    found = crossing(of(2.0, 1.5, 1.01, 0.99, 0.6), "measured")
    (at,) = found.at
    assert (at.low, at.high) == (2, 16)
    assert 4 < (at.value or 0) < 8
    assert found.undecided == (4, 8)


@pytest.mark.parametrize(
    ("ratios", "sign", "ends"),
    [
        ((0.5, 0.8, 1.5), "wins_above", [(2, 4)]),
        ((2.0, 1.5, 1.2), "always", []),
        ((0.5, 0.8, 0.9), "never", []),
        ((1.0, 1.0, 1.01), "undecided", []),
        ((2.0, 0.5, 0.4, 1.5), "several crossings", [(1, 2), (4, 8)]),
        ((2.0, 1.0, 1.5), "always", []),
    ],
)
def test_signs(ratios: tuple[float, ...], sign: str, ends: list[tuple[int, int]]) -> None:
    found = crossing(of(*ratios), "measured")
    assert found.sign == sign
    assert [(c.low, c.high) for c in found.at] == ends


def test_batches_without_a_ratio_are_left_out_and_those_without_an_interval_decide_nothing() -> (
    None
):
    no_interval = Quantity(value=0.1, reason="one block")
    found = crossing(of(2.0, absent("failed"), no_interval, 0.5), "measured")
    assert [x for x, _ in found.outcomes] == [1, 4, 8]
    assert [(c.low, c.high) for c in found.at] == [(1, 8)]


def test_the_inverse_wins_where_the_ratio_loses() -> None:
    points = of(3.0, 2.0, 0.5)
    turned = crossing([(x, inverse(r)) for x, r in points], "measured")
    assert turned.sign == "wins_above"
    assert turned.at[0].value == pytest.approx(crossing(points, "measured").at[0].value)
    assert inverse(q(2.0, 0.5)).low == pytest.approx(0.4)

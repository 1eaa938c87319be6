"""Intervals, gates and block counts against independent references and small simulations."""

import math

import numpy as np
import pytest
import scipy.stats

from bench.analysis import stats


def brute_force_coverage(n: int, d: int) -> float:
    """P(x(d) <= median <= x(n-d+1)), from the binomial law of how many values lie below."""
    return float(scipy.stats.binom.cdf(n - d, n, 0.5) - scipy.stats.binom.cdf(d - 1, n, 0.5))


def coverage(draw, truth: float, n: int, runs: int = 4000) -> float:
    hits = 0
    for values in draw((runs, n)):
        interval = stats.median_interval(values)
        hits += interval.low <= truth <= interval.high
    return hits / runs


def ar1(rng: np.random.Generator, rows: int, n: int, rho: float) -> np.ndarray:
    noise = rng.normal(size=(rows, n + 50))
    values = np.zeros_like(noise)
    for t in range(1, n + 50):
        values[:, t] = rho * values[:, t - 1] + noise[:, t]
    return values[:, 50:]


@pytest.mark.parametrize("n", [6, 7, 10, 20, 24, 45, 90])
def test_sign_interval_is_the_narrowest_that_reaches_the_confidence(n: int) -> None:
    values = np.arange(1.0, n + 1)
    interval = stats.median_interval(values, method="exact")
    d = int(interval.low)
    assert interval.high == n - d + 1
    assert brute_force_coverage(n, d) >= 0.95 > brute_force_coverage(n, d + 1)


def test_interpolated_interval_by_hand() -> None:
    outer, inner = brute_force_coverage(10, 2), brute_force_coverage(10, 3)
    assert outer == pytest.approx(1 - 22 / 1024)
    assert inner == pytest.approx(1 - 112 / 1024)
    step = (outer - 0.95) / (outer - inner)
    weight = 8 * step / (2 + 6 * step)  # (n - d) I / (d + (n - 2d) I)
    interval = stats.median_interval([10, 9, 8, 7, 6, 5, 4, 3, 2, 1])
    assert interval.value == 5.5
    assert interval.low == pytest.approx(2 + weight)
    assert interval.high == pytest.approx(9 - weight)
    assert interval.method == "interpolated"


def test_both_methods_agree_at_a_confidence_that_the_sign_interval_reaches() -> None:
    values = np.linspace(0, 1, 12)
    confidence = brute_force_coverage(12, 3)
    interpolated = stats.median_interval(values, confidence - 1e-12)
    exact = stats.median_interval(values, confidence - 1e-12, method="exact")
    assert interpolated.low == pytest.approx(exact.low)
    assert interpolated.high == pytest.approx(exact.high)


@pytest.mark.parametrize("n", [1, 2, 5])
def test_no_interval_below_six_values(n: int) -> None:
    interval = stats.median_interval(np.arange(float(n)))
    assert (interval.low, interval.high) == (None, None)
    assert interval.half_width is None
    assert interval.value == (n - 1) / 2
    assert "too few" in interval.reason


def test_no_values_have_no_median() -> None:
    assert stats.median_interval([]).value is None


def test_fallback_to_the_sign_interval_where_nothing_can_be_interpolated() -> None:
    interval = stats.median_interval([1, 2, 3, 4], confidence=0.3)
    assert (interval.low, interval.high, interval.method) == (2, 3, "exact")


@pytest.mark.parametrize("values", [[1, math.nan], [1, math.inf], [[1, 2], [3, 4]]])
def test_values_must_be_finite_and_flat(values: list) -> None:
    with pytest.raises(ValueError, match="values must"):
        stats.median_interval(values)


@pytest.mark.parametrize("confidence", [0, 1, 1.5])
def test_confidence_lies_between_zero_and_one(confidence: float) -> None:
    with pytest.raises(ValueError, match="confidence"):
        stats.median_interval([1, 2, 3], confidence)


def test_coverage_is_near_95_per_cent_whatever_the_noise() -> None:
    rng = np.random.default_rng(20)
    shapes = {
        "normal": lambda size: rng.normal(size=size),
        "laplace": lambda size: rng.laplace(size=size),
        "cauchy": lambda size: rng.standard_cauchy(size=size),
    }
    for name, draw in shapes.items():
        for n in (10, 24):
            assert 0.935 <= coverage(draw, 0.0, n) <= 0.965, (name, n)


def test_pairing_survives_drift_and_the_unpaired_estimate_does_not() -> None:
    """Arms that drift together: paired intervals cover, those of arms timed apart are far off."""
    rng = np.random.default_rng(7)
    paired_hits = unpaired_hits = 0
    paired_width, unpaired_width = [], []
    for _ in range(400):
        drift = np.cumsum(rng.normal(0, 5, 30))
        a = 100 + drift + rng.normal(0, 1, 30)
        b = 97 + drift + rng.normal(0, 1, 30)
        paired = stats.paired_difference(a, b)
        # Unpaired: the arms ran one after the other, each with its own stretch of drift.
        later = 97 + drift[-1] + np.cumsum(rng.normal(0, 5, 30)) + rng.normal(0, 1, 30)
        one, two = stats.median_interval(a), stats.median_interval(later)
        paired_hits += paired.low <= 3 <= paired.high
        unpaired_hits += one.low - two.high <= 3 <= one.high - two.low
        paired_width.append(paired.half_width)
        unpaired_width.append(one.half_width + two.half_width)
    assert 0.92 <= paired_hits / 400 <= 0.975
    assert unpaired_hits / 400 < 0.7
    assert np.median(unpaired_width) > 10 * np.median(paired_width)


def test_paired_ratio_cancels_a_common_factor() -> None:
    speed = np.array([1, 2, 4, 8, 16, 32, 64, 128.0])
    interval = stats.paired_ratio(3 * speed, 2 * speed)
    assert interval.value == interval.low == interval.high == 1.5


def test_pairs_need_equal_lengths_and_denominators() -> None:
    with pytest.raises(ValueError, match="as many blocks"):
        stats.paired_difference([1, 2], [1])
    with pytest.raises(ValueError, match="zero"):
        stats.paired_ratio([1, 2], [1, 0])


def test_autocorrelation_of_a_known_sequence() -> None:
    # Ranks -1.5 -0.5 0.5 1.5: products 0.75 - 0.25 + 0.75 = 1.25 of 5, and 1/4 for the bias.
    assert stats.gates([10, 20, 30, 40]).lag1_autocorrelation == pytest.approx(1.25 / 5 + 1 / 4)


def test_autocorrelation_has_no_bias_for_independent_blocks() -> None:
    rng = np.random.default_rng(3)
    groups = np.repeat([0, 1, 2], 8)
    found = [stats.gates(x, groups).lag1_autocorrelation for x in rng.normal(size=(2000, 24))]
    assert abs(np.mean(found)) < 0.015


def test_gates_flag_few_healthy_rows_and_most_dependent_ones() -> None:
    rng = np.random.default_rng(11)
    groups = np.repeat([0, 1, 2], 15)

    def flagged(rho: float) -> float:
        return np.mean([bool(stats.gates(x, groups).flags) for x in ar1(rng, 1000, 45, rho)])

    assert flagged(0.0) < 0.08
    assert flagged(0.6) > 0.85


def test_gates_see_a_level_shift_within_a_run() -> None:
    rng = np.random.default_rng(5)
    step = np.repeat([0.0, 3.0], 15)
    found = [stats.gates(step + rng.normal(size=30)) for _ in range(200)]
    assert np.mean([stats.SHIFTED in g.flags for g in found]) > 0.95
    assert np.median([g.split_half_shift for g in found]) == pytest.approx(3, abs=0.2)


def test_gates_look_within_processes() -> None:
    """Processes may differ from each other: that is reported as spread, not as dependence."""
    rng = np.random.default_rng(6)
    groups = np.repeat([0, 1, 2], 10)
    level = np.repeat([0.0, 50.0, 100.0], 10)
    flags = [bool(stats.gates(level + rng.normal(size=30), groups).flags) for _ in range(500)]
    assert np.mean(flags) < 0.09
    assert stats.gates(level + rng.normal(size=30)).flags != ()


def test_split_half_shift_is_taken_within_processes() -> None:
    # Only the middle process shifts, by 6; the pooled median of raw values would say 6.
    values = np.concatenate([np.full(10, 0.0), np.repeat([47.0, 53.0], 5), np.full(10, 100.0)])
    assert stats.gates(values, np.repeat([0, 1, 2], 10)).split_half_shift == 0


def test_gates_do_not_count_negative_dependence() -> None:
    assert stats.AUTOCORRELATED not in stats.gates([1.0, -1.0] * 20).flags


def test_gates_of_too_few_and_of_equal_values() -> None:
    assert stats.gates([]) == stats.Gates(None, None, ())
    assert stats.gates([1.0, 2.0]).lag1_autocorrelation is None
    assert stats.gates([5.0] * 30) == stats.Gates(0.0, 0.0, ())


def test_shift_test_agrees_with_scipy() -> None:
    values = np.random.default_rng(9).normal(size=40)
    scores = [stats.ranks(values) - 20.5]
    p = scipy.stats.mannwhitneyu(values[20:], values[:20], use_continuity=False).pvalue
    z = stats._later_half_z(scores)
    assert 2 * scipy.stats.norm.sf(abs(z)) == pytest.approx(p, rel=1e-9)


def test_ranks_share_ties() -> None:
    assert stats.ranks(np.array([30.0, 10, 10, 20])).tolist() == [4, 1.5, 1.5, 3]


def test_between_groups_is_half_the_range_of_medians() -> None:
    spread = stats.between_groups([1, 2, 3, 11, 12, 13, 5, 6, 7], [0, 0, 0, 1, 1, 1, 2, 2, 2])
    assert spread.medians == (2, 12, 6)
    assert spread.half_range == 5


def test_one_process_has_no_spread() -> None:
    spread = stats.between_groups([1, 2, 3], [0, 0, 0])
    assert spread.half_range is None
    assert "one process" in spread.reason


def test_groups_need_one_name_per_value() -> None:
    with pytest.raises(ValueError, match="each value needs a group"):
        stats.between_groups([1, 2, 3], [0, 0])


def test_fresh_blocks_follow_the_square_of_the_width() -> None:
    pilot = np.arange(12.0)
    half_width = stats.median_interval(pilot).half_width
    assert stats.fresh_blocks_needed(pilot, half_width, minimum=1) == 30  # 2.5 * 12
    assert stats.fresh_blocks_needed(pilot, half_width / 2, minimum=1) == 120
    assert stats.fresh_blocks_needed(pilot, half_width / 9, maximum=150) == 150
    assert stats.fresh_blocks_needed(pilot, 100 * half_width) == 20


def test_fresh_blocks_mostly_meet_the_target() -> None:
    rng = np.random.default_rng(13)
    met = []
    for _ in range(300):
        n = stats.fresh_blocks_needed(rng.laplace(size=12), 0.3, maximum=1000)
        met.append(stats.median_interval(rng.laplace(size=n)).half_width <= 0.3)
    assert np.mean(met) > 0.85


def test_fresh_blocks_need_a_pilot_and_a_target() -> None:
    with pytest.raises(ValueError, match="10 blocks"):
        stats.fresh_blocks_needed(np.arange(9.0), 1)
    with pytest.raises(ValueError, match="positive"):
        stats.fresh_blocks_needed(np.arange(10.0), 0)

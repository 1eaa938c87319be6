"""Intervals of joules: coverage in thousands of planted runs, and when there are none."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest
from scipy.stats import norm

from bench.analysis.energy import Conditions, Rules, WindowEnergy
from bench.analysis.energy_trials import ArmEnergy, combine, difference, ratio
from profiles.schema import Quantity

A_J, B_J, LAYER_S, IDLE_W = 0.30, 0.27, 1e-3, 60.0
RUNS = 2000
COVERED = (0.93, 0.985)
T3 = 3.182446  # Student's t, 97.5 %, 3 degrees of freedom, from a printed table


def trial(
    gross_j: float,
    tick: float = 0.0,
    gain: float = 0.05,
    idle_w: float = IDLE_W,
    layer_s: float = LAYER_S,
    offset_w: float = 0.0,
) -> WindowEnergy:
    return WindowEnergy(
        source="energy_j",
        gross_j=gross_j,
        net_j=gross_j - idle_w * layer_s,
        tick_j=tick * gross_j,
        power_w=gross_j / layer_s,
        idle_w=idle_w,
        idle_before_w=idle_w,
        idle_after_w=idle_w,
        layer_s=layer_s,
        gain_uncertainty=gain,
        offset_uncertainty_w=offset_w,
    )


def refused(reason: str) -> WindowEnergy:
    return WindowEnergy(reason=reason)


@dataclass(frozen=True)
class Scenario:
    """What is planted, as shares of the joules.

    Attributes:
        own: standard deviation of a trial.
        shared: of a round, common to both arms.
        tick: 95 % half-width of an error that all trials of an arm share.
        gain: 95 % half-width of the sensor's gain; 0 where it is known.
        offset_w: 95 % half-width of the sensor's offset; arm b then takes half the time of arm a.
        uniform: the gain is uniform within its half-width instead of normal.
        trials: of each arm.
    """

    own: float
    shared: float = 0.0
    tick: float = 0.0
    gain: float = 0.05
    offset_w: float = 0.0
    uniform: bool = False
    trials: int = 4


SCENARIOS = {
    "spread alone": Scenario(0.01, gain=0.0),
    "spread of many trials": Scenario(0.01, gain=0.0, trials=12),
    "rounds that move both arms": Scenario(0.002, shared=0.015, gain=0.0),
    "tick and spread": Scenario(0.004, tick=0.006, gain=0.0),
    "gain and spread": Scenario(0.012, gain=0.05),
    "gain alone": Scenario(0.0003, gain=0.05),
    "as on a board": Scenario(0.003, shared=0.003, tick=0.0016, gain=0.05),
    "two trials": Scenario(0.01, gain=0.0, trials=2),
    "offset alone": Scenario(0.0003, gain=0.0, offset_w=22.6),
    "offset and gain": Scenario(0.002, shared=0.002, gain=0.05, offset_w=10.0),
}


def simulate(s: Scenario, seed: int) -> tuple[ArmEnergy, ArmEnergy]:
    rng = np.random.default_rng(seed)
    sigma = s.gain / norm.ppf(0.975)
    gain = 1 + (rng.uniform(-s.gain, s.gain) if s.uniform else rng.normal() * sigma)
    offset_w = rng.normal() * s.offset_w / norm.ppf(0.975)
    rounds = rng.normal(size=s.trials) * s.shared
    arms = []
    for true_j, layer_s in ((A_J, LAYER_S), (B_J, LAYER_S / 2 if s.offset_w else LAYER_S)):
        tick = rng.normal() * s.tick / norm.ppf(0.975)
        errors = rng.normal(size=s.trials) * s.own + rounds + tick
        read_j = gain * true_j + offset_w * layer_s
        trials = [
            trial(read_j * (1 + e), s.tick, s.gain, layer_s=layer_s, offset_w=s.offset_w)
            for e in errors
        ]
        arms.append(combine(trials, "simulated"))
    return arms[0], arms[1]


def covers(q: Quantity, truth: float) -> bool:
    assert q.low is not None
    assert q.high is not None
    return q.low <= truth <= q.high


@pytest.mark.parametrize("name", SCENARIOS)
def test_intervals_cover_the_planted_joules(name: str) -> None:
    """The gain is drawn normally, with its uncertainty as the 95 % half-width."""
    scenario = SCENARIOS[name]
    found = np.zeros(3)
    for seed in range(RUNS):
        a, b = simulate(scenario, seed)
        found += [
            covers(a.gross_j, A_J),
            covers(difference(a, b, "simulated"), A_J - B_J),
            covers(ratio(a, b, "simulated"), A_J / B_J),
        ]
    gross, between, over = found / RUNS
    assert COVERED[0] <= gross <= COVERED[1]
    assert COVERED[0] <= over <= COVERED[1]
    assert COVERED[0] <= between <= COVERED[1]


def test_a_uniform_gain_is_covered_no_less_often() -> None:
    scenario = replace(SCENARIOS["gain alone"], uniform=True)
    held = [covers(simulate(scenario, seed)[0].gross_j, A_J) for seed in range(500)]
    assert np.mean(held) >= 0.95


def test_an_interval_without_the_gain_would_not_cover() -> None:
    """What the coverage test is there to see."""
    held = 0
    for seed in range(500):
        a, _ = simulate(SCENARIOS["gain and spread"], seed)
        blind = combine([replace(t, gain_uncertainty=0.0) for t in a.trials], "simulated")
        held += covers(blind.gross_j, A_J)
    assert held / 500 < 0.75


def test_a_ratio_without_the_offset_would_be_wrong_and_sure() -> None:
    """Published for one 4090: 1.044 x - 22.6 W. Two arms of 300 J and 150 W make a ratio of 2.17, not 2."""
    read = [
        combine(
            [trial((1.044 * w - 22.6) * LAYER_S * e, gain=0.05, offset_w=o) for e in (1, 1.001)]
        )
        for o in (22.6, 0.0)
        for w in (300.0, 150.0)
    ]
    with_offset, blind = ratio(read[0], read[1]), ratio(read[2], read[3])
    assert with_offset.value == blind.value == pytest.approx(2.169, abs=0.001)
    assert covers(with_offset, 2.0)
    assert not covers(blind, 2.0)
    # 22.6 W over 134 W, of a ratio that is 2.17 - 1 away from where the offset would cancel
    assert half(with_offset) == pytest.approx(22.6 * 1.169 / 134.0, rel=0.05)


def test_an_offset_cancels_in_net_joules_and_counts_in_watts() -> None:
    arm = combine([trial(A_J * e, gain=0.0, offset_w=8.0) for e in (1, 1, 1)])
    assert half(arm.gross_j) == pytest.approx(8.0 * LAYER_S)
    assert half(arm.power_w) == half(arm.idle_w) == pytest.approx(8.0)
    assert half(arm.net_j) == pytest.approx(0.0, abs=1e-12)
    assert half(arm.layer_s) == pytest.approx(0.0, abs=1e-12)


def test_unpaired_differences_would_be_wide() -> None:
    a, b = simulate(SCENARIOS["rounds that move both arms"], 1)
    paired = difference(a, b)
    apart = math.hypot(half(a.gross_j), half(b.gross_j))
    assert half(paired) < apart / 3


def half(q: Quantity) -> float:
    assert q.low is not None
    assert q.high is not None
    return (q.high - q.low) / 2


def test_the_width_by_hand() -> None:
    joules = [0.300, 0.302, 0.298, 0.304]
    arm = combine([trial(x, tick=0.002) for x in joules], "measured")
    mean, sd = 0.301, math.sqrt((1e-6 + 1e-6 + 9e-6 + 9e-6) / 3)
    parts = (T3 * sd / 2, 0.002 * mean, 0.05 * mean)
    assert arm.gross_j.value == pytest.approx(mean)
    assert half(arm.gross_j) == pytest.approx(math.sqrt(sum(p * p for p in parts)), rel=1e-5)
    assert (arm.gross_j.n, arm.gross_j.kind, arm.source) == (4, "measured", "energy_j")
    assert arm.net_j.value == pytest.approx(mean - 0.060)
    assert arm.power_w.value == pytest.approx(301)
    assert arm.idle_w.value == pytest.approx(60)
    assert half(arm.idle_w) == pytest.approx(3)
    assert (arm.layer_s.value, half(arm.layer_s)) == (pytest.approx(1e-3), pytest.approx(0))
    assert arm.spread == pytest.approx(0.006 / mean)
    assert arm.usable == 4


def test_gain_takes_its_share_of_a_difference_and_none_of_a_ratio() -> None:
    a = combine([trial(A_J)] * 4)
    b = combine([trial(B_J)] * 4)
    assert difference(a, b).value == pytest.approx(0.03)
    assert half(difference(a, b)) == pytest.approx(0.05 * 0.03)
    assert half(difference(b, a)) == pytest.approx(0.05 * 0.03)
    assert ratio(a, b).value == pytest.approx(10 / 9)
    assert half(ratio(a, b)) == pytest.approx(0, abs=1e-12)
    assert difference(a, b, which="net_j").value == pytest.approx(0.03)
    assert ratio(a, b, which="net_j").value == pytest.approx(24 / 21)


def test_idle_that_drifts_widens_net_joules() -> None:
    steady = trial(A_J, gain=0.0)
    drifting = replace(steady, idle_before_w=55.0, idle_after_w=65.0)
    assert half(combine([steady] * 4).net_j) == pytest.approx(0)
    assert half(combine([drifting] * 4).net_j) == pytest.approx(5 * LAYER_S)
    assert half(combine([drifting] * 4).gross_j) == pytest.approx(0)


def test_too_few_trials_are_refused_with_the_reason_of_one() -> None:
    arm = combine([refused("the GPU was lost"), trial(A_J), refused("frozen")], "simulated")
    assert arm.reason == "1 of 3 trials can be used; 2 are needed; trial 1: the GPU was lost"
    for q in (arm.gross_j, arm.net_j, arm.power_w, arm.idle_w, arm.layer_s):
        assert q.value is None
        assert (q.reason, q.kind) == (arm.reason, "simulated")
    assert (arm.usable, arm.spread, arm.source) == (1, None, "")
    assert len(arm.trials) == 3
    whole = combine([trial(B_J)] * 3)
    assert difference(arm, whole).reason == arm.reason
    assert ratio(whole, arm).reason == arm.reason
    assert combine([]).reason == "0 of 0 trials can be used; 2 are needed"


def test_trials_that_disagree_are_refused() -> None:
    arm = combine([trial(x) for x in (0.28, 0.30, 0.30, 0.32)])
    assert arm.gross_j.value is None
    assert "4 trials range over 13% of their mean, more than 10%" in arm.reason
    assert arm.spread == pytest.approx(0.04 / 0.30)
    wider = combine(arm.trials, rules=Rules(trial_range=0.2))
    assert wider.gross_j.value == pytest.approx(0.30)


def test_rounds_are_paired_by_place() -> None:
    a = combine([trial(0.30), refused("x"), trial(0.31), trial(0.32)])
    b = combine([trial(0.27), trial(0.50 / 1.9), trial(0.28), trial(0.29)])
    assert difference(a, b).value == pytest.approx(0.03)
    assert difference(a, b).n == 3
    other = combine([refused("x"), trial(0.27), refused("y"), trial(0.28)])
    assert difference(a, other).reason == "1 rounds have both arms; 2 are needed"


def test_channels_are_not_mixed() -> None:
    power = replace(trial(0.2), source="power_instant_w")
    arm = combine([trial(0.30), power, trial(0.31), trial(0.30)])
    assert (arm.source, arm.usable) == ("energy_j", 3)
    assert arm.gross_j.value == pytest.approx(0.91 / 3)
    other = combine([power] * 4)
    assert difference(arm, other).reason == (
        "one arm was read from the energy counter, the other from the instantaneous power"
    )


def test_net_joules_may_be_missing_alone() -> None:
    arm = combine([replace(trial(A_J), net_j=None, idle_w=None, idle_reason="no idle time")] * 4)
    assert arm.gross_j.value == pytest.approx(A_J)
    assert arm.net_j.reason == "0 of 4 trials have it: no idle time"
    assert difference(arm, arm, which="net_j").reason == arm.net_j.reason


@pytest.mark.parametrize(
    ("shares", "throttled"),
    [((None, None), None), ((0.0, None), False), ((0.0, 0.2), True)],
)
def test_throttling_of_any_trial_is_kept(
    shares: tuple[float | None, ...], throttled: bool | None
) -> None:
    trials = [replace(trial(A_J), conditions=Conditions(throttle_share=s)) for s in shares]
    assert combine(trials).throttled is throttled


SCALED: tuple[Callable[[ArmEnergy, ArmEnergy], Quantity], ...] = (difference, ratio)


@pytest.mark.parametrize("between", SCALED)
def test_the_gain_of_a_board_scales_both_arms(
    between: Callable[[ArmEnergy, ArmEnergy], Quantity],
) -> None:
    def arms(gain: float) -> tuple[ArmEnergy, ArmEnergy]:
        rng = np.random.default_rng(4)
        a, b = rng.normal(1, 0.002, size=(2, 4))
        return combine([trial(gain * A_J * x) for x in a]), combine(
            [trial(gain * B_J * x) for x in b]
        )

    plain, scaled = between(*arms(1.0)), between(*arms(0.95))
    assert plain.value is not None
    factor = 0.95 if between is difference else 1.0
    assert scaled.value == pytest.approx(factor * plain.value)
    assert half(scaled) == pytest.approx(factor * half(plain))

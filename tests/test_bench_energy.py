"""Joules of one window: planted power found again, and every fault a reason instead of a wrong joule."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from simulated_meters import (
    BOARDS,
    BUSY_W,
    HEALTHY,
    IDLE_W,
    LAYER_S,
    Trial,
    board_traits,
    constant,
    in_step,
    run,
    throttling,
    update_phase_s,
)

from bench.analysis.energy import SMOKE, Rules, window_joules
from bench.analysis.traces import POWERS, Load, Trace, Window
from bench.measure.power.simulated import Errors, Faults
from profiles.sensors import Traits

TRUE_J, NET_J = BUSY_W * LAYER_S, (BUSY_W - IDLE_W) * LAYER_S
H100, A100, A10, V100 = (board_traits(b) for b in ("H100", "A100", "A10", "V100"))
RAPL = Traits(
    missing={"update_s": "it only counts"},
    model="RAPL",
    update_s=None,
    averaging_s={},
    counter_update_s=0.001,
    lag_s=0.0,
)


def altered(window: Window, change: Callable[[dict[str, np.ndarray]], None]) -> Window:
    values = {c: v.copy() for c, v in window.trace.values.items()}
    change(values)
    return replace(window, trace=replace(window.trace, values=values))


@pytest.mark.parametrize("board", BOARDS)
def test_every_channel_finds_the_planted_joules_at_any_phase(board: str) -> None:
    traits = board_traits(board)
    for seed in range(6):
        energy = run(traits, constant, delay_s=0.017 * seed, seed=seed).ours
        assert energy.reason == energy.idle_reason == ""
        assert energy.source == "energy_j"
        assert energy.gross_j == pytest.approx(TRUE_J, rel=0.004)
        assert energy.net_j == pytest.approx(NET_J, rel=0.01)
        assert energy.power_w == pytest.approx(BUSY_W, rel=0.004)
        assert energy.idle_w == pytest.approx(IDLE_W, rel=0.02)
        assert energy.layer_s == pytest.approx(LAYER_S, rel=1e-6)
        assert energy.disagreement is not None
        assert energy.disagreement < 0.005
        assert [s.channel for s in energy.sources] == ["energy_j", *traits.averaging_s]
        for source in energy.sources:
            assert source.reason == ""
            assert source.gross_j == pytest.approx(TRUE_J, rel=0.004)
            assert source.updates >= 50
            assert source.window_s > 4.9


def test_the_tick_error_is_as_large_as_polls_leave_open() -> None:
    """Of many windows at any phase 95 % lie within it, and not all of them far within."""
    off = []
    for seed in range(60):
        energy = run(A100, constant, seed=seed, delay_s=0.0013 * seed, rules=SMOKE).ours
        assert energy.gross_j is not None
        assert energy.tick_j is not None
        off.append((energy.gross_j - TRUE_J) / energy.tick_j)
    assert np.mean(np.abs(off) < 1) >= 0.93
    assert np.max(np.abs(off)) > 0.4


def test_gain_and_offset_stay_in_the_joules() -> None:
    errors = replace(HEALTHY, gain=0.954, offset_w=-1.2)
    energy = run(A100, constant, errors=errors).ours
    assert energy.gross_j == pytest.approx((0.954 * BUSY_W - 1.2) * LAYER_S, rel=0.004)
    assert energy.net_j == pytest.approx(0.954 * NET_J, rel=0.01)
    assert energy.gain_uncertainty == 0.05


def test_a_known_lag_is_taken_out() -> None:
    """Throttling at a moment that the sensor reports 0.4 s later."""
    lag_s = 0.4
    known = A100.model_copy(update={"lag_s": lag_s, "missing": {}})
    true_j, right = _over_the_window(run(known, throttling, seed=3))
    assert right == pytest.approx(true_j, rel=0.004)
    late = run(A100, throttling, seed=3, lag_s=lag_s)
    true_j, wrong = _over_the_window(late)
    assert abs(wrong / true_j - 1) > 0.01


def _over_the_window(trial: Trial) -> tuple[float, float]:
    """Joules per layer that were planted between the first and the last reading, and those found."""
    source = trial.ours.sources[0]
    (began_s, _), (middle_s, first), (ended_s, layers) = trial.window.load.marks
    a, b = source.time_s[[0, -1]]
    joules = BUSY_W * (middle_s - a) + 0.7 * BUSY_W * (b - middle_s)
    fast = first * (middle_s - a) / (middle_s - began_s)
    slow = (layers - first) * (b - middle_s) / (ended_s - middle_s)
    assert source.gross_j is not None
    return joules / (fast + slow), source.gross_j


def test_throttling_is_counted_where_it_happened_and_flagged() -> None:
    trial = run(H100, throttling)
    for source in trial.ours.sources:
        assert source.gross_j == pytest.approx(trial.true_j, rel=0.01)
    seen = trial.ours.conditions
    assert seen.throttled
    assert seen.throttle_share == pytest.approx(0.5, abs=0.02)
    assert seen.sm_clock_mhz == pytest.approx(1200, rel=0.01)
    assert (seen.temperature_begin_c, seen.temperature_end_c) == (60.0, 85.0)
    assert seen.memory_clock_mhz is None


@pytest.mark.parametrize(
    ("bits", "throttled"),
    [
        (0x04, True),
        (0x08, True),
        (0x20, True),
        (0x40, True),
        (0x80, True),
        (0x13, False),
        (0x700, False),
    ],
)
def test_which_reasons_are_throttling(bits: int, throttled: bool) -> None:
    def change(values: dict[str, np.ndarray]) -> None:
        values["event_reasons"][:] = bits

    window = altered(run(A100, constant).window, change)
    assert window_joules(window, A100).conditions.throttled is throttled
    assert window_joules(run(A100, constant).window, A100).conditions.throttled is None


def test_a_counter_alone_and_one_that_is_faster_than_polls() -> None:
    trial = run(RAPL, constant)
    assert trial.ours.gross_j == pytest.approx(TRUE_J, rel=0.002)
    assert trial.ours.net_j == pytest.approx(NET_J, rel=0.005)
    assert [s.channel for s in trial.ours.sources] == ["energy_j"]


def test_the_smoke_rules_take_two_seconds() -> None:
    trial = run(H100, constant, rules=SMOKE)
    assert trial.ours.gross_j == pytest.approx(TRUE_J, rel=0.01)
    assert trial.ours.net_j == pytest.approx(NET_J, rel=0.02)
    assert trial.window.load.ended_s - trial.window.load.began_s < 4
    assert "the load lasted 3.4" in window_joules(trial.window, H100).reason


# Fault, at so many seconds after the load began; channels that are left; what is said.
Fault = Callable[[float], Faults]
ALL = ("energy_j", *POWERS)
FAULTS: dict[str, tuple[Fault, tuple[str, ...], str]] = {
    "frozen": (lambda t: Faults(frozen_s=t + 4), (), r"stood still for \d.*bit for bit for \d.*frozen"),
    "frozen from the beginning": (lambda t: Faults(frozen_s=t - 9), (), r"did not move during 7.20 s.*frozen"),
    "zero": (lambda t: Faults(zero_s=t + 4), (), r"fell from .* to 0.000 J .*\d+ of its \d+ readings are 0 W"),
    "zero from the beginning": (lambda t: Faults(zero_s=t - 9), (), r"did not move.*720 of its 720 readings"),
    "NaN": (lambda t: Faults(nan_s=t + 4), (), r"readings end 3.\d\d s before the load does"),
    "NaN from the beginning": (lambda t: Faults(nan_s=t - 9), (), "it has no value$"),
    "reset": (lambda t: Faults(reset_s=t + 4), POWERS, r"fell from 6\d{4}.* to \d.* 3.9\d s after .*reset"),
    "wrap": (lambda t: Faults(wrap_j=1500.0), POWERS, r"fell from 1[45]\d\d.*wrapped"),
    "lost": (lambda t: Faults(lost_s=t + 4), (), r"readings end 3.\d\d s before the load does: GPU is lost"),
    "slow": (lambda t: Faults(slow=((t + 4, 0.2),)), ("energy_j",), r"of up to 0.2\d\d s .* cover 0.4\d s"),
    "slow often": (
        lambda t: Faults(slow=tuple((t + k / 4, 0.2) for k in range(40))),
        (),
        r"45 updates over .* gaps between polls of up to 0.\d\d\d s",
    ),
    "no counter": (lambda t: Faults(missing={"energy_j": "Not Supported"}), POWERS, "no value: Not Supported"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_leaves_a_reason_or_the_right_joules(name: str) -> None:
    fault, left, said = FAULTS[name]
    energy = run(H100, constant, faults=fault).ours
    assert tuple(s.channel for s in energy.sources if s.gross_j is not None) == left
    reasons = "; ".join(s.reason for s in energy.sources if s.reason)
    assert re.search(said, reasons), reasons
    if left:
        assert energy.source == left[0]
        assert energy.gross_j == pytest.approx(TRUE_J, rel=0.01)
    else:
        assert energy.gross_j is energy.net_j is energy.tick_j is None
        assert re.search(said, energy.reason), energy.reason
        assert energy.source == ""


@pytest.mark.parametrize("traits", [V100, A10], ids=["V100", "A10"])
@pytest.mark.parametrize("at_s", [-5.0, -1.0, 0.3, 1.7, 3.3, 5.0, 6.3, 7.0, 8.0, 9.5])
def test_no_fault_at_any_moment_makes_a_wrong_joule(traits: Traits, at_s: float) -> None:
    for fault in ("frozen_s", "zero_s", "nan_s", "lost_s", "reset_s"):
        energy = run(traits, constant, faults=lambda t, f=fault: Faults(**{f: t + at_s})).ours
        if energy.gross_j is not None:
            assert energy.gross_j == pytest.approx(TRUE_J, rel=0.01), fault
            assert energy.net_j is None or energy.net_j == pytest.approx(NET_J, rel=0.02), fault
        else:
            assert energy.reason


def test_one_hiccup_of_a_poll_is_no_gap() -> None:
    slow = Faults(slow=((1006.0, 0.06), (1007.0, 0.06)))
    energy = run(H100, constant, faults=lambda t: slow).ours
    assert all(s.gross_j == pytest.approx(TRUE_J, rel=0.01) for s in energy.sources)


def test_a_short_load_is_refused_before_anything_else() -> None:
    window = run(H100, constant).window
    load = window.load
    short = replace(window, load=Load(((load.ended_s - 1.5, 0), (load.ended_s, 1500))))
    energy = window_joules(short, H100)
    assert energy.reason == "the load lasted 1.50 s, less than the 5 s needed"
    assert energy.sources == ()


def test_few_updates_and_short_windows_are_refused_with_numbers() -> None:
    window = run(A100, constant).window
    few = window_joules(window, A100, Rules(updates=100))
    said = r"5\d updates over 5\.\d\d s of steady load are too few; 100 over 5 s are needed"
    assert re.fullmatch(
        f"the energy counter: {said}; the instantaneous power: {said}|"
        f"the energy counter and the instantaneous power: {said}",
        few.reason,
    )
    short = window_joules(window, A100, Rules(window_s=6.0))
    assert "s of steady load are too few; 50 over 6 s are needed" in short.reason


def test_channels_that_disagree_are_not_believed() -> None:
    window = run(A100, constant).window

    def scale(by: float) -> Window:
        def change(values: dict[str, np.ndarray]) -> None:
            values["power_instant_w"] *= by

        return altered(window, change)

    energy = window_joules(scale(1.1), A100)
    assert energy.gross_j is None
    assert re.fullmatch(
        r"the energy counter says (299|300)\.\d W and the instantaneous power (329|330)\.\d W "
        r"over the same 5\.\d\d s: they disagree by (9\.9|10\.0|10\.1)%",
        energy.reason,
    )
    assert energy.disagreement == pytest.approx(0.1, abs=0.003)
    assert window_joules(scale(1.04), A100).gross_j == pytest.approx(TRUE_J, rel=0.004)


def test_a_part_time_sensor_refuses_a_load_that_is_not_steady() -> None:
    """Gaps of 70 ms every 170 ms: no multiple of the sensor's period, so readings scatter."""

    def unsteady(curve, began_s, lasts_s, traits):  # type: ignore[no-untyped-def]
        from simulated_meters import gapped

        return gapped(curve, began_s, lasts_s, 0.1, 0.07)

    energy = run(A100, unsteady).ours
    assert re.search(
        r"not steady: the instantaneous power scatters by \d\d%.*more than 10%, and the sensor sees 25%",
        energy.reason,
    )
    full_time = run(board_traits("2080 Ti"), unsteady)
    assert full_time.ours.gross_j == pytest.approx(full_time.true_j, rel=0.03)


def test_gaps_in_step_with_the_sensor_fool_it_and_the_counter_tells() -> None:
    energy = run(A100, in_step).ours
    assert energy.gross_j is None
    assert "they disagree by" in energy.reason
    assert energy.part_time


def test_without_enough_idle_time_there_are_no_net_joules() -> None:
    window = run(H100, constant).window
    for at, said in (("idle_before_s", "idle before has"), ("idle_after_s", "idle after has")):
        energy = window_joules(replace(window, **{at: 0.4}), H100)
        assert energy.gross_j == pytest.approx(TRUE_J, rel=0.01)
        assert energy.net_j is energy.idle_w is None
        assert said in energy.idle_reason


def test_a_channel_of_which_nothing_is_known_is_shown_and_not_used() -> None:
    window = run(H100, constant, faults=lambda t: Faults(missing={"energy_j": "no"})).window
    unknown = A100.model_copy(
        update={"counter_update_s": None, "missing": {"counter_update_s": "?"}}
    )
    energy = window_joules(window, unknown)
    assert [s.channel for s in energy.sources if s.gross_j is None] == ["power_average_w"]
    assert "not known for this board" in energy.sources[1].reason
    assert energy.source == "power_instant_w"


def test_a_trace_without_channels_says_so() -> None:
    window = run(
        RAPL, constant, faults=lambda t: Faults(missing={"energy_j": "Permission denied"})
    ).window
    assert (
        window_joules(window, RAPL).reason
        == "the energy counter: it has no value: Permission denied"
    )
    nothing = RAPL.model_copy(update={"counter_update_s": None})
    assert window_joules(window, nothing).reason == (
        "the sensor has neither an energy counter nor a power reading"
    )
    for count, said in ((0, "it has no value"), (1, "it has one value")):
        few = run(H100, constant).window
        few = replace(few, trace=Trace.of(few.trace.readings()[:count]))
        assert said in window_joules(few, H100).reason


@pytest.mark.parametrize("board", BOARDS)
def test_the_phase_of_the_updates_is_found(board: str) -> None:
    traits = board_traits(board)
    assert traits.update_s is not None
    for seed in range(5):
        trial = run(traits, constant, seed=seed, errors=Errors(jitter_s=0.001))
        found = update_phase_s(trial.window.trace, traits)
        # The phase that this seed draws: the first number of its first stream.
        planted = np.random.default_rng((seed, 0, 0)).random() * traits.update_s
        assert found is not None
        off = (found - planted + traits.update_s / 2) % traits.update_s - traits.update_s / 2
        assert abs(off) <= 0.006
    no_power = altered(trial.window, lambda v: [v[c].fill(np.nan) for c in POWERS])
    assert update_phase_s(no_power.trace, traits) is None
    assert update_phase_s(trial.window.trace, RAPL) is None

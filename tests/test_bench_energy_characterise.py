"""Characterisation against sensors whose periods, windows and lags are planted."""

from __future__ import annotations

import re
from functools import cache

import numpy as np
import pytest

from bench.analysis.characterise import Characterisation, characterise, square_wave
from bench.analysis.energy import window_joules
from bench.analysis.traces import Trace
from bench.measure.power import poll
from bench.measure.power.simulated import Errors, PowerCurve, SimulatedSensor, VirtualClock
from profiles.schema import Quantity
from profiles.sensors import Traits, load_boards, published_traits

IDLE_W, BUSY_W = 60.0, 300.0
LAG_S = 0.03
RAPL = Traits(
    missing={"update_s": "it only counts"},
    model="RAPL",
    update_s=None,
    averaging_s={},
    counter_update_s=0.001,
    lag_s=0.0,
)


def record(
    traits: Traits,
    *,
    seed: int = 0,
    lag_s: float = LAG_S,
    noise_w: float = 0.5,
    busy_w: float = BUSY_W,
    poll_s: float = 0.005,
    gain: float = 1.0,
) -> tuple[Trace, list[float]]:
    """A square wave on a sensor, polled with up to 5 ms of jitter."""
    clock, curve = VirtualClock(100.0), PowerCurve(IDLE_W)
    t, switched = clock.now_s(), []
    for step in square_wave():
        if step.on:
            curve.add(t, t + step.seconds, busy_w)
        if step.on or switched:
            switched.append(t)
        t += step.seconds
    errors = Errors(jitter_s=0.005, noise_w=noise_w, gain=gain)
    sensor = SimulatedSensor(curve, clock, traits, seed=seed, errors=errors, lag_s=lag_s)
    trace, _ = poll(sensor, clock, lambda: clock.now_s() >= t, poll_s)
    return trace, switched


@cache
def found(board: str, seed: int = 0) -> Characterisation:
    traits = RAPL if board == "RAPL" else published_traits(board)
    assert traits is not None
    return characterise(*record(traits, seed=seed), "simulated")


def holds(q: Quantity, truth: float) -> bool:
    assert q.low is not None
    assert q.high is not None
    return q.low <= truth <= q.high


@pytest.mark.parametrize("board", load_boards())
def test_every_published_sensor_is_found(board: str) -> None:
    traits, result = published_traits(board), found(board)
    assert traits is not None
    assert result.reason == ""
    names = {c.channel for c in result.channels}
    assert names == {*traits.averaging_s} | ({"energy_j"} if traits.counter_update_s else set())
    for channel in result.channels:
        counter = channel.channel == "energy_j"
        update_s = traits.counter_update_s if counter else traits.update_s
        assert update_s is not None
        assert channel.update_s.value == pytest.approx(update_s, rel=1e-3)
        assert channel.lag_s.value == pytest.approx(LAG_S, abs=0.004)
        assert holds(channel.lag_s, LAG_S)
        assert channel.idle_w == pytest.approx(IDLE_W, abs=0.5)
        assert channel.swing_w == pytest.approx(BUSY_W - IDLE_W, rel=0.005)
        assert channel.averaging_s.kind == channel.update_s.kind == "simulated"
        if counter:
            assert channel.averaging_s.value is None
            assert "misses no time" in channel.averaging_s.reason
            continue
        averaging_s = traits.averaging_s[channel.channel]
        assert channel.averaging_s.value == pytest.approx(averaging_s, rel=0.02)
        assert channel.duty_cycle.value == pytest.approx(
            traits.duty_cycle(channel.channel), rel=0.02
        )
        assert channel.residual_w == pytest.approx(0.5, rel=0.2)


def test_intervals_hold_the_planted_values() -> None:
    """Of 24 sensors of one board, each with another phase and noise."""
    held = np.zeros(3)
    for seed in range(24):
        channel = found("A100", seed).channel("power_instant_w")
        assert channel is not None
        held += [
            holds(channel.update_s, 0.1),
            holds(channel.averaging_s, 0.025),
            holds(channel.lag_s, LAG_S),
        ]
    assert held.min() >= 20  # of 24: fewer than 1 in 100 runs of 95 % intervals have fewer


@pytest.mark.parametrize("lag_s", [0.0, 0.008, 0.12, 0.35])
def test_lags_are_told_from_averaging_windows(lag_s: float) -> None:
    traits = published_traits("A100")
    assert traits is not None
    result = characterise(*record(traits, lag_s=lag_s, seed=2))
    channel = result.channel("power_instant_w")
    assert channel is not None
    assert channel.lag_s.value == pytest.approx(lag_s, abs=0.004)
    assert channel.averaging_s.value == pytest.approx(0.025, rel=0.02)


def test_periods_that_nobody_published_are_found() -> None:
    odd = Traits(
        model="x",
        update_s=0.0427,
        averaging_s={"power_instant_w": 0.0711, "power_average_w": 0.613},
        counter_update_s=0.217,
        lag_s=0.051,
    )
    result = characterise(*record(odd, seed=1, noise_w=3.0, gain=0.94))
    traits = result.traits("NVIDIA New")
    assert traits is not None
    assert traits.update_s == pytest.approx(0.0427, rel=1e-3)
    assert traits.averaging_s == {
        "power_instant_w": pytest.approx(0.0711, rel=0.02),
        "power_average_w": pytest.approx(0.613, rel=0.02),
    }
    assert traits.counter_update_s == pytest.approx(0.217, rel=1e-3)
    assert traits.lag_s == pytest.approx(0.051, abs=0.004)
    assert (traits.source, traits.model) == ("characterised", "NVIDIA New")
    assert "square wave" in traits.origin


def test_a_counter_that_is_faster_than_polls_is_given_a_bound() -> None:
    result = found("RAPL")
    (channel,) = result.channels
    assert channel.reason == ""
    assert channel.update_s.low == 0.0
    assert channel.update_s.high is not None
    assert 0.001 < channel.update_s.high <= 0.011
    assert "no more frequent than its updates" in channel.update_s.reason
    assert holds(channel.lag_s, 0.0)
    assert channel.swing_w == pytest.approx(BUSY_W - IDLE_W, rel=0.01)
    traits = result.traits("RAPL")
    assert traits is not None
    assert (traits.update_s, traits.averaging_s) == (None, {})


def test_characterised_traits_measure_joules() -> None:
    from simulated_meters import board_traits, constant, run

    result = found("H100 PCIe").traits("H100")
    assert result is not None
    trial = run(board_traits("H100"), constant, lag_s=LAG_S)
    energy = window_joules(trial.window, result)
    assert energy.reason == ""
    assert energy.gross_j == pytest.approx(trial.true_j, rel=0.004)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"busy_w": IDLE_W},
            r"the instantaneous power: the load explains [0-9]% of how it changes",
        ),
        (
            {"busy_w": IDLE_W, "noise_w": 0.0},
            r"the instantaneous power: it changed 0 times in 3\d\.\d s",
        ),
        (
            {"busy_w": IDLE_W + 5, "noise_w": 20.0},
            r"the instantaneous power: the load explains \d+% .*noisy",
        ),
        ({"busy_w": 20.0}, r"the instantaneous power: the load explains"),
    ],
    ids=["constant", "constant and quiet", "noisy", "less power under load"],
)
def test_nothing_is_found_where_nothing_follows_the_load(
    options: dict[str, float], said: str
) -> None:
    traits = published_traits("P100")
    assert traits is not None
    result = characterise(*record(traits, **options))  # type: ignore[arg-type]
    (channel,) = result.channels
    assert channel.update_s.value is channel.averaging_s.value is channel.lag_s.value is None
    assert result.traits("x") is None
    assert re.search(said, result.reason), result.reason


def test_a_load_that_ran_at_other_times_is_not_believed() -> None:
    traits = published_traits("RTX 3090")
    assert traits is not None
    trace, switched = record(traits)
    result = characterise(trace, [s + 1.7 for s in switched])
    assert re.search("does not follow the load|before it happens", result.reason)
    assert all(c.reason for c in result.channels)


def test_a_sensor_without_channels_says_so() -> None:
    trace, switched = record(RAPL)
    trace.values["energy_j"][:] = np.nan
    result = characterise(trace, switched)
    assert result.channels == ()
    assert result.reason == "the sensor has neither an energy counter nor a power reading"
    with pytest.raises(ValueError, match="each after the one before"):
        characterise(trace, [2.0, 1.0])
    with pytest.raises(ValueError, match="two moments"):
        characterise(trace, [])


def test_the_plan_alternates_and_keeps_no_period() -> None:
    steps = square_wave()
    assert [s.on for s in steps] == [i % 2 == 1 for i in range(len(steps))]
    assert 30 < sum(s.seconds for s in steps) < 40
    pulses = [s.seconds for s in steps[1:-3]]
    assert min(pulses) >= 0.06
    assert max(pulses) <= 0.5
    ends = np.cumsum([s.seconds for s in steps])[1:-3]
    for period_s in (0.02, 0.1, 0.101, 0.104):
        # Edges fall everywhere within an update period: no tenth of it is without.
        tenths, _ = np.histogram(ends % period_s, bins=10, range=(0, period_s))
        assert tenths.min() >= 3

"""The simulated sensor against sums over fine steps, and its faults."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from bench.measure.power import Sensor, SensorError, poll
from bench.measure.power.simulated import (
    UPTIME_S,
    Errors,
    Faults,
    PowerCurve,
    SimulatedSensor,
    VirtualClock,
)
from profiles.sensors import Traits

HEALTHY = Faults()
QUIET = Errors(noise_w=0.0, step_w=0.0, step_j=0.0)
TRAITS = Traits(
    model="x",
    update_s=0.1,
    averaging_s={"power_instant_w": 0.025, "power_average_w": 1.0},
    counter_update_s=0.1,
    lag_s=0.03,
)


def planted() -> PowerCurve:
    """Steps, a ramp, and idle times between."""
    curve = PowerCurve(50.0)
    curve.add(1.0, 1.5, 200.0)
    curve.add(1.5, 2.25, 200.0, 320.0)
    curve.add(2.4, 3.1, 400.0, 100.0)
    return curve


def watts(t: np.ndarray) -> np.ndarray:
    """The same, written down once more."""
    return np.select(
        [
            (t >= 1.0) & (t < 1.5),
            (t >= 1.5) & (t < 2.25),
            (t >= 2.4) & (t < 3.1),
        ],
        [200.0, 200.0 + 160.0 * (t - 1.5), 400.0 - 300.0 / 0.7 * (t - 2.4)],
        50.0,
    )


def joules(from_s: float, to_s: float) -> float:
    steps = 400_000
    middle = from_s + (np.arange(steps) + 0.5) * (to_s - from_s) / steps
    return float(watts(middle).mean() * (to_s - from_s))


def sensor_at(
    t: float = 0.0, errors: Errors = QUIET, faults: Faults = HEALTHY, **options: object
) -> tuple[SimulatedSensor, VirtualClock]:
    clock = VirtualClock(t)
    options = {"seed": 5} | options
    sensor = SimulatedSensor(
        planted(),
        clock,
        TRAITS,
        errors=errors,
        faults=faults,
        **options,  # type: ignore[arg-type]
    )
    return sensor, clock


@pytest.mark.parametrize("ends", [(0.0, 5.0), (1.1, 1.3), (1.4, 1.9), (2.3, 2.9), (0.2, 0.7)])
def test_energy_is_the_integral_of_power(ends: tuple[float, float]) -> None:
    assert planted().energy_j(*ends) == pytest.approx(joules(*ends), rel=1e-5)


def test_power_at_a_moment_is_what_was_planted() -> None:
    moments = np.linspace(-1, 4, 377)
    curve = planted()
    assert [curve.power_w(t) for t in moments] == pytest.approx(list(watts(moments)))


@pytest.mark.parametrize("piece", [(2.0, 3.0), (3.5, 3.5), (3.6, 3.5)])
def test_pieces_follow_each_other(piece: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match=r"cannot follow one that ends at 3\.1 s"):
        planted().add(*piece, 100.0)


def test_a_reading_is_the_mean_over_its_window_before_the_lag() -> None:
    sensor, _ = sensor_at()
    for k in range(8, 35):
        u = sensor.phase_s + 0.1 * k
        for t in (u + 1e-6, u + 0.05, u + 0.0999):
            values = sensor.values(t)
            short = joules(u - 0.03 - 0.025, u - 0.03) / 0.025
            slow = joules(u - 0.03 - 1.0, u - 0.03)
            assert values["power_instant_w"] == pytest.approx(short, rel=1e-4)
            assert values["power_average_w"] == pytest.approx(slow, rel=1e-4)


def test_the_counter_counts_what_was_drawn_and_moves_only_at_its_updates() -> None:
    sensor, _ = sensor_at()
    t = np.arange(0.5, 4.0, 0.001)
    counted = np.array([sensor.values(x)["energy_j"] for x in t])
    at = np.flatnonzero(np.diff(counted)) + 1
    assert np.diff(t[at]) == pytest.approx(0.1, abs=0.0021)
    first, last = t[at[0]], t[at[-1]]
    expected = joules(first - 0.03, last - 0.03)
    # An edge is known to one step of 1 ms, at 400 W at most.
    assert counted[at[-1]] - counted[at[0]] == pytest.approx(expected, abs=0.8)


def test_a_counter_of_what_is_seen_adds_up_the_readings() -> None:
    sensor, _ = sensor_at(errors=replace(QUIET, counter="seen"))
    readings = {}
    for t in np.arange(0.0, 4.0, 0.01):
        readings[math.floor((t - sensor.phase_s) / 0.1)] = sensor.values(t)["power_instant_w"]
    keys = sorted(readings)
    expected = 0.1 * sum(readings[k] for k in keys[1:])
    assert sensor.values(3.999)["energy_j"] - sensor.values(0.0)["energy_j"] == pytest.approx(
        expected, abs=0.1 * 60
    )


def test_a_counter_of_what_is_seen_begins_again_at_a_reset() -> None:
    seen = replace(QUIET, counter="seen")
    plain, _ = sensor_at(errors=seen)
    again, _ = sensor_at(errors=seen, faults=Faults(reset_s=2.0))
    before, after = plain.values(2.0)["energy_j"], plain.values(3.9)["energy_j"]
    # Counter and power keep no step with each other: one reading of 0.1 s more or less.
    assert again.values(3.9)["energy_j"] == pytest.approx(after - before, abs=0.1 * 400)
    assert again.values(1.9)["energy_j"] == plain.values(1.9)["energy_j"] > 40


def test_gain_offset_and_steps_apply_to_readings() -> None:
    plain, _ = sensor_at()
    wrong, _ = sensor_at(errors=replace(QUIET, gain=0.954, offset_w=-1.2, step_w=0.5, step_j=2.0))
    for t in (0.95, 1.35, 2.05, 3.0):
        x, y = plain.values(t), wrong.values(t)
        for channel in TRAITS.averaging_s:
            assert y[channel] == pytest.approx(0.954 * x[channel] - 1.2, abs=0.2501)
            assert y[channel] / 0.5 == pytest.approx(round(y[channel] / 0.5))
        assert y["energy_j"] / 2.0 == pytest.approx(round(y["energy_j"] / 2.0))
    grown = [s.values(3.5)["energy_j"] - s.values(0.5)["energy_j"] for s in (plain, wrong)]
    assert grown[1] == pytest.approx(0.954 * grown[0] - 1.2 * 3.0, abs=2.0)


def test_noise_is_new_at_each_update_and_as_large_as_asked() -> None:
    sensor, _ = sensor_at(errors=replace(QUIET, noise_w=2.0))
    idle = [sensor.values(10 + 0.1 * k)["power_instant_w"] for k in range(2000)]
    assert np.std(idle) == pytest.approx(2.0, rel=0.08)
    assert np.mean(idle) == pytest.approx(50.0, abs=0.2)
    assert len(set(idle)) == 2000


def test_readings_depend_on_the_moment_and_the_seed_alone() -> None:
    often, rarely = sensor_at(errors=Errors())[0], sensor_at(errors=Errors())[0]
    other = sensor_at(errors=Errors(), seed=6)[0]
    seen = {t: often.values(t) for t in np.arange(0.0, 4.0, 0.005)}
    moments = list(seen)[::37]
    assert [rarely.values(t) for t in moments] == [seen[t] for t in moments]
    assert [other.values(t) for t in moments] != [seen[t] for t in moments]


def test_polled_as_a_sensor() -> None:
    simulated, clock = sensor_at(errors=Errors(read_s=0.001, jitter_s=0.004))
    sensor: Sensor = simulated
    trace, sampling = poll(sensor, clock, lambda: clock.now_s() > 4.0, 0.01)
    assert sampling.failed == 0
    assert trace.read_s.min() >= 0.001
    assert trace.read_s.max() <= 0.005
    assert np.std(trace.read_s) > 0.0005
    busy = (trace.time_s > 2.6) & (trace.time_s < 2.8)
    assert trace.values["power_instant_w"][busy].min() > 200
    assert sensor.info.channels == ("energy_j", "power_instant_w", "power_average_w")
    assert np.isnan(trace.values["sm_clock_mhz"]).all()
    sensor.close()
    sensor.close()


def frozen(v: Callable[[float], dict[str, float]]) -> bool:
    return v(2.5) == v(3.9) == v(2.0) != v(1.9)


def zero(v: Callable[[float], dict[str, float]]) -> bool:
    return set(v(2.5).values()) == {0.0} and min(v(1.9).values()) > 0


def nan(v: Callable[[float], dict[str, float]]) -> bool:
    return all(map(math.isnan, v(2.5).values())) and not any(map(math.isnan, v(1.9).values()))


def reset(v: Callable[[float], dict[str, float]]) -> bool:
    since = v(3.9)["energy_j"]
    expected = joules(2.0 - 0.03, 3.9 - 0.03)
    power = v(2.5)["power_instant_w"] > 100
    return v(1.9)["energy_j"] > UPTIME_S * 50 and abs(since - expected) < 10 and power


@pytest.mark.parametrize(
    ("faults", "shows"),
    [
        (Faults(frozen_s=2.0), frozen),
        (Faults(zero_s=2.0), zero),
        (Faults(nan_s=2.0), nan),
        (Faults(reset_s=2.0), reset),
    ],
    ids=["frozen", "zero", "nan", "reset"],
)
def test_faults_begin_when_they_should(
    faults: Faults, shows: Callable[[Callable[[float], dict[str, float]]], bool]
) -> None:
    assert shows(sensor_at(faults=faults)[0].values)
    assert not shows(sensor_at()[0].values)


def test_a_counter_wraps() -> None:
    sensor, _ = sensor_at(faults=Faults(wrap_j=100.0))
    counted = np.array([sensor.values(t)["energy_j"] for t in np.arange(0.0, 4.0, 0.1)])
    assert counted.max() < 100
    assert counted.min() >= 0
    drawn = joules(0.0, 4.0)
    assert (np.diff(counted) < 0).sum() == pytest.approx(drawn / 100, abs=1)


def test_lost_slow_and_missing() -> None:
    faults = Faults(lost_s=3.0, slow=((1.0, 0.2),), missing={"energy_j": "Not Supported"})
    sensor, clock = sensor_at(errors=Errors(), faults=faults)
    assert "energy_j" not in sensor.info.channels
    assert sensor.info.missing == {"energy_j": "Not Supported"}
    trace, sampling = poll(sensor, clock, lambda: clock.now_s() > 4.0, 0.01)
    assert sampling.longest_read_s == pytest.approx(0.2)
    assert (trace.read_s > 0.1).sum() == 1
    assert np.isnan(trace.values["energy_j"]).all()
    assert set(trace.errors[:-1]) == {"Not Supported"}
    assert trace.errors[-1] == "GPU is lost"
    assert trace.time_s[-1] == pytest.approx(3.0, abs=0.011)
    with pytest.raises(SensorError, match="GPU is lost"):
        sensor.read()


def test_conditions_are_read_alongside() -> None:
    conditions = ((1.0, {"sm_clock_mhz": 1400.0}), (2.0, {"sm_clock_mhz": 1000.0}))
    sensor, _ = sensor_at(conditions=conditions)
    seen = [sensor.values(t).get("sm_clock_mhz") for t in (0.5, 1.5, 2.5)]
    assert seen == [None, 1400.0, 1000.0]
    assert "sm_clock_mhz" in sensor.info.channels

"""The polling thread: nothing is lost, and what it costs is said."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from bench.measure.power import Sampler, SensorError, SensorInfo, poll

INFO = SensorInfo("test", "nothing", "none", ("energy_j",))


class Virtual:
    """A sensor and a clock in one: the n-th call takes `takes_s[n]` (or nothing), sleeps are exact or late."""

    info = INFO

    def __init__(
        self,
        takes_s: dict[int, float] | None = None,
        oversleeps_s: dict[int, float] | None = None,
        errors: dict[int, str] | None = None,
        ends_at: int | None = None,
    ) -> None:
        self.at_s, self.calls, self.sleeps = 50.0, 0, 0
        self.takes_s, self.oversleeps_s = takes_s or {}, oversleeps_s or {}
        self.errors, self.ends_at = errors or {}, ends_at

    def now_s(self) -> float:
        return self.at_s

    def sleep(self, seconds: float) -> None:
        assert seconds >= 0
        self.at_s += seconds + self.oversleeps_s.get(self.sleeps, 0.0)
        self.sleeps += 1

    def read(self) -> tuple[dict[str, float], str]:
        call = self.calls
        self.calls += 1
        self.at_s += self.takes_s.get(call, 0.0)
        if call == self.ends_at:
            raise SensorError("the GPU is lost")
        if call in self.errors:
            return {}, self.errors[call]
        return {"energy_j": float(call)}, ""

    def close(self) -> None:
        pass


def polled(sensor: Virtual, seconds: float = 1.0, period_s: float = 0.01):  # type: ignore[no-untyped-def]
    return poll(sensor, sensor, lambda: sensor.at_s >= 50.0 + seconds - 1e-9, period_s)


def test_a_quick_sensor_is_read_every_period() -> None:
    trace, sampling = polled(Virtual())
    assert trace.time_s == pytest.approx(50 + 0.01 * np.arange(100))
    assert trace.values["energy_j"].tolist() == list(range(100))
    assert (sampling.readings, sampling.failed, sampling.late) == (100, 0, 0)
    assert sampling.wall_s == pytest.approx(0.99)


def test_a_slow_call_makes_one_reading_late_and_loses_none() -> None:
    """The call of 200 ms stands in the trace with its middle and length; the period begins anew."""
    trace, sampling = polled(Virtual({10: 0.2}))
    assert sampling.late == 1
    assert sampling.longest_read_s == pytest.approx(0.2)
    assert trace.read_s[10] == pytest.approx(0.2)
    assert trace.time_s[10] == pytest.approx(50.2)
    assert trace.time_s[11:] == pytest.approx(50.3 + 0.01 * np.arange(70))
    assert trace.values["energy_j"].tolist() == list(range(81))


def test_calls_that_are_always_too_slow_are_all_late_but_the_first() -> None:
    _, sampling = polled(Virtual(dict.fromkeys(range(100), 0.05)))
    assert (sampling.readings, sampling.late) == (20, 19)


def test_a_little_delay_is_caught_up_with() -> None:
    """A sleep 5 ms too long does not shift the readings after the next."""
    trace, sampling = polled(Virtual(oversleeps_s={4: 0.005}))
    assert sampling.late == 0
    assert trace.time_s[5] == pytest.approx(50.055)
    assert trace.time_s[6] == pytest.approx(50.06)


def test_a_thread_that_did_not_get_its_processor_is_late() -> None:
    _, sampling = polled(Virtual(oversleeps_s={4: 0.3, 20: 0.1}))
    assert sampling.late == 2


def test_failed_readings_stay_in_the_trace() -> None:
    trace, sampling = polled(Virtual(errors={3: "energy_j: it reads 0", 7: "timeout"}))
    assert sampling.failed == 2
    assert (trace.errors[3], trace.errors[7]) == ("energy_j: it reads 0", "timeout")
    assert np.flatnonzero(np.isnan(trace.values["energy_j"])).tolist() == [3, 7]
    assert sampling.readings == 100


def test_a_sensor_that_ends_leaves_its_last_words() -> None:
    trace, sampling = polled(Virtual(ends_at=5))
    assert trace.errors == ("",) * 5 + ("the GPU is lost",)
    assert (sampling.readings, sampling.failed) == (6, 1)


def test_no_reading_is_no_error() -> None:
    trace, sampling = polled(Virtual(), seconds=0)
    assert len(trace.time_s) == 0
    assert (sampling.readings, sampling.wall_s, sampling.longest_read_s) == (0, 0.0, 0.0)


class Real:
    """A sensor that takes real time: computing, or waiting."""

    info = INFO

    def __init__(self, busy_s: float = 0.0, slow_call: int = -1, fault: Exception | None = None):
        self.busy_s, self.slow_call, self.fault, self.calls = busy_s, slow_call, fault, 0

    def read(self) -> tuple[dict[str, float], str]:
        self.calls += 1
        if self.calls == self.slow_call:
            time.sleep(0.2)
        if self.fault is not None and self.calls == 3:
            raise self.fault
        until_s = time.thread_time() + self.busy_s
        while time.thread_time() < until_s:
            pass
        return {"energy_j": float(self.calls)}, ""

    def close(self) -> None:
        pass


def test_the_thread_reports_its_own_cost() -> None:
    with Sampler(Real(busy_s=0.004), 0.02) as dear:
        time.sleep(0.5)
    with Sampler(Real(), 0.02) as cheap:
        time.sleep(0.5)
    assert dear.result is not None
    assert cheap.result is not None
    dear_s, cheap_s = dear.result[1].cpu_s, cheap.result[1].cpu_s
    assert dear_s is not None
    assert cheap_s is not None
    computed_s = 0.004 * dear.result[1].readings
    assert computed_s <= dear_s < computed_s + 0.05
    assert cheap_s < computed_s


def test_the_thread_keeps_a_slow_call() -> None:
    began_s = time.monotonic()
    sensor = Real(slow_call=5)
    with Sampler(sensor, 0.01) as sampler:
        time.sleep(0.4)
    assert sampler.result is not None
    trace, sampling = sampler.result
    assert trace.read_s[4] >= 0.2
    assert sampling.longest_read_s >= 0.2
    assert sampling.late >= 1
    assert trace.values["energy_j"].tolist() == list(range(1, sensor.calls + 1))
    assert began_s < trace.time_s[0] < trace.time_s[-1] < time.monotonic()


def test_an_error_of_the_sensor_itself_is_not_lost_with_its_thread() -> None:
    with (
        pytest.raises(ZeroDivisionError),
        Sampler(Real(fault=ZeroDivisionError()), 0.001) as sampler,
    ):
        time.sleep(0.1)
    assert sampler.result is None
    with pytest.raises(KeyError), Sampler(Real(fault=ZeroDivisionError()), 0.001):  # noqa: PT012
        time.sleep(0.1)
        raise KeyError  # what went wrong in the block goes first


def test_a_sensor_that_does_not_answer_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a driver whose GPU has fallen off the bus: what was read before is kept, and the row says it."""
    monkeypatch.setattr("bench.measure.power.STUCK_S", 0.1)
    release = threading.Event()

    class Stuck:
        info = INFO
        calls = 0

        def read(self) -> tuple[dict[str, float], str]:
            self.calls += 1
            if self.calls > 3:
                release.wait(20)
            return {"energy_j": float(self.calls)}, ""

        def close(self) -> None:
            pass

    began_s = time.monotonic()
    with Sampler(Stuck(), period_s=0.01) as sampler:
        time.sleep(0.1)
    took_s = time.monotonic() - began_s
    release.set()
    assert took_s < 5
    assert sampler.result is not None
    trace, sampling = sampler.result
    assert trace.values["energy_j"][:3].tolist() == [1, 2, 3]
    assert trace.errors == ("", "", "", "the sensor has not answered for 0.1 s")
    assert sampling.failed == 1

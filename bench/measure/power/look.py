"""What a sensor is like to use, from watching it for a few seconds while nothing in particular runs.

    look(sensor, HostClock())  ->  values now, cost of a reading and of each channel, observed update periods

An update shows only when the value changes, so an observed period is an upper bound on an idle board whose
power stays the same; and no period shorter than that of the readings is seen. The published periods, and what
a square-wave load shows, are better; this costs nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import Protocol, runtime_checkable

import numpy as np

from bench.analysis.traces import Floats, Trace
from bench.measure.power import Clock, Sampling, Sensor, SensorError, poll
from bench.measure.power.discover import JOULES

SECONDS = 3.0
PERIOD_S = 0.002  # of the readings while watching: a tenth of the shortest update period of a GPU
CALLS = 20  # of each channel alone, of which the median counts


@runtime_checkable
class ByChannel(Protocol):
    """A sensor that can be asked for one channel alone."""

    def read_channel(self, channel: str) -> tuple[dict[str, float], str]:
        """As `read`, for one channel."""
        ...


@dataclass(frozen=True)
class Look:
    """What was seen.

    Attributes:
        now: the last value of every channel that had one.
        read_s: the median reading of all channels; NaN without any.
        channel_s: the median call for one channel alone; only for sensors that can do that.
        changes: how often each channel of joules or watts changed.
        update_s: the median time between two changes, for those that changed often enough.
        fell_j: by how much the energy counter fell at most; 0 while it rises, as it should.
        step_s: the median time between two readings, the least that can be seen.
        errors: what was wrong with readings, each once.
        gone: why the sensor ended; empty while it goes on.
        sampling: what reading it cost.
    """

    now: dict[str, float]
    read_s: float
    channel_s: dict[str, float]
    changes: dict[str, int]
    update_s: dict[str, float]
    fell_j: float
    step_s: float
    errors: tuple[str, ...]
    gone: str
    sampling: Sampling

    @property
    def alive(self) -> tuple[str, ...]:
        """Channels of joules or watts that changed at all."""
        return tuple(channel for channel, count in self.changes.items() if count)


def look(sensor: Sensor, clock: Clock, seconds: float = SECONDS) -> Look:
    """Watches a sensor for a while, then asks for each channel alone."""
    until_s = clock.now_s() + seconds
    trace, sampling = poll(sensor, clock, lambda: clock.now_s() >= until_s, PERIOD_S)
    now = {c: _last(v) for c, v in trace.values.items() if not np.all(np.isnan(v))}
    channel_s: dict[str, float] = {}
    gone = _ended(sensor)
    if isinstance(sensor, ByChannel) and not gone:
        try:
            channel_s = {c: _cost_s(sensor, c, clock) for c in now}
        except SensorError as problem:
            gone = str(problem)
    times = {c: change_times_s(trace, c) for c in JOULES if c in now}
    return Look(
        now=now,
        read_s=median(trace.read_s.tolist()) if len(trace.read_s) else float("nan"),
        channel_s=channel_s,
        changes={c: len(t) for c, t in times.items()},
        update_s={c: median(np.diff(t).tolist()) for c, t in times.items() if len(t) > 2},
        fell_j=_fell(trace.values["energy_j"]),
        step_s=median(np.diff(trace.time_s).tolist()) if len(trace.time_s) > 1 else float("nan"),
        errors=tuple(dict.fromkeys(e for e in trace.errors if e)),
        gone=gone,
        sampling=sampling,
    )


def change_times_s(trace: Trace, channel: str) -> list[float]:
    """When a channel said something else than before; readings without it are passed over."""
    there = ~np.isnan(trace.values[channel])
    values, times = trace.values[channel][there], trace.time_s[there]
    return [float(t) for t in times[1:][np.diff(values) != 0]]


def _ended(sensor: Sensor) -> str:
    """Why the sensor cannot be read any more; empty when it can."""
    try:
        sensor.read()
    except SensorError as problem:
        return str(problem)
    return ""


def _cost_s(sensor: ByChannel, channel: str, clock: Clock) -> float:
    """Seconds of a call for one channel, the median of some."""
    taken = []
    for _ in range(CALLS):
        before_s = clock.now_s()
        sensor.read_channel(channel)
        taken.append(clock.now_s() - before_s)
    return median(taken)


def _fell(values: Floats) -> float:
    """The largest fall from one value to the next; 0 without one."""
    steps = np.diff(values[~np.isnan(values)])
    return float(max(0.0, -steps.min())) if len(steps) else 0.0


def _last(values: Floats) -> float:
    return float(values[~np.isnan(values)][-1])

"""A sensor that says again what a sensor said once, so that everything after it can run without hardware.

It brings its own clock, which stands where the next recorded reading began and moves on when that is read: a
poll of it gives the recorded trace, times and errors included, to the last bit.

    sensor = ReplaySensor(info, window.trace)
    trace, sampling = poll(sensor, sensor, sensor.is_over)
"""

from __future__ import annotations

import math
from dataclasses import replace

from bench.analysis.traces import Trace
from bench.measure.power import SensorError, SensorInfo


class ReplaySensor:
    """A trace as a sensor and as the clock to read it by."""

    def __init__(self, info: SensorInfo, trace: Trace) -> None:
        """Takes what the trace was recorded with, and the trace."""
        self._info = replace(info, name="replay", facts={**info.facts, "recorded_with": info.name})
        self._readings = trace.readings()
        self._calls = [_call(r.time_s, r.read_s) for r in self._readings]
        self._next = 0
        self._now_s = self._calls[0][0] if self._calls else 0.0

    @property
    def info(self) -> SensorInfo:
        """See the protocol."""
        return self._info

    def read(self) -> tuple[dict[str, float], str]:
        """The next recorded reading."""
        if self.is_over():
            raise SensorError("the recorded trace ends here")
        reading = self._readings[self._next]
        self._now_s = self._calls[self._next][1]
        self._next += 1
        return dict(reading.values), reading.error

    def is_over(self) -> bool:
        """Whether all readings have been played."""
        return self._next >= len(self._readings)

    def close(self) -> None:
        """See the protocol."""
        self._next = len(self._readings)

    def now_s(self) -> float:
        """When the next recorded reading began, or while one is read, when that ended."""
        return self._now_s

    def sleep(self, seconds: float) -> None:
        """Goes to the next reading, whenever that was."""
        if not self.is_over():
            self._now_s = self._calls[self._next][0]


def _call(middle_s: float, took_s: float) -> tuple[float, float]:
    """Beginning and end of a call, such that their mean and difference are the recorded ones, bit by bit.

    The mean of two floats is rounded, so several pairs come near; the one that was recorded is among the
    neighbours of the obvious one. Where a trace was not recorded by a poll, there may be none: then the
    obvious one serves.
    """
    obvious = middle_s - took_s / 2
    low = high = obvious
    for _ in range(4):
        for before_s in (low, high):
            after_s = before_s + took_s
            if (before_s + after_s) / 2 == middle_s and after_s - before_s == took_s:
                return before_s, after_s
        low, high = math.nextafter(low, -math.inf), math.nextafter(high, math.inf)
    return obvious, obvious + took_s

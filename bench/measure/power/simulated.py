"""A power sensor without hardware: it says of a planted power curve what a real one would.

    true power P(t)  ->  mean over [u - lag - averaging, u - lag], at updates u = phase + k update_s
                     ->  gain, offset, noise, quantisation  ->  faults  ->  a reading

Every integral is exact: the curve is made of straight pieces, so its energy up to any moment is a sum of
trapezoids. Every reading is a function of the curve, the seed and the moment: polling more often, or in
another process, changes nothing.

The clock is virtual. A simulated device adds to the curve what it draws, and whoever polls moves the clock;
the curve must reach as far as the clock by then, or the sensor sees the idle power.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from bench.analysis.traces import POWERS
from bench.measure.devices.seeded import WORD, seeded
from bench.measure.power import Clock, SensorError, SensorInfo
from profiles.sensors import Traits

UPTIME_S = 1000.0  # for how long the counter has counted when the sensor is opened
_STREAMS = ("phase", "call", *POWERS)


class VirtualClock:
    """Time that passes only when someone waits."""

    def __init__(self, now_s: float = 0.0) -> None:
        self._now_s = now_s

    def now_s(self) -> float:
        """See the protocol."""
        return self._now_s

    def sleep(self, seconds: float) -> None:
        """Moves the clock; there is no way back."""
        self._now_s += max(0.0, seconds)


class PowerCurve:
    """True power in watts over time, in straight pieces; idle wherever nothing was added."""

    def __init__(self, idle_w: float) -> None:
        self.idle_w = idle_w
        # Pieces: from when, watts there, watts per second from there on, joules over idle up to there.
        self._from_s = [-math.inf]
        self._watts = [idle_w]
        self._slope = [0.0]
        self._joules = [0.0]

    @property
    def ends_s(self) -> float:
        """Until when something was added."""
        return self._from_s[-1]

    def add(self, from_s: float, to_s: float, watts: float, end_watts: float | None = None) -> None:
        """Draws watts between two moments, rising or falling in a line where end_watts is given.

        Raises:
            ValueError: the piece ends before it begins, or begins before the last one has ended.
        """
        if not self.ends_s <= from_s < to_s:
            raise ValueError(
                f"a piece from {from_s} to {to_s} s cannot follow one that ends at {self.ends_s} s."
            )
        end = watts if end_watts is None else end_watts
        if from_s == self.ends_s:
            self._watts[-1], self._slope[-1] = watts, (end - watts) / (to_s - from_s)
        else:
            self._append(from_s, watts, (end - watts) / (to_s - from_s))
        self._append(to_s, self.idle_w, 0.0)

    def _append(self, from_s: float, watts: float, slope: float) -> None:
        joules = self._over_idle_j(from_s)
        self._from_s.append(from_s)
        self._watts.append(watts)
        self._slope.append(slope)
        self._joules.append(joules)

    def _over_idle_j(self, t: float) -> float:
        i = bisect_right(self._from_s, t) - 1
        if i == 0:
            return 0.0
        passed = t - self._from_s[i]
        watts = self._watts[i] - self.idle_w + self._slope[i] * passed / 2
        return self._joules[i] + watts * passed

    def power_w(self, t: float) -> float:
        """Watts at a moment."""
        i = bisect_right(self._from_s, t) - 1
        return self.idle_w if i == 0 else self._watts[i] + self._slope[i] * (t - self._from_s[i])

    def energy_j(self, from_s: float, to_s: float) -> float:
        """Joules between two moments."""
        return self._over_idle_j(to_s) - self._over_idle_j(from_s) + self.idle_w * (to_s - from_s)


@dataclass(frozen=True)
class Faults:
    """What goes wrong, and from which moment on; infinity is never.

    Attributes:
        frozen_s: from then on every channel says what it said then.
        zero_s: every power reads 0 W, and the counter 0 J.
        reset_s: the counter starts again from 0 J, as when a driver is loaded anew.
        wrap_j: the counter starts again from 0 J whenever it would reach this.
        nan_s: every channel reads NaN.
        missing: channel to the error that stands where its value should, from the beginning.
        lost_s: the sensor cannot be read any more.
        slow: calls that take long: (from when the next call does, seconds that it takes).
    """

    frozen_s: float = math.inf
    zero_s: float = math.inf
    reset_s: float = math.inf
    wrap_j: float = math.inf
    nan_s: float = math.inf
    missing: dict[str, str] = field(default_factory=dict)
    lost_s: float = math.inf
    slow: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True)
class Errors:
    """How a healthy sensor is wrong.

    Attributes:
        gain: reading over truth, of power and counter alike: they share a sensor.
        offset_w: added to it.
        noise_w: standard deviation of a power reading, anew at each update.
        step_w: readings are multiples of it.
        step_j: and those of the counter of this.
        read_s: how long a call takes.
        jitter_s: and up to how much longer, uniformly.
        counter: "all" counts what is drawn; "seen" counts power readings times update period, as if what a
            sensor sees of the time were the whole. Which of them a board does is not published.
    """

    gain: float = 1.0
    offset_w: float = 0.0
    noise_w: float = 0.5
    step_w: float = 1e-3
    step_j: float = 1e-3
    read_s: float = 0.0
    jitter_s: float = 0.0
    counter: Literal["all", "seen"] = "all"


class SimulatedSensor:
    """A sensor of the Sensor protocol that reads a planted curve on a virtual clock.

    Args:
        curve: what is drawn; it may grow while the sensor is read.
        clock: whose `now_s` is the moment of a reading; a call that takes time sleeps on it.
        traits: update periods and averaging windows. A lag that is not known is planted as lag_s.
        seed: of the phase of the updates, and of the noise.
        errors: how it is wrong all the time.
        faults: what goes wrong.
        lag_s: planted where the traits have none.
        conditions: (from when, channel to value), rising: clocks, temperature and reasons for throttling.
        phase_s: of the power updates; drawn from the seed where it is None.
    """

    def __init__(
        self,
        curve: PowerCurve,
        clock: Clock,
        traits: Traits,
        *,
        seed: int = 0,
        errors: Errors = Errors(),
        faults: Faults = Faults(),
        lag_s: float = 0.0,
        conditions: Sequence[tuple[float, dict[str, float]]] = (),
        phase_s: float | None = None,
    ) -> None:
        self.curve, self._clock, self._traits, self._seed = curve, clock, traits, seed
        self._errors, self._faults, self.conditions = errors, faults, tuple(conditions)
        self._lag_s = lag_s if traits.lag_s is None else traits.lag_s
        drawn = self._rng("phase").random(2)
        drawn_s = float(drawn[0]) * (traits.update_s or 0.0)
        self.phase_s = drawn_s if phase_s is None else phase_s
        self._counter_phase_s = float(drawn[1]) * (traits.counter_update_s or 0.0)
        self._began_s = clock.now_s()
        self._slow = list(faults.slow)
        self._calls = self._rng("call")
        self._last: dict[str, tuple[int, float]] = {}  # channel to its last update and reading
        # the counter's last update, since when it counted then, and its reading
        self._counted = (-1, math.nan, 0.0)
        # of which conditions, how many of them, and what they add up to
        self._known: tuple[object, int, dict[str, float]] = (None, 0, {})
        self._seen_j = [0.0]  # joules seen since the first update, one more for each

    @property
    def info(self) -> SensorInfo:
        """What it is."""
        channels = tuple(c for c in POWERS if c in self._traits.averaging_s)
        if self._traits.counter_update_s is not None:
            channels = ("energy_j", *channels)
        conditions = tuple(sorted({c for _, values in self.conditions for c in values}))
        return SensorInfo(
            name="simulated",
            scope="a simulated board",
            model=self._traits.model,
            channels=tuple(c for c in channels if c not in self._faults.missing) + conditions,
            missing=dict(self._faults.missing),
            facts={"seed": self._seed},
        )

    def read(self) -> tuple[dict[str, float], str]:
        """See the protocol. The values are those of some moment within the call."""
        t, takes_s = self._clock.now_s(), self._errors.read_s
        drawn = (0.0, 0.0)
        if self._errors.jitter_s or takes_s:
            drawn = tuple(self._calls.random(2))
        takes_s += drawn[0] * self._errors.jitter_s
        if self._slow and t >= self._slow[0][0]:
            takes_s += self._slow.pop(0)[1]
        self._clock.sleep(takes_s)
        t += drawn[1] * takes_s
        if t >= self._faults.lost_s:
            raise SensorError("GPU is lost")
        values = self.values(t)
        for channel in self._faults.missing:
            values.pop(channel, None)
        return values, "; ".join(self._faults.missing.values())

    def close(self) -> None:
        """Nothing is held."""

    def values(self, t: float) -> dict[str, float]:
        """What it says at a moment."""
        f, traits = self._faults, self._traits
        seen_at = min(t, f.frozen_s)
        index = self._index(seen_at)
        values = {c: self._power_w(c, index) for c in traits.averaging_s}
        if traits.counter_update_s is not None:
            values["energy_j"] = self._counter_j(seen_at)
        if t >= f.zero_s:
            values = dict.fromkeys(values, 0.0)
        if t >= f.nan_s:
            values = dict.fromkeys(values, math.nan)
        return values | self._conditions_at(t)

    def _conditions_at(self, t: float) -> dict[str, float]:
        """The last word on each condition before a moment; remembered until there is another."""
        known = bisect_right(self.conditions, t, key=lambda each: each[0])
        if self._known[0] is not self.conditions or self._known[1] != known:
            merged: dict[str, float] = {}
            for _, said in self.conditions[:known]:
                merged |= said
            self._known = (self.conditions, known, merged)
        return self._known[2]

    def _index(self, t: float) -> int:
        """Which update of the power channels is the last one before a moment."""
        update_s = self._traits.update_s
        return 0 if update_s is None else math.floor((t - self.phase_s) / update_s)

    def _power_w(self, channel: str, index: int) -> float:
        last, reading = self._last.get(channel, (index - 1, 0.0))
        if last == index:
            return reading
        e = self._errors
        until_s = self.phase_s + index * (self._traits.update_s or 0.0) - self._lag_s
        averaging_s = self._traits.averaging_s[channel]
        mean_w = self.curve.energy_j(until_s - averaging_s, until_s) / averaging_s
        noise = self._rng(channel, index).normal() * e.noise_w if e.noise_w else 0.0
        reading = _quantised(e.gain * mean_w + e.offset_w + noise, e.step_w)
        self._last[channel] = (index, reading)
        return reading

    def _counter_j(self, t: float) -> float:
        counter_s = self._traits.counter_update_s
        assert counter_s is not None
        update = math.floor((t - self._counter_phase_s) / counter_s)
        since_s = self._began_s - UPTIME_S
        if t >= self._faults.reset_s:
            since_s = self._faults.reset_s
        if self._counted[:2] != (update, since_s):
            until_s = max(self._counter_phase_s + counter_s * update, since_s)
            joules = self._counted_j(since_s, until_s)
            if not math.isinf(self._faults.wrap_j):
                joules %= self._faults.wrap_j
            self._counted = (update, since_s, _quantised(joules, self._errors.step_j))
        return self._counted[2]

    def _counted_j(self, since_s: float, until_s: float) -> float:
        """Joules between two updates of the counter."""
        e = self._errors
        if e.counter == "seen":
            return self._sum_j(self._index(until_s)) - self._sum_j(self._index(since_s))
        drawn_j = self.curve.energy_j(since_s - self._lag_s, until_s - self._lag_s)
        return e.gain * drawn_j + e.offset_w * (until_s - since_s)

    def _sum_j(self, index: int) -> float:
        """What the short power readings add up to, from the first poll to an update."""
        channel = next(c for c in POWERS if c in self._traits.averaging_s)
        first = self._index(self._began_s)
        while len(self._seen_j) <= index - first:
            reading_w = self._power_w(channel, first + len(self._seen_j))
            self._seen_j.append(self._seen_j[-1] + reading_w * (self._traits.update_s or 0.0))
        return self._seen_j[max(0, index - first)]

    def _rng(self, stream: str, index: int = 0) -> np.random.Generator:
        return seeded(self._seed, _STREAMS.index(stream), index % WORD)


def _quantised(value: float, step: float) -> float:
    return round(value / step) * step if step else value

"""What a sensor is like, found from its readings of a load that goes on and off.

    load     ____####____##########________####__     known: the moments of its edges
    reading  _____###______########_______ ###___     u: its updates; a mean over a while before each

A reading at an update u is modelled as

    reading(u) = idle + swing * mean of the load over [u - lag - averaging, u - lag]

which is linear in idle and swing, so that least squares over them is exact for each (averaging, lag), and
those two are searched. The on and off times are no multiples of any update period, so that edges fall
everywhere within what readings average; long ones show slow averages whole.

A counter gives the mean power between two of its own updates, so only its update period and its lag can be
found: what it averages is by definition all the time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bench.analysis.sensor_edges import COUNTER, NAMES, Floats
from bench.analysis.sensor_fit import LoadFit, find_updates
from bench.analysis.traces import POWERS, Trace
from profiles.schema import Kind, Quantity, absent
from profiles.sensors import Traits

GOLDEN = (math.sqrt(5) - 1) / 2
PULSES = 40
SHORTEST_S, LONGEST_S = 0.06, 0.5  # of a pulse or a pause
STEP_S = 3.0
AHEAD_S = 0.01  # that a lag may seem negative by, where updates are known to a poll
EXPLAINED = 0.95  # of the variance of readings, by the load


@dataclass(frozen=True)
class Step:
    """A part of the plan: whether the load is on, and for how long."""

    on: bool
    seconds: float


@dataclass(frozen=True)
class Channel:
    """What was found of one channel.

    Attributes:
        channel: its name.
        update_s: how often it changes.
        averaging_s: seconds that a reading is the mean of; absent for a counter.
        lag_s: from the end of these to the update.
        duty_cycle: averaging over update period, 1 at most.
        idle_w: watts read without load.
        swing_w: watts that the load adds.
        residual_w: standard deviation of what the model leaves.
        edges: changes that were used.
        reason: why nothing was found; empty otherwise.
    """

    channel: str
    update_s: Quantity
    averaging_s: Quantity
    lag_s: Quantity
    duty_cycle: Quantity
    idle_w: float | None = None
    swing_w: float | None = None
    residual_w: float | None = None
    edges: int = 0
    reason: str = ""


@dataclass(frozen=True)
class Characterisation:
    """What was found of a sensor.

    Attributes:
        channels: of those that it has, the counter first.
    """

    channels: tuple[Channel, ...]

    @property
    def reason(self) -> str:
        """Why nothing was found of any channel; empty otherwise."""
        if any(not c.reason for c in self.channels):
            return ""
        said = "; ".join(f"{NAMES[c.channel]}: {c.reason}" for c in self.channels)
        return said or "the sensor has neither an energy counter nor a power reading"

    def channel(self, name: str) -> Channel | None:
        """One channel; None where the sensor has none of that name."""
        return next((c for c in self.channels if c.channel == name), None)

    def traits(self, model: str, origin: str = "") -> Traits | None:
        """The same, for those who turn readings into joules; None where nothing was found.

        The lag is that of the shortest power channel, or the counter's where there is none.
        """
        found = [c for c in self.channels if not c.reason]
        if not found:
            return None
        powers = [c for c in found if c.channel != COUNTER]
        counter = next((c for c in found if c.channel == COUNTER), None)
        missing = {}
        if not powers:
            missing["update_s"] = "no power channel was found"
        if counter is None:
            missing["counter_update_s"] = "no energy counter was found"
        lag_s = (powers or found)[0].lag_s
        if lag_s.value is None:
            missing["lag_s"] = lag_s.reason
        return Traits(
            missing=missing,
            model=model,
            update_s=powers[0].update_s.value if powers else None,
            averaging_s={c.channel: c.averaging_s.value for c in powers if c.averaging_s.value},
            counter_update_s=counter.update_s.value if counter else None,
            lag_s=lag_s.value,
            source="characterised",
            origin=origin or f"square wave on {model}",
        )


def square_wave(pulses: int = PULSES) -> tuple[Step, ...]:
    """When to switch a load on and off: pulses and pauses of ever other lengths, then a long step; 34 s.

    Lengths follow the multiples of the golden ratio modulo one, from 60 to 500 ms: no two are alike, and
    their sums keep step with no period.
    """
    span_s = LONGEST_S - SHORTEST_S
    lengths = [SHORTEST_S + span_s * (i * GOLDEN % 1.0) for i in range(2 * pulses)]
    steps = [Step(i % 2 == 0, seconds) for i, seconds in enumerate(lengths)]
    rest, long_step = Step(False, STEP_S), Step(True, STEP_S)
    # The last pause and the rest after it are one.
    return (rest, *steps[:-1], rest, long_step, rest)


def characterise(
    trace: Trace, switched_s: Sequence[float], kind: Kind = "measured"
) -> Characterisation:
    """Finds update period, averaging window and lag of every channel.

    Args:
        trace: readings from before the first switch to after the last one, polled at least twice per update.
        switched_s: the moments at which the load went on, off, on, off, ...; rising.
        kind: of evidence.

    Raises:
        ValueError: the moments do not rise, or there are fewer than two.
    """
    switched = np.asarray(switched_s, float)
    if len(switched) < 2 or (np.diff(switched) <= 0).any():
        raise ValueError("switched_s needs two moments or more, each after the one before.")
    there = [c for c in (COUNTER, *POWERS) if np.isfinite(trace.values[c]).any()]
    return Characterisation(tuple(_channel(trace, c, switched, kind) for c in there))


def _channel(trace: Trace, channel: str, switched: Floats, kind: Kind) -> Channel:
    """One channel, or why not."""
    try:
        return _fitted(trace, channel, switched, kind)
    except ArithmeticError:
        return _refused(channel, "it has readings that no sensor says", kind)


def _fitted(trace: Trace, channel: str, switched: Floats, kind: Kind) -> Channel:
    """One channel, or why not.

    Raises:
        ArithmeticError: it has numbers that no line can be laid through.
    """
    updates = find_updates(trace, channel, kind)
    if isinstance(updates, str):
        return _refused(channel, updates, kind)
    at, watts, averaging = updates.time_s, updates.value, None
    if channel == COUNTER:
        averaging = np.diff(at)
        at, watts = at[1:], np.diff(watts) / averaging
    fit = LoadFit(at, watts, switched, averaging)
    fit.search()
    if fit.explained < EXPLAINED or fit.swing_w <= 0:
        reason = (
            f"the load explains {fit.explained:.0%} of how it changes, less than {EXPLAINED:.0%}: "
            "it does not follow the load, or is too noisy"
        )
        return _refused(channel, reason, kind)
    if fit.lag_s < -AHEAD_S:
        reason = (
            f"it follows the load {-fit.lag_s:.3f} s before it happens: the load was switched at "
            "other moments than were given"
        )
        return _refused(channel, reason, kind)
    averaging_s, lag_s = fit.quantities(updates.resolution_s, kind)
    duty_cycle = _share(averaging_s, updates.update_s, kind)
    return Channel(
        channel,
        updates.update_s,
        averaging_s,
        lag_s,
        duty_cycle,
        idle_w=fit.idle_w,
        swing_w=fit.swing_w,
        residual_w=fit.residual_w,
        edges=len(at),
    )


def _refused(channel: str, reason: str, kind: Kind) -> Channel:
    gone = absent(reason, kind)
    return Channel(channel, gone, gone, gone, gone, reason=reason)


def _share(a: Quantity, b: Quantity, kind: Kind) -> Quantity:
    """The share that a is of b, 1 at most."""
    if a.value is None or a.low is None or a.high is None:
        return absent(a.reason, kind)
    if b.value is None or b.low is None or b.high is None:
        return absent(b.reason, kind)
    high = 1.0 if b.low <= 0 else min(1.0, a.high / b.low)
    value = min(high, a.value / b.value)
    return Quantity(value=value, low=min(value, a.low / b.high), high=high, n=a.n, kind=kind)

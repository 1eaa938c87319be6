"""Joules of one load from one channel of a sensor: edges, what they cover, and when to refuse.

Readings change only at the sensor's own updates, and polls fall anywhere between them. So a channel is cut
down to its edges, the moments at which it changed, each known to within a poll:

    poll     |    |    |    |    |    |    |    |
    reading  7    7    9    9    9    9    8    8      edges at ] ] between 7|9 and 9|8

A reading of power at an edge u is the mean over [u - lag - averaging, u - lag]; it stands at the middle of
that. The counter's reading is what was counted up to u - lag. Only edges count whose reading lies wholly
within the load, after the power has settled:

    load     |====================================================|
             |settle|averaging|*    *    *    *    *    *    *    *|
                               ^ first edge            last edge ^

Nothing here repairs a reading. What cannot be right is refused, in one clause with numbers.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from bench.analysis.traces import Load, Trace, Window
from profiles.sensors import Traits

Floats = NDArray[np.float64]

COUNTER = "energy_j"
NAMES = {
    "energy_j": "the energy counter",
    "power_instant_w": "the instantaneous power",
    "power_average_w": "the averaged power",
}
COUNTER_STILL = 5  # updates in a row at which no counter of a running board stands still
IDLE_UPDATES = 5  # that make an idle power
UNIFORM_95 = 1.96 / 3**0.5  # half-width of 95 % over the bound of a uniform error, if many add up


@dataclass(frozen=True)
class Rules:
    """When a window is good enough (METHOD section 5).

    Attributes:
        window_s: the shortest time between the first and the last edge that count.
        updates: and the fewest edges.
        idle_s: planned without load, before and after.
        settle_s: after the load's begin or end until power and clocks have followed, a lag that is not
            known included; nothing is counted before.
        trials: windows of an arm, with shifted phase.
        disagreement: largest difference of two channels over the same time, beyond what their edges and
            their noise explain.
        unsteady: largest scatter from update to update, over the mean, for a sensor that sees a part of
            the time only: what it does not see is then not known.
        trial_range: largest range of the trials of an arm, over their mean.
        frozen_updates: updates in a row after which a power that repeats bit for bit is frozen.
        gap_share: largest share of the window within gaps between polls that are longer than an update.
        edge_share: largest error of the window's length from polls, for the counter.
    """

    window_s: float = 5.0
    updates: int = 50
    idle_s: float = 3.0
    settle_s: float = 0.5
    trials: int = 4
    disagreement: float = 0.05
    unsteady: float = 0.10
    trial_range: float = 0.10
    frozen_updates: int = 20
    gap_share: float = 0.02
    edge_share: float = 0.02


SMOKE = Rules(window_s=2.0, updates=18, idle_s=2.0, settle_s=0.25, frozen_updates=10)


@dataclass(frozen=True)
class Source:
    """What one channel says of a load, by itself.

    Attributes:
        channel: "energy_j", "power_instant_w" or "power_average_w".
        gross_j: joules per layer; None with a reason.
        power_w: watts, the mean over the window.
        layer_s: seconds per layer, over the same time.
        tick_j: half-width, 95 %, of the part of gross_j that edges between polls and scatter between
            updates leave open.
        idle_before_w: watts without load, before; None with an idle_reason.
        idle_after_w: and after.
        updates: edges that count.
        window_s: from the first to the last of them.
        reason: why it gives no joules; empty otherwise.
        idle_reason: why it gives no idle power; empty otherwise.
        unsteady: scatter from update to update over the mean, for a power channel.
        time_s: [updates], the moments that readings stand for.
        energy_j: [updates], joules from the first of these moments on.
    """

    channel: str
    gross_j: float | None = None
    power_w: float | None = None
    layer_s: float | None = None
    tick_j: float | None = None
    idle_before_w: float | None = None
    idle_after_w: float | None = None
    updates: int = 0
    window_s: float = 0.0
    reason: str = ""
    idle_reason: str = ""
    unsteady: float | None = None
    time_s: Floats = field(default_factory=lambda: np.empty(0), repr=False, compare=False)
    energy_j: Floats = field(default_factory=lambda: np.empty(0), repr=False, compare=False)


@dataclass(frozen=True)
class Edges:
    """When a channel changed, and to what.

    Attributes:
        time_s: [edges], the middle of the time in which it may have changed.
        half_s: [edges], half of that time.
        value: [edges].
    """

    time_s: Floats
    half_s: Floats
    value: Floats


def polls(trace: Trace, channel: str) -> tuple[Floats, Floats, Floats]:
    """Times, durations and values of the polls that have a value of a channel."""
    there = np.isfinite(trace.values[channel])
    return trace.time_s[there], trace.read_s[there], trace.values[channel][there]


def edges(trace: Trace, channel: str, update_s: float | None) -> Edges:
    """The changes of a channel.

    A value was taken at some moment of its call. One that differs from the value before came with the last
    update before that moment, so after the poll before, and at most one update period ago.

    Args:
        trace: readings.
        channel: of them.
        update_s: how often it changes; None where that is not known.
    """
    time_s, read_s, value = polls(trace, channel)
    changed = np.flatnonzero(np.diff(value) != 0) + 1
    high = time_s[changed] + read_s[changed] / 2
    low = time_s[changed - 1] - read_s[changed - 1] / 2
    if update_s is not None:
        low = np.maximum(low, time_s[changed] - read_s[changed] / 2 - update_s)
    return Edges((low + high) / 2, (high - low) / 2, value[changed])


def layers_by(load: Load, time_s: Floats) -> Floats:
    """Layers that were finished by some moments, interpolated between the marks."""
    when, done = zip(*load.marks, strict=True)
    layers: Floats = np.interp(time_s, when, done)
    return layers


def measure(window: Window, channel: str, traits: Traits, rules: Rules) -> Source:
    """Joules per layer from one channel, or why there are none.

    From power: the trapezoids between the readings, each at the middle of what it covers. From the counter:
    the difference of two readings at edges. Both are divided by the layers between the same two moments, so
    that a drift of speed counts where it happened.

    The tick error of the counter is that of the time between two edges, each uniform within its poll. That
    of power is the scatter between updates over the square root of their number: steady noise, or what a
    sensor that sees a part of the time did not see.
    """
    counter, load = channel == COUNTER, window.load
    update_s = traits.counter_update_s if counter else traits.update_s
    reason = _unusable(window, channel, update_s, traits, rules)
    if reason or update_s is None:
        return Source(channel, reason=reason, idle_reason=reason)
    ends = _ends(window.trace, channel, update_s, traits)
    at = ends.within(load.began_s + rules.settle_s, load.ended_s)
    n = len(at.time_s)
    span_s = float(at.time_s[-1] - at.time_s[0]) if n else 0.0
    source = Source(channel, updates=n, window_s=span_s)
    # Half an update may be missing: an edge is placed in the middle of where it may be.
    if n < rules.updates or span_s < rules.window_s - update_s / 2:
        reason = (
            f"{n} updates over {span_s:.2f} s of steady load are too few; "
            f"{rules.updates} over {rules.window_s:g} s are needed"
        )
        return replace(source, reason=reason, idle_reason=reason)
    moments = at.time_s - ends.middle_s
    layers = float(np.diff(layers_by(load, moments[[0, -1]]))[0])
    energy, tick, unsteady = _counted(at) if counter else _integrated(at)
    if layers <= 0:
        reason = f"no layer was finished in the {span_s:.2f} s that it covers"
    elif counter and tick > rules.edge_share:
        reason = f"polls leave {tick:.1%} of its window open, more than {rules.edge_share:.0%}"
    if reason:
        return replace(source, reason=reason, idle_reason=reason)
    gross_j = float(energy[-1]) / layers
    before_w, after_w, idle_reason = _idle(ends, window, rules, counter)
    return replace(
        source,
        gross_j=gross_j,
        power_w=float(energy[-1]) / span_s,
        layer_s=span_s / layers,
        tick_j=tick * gross_j,
        idle_before_w=before_w,
        idle_after_w=after_w,
        idle_reason=idle_reason,
        time_s=moments,
        energy_j=energy,
        unsteady=unsteady,
    )


def _counted(at: Edges) -> tuple[Floats, float, float | None]:
    """Joules since the first edge, and the share that polls leave open."""
    span_s = float(at.time_s[-1] - at.time_s[0])
    tick = UNIFORM_95 * float(np.hypot(at.half_s[0], at.half_s[-1])) / span_s
    return at.value - at.value[0], tick, None


def _integrated(at: Edges) -> tuple[Floats, float, float]:
    """Joules since the first edge, the share that scatter leaves open, and the scatter of one update.

    The scatter is that of neighbours (von Neumann, Ann. Math. Statist. 12 (1941) 367-395): a slow drift is
    no noise.
    """
    steps = (at.value[1:] + at.value[:-1]) / 2 * np.diff(at.time_s)
    scatter_w = float(np.sqrt(np.mean(np.diff(at.value) ** 2) / 2))
    unsteady = scatter_w / float(at.value.mean())
    return np.insert(np.cumsum(steps), 0, 0.0), 1.96 * unsteady / len(at.value) ** 0.5, unsteady


@dataclass(frozen=True)
class _Ends:
    """Edges, and until when and over how long the reading of each is a mean."""

    edges: Edges
    until_s: Floats
    averaging_s: float
    middle_s: float

    def within(self, from_s: float, to_s: float) -> Edges:
        """Those whose readings lie wholly between two moments."""
        there = (self.until_s - self.averaging_s >= from_s) & (self.until_s <= to_s)
        return Edges(self.edges.time_s[there], self.edges.half_s[there], self.edges.value[there])


def _ends(trace: Trace, channel: str, update_s: float, traits: Traits) -> _Ends:
    """The counter may count what the slowest channel shows, so as much is discarded for it."""
    found, lag_s = edges(trace, channel, update_s), traits.lag_s or 0.0
    if channel == COUNTER:
        discarded_s = max(traits.averaging_s.values(), default=0.0)
        return _Ends(found, found.time_s - lag_s, discarded_s, lag_s)
    averaging_s = traits.averaging_s[channel]
    return _Ends(found, found.time_s - lag_s, averaging_s, lag_s + averaging_s / 2)


def _idle(
    ends: _Ends, window: Window, rules: Rules, counter: bool
) -> tuple[float | None, float | None, str]:
    """Watts without load before and after, and why one of them is missing."""
    load = window.load
    began_s = {"before": load.began_s - window.idle_before_s, "after": load.ended_s}
    ended_s = {"before": load.began_s, "after": load.ended_s + window.idle_after_s}
    watts = {
        when: _idle_w(ends.within(began_s[when] + rules.settle_s, ended_s[when]), counter)
        for when in began_s
    }
    missing = " and ".join(f"idle {when}" for when, w in watts.items() if w is None)
    reason = f"{missing} has too few updates, or reads 0" if missing else ""
    return watts["before"], watts["after"], reason


def _idle_w(at: Edges, counter: bool) -> float | None:
    """Watts between two moments without load; None where there is too little, or a zero."""
    if len(at.value) < IDLE_UPDATES:
        return None
    if counter:
        watts = float((at.value[-1] - at.value[0]) / (at.time_s[-1] - at.time_s[0]))
    else:
        watts = float(at.value.mean()) if at.value.min() > 0 else 0.0
    return watts if watts > 0 else None


def _unusable(
    window: Window, channel: str, update_s: float | None, traits: Traits, rules: Rules
) -> str:
    """Why a channel cannot be right during a load; empty if it may be."""
    load, counter = window.load, channel == COUNTER
    time_s, read_s, value = polls(window.trace, channel)
    if len(value) < 2:
        said = next((e for e in window.trace.errors if e), "")
        count = "one value" if len(value) else "no value"
        return f"it has {count}" + (f": {said}" if said else "")
    if update_s is None or (not counter and channel not in traits.averaging_s):
        return "how often it changes, or what it is the mean of, is not known for this board"
    during = (time_s >= load.began_s) & (time_s <= load.ended_s)
    if not during.any():
        return "it has no value during the load"
    slack_s = update_s + 3 * float(np.median(np.diff(window.trace.time_s)))
    early_s = load.ended_s - float(time_s[-1])
    if early_s > slack_s:
        said = next((e for e in reversed(window.trace.errors) if e), "no reason was given")
        return f"its readings end {early_s:.2f} s before the load does: {said}"
    within = value[during]
    if counter:
        return _counter_unusable(time_s, value, during, update_s, load)
    if (within <= 0).any():
        return f"{int((within <= 0).sum())} of its {len(within)} readings are 0 W or less"
    begun_s = load.began_s + rules.settle_s + traits.averaging_s[channel]
    still_s = _longest_repeat(time_s, value, begun_s, load.ended_s)
    if still_s > rules.frozen_updates * update_s:
        return (
            f"it repeated one value bit for bit for {still_s:.2f} s, "
            f"though it is updated every {update_s:g} s: frozen"
        )
    return _gapped(time_s[during], read_s[during], update_s, load, rules)


def _counter_unusable(
    time_s: Floats, value: Floats, during: NDArray[np.bool_], update_s: float, load: Load
) -> str:
    # From the last reading before the load to the first one after it.
    inside = np.flatnonzero(during)
    reach = slice(max(inside[0] - 1, 0), inside[-1] + 2)
    if (np.diff(value[reach]) < 0).any():
        i = reach.start + int(np.argmin(np.diff(value[reach])))
        return (
            f"it fell from {value[i]:.3f} to {value[i + 1]:.3f} J "
            f"{time_s[i + 1] - load.began_s:.2f} s after the load began: reset, or wrapped"
        )
    if value[during][0] == value[during][-1]:
        return f"it did not move during {load.ended_s - load.began_s:.2f} s of load"
    still_s = _longest_repeat(time_s, value, load.began_s, load.ended_s)
    if still_s > COUNTER_STILL * update_s:
        return f"it stood still for {still_s:.2f} s, though it is updated every {update_s:g} s"
    return ""


def _gapped(time_s: Floats, read_s: Floats, update_s: float, load: Load, rules: Rules) -> str:
    """Whether updates may have been missed: a value may be from the beginning of its call, or the end."""
    earliest = np.insert(time_s - read_s / 2, 0, load.began_s)
    latest = np.append(time_s + read_s / 2, load.ended_s)
    gaps = latest - earliest
    lost_s = float(gaps[gaps > update_s * (1 + 1e-6)].sum())
    if lost_s <= rules.gap_share * (load.ended_s - load.began_s):
        return ""
    return (
        f"gaps between polls of up to {gaps.max():.3f} s are longer than its update period of "
        f"{update_s:g} s and cover {lost_s:.2f} s of the load"
    )


def _longest_repeat(time_s: Floats, value: Floats, from_s: float, to_s: float) -> float:
    """Seconds of the longest run of equal values that touches a stretch of time."""
    starts = np.concatenate([[0], np.flatnonzero(np.diff(value) != 0) + 1])
    ends = np.concatenate([starts[1:] - 1, [len(value) - 1]])
    touches = (time_s[ends] >= from_s) & (time_s[starts] <= to_s)
    return float((time_s[ends] - time_s[starts])[touches].max(initial=0.0))

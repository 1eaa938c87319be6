"""Joules of one load from one channel of a sensor: which of its edges count, and what they cover.

A reading of power at an edge u is the mean over [u - lag - averaging, u - lag]; it stands at the middle of
that. The counter's reading is what was counted up to u - lag. Only edges count whose reading lies wholly
within the load, after the power has settled:

    load     |====================================================|
             |settle|averaging|*    *    *    *    *    *    *    *|
                               ^ first edge            last edge ^
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from bench.analysis.energy_faults import unusable
from bench.analysis.energy_rules import Rules
from bench.analysis.sensor_edges import COUNTER, Edges, Floats, edges
from bench.analysis.traces import Load, Trace, Window
from profiles.sensors import Traits

IDLE_UPDATES = 5  # that make an idle power
UNIFORM_95 = 1.96 / 3**0.5  # half-width of 95 % over the bound of a uniform error, if many add up


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
    reason = unusable(window, channel, update_s, traits, rules)
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
    reason = f"{missing} has too few updates, reads 0, or falls" if missing else ""
    return watts["before"], watts["after"], reason


def _idle_w(at: Edges, counter: bool) -> float | None:
    """Watts between two moments without load; None where there is too little, or a zero."""
    if len(at.value) < IDLE_UPDATES or (counter and (np.diff(at.value) < 0).any()):
        return None
    if counter:
        watts = float((at.value[-1] - at.value[0]) / (at.time_s[-1] - at.time_s[0]))
    else:
        watts = float(at.value.mean()) if at.value.min() > 0 else 0.0
    return watts if watts > 0 else None

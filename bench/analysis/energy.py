"""Joules per layer of one window: gross and net, from the best channel, beside all the others.

    window_joules(window, traits)  ->  WindowEnergy      one trial: numbers, or the reason why not
    combine(trials)                ->  ArmEnergy         bench/analysis/energy_trials.py
    curve(points)                  ->  a + b / batch     bench/analysis/energy_curve.py

The counter is best, since it misses nothing between polls; then the instantaneous power; then the averaged
one. They share a sensor: that they agree is consistency, not validation, and the sensor's gain (5 %) stays
as an uncertainty. But where they disagree, none of them is believed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np

from bench.analysis.energy_rules import SMOKE, Rules
from bench.analysis.energy_sources import Source, measure
from bench.analysis.sensor_edges import COUNTER, NAMES, Floats
from bench.analysis.traces import POWERS, Trace, Window
from profiles.sensors import Traits

__all__ = [
    "SMOKE",
    "Conditions",
    "Rules",
    "Source",
    "WindowEnergy",
    "load_s",
    "trial_delays",
    "window_joules",
]

THROTTLE_REASONS = {  # bits of NVML's clocks event reasons
    0x04: "power cap",
    0x08: "hardware slowdown",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "power brake",
}
THROTTLING = sum(THROTTLE_REASONS)


@dataclass(frozen=True)
class Conditions:
    """What was read alongside, during the load; None where it was not read.

    Attributes:
        sm_clock_mhz: mean.
        memory_clock_mhz: mean.
        temperature_begin_c: first reading.
        temperature_end_c: last reading.
        throttle_share: share of the readings that name a reason to throttle.
        longest_gap_s: between two polls.
    """

    sm_clock_mhz: float | None = None
    memory_clock_mhz: float | None = None
    temperature_begin_c: float | None = None
    temperature_end_c: float | None = None
    throttle_share: float | None = None
    longest_gap_s: float | None = None

    @property
    def throttled(self) -> bool | None:
        """Whether any reading named a reason to throttle; None where reasons are not read."""
        return None if self.throttle_share is None else self.throttle_share > 0


@dataclass(frozen=True)
class WindowEnergy:
    """What one window says of the joules of one layer.

    Attributes:
        source: the channel that the numbers come from; empty without one.
        gross_j: joules per layer; None with a reason.
        net_j: gross_j less idle_w times layer_s; None with a reason or an idle_reason.
        tick_j: half-width, 95 %, of what edges and scatter leave open in gross_j.
        power_w: mean of the window.
        idle_w: mean of idle_before_w and idle_after_w.
        idle_before_w: by the same channel; None where it is not known.
        idle_after_w: the same.
        layer_s: seconds per layer within the window.
        window_s: from the first to the last edge that counts.
        updates: edges that count.
        sources: every channel by itself.
        disagreement: largest relative difference of two usable channels over the same time.
        part_time: whether the short power channel sees a part of the time only.
        conditions: clocks, temperature and throttling during the load.
        gain_uncertainty: of the sensor, 95 %, the same for all windows of a board.
        offset_uncertainty_w: the same, in watts.
        reason: why there are no joules, in clauses with numbers; empty otherwise.
        idle_reason: why there is no net_j though there is a gross_j; empty otherwise.
    """

    source: str = ""
    gross_j: float | None = None
    net_j: float | None = None
    tick_j: float | None = None
    power_w: float | None = None
    idle_w: float | None = None
    idle_before_w: float | None = None
    idle_after_w: float | None = None
    layer_s: float | None = None
    window_s: float = 0.0
    updates: int = 0
    sources: tuple[Source, ...] = ()
    disagreement: float | None = None
    part_time: bool = False
    conditions: Conditions = Conditions()
    gain_uncertainty: float = 0.05
    offset_uncertainty_w: float = 0.0
    reason: str = ""
    idle_reason: str = ""


def load_s(traits: Traits, rules: Rules) -> float:
    """How long a load must last for every channel of a sensor to be able to answer.

    settle, lag and the longest averaging window are discarded; then come window_s or a tenth more than the
    fewest updates; and two updates or a tenth of a second, since edges fall where they like.
    """
    update_s = max(traits.update_s or 0.0, traits.counter_update_s or 0.0)
    discarded_s = rules.settle_s + (traits.lag_s or 0.0)
    discarded_s += max(traits.averaging_s.values(), default=0.0)
    return (
        discarded_s + max(rules.window_s, 1.1 * rules.updates * update_s) + max(0.1, 2 * update_s)
    )


def trial_delays(traits: Traits, rules: Rules) -> tuple[float, ...]:
    """Seconds after an update of the sensor at which each trial begins: k / trials of its period.

    What a sensor that sees a part of the time does not see in one trial, it sees in another. For a sensor
    without a power channel all are 0.
    """
    return tuple((traits.update_s or 0.0) * k / rules.trials for k in range(rules.trials))


def window_joules(window: Window, traits: Traits, rules: Rules | None = None) -> WindowEnergy:
    """Joules per layer of one window, or why there are none.

    Args:
        window: a steady load with idle time around it.
        traits: of the sensor that read it.
        rules: when it is good enough; those of METHOD section 5 by default.
    """
    rules = rules or Rules()
    short = next((c for c in POWERS if c in traits.averaging_s), None)
    energy = WindowEnergy(
        part_time=short is not None and traits.duty_cycle(short) < 1,
        conditions=_conditions(window),
        gain_uncertainty=traits.gain_uncertainty,
        offset_uncertainty_w=traits.offset_uncertainty_w,
    )
    if window.trace.shared:
        return replace(energy, reason=window.trace.shared)
    lasted_s = window.load.ended_s - window.load.began_s
    if lasted_s < rules.window_s:
        reason = f"the load lasted {lasted_s:.2f} s, less than the {rules.window_s:g} s needed"
        return replace(energy, reason=reason)
    sources = tuple(measure(window, c, traits, rules) for c in _channels(window.trace, traits))
    usable = [s for s in sources if s.gross_j is not None]
    disagreement, clash = _disagreement(usable, rules)
    reason = _unsteady(usable, traits, rules) or clash
    if not usable:
        reason = _no_source(sources)
    energy = replace(energy, sources=sources, disagreement=disagreement, reason=reason)
    return energy if reason else _from(usable[0], energy)


def _from(best: Source, energy: WindowEnergy) -> WindowEnergy:
    """The numbers of one channel, with net joules."""
    net_j, idle_w, idle_reason = _net(best)
    return replace(
        energy,
        source=best.channel,
        gross_j=best.gross_j,
        net_j=net_j,
        tick_j=best.tick_j,
        power_w=best.power_w,
        idle_w=idle_w,
        idle_before_w=best.idle_before_w,
        idle_after_w=best.idle_after_w,
        layer_s=best.layer_s,
        window_s=best.window_s,
        updates=best.updates,
        idle_reason=idle_reason,
    )


def _channels(trace: Trace, traits: Traits) -> list[str]:
    """Those that the sensor should have, and those that it has, best first."""
    should = {*traits.averaging_s} | ({COUNTER} if traits.counter_update_s is not None else set())
    return [c for c in (COUNTER, *POWERS) if c in should or np.isfinite(trace.values[c]).any()]


def _no_source(sources: Iterable[Source]) -> str:
    """One clause per reason, with the channels that share it."""
    by_reason: dict[str, list[str]] = {}
    for source in sources:
        by_reason.setdefault(source.reason, []).append(NAMES[source.channel])
    clauses = [f"{' and '.join(names)}: {reason}" for reason, names in by_reason.items()]
    return "; ".join(clauses) or "the sensor has neither an energy counter nor a power reading"


def _unsteady(usable: Iterable[Source], traits: Traits, rules: Rules) -> str:
    for source in usable:
        if source.channel == COUNTER or traits.duty_cycle(source.channel) >= 1:
            continue
        if (source.unsteady or 0.0) > rules.unsteady:
            return (
                f"the load is not steady: {NAMES[source.channel]} scatters by "
                f"{source.unsteady:.0%} from update to update, more than {rules.unsteady:.0%}, "
                f"and the sensor sees {traits.duty_cycle(source.channel):.0%} of the time"
            )
    return ""


def _disagreement(usable: list[Source], rules: Rules) -> tuple[float | None, str]:
    """The largest difference of two channels over the time that both cover, and whether it is too large."""
    largest, reason = None, ""
    for a, b in combinations(usable, 2):
        from_s, to_s = max(a.time_s[0], b.time_s[0]), min(a.time_s[-1], b.time_s[-1])
        if to_s <= from_s:
            continue
        watts = [
            float(np.diff(np.interp([from_s, to_s], s.time_s, s.energy_j))[0] / (to_s - from_s))
            for s in (a, b)
        ]
        difference = abs(watts[1] / watts[0] - 1)
        largest = max(largest or 0.0, difference)
        ticks = [(s.tick_j or 0.0) / (s.gross_j or 1.0) for s in (a, b)]
        # 1.5 times the 95 % half-width is about three standard deviations.
        if (
            difference > rules.disagreement + 1.5 * float(np.hypot(ticks[0], ticks[1]))
            and not reason
        ):
            reason = (
                f"{NAMES[a.channel]} says {watts[0]:.1f} W and {NAMES[b.channel]} {watts[1]:.1f} W "
                f"over the same {to_s - from_s:.2f} s: they disagree by {difference:.1%}"
            )
    return largest, reason


def _net(best: Source) -> tuple[float | None, float | None, str]:
    """Net joules, idle watts, and why not."""
    before, after = best.idle_before_w, best.idle_after_w
    if before is None or after is None:
        return None, None, best.idle_reason
    idle_w = (before + after) / 2
    assert best.gross_j is not None
    assert best.layer_s is not None
    net_j = best.gross_j - idle_w * best.layer_s
    if net_j <= 0:
        return None, idle_w, f"idle draws {idle_w:.1f} W, no less than the load: {best.power_w:.1f}"
    return net_j, idle_w, ""


def _conditions(window: Window) -> Conditions:
    trace, load = window.trace, window.load
    during = (trace.time_s >= load.began_s) & (trace.time_s <= load.ended_s)
    seen = {c: v[during][np.isfinite(v[during])] for c, v in trace.values.items()}
    throttling = seen["event_reasons"].astype(np.int64) & THROTTLING != 0
    temperature, times = seen["temperature_c"], trace.time_s[during]
    return Conditions(
        sm_clock_mhz=_mean(seen["sm_clock_mhz"]),
        memory_clock_mhz=_mean(seen["memory_clock_mhz"]),
        temperature_begin_c=float(temperature[0]) if len(temperature) else None,
        temperature_end_c=float(temperature[-1]) if len(temperature) else None,
        throttle_share=_mean(throttling.astype(np.float64)),
        longest_gap_s=float(np.diff(times).max()) if len(times) > 1 else None,
    )


def _mean(values: Floats) -> float | None:
    return float(values.mean()) if len(values) else None

"""Why a channel cannot be right during a load: each way in which a sensor fails, told from its readings.

Nothing here repairs a reading. What cannot be right is refused, in one clause with numbers.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bench.analysis.energy_rules import Rules
from bench.analysis.sensor_edges import COUNTER, Floats, polls
from bench.analysis.traces import Load, Window
from profiles.sensors import Traits

COUNTER_STILL = 5  # updates in a row at which no counter of a running board stands still
SHORTEST_STILL_S = 0.1  # that is looked at: no joules to speak of go missing in less


def unusable(
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
    if still_s > max(COUNTER_STILL * update_s, SHORTEST_STILL_S):
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

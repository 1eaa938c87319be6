"""When a window is good enough to say joules."""

from __future__ import annotations

from dataclasses import dataclass


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

"""Where two curves cross, and on which side the low-bit one wins: B* over batches, N* over model sizes.

    ratio = t(best16) / t(arm)      above 1 the arm wins; in joules the same

Published data have crossings of both directions, several, and none, so a crossing comes with its sign (the
words of verdict.py). Only points whose interval excludes 1 decide. A crossing lies between two neighbouring
decided points of different outcome: these two are its interval, since nothing was measured between them, and
nothing says that a curve of tiles and steps is smooth there. Its value is where the logarithms, joined by
straight lines, cross; it is no more than a guess within that interval.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from bench.analysis.verdict import Outcome, Sign, outcome, sign
from profiles.schema import Kind, Quantity


@dataclass(frozen=True)
class Crossing:
    """What ratios over batches (or sizes) say.

    Attributes:
        sign: always, never, wins_below, wins_above, several crossings or undecided, over decided points.
        at: one quantity per crossing, in the unit of the points; its interval ends at decided points.
        outcomes: (point, outcome), rising.
    """

    sign: Sign
    at: tuple[Quantity, ...]
    outcomes: tuple[tuple[float, Outcome], ...]

    @property
    def undecided(self) -> tuple[float, ...]:
        """Points whose interval holds 1."""
        return tuple(x for x, o in self.outcomes if o == "undecided")

    @property
    def words(self) -> str:
        """`wins_below 91 (64 to 128)`, or the sign alone."""
        if not self.at:
            return self.sign
        each = [
            f"{size_word(q.value)} ({size_word(q.low)} to {size_word(q.high)})" for q in self.at
        ]
        return f"{self.sign} {', '.join(each)}"


def crossing(points: Sequence[tuple[float, Quantity]], kind: Kind) -> Crossing:
    """The crossings of a ratio with 1.

    Args:
        points: (batch or size, ratio); those without a value are left out. Sizes are positive.
        kind: the kind of evidence.
    """
    known = sorted(((x, q) for x, q in points if q.value is not None), key=lambda p: p[0])
    outcomes = tuple((x, outcome(q)) for x, q in known)
    decided = [(x, o) for x, o in outcomes if o != "undecided"]
    at = tuple(
        _between(known, low, high, kind) for (low, a), (high, b) in pairwise(decided) if a != b
    )
    return Crossing(sign([o for _, o in outcomes]), at, outcomes)


def inverse(q: Quantity) -> Quantity:
    """1 / q, its interval turned round; for the same race seen from the other side."""
    if q.value is None or q.low is None or q.high is None or q.low <= 0:
        return q
    return q.model_copy(update={"value": 1 / q.value, "low": 1 / q.high, "high": 1 / q.low})


def _between(
    known: Sequence[tuple[float, Quantity]], low: float, high: float, kind: Kind
) -> Quantity:
    """The crossing between two decided points, by straight lines through the points between."""
    within = [(x, q.value) for x, q in known if low <= x <= high and q.value is not None]
    value = math.sqrt(low * high)
    for (x0, r0), (x1, r1) in pairwise(within):
        if min(r0, r1) > 0 and (r0 > 1) != (r1 > 1):
            a, b = math.log(r0), math.log(r1)
            value = math.exp(math.log(x0) + math.log(x1 / x0) * a / (a - b))
            break
    return Quantity(value=min(max(value, low), high), low=low, high=high, kind=kind)


def size_word(value: float | None) -> str:
    """A batch or a number of parameters in few characters."""
    if value is None:
        return "–"
    for unit, name in ((1e9, "B"), (1e6, "M")):
        if value >= unit:
            return f"{value / unit:.3g}{name}"
    return f"{value:.0f}" if value >= 10 else f"{value:.2g}"

"""What may be said of a modelled time: an interval and a limiter, or why there is no number.

Two intervals, of different meaning. `low_s` to `high_s` is the 90 % interval: the value times exp(-w) and
exp(w), w from residuals on published times of other sources (`bench.validate`). The corners are the
value again with every parameter at its better or its worse end: T falls in every rate and rises in every
latency, so the two corners bound it. They held fewer than nine in ten published figures: shown, not used.

The method fails, and says so in place of a number, for kernels that spill or loop under a guard, weights
that the cache may hold, single operators below 20 us, and paths that a board does not have.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp
from typing import Literal

from bench.static import parameters
from bench.static.cost import KernelCost, Problem
from bench.static.model import ENDS, LIMITERS, Limiter, NotModelledError, Prediction, predict
from profiles.specs import Gpu

TOO_SHORT = "a single operator below 20 us: launch and ramp decide"


@dataclass(frozen=True)
class Estimate:
    """A modelled time with its interval, or the reason why there is none.

    Attributes:
        value_s: None when it is not modelled.
        low_s: lower end of the 90 % interval.
        high_s: upper end.
        corner_low_s: every parameter at its better end.
        corner_high_s: every parameter at its worse end.
        limiter: the resource that would take longest alone.
        parts_s: seconds of each resource alone, and "launch".
        reason: why it is not modelled; empty otherwise.
        note: what to know about the interval; empty on boards that it was checked on.
    """

    value_s: float | None
    low_s: float | None = None
    high_s: float | None = None
    corner_low_s: float | None = None
    corner_high_s: float | None = None
    limiter: Limiter | None = None
    parts_s: dict[str, float] | None = None
    reason: str = ""
    note: str = ""
    kind: Literal["modelled"] = "modelled"


def refusal(gpu: Gpu, kernel: KernelCost, problem: Problem, time_s: float) -> str:
    """Why a number that could be computed is not to be trusted; empty if it is."""
    weight_bytes = problem.weights * kernel.counts.bytes
    if not problem.cold and weight_bytes <= parameters.CACHE_FACTOR * gpu.l2_mb.value * 1e6:
        return "weights of up to twice the last-level cache may be read from it"
    if time_s < parameters.SHORTEST_S:
        return TOO_SHORT
    return ""


def estimate(gpu: Gpu, kernel: KernelCost, problem: Problem) -> Estimate:
    """The modelled time of one operator, its intervals and its limiter; never a number alone."""
    return estimate_layer(gpu, kernel, (problem,))


def estimate_layer(gpu: Gpu, kernel: KernelCost, problems: Sequence[Problem]) -> Estimate:
    """The modelled time of operators that one kernel runs after another in one graph."""
    found = estimate_launches(gpu, [(kernel, problem) for problem in problems])
    if found.value_s is None:
        return found
    reasons = (refusal(gpu, kernel, problem, found.value_s) for problem in problems)
    reason = next(filter(None, reasons), "")
    return Estimate(None, reason=reason) if reason else found


def estimate_launches(gpu: Gpu, launches: Sequence[tuple[KernelCost, Problem]]) -> Estimate:
    """The modelled time of launches one after another in one graph, however short they are.

    The limiter is that of all of them: the resource with the largest sum. Their errors are taken to go
    together, so the interval is as wide as that of one operator. Whoever reports a time asks `refusal`
    about all that runs together.

    Args:
        gpu: the board.
        launches: kernels and their operators.
    """
    try:
        middle, better, worse = (
            [predict(gpu, kernel, problem, end) for kernel, problem in launches] for end in ENDS
        )
    except NotModelledError as error:
        return Estimate(None, reason=str(error))
    time_s = _total_s(middle)
    width = max(parameters.interval_width(problem.batch) for _, problem in launches)
    names = dict.fromkeys(name for prediction in middle for name in prediction.everything_s)
    parts_s = {name: sum(p.everything_s.get(name, 0.0) for p in middle) for name in names}
    return Estimate(
        value_s=time_s,
        low_s=time_s * exp(-width),
        high_s=time_s * exp(width),
        corner_low_s=_total_s(better),
        corner_high_s=_total_s(worse),
        limiter=LIMITERS[max(parts_s, key=lambda name: parts_s[name])],
        parts_s=parts_s,
        note="" if gpu.key in parameters.CHECKED_BOARDS else parameters.UNCHECKED,
    )


def difference(ratio: tuple[float, float], base: tuple[float, float]) -> tuple[float, float]:
    """Ends of a - b from the ends of a / b and of b: the sign is that of the ratio against 1.

    a - b = b (a / b - 1), taken over both intervals. Two times of one board err together (the same clocks,
    bandwidth and launches), so the ends of each alone are further apart than both can be.
    """
    down, up = (end - 1 for end in ratio)
    low, high = base
    return down * (low if down > 0 else high), up * (high if up > 0 else low)


def _total_s(predictions: Sequence[Prediction]) -> float:
    return sum(prediction.time_s for prediction in predictions)

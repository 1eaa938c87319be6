"""Holds the model against published figures: predictions, held-out intervals, and errors of groups of rows.

Interval widths come from the rows of the other sources (or boards) only. The rows that the model would
refuse to answer for (weights that may sit in the cache, single operators below 20 us) are scored apart,
and do not widen intervals.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from math import exp, isfinite, log
from statistics import median
from typing import Literal

from bench.static import conformal
from bench.static.cost import KernelCost
from bench.static.estimate import difference, refusal
from bench.static.model import ENDS, Limiter, NotModelledError, predict
from bench.static.parameters import SHORTEST_S, SMALL_BATCH
from bench.static.peers import load_peers
from bench.static.published import Row
from profiles.specs import Gpu, load_gpu

Standing = Literal["scored", "apart", "refused"]
VENDOR = "vendor16"
VENDOR_FAMILY = "16-bit"


@dataclass(frozen=True)
class Scored:
    """A published figure beside what the model and two baselines say.

    Attributes:
        row: the figure.
        family: of its kernel.
        format: of its weights.
        standing: "scored"; "apart" where the model refuses an answer; "refused" where it has none.
        reason: why it stands apart or is refused.
        predicted: in the unit of the figure; None when refused.
        residual: ln(true time / predicted time); of a speed-up, with the sign turned.
        limiter: that the model names.
        corner: whether the figure lies between the corners of the parameters.
        ideal: what an ideal roofline says.
        constant: what 0.8 x bandwidth and 3 us say.
        width: half-width of the held-out 90 % interval, as a logarithm; None before it is known, and where
            the other rows come in too few cells for a finite one.
    """

    row: Row
    family: str
    format: str
    standing: Standing
    reason: str = ""
    predicted: float | None = None
    residual: float = 0.0
    limiter: Limiter | None = None
    corner: bool = False
    ideal: float = 0.0
    constant: float = 0.0
    width: float | None = None

    @property
    def small(self) -> bool:
        """Whether its batch is 64 or below."""
        return self.row.problem.batch <= SMALL_BATCH

    @property
    def covered(self) -> bool:
        """Whether the figure lies within the held-out interval; never where there is no finite one."""
        return self.width is not None and abs(self.residual) <= self.width

    @property
    def interval(self) -> tuple[float, float] | None:
        """The held-out 90 % interval, in the unit of the figure; None where there is none."""
        if self.predicted is None or self.width is None:
            return None
        return self.predicted * exp(-self.width), self.predicted * exp(self.width)


@dataclass(frozen=True)
class Errors:
    """Errors of a group of rows. Errors and coverage are fractions.

    Attributes:
        rows: how many.
        bounded: how many of them have a finite interval.
        mape: mean of |predicted - published| / published.
        median: of the same.
        bias: geometric mean of predicted over true time, less 1: above 0, the model is too slow.
        coverage: rows within their held-out 90 % interval, of those that have a finite one; None: none has.
        corner_coverage: rows between the corners of the parameters.
        ideal_mape: of the ideal roofline.
        ideal_median: of the ideal roofline.
        constant_mape: of 0.8 x bandwidth and 3 us.
        constant_median: of the same.
        limiters: how often the model names each.
    """

    rows: int
    bounded: int
    mape: float
    median: float
    bias: float
    coverage: float | None
    corner_coverage: float
    ideal_mape: float
    ideal_median: float
    constant_mape: float
    constant_median: float
    limiters: dict[str, int]

    @property
    def beats_baselines(self) -> bool:
        """Whether the mean error is below that of both baselines."""
        return self.mape < min(self.ideal_mape, self.constant_mape)


def roofline_s(
    gpu: Gpu, kernel: KernelCost, row: Row, efficiency: float = 1.0, launch_s: float = 0.0
) -> float:
    """max(bytes / bandwidth, operations / tensor rate) + launch: what a datasheet alone says."""
    problem = row.problem
    moved = problem.weights * kernel.counts.bytes + problem.activation_bytes
    memory_s = moved / (gpu.memory_gb_per_s.value * 1e9 * efficiency)
    tensor = gpu.tensor_fp16_tflops
    tensor_s = 2 * problem.batch * problem.weights / (tensor.value * 1e12) if tensor else 0.0
    return max(memory_s, tensor_s) + launch_s


def predict_row(row: Row) -> Scored:
    """One figure beside the model and the baselines; its interval is not known yet."""
    gpu, peers = load_gpu(row.gpu), load_peers()
    peer, vendor = peers[row.kernel], peers[VENDOR].cost
    scored = Scored(row, peer.cost.family, peer.format, "refused")
    try:
        times = [predict(gpu, peer.cost, row.problem, end) for end in ENDS]
    except NotModelledError as error:
        return replace(scored, reason=str(error))
    value, better, worse = (prediction.time_s for prediction in times)
    published = row.value
    if row.source.metric == "time_us":
        predicted, ideal, constant = value * 1e6, 1e6, 1e6
        true_s, best, worst = published * 1e-6, better * 1e6, worse * 1e6
    else:
        vendor_s = predict(gpu, vendor, row.problem).time_s
        predicted = vendor_s / value
        ideal = roofline_s(gpu, vendor, row)
        constant = roofline_s(gpu, vendor, row, 0.8, 3e-6)
        true_s, best, worst = vendor_s / published, vendor_s / worse, vendor_s / better
    power = 1 if row.source.metric == "time_us" else -1
    reason = refusal(gpu, peer.cost, row.problem, value)
    if not reason and row.source.metric == "time_us" and true_s < SHORTEST_S:
        reason = "published time below 20 us"
    return replace(
        scored,
        standing="apart" if reason else "scored",
        reason=reason,
        predicted=predicted,
        residual=log(true_s / value),
        limiter=times[0].limiter,
        corner=best <= published <= worst,
        ideal=ideal * roofline_s(gpu, peer.cost, row) ** power,
        constant=constant * roofline_s(gpu, peer.cost, row, 0.8, 3e-6) ** power,
    )


def ratios(scored: Sequence[Scored]) -> list[Scored]:
    """Weight-only rows whose residuals are of the ratio to 16 bits on the same board, at one shape and batch.

    A speed-up is such a ratio. Of a time the residual of the source's own 16-bit time is taken off; where there
    is none, the row is left out, and where that one stands apart, it does too.
    """
    sixteen = {_place(s): s for s in scored if s.family == VENDOR_FAMILY}
    found = []
    for s in scored:
        if s.family == VENDOR_FAMILY or s.predicted is None:
            continue
        if s.row.source.metric == "speedup":
            found.append(s)
        elif (base := sixteen.get(_place(s))) and base.predicted is not None:
            standing = s.standing if base.standing == "scored" else base.standing
            residual = s.residual - base.residual
            found.append(replace(s, standing=standing, residual=residual, width=None))
    return found


def differences_covered(times: Sequence[Scored], paired: Sequence[Scored]) -> list[bool]:
    """Of every scored pair of times: whether weight-only less 16-bit time is in its held-out interval.

    Args:
        times: rows with the held-out intervals of times.
        paired: `ratios` of them, with their own.
    """
    by_row = {s.row: s for s in times}
    sixteen = {_place(s): s for s in times if s.family == VENDOR_FAMILY}
    found = []
    for s in paired:
        alone, base = by_row[s.row], sixteen.get(_place(s))
        known = s.standing == "scored" and s.row.source.metric == "time_us" and base
        if not known or base is None or base.predicted is None or s.predicted is None:
            continue
        if s.width is None or alone.width is None:
            continue
        ratio, around = s.predicted / base.predicted, (exp(-s.width), exp(s.width))
        ends = (base.predicted * exp(-alone.width), base.predicted * exp(alone.width))
        low, high = difference((ratio * around[0], ratio * around[1]), ends)
        found.append(low <= s.row.value - base.row.value <= high)
    return found


def _place(s: Scored) -> Hashable:
    """What a figure and the 16-bit one beside it have in common."""
    return s.row.source.key, s.row.gpu, s.row.problem


def widths(scored: Iterable[Scored]) -> dict[bool, float]:
    """Half-width of the 90 % interval for batches up to 64 (True) and above, from weight-only rows."""
    cells: dict[bool, dict[Hashable, list[float]]] = {
        small: defaultdict(list) for small in (True, False)
    }
    for s in scored:
        if s.standing == "scored" and s.family != VENDOR_FAMILY:
            cells[s.small][s.row.source.key, s.row.gpu, s.family].append(s.residual)
    return {small: conformal.width(found) for small, found in cells.items()}


def by_source(scored: Scored) -> Hashable:
    """Hold out whole sources."""
    return scored.row.source.key


def by_board(scored: Scored) -> Hashable:
    """Hold out whole boards, of all sources."""
    return scored.row.gpu


def held_out(
    scored: Sequence[Scored], key: Callable[[Scored], Hashable] = by_source
) -> list[Scored]:
    """Every row with the interval that the rows of the other groups give, if they give a finite one."""
    found = {
        group: widths(s for s in scored if key(s) != group) for group in {key(s) for s in scored}
    }
    return [
        replace(s, width=width if isfinite(width := found[key(s)][s.small]) else None)
        for s in scored
    ]


def errors(group: Sequence[Scored]) -> Errors:
    """Errors of rows that have a prediction.

    Raises:
        ZeroDivisionError: there are no rows.
    """
    rows = len(group)
    limiters: dict[str, int] = defaultdict(int)
    for s in group:
        limiters[s.limiter or ""] += 1

    def wrong(said: Callable[[Scored], float | None]) -> list[float]:
        return [abs((said(s) or 0.0) / s.row.value - 1) for s in group]

    ours, ideal, constant = (
        wrong(said) for said in (lambda s: s.predicted, lambda s: s.ideal, lambda s: s.constant)
    )
    bounded = sum(s.width is not None for s in group)
    return Errors(
        rows=rows,
        bounded=bounded,
        mape=sum(ours) / rows,
        median=median(ours),
        bias=exp(-sum(s.residual for s in group) / rows) - 1,
        coverage=sum(s.covered for s in group) / bounded if bounded else None,
        corner_coverage=sum(s.corner for s in group) / rows,
        ideal_mape=sum(ideal) / rows,
        ideal_median=median(ideal),
        constant_mape=sum(constant) / rows,
        constant_median=median(constant),
        limiters=dict(sorted(limiters.items(), key=lambda item: -item[1])),
    )

"""N*: the model size at which low bits begin, or cease, to pay; closed form, and solved on real layer tables.

A step of a model of N weights, in `calls` operators, costs an arm

    graph launches      calls t0 + N c
    eager launches      max(calls t_host, calls t0 + N c)      the host runs ahead, or is waited for

with t0 and c of each arm from the sizes of the operators in the profile (size_fit.py), t0 that of all
launches of an operator together. Where both arms are bound by the device

    N* = calls (t0_q - t0_16) / (c_16 - c_q)

and the sign says which side wins. Nothing on the right is fitted to any measured crossing. How far the form
is off is known from the operators it was fitted to: each replicate's ratio of costs is multiplied by
exp(misfit t), t of Student's distribution, as in the trap map. The misfit is pooled over batches, or that of
the batch where it is larger. Its degrees of freedom are those of one batch, operators less the two unknowns:
batches share operators, kernels and processes, so an operator that is off at one of them is off at the next,
and is counted once. What is assumed is that operators are off independently of each other, and models' as
much as the measured ones'. Where batches are in fact independent that is more than enough (of simulated
operators off by normal deviates, three of them at four batches, nearly all lie within 95 % intervals; where all
batches are off alike 95 %, but 78 % if batches were counted as independent). The own layer, extrapolated as if
it had not been measured, stands beside the map as a check.

As with B*, a size is won, lost or undecided by the interval of best16 / arm there; the sign is that of the
decided sizes, and the interval of N* lies between the last decided size on one side of it and the first on the
other: the sizes that cannot be told from it. Arms of equal t0 cost the same where weights are few, so that
small models may stay undecided where all larger ones are won; which, is said. It is looked for only where
operators of N / calls weights are of sizes that the profile's own span, and REACH times above; not below,
where t0 alone decides, which is the difference of much larger times and may have been cut off at 0. "always"
and "never" say no more than that, and a sign that contradicts the measured layer at that layer's own size is
not given. Real models have more calls the larger they are, so the same cost is also laid
over the layer tables of model families (trap_map.py): then N* lies between two models of a family.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise

import numpy as np
from scipy.special import stdtrit

from bench.analysis.arms import Problem
from bench.analysis.crossing import Crossing, crossing
from bench.analysis.replicates import Book, Draws, problem_of
from bench.analysis.size_fit import SizeFit, fit_sizes
from bench.analysis.verdict import Outcome, Path, Sign, outcome
from profiles.schema import LAYER, Comparison, Quantity, absent

REACH = 10.0  # times the largest operator up to which a crossing is looked for
SIZES = 40  # looked at first
LARGEST_LOG = 300.0  # of a ratio, far below what a float holds
HALVINGS = 5  # of the gaps in which the outcome changes: they are below 1 % then


@dataclass(frozen=True)
class ArmCosts:
    """What one arm costs at one batch, whatever the operator.

    Attributes:
        fit: t0 and c, from operators on the device.
        host_s: [1 + R], seconds of the host for one operator launched eagerly; None: not known.
    """

    fit: SizeFit
    host_s: Draws | None = None

    def step_s(self, calls: float, weights: float | np.ndarray, eager: bool) -> Draws:
        """Seconds of a step of so many operators with so many weights together."""
        device = calls * self.fit.t0_s + self.fit.per_weight_s * weights
        if eager and self.host_s is not None:
            return np.maximum(device, calls * self.host_s)
        return device


@dataclass(frozen=True)
class Costs:
    """best16 and a quantized arm of one format at one batch, and how far their ratio is off.

    Attributes:
        batch: rows of x.
        best16: the best 16-bit arm of each operator.
        arm: the quantized one.
        misfit: standard deviation of log(measured ratio / fitted ratio), of one operator: over all batches,
            or of this one where that is larger.
        freedom: degrees of freedom of that: the operators less two, however many batches there are.
    """

    batch: int
    best16: ArmCosts
    arm: ArmCosts
    misfit: float
    freedom: int

    def off(self, size: int) -> Draws | None:
        """[1 + size], what the ratio of costs may be off by, 1 first; None where the misfit is not known."""
        if self.freedom == 0 or not math.isfinite(self.misfit):
            return None
        # Evenly spaced quantiles in random order: with few degrees of freedom the tails are long, and drawn at
        # random they would leave the ends of an interval to chance.
        at = np.random.default_rng(self.batch).permutation((np.arange(size) + 0.5) / size)
        noise = np.clip(self.misfit * stdtrit(self.freedom, at), -LARGEST_LOG, LARGEST_LOG)
        return np.concatenate([[1.0], np.exp(noise)])

    def reach(self, calls: int) -> tuple[float, float]:
        """Weights of a step of so many operators between which a crossing is looked for."""
        sizes = self.arm.fit.sizes
        return float(calls * min(sizes)), calls * max(sizes) * REACH


@dataclass(frozen=True)
class CriticalScale:
    """N* of one format, path, batch and launch mode, from the profile alone.

    Attributes:
        format: weight format.
        path: "fused", "unfused" or "lowp".
        batch: rows of x.
        eager: whether launches are eager.
        sizes: best16 / arm over sizes: sign, crossings and outcomes, in weights of the operators of a step.
        params: N*, the first crossing; absent with the reason where there is none.
        calls: operators of a step that it is meant for.
        reach: weights between which it was looked for.
    """

    format: str
    path: Path
    batch: int
    eager: bool
    sizes: Crossing
    params: Quantity
    calls: int
    reach: tuple[float, float]

    @property
    def sign(self) -> Sign:
        """wins_above, wins_below, always, never, several crossings, or undecided where every size is."""
        return self.sizes.sign

    @property
    def undecided(self) -> tuple[tuple[float, float], ...]:
        """Sizes from and to that are undecided, other than those around a crossing."""
        runs = [
            (key, [n for n, _ in run]) for key, run in groupby(self.sizes.outcomes, lambda o: o[1])
        ]
        found = []
        for i, (key, sizes) in enumerate(runs):
            beside = {runs[j][0] for j in (i - 1, i + 1) if 0 <= j < len(runs)}
            if key == "undecided" and len(beside) < 2:
                low = runs[i - 1][1][-1] if i else sizes[0]
                high = runs[i + 1][1][0] if i + 1 < len(runs) else sizes[-1]
                found.append((low, high))
        return tuple(found)


def costs_of(
    book: Book, weight_format: str, path: Path, host: Book | None = None
) -> dict[int, Costs]:
    """Costs per batch of one format and path.

    Args:
        book: of the profile whose operators give t0 and c.
        weight_format: whose arms.
        path: which arm.
        host: of a profile with eager launches, which gives the host's time; None for graph launches. It may
            be `book` itself, where there are eager launches only.
    """
    launched = {problem_of(c): c for c in host.profile.comparisons} if host else {}
    chosen: dict[int, list[Comparison]] = {}
    for c in book.profile.comparisons:
        if c.operator != LAYER and c.format == weight_format:
            chosen.setdefault(c.batch, []).append(c)
    fitted: dict[int, tuple[ArmCosts, ArmCosts]] = {}
    logs: dict[int, list[float]] = {}
    for batch, comparisons in sorted(chosen.items()):
        points: dict[str, list[tuple[int, Draws]]] = {"best16": [], path: []}
        for c in comparisons:
            pair = {role: book.time_s(problem_of(c), getattr(c, role)) for role in points}
            if all(d is not None for d in pair.values()) and c.n and c.k:
                for role, d in pair.items():
                    if d is not None:
                        points[role].append((c.n * c.k, d))
        fits = {role: fit_sizes(each) for role, each in points.items()}
        a, b = fits["best16"], fits[path]
        if a is None or b is None:
            continue
        logs[batch] = [x - y for x, y in zip(a.residuals, b.residuals, strict=True)]
        hosts = {role: _host_s(book, comparisons, role, launched, host) for role in points}
        fitted[batch] = (ArmCosts(a, hosts["best16"]), ArmCosts(b, hosts[path]))
    all_logs = [x for each in logs.values() for x in each]
    pooled = _deviation(all_logs, sum(_freedom(each) for each in logs.values()))
    return {
        batch: Costs(
            batch, a, b, max(pooled, _deviation(logs[batch], _freedom(logs[batch]))),
            _freedom(logs[batch]),
        )
        for batch, (a, b) in fitted.items()
    }  # fmt: skip


def _freedom(residuals: Sequence[float]) -> int:
    """Of the operators of one batch, less t0 and c."""
    return max(len(residuals) - 2, 0)


def _deviation(residuals: Sequence[float], freedom: int) -> float:
    """Standard deviation about 0; 0 where there is no freedom, since then nothing is known of it."""
    return math.sqrt(sum(x * x for x in residuals) / freedom) if freedom else 0.0


def measured_layers(book: Book, weight_format: str, eager: bool) -> dict[int, Comparison]:
    """The comparisons of the layer of one format and launch mode, by batch."""
    key = (LAYER, weight_format, "eager" if eager else "graph")
    return {
        c.batch: c for c in book.profile.comparisons if (c.operator, c.format, c.launch_mode) == key
    }


def critical_scale(
    book: Book,
    weight_format: str,
    path: Path,
    costs: Costs,
    calls: int,
    eager: bool,
    layer: Quantity | None = None,
) -> CriticalScale:
    """N* of steps of `calls` operators, from t0 and c alone, misfit included.

    Args:
        book: of the profile.
        weight_format: of the arm.
        path: which arm.
        costs: at one batch.
        calls: operators of a step.
        eager: the launch mode.
        layer: best16 / arm of the measured layer at that batch and mode, which a sign must not contradict.
    """
    reach = costs.reach(calls)
    size = min(book.size + 1, len(costs.arm.fit.t0_s))
    off = costs.off(size - 1)
    known: dict[float, Quantity] = {}
    if off is not None:
        for n in np.geomspace(*reach, SIZES):
            known[float(n)] = book.quantity(_ratio(costs, calls, float(n), eager, off))
        for _ in range(HALVINGS):
            for a, b in list(pairwise(sorted(known))):
                if _side(known[a]) != _side(known[b]):
                    n = math.sqrt(a * b)
                    known[n] = book.quantity(_ratio(costs, calls, n, eager, off))
    found = crossing(list(known.items()), book.kind)
    weights = book.profile.workload.layers * sum(
        o.n * o.k * o.count for o in book.profile.workload.operators
    )
    said = _said_at(found, weights)
    truth = "undecided" if layer is None else outcome(layer)
    if {said, truth} == {"wins", "loses"}:
        found = Crossing("undecided", (), tuple((n, "undecided") for n, _ in found.outcomes))
        why = f"t0 and c say that low bits {said[:-1]} at the profile's own model, whose layer {truth}"
    elif off is None:
        why = "operators of two sizes only do not tell how far t0 + c n k is off"
    elif found.sign == "undecided":
        why = "the interval of best16 over the arm holds 1 at every size"
    else:
        why = f"there is none: {found.sign}, as far as t0 and c say"
    params = found.at[0] if found.at else absent(why, book.kind)
    return CriticalScale(weight_format, path, costs.batch, eager, found, params, calls, reach)


def _ratio(costs: Costs, calls: int, weights: float, eager: bool, off: Draws) -> Draws:
    """Draws of t(best16) / t(arm) of a step of so many weights, misfit included."""
    a = costs.best16.step_s(calls, weights, eager)[: len(off)]
    b = costs.arm.step_s(calls, weights, eager)[: len(off)]
    found: Draws = off * a / b
    return found


def _said_at(found: Crossing, weights: float) -> Outcome:
    """What the decided sizes say of one between them, or beyond them: that of its neighbours, if they agree."""
    decided = [(n, o) for n, o in found.outcomes if o != "undecided"]
    below = [o for n, o in decided if n <= weights][-1:]
    above = [o for n, o in decided if n > weights][:1]
    said = {*below, *above}
    return said.pop() if len(said) == 1 else "undecided"


def _side(q: Quantity) -> tuple[str, bool]:
    """The outcome, and on which side of 1 the estimate is."""
    return outcome(q), (q.value or 0.0) > 1


def _host_s(
    book: Book,
    comparisons: Iterable[Comparison],
    role: str,
    launched: Mapping[Problem, Comparison],
    host: Book | None,
) -> Draws | None:
    """Seconds of the host for one operator, where eager launches were measured beside graph ones.

    Of operators that take longer eagerly the eager time is the host's: their mean. Where none does, the host
    is faster than the shortest of them, and that is all there is to know: anything from 0 to that, in the
    replicates.
    """
    if host is None:
        return None
    bound, all_times = [], []
    for c in comparisons:
        other = launched.get(problem_of(c)._replace(launch_mode="eager"))
        if other is None:
            continue
        graph, eager = (
            book.time_s(problem_of(c), getattr(c, role)),
            host.time_s(problem_of(other), getattr(other, role)),
        )
        if graph is None or eager is None:
            continue
        all_times.append(eager)
        if np.quantile(eager[1:] - graph[1:], (1 - book.confidence) / 2) > 0:
            bound.append(eager)
    if bound:
        mean: Draws = np.mean(bound, axis=0)
        return mean
    if not all_times:
        return None
    least = min(all_times, key=lambda d: float(d[0]))
    share = np.concatenate([[0.5], np.random.default_rng(0).uniform(size=len(least) - 1)])
    unknown: Draws = least * share
    return unknown

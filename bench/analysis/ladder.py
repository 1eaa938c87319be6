"""The parts of a fused kernel's time, rung by rung; in joules where every rung has some.

    fixed       t0 of `stream`, from operators of different sizes (size_fit.py): launch, and rows of x and y
    move        t(stream) - fixed
    unpack      t(unpack) - t(stream)
    scale       t(scale) - t(unpack)
    multiply    t(bypass) - t(stream)         what multiplying adds to moving, dequantization being free
    residual    t(fused) - the sum of all of these

Stages that overlap cost less together than one by one: then the residual is negative, and the casting that
unpack and scale show alone is partly hidden. Exposed dequantization is unpack + scale + residual, whatever
the residual is. Each stage needs a consumer that keeps it alive, so single parts are descriptive; their sum
is not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from bench.analysis.arms import Problem
from bench.analysis.replicates import Book, Draws, problem_of
from bench.analysis.size_fit import SizeFit, fit_sizes
from profiles.schema import LAYER, Comparison, Implementation, Quantity, absent

FIXED = "fixed per call"  # launch, x and y
PARTS = (FIXED, "move", "unpack", "scale", "multiply", "residual")
STAGE_MISSING = "this kernel has no such stage of its own; it is within the residual"
Unit = Literal["s", "j"]


@dataclass(frozen=True)
class Ladder:
    """The parts of one fused kernel on one problem.

    Attributes:
        problem: operator, batch, format.
        kernel: the fused kernel.
        parts: name to seconds or joules, in the order of PARTS; they sum to `total`.
        total: t(fused), or its joules.
        exposed: unpack + scale + residual, that is fused - bypass.
        unit: "s" or "j".
        paired: whether parts were taken within blocks.
    """

    problem: Problem
    kernel: Implementation
    parts: Mapping[str, Quantity]
    total: Quantity
    exposed: Quantity
    unit: Unit
    paired: bool


def ladders(book: Book) -> Iterator[Ladder]:
    """The decomposition of every comparison that has a fused kernel: time, then joules where there are."""
    fits: dict[Problem, SizeFit | None] = {}
    for c in book.profile.comparisons:
        problem = problem_of(c)
        where = problem._replace(operator=LAYER)
        if where not in fits:
            fits[where] = _stream_fit(book, where)
        timed = _in_seconds(book, c, fits[where])
        if timed is not None:
            yield timed
        if problem.operator == LAYER:
            in_joules = _in_joules(book, c)
            if in_joules is not None:
                yield in_joules


def _stream_fit(book: Book, layer: Problem) -> SizeFit | None:
    """t0 + c n k of `stream` over the operators of a layer, of the kernels that are its fused ones."""
    points = []
    for c in book.profile.comparisons:
        problem = problem_of(c)
        if problem._replace(operator=LAYER) == layer and c.n and c.k:
            times = book.time_s(problem, book.stage(problem, c.fused, "stream"))
            if times is not None:
                points.append((c.n * c.k, times))
    return fit_sizes(points)


def _in_seconds(book: Book, c: Comparison, fit: SizeFit | None) -> Ladder | None:
    problem, fused = problem_of(c), c.fused
    total = book.time_s(problem, fused)
    if fused is None or total is None:
        return None
    stages = {a: book.stage(problem, fused, a) for a in ("stream", "unpack", "scale", "bypass")}

    def less(a: str, b: str) -> Draws | None:
        x, y = stages[a], stages[b]
        return book.combined_s(problem, {x: 1.0, y: -1.0}) if x and y else None

    fixed = None
    if fit is not None and fit.t0_s[0] > 0:
        calls = 1
        if problem.operator == LAYER:
            calls = sum(o.count for o in book.profile.workload.operators)
        fixed = calls * fit.t0_s
    bypass = stages["bypass"]
    exposed = book.combined_s(problem, {fused: 1.0, bypass: -1.0}) if bypass else None
    if not book.paired:
        exposed = book.drawn(c.phi_exposed_s, "phi", problem)
    draws = {
        FIXED: fixed,
        "move": _minus(book.time_s(problem, stages["stream"]), fixed),
        "unpack": less("unpack", "stream"),
        "scale": less("scale", "unpack"),
        "multiply": less("bypass", "stream"),
    }
    one_size = "operators of one size only do not tell it apart; it is within move"
    clipped = (
        "t0 of stream would be below 0, so t0 + c n k does not tell it apart; it is within move"
    )
    why = {FIXED: one_size if fit is None else clipped}
    return _ladder(book, problem, fused, draws, total, exposed, "s", why)


def _in_joules(book: Book, c: Comparison) -> Ladder | None:
    """Joules: the same rungs, as far as they had energy windows."""
    problem, fused = problem_of(c), c.fused
    if fused is None:
        return None

    def of(arm: str) -> Draws | None:
        return book.joules.get((c.format, c.batch, fused.model_copy(update={"arm": arm})))

    total = of("fused")
    if total is None:
        return None
    draws = {
        FIXED: None,
        "move": of("stream"),
        "unpack": _minus(of("unpack"), of("stream"), strict=True),
        "scale": _minus(of("scale"), of("unpack"), strict=True),
        "multiply": _minus(of("bypass"), of("stream")),
    }
    why = {
        FIXED: "windows last seconds and hold no time without a load; it is within the other parts",
        "move": "stream had no energy windows (--energy full has them); it is within multiply",
        "unpack": "unpack had no energy windows; it is within the residual",
        "scale": "scale had no energy windows; it is within the residual",
    }
    exposed = book.drawn(c.phi_exposed_j, "phi in joules", problem)
    return _ladder(book, problem, fused, draws, total, exposed, "j", why)


def _ladder(
    book: Book,
    problem: Problem,
    fused: Implementation,
    draws: dict[str, Draws | None],
    total: Draws,
    exposed: Draws | None,
    unit: Unit,
    why: Mapping[str, str],
) -> Ladder:
    """Parts and what they leave, so that all of them sum to the total in every replicate."""
    known = [d for d in draws.values() if d is not None]
    residual = total - sum(known[1:], known[0]) if known else None
    parts = {name: book.quantity(d, why.get(name, STAGE_MISSING)) for name, d in draws.items()}
    parts["residual"] = book.quantity(residual, "no other part is known")
    return Ladder(
        problem, fused, parts, book.quantity(total),
        book.quantity(exposed) if exposed is not None else absent("no bypass", book.kind),
        unit, book.paired and unit == "s",
    )  # fmt: skip


def _minus(a: Draws | None, b: Draws | None, strict: bool = False) -> Draws | None:
    """What is left of a without b; a itself where b is not known, unless strict."""
    if a is None:
        return None
    if b is None:
        return None if strict else a
    return a - b

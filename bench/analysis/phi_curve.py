"""phi(h, p): the cost of dequantization over the stored bits of a weight, and COR over the batch.

phi is a step function: formats are points, not samples of a smooth curve. A derivative means something only
within one family, where the bits change and nothing else does: symmetric integers of one group size and kind
of scale, of 4 and 8 bits. Other widths lie in planes or share words, which takes other instructions, and one
bit has another quantizer: they are points of their own. It is then the difference quotient of neighbours.

    p          stored bits per weight, scales and zero points included: bytes of the packed words over n k
    phi        exposed (fused - bypass) and unfused (unfused - best16), seconds of one layer
    dphi/dp    (phi(b) - phi(a)) / (p(b) - p(a)); formats are timed one after another, so their replicates
               are independent
    COR        phi / (t - phi); that it falls with the batch is a theorem of the paper under its assumptions,
               and here a test: each step from one batch to the next rises, falls, or is undecided
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np

from bench.analysis.replicates import Book, Draws, problem_of
from bench.analysis.verdict import Path
from kernels.formats import FORMATS, WeightFormat
from profiles.schema import LAYER, Comparison, Implementation, Quantity

CASTING: tuple[Path, ...] = ("fused", "unfused")  # lowp dequantizes nothing, and has no phi
ONE_PATH = (4, 8)  # bits whose codes are made by one quantizer, and read by the same instructions
Direction = Literal["rises", "falls", "undecided"]


@dataclass(frozen=True)
class PhiPoint:
    """phi of one format at one batch.

    Attributes:
        format: its name.
        batch: rows of x.
        bits_stored: p; None where neither the profile nor this checkout knows it.
        family: "symmetric integers, groups of 128", or "" for a format that is a point of its own.
        exposed: phi of the fused kernel.
        unfused: phi of the unfused pair.
    """

    format: str
    batch: int
    bits_stored: float | None
    family: str
    exposed: Quantity
    unfused: Quantity


@dataclass(frozen=True)
class Slope:
    """dphi/dp between two neighbours of one family, in seconds per bit."""

    family: str
    batch: int
    path: Path
    formats: tuple[str, str]
    bits: tuple[float, float]
    per_bit_s: Quantity


@dataclass(frozen=True)
class CorStep:
    """COR from one batch to the next.

    Attributes:
        batches: the two.
        change: COR at the larger less COR at the smaller one.
        direction: whether the interval of that lies above 0, below 0, or neither; Bonferroni over the steps
            of one format and path, so that chance breaks the theorem in one of twenty curves at most.
    """

    batches: tuple[int, int]
    change: Quantity
    direction: Direction


@dataclass(frozen=True)
class CorCurve:
    """COR over the batch, of one format and path."""

    format: str
    path: Path
    points: tuple[tuple[int, Quantity], ...]
    steps: tuple[CorStep, ...]

    @property
    def verdict(self) -> str:
        """Whether COR falls with the batch, and where it does not."""
        rising = [s.batches for s in self.steps if s.direction == "rises"]
        falling = [s for s in self.steps if s.direction == "falls"]
        if rising:
            where = ", ".join(f"{a} to {b}" for a, b in rising)
            return f"rises from B = {where}: the theorem's assumptions do not hold there"
        if not falling:
            return "no step is decided"
        rest = len(self.steps) - len(falling)
        return (
            "falls at every step"
            if not rest
            else f"never rises; {rest} of {len(self.steps)} steps open"
        )


def layers_of(book: Book) -> list[Comparison]:
    """The comparisons of whole layers, by format in the workload's order, then batch."""
    order = {name: i for i, name in enumerate(book.profile.workload.formats)}
    found = [c for c in book.profile.comparisons if c.operator == LAYER]
    return sorted(found, key=lambda c: (order.get(c.format, len(order)), c.batch))


def phi_draws(book: Book, c: Comparison, path: Path) -> Draws | None:
    """Draws of phi of one comparison, in seconds."""
    problem = problem_of(c)
    if not book.paired:
        q = c.phi_exposed_s if path == "fused" else c.phi_unfused_s
        return book.drawn(q, "phi", path, problem)
    a, b = _with_and_without(book, c, path)
    return book.combined_s(problem, {a: 1.0, b: -1.0}) if a and b else None


def _with_and_without(
    book: Book, c: Comparison, path: Path
) -> tuple[Implementation | None, Implementation | None]:
    """The kernel of a path, and the one that is it without the casting."""
    if path == "fused":
        return c.fused, book.stage(problem_of(c), c.fused, "bypass")
    return c.unfused, c.best16


def cor_draws(book: Book, c: Comparison, path: Path) -> Draws | None:
    """Draws of the casting overhead ratio of one comparison."""
    problem = problem_of(c)
    if not book.paired:
        q = c.cor_exposed if path == "fused" else c.cor_unfused
        return book.drawn(q, "cor", path, problem)
    a, b = _with_and_without(book, c, path)
    ratio = book.ratio(problem, a, b) if a and b else None
    return None if ratio is None else ratio - 1


def phi_points(book: Book) -> tuple[PhiPoint, ...]:
    """Every format's phi at every batch, on the layer."""
    return tuple(
        PhiPoint(
            c.format, c.batch, bits_stored(book, c.format), family_of(c.format),
            c.phi_exposed_s, c.phi_unfused_s,
        )
        for c in layers_of(book)
    )  # fmt: skip


def slopes(book: Book) -> tuple[Slope, ...]:
    """dphi/dp of neighbours within each family, at every batch that both were measured at."""
    found = []
    layers = layers_of(book)
    families = {family_of(c.format) for c in layers} - {""}
    for family in sorted(families):
        for batch in sorted({c.batch for c in layers}):
            members = [
                (p, c)
                for c in layers
                if c.batch == batch
                and family_of(c.format) == family
                and (p := bits_stored(book, c.format)) is not None
            ]
            for (p, a), (q, b) in pairwise(sorted(members, key=lambda m: m[0])):
                for path in CASTING:
                    low, high = phi_draws(book, a, path), phi_draws(book, b, path)
                    if low is not None and high is not None and q > p:
                        slope = book.quantity((high - low) / (q - p))
                        found.append(
                            Slope(family, batch, path, (a.format, b.format), (p, q), slope)
                        )
    return tuple(found)


def cor_curves(book: Book) -> Iterator[CorCurve]:
    """COR over the batch of every format and path, each step tested."""
    layers = layers_of(book)
    for weight_format in dict.fromkeys(c.format for c in layers):
        for path in CASTING:
            known = [
                (c, d)
                for c in layers
                if c.format == weight_format and (d := cor_draws(book, c, path)) is not None
            ]
            if known:
                points = tuple(
                    (c.batch, c.cor_exposed if path == "fused" else c.cor_unfused) for c, _ in known
                )
                yield CorCurve(weight_format, path, points, tuple(_cor_steps(book, known)))


def _cor_steps(book: Book, known: list[tuple[Comparison, Draws]]) -> Iterator[CorStep]:
    tail = (1 - book.confidence) / 2 / max(len(known) - 1, 1)
    for (a, cor_a), (b, cor_b) in pairwise(known):
        change = cor_b - cor_a
        low, high = np.quantile(change[1:], (tail, 1 - tail))
        direction: Direction = "rises" if low > 0 else "falls" if high < 0 else "undecided"
        yield CorStep((a.batch, b.batch), book.quantity(change), direction)


def bits_stored(book: Book, name: str) -> float | None:
    """p: bits per weight that the packed kernels read, over a layer; None where it is not known.

    From the profile's own traffic; a format whose traffic it does not hold is looked up in this checkout.
    """
    sizes = {o.name: (o.n * o.k, o.count) for o in book.profile.workload.operators}
    bits: dict[str, float] = {}
    for row in book.profile.rows:
        if row.format == name and row.arm == "stream" and row.traffic and row.operator in sizes:
            bits[row.operator] = 8.0 * row.traffic.bytes_read
    if len(bits) == len(sizes):
        weights = sum(size * count for size, count in sizes.values())
        return sum(bits[o] * count for o, (_, count) in sizes.items()) / weights
    known = known_format(name)
    if known is None:
        return None
    weights = sum(o.n * o.k * o.count for o in book.profile.workload.operators)
    try:
        total = sum(
            known.bits_stored(o.k) * o.n * o.k * o.count for o in book.profile.workload.operators
        )
    except ValueError:  # widths that do not divide into its groups
        return None
    return total / weights


def family_of(name: str) -> str:
    """The family within which only the bits differ; "" for a format that has none."""
    known = known_format(name)
    if known is None or known.encoding != "int" or known.zero_point or known.bits not in ONE_PATH:
        return ""
    if known.scale_type != "activation":
        return ""
    if known.group_size is None:
        return "symmetric integers, one scale per row"
    return f"symmetric integers, groups of {known.group_size}"


def known_format(name: str) -> WeightFormat | None:
    """The format of that name, if this checkout has it; a profile may come from another."""
    return next((f for f in FORMATS if f.name == name), None)

"""What a chain of hops costs: K hops of T tokens each, one after the other.

    time    K T layers t(layer)         energy    K T layers joules(layer)

Hops follow each other, so a chain cannot fill a batch by itself: at batch 1 it pays every step alone. The
failure to amortise is a number, the cost of one of its tokens over that of a token at the largest measured
batch. The launch part, eager less graph, is beside it. All of it is extrapolated from the layer: no lm_head,
attention, KV cache or sampling.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from bench.analysis.arms import Problem
from bench.analysis.phi_curve import layers_of
from bench.analysis.replicates import Book, problem_of
from profiles.schema import Comparison, Implementation, Quantity, absent

Role = Literal["best16", "fused", "unfused", "lowp"]
ROLES: tuple[Role, ...] = ("best16", "fused", "unfused", "lowp")
ONE_MODE = "the profile holds one launch mode only; give the other one's with --other-launch"


@dataclass(frozen=True)
class Chain:
    """A chain of hops with one arm.

    Attributes:
        format: weight format of the problem.
        role: best16, fused, unfused or lowp.
        batch: chains side by side.
        time_s: of the whole chain.
        energy_j: of the whole chain and of all of its batch; absent without joules.
        launch_s: the part of an eager chain that graph launches avoid; absent without both modes.
        amortised_at: the largest measured batch.
        not_amortised: time of a token here over that of a token there.
    """

    format: str
    role: Role
    batch: int
    time_s: Quantity
    energy_j: Quantity
    launch_s: Quantity
    amortised_at: int
    not_amortised: Quantity


def chains(
    book: Book,
    hops: int,
    tokens_per_hop: int,
    batch: int,
    other: Book | None = None,
) -> Iterator[Chain]:
    """The chain at every format and arm of the profile.

    Args:
        book: of the profile.
        hops: K.
        tokens_per_hop: T.
        batch: one that was measured.
        other: of a profile of the same device in the other launch mode.
    """
    steps = hops * tokens_per_hop * book.profile.workload.layers
    layers = layers_of(book)
    largest = max((c.batch for c in layers), default=batch)
    others = {problem_of(c): c for c in layers_of(other)} if other else {}
    for c in layers:
        if c.batch != batch:
            continue
        full = next(
            (
                x
                for x in layers
                if (x.format, x.batch, x.launch_mode) == (c.format, largest, c.launch_mode)
            ),
            None,
        )
        for role in ROLES:
            time_s = book.time_s(problem_of(c), getattr(c, role))
            if time_s is None:
                continue
            there = None if full is None else book.time_s(problem_of(full), getattr(full, role))
            energy = book.joules.get((c.format, c.batch, getattr(c, role)))
            yield Chain(
                c.format, role, batch, book.quantity(steps * time_s),
                book.quantity(None if energy is None else steps * energy, _no_joules(book, c, role)),
                _launch(book, c, role, steps, other, others), largest,
                absent(f"{c.format} {role} was not measured there", book.kind) if there is None
                else book.quantity((time_s / batch) / (there / largest)),
            )  # fmt: skip


def _no_joules(book: Book, c: Comparison, role: Role) -> str:
    return book.profile.energy.reason or f"{role} had no energy windows at batch {c.batch}"


def _launch(
    book: Book,
    c: Comparison,
    role: Role,
    steps: int,
    other: Book | None,
    others: Mapping[Problem, Comparison],
) -> Quantity:
    """Eager less graph, of the same arm."""
    kernel: Implementation = getattr(c, role)
    mode = "graph" if c.launch_mode == "eager" else "eager"
    problem = problem_of(c)._replace(launch_mode=mode)
    found = others.get(problem)
    if other is None or found is None:
        return absent(ONE_MODE, book.kind)
    here, there = book.time_s(problem_of(c), kernel), other.time_s(problem, getattr(found, role))
    if here is None or there is None:
        return absent("the arm has no time in both launch modes", book.kind)
    return book.quantity(steps * (here - there if c.launch_mode == "eager" else there - here))

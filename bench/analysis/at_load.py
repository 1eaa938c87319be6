"""Dequantize once, when the model is loaded, and run 16 bits from then on: when that pays.

It moves 16 bits per weight and needs the memory of 16 bits, so its steps are those of best16. Against the
fused kernel it wins where best16 does, after it has repaid the loading:

    steps = layers t(dequantize) / (layers (t(arm) - t(best16)))        where the arm is the slower one
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from bench.analysis.arms import Problem
from bench.analysis.phi_curve import layers_of
from bench.analysis.replicates import Book, Draws, problem_of
from bench.analysis.verdict import outcome
from profiles.schema import Comparison, Implementation, Quantity, absent


@dataclass(frozen=True)
class AtLoad:
    """Dequantizing at load, of one format at one batch.

    Attributes:
        format: weight format.
        batch: rows of x.
        load_s: dequantizing all layers once.
        steps_fused: decode steps after which it has cost less time than the fused kernel; absent where that
            is not slower than best16.
        steps_unfused: the same against the unfused pair.
    """

    format: str
    batch: int
    load_s: Quantity
    steps_fused: Quantity
    steps_unfused: Quantity


def at_load(book: Book) -> Iterator[AtLoad]:
    """Every format and batch of the layer that has a `dequantize` arm."""
    layers = book.profile.workload.layers
    for c in layers_of(book):
        load = _load_s(book, problem_of(c))
        if load is None:
            continue
        yield AtLoad(
            c.format, c.batch, book.quantity(layers * load),
            _steps(book, c, load, c.fused, c.speedup_fused),
            _steps(book, c, load, c.unfused, c.speedup_unfused),
        )  # fmt: skip


def _load_s(book: Book, problem: Problem) -> Draws | None:
    """The fastest `dequantize` of a layer."""
    found = [
        d
        for kernel in book.rows.get(problem, {})
        if kernel.arm == "dequantize" and (d := book.time_s(problem, kernel)) is not None
    ]
    return min(found, key=lambda d: float(d[0]), default=None)


def _steps(
    book: Book, c: Comparison, load: Draws, arm: Implementation | None, speedup: Quantity
) -> Quantity:
    if arm is None or c.best16 is None:
        return absent("no such arm", book.kind)
    if outcome(speedup) != "loses":
        return absent("16 bits are not faster than this arm here, so nothing repays it", book.kind)
    lost = book.combined_s(problem_of(c), {arm: 1.0, c.best16: -1.0})
    if lost is None:
        return absent("the two arms were not timed together", book.kind)
    return book.quantity(np.where(lost > 0, load / np.where(lost > 0, lost, 1.0), np.nan))

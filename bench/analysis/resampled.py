"""A profile's layers with intervals of one kind: those of resampled processes and blocks.

A profile's own intervals are of blocks within processes (stats.py); whatever is derived from several quantities
is resampled over processes too (replicates.py). In one printout the two would contradict each other, N* being
undecided where B* is sure, so all that compares a layer is resampled where there are samples to do it with.
"""

from __future__ import annotations

from dataclasses import replace

from bench.analysis.phi_curve import CASTING, cor_draws, phi_draws
from bench.analysis.replicates import Book, Draws, problem_of
from bench.analysis.verdict import PATHS
from profiles.schema import LAYER, Comparison, Implementation, Quantity


def resampled(book: Book) -> Book:
    """The same book, its layers' speed-ups, phi and COR in time with resampled intervals.

    Estimates stay, and so do joules, which have no samples beside the profile. Without samples nothing changes.
    """
    if not book.paired:
        return book
    comparisons = tuple(
        _resampled(book, c) if c.operator == LAYER else c for c in book.profile.comparisons
    )
    return replace(book, profile=book.profile.model_copy(update={"comparisons": comparisons}))


def _resampled(book: Book, c: Comparison) -> Comparison:
    draws: dict[str, Draws | None] = {}
    for path in PATHS:
        arm: Implementation | None = getattr(c, path)
        if c.best16 is not None and arm is not None:
            draws[f"speedup_{path}"] = book.ratio(problem_of(c), c.best16, arm)
    for path, word in zip(CASTING, ("exposed", "unfused"), strict=True):
        draws[f"phi_{word}_s"] = phi_draws(book, c, path)
        draws[f"cor_{word}"] = cor_draws(book, c, path)
    found: dict[str, Quantity] = {}
    for name, drawn in draws.items():
        own: Quantity = getattr(c, name)
        if drawn is not None and own.low is not None:
            q = book.quantity(drawn)
            found[name] = own.model_copy(
                update={"low": q.low, "high": q.high, "reason": q.reason or own.reason}
            )
    return c.model_copy(update=found)

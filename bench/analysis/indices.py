"""The paper's indices of sustainability, and its test for the trap (arXiv 2602.13595, Prop. A.1).

    SSI    energy: joules per token of best16 over those of the format     16 bits are 1
    ESI    economy: tokens per second over those of best16                 16 bits are 1
    TSI    trust: 1 - error of a chain of layers after as many passes as there are hops, not below 0, or
           the accuracy of a user's own table over that of its 16-bit row   16 bits are 1
    SI     sum of w_i v_i, weights that sum to 1
    trap   dSI/dp > 0: fewer bits, less SI

dSI/dp means something only where the bits change and nothing else does: within one family (phi_curve.family_of:
symmetric integers of one group size, METHOD section 6), between neighbours. From 16 bits to a format much else
changes too, and what is asked there is whether the step as a whole loses: that is a difference quotient over
16 - p bits with a name of its own, "from 16 bits". Between formats of different families there is neither.

The chain's error is a proxy for accuracy: of numerical drift over depth alone (compounding.py), one token a
pass, whatever the tokens per hop, in a model of few random layers.

Scaled to 16 bits, so that terms of different units can be added. A missing term is never filled in: SI is
absent then, unless its weight is 0. A term without an interval leaves SI without one, and what follows from it
undecided; a term from somebody else's table makes it imported.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from bench.analysis.compounding import error_at
from bench.analysis.phi_curve import bits_stored, family_of, layers_of
from bench.analysis.replicates import Book, Draws, drawn, quantity
from profiles.fidelity import Fidelity
from profiles.files import ProfileError, read_file
from profiles.schema import Comparison, Kind, Quantity, absent

MAXIMUM_TABLE_BYTES = 1024 * 1024
SIXTEEN = "16-bit"


@dataclass(frozen=True)
class Weights:
    """What each term counts, in the order trust, environment, economy; they sum to 1."""

    trust: float = 1 / 3
    environment: float = 1 / 3
    economy: float = 1 / 3


@dataclass(frozen=True)
class Index:
    """The indices of one format on the fused path (unfused where there is no fused kernel)."""

    format: str
    path: str
    bits_stored: float | None
    trust: Quantity
    environment: Quantity
    economy: Quantity
    si: Quantity


@dataclass(frozen=True)
class Sum:
    """Draws of a weighted sum, their kind, and why there are none, or no replicates among them."""

    draws: Draws | None
    kind: Kind
    reason: str = ""


@dataclass(frozen=True)
class TrapStep:
    """SI from one p to a larger one: a trap where its slope is above 0.

    Attributes:
        formats: of fewer bits, and of more.
        bits: p of both.
        slope: change of SI per bit.
        family: within which it is a derivative; "" for the step from 16 bits.
    """

    formats: tuple[str, str]
    bits: tuple[float, float]
    slope: Quantity
    family: str = ""

    @property
    def outcome(self) -> str:
        """trap, no trap or undecided."""
        if self.slope.low is None or self.slope.high is None:
            return "undecided"
        return "trap" if self.slope.low > 0 else "no trap" if self.slope.high < 0 else "undecided"


def indices(
    book: Book,
    batch: int,
    weights: Weights,
    fidelity: Fidelity | None,
    hops: int,
    accuracy: Mapping[str, Quantity] | None,
) -> tuple[tuple[Index, ...], tuple[TrapStep, ...]]:
    """Every format at one batch; dSI/dp between neighbours of a family, and each format's step from 16 bits.

    Args:
        book: of the profile.
        batch: one that was measured.
        weights: of the terms.
        fidelity: of the profile's formats; None: TSI is absent unless there is `accuracy`.
        hops: after how many the error counts.
        accuracy: of each format and of "16-bit"; replaces the proxy.
    """
    one = np.ones(book.size + 1)
    sixteen = Sum(one, book.kind)
    points: list[tuple[float, str, Sum]] = []
    rows = []
    for c in layers_of(book):
        if c.batch != batch:
            continue
        path = "fused" if c.fused is not None else "unfused"
        p = bits_stored(book, c.format)
        trust = _trust(c.format, book, fidelity, hops, accuracy)
        environment, economy = (
            getattr(c, f"{name}_{path}") for name in ("energy_ratio", "speedup")
        )
        terms = (
            (weights.trust, trust),
            (weights.environment, environment),
            (weights.economy, economy),
        )
        si = _sum(book, terms, c)
        if si.draws is not None and p is not None:
            points.append((p, c.format, si))
        rows.append(Index(c.format, path, p, trust, environment, economy, _quantity(book, si)))
    points.sort(key=lambda point: point[:2])
    families = dict.fromkeys(family for _, name, _ in points if (family := family_of(name)))
    steps = [
        TrapStep((a, b), (p, q), _quantity(book, _slope(x, y, q - p)), family)
        for family in families
        for (p, a, x), (q, b, y) in pairwise(
            point for point in points if family_of(point[1]) == family
        )
        if q > p
    ]
    steps += [
        TrapStep((name, SIXTEEN), (p, 16.0), _quantity(book, _slope(si, sixteen, 16.0 - p)))
        for p, name, si in points
        if p < 16
    ]
    return tuple(rows), tuple(steps)


def read_accuracy(path: Path) -> dict[str, Quantity]:
    """Accuracy per format from a CSV file: columns format, accuracy, and low and high where known.

    One row is named "16-bit": what the others are divided by. All are fractions, or all percentages.

    Raises:
        ProfileError: the file cannot be read, lacks a column or the row "16-bit", holds no number, mixes
            fractions with percentages, or has an accuracy over that of 16 bits that is not finite.
    """
    try:
        text = read_file(path, MAXIMUM_TABLE_BYTES).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ProfileError(f"{path} is not text in UTF-8.") from None
    try:
        rows = list(csv.DictReader(text.splitlines()))
    except csv.Error as error:
        raise ProfileError(f"{path} is no CSV table: {error}.") from None
    if not rows or not {"format", "accuracy"} <= set(rows[0]):
        raise ProfileError(f"{path} needs a first line with the columns format and accuracy.")
    found = {}
    for line, row in enumerate(rows, start=2):
        try:
            value = float(row["accuracy"])
            low, high = (float(row[end]) if row.get(end) else None for end in ("low", "high"))
            found[row["format"]] = Quantity(
                value=value, low=low, high=high, kind="imported",
                reason="" if low is not None else "the table gives no interval",
            )  # fmt: skip
        except (TypeError, ValueError):
            raise ProfileError(
                f"{path} line {line} needs an accuracy, and a low and high around it or neither."
            ) from None
    if SIXTEEN not in found or not (found[SIXTEEN].value or 0) > 0:
        raise ProfileError(f'{path} needs a row named "{SIXTEEN}" with an accuracy above 0.')
    _check_scale(path, found)
    return found


def _check_scale(path: Path, found: Mapping[str, Quantity]) -> None:
    """Refuse what no accuracy is: beyond 100, of two scales, or not to be divided by the 16-bit row.

    Raises:
        ProfileError: with the names of the rows.
    """
    values = {name: q.value or 0.0 for name, q in found.items()}
    base = values[SIXTEEN]
    for name, q in found.items():
        ends = (values[name], q.low or 0.0, q.high or 0.0)
        if not 0 <= values[name] <= 100 or not all(math.isfinite(x / base) for x in ends):
            raise ProfileError(
                f'{path}: the accuracy of {name}, or what it is of that of "{SIXTEEN}", is out of range: '
                f"give fractions from 0 to 1, or percentages to 100."
            )
    fractions = sorted(name for name, x in values.items() if 0 < x <= 1)
    percentages = sorted(name for name, x in values.items() if x > 1)
    if fractions and percentages:
        raise ProfileError(
            f"{path} has accuracies of at most 1 ({', '.join(fractions)}) beside larger ones "
            f"({', '.join(percentages)}): give all as fractions, or all as percentages above 1."
        )


def _trust(
    name: str,
    book: Book,
    fidelity: Fidelity | None,
    hops: int,
    accuracy: Mapping[str, Quantity] | None,
) -> Quantity:
    if accuracy is not None:
        q, base = accuracy.get(name), accuracy[SIXTEEN]
        if q is None:
            return absent("the accuracy table has no row for this format", "imported")
        return _over(book, name, q, base)
    found = None if fidelity is None else error_at(fidelity, name, hops)
    if found is None:
        return absent("no fidelity was measured: python -m bench.fidelity PROFILE", book.kind)
    _, error = found
    if error.value is None or error.low is None or error.high is None:
        return error
    return error.model_copy(
        update={
            "value": max(0.0, 1 - error.value),
            "low": max(0.0, 1 - error.high),
            "high": max(0.0, 1 - error.low),
        }
    )


def _over(book: Book, name: str, q: Quantity, base: Quantity) -> Quantity:
    """An accuracy over that of 16 bits, both drawn from their intervals, apart from each other."""
    assert q.value is not None
    assert base.value
    mine = drawn(q, ("accuracy", name), book.confidence, book.size)
    sixteen = drawn(base, ("accuracy", SIXTEEN), book.confidence, book.size)
    if mine is None or sixteen is None:
        whose = "" if mine is None else " of the 16-bit row"
        return Quantity(
            value=q.value / base.value, kind=q.kind, reason=f"the table gives no interval{whose}"
        )
    return quantity(mine / sixteen, q.kind, book.confidence)


def _sum(book: Book, terms: Sequence[tuple[float, Quantity]], c: Comparison) -> Sum:
    """The weighted sum; terms of weight 0 count for nothing, not even for its kind."""
    total = np.zeros(book.size + 1)
    kind, reasons = book.kind, []
    for name, (weight, q) in zip(("trust", "environment", "economy"), terms, strict=True):
        if weight == 0:
            continue
        if q.value is None:
            return Sum(None, kind, f"{name} is absent ({q.reason}); --weights can give it 0")
        draws = drawn(q, ("si", name, c.key), book.confidence, book.size)
        if draws is None:
            draws = np.concatenate([[q.value], np.full(book.size, np.nan)])
            reasons.append(f"{name} has no interval{f' ({q.reason})' if q.reason else ''}")
        if q.kind == "imported":
            kind = q.kind
        total += weight * draws
    return Sum(total, kind, "; ".join(reasons))


def _slope(x: Sum, y: Sum, bits: float) -> Sum:
    """(y - x) / bits, of the weaker kind of evidence of the two."""
    kind = "imported" if "imported" in (x.kind, y.kind) else x.kind
    draws = None if x.draws is None or y.draws is None else (y.draws - x.draws) / bits
    return Sum(draws, kind, x.reason or y.reason)


def _quantity(book: Book, found: Sum) -> Quantity:
    """With an interval where every term that counts has one, and with the reason where it has none."""
    q = quantity(found.draws, found.kind, book.confidence, found.reason)
    if q.value is None or q.low is not None or not found.reason:
        return q
    return q.model_copy(update={"reason": found.reason})

"""How errors grow along a chain: the law that describes them, and how far that goes.

    power           e(d) = e_1 d^g          g = 1/2: errors of layers add like steps of a random walk; 1: they
                                            all point the same way
    exponential     e(d) = e_1 exp(r (d-1)) each layer amplifies what came before

d counts layers, through all hops. A hop of the chain is one token's pass through all of its layers, without
KV cache, recurrence or sampling: what compounds is numerical error over depth. A hop of T tokens, whose errors
also reach later tokens through the cache and through what is sampled, is not run; T does not enter.

Two unrelated vectors of one length are sqrt(2) apart: an error near that
has nothing left to grow, so depths beyond half of it are left out. The law with the smaller residual is kept.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from bench.analysis import stats
from profiles.fidelity import Fidelity, FidelityRow
from profiles.schema import Kind, Quantity

Form = Literal["power", "exponential"]

UNRELATED = math.sqrt(2)
GROWS_BELOW = UNRELATED / 2
FEWEST_DEPTHS = 3


@dataclass(frozen=True)
class Law:
    """How the error of one format compounds.

    Attributes:
        form: which law; None with too few depths below saturation.
        first: e_1, the error after one layer, as fitted.
        rate: g of the power law, r per layer of the exponential one.
        residual: root mean square of log(measured / fitted).
        depths: that it was fitted to.
        saturates: the first depth that was left out; None: none was.
    """

    form: Form | None
    first: float
    rate: float
    residual: float
    depths: tuple[int, ...]
    saturates: int | None

    @property
    def words(self) -> str:
        """The law in a few characters."""
        if self.form is None:
            return "saturated" if self.saturates else "too few depths"
        if self.form == "power":
            law = f"{self.first:.2g} d^{self.rate:.2f}"
        else:
            law = f"{self.first:.2g} exp({self.rate:.2g} (d - 1))"
        return law + (f", until {self.saturates} layers" if self.saturates else "")


def error_of(row: FidelityRow, kind: Kind) -> Quantity:
    """The median over seeds, with its interval."""
    i = stats.median_interval(row.errors)
    return Quantity(value=i.value, low=i.low, high=i.high, n=i.n, kind=kind, reason=i.reason)


def compounding(rows: Sequence[FidelityRow]) -> Law:
    """The law of one format and kind of weights.

    Args:
        rows: its depths.
    """
    points = sorted((row.layers, stats.median(np.array(row.errors))) for row in rows if row.errors)
    saturated = [d for d, e in points if e >= GROWS_BELOW]
    first_out = saturated[0] if saturated else None
    used = [(d, e) for d, e in points if e > 0 and (first_out is None or d < first_out)]
    if len(used) < FEWEST_DEPTHS:
        return Law(None, math.nan, math.nan, math.nan, tuple(d for d, _ in used), first_out)
    depth = np.array([d for d, _ in used], float)
    logs = np.log([e for _, e in used])
    fits: list[tuple[float, Form, float, float]] = []
    scales: tuple[tuple[Form, np.ndarray], ...] = (
        ("power", np.log(depth)),
        ("exponential", depth - 1),
    )
    for form, x in scales:
        design = np.column_stack([np.ones(len(x)), x])
        found = np.linalg.lstsq(design, logs, rcond=None)[0]
        residual = float(np.sqrt(np.mean((logs - design @ found) ** 2)))
        fits.append((residual, form, math.exp(found[0]), float(found[1])))
    residual, form, first, rate = min(fits)
    return Law(form, first, rate, residual, tuple(d for d, _ in used), first_out)


def error_at(fidelity: Fidelity, format: str, hops: int) -> tuple[FidelityRow, Quantity] | None:
    """The error of a format with Gaussian weights at the end of the most passes measured, up to `hops`.

    The row says how many passes and layers that is.
    """
    known = [
        row
        for row in fidelity.rows
        if (row.format, row.distribution) == (format, "gaussian")
        and row.layers == row.hops * fidelity.shape.layers
        and 1 <= row.hops <= hops
    ]
    if not known:
        return None
    row = max(known, key=lambda r: r.hops)
    return row, error_of(row, fidelity.kind)

"""Joules per token over batch: what is shared by a step's tokens, and what each of them costs.

    J(B) = a + b / B        a: joules of one more token; b: joules of a step that its tokens share

It is the step form of METHOD section 6 within one row tile, and a form that a kernel need not keep to. So
the fit says how far off it is, and whether that is more than the intervals of its points explain.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from profiles.schema import Kind, Quantity, absent

Floats = NDArray[np.float64]

FEWEST = 3  # batches, for two unknowns
CONFIDENCE = 0.95
GAIN_UNCERTAINTY = 0.05
FITS_WITHIN = 0.02  # relative residuals that no one needs to explain
FITS_HALF_WIDTHS = 1.5  # and those that the interval of a point explains


@dataclass(frozen=True)
class Curve:
    """J(B) = a + b / B, fitted.

    Attributes:
        per_token_j: a, in joules.
        shared_j: b, in joules.
        largest_residual: largest |measured / fitted - 1| of the points; None without a fit.
        fits: whether every residual is within 2 %, or within 1.5 times the half-width of its point, the
            gain left out; None without a fit.
        batches: of the points that were used.
        reason: why there is no fit, or why it does not describe its points; empty otherwise.
    """

    per_token_j: Quantity
    shared_j: Quantity
    largest_residual: float | None
    fits: bool | None
    batches: tuple[int, ...]
    reason: str = ""

    def at(self, batch: float) -> float | None:
        """Fitted joules per token; None without a fit."""
        a, b = self.per_token_j.value, self.shared_j.value
        return None if a is None or b is None else a + b / batch


def curve(
    points: Sequence[tuple[int, Quantity]],
    kind: Kind = "measured",
    gain_uncertainty: float = GAIN_UNCERTAINTY,
) -> Curve:
    """Fits joules per token over batch by least squares of the relative residuals.

    Points are not weighed by their intervals: four trials know their own scatter so badly that points which
    agree by chance rule the fit, and its intervals then cover 81 to 93 % (simulated). The intervals enter
    where they are safe, in the errors of a and b, which are linear in the points: variances add, and the
    degrees of freedom are those of Welch and Satterthwaite (Biometrics Bulletin 2 (1946) 110-114). That
    covers 94 to 97 %.

    The gain is common to all points: it scales a and b, and no residual. So it is taken out of the points'
    intervals and put back, in quadrature, as its share of a and of b. Where the form does not fit, residuals
    stand for the errors of points that they exceed.

    Args:
        points: (batch, joules per token); those without a value or an interval are left out.
        kind: of evidence.
        gain_uncertainty: half-width, 95 %, of the gain within the intervals.
    """
    y, half, n, batches = _usable(points, gain_uncertainty)
    if len(set(batches)) < FEWEST:
        reason = f"{len(set(batches))} batches have joules; a fit of two unknowns needs {FEWEST}"
        return Curve(absent(reason, kind), absent(reason, kind), None, None, batches, reason)
    x = np.column_stack([np.ones(len(y)), 1 / np.array(batches, float)]) / y[:, None]
    solve = np.linalg.pinv(x) / y  # fitted = solve @ y
    fitted = solve @ y
    residual = y / (np.column_stack([np.ones(len(y)), 1 / np.array(batches, float)]) @ fitted) - 1
    off = (abs(residual) > FITS_WITHIN) & (abs(residual) * y > FITS_HALF_WIDTHS * half)
    reason = ""
    if off.any():
        worst = int(np.argmax(np.where(off, abs(residual), 0)))
        reason = (
            f"a + b / batch does not describe batch {batches[worst]}, which is {residual[worst]:+.1%} "
            f"off with an interval of {half[worst] / y[worst]:.1%}"
        )
    error = half / stdtrit(n - 1, (1 + CONFIDENCE) / 2)
    if off.any():
        error = np.maximum(error, abs(residual) * y * math.sqrt(len(y) / (len(y) - 2)))
    a, b = (
        _coefficient(float(fitted[i]), solve[i] * error, n, gain_uncertainty, kind) for i in (0, 1)
    )
    return Curve(a, b, float(abs(residual).max()), not off.any(), batches, reason)


def _usable(
    points: Sequence[tuple[int, Quantity]], gain_uncertainty: float
) -> tuple[Floats, Floats, Floats, tuple[int, ...]]:
    """Values, half-widths without the gain, numbers of trials, batches."""
    rows = []
    for batch, q in sorted(points, key=lambda point: point[0]):
        if q.value is None or q.low is None or q.high is None or q.value <= 0:
            continue
        own = ((q.high - q.low) / 2) ** 2 - (gain_uncertainty * q.value) ** 2
        rows.append((q.value, math.sqrt(max(0.0, own)), float(q.n or math.inf), batch))
    y, half, n = (np.array([r[i] for r in rows], float) for i in range(3))
    return y, half, n, tuple(r[3] for r in rows)


def _coefficient(
    value: float, errors: Floats, n: Floats, gain_uncertainty: float, kind: Kind
) -> Quantity:
    """A sum of points with its interval, from the standard errors that the points bring to it."""
    variances = errors**2
    total = float(variances.sum())
    half = 0.0
    if total > 0:
        own = float((variances**2 / (n - 1)).sum())
        freedom = total**2 / own if own > 0 else math.inf
        half = float(stdtrit(freedom, (1 + CONFIDENCE) / 2)) * math.sqrt(total)
    half = math.hypot(half, gain_uncertainty * value)
    return Quantity(value=value, low=value - half, high=value + half, n=len(errors), kind=kind)

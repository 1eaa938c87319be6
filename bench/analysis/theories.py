"""Two theories of what quantization costs over the batch, fitted to the same points, side by side.

The paper's form, per token, in joules or seconds (arXiv 2602.13595), with phi(16) = 0:

    E(p, B) = K alpha p / B + phi(p)                            so  B* = K alpha (16 - p) / phi

The step form, per step: weights are read once per step and dequantized once per row tile:

    B E(p, B) = M(p) + phi_1 ceil(B / BLOCK_M) + C(p) B         so within one tile
    B* = [M(p) + phi_1 - M(16)] / [C(16) - C(p)]

Read as printed, the paper's form says that low bits win below B*; its text says the opposite. The step form
has either sign, by which of its two differences is positive. No parameter is below 0 in either fit.

The step form has more parameters and so the smaller residuals by right. What decides is how well each form
predicts the batches it was not fitted to, one left out at a time, the row tile too chosen without it. Both are
scored on best16 and the arm; the step form is fitted to the bypass besides, but never scored on it.

Neither form knows that another kernel takes over at some batch (a matrix-vector product below, a tiled one
above; another 16-bit kernel), and what such a switch adds is no failure of a theory. So batches at which the
same two kernels were the fastest are fitted apart from the others, each fit is named by its kernels, and a B*
beyond their batches is said to be so. Where a pair has too few batches, it is named and not fitted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from bench.analysis.replicates import Book, Draws, problem_of
from bench.analysis.verdict import By, Path, Sign
from profiles.schema import Comparison, Implementation, Quantity, absent

Floats = NDArray[np.float64]
Form = Literal["paper", "step"]

FEWEST_BATCHES = 4  # so that three are left when one is left out
ROW_TILES = (1, 8, 16, 32, 64, 128, 256)  # BLOCK_M; the last is one tile at every batch there is
REPLICATED = 200  # replicates of a fit
CLEARLY = 1.25  # times the other's error, before one form is called better
DESCRIBES = 0.10  # prediction error within which a form describes the hardware
LARGEST_BATCH = 4096  # up to which a crossing is looked for


@dataclass(frozen=True)
class Fit:
    """One form, fitted to best16 and one quantized arm over batches.

    Attributes:
        form: "paper" or "step".
        parameters: as named in the module: K alpha per bit, phi per token; M per step, C per row, phi_1 per
            row tile; of one layer, in seconds or joules.
        row_tile: BLOCK_M of the step form; None in the paper's.
        residual: root mean square of log(measured / fitted) over all points of best16 and the arm.
        worst: the largest of them, by magnitude.
        prediction: root mean square of the same at batches left out.
        crosses: B*, with the interval of the replicates; absent with a reason where it does not cross.
        sign: which side wins, as fitted.
    """

    form: Form
    parameters: dict[str, Quantity]
    row_tile: int | None
    residual: float
    worst: float
    prediction: float
    crosses: Quantity
    sign: Sign

    @property
    def describes(self) -> bool:
        """Whether it predicts batches left out well enough for its B* to be worth reading."""
        return self.prediction <= DESCRIBES


@dataclass(frozen=True)
class Theories:
    """Both fits of one format and path, at the batches of one pair of kernels.

    Attributes:
        format: weight format.
        path: which quantized arm.
        kernels: best16 and the arm, by name.
        batches: at which these two were the fastest of their kind.
        paper: fit of the paper's form.
        step: fit of the step form.
    """

    format: str
    path: Path
    kernels: tuple[str, str]
    batches: tuple[int, ...]
    paper: Fit
    step: Fit

    @property
    def verdict(self) -> str:
        """Which of the two describes this hardware better, or that neither does."""
        paper, step = self.paper.prediction, self.step.prediction
        best: Form = "paper" if paper < step else "step"
        errors = f"(errors at batches left out: step {step:.1%}, paper {paper:.1%})"
        if min(paper, step) > DESCRIBES:
            if max(paper, step) < CLEARLY * min(paper, step):
                return f"neither form describes this hardware {errors}"
            return f"neither form describes this hardware; the {best} form is nearer {errors}"
        if max(paper, step) < CLEARLY * min(paper, step):
            return f"the two cannot be told apart {errors}"
        return f"the {best} form describes this hardware better {errors}"


@dataclass(frozen=True)
class Unfitted:
    """Batches of one pair of kernels that no form was fitted to, and why."""

    kernels: tuple[str, str]
    batches: tuple[int, ...]
    reason: str


def fit_theories(
    book: Book, comparisons: Sequence[Comparison], path: Path, bits: float | None, by: By = "time"
) -> tuple[Theories | Unfitted, ...]:
    """Both forms on the layers of one format, per pair of kernels, in order of their first batch.

    Args:
        book: of the profile.
        comparisons: of one format's layer, in order of batch.
        path: which quantized arm.
        bits: p, its stored bits per weight.
        by: seconds, or gross joules of a layer.
    """
    joules = book.joules if by == "energy" else None
    groups: dict[tuple[str, str], list[tuple[int, tuple[Draws, Draws, Draws]]]] = {}
    for c in comparisons:
        point = _point(book, c, path, joules)
        if point is not None:
            kernels = (kernel_name(book, c, c.best16), kernel_name(book, c, getattr(c, path)))
            groups.setdefault(kernels, []).append(point)
    return tuple(
        _fitted(book, comparisons[0].format, path, bits, kernels, points)
        for kernels, points in groups.items()
    )


def _fitted(
    book: Book,
    weight_format: str,
    path: Path,
    bits: float | None,
    kernels: tuple[str, str],
    points: Sequence[tuple[int, tuple[Draws, Draws, Draws]]],
) -> Theories | Unfitted:
    """Both forms on the batches of one pair of kernels."""
    at = tuple(batch for batch, _ in points)
    if bits is None:
        return Unfitted(kernels, at, "its stored bits per weight are not known")
    if len(at) < FEWEST_BATCHES:
        return Unfitted(kernels, at, f"the fits need {FEWEST_BATCHES} batches of the same kernels")
    batches = np.array(at, float)
    draws = [np.array([series[i] for _, series in points]) for i in range(3)]  # [batches, 1 + R]
    return Theories(
        weight_format, path, kernels, at,
        _paper(book, batches, draws, bits), _step(book, batches, draws, path),
    )  # fmt: skip


def kernel_name(book: Book, c: Comparison, kernel: Implementation | None) -> str:
    """An arm of a layer by all that tells two kernels apart: "fused triton gemv-ptx", "vendor torch".

    A row's configuration names a loop, unless it is a launch configuration: tiles may change with the batch
    and the operator, and are one kernel's.
    """
    if kernel is None:
        return "no kernel"
    loops = {
        row.configuration
        for row in book.profile.rows
        if (row.format, row.batch, row.arm, row.implementation, row.weight_format)
        == (c.format, c.batch, kernel.arm, kernel.implementation, kernel.weight_format)
        and not row.configuration.startswith(("tuned", "untuned"))
    }
    variant = "" if kernel.variant == "default" else kernel.variant
    words = (kernel.arm, kernel.implementation, variant, *sorted(loops))
    return " ".join(word for word in words if word)


def _point(
    book: Book,
    c: Comparison,
    path: Path,
    joules: Mapping[tuple[str, int, Implementation], Draws] | None,
) -> tuple[int, tuple[Draws, Draws, Draws]] | None:
    """What a step of best16 costs, one of the arm, and one of the arm with dequantization for nothing."""
    problem = problem_of(c)
    arm: Implementation | None
    if path == "fused":
        arm, free = c.fused, book.stage(problem, c.fused, "bypass")
    else:
        arm, free = c.unfused, c.best16
    kernels = [kernel for kernel in (c.best16, arm, free) if kernel is not None]
    if joules is None:
        series = [book.time_s(problem, kernel) for kernel in kernels]
    else:
        series = [joules.get((c.format, c.batch, kernel)) for kernel in kernels]
    known = [d for d in series if d is not None]
    return (c.batch, (known[0], known[1], known[2])) if len(known) == 3 else None


def _relative(x: Floats, y: Floats) -> Floats:
    """Parameters of y = x @ parameters, none below 0, least squares of the relative residuals."""
    found: Floats = nnls(x / y[:, None], np.ones(len(y)))[0]
    return found


def _logs(x: Floats, y: Floats, parameters: Floats) -> Floats:
    """log(measured / fitted); where nothing is left of the fit, more than any other."""
    logs: Floats = np.log(y / np.maximum(x @ parameters, 1e-300))
    return logs


def _tile(designs: Mapping[int, Floats], y: Floats, rows: NDArray[np.bool_]) -> int:
    """The row tile whose fit leaves the smallest residuals on these rows."""

    def residual(tile: int) -> float:
        x = designs[tile][rows]
        return float((_logs(x, y[rows], _relative(x, y[rows])) ** 2).mean())

    return min(designs, key=residual)


def _quality(
    designs: Mapping[int, Floats], tile: int, y: Floats, batches: Floats
) -> tuple[float, float, float]:
    """Residual, the worst of them, and the error at batches left out; of the first two series alone.

    Args:
        designs: [series x batches, parameters] per row tile, best16 and the arm first.
        tile: of the fit to all of them.
        y: [series x batches].
        batches: [batches].
    """
    scored = np.arange(len(y)) < 2 * len(batches)
    groups = np.tile(batches, len(y) // len(batches))
    logs = _logs(designs[tile][scored], y[scored], _relative(designs[tile], y))
    errors = []
    for batch in batches:
        kept, out = groups != batch, (groups == batch) & scored
        x = designs[_tile(designs, y, kept)]
        errors.append(_logs(x[out], y[out], _relative(x[kept], y[kept])))
    return (
        float(np.sqrt((logs**2).mean())),
        float(np.abs(logs).max()),
        float(np.sqrt((np.concatenate(errors) ** 2).mean())),
    )


def _paper(book: Book, batches: Floats, draws: list[Floats], bits: float) -> Fit:
    """E(16) and E(p) per token; unknowns K alpha and phi."""
    x = np.vstack(
        [
            np.column_stack([16 / batches, np.zeros(len(batches))]),
            np.column_stack([bits / batches, np.ones(len(batches))]),
        ]
    )
    y = np.vstack(draws[:2]) / np.concatenate([batches, batches])[:, None]
    found = np.array([_relative(x, y[:, i]) for i in range(min(REPLICATED + 1, y.shape[1]))])
    slope, phi = found[:, 0], found[:, 1]
    with np.errstate(divide="ignore"):
        crosses = slope * (16 - bits) / phi
    sign: Sign = "wins_below" if np.isfinite(crosses[0]) else "always"
    never = "phi is fitted as 0: low bits win at every batch"
    return Fit(
        "paper",
        {"K alpha": book.quantity(slope), "phi": book.quantity(phi)},
        None,
        *_quality({1: x}, 1, y[:, 0], batches),
        book.quantity(crosses, never),
        sign,
    )


def _step(book: Book, batches: Floats, draws: list[Floats], path: Path) -> Fit:
    """Costs per step; unknowns M(16), C(16), M(p), C(p), phi_1; of the tiles, the one that fits best.

    The unfused path multiplies with the best 16-bit kernel: M and C are those of best16, and phi_1 is paid
    once per step.
    """
    tiles = ROW_TILES if path == "fused" else ROW_TILES[-1:]
    y = np.vstack(draws) if path == "fused" else np.vstack(draws[:2])

    def design(tile: int) -> Floats:
        one, zero = np.ones(len(batches)), np.zeros(len(batches))
        turns = np.ceil(batches / tile)
        if path == "fused":
            rows = [
                np.column_stack([one, batches, zero, zero, zero]),
                np.column_stack([zero, zero, one, batches, turns]),
                np.column_stack([zero, zero, one, batches, zero]),
            ]
        else:
            rows = [np.column_stack([one, batches, zero]), np.column_stack([one, batches, one])]
        return np.vstack(rows)

    designs = {tile: design(tile) for tile in tiles}
    best = _tile(designs, y[:, 0], np.ones(len(y), bool))
    x = designs[best]
    found = np.array([_relative(x, y[:, i]) for i in range(min(REPLICATED + 1, y.shape[1]))])
    if path == "unfused":
        found = np.column_stack([found[:, :2], found])  # M(p) = M(16), C(p) = C(16)
    names = (*("M(16)", "C(16)", "M(p)", "C(p)", "phi_1"),)
    crossings = [_cross(row, best) for row in found]
    sign, value = crossings[0]
    same = np.array([at if s == sign else math.nan for s, at in crossings])
    reason = f"as fitted it wins {sign}"
    if math.isfinite(value):
        crosses = book.quantity(same)
    else:
        crosses = absent(reason, book.kind)
    return Fit(
        "step",
        {name: book.quantity(found[:, i]) for i, name in enumerate(names)},
        best,
        *_quality(designs, best, y[:, 0], batches),
        crosses,
        sign,
    )


def _cross(parameters: Floats, tile: int) -> tuple[Sign, float]:
    """The sign of the fitted step form over B = 1 .. LARGEST_BATCH, and where it first turns."""
    m16, c16, m, c, phi = parameters
    batch = np.arange(1, LARGEST_BATCH + 1)
    wins = m + phi * np.ceil(batch / tile) + c * batch < m16 + c16 * batch
    turns = np.flatnonzero(wins[1:] != wins[:-1])
    if not len(turns):
        return ("always" if wins[0] else "never"), math.nan
    first = int(turns[0])
    gap = m + phi * math.ceil(batch[first] / tile) - m16
    slope = c16 - c
    at = gap / slope if slope else math.nan
    if not batch[first] <= at <= batch[first] + 1:  # it turns with a tile, not within one
        at = batch[first] + 0.5
    if len(turns) > 1:
        return "several crossings", float(at)
    return ("wins_below" if wins[0] else "wins_above"), float(at)

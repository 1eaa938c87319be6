"""Signs, in all rows of a run together, that its blocks are not what intervals take them for.

Where one row of 24 blocks sees little, a hundred rows leave no doubt. Three questions are put to a run, each
with a limit on how much it matters and another on chance:

    autocorrelated-run   are neighbouring blocks alike?                        within processes
    shifted-run          does the later half of a process lie elsewhere?       within processes
    processes-differ     do processes lie further apart than their blocks?     between them

    from bench.analysis.run_gate import run_gate
    gate = run_gate([([phi_exposed, phi_unfused], process), ...])
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bench.analysis.stats import (
    AUTOCORRELATION_LIMIT,
    Floats,
    by_group,
    finite,
    median,
    rank_scores,
    ranks,
)

AUTOCORRELATED_RUN = "autocorrelated-run"
SHIFTED_RUN = "shifted-run"
PROCESSES_DIFFER = "processes-differ"
RUN_FALSE_ALARM = 0.01  # per run and question, one-sided
SHIFT_LIMIT = 1.35  # (1 + 0.15) / (1 - 0.15): what AR(0.15) does to the variance of a long mean
SPREAD_LIMIT = 4.0  # the interval would have to be twice as wide
FEWEST_BLOCKS = 4  # of a stretch, for its variance under permutation to be known


@dataclass(frozen=True)
class RunGate:
    """Dependence between the blocks of a whole run. Each number is None where nothing can be said.

    Attributes:
        lag1_autocorrelation: pooled over all series and corrected for the length of their stretches.
        z: the same over its standard deviation under permutation.
        shift: squared difference of a process's halves, over what chance gives; 1 where nothing shifts.
        shift_z: how far that is beyond chance, as a normal deviate.
        spread: variance between processes over that which their blocks explain (an F ratio).
        spread_z: how far that is beyond chance, as a normal deviate.
        flags: those of the three words in the module that apply.
    """

    lag1_autocorrelation: float | None = None
    z: float | None = None
    shift: float | None = None
    shift_z: float | None = None
    spread: float | None = None
    spread_z: float | None = None
    flags: tuple[str, ...] = ()


def run_gate(cells: Iterable[tuple[Sequence[ArrayLike], ArrayLike]]) -> RunGate:
    """Look for dependence that all rows of a run share, and that is too weak to show in one of them.

    What makes neighbouring blocks alike is mostly the machine, so it does it to every row. Everything here is
    of ranks, summed over all series of a run. Series of one cell share their blocks and may be correlated
    with each other (sums, common arms, slow blocks), so blocks are permuted whole: with G the blocks' Gram
    matrix over the series and K what is asked, the sum of K[i, j] G[i, j] is Mantel's statistic, whose mean
    and variance under permutation are known exactly ("The detection of disease clustering and a generalized
    regression approach", Cancer Research 27 (1967) 209-220).

    Autocorrelation: K picks neighbours. A centred stretch of m blocks shows an autocorrelation of rho only as
    rho (1 - 3/m) (Kendall, "Note on bias in the estimation of autocorrelation", Biometrika 41 (1954)
    403-404), a constant apart that permutation takes away. With that undone, the limit is the 0.15 of
    `stats.gates`.

    Shift: K is the square of later half less earlier half, so that series may shift either way, some of them
    and in one process of three. The limit is 1.35 times what chance gives, as much as AR(0.15) would.

    Spread: K is the square of each process's mean. Where a process lands in memory moves its times, on every
    machine there is, and METHOD section 4 has that spread reported beside the interval. So differences
    between processes are no flag for being there: ten runs on one quiet CPU show variances between processes
    of 1.5 to 4.1 times what their blocks explain, all but one beyond chance (and nothing within processes:
    shifts of 0.7 to 1.2 times). They flag where they decide alone what the interval ought to be: from 4 times
    on, where it is less than half as wide as it should be. A level that shifts between processes cannot be
    told from a process that landed elsewhere, and is treated as one.

    Flagged, of whole simulated runs of 40 series: tests/planted_truth.py prints it. Runs of one operator and
    batch have two series, and show little more than `stats.gates` does.

    Args:
        cells: (series, groups): series of equal length over the same blocks, in the order in which these
            were taken, and the process of each block. Series of different cells have different blocks.

    Raises:
        ValueError: the lengths differ, or a value is not finite.
    """
    neighbours, halves, processes = _Mantel(), _Mantel(), _Mantel()
    shrunk = 0.0
    spread = _Variances()
    for series, groups in cells:
        names = np.asarray(groups)
        scores = [_scores(by_group(finite(values), names)) for values in series]
        for parts in zip(*scores, strict=True):
            m = len(parts[0])
            if m >= FEWEST_BLOCKS:
                gram = _gram(parts)
                neighbours.add(_neighbours(m), gram)
                halves.add(_halves(m), gram)
                shrunk += float(np.trace(gram)) * (1 - 3 / m)
        kinds = len(np.unique(names))
        if 1 < kinds < len(names) and len(names) >= FEWEST_BLOCKS:
            gram = _gram([_normalised([_centred_ranks(values)])[0] for values in series])
            same = _same(names)
            processes.add(same, gram)
            spread.add(float((same * gram).sum()), float(np.trace(gram)), kinds, len(names))
    r = None
    if neighbours.variance > 0:
        r = (neighbours.found - neighbours.expected) / shrunk
    found = RunGate(
        r,
        neighbours.normal_z(),
        halves.ratio(),
        halves.square_z(),
        spread.ratio(),
        processes.square_z(),
    )
    questions = (
        (AUTOCORRELATED_RUN, found.lag1_autocorrelation, AUTOCORRELATION_LIMIT, found.z),
        (SHIFTED_RUN, found.shift, SHIFT_LIMIT, found.shift_z),
        (PROCESSES_DIFFER, found.spread, SPREAD_LIMIT, found.spread_z),
    )
    chance = NormalDist().inv_cdf(1 - RUN_FALSE_ALARM)
    flags = tuple(
        word
        for word, size, limit, z in questions
        if size is not None and z is not None and size > limit and z > chance
    )
    return replace(found, flags=flags)


@dataclass
class _Mantel:
    """Sums of Mantel's statistic over stretches of blocks, with its moments under permutation."""

    found: float = 0.0
    expected: float = 0.0
    variance: float = 0.0

    def add(self, kernel: Floats, gram: Floats) -> None:
        """One stretch: [blocks, blocks] what is asked, and the blocks' products over the series.

        The diagonal counts as its mean: which block stands where has nothing to do with pairs.
        """
        mean, variance = _under_permutation(kernel, gram)
        diagonal = float(np.trace(kernel)) * float(np.trace(gram)) / len(gram)
        self.found += float((_apart(kernel) * gram).sum()) + diagonal
        self.expected += mean + diagonal
        self.variance += variance

    def normal_z(self) -> float | None:
        """The excess over its standard deviation."""
        return (
            (self.found - self.expected) / math.sqrt(self.variance) if self.variance > 0 else None
        )

    def ratio(self) -> float | None:
        """What was found over what chance gives; of squares only."""
        return max(self.found, 0.0) / self.expected if self.variance > 0 else None

    def square_z(self) -> float | None:
        """The same of a sum of squares: chi-squared with as many degrees as mean and variance say.

        Made normal by its cube root: Wilson and Hilferty, "The distribution of chi-square", Proceedings of
        the National Academy of Sciences 17 (1931) 684-688.
        """
        ratio = self.ratio()
        if ratio is None:
            return None
        scatter = self.variance / (9 * self.expected**2)  # 2 / (9 degrees of freedom)
        return float((np.cbrt(ratio) - (1 - scatter)) / math.sqrt(scatter))


@dataclass
class _Variances:
    """Sums of squares between and within processes, and their degrees of freedom, over cells."""

    between: float = 0.0
    within: float = 0.0
    between_degrees: float = 0.0
    within_degrees: float = 0.0

    def add(self, between: float, total: float, processes: int, blocks: int) -> None:
        """One cell, each of its series with squares that sum to 1 (to 0 if it never changes)."""
        self.between += between
        self.within += total - between
        self.between_degrees += total * (processes - 1)
        self.within_degrees += total * (blocks - processes)

    def ratio(self) -> float | None:
        """The F ratio; infinite where all scatter is between processes, None where there is none."""
        if self.between_degrees == 0:
            return None
        if self.within <= 1e-12 * self.between:
            return math.inf
        return (self.between / self.between_degrees) / (self.within / self.within_degrees)


def _scores(parts: Sequence[Floats]) -> list[Floats]:
    """Ranks of one series less its processes' medians, so that all series count alike."""
    return _normalised(rank_scores([part - median(part) for part in parts]))


def _centred_ranks(values: ArrayLike) -> Floats:
    found = ranks(finite(values))
    centred: Floats = found - found.mean()
    return centred


def _normalised(scores: list[Floats]) -> list[Floats]:
    """The same with squares that sum to 1, unless all are 0."""
    norm = math.sqrt(sum(float(part @ part) for part in scores))
    return [part / norm for part in scores] if norm > 0 else scores


def _gram(scores: Sequence[Floats]) -> Floats:
    z = np.array(scores)
    gram: Floats = z.T @ z
    return gram


def _neighbours(m: int) -> Floats:
    kernel: Floats = (np.eye(m, k=1) + np.eye(m, k=-1)) / 2
    return kernel


def _halves(m: int) -> Floats:
    """Later half less earlier half, squared; the middle of an odd number belongs to neither."""
    sign = np.zeros(m)
    sign[: m // 2], sign[m - m // 2 :] = -1, 1
    return np.outer(sign, sign)


def _same(names: NDArray[np.generic]) -> Floats:
    """The squares of the processes' sums, each over its number of blocks."""
    _, process, counts = np.unique(names, return_inverse=True, return_counts=True)
    kernel: Floats = (process[:, None] == process[None, :]) / counts[process]
    return kernel


def _apart(matrix: Floats) -> Floats:
    off: Floats = matrix - np.diag(np.diag(matrix))
    return off


def _under_permutation(kernel: Floats, gram: Floats) -> tuple[float, float]:
    """Mean and variance of the sum of kernel[i, j] gram[i, j], i other than j, when blocks are permuted.

    Two pairs of blocks are the same pair, share a block, or are apart; each case has its mean product.

    Args:
        kernel: [m, m], symmetric, m >= 4.
        gram: [m, m], symmetric; its rows and columns are permuted together.
    """
    m = len(gram)
    pairs = m * (m - 1)
    wholes, sames, sharings, aparts = [], [], [], []
    for matrix in (_apart(kernel), _apart(gram)):
        rows = matrix.sum(axis=1)
        whole, same = float(rows.sum()), float((matrix**2).sum())
        sharing = float(rows @ rows) - same
        wholes.append(whole)
        sames.append(same)
        sharings.append(sharing)
        aparts.append(whole**2 - 2 * same - 4 * sharing)
    mean = math.prod(wholes) / pairs
    square = (
        2 * math.prod(sames) / pairs
        + 4 * math.prod(sharings) / (pairs * (m - 2))
        + math.prod(aparts) / (pairs * (m - 2) * (m - 3))
    )
    return mean, square - mean**2

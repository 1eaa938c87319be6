"""Intervals of medians, and the gates that say when not to believe them.

A timing run gives one value per block: a difference or a ratio of two arms that ran side by side
in that block. Timing noise is heavy-tailed (one stall can be a hundred times the typical jitter),
so everything here rests on order: medians, sign intervals, ranks. There is no mean of times and no
random number in this file; the same samples always give the same interval.

An interval assumes independent blocks. `gates` looks for the two ways in which blocks are not, in one
row (run_gate.py does it for a whole run), and `between_groups` shows what no interval within a run can:
how far another process lands.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from statistics import NormalDist
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Method = Literal["interpolated", "exact"]

AUTOCORRELATION_LIMIT = 0.15
AUTOCORRELATION_FALSE_ALARM = 0.05  # per row, one-sided
SHIFT_FALSE_ALARM = 0.01  # per row, two-sided
AUTOCORRELATED = "autocorrelated"
SHIFTED = "shifted"

PILOT_MINIMUM = 10
PILOT_SAFETY = 2.5  # blocks asked for over blocks estimated; see fresh_blocks_needed


@dataclass(frozen=True)
class Interval:
    """A median and its interval, in the unit of the values.

    Attributes:
        value: the sample median; None without values.
        low: lower end; None when n is too small for the confidence.
        high: upper end.
        n: how many values.
        method: "interpolated" (Hettmansperger-Sheather) or "exact" (sign interval).
        reason: why value or interval is None; empty otherwise.
    """

    value: float | None
    low: float | None
    high: float | None
    n: int
    method: Method
    reason: str = ""

    @property
    def half_width(self) -> float | None:
        """Half of high - low."""
        return None if self.low is None or self.high is None else (self.high - self.low) / 2


def median_interval(
    values: ArrayLike, confidence: float = 0.95, method: Method = "interpolated"
) -> Interval:
    """The median of independent values and its interval.

    The exact sign interval [x(d), x(n-d+1)] holds the median with probability 1 - 2 P(Binomial(n,
    1/2) < d), whatever the distribution. That comes in steps; the method takes the largest d that
    reaches the confidence. Interpolating between d and d + 1 hits the confidence itself:
    Hettmansperger and Sheather, "Confidence intervals based on interpolated order statistics",
    Statistics & Probability Letters 4 (1986) 75-79. Their weight is derived for Laplace noise;
    simulated for normal, uniform, Laplace, t(2), Cauchy and exponential noise, coverage stays
    between 94.1 and 95.4 % for n from 6 to 90.

    Use "exact" where a guarantee is worth some width: it covers at least the confidence for any
    distribution (96.9 % at n = 6, 97.7 % at 24, 95.5 % at 90). It is also what "interpolated" falls
    back to where d + 1 has no interval to interpolate with.

    For n < 6 no 95 % interval exists: even [minimum, maximum] covers only 1 - 2^(1-n).

    Args:
        values: [n], finite, in any order.
        confidence: between 0 and 1.
        method: "interpolated" or "exact".

    Raises:
        ValueError: values are not one-dimensional and finite, or confidence is not within (0, 1).
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, but is {confidence}.")
    x = np.sort(finite(values))
    n = len(x)
    if n == 0:
        return Interval(None, None, None, 0, method, "there are no values")
    middle = float(x[(n - 1) // 2] + x[n // 2]) / 2
    d = _sign_depth(n, confidence)
    if d == 0:
        reason = f"{n} values are too few for a {confidence:.0%} interval of the median"
        return Interval(middle, None, None, n, method, reason)
    if method == "exact" or d + 1 > n - d:
        return Interval(middle, float(x[d - 1]), float(x[n - d]), n, "exact")
    outer, inner = _sign_coverage(n, d), _sign_coverage(n, d + 1)
    step = (outer - confidence) / (outer - inner)
    weight = (n - d) * step / (d + (n - 2 * d) * step)
    low = (1 - weight) * x[d - 1] + weight * x[d]
    high = (1 - weight) * x[n - d] + weight * x[n - d - 1]
    return Interval(middle, min(float(low), middle), max(float(high), middle), n, "interpolated")


def paired_difference(a: ArrayLike, b: ArrayLike, confidence: float = 0.95) -> Interval:
    """Interval of the median of a - b, block by block.

    Whatever slows a whole block slows both arms and cancels; in median(a) - median(b) it does not.

    Args:
        a: [blocks], seconds.
        b: [blocks], seconds; b[i] is from the same block as a[i].
        confidence: as in `median_interval`.

    Raises:
        ValueError: the lengths differ, or a value is not finite.
    """
    x, y = _aligned(a, b)
    return median_interval(x - y, confidence)


def paired_ratio(a: ArrayLike, b: ArrayLike, confidence: float = 0.95) -> Interval:
    """Interval of the median of a / b, block by block.

    Args:
        a: [blocks].
        b: [blocks], none zero; b[i] is from the same block as a[i].
        confidence: as in `median_interval`.

    Raises:
        ValueError: the lengths differ, a value is not finite, or a value of b is zero.
    """
    x, y = _aligned(a, b)
    if (y == 0).any():
        raise ValueError("a ratio needs denominators other than zero.")
    return median_interval(x / y, confidence)


@dataclass(frozen=True)
class Gates:
    """Signs of dependence between blocks.

    Attributes:
        lag1_autocorrelation: rank autocorrelation of neighbouring blocks, corrected for its bias of
            -1/n; None with fewer than 3 pairs of neighbours.
        split_half_shift: median of the later half minus median of the earlier one, in the unit of
            the values; None with fewer than 4 values.
        flags: "autocorrelated", "shifted", both or neither.
    """

    lag1_autocorrelation: float | None
    split_half_shift: float | None
    flags: tuple[str, ...]


def gates(values: ArrayLike, groups: ArrayLike | None = None) -> Gates:
    """Look for dependence between neighbouring blocks, and for a shift between halves of a run.

    Both statistics use ranks of the values less their process's median, so that one stall cannot
    hide a trend, and processes may differ (`between_groups` reports that). Neighbours and halves
    are taken within a process.

    Autocorrelation. A bare |r| > 0.15 would flag 45 % of healthy rows at 24 blocks and 15 % at 90,
    since r itself scatters by 1/sqrt(n). So a row is flagged when r exceeds 0.15 *and* what chance
    gives in one row of twenty: r > max(0.15, 1.645/sqrt(n)), in which 0.15 decides from 121 blocks
    on. Only positive r counts: negative dependence makes an interval too wide, which is no lie.

    Shift. The later half's rank sum against its exact variance under permutation within processes
    (a stratified Wilcoxon test), at 1 % two-sided.

    Rows flagged by either gate, in per cent of 20,000 simulated rows of normal noise: three
    processes of n/3 blocks each, and in brackets one process of n.

        blocks   independent   AR(0.15)   AR(0.3)   AR(0.6)
        24         4 (5)       11 (15)    23 (34)    55 (79)
        45         5 (5)       20 (23)    48 (57)    93 (97)
        90         5 (6)       35 (38)    81 (84)   100 (100)

    Under t(2) noise false alarms are the same and the power is higher. So a short run that passes
    has not shown its blocks to be independent: AR(0.3), which brings the coverage of a 95 %
    interval down to 88 %, passes more often than not below 45 blocks.

    Args:
        values: [blocks], finite, in the order in which they were taken.
        groups: [blocks], the process of each block; None for one process.

    Raises:
        ValueError: the lengths differ, or a value is not finite.
    """
    x = finite(values)
    if len(x) == 0:
        return Gates(None, None, ())
    centred = [part - median(part) for part in by_group(x, groups)]
    scores = rank_scores(centred)
    r = _autocorrelation(scores)
    z = _later_half_z(scores)
    shift = None
    if z is not None:
        later = np.concatenate([c[len(c) - len(c) // 2 :] for c in centred])
        earlier = np.concatenate([c[: len(c) // 2] for c in centred])
        shift = median(later) - median(earlier)
    flags = []
    chance = NormalDist().inv_cdf(1 - AUTOCORRELATION_FALSE_ALARM) / math.sqrt(len(x))
    if r is not None and r > max(AUTOCORRELATION_LIMIT, chance):
        flags.append(AUTOCORRELATED)
    if z is not None and abs(z) > NormalDist().inv_cdf(1 - SHIFT_FALSE_ALARM / 2):
        flags.append(SHIFTED)
    return Gates(r, shift, tuple(flags))


@dataclass(frozen=True)
class GroupSpread:
    """How far processes land from each other, in the unit of the values.

    Attributes:
        half_range: half of the largest less the smallest process median; None with one process.
        medians: the median of each process, in order of its name.
        reason: why half_range is None; empty otherwise.
    """

    half_range: float | None
    medians: tuple[float, ...]
    reason: str = ""


def between_groups(values: ArrayLike, groups: ArrayLike) -> GroupSpread:
    """Half the range of the medians of the processes.

    With three processes a range is all that can honestly be said. It includes the scatter of each
    median from its own blocks: three healthy processes differ by about 0.85 of a median's standard
    error (half of 1.69, the mean range of three normal values).

    Args:
        values: [blocks], finite.
        groups: [blocks], the process of each block.

    Raises:
        ValueError: the lengths differ, or a value is not finite.
    """
    x = finite(values)
    medians = tuple(median(part) for part in by_group(x, groups)) if len(x) else ()
    if len(medians) < 2:
        return GroupSpread(None, medians, "blocks of one process show no spread between processes")
    return GroupSpread((max(medians) - min(medians)) / 2, medians)


def fresh_blocks_needed(
    pilot: ArrayLike,
    target_half_width: float,
    minimum: int = 20,
    maximum: int = 200,
    confidence: float = 0.95,
) -> int:
    """How many fresh blocks a pilot calls for, so that their interval meets the target half-width.

    An interval of a median narrows as 1/sqrt(n), so n = m (h_m / target)^2 blocks would do, h_m
    being the half-width from the m pilot blocks: order statistics again, no shape is assumed. But
    h_m scatters, and so does the half-width to come. Asking for 2.5 times as many makes the fresh
    interval meet its target in 81 to 93 % of simulated runs with a pilot of 10, 86 to 93 % with 15
    and 88 to 95 % with 30 (normal, Laplace, t(2), 15 % of stalls, exponential, uniform); without
    the factor about half would miss.

    The number is fixed before the first fresh block. Stopping when the interval looks narrow enough
    would make it lie.

    Args:
        pilot: [m], the paired differences of the pilot blocks, m >= 10.
        target_half_width: in the unit of the differences.
        minimum: never fewer blocks than this.
        maximum: never more; a row that needs more will not converge.
        confidence: as in `median_interval`.

    Raises:
        ValueError: the pilot is shorter than 10, or the target is not positive.
    """
    x = finite(pilot)
    if len(x) < PILOT_MINIMUM:
        raise ValueError(f"a pilot needs {PILOT_MINIMUM} blocks, but has {len(x)}.")
    if not target_half_width > 0:
        raise ValueError(f"the target half-width must be positive, but is {target_half_width}.")
    half_width = median_interval(x, confidence).half_width
    if half_width is None:
        raise ValueError(f"{len(x)} pilot blocks are too few at a confidence of {confidence}.")
    wanted = PILOT_SAFETY * len(x) * (half_width / target_half_width) ** 2
    return max(minimum, math.ceil(min(wanted, maximum)))


def median(values: Floats) -> float:
    """The median of [n] values, n >= 1; NumPy's takes ten times as long for so few."""
    x = np.sort(values)
    return float(x[(len(x) - 1) // 2] + x[len(x) // 2]) / 2


def finite(values: ArrayLike) -> Floats:
    """The values as an array.

    Raises:
        ValueError: they are not one-dimensional, or not finite.
    """
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 1:
        raise ValueError(f"values must have one dimension, but have shape {x.shape}.")
    if not np.isfinite(x).all():
        raise ValueError("values must be finite; leave failed samples out and say so in the row.")
    return x


def _aligned(a: ArrayLike, b: ArrayLike) -> tuple[Floats, Floats]:
    x, y = finite(a), finite(b)
    if len(x) != len(y):
        raise ValueError(f"pairs need as many blocks on both sides, but got {len(x)} and {len(y)}.")
    return x, y


def by_group(x: Floats, groups: ArrayLike | None) -> list[Floats]:
    """Values per group, groups in order of their name, values in their order."""
    if groups is None:
        return [x]
    names = np.asarray(groups)
    if names.shape != x.shape:
        raise ValueError(f"each value needs a group, but got {x.shape} and {names.shape}.")
    return [x[names == name] for name in np.unique(names)]


def rank_scores(centred: list[Floats]) -> list[Floats]:
    """Ranks over all groups together, less the mean of each group's."""
    ends = np.cumsum([len(part) for part in centred])[:-1]
    return [part - part.mean() for part in np.split(ranks(np.concatenate(centred)), ends)]


def ranks(x: Floats) -> Floats:
    """Ranks from 1; ties share the mean of theirs."""
    _, inverse, counts = np.unique(x, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks: Floats = (last - (counts - 1) / 2)[inverse]
    return ranks


def _autocorrelation(scores: list[Floats]) -> float | None:
    """Lag-1 autocorrelation pooled over groups of centred scores, plus its bias under independence.

    In a random order of m centred scores the m - 1 products of neighbours sum to -S/m on average, S
    being the sum of squares.
    """
    if sum(max(len(s) - 1, 0) for s in scores) < 3:
        return None
    squares = sum(float(s @ s) for s in scores)
    if squares == 0:
        return 0.0
    products = sum(float(s[1:] @ s[:-1]) + float(s @ s) / len(s) for s in scores)
    return products / squares


def _later_half_z(scores: list[Floats]) -> float | None:
    """Sum of the later half's centred scores over its standard deviation under permutation."""
    total, variance = 0.0, 0.0
    for s in scores:
        m, half = len(s), len(s) // 2
        if half:
            total += float(s[m - half :].sum())
            variance += half * (m - half) / (m * (m - 1)) * float(s @ s)
    if sum(len(s) for s in scores) < 4:
        return None
    return total / math.sqrt(variance) if variance > 0 else 0.0


@cache
def _below(n: int, d: int) -> int:
    """Subsets of n with fewer than d members: 2^n P(Binomial(n, 1/2) < d)."""
    return _below(n, d - 1) + math.comb(n, d - 1) if d else 0


def _sign_coverage(n: int, d: int) -> float:
    """Probability that [x(d), x(n-d+1)] holds the median: 1 - 2 P(Binomial(n, 1/2) < d)."""
    return 1 - 2 * (_below(n, d) / (1 << n))


@cache
def _sign_depth(n: int, confidence: float) -> int:
    """The largest d whose sign interval reaches the confidence; 0 when none does."""
    d = 0
    while d < n // 2 and _sign_coverage(n, d + 1) >= confidence:
        d += 1
    return d

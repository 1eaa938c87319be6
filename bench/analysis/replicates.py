"""Resampled values: how an interval gets through a fit, a crossing or a product of several quantities.

A sign interval (stats.py) serves one median. What is derived from many, such as a batch at which two curves
cross, has no such formula; so everything derived is computed again and again from resampled blocks.

    Draws      [1 + R]: the estimate, then R replicates of it. Arithmetic on draws is arithmetic on quantities
    blocks     of a batch and format processes are drawn with replacement, then as many blocks of each as it
               has; every arm and operator of that batch is seen in the same drawn blocks: the pairing stays
    interval   the middle of the replicates, at the profile's confidence

Processes are drawn too because they differ by more than their blocks say, and whoever runs the suite again
gets other processes. Of 1,500 simulated medians of three processes of 7 blocks, this many lay within the
interval, and within that of blocks drawn in their own process alone; a process is off by `spread` standard
deviations of a block. Where processes do not differ the price is an interval wider by a third; where they
differ much, three of them are too few for any resampling, and the intervals stay too narrow.

    spread       0      0.25     0.5      1        2
    both         96 %   97 %     93 %     86 %     80 %
    blocks only  91 %   88 %     77 %     58 %     37 %

A profile without samples (modelled, imported, or written without them) has no blocks to draw. Its quantities
are drawn from their own intervals, arms apart from each other and the operators of one arm together: pairing
is absent, errors do not average out over operators, and intervals of what is derived are wider than need be.
`Book.paired` says which of the two it was.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from statistics import NormalDist
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from bench.analysis.arms import Arms, Problem, Series, add_layers, read_arms
from profiles.schema import ArmRow, Comparison, Implementation, Kind, Profile, Quantity, absent

if TYPE_CHECKING:
    import pyarrow as pa

Draws = NDArray[np.float64]  # [1 + R]

REPLICATES = 1000


def quantity(
    draws: Draws | None, kind: Kind, confidence: float = 0.95, reason: str = ""
) -> Quantity:
    """The estimate of some draws with its interval.

    Replicates that have no value (a curve that does not cross in them) leave no interval when they are
    more than the confidence spares.

    Args:
        draws: [1 + R]; None where there is nothing to draw from.
        kind: the kind of evidence.
        confidence: of the interval.
        reason: why there is no value, if there is none.
    """
    if draws is None or not np.isfinite(draws[0]):
        return absent(reason or "it has no finite value", kind)
    value, sound = float(draws[0]), draws[1:][np.isfinite(draws[1:])]
    if len(sound) < confidence * (len(draws) - 1):
        share = len(sound) / (len(draws) - 1)
        return Quantity(
            value=value, kind=kind, reason=f"only {share:.0%} of the replicates have a value"
        )
    tail = (1 - confidence) / 2
    low, high = np.quantile(sound, (tail, 1 - tail))
    return Quantity(
        value=value, low=min(float(low), value), high=max(float(high), value), kind=kind
    )


def drawn(
    q: Quantity, key: object, confidence: float = 0.95, size: int = REPLICATES
) -> Draws | None:
    """Draws that have the interval of a quantity: two half normals, one for each side of its value.

    Args:
        q: with an interval.
        key: names it; the same key always gives the same draws, another key independent ones.
        confidence: of its interval.
        size: how many replicates.

    Returns:
        None where there is no interval to draw from.
    """
    if q.value is None or q.low is None or q.high is None:
        return None
    rng = np.random.default_rng(zlib.crc32(repr(key).encode()))
    z = rng.standard_normal(size) / NormalDist().inv_cdf((1 + confidence) / 2)
    spread = np.where(z > 0, z * (q.high - q.value), z * (q.value - q.low))
    return np.concatenate([[q.value], q.value + spread])


@dataclass(frozen=True)
class Blocks:
    """The blocks of one batch and format, and how often each of them is drawn.

    Attributes:
        block: [blocks], process * 2^32 + block, rising.
        counts: [1 + R, blocks]; the first row is one each.
    """

    block: NDArray[np.int64]
    counts: NDArray[np.int64]

    @classmethod
    def draw(cls, block: NDArray[np.int64], key: object, size: int = REPLICATES) -> Blocks:
        """Draws as many processes as there are, and of each as many blocks as it has, with replacement."""
        rng = np.random.default_rng(zlib.crc32(repr(key).encode()))
        _, sizes = np.unique(block >> 32, return_counts=True)
        times = rng.multinomial(len(sizes), np.full(len(sizes), 1 / len(sizes)), size=size)
        parts = [
            rng.multinomial(drawn * n, np.full(n, 1 / n))
            for n, drawn in zip(sizes, times.T, strict=True)
        ]
        counts = np.concatenate([np.ones((1, len(block)), np.int64), np.hstack(parts)])
        return cls(block, counts)

    def median(self, values: NDArray[np.float64], block: NDArray[np.int64]) -> Draws:
        """Draws of the median of values [n], each of the block of the same index."""
        order = np.argsort(values, kind="stable")
        counts = self.counts[:, np.searchsorted(self.block, block[order])]
        seen = np.cumsum(counts, axis=1)
        half = seen[:, -1:]  # twice the middle, in whole numbers
        ordered = values[order]
        lower = np.argmax(2 * seen >= half, axis=1)
        upper = np.argmax(2 * seen > half, axis=1)
        middle: Draws = (ordered[lower] + ordered[upper]) / 2
        middle[half[:, 0] == 0] = np.nan  # none of its blocks was drawn
        return middle


@dataclass
class Book:
    """The draws of a profile.

    Attributes:
        profile: what is read.
        arms: times per problem and arm, from the fresh samples; None without samples.
        size: replicates of each quantity.
    """

    profile: Profile
    arms: Mapping[Problem, Arms] | None
    size: int = REPLICATES
    _blocks: dict[Problem, Blocks] = field(default_factory=dict, repr=False)
    _times: dict[tuple[Problem, Implementation], Draws | None] = field(
        default_factory=dict, repr=False
    )

    @classmethod
    def open(cls, profile: Profile, samples: pa.Table | None, size: int = REPLICATES) -> Book:
        """A profile and its samples, if it has any; arms that failed are left out.

        Raises:
            ValueError: the samples are not what `decompose` takes.
        """
        if samples is None:
            return cls(profile, None, size)
        problems = read_arms(samples, "fresh")
        for row in profile.rows:
            if row.failure is not None:
                problems.get(problem_of(row), {}).pop(kernel_of(row), None)
        return cls(profile, add_layers(problems, profile.workload), size)

    @property
    def paired(self) -> bool:
        """Whether arms are compared within the same drawn blocks."""
        return self.arms is not None

    @property
    def kind(self) -> Kind:
        """The kind of evidence."""
        return self.profile.kind

    @property
    def confidence(self) -> float:
        """Of every interval."""
        return self.profile.protocol.confidence

    @cached_property
    def rows(self) -> dict[Problem, dict[Implementation, ArmRow]]:
        """Every row, by its problem and arm."""
        found: dict[Problem, dict[Implementation, ArmRow]] = {}
        for row in self.profile.rows:
            found.setdefault(problem_of(row), {})[kernel_of(row)] = row
        return found

    @cached_property
    def joules(self) -> dict[tuple[str, int, Implementation], Draws]:
        """Draws of gross joules of a layer, per format, batch and arm.

        The sensor's gain is common to all of them: it is one factor in every replicate, so that it cancels in
        ratios. The rest of each interval is its own; trials are not in a profile, so pairing is absent here.
        """
        traits = self.profile.energy.characterised or self.profile.energy.published
        gain = traits.gain_uncertainty if traits else 0.0
        rng = np.random.default_rng(0)
        z = rng.standard_normal(self.size) / NormalDist().inv_cdf((1 + self.confidence) / 2)
        factor = np.concatenate([[1.0], 1 + gain * z])
        found = {}
        for row in self.profile.energy.rows:
            own = self.drawn(
                _without_gain(row.energy_j, gain), "joules", row.format, row.batch, row.kernel
            )
            if own is not None:
                found[row.format, row.batch, row.kernel] = own * factor
        return found

    def quantity(self, draws: Draws | None, reason: str = "") -> Quantity:
        """The estimate of some draws, of this profile's kind and confidence."""
        return quantity(draws, self.kind, self.confidence, reason)

    def drawn(self, q: Quantity, *key: object) -> Draws | None:
        """Draws from the interval of a quantity of this profile."""
        return drawn(q, key, self.confidence, self.size)

    def time_s(self, problem: Problem, kernel: Implementation | None) -> Draws | None:
        """Median seconds of one call of an arm; None where it has no time."""
        if kernel is None:
            return None
        key = (problem, kernel)
        if key not in self._times:
            self._times[key] = self._time_s(problem, kernel)
        return self._times[key]

    def combined_s(self, problem: Problem, terms: Mapping[Implementation, float]) -> Draws | None:
        """Median of a sum of arms, each with a factor, block by block: differences stay paired.

        Without samples the sum of the arms' own draws.
        """
        if self.arms is None:
            draws = [(self.time_s(problem, kernel), factor) for kernel, factor in terms.items()]
            known = [factor * d for d, factor in draws if d is not None]
            return sum(known[1:], known[0]) if len(known) == len(terms) else None
        series = self._series(problem, tuple(terms))
        if series is None:
            return None
        block, times = series
        values = np.array(list(terms.values())) @ times
        return self._drawn_blocks(problem).median(values, block)

    def ratio(self, problem: Problem, a: Implementation, b: Implementation) -> Draws | None:
        """Median of a / b, block by block; without samples the ratio of their own draws."""
        if self.arms is None:
            x, y = self.time_s(problem, a), self.time_s(problem, b)
            return None if x is None or y is None else x / y
        series = self._series(problem, (a, b))
        if series is None:
            return None
        block, times = series
        return self._drawn_blocks(problem).median(times[0] / times[1], block)

    def stage(
        self, problem: Problem, fused: Implementation | None, arm: str
    ) -> Implementation | None:
        """Another rung of the ladder of a fused kernel: the same kernel, stopped earlier."""
        if fused is None:
            return None
        wanted = (arm, fused.implementation, fused.variant)
        return next(
            (
                kernel
                for kernel, row in self.rows.get(problem, {}).items()
                if (kernel.arm, kernel.implementation, kernel.variant) == wanted
                and row.failure is None
            ),
            None,
        )

    def _time_s(self, problem: Problem, kernel: Implementation) -> Draws | None:
        if self.arms is None:
            row = self.rows.get(problem, {}).get(kernel)
            key = problem._replace(
                operator=""
            )  # operators of an arm are wrong together, if they are
            return None if row is None else self.drawn(row.time_s, "time", key, kernel)
        series = self.arms.get(problem, {}).get(kernel)
        if series is None:
            return None
        return self._drawn_blocks(problem).median(series.time_s, series.block)

    def _series(
        self, problem: Problem, kernels: tuple[Implementation, ...]
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]] | None:
        """Blocks that all of some arms have, and their times [arms, blocks]."""
        arms = (self.arms or {}).get(problem, {})
        found: list[Series] = [arms[kernel] for kernel in kernels if kernel in arms]
        if len(found) < len(kernels):
            return None
        block = found[0].block
        for series in found[1:]:
            block = np.intersect1d(block, series.block, assume_unique=True)
        if not len(block):
            return None
        times = [s.time_s[np.searchsorted(s.block, block)] for s in found]
        return block, np.array(times)

    def _drawn_blocks(self, problem: Problem) -> Blocks:
        """The drawn blocks of a batch and format, the same for all operators."""
        key = problem._replace(operator="")
        if key not in self._blocks:
            parts = [
                series.block
                for known, arms in (self.arms or {}).items()
                if known._replace(operator="") == key
                for series in arms.values()
            ]
            self._blocks[key] = Blocks.draw(np.unique(np.concatenate(parts)), key, self.size)
        return self._blocks[key]


def _without_gain(q: Quantity, gain: float) -> Quantity:
    if q.value is None or q.low is None or q.high is None:
        return q
    low, high = (
        max((end - q.value) ** 2 - (gain * q.value) ** 2, 0.0) ** 0.5 for end in (q.low, q.high)
    )
    return q.model_copy(update={"low": q.value - low, "high": q.value + high})


def problem_of(row: ArmRow | Comparison) -> Problem:
    """The problem of a row."""
    return Problem(row.operator, row.batch, row.format, row.launch_mode, row.cache_state)


def kernel_of(row: ArmRow) -> Implementation:
    """The arm of a row."""
    return Implementation(
        arm=row.arm,
        implementation=row.implementation,
        variant=row.variant,
        weight_format=row.weight_format,
    )

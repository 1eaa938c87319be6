"""From samples to arms: the times of each arm per block, the layer, and who plays which part.

A problem is an operator with a batch, a format, a launch mode and a cache state. Of a problem each
arm has one time per block; two arms are paired in the blocks that both have.

The layer is the sum over its operators within each block, each operator as often as the layer has
it. Of an implementation with several variants the layer takes the fastest of each operator, as a
server would; bypass and the other stages follow the variant of their fused kernel. `lowp` that quantizes its
activations ("triton+torch") and the product alone ("torch") are two implementations.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bench.analysis.stats import median
from profiles.schema import LAYER, Arm, Implementation, Workload

if TYPE_CHECKING:
    import pyarrow as pa

Floats = NDArray[np.float64]
STAGES = ("stream", "unpack", "scale", "bypass", "fused")  # one kernel, one launch configuration
SIXTEEN_BIT = ("fp16", "bf16")
KEY_COLUMNS = (
    *("operator", "batch", "format", "launch_mode", "cache_state"),
    *("arm", "implementation", "variant", "weight_format"),
)
PER_OPERATOR = "per operator"  # the variant of a layer whose operators prefer different ones


class Problem(NamedTuple):
    """What all arms of a comparison have in common."""

    operator: str
    batch: int
    format: str
    launch_mode: str
    cache_state: str


class ArmKey(NamedTuple):
    """One arm on one problem."""

    problem: Problem
    arm: str
    implementation: str
    variant: str
    weight_format: str

    @property
    def kernel(self) -> Implementation:
        """Everything but the problem."""
        return Implementation.model_validate(dict(zip(self._fields[1:], self[1:], strict=True)))


@dataclass(frozen=True)
class Series:
    """The times of one arm, one per block, in the order of (process, block).

    Attributes:
        block: [blocks], process * 2^32 + block: the same number in every arm of that block.
        time_s: [blocks], seconds of one call.
        flags: words that its samples carry.
    """

    block: NDArray[np.int64]
    time_s: Floats
    flags: tuple[str, ...] = ()

    @cached_property
    def median_s(self) -> float:
        """Median seconds of one call."""
        return median(self.time_s)


Arms = dict[Implementation, Series]


def read_arms(samples: pa.Table, phase: str) -> dict[Problem, Arms]:
    """Times per problem and arm, of the pilot or of the fresh blocks.

    Raises:
        ValueError: a block has two samples of one arm, or a time is not positive and finite.
    """
    import pyarrow.compute as pc

    samples = samples.filter(pc.equal(samples.column("phase"), phase))
    process, index, times = (
        samples.column(name).to_numpy() for name in ("process", "block", "time_s")
    )
    blocks = (process.astype(np.int64) << 32) + index
    flags, words = _encoded(samples.column("flags"))
    problems: defaultdict[Problem, Arms] = defaultdict(dict)
    for names, rows in _by_key(samples):
        rows = rows[np.argsort(blocks[rows])]
        key = ArmKey(Problem(*names[:5]), *names[5:])
        block, time_s = blocks[rows], times[rows]
        if (np.diff(block) == 0).any():
            raise ValueError(f"{key} has two samples in one block; pairs would be ambiguous.")
        if not (np.isfinite(time_s) & (time_s > 0)).all():
            raise ValueError(f"{key} has a time that is not positive and finite.")
        said = " ".join(words[code] for code in np.unique(flags[rows]))
        series = Series(block, time_s, tuple(sorted(set(said.split()))))
        problems[key.problem][key.kernel] = series
    return dict(problems)


def _by_key(samples: pa.Table) -> Iterator[tuple[list[Any], NDArray[np.int64]]]:
    """The values of the key columns, in the order in which they first occur, and the rows that have them."""
    columns = [_encoded(samples.column(name)) for name in KEY_COLUMNS]
    key = np.zeros(samples.num_rows, np.int64)
    for codes, values in columns:
        key = key * len(values) + codes
    _, firsts, groups = np.unique(key, return_index=True, return_inverse=True)
    rows = np.split(np.argsort(groups, kind="stable"), np.cumsum(np.bincount(groups))[:-1])
    for group in np.argsort(firsts):
        yield [values[codes[firsts[group]]] for codes, values in columns], rows[group]


def _encoded(column: pa.ChunkedArray) -> tuple[NDArray[np.int64], list[Any]]:
    """Each row's value as an index into the different values."""
    found = column.combine_chunks().dictionary_encode()
    return found.indices.to_numpy().astype(np.int64), found.dictionary.to_pylist()


def add_layers(problems: Mapping[Problem, Arms], workload: Workload) -> dict[Problem, Arms]:
    """The problems, and for each batch and format the layer that sums over the operators."""
    result = dict(problems)
    for problem in problems:
        layer = problem._replace(operator=LAYER)
        if layer not in result:
            operators = [
                problems.get(problem._replace(operator=operator.name), {})
                for operator in workload.operators
            ]
            result[layer] = _layer(operators, [operator.count for operator in workload.operators])
    return result


def members(
    problems: Mapping[Problem, Arms], layer: Problem, kernel: Implementation, workload: Workload
) -> tuple[ArmKey, ...]:
    """The arms of the operators that a layer's arm is the sum of, in the workload's order."""
    found = []
    for operator in workload.operators:
        problem = layer._replace(operator=operator.name)
        chosen = _variant(
            problems.get(problem, {}), kernel.arm, kernel.implementation, kernel.weight_format
        )
        if chosen is not None:
            found.append(
                ArmKey(
                    problem, chosen.arm, chosen.implementation, chosen.variant, chosen.weight_format
                )
            )
    return tuple(found)


class Roles(NamedTuple):
    """Who plays which part on one problem; None where nobody does."""

    best16: Implementation | None
    fused: Implementation | None
    bypass: Implementation | None
    stream: Implementation | None
    unfused: Implementation | None
    library: Implementation | None
    upcast: Implementation | None
    lowp: Implementation | None
    lowp_product: Implementation | None


def pick_roles(arms: Arms, weight_format: str) -> Roles:
    """The headline implementations of a problem whose format is `weight_format`."""

    def fastest(wanted: Callable[[Implementation], bool]) -> Implementation | None:
        return min(filter(wanted, arms), key=lambda i: arms[i].median_s, default=None)

    # Of two fused kernels the one with a bypass comes first: without it there is no φ, which is the headline.
    fused = fastest(lambda i: i.arm == "fused" and i.model_copy(update={"arm": "bypass"}) in arms)
    fused = fused or fastest(lambda i: i.arm == "fused")

    def stage(name: str) -> Implementation | None:
        return fastest(
            lambda i: (
                fused is not None
                and (i.arm, i.implementation, i.variant)
                == (name, fused.implementation, fused.variant)
            )
        )

    lowp = fastest(lambda i: i.arm == "lowp" and "+" in i.implementation)
    return Roles(
        best16=fastest(lambda i: i.arm in ("native", "vendor") and i.weight_format in SIXTEEN_BIT),
        fused=fused,
        bypass=stage("bypass"),
        stream=stage("stream"),
        unfused=fastest(lambda i: i.arm == "unfused"),
        library=fastest(lambda i: i.arm == "vendor" and i.weight_format == weight_format),
        upcast=fastest(lambda i: i.arm == "upcast"),
        lowp=lowp,
        lowp_product=lowp and fastest(lambda i: i == _product(lowp)),
    )


def _product(lowp: Implementation) -> Implementation:
    """The row of a low-precision product whose activations were quantized before: see kernels/lowp.py."""
    product = lowp.implementation.partition("+")[2]
    return lowp.model_copy(update={"implementation": product})


def align(a: Series, b: Series) -> tuple[Floats, Floats, NDArray[np.int64]]:
    """Times of both arms in the blocks that have both, and the numbers of these blocks."""
    block, in_a, in_b = np.intersect1d(a.block, b.block, assume_unique=True, return_indices=True)
    return a.time_s[in_a], b.time_s[in_b], block


def _layer(operators: list[Arms], counts: list[int]) -> Arms:
    """Arms that every operator has, summed within the blocks that every operator has."""
    result: Arms = {}
    families = [{(i.arm, i.implementation, i.weight_format) for i in arms} for arms in operators]
    for family in sorted(set.intersection(*families)) if families else ():
        chosen = [_variant(arms, *family) for arms in operators]
        parts = [arms[i] for arms, i in zip(operators, chosen, strict=True) if i is not None]
        if len(parts) < len(operators):
            continue
        block = parts[0].block
        for part in parts[1:]:
            block = np.intersect1d(block, part.block, assume_unique=True)
        total = np.zeros(len(block))
        for part, count in zip(parts, counts, strict=True):
            total += count * part.time_s[np.searchsorted(part.block, block)]
        variants = {i.variant for i in chosen if i is not None}
        variant = variants.pop() if len(variants) == 1 else PER_OPERATOR
        arm, implementation, weight_format = family
        name = Implementation(
            arm=arm, implementation=implementation, variant=variant, weight_format=weight_format
        )
        if len(block):
            flags = tuple(sorted({flag for part in parts for flag in part.flags}))
            result[name] = Series(block, total, flags)
    return result


def _variant(
    arms: Arms, arm: Arm, implementation: str, weight_format: str
) -> Implementation | None:
    """The variant of an arm that the layer takes: that of the fastest fused kernel, or its own."""

    def fastest(name: str) -> Implementation | None:
        wanted = (name, implementation, weight_format)
        return min(
            (i for i in arms if (i.arm, i.implementation, i.weight_format) == wanted),
            key=lambda i: arms[i].median_s,
            default=None,
        )

    fused = fastest("fused") if arm in STAGES else None
    if fused is None:
        return fastest(arm)
    same = fused.model_copy(update={"arm": arm})
    return same if same in arms else None

"""From samples to the cost of dequantization: times per arm, and comparisons between arms.

Everything is paired. A block times every arm once, so whatever slowed that block slowed all its
arms; differences and ratios are taken within blocks, and their median and interval come after. Of
one problem (an operator, a batch, a format) the arms give

    exposed dequant    phi = t(fused) - t(bypass)        what fusion fails to hide
    unfused penalty    phi = t(unfused) - t(best16)      what two launches and a round trip cost
    non-stream time          t(fused) - t(stream)
    casting overhead         phi / (t(arm) - phi), that is phi / t(bypass) and phi / t(best16)
    quantization             t(lowp) - t(lowp, activations quantized before)
    speed-up                 t(best16) / t(arm)

best16 is the faster, by median, of the arms `native` and `vendor` that read 16-bit weights. Where
several fused kernels exist the fastest of those with a bypass is the headline, and its bypass and
stream are those of the same implementation and variant: one kernel, one launch configuration.

Only fresh blocks make estimates; the pilot says how many there must be (`fresh_blocks`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bench.analysis import stats
from bench.analysis.arms import (
    ArmKey,
    Arms,
    Floats,
    Problem,
    add_layers,
    align,
    pick_roles,
    read_arms,
)
from bench.analysis.pairs import Pair, median_quantity, pair_up
from bench.analysis.run_gate import run_gate
from profiles.schema import (
    LAYER,
    Arm,
    ArmRow,
    Comparison,
    Extrapolated,
    Implementation,
    Kind,
    Protocol,
    Quantity,
    Traffic,
    Workload,
    absent,
    scaled,
)

if TYPE_CHECKING:
    import pyarrow as pa

NO_ENERGY = "samples of milliseconds have no joules"
ARM_ORDER: tuple[Arm, ...] = (
    *("native", "vendor", "fused", "bypass", "scale", "unpack", "stream"),
    *("dequantize", "unfused", "lowp", "upcast"),
)


@dataclass(frozen=True)
class ArmFacts:
    """What is known of an arm besides its samples.

    Attributes:
        error_vs_reference: from verification, relative to the largest reference magnitude.
        traffic: bytes and operations of one call.
        failure: why its times do not count: it crashed, or its numbers were wrong.
        calls_per_sample: calls behind each sample; None where that varied.
        activation_error: of `lowp`, what quantizing x adds to the error of y.
        configuration: its launch configuration, and whether it was tuned.
        reference_error: how far the reference of its own is from ours, where it has one.
        local_bytes: of local memory per thread, None where nobody says.
    """

    error_vs_reference: float | None = None
    traffic: Traffic | None = None
    failure: str | None = None
    calls_per_sample: int | None = None
    activation_error: float | None = None
    configuration: str = ""
    reference_error: float | None = None
    local_bytes: int | None = None


def decompose(
    samples: pa.Table,
    workload: Workload,
    protocol: Protocol,
    facts: Mapping[ArmKey, ArmFacts] | None = None,
    kind: Kind = "measured",
) -> tuple[tuple[ArmRow, ...], tuple[Comparison, ...]]:
    """Rows and comparisons of a run, from its fresh samples.

    Args:
        samples: with the columns of `profiles.schema.SAMPLE_COLUMNS`.
        workload: names the operators and how often a layer has each.
        protocol: target half-width, confidence, least number of blocks.
        facts: per arm. An arm that appears only here gets a row without a time; samples of an arm
            that failed are left out of everything.
        kind: the kind of evidence, written into every quantity.

    Raises:
        ValueError: a block has two samples of one arm, or a time is not positive and finite.
    """
    facts = facts or {}
    problems = read_arms(samples, "fresh")
    for key, fact in facts.items():
        arms = problems.setdefault(key.problem, {})
        if fact.failure is not None:
            arms.pop(key.kernel, None)
    problems = add_layers(problems, workload)
    rows: list[ArmRow] = []
    comparisons: list[Comparison] = []
    dependent = _run_flags(problems, protocol, kind)
    for problem in sorted(problems, key=lambda p: _place(p, workload)):
        setting = _Setting(problem, problems[problem], workload, protocol, kind)
        comparison = _compare(setting)
        if setting.arms:
            comparisons.append(_flagged(comparison, dependent))
        rows += _rows(setting, facts, _converged(comparison, setting))
    return tuple(rows), tuple(comparisons)


def read_pilot(samples: pa.Table, workload: Workload) -> dict[Problem, Arms]:
    """The arms of the pilot's problems and layers, which the two functions below decide by."""
    return add_layers(read_arms(samples, "pilot"), workload)


def fresh_blocks(pilot: Mapping[Problem, Arms], protocol: Protocol) -> dict[Problem, int]:
    """How many fresh blocks each problem needs, from its pilot, for both phis to meet the target.

    Raises:
        ValueError: a pilot has fewer than 10 blocks of a pair.
    """
    needed: dict[Problem, int] = {}
    least, most = protocol.fresh_blocks_minimum, protocol.fresh_blocks_maximum
    for problem, arms in pilot.items():
        roles = pick_roles(arms, problem.format)
        if roles.best16 is None:
            continue
        target_s = protocol.target_half_width * arms[roles.best16].median_s
        needed[problem] = least
        for a, b in ((roles.fused, roles.bypass), (roles.unfused, roles.best16)):
            if a is not None and b is not None:
                x, y, _ = align(arms[a], arms[b])
                blocks = stats.fresh_blocks_needed(
                    x - y, target_s, least, most, protocol.confidence
                )
                needed[problem] = max(needed[problem], blocks)
    return needed


def compared_arms(pilot: Mapping[Problem, Arms]) -> set[ArmKey]:
    """The arms that the pilot gives a part in a phi: fused, bypass, unfused and best16.

    An arm that is the layer's best16 counts for every operator, and the other way round, so that
    sums over operators stay possible.
    """
    settings: dict[Problem, set[tuple[str, str, str]]] = {}
    for problem, arms in pilot.items():
        roles = pick_roles(arms, problem.format)
        parts = (roles.fused, roles.bypass, roles.unfused, roles.best16)
        families = {(i.arm, i.implementation, i.weight_format) for i in parts if i is not None}
        settings.setdefault(problem._replace(operator=LAYER), set()).update(families)
    return {
        ArmKey(problem, i.arm, i.implementation, i.variant, i.weight_format)
        for problem, arms in pilot.items()
        for i in arms
        if (i.arm, i.implementation, i.weight_format) in settings[problem._replace(operator=LAYER)]
    }


class _Setting(NamedTuple):
    """One problem, and all that applies to it."""

    problem: Problem
    arms: Arms
    workload: Workload
    protocol: Protocol
    kind: Kind

    def pair(self, a: Implementation | None, b: Implementation | None, names: str) -> Pair:
        return pair_up(self.arms, a, b, names, self.protocol, self.kind)

    def time_s(self, implementation: Implementation | None) -> Quantity:
        """Median seconds of one call."""
        if implementation is None or implementation not in self.arms:
            return absent("no samples of such an arm", self.kind)
        series = self.arms[implementation]
        return median_quantity(series.time_s, self.protocol.confidence, self.kind)

    def fields(self) -> dict[str, object]:
        """The fields that rows and comparisons share."""
        sizes = {o.name: (o.n, o.k) for o in self.workload.operators}
        n, k = sizes.get(self.problem.operator, (None, None))
        return {
            **self.problem._asdict(),
            "n": n,
            "k": k,
            "activation": self.workload.activation,
            "kind": self.kind,
        }


def _compare(setting: _Setting) -> Comparison:
    """Every paired quantity of one problem."""
    roles = pick_roles(setting.arms, setting.problem.format)
    best16, fused, unfused, library = roles.best16, roles.fused, roles.unfused, roles.library
    exposed = setting.pair(fused, roles.bypass, "fused and bypass of one kernel")
    penalty = setting.pair(unfused, best16, "unfused and a 16-bit arm")
    streamed = setting.pair(fused, roles.stream, "fused and stream of one kernel")
    best_s = None if best16 is None else setting.arms[best16].median_s
    comparison = Comparison.model_validate(
        {
            **setting.fields(),
            "best16": best16,
            "fused": fused,
            "unfused": unfused,
            "library": library,
            "phi_exposed_s": exposed.difference(),
            "phi_unfused_s": penalty.difference(),
            "non_stream_time_s": streamed.difference(),
            "cor_exposed": exposed.overhead(),
            "cor_unfused": penalty.overhead(),
            "speedup_fused": setting.pair(best16, fused, "a 16-bit arm and fused").ratio(),
            "speedup_unfused": setting.pair(best16, unfused, "a 16-bit arm and unfused").ratio(),
            "speedup_library": setting.pair(
                best16, library, "a 16-bit arm and a library's kernel of this format"
            ).ratio(),
            "upcast": roles.upcast,
            "lowp": roles.lowp,
            "lowp_product": roles.lowp_product,
            "quantization_s": setting.pair(
                roles.lowp, roles.lowp_product, "lowp with and without the quantization of x"
            ).difference(),
            "speedup_upcast": setting.pair(best16, roles.upcast, "a 16-bit arm and upcast").ratio(),
            "speedup_lowp": setting.pair(best16, roles.lowp, "a 16-bit arm and lowp").ratio(),
            "phi_exposed_j": absent(NO_ENERGY, setting.kind),
            "phi_unfused_j": absent(NO_ENERGY, setting.kind),
            "energy_ratio_fused": absent(NO_ENERGY, setting.kind),
            "energy_ratio_unfused": absent(NO_ENERGY, setting.kind),
            "quality_exposed": exposed.quality(best_s),
            "quality_unfused": penalty.quality(best_s),
        }
    )
    if setting.problem.operator != LAYER:
        return comparison
    return comparison.model_copy(update={"extrapolated": _extrapolate(comparison, setting)})


def _run_flags(problems: Mapping[Problem, Arms], protocol: Protocol, kind: Kind) -> tuple[str, ...]:
    """What all rows of the run together say of its blocks: of every phi of every operator.

    The layer is left out, being their sum. Differences of operators count in the blocks that all have.
    """
    cells: dict[Problem, list[Pair]] = defaultdict(list)
    for problem, arms in problems.items():
        if problem.operator == LAYER:
            continue
        roles = pick_roles(arms, problem.format)
        for a, b in ((roles.fused, roles.bypass), (roles.unfused, roles.best16)):
            pair = pair_up(arms, a, b, "", protocol, kind)
            if not pair.reason:
                cells[problem._replace(operator=LAYER)].append(pair)
    return run_gate(_together(pairs) for pairs in cells.values()).flags


def _together(pairs: list[Pair]) -> tuple[list[Floats], NDArray[np.int64]]:
    """Differences of several pairs in the blocks that all of them have, and the processes of these."""
    blocks = reduce(np.intersect1d, (pair.block for pair in pairs))
    return [(p.a - p.b)[np.isin(p.block, blocks)] for p in pairs], blocks >> 32


def _flagged(comparison: Comparison, flags: tuple[str, ...]) -> Comparison:
    """The comparison, with flags added to each phi there is."""
    if not flags:
        return comparison
    update = {
        name: quality.model_copy(update={"flags": (*quality.flags, *flags)})
        for name in ("quality_exposed", "quality_unfused")
        if (quality := getattr(comparison, name)).converged is not None
    }
    return comparison.model_copy(update=update)


def _extrapolate(layer: Comparison, setting: _Setting) -> Extrapolated:
    """A decode step: every time of the layer multiplied by the number of layers."""
    layers = setting.workload.layers
    return Extrapolated(
        layers=layers,
        best16_s=scaled(setting.time_s(layer.best16), layers),
        fused_s=scaled(setting.time_s(layer.fused), layers),
        unfused_s=scaled(setting.time_s(layer.unfused), layers),
        phi_exposed_s=scaled(layer.phi_exposed_s, layers),
        phi_unfused_s=scaled(layer.phi_unfused_s, layers),
    )


def _converged(comparison: Comparison, setting: _Setting) -> dict[Implementation, bool]:
    """For each arm that a phi uses, whether all of those met their target."""
    bypass = pick_roles(setting.arms, setting.problem.format).bypass
    uses = (
        (comparison.quality_exposed.converged, (comparison.fused, bypass)),
        (comparison.quality_unfused.converged, (comparison.unfused, comparison.best16)),
    )
    result: dict[Implementation, bool] = {}
    for converged, arms in uses:
        for arm in arms:
            if arm is not None and converged is not None:
                result[arm] = result.get(arm, True) and converged
    return result


def _rows(
    setting: _Setting, facts: Mapping[ArmKey, ArmFacts], converged: Mapping[Implementation, bool]
) -> list[ArmRow]:
    """One row per arm of a problem, with those that failed."""
    known = {key.kernel: fact for key, fact in facts.items() if key.problem == setting.problem}
    rows = []
    for arm in sorted({*setting.arms, *known}, key=_arm_place):
        fact = known.get(arm, ArmFacts())
        series = setting.arms.get(arm)
        time_s = setting.time_s(arm)
        if fact.failure is not None:
            time_s = absent(f"failed: {fact.failure}", setting.kind)
        row = {
            **setting.fields(),
            **arm.model_dump(),
            "time_s": time_s,
            "calls_per_sample": fact.calls_per_sample,
            "blocks": 0 if series is None else len(series.time_s),
            "flags": () if series is None else series.flags,
            "converged": converged.get(arm),
            "error_vs_reference": fact.error_vs_reference,
            "activation_error": fact.activation_error,
            "reference_error": fact.reference_error,
            "local_bytes": fact.local_bytes,
            "configuration": fact.configuration,
            "traffic": fact.traffic,
            "stream_bandwidth_fraction": _bandwidth_fraction(arm, known, setting),
            "energy_j": absent(NO_ENERGY, setting.kind),
            "failure": fact.failure,
        }
        rows.append(ArmRow.model_validate(row))
    return rows


def _bandwidth_fraction(
    arm: Implementation, known: Mapping[Implementation, ArmFacts], setting: _Setting
) -> Quantity:
    """Bytes per second of an arm over those of the fastest `stream` arm, paired within blocks."""
    arms = setting.arms
    streams = [i for i in arms if i.arm == "stream"]
    stream = min(streams, key=lambda i: arms[i].median_s, default=None)
    if stream is None:
        return absent("no stream arm to compare with", setting.kind)
    traffic, streamed = (known.get(i, ArmFacts()).traffic for i in (arm, stream))
    if traffic is None or streamed is None:
        return absent("the traffic of the arm or of stream is not known", setting.kind)
    factor = _bytes(traffic) / _bytes(streamed)
    return setting.pair(stream, arm, "stream and this arm").ratio(factor)


def _bytes(traffic: Traffic) -> int:
    return traffic.bytes_read + traffic.bytes_written


def _place(problem: Problem, workload: Workload) -> tuple[int, Problem]:
    """Sorting key: operators in the workload's order, the layer last, then batch and format."""
    operators = [operator.name for operator in workload.operators]
    index = operators.index(problem.operator) if problem.operator in operators else len(operators)
    return (index, problem)


def _arm_place(i: Implementation) -> tuple[int, str, str, str]:
    return (ARM_ORDER.index(i.arm), i.implementation, i.variant, i.weight_format)

"""A profile of a board that is not here: the same rows, comparisons and names as a measured one.

    profile = modelled_profile(model, shape, sources(), argv, created)

Intervals are at 90 %. That of a time comes from the residuals of published times; that of a ratio of two
kernels on one board from published ratios of weight-only to 16-bit kernels. A difference is made of both: its
sign is settled where that of the ratio against 1 is. Nobody has published two arms of one kernel (fused and
bypass), which should agree better. There are no joules: no trustworthy constants of energy per byte or
instruction exist.

Which kernel plays which part is decided as for measured times (`bench/analysis/arms.py`).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from math import exp, log
from typing import TYPE_CHECKING

import numpy as np

from bench.analysis.arms import (
    ArmKey,
    Arms,
    Problem,
    Roles,
    Series,
    add_layers,
    members,
    pick_roles,
)
from bench.analysis.decompose import ARM_ORDER
from bench.static import estimate, parameters
from bench.static.audit_cache import compiler
from bench.static.device import QUANTIZES, Arm, Model
from bench.static.freeze import frozen
from bench.static.limits import Ratio
from bench.static.model import LIMITERS
from profiles.schema import (
    LAYER,
    NOT_HERE,
    ArmRow,
    Comparison,
    DeviceInfo,
    Energy,
    Extrapolated,
    Implementation,
    Modelled,
    Parameter,
    Profile,
    Protocol,
    Quality,
    Quantity,
    SupplyDemand,
    Traffic,
    Workload,
    absent,
    scaled,
)
from profiles.specs import Gpu, Number, measured_notes, numbers

if TYPE_CHECKING:
    from bench.measure.records import Sources
    from profiles.shapes import ModelShape

CONFIDENCE = 0.90
DIGITS = 5  # of a modelled number
CACHE_MULTIPLE = 2  # of the last-level cache, touched between two uses of a copy
CUDA_LEFT_OUT = (
    "kernels in CUDA C++ (implementation cuda) are not modelled and have no rows: a machine has them only "
    "where CuPy is installed, and a model says the same everywhere; python -m bench.sass --cuda counts them"
)
NO_L2 = (
    "traffic between the L2 cache and the multiprocessors is modelled for kernels that cut the batch into "
    "tiles, at an assumed rate; vendor and kernels without tiles are taken never to be limited by it"
)
NO_JOULES = "modelled: no trustworthy constants of energy per byte or instruction exist"
NO_BLOCKS = "modelled: nothing was repeated, so there is nothing to converge"
INTERVALS = (
    "90 %, from the residuals of published times of other people's kernels, each source held out "
    "(python -m bench.validate); those of ratios from published ratios to 16 bits on one board; a difference "
    "is made of a ratio and a time"
)


@dataclass(frozen=True)
class Timed:
    """One arm's time on one problem, as a row has it.

    Attributes:
        time_s: with its interval, or the reason why there is none.
        parts_s: seconds of each resource alone.
        traffic: None for the sum over a layer.
        failure: what the board lacks, in the words of a board that is there; None: nothing.
    """

    time_s: Quantity
    parts_s: Mapping[str, float]
    traffic: Traffic | None
    failure: str | None = None

    @property
    def limiter(self) -> str | None:
        """The resource that would take longest alone."""
        parts = self.parts_s
        return LIMITERS[max(parts, key=lambda name: parts[name])] if parts else None


Table = dict[ArmKey, Timed]


def modelled_profile(
    model: Model, shape: ModelShape, sources: Sources, argv: tuple[str, ...], created: datetime
) -> Profile:
    """The profile of a board from the model of its layer.

    Args:
        model: the layer on the board.
        shape: whose layer it is.
        sources: the checkout and the packages that computed it.
        argv: the command that asked for it.
        created: when, in UTC.
    """
    gpu, layer = model.gpu, model.layer
    workload = Workload(
        model=shape.name,
        layers=shape.layers,
        operators=layer.operators,
        activation=layer.activation,
        formats=tuple(f.name for f in layer.formats),
        batches=layer.batches,
        launch_mode="graph",
        cache_state="cold",
        rotation_bytes=round(CACHE_MULTIPLE * gpu.l2_mb.value * 1e6),
        seeds={},
    )
    rows, comparisons = tabulate(model, workload)
    software = sources.software.model_dump()
    for name in ("driver", "cuda", "threading_layer"):
        software["missing"][name] = "modelled: nothing was run"
    return Profile(
        created=created,
        kind="modelled",
        complete=True,
        device=describe(gpu),
        software=software,
        git=sources.git,
        argv=argv,
        workload=workload,
        kernels_sha256=sources.kernels_sha256,
        protocol=Protocol(
            pilot_blocks=0,
            fresh_blocks_minimum=0,
            fresh_blocks_maximum=0,
            processes=0,
            target_half_width=1.0,
            confidence=CONFIDENCE,
            sample_minimum_s=1.0,
            interval_method="conformal, residuals of published times",
        ),
        rows=rows,
        comparisons=comparisons,
        energy=Energy(reason=NO_JOULES),
        modelled=foundation(model),
    )


def describe(gpu: Gpu) -> DeviceInfo:
    """The board of a data sheet."""
    return DeviceInfo(
        name=gpu.name,
        kind="modelled",
        uuid_hash=None,
        cores=round(gpu.sms.value),
        last_level_cache_bytes=round(gpu.l2_mb.value * 1e6),
        memory_bytes=round(gpu.memory_gib.value * 2**30),
        capability=gpu.capability,
        missing={"uuid_hash": "modelled: there is no such board here"},
    )


def foundation(model: Model) -> Modelled:
    """What the numbers rest on, and how many were refused."""
    gpu, tried = model.gpu, [a for a in model.arms if not a.estimate.reason.startswith(NOT_HERE)]
    refused = Counter(a.estimate.reason for a in tried if a.estimate.reason)
    known = numbers(gpu) | (numbers(gpu.multiprocessor) if gpu.multiprocessor else {})
    known |= {name.lower(): value for name, value in vars(parameters).items()
              if isinstance(value, Number)}  # fmt: skip
    notes = [note.removesuffix(".") for note in measured_notes([gpu])]
    notes += [] if gpu.key in parameters.CHECKED_BOARDS else [parameters.UNCHECKED]
    notes += [CUDA_LEFT_OUT, NO_L2]
    if any(a.kernel.arm == "vendor" for a in model.arms):
        notes.append(
            "vendor (a library's 16-bit kernel): bytes and tensor rate alone, its instructions are taken "
            "never to limit it"
        )
    return Modelled(
        board=gpu.key,
        rows=len(tried),
        refused=dict(refused.most_common()),
        compiler=f"Triton {compiler()}",
        model=f"{frozen().name} ({frozen().digest[:12]})",
        intervals=INTERVALS,
        notes=tuple(notes),
        parameters={
            name: Parameter(value=n.value, low=n.low, high=n.high, unit=n.unit, sort=n.sort)
            for name, n in sorted(known.items())
        },
        ratios=tuple(_ratio(*found) for found in model.ratios),
    )


def tabulate(model: Model, workload: Workload) -> tuple[tuple[ArmRow, ...], tuple[Comparison, ...]]:
    """Rows and comparisons, the layer among them, in the order of a measured profile."""
    table: Table = {}
    problems: dict[Problem, Arms] = defaultdict(dict)
    for arm in model.arms:
        problem = Problem(arm.operator, arm.batch, arm.format, "graph", "cold")
        table[_key(problem, arm.kernel)] = _timed(arm)
        if arm.estimate.value_s is not None:
            problems[problem][arm.kernel] = _series(arm.estimate.value_s)
        else:
            problems[problem]
    everything = add_layers(problems, workload)
    for problem, arms in everything.items():
        if problem.operator == LAYER:
            for kernel in arms:
                keys = members(everything, problem, kernel, workload)
                table[_key(problem, kernel)] = _sum([table[key] for key in keys], workload)
    rows: list[ArmRow] = []
    comparisons: list[Comparison] = []
    places = {o.name: i for i, o in enumerate(workload.operators)}
    for problem in sorted(everything, key=lambda p: (places.get(p.operator, len(places)), p)):
        own = {key.kernel: timed for key, timed in table.items() if key.problem == problem}
        if everything[problem]:
            comparisons.append(_compare(problem, everything[problem], own, workload))
        rows += _rows(problem, own, workload)
    return tuple(rows), tuple(comparisons)


def _key(problem: Problem, kernel: Implementation) -> ArmKey:
    return ArmKey(problem, kernel.arm, kernel.implementation, kernel.variant, kernel.weight_format)


def _series(value_s: float) -> Series:
    """A modelled time where `bench.analysis.arms` wants samples: one block."""
    return Series(np.zeros(1, np.int64), np.array([value_s]))


def _timed(arm: Arm) -> Timed:
    e = arm.estimate
    if e.reason.startswith(NOT_HERE):
        return Timed(absent(e.reason, "modelled"), {}, arm.traffic, e.reason)
    if e.value_s is None:
        return Timed(absent(f"not modelled: {e.reason}", "modelled"), {}, arm.traffic)
    return Timed(_quantity(e.value_s, e.low_s, e.high_s), e.parts_s or {}, arm.traffic)


def _sum(parts: Sequence[Timed], workload: Workload) -> Timed:
    """The layer: the ends of its operators add up, for their errors go together."""
    counts = [operator.count for operator in workload.operators]
    ends = [
        sum(c * (getattr(p.time_s, end) or 0.0) for c, p in zip(counts, parts, strict=True))
        for end in ("value", "low", "high")
    ]
    names = dict.fromkeys(name for part in parts for name in part.parts_s)
    parts_s = {
        name: sum(c * p.parts_s.get(name, 0.0) for c, p in zip(counts, parts, strict=True))
        for name in names
    }
    return Timed(_quantity(*ends), parts_s, None)


def _quantity(value: float, low: float | None, high: float | None) -> Quantity:
    """A modelled number, to as many digits as make sense of it twice over."""
    ends = (None if end is None else float(f"{end:.{DIGITS}g}") for end in (low, high))
    value = float(f"{value:.{DIGITS}g}")
    return Quantity(value=value, low=next(ends), high=next(ends), kind="modelled")


def _fields(problem: Problem, workload: Workload) -> dict[str, object]:
    """What rows and comparisons share."""
    sizes = {o.name: (o.n, o.k) for o in workload.operators}
    n, k = sizes.get(problem.operator, (None, None))
    return {
        **problem._asdict(),
        "n": n,
        "k": k,
        "activation": workload.activation,
        "kind": "modelled",
    }


def _rows(
    problem: Problem, own: Mapping[Implementation, Timed], workload: Workload
) -> Iterator[ArmRow]:
    """One row per arm of a problem."""
    streams = [i for i, t in own.items() if i.arm == "stream" and t.time_s.value is not None]
    stream = min(streams, key=lambda i: own[i].time_s.value or 0.0, default=None)

    def place(i: Implementation) -> tuple[int, str, str, str]:
        return (ARM_ORDER.index(i.arm), i.implementation, i.variant, i.weight_format)

    for kernel in sorted(own, key=place):
        timed = own[kernel]
        yield ArmRow.model_validate(
            {
                **_fields(problem, workload),
                **kernel.model_dump(),
                "time_s": timed.time_s,
                "traffic": timed.traffic,
                "stream_bandwidth_fraction": _bandwidth(own, kernel, stream, problem.batch),
                "energy_j": absent(NO_JOULES, "modelled"),
                "limiter": timed.limiter,
                "failure": timed.failure,
            }
        )


def _bandwidth(
    own: Mapping[Implementation, Timed],
    kernel: Implementation,
    stream: Implementation | None,
    batch: int,
) -> Quantity:
    """Bytes per second of an arm over those of the fastest `stream` arm."""
    if stream is None:
        return absent("no stream arm to compare with", "modelled")
    moved, streamed = own[kernel].traffic, own[stream].traffic
    if moved is None or streamed is None:
        return absent("the traffic of a sum over operators is not counted", "modelled")
    share = (moved.bytes_read + moved.bytes_written) / (
        streamed.bytes_read + streamed.bytes_written
    )
    return scaled(ratio(own[stream].time_s, own[kernel].time_s, batch), share)


def difference(a: Quantity, b: Quantity, batch: int) -> Quantity:
    """A - b, over the intervals of a / b and of b."""
    if a.value is None or b.value is None:
        return absent(a.reason or b.reason, "modelled")
    assert b.low is not None
    assert b.high is not None
    ends = estimate.difference(_ratio_ends(a, b, batch), (b.low, b.high))
    return _quantity(a.value - b.value, *ends)


def ratio(a: Quantity, b: Quantity, batch: int, less: float = 0.0) -> Quantity:
    """A / b - less; wider where one of them is (a matrix that a cache may hold)."""
    if a.value is None or b.value is None:
        return absent(a.reason or b.reason, "modelled")
    low, high = _ratio_ends(a, b, batch)
    return _quantity(a.value / b.value - less, low - less, high - less)


def _ratio_ends(a: Quantity, b: Quantity, batch: int) -> tuple[float, float]:
    """Ends of the interval of a / b."""
    assert a.value is not None
    assert b.value is not None
    alone, width = parameters.interval_width(batch), parameters.ratio_width(batch)
    value = a.value / b.value
    return value * exp(-width - _beyond(a, alone)), value * exp(width + _beyond(b, alone))


def _beyond(q: Quantity, width: float) -> float:
    """By how much further the lower end lies than the width, as a logarithm."""
    assert q.value is not None
    assert q.low is not None
    return max(0.0, log(q.value / q.low) - width)


def _compare(
    problem: Problem, arms: Arms, own: Mapping[Implementation, Timed], workload: Workload
) -> Comparison:
    """Every quantity of one problem that is made of two arms."""
    roles: Roles = pick_roles(arms, problem.format)

    def time_s(kernel: Implementation | None) -> Quantity:
        return absent("not modelled", "modelled") if kernel is None else own[kernel].time_s

    best, fused, unfused = time_s(roles.best16), time_s(roles.fused), time_s(roles.unfused)
    bypass, batch = time_s(roles.bypass), problem.batch
    product = min(
        (i for i in arms if i.arm == "lowp"), key=lambda i: arms[i].median_s, default=None
    )  # alone: what quantizes x as well has no time
    no_lowp = absent(
        "not modelled: " + QUANTIZES if product else "there is no lowp arm", "modelled"
    )
    quality = Quality(
        half_width_over_best16=None,
        between_process_spread_s=None,
        converged=None,
        reason=NO_BLOCKS,
    )
    comparison = Comparison.model_validate(
        {
            **_fields(problem, workload),
            "best16": roles.best16,
            "fused": roles.fused,
            "unfused": roles.unfused,
            "library": roles.library,
            "upcast": roles.upcast,
            "lowp_product": product,
            "phi_exposed_s": difference(fused, bypass, batch),
            "phi_unfused_s": difference(unfused, best, batch),
            "non_stream_time_s": difference(fused, time_s(roles.stream), batch),
            "cor_exposed": ratio(fused, bypass, batch, 1.0),
            "cor_unfused": ratio(unfused, best, batch, 1.0),
            "speedup_fused": ratio(best, fused, batch),
            "speedup_unfused": ratio(best, unfused, batch),
            "speedup_library": ratio(best, time_s(roles.library), batch),
            "quantization_s": no_lowp,
            "speedup_upcast": ratio(best, time_s(roles.upcast), batch),
            "speedup_lowp": no_lowp,
            "phi_exposed_j": absent(NO_JOULES, "modelled"),
            "phi_unfused_j": absent(NO_JOULES, "modelled"),
            "energy_ratio_fused": absent(NO_JOULES, "modelled"),
            "energy_ratio_unfused": absent(NO_JOULES, "modelled"),
            "quality_exposed": quality,
            "quality_unfused": quality,
        }
    )
    if problem.operator != LAYER:
        return comparison
    layers = workload.layers
    step = Extrapolated(
        layers=layers,
        best16_s=scaled(best, layers),
        fused_s=scaled(fused, layers),
        unfused_s=scaled(unfused, layers),
        phi_exposed_s=scaled(comparison.phi_exposed_s, layers),
        phi_unfused_s=scaled(comparison.phi_unfused_s, layers),
    )
    return comparison.model_copy(update={"extrapolated": step})


def _ratio(weight_format: str, batch: int, kernel: Implementation, found: Ratio) -> SupplyDemand:
    if found.value is None:
        quantity = absent(f"not modelled: {found.reason}", "modelled")
    else:
        quantity = _quantity(found.value, found.low, found.high)
    return SupplyDemand(
        format=weight_format,
        batch=batch,
        kernel=kernel,
        ratio=quantity,
        at_reached_issue=found.at_reached_issue,
        limiter=found.limiter,
    )

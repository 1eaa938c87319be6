"""What an audit says of one kernel: its instructions by class, what it occupies, and the rows of a report.

A *job* names one of our kernels and an architecture; an `Audit` is what was found in its machine code, plain
data that a cache can keep; a `Row` is a line of the report. The row `fused-bypass` is a difference: the
two arms are one kernel with one launch configuration, so what is left is the dequantization itself.

    audit = audit_job(Job("fused", "gemv-ptx", "int4-g128", "fp16", 1, 90))
    row_of(audit).value("total")      thread-instructions per weight

Counts are of the hot path (`bench.static.sass`), of a loop within it as often as it runs (`nesting.py`); where
the code does not say how often, it counts once, and the counts are lower bounds that give no R. Where nobody
knows how many weights a lane handles in one pass of the hot path, they are per pass.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, cast

from bench.static import nesting, sass
from bench.static.compile import WARP_LANES, CompiledKernel, compile_kernel
from bench.static.cost import InstructionCounts, KernelCost, counts_of_classes
from bench.static.occupancy import MULTIPROCESSORS, resident_programs
from kernels.formats import WeightFormat, find_format

if TYPE_CHECKING:
    from kernels.kernel import Arm
    from kernels.packing import Float16
    from kernels.triton.configs import Config
    from kernels.triton.plan import Plan

N, K = 4096, 14336  # the wide side of an 8-billion-parameter model
FAST_CONVERSIONS = ("I2FP", "F2FP", "I2IP")  # of class "cvt", yet not on the slow unit
FAST_CAPABILITY = 86  # from here on an instruction turns integers into floats on the integer pipe
ACTIVATION_BITS = 16
DIFFERENCE = "fused-bypass"
UNFUSED = "unfused"
LOWER_BOUND = "at least"  # an inner loop of unknown length: in a table, and in words
UNKNOWN_LOOP = "a loop within the loop: how often it runs is not in the code"
RESOURCES = ("registers", "spills", "shared_bytes")
MEASURES = ("total", *sass.CLASS_NAMES, *RESOURCES)


@dataclass(frozen=True)
class Job:
    """One of our kernels for one architecture.

    Attributes:
        arm: "fused", "bypass", "dequantize", ...
        variant: of the tile, such as "gemv-ptx".
        format: name of the format of the weights that it reads; of a 16-bit kernel "fp16" or "bf16".
        activation: "fp16" or "bf16".
        batch: rows of x.
        capability: compute capability times ten.
        config: its launch configuration; None for what it takes where the board is not known.
    """

    arm: str
    variant: str
    format: str
    activation: str
    batch: int
    capability: int
    config: Config | None = None

    @property
    def name(self) -> str:
        """What patterns of a gate are compared with."""
        return f"{self.variant}/{self.arm}/{self.format}/{self.activation}"


@dataclass(frozen=True)
class Audit:
    """What was found in the machine code of one kernel.

    Attributes:
        name: of the kernel.
        capability: compute capability times ten.
        classes: instructions of one pass of the hot path, by class of `sass.CLASS_NAMES`.
        slow_conversions: those of class "cvt" that run on the slow unit.
        wide_imad: those of class "imad" that take their pipe twice as long.
        loads: loads from global memory in one pass, by width in bits.
        looped: whether the hot path is a loop; otherwise the whole kernel was counted.
        weights: that one lane handles in one pass; None: unknown.
        registers: per thread; None: unknown.
        spill_instructions: LDL and STL in the whole kernel.
        stack_bytes: per thread.
        shared_bytes: per program; of a foreign binary the static part only.
        num_warps: per program; None: unknown.
        resident_warps: that fit on one multiprocessor; None: unknown.
        outside: instructions that run once, around the loop, by class; none without a loop.
        guarded: instructions of one pass of the hot path that a branch may skip.
        warp_mma: those of class "mma" that belong to one warp, which newer boards run slowly.
        inner_loops: loops within the hot path, each of whose passes counts.
        unknown_loops: those of them that count once because nobody knows how often they run.
    """

    name: str
    capability: int
    classes: Mapping[str, int]
    slow_conversions: int
    loads: Mapping[int, int]
    looped: bool
    wide_imad: int = 0
    weights: int | None = None
    registers: int | None = None
    spill_instructions: int = 0
    stack_bytes: int = 0
    shared_bytes: int | None = None
    num_warps: int | None = None
    resident_warps: int | None = None
    outside: Mapping[str, int] = field(default_factory=dict)
    guarded: int = 0
    warp_mma: int = 0
    inner_loops: int = 0
    unknown_loops: int = 0

    @property
    def instructions(self) -> int:
        """On the hot path."""
        return sum(self.classes.values())

    @property
    def spills(self) -> int:
        """Spill instructions; of a kernel with a stack but none of them, the bytes of the stack."""
        return self.spill_instructions or self.stack_bytes


@dataclass(frozen=True)
class Row:
    """One line of a report.

    Attributes:
        name: variant/arm/format/activation, or the name of a foreign function.
        capability: compute capability times ten.
        job: which of our kernels; None for a foreign one.
        audit: what was found; None for a difference or a sum of two kernels.
        per_weight: instructions per weight, "total" and by class; per pass if `weights` is None.
        weights: that one lane handles in one pass.
        lower_bound: whether a loop of unknown length counts once in it, or in a kernel that it is made of.
    """

    name: str
    capability: int
    job: Job | None
    audit: Audit | None
    per_weight: Mapping[str, float] = field(default_factory=dict)
    weights: int | None = None
    lower_bound: bool = False

    def value(self, measure: str) -> float | None:
        """One of the MEASURES; None where it has no meaning or is not known."""
        if measure in RESOURCES:
            return getattr(self.audit, measure) if self.audit else None
        return self.per_weight.get(measure) if self.weights else None


def weights_per_pass(plan: Plan, num_warps: int) -> int:
    """Weights that one lane handles in one pass of the loop (dequantize: in all)."""
    block_k = cast("int", plan.constexprs["BLOCK_K"])
    return cast("int", plan.constexprs["BLOCK_N"]) * block_k // (WARP_LANES * num_warps)


def audit_code(
    name: str, capability: int, code: sass.Code, weights: int | None = None, **found: Any
) -> Audit:
    """Count the hot path of one function, each instruction as often as one pass runs it.

    Args:
        name: of the kernel.
        capability: compute capability times ten.
        code: the whole function.
        weights: that one lane handles in one pass.
        **found: registers, stack_bytes and other attributes of `Audit`.
    """
    hot_path = sass.hot_path(code)
    inner = nesting.inner_loops(code, hot_path)
    hot = nesting.executed(hot_path, inner)
    skipped = sass.guarded(code)
    converting = [i for i in hot if sass.class_of(i) == "cvt"]
    return Audit(
        name=name,
        capability=capability,
        classes=dict(sass.per_class(hot)),
        slow_conversions=len(converting) - sass.count(converting, FAST_CONVERSIONS),
        loads=dict(sass.load_widths(hot)),
        wide_imad=sass.count(hot, sass.WIDE_IMAD),
        looped=bool(sass.loops(code)),
        weights=weights,
        spill_instructions=sass.count(code, sass.SPILLS),
        outside=dict(sass.per_class(sass.outside(code))),
        guarded=sum(i.index in skipped for i in hot),
        warp_mma=sass.count(hot, sass.WARP_MMA),
        inner_loops=len(inner),
        unknown_loops=sum(loop.passes is None for loop in inner),
        **found,
    )


def audit_kernel(name: str, compiled: CompiledKernel, weights: int | None) -> Audit:
    """Count a kernel that Triton compiled."""
    warps = None
    if compiled.capability in MULTIPROCESSORS:
        used = (compiled.registers, compiled.shared_bytes, compiled.num_warps)
        warps = resident_programs(compiled.capability, *used) * compiled.num_warps
    return audit_code(
        name,
        compiled.capability,
        compiled.sass,
        weights,
        registers=compiled.registers,
        stack_bytes=compiled.stack_bytes,
        shared_bytes=compiled.shared_bytes,
        num_warps=compiled.num_warps,
        resident_warps=warps,
    )


def plan_for(job: Job, n: int = N, k: int = K) -> Plan:
    """What the kernel of a job launches on W[n, k]."""
    from kernels import triton

    arm, activation = cast("Arm", job.arm), cast("Float16", job.activation)
    weight_format = find_format(job.format)
    shape = (n, k, job.batch, job.capability, job.config)
    return triton.plan_of(arm, job.variant, weight_format, activation, *shape)


def job_from(data: Mapping[str, Any]) -> Job:
    """A job from JSON.

    Raises:
        TypeError: a field is missing or unknown.
    """
    job = Job(**data)
    if job.config is None:
        return job
    from kernels.triton.configs import config_from

    return replace(job, config=config_from(job.arm, job.variant, data["config"]))


def audit_job(job: Job) -> Audit:
    """Compile one of our kernels and count; only in a process that does not interpret Triton."""
    plan = plan_for(job)
    compiled = compile_kernel(
        plan.fn, plan.signature, plan.constexprs, job.capability, **plan.options
    )
    weights = weights_per_pass(plan, compiled.num_warps)
    return audit_kernel(job.name, compiled, weights)


def to_data(audit: Audit) -> dict[str, Any]:
    """An audit as JSON holds it."""
    return asdict(audit)


def from_data(data: Mapping[str, Any]) -> Audit:
    """An audit from JSON, whose keys are text.

    Raises:
        TypeError, ValueError, AttributeError: it is none.
    """
    loads = {int(width): int(number) for width, number in data["loads"].items()}
    audit = Audit(**{**data, "loads": loads})
    if set(audit.classes) - set(sass.CLASS_NAMES):
        raise ValueError("unknown classes of instructions")
    return audit


def row_of(audit: Audit, job: Job | None = None) -> Row:
    """The line of one kernel."""
    weights = audit.weights or 1
    values = {name: audit.classes.get(name, 0) / weights for name in sass.CLASS_NAMES}
    values["total"] = audit.instructions / weights
    bound = audit.unknown_loops > 0
    return Row(audit.name, audit.capability, job, audit, values, audit.weights, bound)


def rows_of(audits: Mapping[Job, Audit]) -> Iterator[Row]:
    """The lines of our kernels, with the difference behind each `fused` that has a `bypass`.

    A difference per weight needs the same tile on both sides, and is left out otherwise. A `dequantize` is
    followed by each `unfused` path that it is the first launch of, where the second was counted too.
    """
    for job, audit in audits.items():
        yield row_of(audit, job)
        bypass = audits.get(replace(job, arm="bypass"))
        if job.arm == "fused" and bypass and audit.weights and bypass.weights == audit.weights:
            yield difference(row_of(audit, job), row_of(bypass))
        if job.arm == "dequantize" and audit.weights:
            for other, second in audits.items():
                same = (other.activation, other.capability) == (job.activation, job.capability)
                if other.arm == "native" and same and second.weights:
                    yield two_launches(row_of(audit, job), row_of(second, other))


def difference(fused: Row, bypass: Row) -> Row:
    """What dequantization adds, per weight and class."""
    assert fused.job is not None
    values = {name: fused.per_weight[name] - bypass.per_weight[name] for name in fused.per_weight}
    job = replace(fused.job, arm=DIFFERENCE)
    bound = fused.lower_bound or bypass.lower_bound
    return Row(job.name, fused.capability, job, None, values, fused.weights, bound)


def two_launches(first: Row, second: Row) -> Row:
    """The unfused path: what both kernels spend on a weight; what a program occupies differs between them."""
    assert first.job is not None
    assert second.job is not None
    values = {name: first.per_weight[name] + second.per_weight[name] for name in first.per_weight}
    variant = f"{first.job.variant}+{second.job.variant}"
    job = replace(first.job, arm=UNFUSED, variant=variant, batch=second.job.batch)
    bound = first.lower_bound or second.lower_bound
    return Row(job.name, first.capability, job, None, values, first.weights, bound)


def bytes_moved(arm: str, weight_format: WeightFormat) -> float:
    """Bytes of memory per weight: what is stored, and for `dequantize` the 16 bits written too."""
    written = ACTIVATION_BITS if arm == "dequantize" else 0
    return (weight_format.bits_stored(K) + written) / 8


def counts_of(audit: Audit, bytes_per_weight: float) -> InstructionCounts:
    """Counts per weight of the hot path, as the model of a GPU takes them.

    Below compute capability 8.6 there is no I2FP: what else is fast (F2FP) then has the integer pipe's rate,
    and not that of the slow unit, which I2FP of other code would need there.
    """
    weights = audit.weights or 1
    counts = counts_of_classes(
        audit.classes,
        audit.slow_conversions,
        audit.wide_imad,
        audit.loads,
        weights,
        bytes_per_weight,
    )
    if audit.capability >= FAST_CAPABILITY:
        return counts
    return replace(counts, integer=counts.integer + counts.fast_conversion, fast_conversion=0.0)


def cost_of(row: Row, bytes_per_weight: float, batch: int) -> KernelCost | None:
    """One kernel as the model of a GPU takes it; None where instructions per weight are unknown."""
    audit = row.audit
    if audit is None or audit.weights is None:
        return None
    return KernelCost(
        name=row.name,
        family=row.job.arm if row.job else "foreign",
        counts=counts_of(audit, bytes_per_weight),
        source="compiled and counted, not run",
        tensor_cores=audit.classes.get("mma", 0) > 0,
        rows_per_pass=batch,
        unmodelled="spills" if audit.spills else LOWER_BOUND if audit.unknown_loops else "",
    )


def jobs_of(
    arms: Iterable[str],
    formats: Iterable[str],
    activations: Iterable[str],
    capabilities: Iterable[int],
) -> list[Job]:
    """Every Triton kernel of these arms and formats at the smallest batch it serves, each once."""
    from kernels.triton import KERNELS

    arms, activations, capabilities = list(arms), list(activations), list(capabilities)
    found = []
    for weight_format in map(find_format, formats):
        for activation in activations:
            for kernel in KERNELS:
                batch = kernel.batches[0]
                if (
                    kernel.implementation == "triton"
                    and kernel.arm in arms
                    and weight_format.name in kernel.formats
                    and kernel.reads(weight_format, activation) == weight_format
                    and kernel.accepts(weight_format, activation, batch)
                ):
                    job = (kernel.arm, kernel.variant, weight_format.name, activation, batch)
                    found += [Job(*job, c) for c in capabilities if c >= kernel.least_capability]
    return list(dict.fromkeys(found))

"""The modelled device: a time with its interval, or a reason, for every arm that a measured run would time.

    jobs = jobs_of_layer(layer, [gpu])          what has to be compiled and counted
    model = Model(run, gpu, audits, failures)
    model.arms                                  one estimate per arm, operator, batch and format

What is modelled is a layer in a captured graph whose weights rotate, so that they are cold by construction.
An operator's time is its part of the layer's: only a layer below 20 us is refused, with all its operators.

Modelled are the ladder, the 16-bit baselines, both halves of `unfused`, the product of `lowp` and `upcast`.
Kernels in CUDA C++, which a machine has only where CuPy is installed, are left out, so that a model is the same
everywhere. Of a library's 16-bit kernel bytes and tensor rate are known, and its instructions are taken never
to limit it; any other library kernel is refused. So is the quantization of activations: one program for each
row of x, which latency decides. What a board has no instructions for has the reason that a board gives.
`unfused` is two launches: the first dequantize kernel and the 16-bit kernel that is fastest over the layer. The
matrix between them goes through memory; where the cache could hold it, the interval's lower end says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import exp

from bench.static import parameters
from bench.static.audit import Audit, Job
from bench.static.audit_report import capability_of
from bench.static.cost import KernelCost, Problem
from bench.static.estimate import Estimate, estimate_launches
from bench.static.limits import Ratio
from bench.static.ours import COMPILED, LIBRARY, launch_on, library_cost, ratio_of
from kernels import find_kernels
from kernels.formats import WeightFormat
from kernels.kernel import LADDER, Kernel, traffic
from profiles.schema import NOT_HERE, Activation, Implementation, Operator, Traffic
from profiles.specs import Gpu

ARMS = (*LADDER, "native", "vendor", "dequantize", "lowp", "upcast")
MAKERS = {COMPILED, LIBRARY}  # of what has a row on any machine
RATIO_ARMS = ("fused", "bypass")  # whose R is given, of the kernel as it is where no board is known
LAYER_TOO_SHORT = "the whole layer takes less than 20 us: launch and ramp decide"
QUANTIZES = (
    "quantizing x is one program for each of its rows: latency decides, not what can be counted"
)
NOT_COMPILED = "the machine code of this library's kernel is not here to be counted"
SLOW_UNIT_UNKNOWN = (
    "limited by the slow unit (XU), whose rate on compute capability 12.0 is not known"
)


@dataclass(frozen=True)
class Layer:
    """What is run: the operators of a layer, in formats and batches."""

    operators: tuple[Operator, ...]
    formats: tuple[WeightFormat, ...]
    batches: tuple[int, ...]
    activation: Activation


@dataclass(frozen=True)
class Arm:
    """One arm on one operator.

    Attributes:
        operator: its name.
        batch: rows of x.
        format: of the problem.
        kernel: which kernel stands for the arm.
        traffic: bytes and operations of one call.
        estimate: its time, or why there is none.
    """

    operator: str
    batch: int
    format: str
    kernel: Implementation
    traffic: Traffic
    estimate: Estimate


def kernels_of(
    weight_format: WeightFormat, activation: Activation, batch: int
) -> tuple[Kernel, ...]:
    """Every kernel of a modelled arm that has a row for such a problem on any machine."""
    found = find_kernels("cuda", weight_format, activation, batch)
    return tuple(k for k in found if MAKERS.issuperset(makers(k)) and k.arm in ARMS)


def makers(kernel: Kernel) -> list[str]:
    """Who wrote each of its launches: "triton+torch" quantizes x in one of ours before a library's product."""
    return kernel.implementation.split("+")


def job_of(
    kernel: Kernel,
    weight_format: WeightFormat,
    activation: Activation,
    batch: int,
    gpu: Gpu,
    operator: Operator | None = None,
) -> Job | None:
    """What has to be compiled for a kernel on an operator, or on none; None where it is not ours."""
    from kernels.triton.configs import default_for

    if kernel.implementation != COMPILED:
        return None
    reads = kernel.reads(weight_format, activation)
    config = None
    if operator is not None:
        shape = (operator.n, batch, int(gpu.sms.value))
        config = default_for(kernel.arm, kernel.variant, reads, *shape)
    name, capability = reads.name, capability_of(gpu)
    return Job(kernel.arm, kernel.variant, name, activation, batch, capability, config)


def jobs_of_layer(layer: Layer, gpus: Iterable[Gpu]) -> list[Job]:
    """Everything that has to be compiled for these boards, each once."""
    found = [
        job_of(kernel, weight_format, layer.activation, batch, gpu, operator)
        for gpu in gpus
        for weight_format in layer.formats
        for batch in layer.batches
        for kernel in kernels_of(weight_format, layer.activation, batch)
        if capability_of(gpu) >= kernel.least_capability
        for operator in (*layer.operators, *((None,) if kernel.arm in RATIO_ARMS else ()))
    ]
    return list(dict.fromkeys(job for job in found if job is not None))


@dataclass(frozen=True)
class Model:
    """A layer on a board.

    Attributes:
        layer: what is run.
        gpu: the board.
        audits: of the jobs that compiled.
        failures: of the others, a sentence each.
    """

    layer: Layer
    gpu: Gpu
    audits: Mapping[Job, Audit]
    failures: Mapping[Job, str]

    @cached_property
    def arms(self) -> tuple[Arm, ...]:
        """Every arm on every operator; refused ones among them."""
        found: list[Arm] = []
        for weight_format in self.layer.formats:
            for batch in self.layer.batches:
                found += self._cell(weight_format, batch)
        return tuple(found)

    @cached_property
    def ratios(self) -> tuple[tuple[str, int, Implementation, Ratio], ...]:
        """R of every fused and bypass kernel: format, batch, kernel, ratio; of the hot loop alone."""
        found = []
        for weight_format in self.layer.formats:
            for batch in self.layer.batches:
                for kernel in self._kernels(weight_format, batch):
                    job = self._job(kernel, weight_format, batch)
                    audit = self.audits.get(job) if job else None
                    if job is None or audit is None or kernel.arm not in RATIO_ARMS:
                        continue
                    name = self._name(kernel, weight_format)
                    ratio = ratio_of(self.gpu, job, audit)
                    found.append((weight_format.name, batch, name, ratio))
        return tuple(found)

    def _kernels(self, weight_format: WeightFormat, batch: int) -> tuple[Kernel, ...]:
        return kernels_of(weight_format, self.layer.activation, batch)

    def _job(
        self,
        kernel: Kernel,
        weight_format: WeightFormat,
        batch: int,
        operator: Operator | None = None,
    ) -> Job | None:
        return job_of(kernel, weight_format, self.layer.activation, batch, self.gpu, operator)

    def _name(self, kernel: Kernel, weight_format: WeightFormat) -> Implementation:
        reads = kernel.reads(weight_format, self.layer.activation).name
        return Implementation(
            arm=kernel.arm,
            implementation=kernel.implementation,
            variant=kernel.variant,
            weight_format=reads,
        )

    def _cell(self, weight_format: WeightFormat, batch: int) -> Iterator[Arm]:
        """All arms of one format and batch."""
        kernels = self._kernels(weight_format, batch)
        launches = {
            kernel: [self._launch(kernel, weight_format, o, batch) for o in self.layer.operators]
            for kernel in kernels
        }
        times = {kernel: self._times([[x] for x in launches[kernel]]) for kernel in kernels}
        for kernel in kernels:
            yield from self._arms(kernel, weight_format, batch, times[kernel])
        yield from self._unfused(kernels, launches, times, weight_format, batch)

    def _launch(
        self, kernel: Kernel, weight_format: WeightFormat, operator: Operator, batch: int
    ) -> tuple[KernelCost, Problem] | str:
        """A kernel on an operator as the model takes it, or why it cannot."""
        problem = Problem(operator.n, operator.k, batch, cold=True, graph=True)
        if capability_of(self.gpu) < kernel.least_capability:
            return (
                f"{NOT_HERE}tensor cores that take {weight_format.name} operands need compute capability "
                f"{kernel.least_capability / 10}, and this GPU has {self.gpu.capability}"
            )
        job = self._job(kernel, weight_format, batch, operator)
        if job is None:
            if kernel.arm == "lowp" and len(makers(kernel)) > 1:
                return QUANTIZES
            cost = library_cost(kernel)
            return NOT_COMPILED if cost is None else (cost, problem)
        audit = self.audits.get(job)
        if audit is None:
            return self.failures.get(job, "it was not compiled")
        return launch_on(kernel, job, audit, self.gpu, problem)

    def _times(
        self, operators: Sequence[Sequence[tuple[KernelCost, Problem] | str]]
    ) -> list[Estimate]:
        """One estimate per operator, each of one launch or more; all are refused if the layer is short."""
        found = [self._time(launches) for launches in operators]
        counts = [operator.count for operator in self.layer.operators]
        values = [e.value_s for e in found if e.value_s is not None]
        if len(values) < len(found):
            return found
        if sum(c * v for c, v in zip(counts, values, strict=True)) < parameters.SHORTEST_S:
            return [Estimate(None, reason=LAYER_TOO_SHORT) for _ in found]
        return found

    def _time(self, launches: Sequence[tuple[KernelCost, Problem] | str]) -> Estimate:
        for launch in launches:
            if isinstance(launch, str):
                return Estimate(None, reason=launch)
        sound = [launch for launch in launches if not isinstance(launch, str)]
        found = estimate_launches(self.gpu, sound)
        if found.limiter == "XU" and self.gpu.capability == "12.0":
            return Estimate(None, reason=SLOW_UNIT_UNKNOWN)
        return found

    def _arms(
        self, kernel: Kernel, weight_format: WeightFormat, batch: int, times: Sequence[Estimate]
    ) -> Iterator[Arm]:
        reads = kernel.reads(weight_format, self.layer.activation)
        name = self._name(kernel, weight_format)
        for operator, estimate in zip(self.layer.operators, times, strict=True):
            size = (operator.n, operator.k, batch)
            moved = traffic(kernel.arm, reads, *size, kernel.scratch_bits)
            counted = Traffic(
                bytes_read=moved.bytes_read, bytes_written=moved.bytes_written, flops=moved.flops
            )
            yield Arm(operator.name, batch, weight_format.name, name, counted, estimate)

    def _unfused(
        self,
        kernels: Sequence[Kernel],
        launches: Mapping[Kernel, Sequence[tuple[KernelCost, Problem] | str]],
        times: Mapping[Kernel, Sequence[Estimate]],
        weight_format: WeightFormat,
        batch: int,
    ) -> Iterator[Arm]:
        """Dequantize, then the 16-bit kernel that is fastest over the layer."""
        from kernels.unfused import compose

        first = next((k for k in kernels if k.arm == "dequantize"), None)
        sixteen = [k for k in kernels if k.weight_bits == 16 and k.arm in ("native", "vendor")]
        if first is None or not sixteen:
            return
        second = min(sixteen, key=lambda kernel: self._layer_s(times[kernel]))
        both = [[a, b] for a, b in zip(launches[first], launches[second], strict=True)]
        found = [
            self._maybe_cached(estimate, operator, batch)
            for estimate, operator in zip(self._times(both), self.layer.operators, strict=True)
        ]
        yield from self._arms(compose(first, second), weight_format, batch, found)

    def _layer_s(self, times: Sequence[Estimate]) -> float:
        values = [e.value_s for e in times]
        known = [v for v in values if v is not None]
        if len(known) < len(values):
            return float("inf")
        return sum(o.count * v for o, v in zip(self.layer.operators, known, strict=True))

    def _maybe_cached(self, estimate: Estimate, operator: Operator, batch: int) -> Estimate:
        """The estimate, its lower end without the matrix's way through memory if a cache holds it."""
        matrix_bytes = 2 * operator.n * operator.k
        cache_bytes = self.gpu.l2_mb.high * 1e6
        if estimate.value_s is None or estimate.low_s is None or matrix_bytes > cache_bytes:
            return estimate
        efficiency = (self.gpu.dram_efficiency or parameters.DRAM_EFFICIENCY).value
        way_s = 2 * matrix_bytes / (self.gpu.memory_gb_per_s.value * 1e9 * efficiency)
        least_s = max(estimate.value_s - way_s, (estimate.parts_s or {}).get("launch", 0.0))
        return replace(estimate, low_s=least_s * exp(-parameters.interval_width(batch)))

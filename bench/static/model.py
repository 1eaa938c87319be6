"""The modelled GPU: how long a kernel takes, from its instructions and the board's published rates.

    T = t0 + pnorm(t_dram, t_l2, t_<pipe>, t_tensor, t_latency)

    t0          launch, and the steps of a reduction that wait for each other
    t_dram      bytes / (bandwidth x efficiency)
    t_l2        bytes requested / (bytes per clock of a multiprocessor x multiprocessors x clock), where the
                kernel says how many its tiles request
    t_<pipe>    instructions of that class / (lanes x multiprocessors x clock x efficiency) x unevenness;
                pipes: issue, integer, imad, half2, fp32, xu, shared
    t_tensor    2 x padded rows x n x k / (tensor rate x efficiency) x unevenness
    t_latency   rounds of requests x latency of memory (Little's law), where the kernel says how many bytes
                it has in flight

Memory serves all multiprocessors, pipes are each one's own: so only what pipes do waits for the busiest.

The p-norm says that resources overlap, but not perfectly (p = 4). It is not a measurement of anything.

What may be said with such a time, and when nothing may, is in `estimate.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from bench.static import parameters
from bench.static.cost import KernelCost, Operands, Problem
from profiles.specs import Gpu, Multiprocessor, Number

Limiter = Literal["DRAM", "L2", "issue", "XU", "ALU", "shared", "tensor", "latency", "launch"]
End = Literal["value", "better", "worse"]

LIMITERS: dict[str, Limiter] = {
    "dram": "DRAM",
    "l2": "L2",
    "issue": "issue",
    "integer": "ALU",
    "imad": "ALU",
    "half2": "ALU",
    "fp32": "ALU",
    "xu": "XU",
    "shared": "shared",
    "tensor": "tensor",
    "latency": "latency",
    "launch": "launch",
}
ENDS: tuple[End, ...] = ("value", "better", "worse")
SLOW_WARP_MMA = ("9.0", "10.0")  # their full rate needs another instruction
PIPES = ("issue", "integer", "imad", "half2", "fp32", "xu", "shared")


class NotModelledError(ValueError):
    """There is no number, and this is why."""


@dataclass(frozen=True)
class Prediction:
    """The parts of a modelled time, before anything is refused.

    Attributes:
        fixed_s: launch and serial steps.
        parts_s: seconds that each resource would take alone.
        norm: exponent by which they are put together.
    """

    fixed_s: float
    parts_s: dict[str, float]
    norm: float

    @property
    def time_s(self) -> float:
        """The modelled time."""
        return self.fixed_s + pnorm(self.norm, *self.parts_s.values())

    @property
    def everything_s(self) -> dict[str, float]:
        """Seconds of each resource alone, and "launch"."""
        return {**self.parts_s, "launch": self.fixed_s}

    @property
    def limiter(self) -> Limiter:
        """The resource that would take longest alone."""
        parts_s = self.everything_s
        return LIMITERS[max(parts_s, key=lambda name: parts_s[name])]


def pnorm(p: float, *values: float) -> float:
    """(sum of v^p)^(1/p) of values that are not negative, without overflow."""
    largest = max(values)
    if largest == 0:
        return 0.0
    return float(largest * sum((v / largest) ** p for v in values) ** (1 / p))


def rate(number: Number, end: End) -> float:
    """A number of which more is better."""
    return {"value": number.value, "better": number.high, "worse": number.low}[end]


def delay(number: Number, end: End) -> float:
    """A number of which less is better."""
    return {"value": number.value, "better": number.low, "worse": number.high}[end]


def pipe_cycles(
    kernel: KernelCost, multiprocessor: Multiprocessor, batch: int, end: End = "value"
) -> dict[str, float]:
    """Clocks of one multiprocessor per weight that each pipe needs, at 100 % of its lanes.

    "fp32" is the whole FMA pipe, of which IMAD and, on most boards, HFMA2 take their share (`imad_slots` and
    `half2_slots` of its lanes each); on boards with two halves of it IMAD has one of them, "imad", alone.

    Conversions that have no fast instruction (I2FP) run on the slow unit, otherwise on the integer pipe; where
    that is disputed, the worse end has them on both, for either may be the one that runs out.
    """
    counts = kernel.instructions(batch)
    lanes = {
        name: rate(getattr(multiprocessor, f"{name}_lanes"), end)
        for name in ("issue", "integer", "imad", "half2", "fp32", "conversion", "shared")
    }
    imad_slots = delay(multiprocessor.imad_slots, end)
    half2_slots = delay(multiprocessor.half2_slots, end)
    fast_lanes = rate(multiprocessor.fast_conversion_lanes, end)
    has_fast = fast_lanes > lanes["conversion"]
    usual = multiprocessor.fast_conversion_lanes.value > multiprocessor.conversion_lanes.value
    on_integer = has_fast or (end == "worse" and usual)
    slow = counts.conversion + (0 if has_fast else counts.fast_conversion)
    return {
        "issue": counts.total / lanes["issue"],
        "integer": (counts.integer + (counts.fast_conversion if on_integer else 0))
        / lanes["integer"],
        "imad": counts.imad / lanes["imad"],
        "half2": counts.half2 / lanes["half2"],
        "fp32": (counts.fp32 + imad_slots * counts.imad + half2_slots * counts.half2)
        / lanes["fp32"],
        "xu": slow / lanes["conversion"],
        "shared": counts.load_store / lanes["shared"],
    }


def tensor_rate(gpu: Gpu, end: End = "value", operands: Operands = "16-bit") -> float:
    """Operations per second that a kernel with fp32 or int32 accumulation reaches.

    Where a board accumulates in fp32 at half its rate, operands can be fed twice as fast as needed, and
    the half rate itself is the limit. Sums of int8 have no such limit: they take twice the rate at which 16-bit
    operands can be fed.

    Raises:
        NotModelledError: the board's rate is not known.
    """
    efficiency = rate(parameters.TENSOR_EFFICIENCY, end)
    if operands in ("fp8", "fp4"):
        known = gpu.tensor_fp8_tflops if operands == "fp8" else gpu.tensor_fp4_tflops
        if known is None:
            raise NotModelledError(f"the tensor rate of the {gpu.name} for {operands} is not known")
        return rate(known, end) * 1e12 * efficiency
    if gpu.tensor_fp16_tflops is None:
        raise NotModelledError(f"the tensor rate of the {gpu.name} is not known")
    if operands == "int8":
        fed = gpu.tensor_fp16_half_accumulate_tflops or gpu.tensor_fp16_tflops
        return rate(parameters.INT8_RATE, end) * rate(fed, end) * 1e12 * efficiency
    peak = rate(gpu.tensor_fp16_tflops, end) * 1e12
    faster = gpu.tensor_fp16_half_accumulate_tflops
    return peak * efficiency if faster is None else min(peak, rate(faster, end) * 1e12 * efficiency)


def warp_tensor_share(gpu: Gpu, end: End = "value") -> float:
    """The share of the tensor rate that the tensor-core instruction of one warp reaches."""
    if gpu.capability in SLOW_WARP_MMA:
        return rate(parameters.WARP_TENSOR_SHARE, end)
    return 1.0


def unsupported(gpu: Gpu, kernel: KernelCost, batch: int) -> str:
    """Why this kernel has no modelled time on this board at all; empty if it has."""
    low, high = kernel.batches
    if kernel.unmodelled:
        return kernel.unmodelled
    if gpu.multiprocessor is None:
        return f"nothing is known of the pipes of compute capability {gpu.capability}"
    if float(gpu.capability) < kernel.minimum_capability:
        return f"needs compute capability {kernel.minimum_capability}, has {gpu.capability}"
    if not low <= batch <= high:
        return f"another path: this one serves batches {low} to {high}"
    return ""


def predict(gpu: Gpu, kernel: KernelCost, problem: Problem, end: End = "value") -> Prediction:
    """The parts of the modelled time, whether or not the method can be trusted there.

    Raises:
        NotModelledError: there is no such path, or a rate is not known.
    """
    reason = unsupported(gpu, kernel, problem.batch)
    if reason or gpu.multiprocessor is None:
        raise NotModelledError(reason)
    multiprocessor, passes = gpu.multiprocessor, kernel.passes(problem.batch)
    weight_bytes = problem.weights * kernel.counts.bytes
    in_cache = weight_bytes <= gpu.l2_mb.value * 1e6
    reads = passes if kernel.rereads and not in_cache else 1
    efficiency = rate(gpu.dram_efficiency or parameters.DRAM_EFFICIENCY, end)
    bandwidth = rate(gpu.memory_gb_per_s, end) * 1e9 * efficiency
    clocks = rate(gpu.sms, end) * rate(gpu.sm_clock_mhz, end) * 1e6
    cycles = pipe_cycles(kernel, multiprocessor, problem.batch, end)
    parts = {"dram": (weight_bytes * reads + problem.activation_bytes) / bandwidth}
    if kernel.requested_bytes is not None:
        parts["l2"] = kernel.requested_bytes / (clocks * rate(parameters.L2_BYTES_PER_CLOCK, end))
    for pipe in PIPES:
        share = parameters.ISSUE_EFFICIENCY if pipe == "issue" else parameters.PIPE_EFFICIENCY
        evenly_s = cycles[pipe] * problem.weights / (clocks * rate(share, end))
        parts[pipe] = evenly_s * kernel.unevenness
    if kernel.tensor_cores:
        operations = 2.0 * kernel.multiplied_rows(problem.batch) * problem.weights
        share_of_rate = warp_tensor_share(gpu, end) if kernel.warp_mma else 1.0
        tensor_s = operations / (tensor_rate(gpu, end, kernel.operands) * share_of_rate)
        parts["tensor"] = tensor_s * kernel.unevenness
    if kernel.bytes_in_flight is not None:
        rounds = weight_bytes * passes / gpu.sms.value / kernel.bytes_in_flight
        parts["latency"] = rounds * _latency_s(gpu, end)
    fixed_s = _launch_s(gpu, problem, end) + _serial_s(gpu, kernel, problem, end)
    return Prediction(fixed_s, parts, rate(parameters.NORM, end))


def _launch_s(gpu: Gpu, problem: Problem, end: End) -> float:
    if not problem.graph:
        return delay(parameters.EAGER_LAUNCH_S, end)
    return delay(gpu.launch_s or parameters.GRAPH_LAUNCH_S, end)


def _latency_s(gpu: Gpu, end: End) -> float:
    latency = None if gpu.multiprocessor is None else gpu.multiprocessor.dram_latency_s
    if latency is None:
        raise NotModelledError(f"the latency of the {gpu.name}'s memory is not known")
    return delay(latency, end)


def _serial_s(gpu: Gpu, kernel: KernelCost, problem: Problem, end: End) -> float:
    """Programs that share a slice of columns add their sums one after another."""
    if kernel.slice_columns is None:
        return 0.0
    available = gpu.sms.value * kernel.slice_columns / problem.n
    sharing = min(available, problem.k / kernel.slice_depth)
    step_s = delay(parameters.SERIAL_STEP, end) * _latency_s(gpu, end)
    return max(0.0, sharing - 1) * step_s

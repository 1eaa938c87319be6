"""The fixture `dequant_benchmark`: a kernel verified, then timed by pytest-benchmark, with φ beside its time.

    from bench.pytest_plugin import dequant_benchmark  # or pytest_plugins = ["bench.pytest_plugin"]

    def test_my_kernel(dequant_benchmark):
        dequant_benchmark(my_kernel, "int4-g128", n=4096, k=4096, batch=1)

    python -m pytest --benchmark-only test_mine.py

A wrong kernel fails its test and has no time. `extra_info` of the benchmark has the error, φ exposed (the
median of paired differences to the bypass of the same implementation) and instructions per weight, each null
with a reason where there is none. The timing plan of bench.dequant, with its intervals, is the thing to quote.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import pytest

from bench.measure.devices import Device, Prepared, Problem, open_device
from kernels.formats import find_format
from kernels.kernel import Kernel

PAIRS = 11
SAMPLE_S = 1.2e-3
Benchmark = Callable[..., dict[str, object]]


@pytest.fixture
def dequant_benchmark(benchmark: Any) -> Benchmark:
    """See the module."""

    def run(kernel: Kernel, format: str, n: int, k: int, batch: int = 1) -> dict[str, object]:
        """Verify and time one kernel on one problem; returns what it adds to `extra_info`.

        Raises:
            AssertionError: the kernel is wrong.
            ValueError: it does not take such a problem.
        """
        device = open_device(kernel.device)
        activation = kernel.activations[0]
        problem = Problem("one", n, k, batch, find_format(format), activation)  # type: ignore[arg-type]
        if not kernel.accepts(problem.format, activation, batch):
            raise ValueError(f"the kernel has no row for {format} at batch {batch}.")
        prepared = device.prepare(problem, kernel)
        error = device.verify(prepared)
        assert error <= kernel.tolerance, f"wrong result: off by {error:.2g} of the largest value"
        info: dict[str, object] = {
            "format": format, "n": n, "k": k, "batch": batch, "error": error, "kind": "measured",
            **phi_of(device, prepared), **instructions_of(device, kernel, format, n, k, batch),
        }  # fmt: skip
        benchmark.extra_info.update(info)
        benchmark(device.warm, prepared)
        return info

    return run


def phi_of(device: Device, prepared: Prepared) -> dict[str, object]:
    """φ exposed in seconds, or why there is none: time less that of the bypass, in turns."""
    kernel = prepared.kernel
    identity = ("bypass", kernel.implementation, kernel.variant)
    found = [
        other
        for other in device.kernels(prepared.problem)
        if (other.arm, other.implementation, other.variant) == identity
    ]
    if kernel.arm != "fused" or not found:
        return {"phi_exposed_s": None, "phi_reason": "no fused kernel with a bypass of its own"}
    pair = (prepared, device.prepare(prepared.problem, found[0]))
    error = device.verify(pair[1])
    if not error <= found[0].tolerance:
        return {"phi_exposed_s": None, "phi_reason": "the bypass is wrong"}
    repeats = [max(1, round(SAMPLE_S / device.estimate_s(one))) for one in pair]
    differences = []
    for turn in range(PAIRS):
        order = (0, 1) if turn % 2 else (1, 0)
        times = {i: device.sample(pair[i], repeats[i], device.default_mode).time_s for i in order}
        differences.append(times[0] - times[1])
    return {
        "phi_exposed_s": statistics.median(differences),
        "phi_low_s": min(differences),
        "phi_high_s": max(differences),
        "phi_pairs": PAIRS,
    }


def instructions_of(
    device: Device, kernel: Kernel, format: str, n: int, k: int, batch: int
) -> dict[str, object]:
    """Instructions per weight of our CUDA C++ kernels on this board, or why they are not known."""
    if kernel.implementation != "cuda" or kernel.arm not in ("fused", "bypass"):
        why = "counted for our CUDA C++ kernels; for Triton see python -m bench.sass --source"
        return {"instructions_per_weight": None, "instructions_reason": why}
    from bench.static.cuda_audit import audit_plan
    from kernels.cuda.plan import gemv_plan

    arch = (device.describe().capability or "").replace(".", "")
    plan = gemv_plan(kernel.variant, kernel.arm, find_format(format), n, k, batch)
    audit = audit_plan(plan, arch)
    return {"instructions_per_weight": audit.instructions / plan.weights_per_pass}

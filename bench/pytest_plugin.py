"""The fixture `dequant_benchmark`: a kernel verified, then timed by pytest-benchmark, with φ beside its time.

    from bench.pytest_plugin import dequant_benchmark  # or pytest_plugins = ["bench.pytest_plugin"]

    def test_my_kernel(dequant_benchmark):
        dequant_benchmark(my_kernel, "int4-g128", n=4096, k=4096, batch=1, bypass=my_bypass)

    python -m pytest --benchmark-only test_mine.py

A wrong kernel fails its test and has no time. `extra_info` of the benchmark has the error, φ exposed (the
median of paired differences to the bypass that is given, or to ours of the same implementation, with its 95 %
interval) and, on a GPU, instructions per weight in the hot loop of what is launched: of our CUDA C++ and Triton
kernels, and of your Triton kernel with `weights=`, which one lane handles in one pass of that loop. Each is
null with a reason where there is none: a kernel for the CPU has no machine code of a GPU.
Weights are those of the launch before, so they may come from a cache: `cache_state` is "warm". The timing plan
of bench.dequant, whose weights are cold, is the thing to quote.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from bench.analysis.stats import median_interval
from bench.measure.devices import Device, Prepared, Problem, open_device
from kernels.formats import find_format
from kernels.kernel import Kernel

if TYPE_CHECKING:
    from bench.static.audit import Audit

PAIRS = 11
SAMPLE_S = 1.2e-3
Benchmark = Callable[..., dict[str, object]]


@pytest.fixture
def dequant_benchmark(benchmark: Any) -> Benchmark:
    """See the module."""

    def run(
        kernel: Kernel,
        format: str,
        n: int,
        k: int,
        batch: int = 1,
        bypass: Kernel | None = None,
        weights: int | None = None,
    ) -> dict[str, object]:
        """Verify and time one kernel on one problem; returns what it adds to `extra_info`.

        Raises:
            AssertionError: the kernel is wrong.
            ValueError: it does not take such a problem, or what is given as its bypass is none.
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
            "cache_state": "warm", **phi_of(device, prepared, bypass),
            **instructions_of(device, prepared, weights),
        }  # fmt: skip
        benchmark.extra_info.update(info)
        benchmark(device.warm, prepared)
        return info

    return run


def bypass_of(device: Device, prepared: Prepared) -> Kernel | None:
    """The bypass of the same implementation among those of the device."""
    kernel = prepared.kernel
    identity = ("bypass", kernel.implementation, kernel.variant)
    others = device.kernels(prepared.problem)
    return next((o for o in others if (o.arm, o.implementation, o.variant) == identity), None)


def phi_of(device: Device, prepared: Prepared, bypass: Kernel | None) -> dict[str, object]:
    """φ exposed in seconds, or why there is none: time less that of the bypass, in turns.

    Raises:
        ValueError: what is given as the bypass is none, or does not take this problem.
    """
    problem = prepared.problem
    if bypass is not None and not (
        bypass.arm == "bypass" and bypass.accepts(problem.format, problem.activation, problem.batch)
    ):
        raise ValueError(f"bypass= takes a kernel of arm 'bypass' for {problem.format.name} at batch "
                         f"{problem.batch}; this one, of arm {bypass.arm!r}, is none.")  # fmt: skip
    found = bypass or bypass_of(device, prepared)
    if prepared.kernel.arm != "fused" or found is None:
        return {"phi_exposed_s": None, "phi_reason": "no fused kernel with a bypass of its own"}
    pair = (prepared, device.prepare(problem, found))
    error = device.verify(pair[1])
    if not error <= found.tolerance:
        return {"phi_exposed_s": None, "phi_reason": "the bypass is wrong"}
    repeats = [max(1, round(SAMPLE_S / device.estimate_s(one))) for one in pair]
    differences = []
    for turn in range(PAIRS):
        order = (0, 1) if turn % 2 else (1, 0)
        times = {i: device.sample(pair[i], repeats[i], device.default_mode).time_s for i in order}
        differences.append(times[0] - times[1])
    phi = median_interval(differences)
    return {
        "phi_exposed_s": phi.value,
        "phi_low_s": phi.low,
        "phi_high_s": phi.high,
        "phi_pairs": PAIRS,
    }


def instructions_of(
    device: Device, prepared: Prepared, weights: int | None = None
) -> dict[str, object]:
    """Instructions per weight of what is launched, in its hot loop, or why they are not known.

    Args:
        device: that runs it.
        prepared: a kernel that has run before.
        weights: that one lane handles in one pass of the loop; of our kernels that is known.
    """
    kernel = prepared.kernel
    if kernel.device != "cuda":
        return _uncounted("it runs on a CPU, and machine code is counted of GPUs")
    capability = device.describe().capability
    assert capability is not None  # a GPU has one
    if kernel.implementation == "cuda":
        return _of_cuda(prepared, capability)

    from bench.static.audit import audit_kernel, weights_per_pass
    from bench.static.compile import read_kernel
    from bench.static.launched import launched
    from kernels.triton.plan import Plan

    found = launched(lambda: device.warm(prepared))
    if len(found) != 1:
        return _uncounted(
            f"it launches {len(found) or 'no'} Triton kernel{'s' if len(found) > 1 else ''}, and one "
            f"can be counted"
        )
    [(binary, arguments)] = found
    compiled = read_kernel(binary, round(10 * float(capability)))
    if kernel.implementation == "triton":
        weights = weights_per_pass(Plan(binary, {}, arguments, {}, ()), compiled.num_warps)
    audit = audit_kernel(binary.metadata.name, compiled, weights)
    return _counted(audit, f"sm_{compiled.capability}")


def _of_cuda(prepared: Prepared, capability: str) -> dict[str, object]:
    """Of one of our CUDA C++ kernels, compiled as the launch compiles it."""
    from bench.static.cuda_audit import audit_plan
    from kernels.cuda.launch import architecture
    from kernels.cuda.plan import gemv_plan

    kernel, problem = prepared.kernel, prepared.problem
    if kernel.arm not in ("fused", "bypass"):
        return _uncounted("of our CUDA C++ kernels, fused and bypass are counted")
    arch = architecture(*map(int, capability.split(".")))
    shape = (problem.format, problem.n, problem.k, problem.batch)
    plan = gemv_plan(kernel.variant, kernel.arm, *shape)
    return _counted(audit_plan(plan, arch), f"sm_{arch}")


def _counted(audit: Audit, arch: str) -> dict[str, object]:
    """What a count says, or why it is not exact: spills, a loop that is mostly skipped, unknown passes."""
    from bench.static.audit import row_of
    from bench.static.ours import unmodelled

    where = {"instructions_arch": arch}
    if why := unmodelled(replace(audit, weights=audit.weights or 1)):
        return {**_uncounted(why), **where}
    if audit.weights is None:
        why = (
            "how many weights one lane handles in one pass of its loop is not known; give weights="
        )
        return {**_uncounted(why), **where, "instructions_per_pass": audit.instructions}
    return {"instructions_per_weight": row_of(audit).per_weight["total"], **where}


def _uncounted(why: str) -> dict[str, object]:
    return {"instructions_per_weight": None, "instructions_reason": why}

"""The fixture for pytest-benchmark: what it adds, and that a wrong kernel has no time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import user_kernels

from bench.measure.devices import Device, Prepared, Problem
from bench.pytest_plugin import Benchmark, _counted, dequant_benchmark, instructions_of, phi_of
from bench.static import cuda_audit
from bench.static.audit import Audit
from bench.static.cuda_audit import audit_plan
from kernels import cuda
from kernels.cuda.plan import Plan
from kernels.formats import find_format
from kernels.kernel import Kernel

__all__ = ["dequant_benchmark"]
SHAPE = {"n": 32, "k": 256}
BOARD: Any = SimpleNamespace(
    describe=lambda: SimpleNamespace(capability="9.0"), warm=lambda prepared: None
)
FUSED = replace(user_kernels.right, arm="fused")
PROBLEM = Problem("one", 32, 256, 1, find_format("int4-g128"), "bf16")


def test_a_right_kernel_is_timed(dequant_benchmark: Benchmark, benchmark: Any) -> None:
    info = dequant_benchmark(user_kernels.right, "int4-g128", **SHAPE, batch=2)
    assert benchmark.extra_info == info
    assert 0 < info["error"] < user_kernels.right.tolerance  # type: ignore[operator]
    assert info["cache_state"] == "warm"
    assert info["phi_exposed_s"] is None
    assert info["phi_reason"] == "no fused kernel with a bypass of its own"
    assert info["instructions_per_weight"] is None
    assert info["instructions_reason"] == "it runs on a CPU, and machine code is counted of GPUs"


def test_a_wrong_kernel_is_not(dequant_benchmark: Benchmark, benchmark: Any) -> None:
    with pytest.raises(AssertionError, match=r"wrong result: off by 0\.5"):
        dequant_benchmark(user_kernels.wrong, "int4-g128", **SHAPE)
    assert benchmark.extra_info == {}
    with pytest.raises(ValueError, match="no row for nf4-b64 at batch 1"):
        dequant_benchmark(user_kernels.right, "nf4-b64", **SHAPE)
    benchmark(lambda: None)


class FakeDevice:
    """Two kernels whose times are known: 5 us and 3 us."""

    default_mode = "eager"

    def __init__(self) -> None:
        self.bypass = replace(user_kernels.right, arm="bypass")
        self.order: list[str] = []

    def kernels(self, problem: object) -> tuple[Kernel, ...]:
        return (self.bypass,)

    def prepare(self, problem: object, kernel: Kernel) -> Any:
        return SimpleNamespace(problem=problem, kernel=kernel)

    def verify(self, prepared: Any) -> float:
        return 0.0

    def estimate_s(self, prepared: Any) -> float:
        return 1e-5

    def sample(self, prepared: Any, repeats: int, mode: str) -> Any:
        assert repeats == 120
        self.order.append(prepared.kernel.arm)
        late = 1e-6 * self.order.count("fused")  # the n-th fused sample takes n us more
        return SimpleNamespace(time_s={"fused": 5e-6 + late, "bypass": 3e-6}[prepared.kernel.arm])


def test_phi_is_the_difference_to_the_bypass_taken_in_turns() -> None:
    """Differences of 3 to 13 us: the interval is the sign interval of eleven, not their range."""
    device = FakeDevice()
    known: Device = device  # type: ignore[assignment]
    info = phi_of(known, device.prepare(PROBLEM, FUSED), None)
    assert device.order[:4] == ["bypass", "fused", "fused", "bypass"]
    assert (info["phi_exposed_s"], info["phi_pairs"]) == (pytest.approx(8e-6), 11)
    # x(2) to x(10) covers 98.8 %, x(3) to x(9) only 93.5 %
    assert 4e-6 < info["phi_low_s"] < 5e-6  # type: ignore[operator]
    assert 11e-6 < info["phi_high_s"] < 12e-6  # type: ignore[operator]


def test_a_bypass_of_one_s_own_is_given() -> None:
    device = FakeDevice()
    known: Device = device  # type: ignore[assignment]
    mine, own = (
        replace(k, implementation="only mine", variant="new") for k in (FUSED, device.bypass)
    )
    prepared = device.prepare(PROBLEM, mine)
    assert phi_of(known, prepared, None)["phi_exposed_s"] is None
    assert phi_of(known, prepared, own)["phi_exposed_s"] == pytest.approx(8e-6)
    with pytest.raises(ValueError, match=r"takes a kernel of arm 'bypass' .* of arm 'fused', is"):
        phi_of(known, prepared, mine)
    with pytest.raises(ValueError, match="for int4-g128 at batch 1; this one"):
        phi_of(known, prepared, replace(own, formats=("nf4-b64",)))


def test_instructions_are_those_of_the_board(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled for what the launch compiles for: "90a", and not "90"."""
    asked: list[str] = []

    def audit(plan: Plan, arch: str) -> Audit:
        asked.append(arch)
        return audit_plan(plan, arch)

    monkeypatch.setattr(cuda_audit, "audit_plan", audit)
    kernel = next(k for k in cuda.KERNELS if (k.arm, *k.formats) == ("fused", "fp8_e4m3-ch"))
    problem = Problem("one", 4096, 4096, 1, find_format("fp8_e4m3-ch"), "fp16")
    info = instructions_of(BOARD, Prepared(problem, kernel, ("one", ""), 0))
    assert asked == ["90a"]
    assert info["instructions_arch"] == "sm_90a"
    assert 0.7 < info["instructions_per_weight"] < 0.98  # type: ignore[operator]


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"unknown_loops": 1}, "a loop within the loop: how often it runs is not in the code"),
        ({"guarded": 65}, "guarded loop: most of it may be skipped, and how often is not known"),
        ({"spill_instructions": 2}, "spills: values go through local memory, which is not counted"),
    ],
)
@pytest.mark.parametrize("weights", [64, None])
def test_a_count_that_is_not_exact_is_left_out(
    changes: dict[str, Any], why: str, weights: int | None
) -> None:
    audit = Audit("k", 90, {"int": 128}, 0, {}, looped=True, weights=weights)
    exact = {"instructions_per_weight": 2.0} if weights else {"instructions_per_pass": 128}
    assert exact.items() <= _counted(audit, "sm_90").items()
    assert _counted(replace(audit, **changes), "sm_90") == {
        "instructions_per_weight": None, "instructions_reason": why, "instructions_arch": "sm_90",
    }  # fmt: skip


def test_what_launches_no_triton_kernel_has_no_count() -> None:
    """A library's product on a GPU: absent, with its reason."""
    library = replace(FUSED, device="cuda", implementation="cutlass")
    assert instructions_of(BOARD, Prepared(PROBLEM, library, ("one", ""), 0)) == {
        "instructions_per_weight": None,
        "instructions_reason": "it launches no Triton kernel, and one can be counted",
    }


COUNTED = """
import json
from types import SimpleNamespace
from typing import Any
import torch
from bench.static.gemlite_code import pretend
pretend("H100", 90, 132)
from triton.runtime.jit import JITFunction

compiled = JITFunction.run
def only_compiled(self: Any, *values: Any, grid: Any, warmup: bool, **named: Any) -> Any:
    return compiled(self, *values, grid=grid, warmup=True, **named)
JITFunction.run = only_compiled

from bench.examples import my_triton_kernel
from bench.measure.devices import Prepared, Problem
from bench.pytest_plugin import instructions_of
from bench.static.audit import audit_kernel, row_of, weights_per_pass
from bench.static.compile import compile_kernel
from kernels import packing, triton
from kernels.formats import find_format

INT4 = find_format("int4-g128")
PROBLEM = Problem("one", 256, 1024, 1, INT4, "fp16")

def info(kernel: Any, weights: Any = None, times: int = 1) -> dict[str, object]:
    tensors = kernel.pack(packing.random_weights(256, 1024, INT4, "fp16", seed=3))
    x, out = torch.zeros(1, 1024, dtype=torch.half), torch.zeros(1, 256, dtype=torch.half)
    launch = kernel.bind(tensors, x, out)
    warm = lambda prepared: [launch() for _ in range(times)]
    board = SimpleNamespace(describe=lambda: SimpleNamespace(capability="9.0"), warm=warm)
    return instructions_of(board, Prepared(PROBLEM, kernel, ("one", ""), 0), weights)

def ours(variant: str) -> Any:
    wanted = ("fused", variant, ("fp16",))
    return next(
        k for k in triton.KERNELS
        if (k.arm, k.variant, k.activations) == wanted and INT4.name in k.formats
    )

for variant in ("gemv", "gemv-ptx"):
    plan = triton.plan_of("fused", variant, INT4, "fp16", 256, 1024, 1, 80)  # as bound on a CPU
    ahead = compile_kernel(plan.fn, plan.signature, plan.constexprs, 90, **plan.options)
    weights = weights_per_pass(plan, ahead.num_warps)
    row = row_of(audit_kernel(variant, ahead, weights))
    print(json.dumps([variant, info(ours(variant)), row.per_weight["total"]]))
mine = my_triton_kernel.kernel
print(json.dumps([info(mine, 16), info(mine), info(mine, 16, 2)]))
"""


def test_triton_kernels_are_counted_as_they_are_launched() -> None:
    """For a board that is not here, in a process that compiles what would be launched on it.

    Ours beside what is counted ahead of time; a user's by what one lane handles: 16 x 128 by 128 lanes.
    """
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", COUNTED],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent.parent,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    *ours, (mine, unknown, twice) = [json.loads(line) for line in done.stdout.splitlines()]
    for variant, info, ahead in ours:
        assert info["instructions_arch"] == "sm_90", variant
        assert info["instructions_per_weight"] == pytest.approx(ahead, rel=0.05), variant
    assert ours[0][1]["instructions_per_weight"] > 1.8 * ours[1][1]["instructions_per_weight"]
    assert mine["instructions_per_weight"] == unknown["instructions_per_pass"] / 16 > 2
    assert unknown["instructions_per_weight"] is None
    assert unknown["instructions_reason"].endswith("is not known; give weights=")
    assert twice["instructions_per_weight"] is None
    assert twice["instructions_reason"] == "it launches 2 Triton kernels, and one can be counted"

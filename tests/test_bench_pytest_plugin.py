"""The fixture for pytest-benchmark: what it adds, and that a wrong kernel has no time."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import user_kernels

from bench.measure.devices import Device
from bench.pytest_plugin import Benchmark, dequant_benchmark, instructions_of, phi_of
from kernels import cuda
from kernels.kernel import Kernel

__all__ = ["dequant_benchmark"]
SHAPE = {"n": 32, "k": 256}


def test_a_right_kernel_is_timed(dequant_benchmark: Benchmark, benchmark: Any) -> None:
    info = dequant_benchmark(user_kernels.right, "int4-g128", **SHAPE, batch=2)
    assert benchmark.extra_info == info
    assert 0 < info["error"] < user_kernels.right.tolerance  # type: ignore[operator]
    assert info["phi_exposed_s"] is None
    assert info["phi_reason"] == "no fused kernel with a bypass of its own"
    assert info["instructions_per_weight"] is None


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
        return SimpleNamespace(time_s={"fused": 5e-6, "bypass": 3e-6}[prepared.kernel.arm])


def test_phi_is_the_difference_to_the_bypass_taken_in_turns() -> None:
    device = FakeDevice()
    known: Device = device  # type: ignore[assignment]
    info = phi_of(known, device.prepare(None, replace(user_kernels.right, arm="fused")))
    assert info["phi_exposed_s"] == pytest.approx(2e-6)
    assert device.order[:4] == ["bypass", "fused", "fused", "bypass"]


def test_instructions_are_those_of_the_board() -> None:
    board = SimpleNamespace(describe=lambda: SimpleNamespace(capability="9.0"))
    kernel = next(k for k in cuda.KERNELS if (k.arm, *k.formats) == ("fused", "fp8_e4m3-ch"))
    info = instructions_of(board, kernel, "fp8_e4m3-ch", 4096, 4096, 1)  # type: ignore[arg-type]
    assert 0.7 < info["instructions_per_weight"] < 0.98  # type: ignore[operator]

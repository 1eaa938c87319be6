"""Every Triton kernel against the float64 reference, interpreted at small ragged shapes."""

from __future__ import annotations

import os

import pytest

from kernels.formats import find_format
from kernels.kernel import Kernel
from kernels.triton import KERNELS
from kernels.triton.plan import ACTIVATIONS
from tests.triton_cases import check

pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1",
    reason="with a GPU the kernels are compiled, not interpreted",
)

FORMATS = ("int4-g128", "int4-g128-zp", "int8-ch", "int8-g128", "nf4-b64", "fp8_e4m3-ch")
FORMATS += ("fp8_e5m2-b128",)

# One (n, k) per batch; n never fills its last tile. Of gemv's steps along k (1024 to 4096 weights)
# 384 is a part and 2304 one or more and a part; of gemm's (128) all are whole.
SHAPES = {1: (5, 2304), 3: (6, 384), 16: (11, 256), 17: (70, 384), 256: (37, 256)}


def triton_kernels() -> list[Kernel]:
    """All but those in inline PTX, which is executed elsewhere: test_kernels_triton_emulated.py."""
    ours = [kernel for kernel in KERNELS if kernel.implementation == "triton"]
    return [kernel for kernel in ours if not kernel.variant.endswith("ptx")]


def accepting(format_name: str, activation: str, batch: int) -> list[Kernel]:
    weight_format = find_format(format_name)
    return [k for k in triton_kernels() if k.accepts(weight_format, activation, batch)]


def name(kernel: Kernel) -> str:
    return f"{kernel.arm}-{kernel.variant}"


def cases(shapes: dict[int, tuple[int, int]]) -> list[object]:
    return [
        pytest.param(kernel, f, a, batch, n, k, id=f"{name(kernel)}-{f}-{a}-{batch}x{n}x{k}")
        for batch, (n, k) in shapes.items()
        for a in ACTIVATIONS
        for f in FORMATS
        for kernel in accepting(f, a, batch)
        if kernel.weight_bits is None or f == FORMATS[0]
    ]


@pytest.mark.parametrize(("kernel", "format_name", "activation", "batch", "n", "k"), cases(SHAPES))
def test_kernel_matches_reference(
    kernel: Kernel, format_name: str, activation: str, batch: int, n: int, k: int
) -> None:
    check(kernel, format_name, activation, batch, n, k, "cpu")


@pytest.mark.parametrize("batch", [1, 16, 17])
@pytest.mark.parametrize("k", [100, 1300])
def test_row_scaled_format_takes_k_that_fills_no_load(batch: int, k: int) -> None:
    """int8-ch has no groups: k need only fill words, so the last 16-byte load may be part empty."""
    for kernel in accepting("int8-ch", "fp16", batch):
        check(kernel, "int8-ch", "fp16", batch, 7, k, "cpu")


@pytest.mark.parametrize("k", [4096, 6144])
@pytest.mark.parametrize("format_name", FORMATS)
def test_whole_steps_along_k(format_name: str, k: int) -> None:
    """Shapes whose last step is whole, one step and several: the code without masks."""
    for kernel in accepting(format_name, "fp16", 1):
        check(kernel, format_name, "fp16", 1, 3, k, "cpu")


def test_both_regimes_have_a_row_at_batch_16() -> None:
    kernels = accepting("int4-g128", "fp16", 16)
    assert [k.variant for k in kernels if k.arm == "fused"] == ["gemv", "gemm"]


@pytest.mark.proof
@pytest.mark.parametrize(
    ("kernel", "format_name", "activation", "batch", "n", "k"),
    [
        case
        for n in (1, 66)
        for k in (128, 2176)
        for case in cases(dict.fromkeys((2, 7, 31, 200), (n, k)))
    ],
)
def test_kernel_matches_reference_everywhere(
    kernel: Kernel, format_name: str, activation: str, batch: int, n: int, k: int
) -> None:
    check(kernel, format_name, activation, batch, n, k, "cpu")

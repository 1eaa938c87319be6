"""Launchers check their arguments once and say what was expected, what was found, what to do."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from kernels import packing
from kernels.formats import find_format
from kernels.kernel import Kernel
from kernels.triton import KERNELS

N, K, BATCH = 8, 256, 16
Arguments = dict[str, torch.Tensor]


def kernel_named(arm: str, variant: str) -> Kernel:
    return next(
        k for k in KERNELS if (k.arm, k.variant) == (arm, variant) and "fp16" in k.activations
    )


def arguments(kernel: Kernel) -> Arguments:
    """Correct arguments of one launch: the kernel's tensors, x and out, by name."""
    weights = packing.random_weights(N, K, find_format("int4-g128-zp"), "fp16", seed=1)
    x = torch.from_numpy(packing.random_activations(BATCH, K, "fp16", seed=1)).half()
    return kernel.pack(weights) | {"x": x, "out": torch.empty(BATCH, N, dtype=torch.float16)}


def bind(kernel: Kernel, given: Arguments) -> object:
    tensors = {name: t for name, t in given.items() if name not in ("x", "out")}
    return kernel.bind(tensors, given["x"], given["out"])


def misaligned(tensor: torch.Tensor) -> torch.Tensor:
    """The same values, starting one element after an aligned address."""
    buffer = torch.empty(tensor.numel() + 1, dtype=tensor.dtype)
    return buffer[1:].view(tensor.shape).copy_(tensor)


PACKED = [("fused", "gemv"), ("stream", "gemv"), ("fused", "gemm"), ("bypass", "gemm")]
SIXTEEN_BIT = [("native", "gemv"), ("native", "gemm"), ("vendor", "default")]
SHARED_FAULTS: list[tuple[str, Callable[[torch.Tensor], torch.Tensor], str]] = [
    ("x", lambda x: x.float(), r"x should be fp16 or bf16, but it is torch\.float32; convert"),
    ("x", lambda x: x[0], r"x should be \[batch, k\], but it has shape \[256\]; reshape"),
    ("x", lambda x: x.T.contiguous().T, r"x should be a contiguous .* strides are \(1, 16\)"),
    ("x", misaligned, r"x should be .* start at a multiple of 16 bytes.* pass x\.clone\(\)"),
]
PACKED_FAULTS = [
    ("x", lambda x: x[:, :64].contiguous(), r"k = 64 columns, but no weight format stores"),
    ("words", lambda w: w.to(torch.int64), r"words should be .*int32 .*int64"),
    ("words", misaligned, r"words should be .* multiple of 16 bytes"),
    ("scales", lambda s: s.bfloat16(), r"scales should be .*float16 .*bfloat16"),
    ("scales", lambda s: s[:4].contiguous(), r"scales should be .* \[8, 2\] .* shape \[4, 2\]"),
    ("zeros", lambda z: z.int(), r"zeros should be .*uint8 .*int32"),
    ("out", lambda y: y[..., :4].contiguous(), r"out should be .*; allocate it for this problem"),
]
SIXTEEN_BIT_FAULTS = [
    ("weights", lambda w: w.bfloat16(), r"weights should be .*float16 .*bfloat16"),
    ("weights", lambda w: w[:, :128].contiguous(), r"weights should be .* shape \[8, 256\]"),
    ("out", lambda y: y.float(), r"out should be .*float16 .*float32"),
]


@pytest.mark.parametrize(
    ("kernel", "name", "spoil", "message"),
    [
        pytest.param(kernel_named(*which), *fault, id=f"{'-'.join(which)}-{fault[0]}-{i}")
        for kernels, own in ((PACKED, PACKED_FAULTS), (SIXTEEN_BIT, SIXTEEN_BIT_FAULTS))
        for which in kernels
        for i, fault in enumerate([*SHARED_FAULTS, *own])
    ],
)
def test_spoilt_argument_is_refused(
    kernel: Kernel, name: str, spoil: Callable[[torch.Tensor], torch.Tensor], message: str
) -> None:
    given = arguments(kernel)
    if kernel.arm == "stream":
        given["out"] = torch.empty(N, dtype=torch.int32)
    bind(kernel, given)  # correct until spoilt
    with pytest.raises(ValueError, match=message):
        bind(kernel, given | {name: spoil(given[name])})


@pytest.mark.parametrize(
    ("variant", "batch", "message"),
    [
        ("gemv", 17, r"gemv kernel serves batches 1 to 16, but x has 17 rows; choose .*batch=17"),
        ("gemm", 15, r"gemm kernel serves batches 16 to 256, but x has 15 rows"),
    ],
)
@pytest.mark.parametrize("arm", ["fused", "native"])
def test_batch_of_the_other_regime_is_refused(
    arm: str, variant: str, batch: int, message: str
) -> None:
    kernel = kernel_named(arm, variant)
    x = torch.zeros(batch, K, dtype=torch.float16)
    out = torch.empty(batch, N, dtype=torch.float16)
    with pytest.raises(ValueError, match=message):
        bind(kernel, arguments(kernel) | {"x": x, "out": out})


def test_integer_stages_want_an_integer_output() -> None:
    kernel = kernel_named("unpack", "gemv")
    with pytest.raises(ValueError, match=r"out should be a contiguous torch\.int32 .* \[8\]"):
        bind(kernel, arguments(kernel))


def test_vendor_writes_into_the_given_output() -> None:
    """Timing must not contain an allocator."""
    given = arguments(kernel_named("vendor", "default"))
    launch = kernel_named("vendor", "default").bind(given, given["x"], given["out"])
    result = launch()
    assert isinstance(result, torch.Tensor)
    assert result.data_ptr() == given["out"].data_ptr()
    expected = given["x"].double() @ given["weights"].double().T
    torch.testing.assert_close(
        given["out"].double(), expected, rtol=0, atol=2e-3 * expected.abs().max().item()
    )

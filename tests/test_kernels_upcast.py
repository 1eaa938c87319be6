"""16-bit weights multiplied in fp32: right to fp32, and counted as what they move."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kernels import find_kernels, packing
from kernels.formats import find_format
from kernels.kernel import Kernel, output_shape, traffic
from kernels.unfused import compose

N, K = 24, 256


def kernels_of(device: str, activation: str, batch: int) -> list[Kernel]:
    found = find_kernels(device, find_format("int8-ch"), activation, batch)
    return [kernel for kernel in found if kernel.arm == "upcast"]


def error_of(kernel: Kernel, batch: int, activation: str = "bf16") -> float:
    """Largest error over the largest |y| of a float64 product of the rounded weights."""
    weights = packing.random_weights(N, K, find_format("int8-ch"), activation, seed=3)
    x = packing.random_activations(batch, K, activation, seed=3)
    out = torch.full((batch, N), torch.nan)
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}[activation]
    kernel.bind(kernel.pack(weights), torch.from_numpy(x).to(dtype), out)()
    expected = x.astype(np.float64) @ weights.values16.astype(np.float64).T
    return float(np.abs(out.double().numpy() - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("batch", [1, 3, 16, 33])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_products_are_right_to_fp32(device: str, batch: int) -> None:
    """On "cuda" PyTorch's own path: the Triton kernels are interpreted and emulated elsewhere."""
    (kernel,) = (k for k in kernels_of(device, "bf16", batch) if k.implementation == "torch")
    assert error_of(kernel, batch) <= 1e-6


def test_reference_is_of_the_rounded_weights() -> None:
    weights = packing.random_weights(N, K, find_format("int4-g128"), "bf16", seed=3)
    assert (packing.multiplied("upcast", weights) == weights.values16).all()
    assert (packing.multiplied("upcast", weights) != packing.multiplied("fused", weights)).any()


def test_outputs_are_fp32_and_others_are_refused() -> None:
    assert output_shape("upcast", N, K, 2) == ((2, N), "fp32")
    weights = packing.random_weights(N, K, find_format("int8-ch"), "bf16", seed=3)
    for device in ("cpu", "cuda"):
        for kernel in kernels_of(device, "bf16", 16):
            x, out = torch.zeros(16, K).bfloat16(), torch.zeros(16, N).bfloat16()
            with pytest.raises(ValueError, match="float32"):
                kernel.bind(kernel.pack(weights), x, out)


def test_it_is_no_part_of_unfused() -> None:
    found = find_kernels("cpu", find_format("int8-ch"), "bf16", 1)
    dequantize = next(k for k in found if k.arm == "dequantize")
    with pytest.raises(ValueError, match=r"not of dequantize .* and upcast"):
        compose(dequantize, kernels_of("cpu", "bf16", 1)[0])


def test_traffic_by_hand() -> None:
    """W[8, 256] in bf16: 4096 bytes; x 2 x 256 and y 2 x 8 in fp32. Two launches: 8192 there and back."""
    fused = traffic("upcast", find_format("bf16"), 8, 256, 2)
    assert (fused.bytes_read, fused.bytes_written, fused.flops) == (4096 + 2048, 64, 8192)
    two = traffic("upcast", find_format("bf16"), 8, 256, 2, scratch_bits=32)
    assert (two.bytes_read, two.bytes_written) == (4096 + 8192 + 2048, 8192 + 64)
    (kernel,) = kernels_of("cpu", "bf16", 1)
    assert kernel.scratch_bits == 32

"""Run one kernel on one problem and compare it with the float64 reference."""

from __future__ import annotations

import numpy as np
import torch

from kernels import packing
from kernels.formats import find_format
from kernels.kernel import Kernel, output_shape
from kernels.lowp import quantize_activations
from kernels.triton.plan import TORCH_DTYPES

TOLERANCES = {"fp16": 2e-3, "bf16": 1e-2}  # of the largest |reference|
SENTINEL = -77
GUARD = 64  # elements after the output that no kernel may touch


def run(kernel: Kernel, weights: packing.Weights, x: np.ndarray, device: str) -> np.ndarray:
    """What the kernel writes, as float64 or int64; fails if it writes past its output."""
    n, k = weights.shape
    dtype = TORCH_DTYPES[weights.activation]
    shape, written = output_shape(kernel.arm, n, k, len(x))
    size = int(np.prod(shape))
    buffer = torch.full(
        (size + GUARD,),
        SENTINEL,
        dtype=dtype if written == "activation" else TORCH_DTYPES[written],
        device=device,
    )
    tensors = {name: tensor.to(device) for name, tensor in kernel.pack(weights).items()}
    kernel.bind(tensors, torch.from_numpy(x).to(device, dtype), buffer[:size].view(shape))()
    assert (buffer[size:] == SENTINEL).all(), "the kernel wrote past the end of its output"
    out = buffer[:size].view(shape).cpu()
    return out.numpy().astype(np.int64) if written == "int32" else out.double().numpy()


def check(
    kernel: Kernel, format_name: str, activation: str, batch: int, n: int, k: int, device: str
) -> None:
    """Fail unless the kernel's output is right: integers exactly, floats within the tolerance."""
    weights = packing.random_weights(n, k, find_format(format_name), activation, seed=7)
    x = packing.random_activations(batch, k, activation, seed=7)
    arm = "native" if kernel.arm == "vendor" else kernel.arm
    multiplied = quantize_activations(x, weights.format).values if arm == "lowp" else x
    expected = packing.reference(arm, weights, multiplied, kernel.reading)
    out = run(kernel, weights, x, device)
    if kernel.arm == "dequantize" and activation == "bf16" and device == "cpu":
        expected = truncated(weights.values)  # Triton's interpreter does not round to bf16
    if arm in ("stream", "unpack", "dequantize"):
        np.testing.assert_array_equal(out, expected)
    else:
        error = np.abs(out - expected).max() / np.abs(expected).max()
        assert error <= min(TOLERANCES[activation], kernel.tolerance)


def truncated(values: np.ndarray) -> np.ndarray:
    """Numbers cut to bf16: the upper half of their fp32."""
    bits = values.astype(np.float32).view(np.uint32) & np.uint32(0xFFFF0000)
    return bits.view(np.float32)

"""PyTorch's own CPU kernels, the `vendor` rows: oneDNN's linear, and its weight-only int8 and int4 products.

The weight-only operators allocate their result; launches return it, and the device keeps the allocator from
giving such memory back to the kernel between calls (a fresh mapping page-faults for longer than it computes).
They serve bf16 alone: PyTorch 2.13 takes fp16 too but is far slower in it (int4, W[512, 1024], batch 16: 73 ms
against 0.2 ms), which nobody would use and which would be the longest part of a run.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from kernels.kernel import Kernel, Launch, Tensors
from kernels.packing import Float16, Weights

ACTIVATIONS: tuple[Float16, ...] = ("fp16", "bf16")
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}
TOLERANCE = {"fp16": 2e-3, "bf16": 1e-2}  # of the largest |y|
_BATCHES = (1, 256)


def pack_16bit(weights: Weights) -> Tensors:
    """{"weights": fp16 or bf16 [n, k]}, the dequantized weights rounded to the dtype of activations."""
    return {"weights": torch.from_numpy(weights.values16).to(DTYPES[weights.activation])}


def _pack_fp32(weights: Weights) -> Tensors:
    return {"weights": torch.from_numpy(weights.values16)}


def bind_linear(tensors: Tensors, x: torch.Tensor, out: torch.Tensor) -> Launch:
    """out[batch, n] = x[batch, k] . weights[n, k]^T in the dtype of the weights, preallocated."""
    matrix = tensors["weights"].T
    x = x.to(matrix.dtype)
    if out.dtype != matrix.dtype:
        out = torch.empty(out.shape, dtype=matrix.dtype)
    return lambda: torch.mm(x, matrix, out=out)


def _pack_int8(weights: Weights) -> Tensors:
    codes = torch.from_numpy(weights.codes)
    return {
        "weights": (codes.to(torch.int16) - 128).to(torch.int8),
        "scales": torch.from_numpy(weights.scales[:, 0]).to(torch.bfloat16),
    }


def _bind_int8(tensors: Tensors, x: torch.Tensor, out: torch.Tensor) -> Launch:
    product = torch.ops.aten._weight_int8pack_mm
    weights, scales = tensors["weights"], tensors["scales"]
    return lambda: product(x, weights, scales)


def _pack_int4(weights: Weights) -> Tensors:
    """PyTorch's layout: w = (code - 8) * scale + offset, with offset (8 - zero) * scale rounded to bf16."""
    codes = torch.from_numpy(weights.codes).to(torch.int32)
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 1)
    scales = torch.from_numpy(weights.scales)
    offsets = torch.zeros_like(scales)
    if weights.zeros is not None:
        offsets = (8.0 - torch.from_numpy(weights.zeros).to(torch.float32)) * scales
    pairs = torch.stack([scales.T, offsets.T], dim=-1).to(torch.bfloat16)
    return {"weights": packed, "scales_and_offsets": pairs.contiguous()}


def _bind_int4(tensors: Tensors, x: torch.Tensor, out: torch.Tensor) -> Launch:
    product = torch.ops.aten._weight_int4pack_mm_for_cpu
    weights, pairs = tensors["weights"], tensors["scales_and_offsets"]
    group_size = x.shape[1] // pairs.shape[0]
    return lambda: product(x, weights, group_size, pairs)


def _linear(activation: Float16, weights: str, pack: Callable[[Weights], Tensors]) -> Kernel:
    formats, activations, tolerance = (weights,), (activation,), TOLERANCE[activation]
    return Kernel(
        *("vendor", "torch", "cpu", formats, activations, _BATCHES, pack, bind_linear),
        tolerance=tolerance,
    )


KERNELS = (
    *(_linear(activation, activation, pack_16bit) for activation in ACTIVATIONS),
    *(_linear(activation, "fp32", _pack_fp32) for activation in ACTIVATIONS),
    Kernel("vendor", "torch", "cpu", ("int8-ch",), ("bf16",), _BATCHES, _pack_int8, _bind_int8),
    Kernel(
        "vendor",
        "torch",
        "cpu",
        ("int4-g128", "int4-g128-zp"),
        ("bf16",),
        _BATCHES,
        _pack_int4,
        _bind_int4,
    ),
)

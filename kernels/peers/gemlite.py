"""gemlite: Triton kernels for 16-bit x and int4, int8 or FP8 weights, on an NVIDIA GPU (arm `vendor`).

gemlite packs our codes itself, on the CPU, and chooses its kernel and its tile by batch and shape: from the
configurations that it ships for some boards and shapes, else by timing some when a row is verified.

    int4 in groups     `GemLiteLinear.pack`: words int32 [k / 8, n]; the zero is a number (8) where the format
                       has none, else weight = code * scale - zero * scale with the product rounded to 16 bits
    int8, FP8 per row  `helper.A16W8_INT8`, `helper.A16W8_FP8`: codes [n, k], every weight scaled

Importing gemlite asks the driver for the board: without an NVIDIA GPU it fails.
"""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from kernels.kernel import Kernel, Launch, Tensors
from kernels.packing import Weights

if TYPE_CHECKING:
    from kernels.peers import DeviceKind

FORMATS = (
    *("int4-g128", "int4-g128-zp", "int4-g64", "int4-g64-zp", "int4-g32", "int4-g32-zp"),
    *("int8-ch", "fp8_e4m3-ch"),
)
BATCHES = (1, 256)
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}
ARGUMENTS = ("W_q", "scales", "zeros", "meta_scale")  # of forward_functional, in its order


def records(device: DeviceKind, release: str) -> dict[str, Kernel]:
    """Its row on a GPU."""
    activations = ("fp16", "bf16")
    return {
        "gemlite": Kernel(
            "vendor", "gemlite", device, FORMATS, activations, BATCHES, pack, bind, release
        )
    }


def _package() -> Any:
    """The package, without what it would print: which of its files of configurations it has loaded."""
    logging.getLogger("gemlite").setLevel(logging.ERROR)
    import gemlite

    return gemlite


def layer(weights: Weights) -> Any:
    """The weights as a linear layer of gemlite, on the CPU."""
    gemlite = _package()
    dtype = DTYPES[weights.activation]
    codes = torch.from_numpy(weights.codes)
    scales = torch.from_numpy(weights.scales)
    if weights.format.encoding == "e4m3":
        helper = gemlite.helper.A16W8_FP8("cpu", dtype)
        return helper.from_weights(codes.view(torch.float8_e4m3fn), scales=scales)
    scales = scales.to(dtype)
    if weights.format.bits == 8:
        signed = codes.to(torch.int16) - weights.format.zero
        return gemlite.helper.A16W8_INT8("cpu", dtype).from_weights(
            signed.to(torch.int8), scales=scales
        )
    n, k = weights.shape
    stored = gemlite.core.TORCH_TO_DTYPE[dtype]
    linear = gemlite.GemLiteLinear(
        weights.format.bits,
        weights.format.group_size,
        *(k, n, stored, stored),
    )
    zeros: Any = weights.format.zero
    if weights.zeros is not None:
        zeros = torch.from_numpy(weights.zeros.astype(np.float32)).to(dtype)
    return linear.pack(codes, scales, zeros)


def pack(weights: Weights) -> Tensors:
    """The tensors of its layer, and `metadata`; W_q [k, n] is kept transposed where gemlite strides it so."""
    linear = layer(weights)
    tensors = dict(zip(ARGUMENTS, linear.get_tensor_args(), strict=True))
    if not linear.data_contiguous:
        tensors["W_q"] = tensors["W_q"].t()
    tensors["metadata"] = torch.tensor(linear.get_meta_args(), dtype=torch.int32)
    return {name: tensor.detach() for name, tensor in tensors.items()}


def bind(tensors: Tensors, x: torch.Tensor, out: torch.Tensor) -> Launch:
    """`gemlite.forward_functional` on these tensors; it allocates y."""
    gemlite = _package()
    metadata = tensors["metadata"].tolist()
    words, *others = (tensors[name] for name in ARGUMENTS)
    contiguous = metadata[-1]
    arguments = [words if contiguous else words.t(), *others]
    return partial(gemlite.forward_functional, x, None, arguments, metadata)

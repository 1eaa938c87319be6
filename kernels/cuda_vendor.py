"""The library's 16-bit linear on a GPU: cuBLAS on the dequantized weights (arm `vendor`)."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import torch

from kernels.kernel import Kernel
from kernels.triton.native import pack
from kernels.triton.plan import ACTIVATIONS, check_matrix

if TYPE_CHECKING:
    from kernels.kernel import Launch, Tensors

BATCHES = (1, 256)


def bind(tensors: Tensors, x: torch.Tensor, out: torch.Tensor) -> Launch:
    """`torch.mm` into a preallocated output: the GEMM that `torch.nn.functional.linear` calls.

    Args:
        tensors: {"weights": [n, k]} in the dtype of x.
        x: activations [batch, k].
        out: [batch, n] in the dtype of x.

    Raises:
        ValueError: an argument does not fit; the message says what would.
    """
    check_matrix(tensors, x, out)
    return functools.partial(torch.mm, x, tensors["weights"].T, out=out)


VENDOR = Kernel(
    arm="vendor",
    implementation="torch",
    device="cuda",
    formats=ACTIVATIONS,
    activations=ACTIVATIONS,
    batches=BATCHES,
    pack=pack,
    bind=bind,
)

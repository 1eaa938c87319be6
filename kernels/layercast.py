"""The arm `upcast` as LayerCast does it in PyTorch: a layer's weights are cast to fp32 when they are needed.

Two launches, on any device: 16-bit weights into one reused fp32 matrix, then the library's fp32 product. The
cast writes 32 bits per weight and the product reads them again. Source: arXiv 2506.09501, section 5.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Literal

import torch

from kernels.kernel import Kernel, Launch, Tensors
from kernels.packing import Float16, Weights

TOLERANCE = 1e-4  # of the largest |y|; fp32 unless somebody allows PyTorch TF32


@lru_cache(maxsize=8)
def _scratch(n: int, k: int, device: torch.device) -> torch.Tensor:
    """One matrix per shape, shared by all copies of the weights: no allocation inside a launch."""
    return torch.empty((n, k), dtype=torch.float32, device=device)


def bind(tensors: Tensors, x: torch.Tensor, out: torch.Tensor) -> Launch:
    """Casts, then multiplies: weights [n, k] in 16 bits, x [batch, k], out fp32 [batch, n].

    Raises:
        ValueError: the output is not fp32.
    """
    if out.dtype != torch.float32:
        raise ValueError(f"upcast writes float32, but out is {out.dtype}; allocate it as such.")
    weights, wide = tensors["weights"], x.float()
    matrix = _scratch(*weights.shape, weights.device)
    transposed = matrix.T

    def launch() -> object:
        matrix.copy_(weights)
        return torch.mm(wide, transposed, out=out)

    return launch


def layercast(
    device: Literal["cuda", "cpu"],
    activations: tuple[Float16, ...],
    pack: Callable[[Weights], Tensors],
) -> Kernel:
    """The kernel of a device whose 16-bit weights `pack` lays out."""
    return Kernel(
        arm="upcast",
        implementation="torch",
        device=device,
        formats=activations,
        activations=activations,
        batches=(1, 256),
        pack=pack,
        bind=bind,
        variant="two-launches",
        tolerance=TOLERANCE,
        scratch_bits=32,
    )

"""y = x W^T by the fused CPU kernel of a format, outside of any timing: what a chain of layers is made of."""

from __future__ import annotations

from collections.abc import Callable

import numba
import numpy as np
import torch
from numpy.typing import NDArray

from kernels import find_kernels
from kernels.cpu.torch_ops import DTYPES
from kernels.kernel import UnsupportedError
from kernels.packing import Weights, round_to

Product = Callable[[NDArray[np.float32]], NDArray[np.float32]]


def fused_product(weights: Weights, batch: int) -> tuple[Product, str]:
    """The product with some weights, and who computes it.

    The fused kernel of the format where the CPU has one, else NumPy on the dequantized weights with the
    same rounding: x and y in the activation dtype, sums in float32.

    Args:
        weights: W [n, k].
        batch: rows of every x.

    Returns:
        A function of x float32 [batch, k], already rounded, to y float32 [batch, n]; and a name.
    """
    kernels = find_kernels("cpu", weights.format, weights.activation, batch)
    fused = next((kernel for kernel in kernels if kernel.arm == "fused"), None)
    n, k = weights.shape
    if fused is not None:
        dtype = DTYPES[weights.activation]
        x_in, out = torch.zeros((batch, k), dtype=dtype), torch.zeros((batch, n), dtype=dtype)
        try:
            launch = fused.bind(fused.pack(weights), x_in, out)
        except (ValueError, UnsupportedError):  # widths or a dtype that it does not take here
            fused = None
        else:

            def product(x: NDArray[np.float32]) -> NDArray[np.float32]:
                x_in.copy_(torch.from_numpy(x))
                threads = numba.get_num_threads()
                numba.set_num_threads(1)  # so small that waiting for others would be all of it
                launch()
                numba.set_num_threads(threads)
                y: NDArray[np.float32] = out.float().numpy().copy()
                return y

            return product, fused.implementation
    values = weights.values.astype(np.float32)
    return lambda x: round_to(multiply(x, values), weights.activation), "numpy"


def multiply(x: NDArray[np.float32], w: NDArray[np.float32]) -> NDArray[np.float32]:
    """Sums x [batch, k] W [n, k]^T in float32, in one thread and so in one order on every machine."""
    y: NDArray[np.float32] = np.einsum("bk,nk->bn", x, w)
    return y

"""A format of your own: int4 whose scales are powers of two, so that a shift could take their place.

    python -m bench.dequant --gpu cpu --format int4-g128 --batches 1 --kernel bench.examples.my_format:kernel

It computes other numbers than int4-g128, whose row it stands beside, and would be refused as wrong. So it says
what it computes, a float64 `reference`, and is held against that. The run says so below its tables, with the
distance between that reference and the one that all other kernels are compared with.
"""

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from bench.examples import my_kernel
from kernels.kernel import Tensors
from kernels.packing import Weights


def powers_of_two(weights: Weights) -> NDArray[np.float64]:
    """The scales [n, k / 128], each the nearest power of two."""
    return np.exp2(np.round(np.log2(weights.scales.astype(np.float64))))


def pack(weights: Weights) -> Tensors:
    """Codes as in my_kernel.py, and the scales of this format."""
    scales = torch.from_numpy(powers_of_two(weights)).to(torch.bfloat16)
    return {**my_kernel.pack(weights), "scales": scales}


def reference(weights: Weights, x: NDArray[np.float32]) -> NDArray[np.float64]:
    """What y [rows, n] has to be for x [rows, k]."""
    scales = np.repeat(powers_of_two(weights), my_kernel.GROUP, axis=1)
    matrix = (weights.codes.astype(np.float64) - 8) * scales
    return x.astype(np.float64) @ matrix.T


kernel = replace(my_kernel.kernel, implementation="mine-shift", pack=pack, reference=reference)

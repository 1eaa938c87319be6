"""The CPU's kernels: our ladder in Numba, and PyTorch's own operators beside it."""

from __future__ import annotations

from kernels.cpu import numba_kernels, torch_ops
from kernels.kernel import Kernel

KERNELS: tuple[Kernel, ...] = numba_kernels.KERNELS + torch_ops.KERNELS

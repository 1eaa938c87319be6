"""Kernels of users beside those of bench/examples: one that cannot be bound, and some that do not fit a run."""

from __future__ import annotations

from dataclasses import replace

import torch

from bench.examples import bad_kernels, my_format, my_kernel
from kernels.formats import WeightFormat
from kernels.kernel import Launch, Tensors


def bind_raise(tensors: Tensors, x: torch.Tensor, out: torch.Tensor) -> Launch:
    raise RuntimeError("out of luck\nand more")


def traffic_in_bits(weight_format: WeightFormat, n: int, k: int, batch: int) -> float:
    return 4.125 * n * k


right = my_kernel.kernel
wrong, crash, hang = bad_kernels.wrong, bad_kernels.crash, bad_kernels.hang
unlucky = replace(right, implementation="unlucky", bind=bind_raise)
uncounted = replace(right, implementation="uncounted", traffic=traffic_in_bits)
own_format = my_format.kernel
flat = replace(own_format, implementation="flat", reference=lambda weights, x: x.sum(axis=1))
elsewhere = replace(right, implementation="elsewhere", formats=("nf4-b64",))
on_cuda = replace(right, device="cuda")
ours = replace(right, arm="fused", implementation="numba")
not_a_kernel = 17

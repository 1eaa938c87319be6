"""Kernels as users write them: right, wrong, crashing, hanging, and things that are no kernels."""

from __future__ import annotations

import os
import signal
from dataclasses import replace

import torch

from bench.examples import my_kernel
from kernels.kernel import Launch, Tensors


def bind_wrong(tensors: Tensors, x: torch.Tensor, out: torch.Tensor) -> Launch:
    launch = my_kernel.bind(tensors, x, out)

    def wrong() -> None:
        launch()
        out.mul_(1.5)

    return wrong


def bind_crash(tensors: Tensors, x: torch.Tensor, out: torch.Tensor) -> Launch:
    return lambda: os.kill(os.getpid(), signal.SIGSEGV)


def bind_hang(tensors: Tensors, x: torch.Tensor, out: torch.Tensor) -> Launch:
    return signal.pause


def bind_raise(tensors: Tensors, x: torch.Tensor, out: torch.Tensor) -> Launch:
    raise RuntimeError("out of luck\nand more")


right = my_kernel.kernel
wrong = replace(right, implementation="wrong", bind=bind_wrong)
crash = replace(right, implementation="crash", bind=bind_crash)
hang = replace(right, implementation="hang", bind=bind_hang)
unlucky = replace(right, implementation="unlucky", bind=bind_raise)
on_cuda = replace(right, device="cuda")
ours = replace(right, arm="fused", implementation="numba")
not_a_kernel = 17

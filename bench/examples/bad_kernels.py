"""What a run makes of kernels that are wrong, crash or hang: one of each, on purpose.

    python -m bench.dequant --gpu cpu --format int4-g128 --batches 1 --deadline 60 \
        --kernel bench.examples.bad_kernels:wrong --kernel bench.examples.bad_kernels:crash \
        --kernel bench.examples.bad_kernels:hang --kernel bench.examples.my_kernel:kernel

Each is named with what happened, exit code 1; all other kernels are timed as if these had not been there.
"""

import os
import signal
from dataclasses import replace

import torch

from bench.examples import my_kernel
from kernels.kernel import Launch, Tensors


def bind_wrong(tensors: Tensors, x: torch.Tensor, out: torch.Tensor) -> Launch:
    """A product that is half as large again."""
    launch = my_kernel.bind(tensors, x, out)

    def wrong() -> None:
        launch()
        out.mul_(1.5)

    return wrong


def bind_crash(tensors: Tensors, x: torch.Tensor, out: torch.Tensor) -> Launch:
    """What an access of memory that is not ours ends like."""
    return lambda: os.kill(os.getpid(), signal.SIGSEGV)


def bind_hang(tensors: Tensors, x: torch.Tensor, out: torch.Tensor) -> Launch:
    """Waits for a signal that never comes; --deadline says for how long it may."""
    return signal.pause


wrong = replace(my_kernel.kernel, implementation="wrong", bind=bind_wrong)
crash = replace(my_kernel.kernel, implementation="crash", bind=bind_crash)
hang = replace(my_kernel.kernel, implementation="hang", bind=bind_hang)

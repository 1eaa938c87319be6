"""What is timed. `find_kernels` is the whole public surface; see `kernel.py` for the record.

This file must exist: without it another installed package named `kernels` (Hugging Face ships one) would
win over this folder even when Python starts in the checkout. Importing it loads no kernel, no torch and no
driver: kernels are imported when asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kernels.kernel import Kernel

if TYPE_CHECKING:
    from kernels.formats import WeightFormat

__all__ = ["Kernel", "find_kernels"]


def find_kernels(
    device: str, weight_format: WeightFormat, activation: str, batch: int
) -> tuple[Kernel, ...]:
    """Every kernel of a device that has a row for such a problem, in the order of the ladder.

    Raises:
        ValueError: no such kind of device.
    """
    kernels: tuple[Kernel, ...]
    if device == "cuda":
        from kernels import cuda, triton

        kernels = triton.KERNELS + (() if cuda.missing() else cuda.KERNELS)
    elif device == "cpu":
        from kernels import cpu

        kernels = cpu.KERNELS
    else:
        raise ValueError(f"kernels exist for 'cuda' and 'cpu', not for {device!r}.")
    return tuple(k for k in kernels if k.accepts(weight_format, activation, batch))

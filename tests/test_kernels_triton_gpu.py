"""The Triton kernels compiled and run on a real GPU, at shapes of real models."""

from __future__ import annotations

import pytest

import kernels.formats
from kernels.formats import find_format
from kernels.kernel import Kernel
from kernels.triton import KERNELS
from tests.triton_cases import check

pytestmark = pytest.mark.gpu

FORMATS = tuple(f.name for f in kernels.formats.FORMATS if f.quantized)
SHAPES = ((4096, 4096), (4096, 14336), (1024, 4096), (1000, 11008))
BATCHES = (1, 3, 16, 17, 64, 256)


def accepting(format_name: str, activation: str, batch: int) -> list[Kernel]:
    """All but `lowp`, which a GPU may lack: test_kernels_lowp_gpu.py."""
    found = [k for k in KERNELS if k.arm != "lowp"]
    return [k for k in found if k.accepts(find_format(format_name), activation, batch)]


@pytest.mark.parametrize(("n", "k"), SHAPES)
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("activation", ["fp16", "bf16"])
@pytest.mark.parametrize("format_name", FORMATS)
def test_every_kernel_matches_reference(
    format_name: str, activation: str, batch: int, n: int, k: int
) -> None:
    for kernel in accepting(format_name, activation, batch):
        check(kernel, format_name, activation, batch, n, k, "cuda")

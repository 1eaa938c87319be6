"""The low-precision products and fp32 ones, compiled and run on a real GPU."""

from __future__ import annotations

import pytest

from kernels.formats import LOWP_ALIASES, find_format
from kernels.kernel import UnsupportedError
from kernels.triton import KERNELS
from tests.triton_cases import check

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize(("n", "k"), [(4096, 4096), (1024, 14336)])
@pytest.mark.parametrize("batch", [1, 3, 16, 17, 64, 256])
@pytest.mark.parametrize("activation", ["fp16", "bf16"])
@pytest.mark.parametrize("name", list(LOWP_ALIASES))
def test_every_product_that_this_gpu_has_matches_the_reference(
    name: str, activation: str, batch: int, n: int, k: int
) -> None:
    refused = []
    found = [
        kernel
        for kernel in KERNELS
        if kernel.arm == "lowp" and kernel.accepts(find_format(name), activation, batch)
    ]
    for kernel in found:
        try:
            check(kernel, name, activation, batch, n, k, "cuda")
        except UnsupportedError as reason:
            refused.append(str(reason))
    if len(refused) == len(found):
        pytest.skip(refused[0])

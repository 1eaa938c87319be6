"""CUDA C++ compiled by NVRTC and executed: what nvcc emits differs from what Triton emits."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from bench.static.nvrtc import compile_cuda
from bench.static.ptx import Fault, FaultError, launch

SOURCE = Path(__file__).parent / "data" / "emulated.cu"
TARGETS = (80, 86, 89, 90, 120)


@cache
def ptx(capability: int) -> str:
    return compile_cuda(SOURCE, capability)


@pytest.mark.parametrize("capability", TARGETS)
def test_pairs_of_fp16_and_inline_lop3(capability: int) -> None:
    """Against float64; a sum of 16 products in fp16 loses some 2^-9 of the largest |y|."""
    rng = np.random.default_rng(1)
    n, k = 12, 2048
    codes = rng.integers(0, 16, (n, k), dtype=np.uint32)
    x = rng.standard_normal(k).astype(np.float16)
    order = [0, 2, 4, 6, 1, 3, 5, 7]  # the weight in each nibble
    shifts = np.arange(0, 32, 4, dtype=np.uint32)
    words = (codes.reshape(n, k // 8, 8)[:, :, order] << shifts).sum(2).astype(np.uint32)
    y = np.zeros(n, np.float32)
    report = launch(ptx(capability), "lop3_gemv", n // 4, 128, [words, x, y, k])
    expected = (codes.astype(np.float64) - 8) @ x.astype(np.float64)
    assert np.abs(y - expected).max() <= 2e-3 * np.abs(expected).max()
    assert report.instructions["lop3.b32"] == n * 2 * 16  # a warp a row, two steps, 16 pairs
    reads = [a for a in report.accesses if a.space == "global" and not a.write]
    words_read, x_read = (
        {a.sector_efficiency for a in reads if (".v4" in a.opcode) == wide}
        for wide in (True, False)
    )
    assert words_read == {1.0}
    assert x_read == {4 / 32}  # every lane's pairs begin 64 bytes after its neighbour's


@pytest.mark.parametrize("capability", TARGETS)
def test_copies_a_step_ahead_of_the_tensor_cores(capability: int) -> None:
    rng = np.random.default_rng(2)
    k = 16 * 7
    a, b = (rng.standard_normal(shape).astype(np.float16) for shape in ((16, k), (k, 8)))
    d = np.zeros((16, 8), np.float32)
    report = launch(ptx(capability), "mma_pipeline", 1, 32, [a, b, d, k])
    expected = a.astype(np.float64) @ b.astype(np.float64)
    assert np.abs(d - expected).max() <= 1e-6 * np.abs(expected).max()
    assert report.by_class["tensor"] == 7
    matrices = [access for access in report.accesses if access.opcode.startswith("ldmatrix")]
    assert sum(access.requests for access in matrices) == 14
    assert all(access.passes == access.ideal_passes for access in matrices)


def test_a_wait_for_one_copy_too_few_is_found() -> None:
    wrong = ptx(80).replace("cp.async.wait_group 0", "cp.async.wait_group 1")
    a, b = np.ones((16, 32), np.float16), np.ones((32, 8), np.float16)
    with pytest.raises(FaultError) as caught:
        launch(wrong, "mma_pipeline", 1, 32, [a, b, np.zeros((16, 8), np.float32), 32])
    assert caught.value.kind == Fault.ASYNC_COPY
    assert str(caught.value.source).startswith("emulated.cu:")


@pytest.mark.parametrize("capability", [89, 90, 120])
def test_fp8_both_ways(capability: int) -> None:
    """All codes; torch's e4m3 as the reference. NaN keeps no sign."""
    codes = np.arange(256, dtype=np.uint8)
    values, back = np.zeros(256, np.float16), np.zeros(256, np.uint8)
    launch(ptx(capability), "fp8_round_trip", 2, 32, [codes.view(np.uint32), values, back])
    expected = torch.from_numpy(codes).view(torch.float8_e4m3fn).to(torch.float16).numpy()
    np.testing.assert_array_equal(values, expected)
    assert back.tolist() == [code & 0x7F if code & 0x7F == 0x7F else code for code in range(256)]

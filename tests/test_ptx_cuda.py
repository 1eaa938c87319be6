"""CUDA C++ compiled by NVRTC and executed: what nvcc emits differs from what Triton emits."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from bench.static.ptx import Fault, FaultError, launch
from bench.static.ptx.parser import parse
from kernels.nvrtc import compile_cuda

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


def way(x: np.ndarray, i: int) -> int:
    """What `ways` computes for one thread."""
    v, total = int(x[i]), 0
    if v & 1:
        total = sum(j for j in range(min(v, 12)) if j != 7)
    else:
        while v > 3:
            v, total = v // 2 - 1, total - 1
    mirrored = int(x[i // 64 * 64 + 63 - i % 64])
    branches = [
        lambda: total * 3,
        lambda: (total ^ 21) + 2,
        lambda: total + 2,
        lambda: -total,
        lambda: total + mirrored,
    ]
    return branches[int(x[i]) % 5]()


@pytest.mark.parametrize("capability", TARGETS)
def test_control_flow_of_nvcc(capability: int) -> None:
    """Its unconditional branches say .uni within divergent code; returns come before barriers."""
    x = np.random.default_rng(4).integers(0, 40, 192).astype(np.int32)
    y = np.full(192, 77, np.int32)
    launch(ptx(capability), "ways", 3, 64, [x, y, 150])
    assert y.tolist() == [way(x, i) for i in range(150)] + [77] * 42


@pytest.mark.parametrize("capability", TARGETS)
def test_functions_of_the_library(capability: int) -> None:
    x = np.random.default_rng(5).uniform(-8, 8, 64).astype(np.float32)
    y = np.zeros((6, 64), np.float32)
    launch(ptx(capability), "library", 1, 64, [x, y])
    exact = x.astype(np.float64)
    np.testing.assert_allclose(y[0], np.exp(exact), rtol=3e-7)
    np.testing.assert_array_equal(y[1], np.rint(x))
    np.testing.assert_array_equal(y[2], np.sqrt(np.abs(x)))
    np.testing.assert_array_equal(y[3], x / np.float32(3.1))
    np.testing.assert_array_equal(y[4], np.clip(x, 0, 1))
    np.testing.assert_array_equal(y[5], np.arange(64) % 7)


def test_shared_arrays_of_other_kernels_are_not_this_ones() -> None:
    """`ways` has 64 numbers; the kernels before it in the file have arrays too."""
    assert parse(ptx(90), "ways").shared_bytes == 256
    assert parse(ptx(90), "library").shared_bytes == 0


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

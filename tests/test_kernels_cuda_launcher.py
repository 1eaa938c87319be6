"""What reaches CuPy: a stand-in records it. And what is refused before."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from bench.static.cuda_audit import ARCHITECTURES
from kernels import cuda, find_kernels
from kernels.cuda import launch
from kernels.formats import find_format
from kernels.kernel import Kernel
from kernels.nvrtc import Module
from kernels.packing import random_weights

STREAM = 12345


class FakeCupy:
    """As much of CuPy as a launch needs; `calls` are (entry, grid, block, arguments, options, stream)."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.streams: list[int] = []
        self.compiled: list[tuple[str, str, dict[str, int]]] = []
        self.cuda = SimpleNamespace(ExternalStream=self.stream)
        self.RawModule = self.module

    def compile(self, path: Path, arch: str, defines: dict[str, int]) -> Module:
        self.compiled.append((path.name, arch, defines))
        return Module("", b"image")

    def stream(self, pointer: int) -> Any:
        fake = self

        class Stream:
            def __enter__(self) -> None:
                fake.streams.append(pointer)

            def __exit__(self, *error: object) -> None:
                fake.streams.pop()

        return Stream()

    def module(self, path: str) -> Any:
        assert Path(path).read_bytes() == b"image"

        def call(entry: str, grid: Any, block: Any, args: Any, shared_mem: int = 0) -> None:
            self.calls.append(
                (entry, grid, block, args, shared_mem, self.compiled[-1], self.streams[-1])
            )

        return SimpleNamespace(get_function=lambda entry: partial(call, entry))


@pytest.fixture
def cupy(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCupy]:
    fake = FakeCupy()
    monkeypatch.setitem(sys.modules, "cupy", fake)  # type: ignore[arg-type]
    stream = SimpleNamespace(cuda_stream=STREAM)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: stream)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(launch, "compile_module", fake.compile)
    launch.compiled.cache_clear()
    yield fake
    launch.compiled.cache_clear()


BYPASS = {"BYPASS": 1, "BATCH": 3, "WIDE_SCALES": 1, "RESIDENT": 3}


def find(arm: str, variant: str, name: str) -> Kernel:
    return next(k for k in cuda.KERNELS if (k.arm, k.variant, *k.formats) == (arm, variant, name))


def test_a_product_is_launched_as_planned(cupy: FakeCupy) -> None:
    kernel = find("bypass", "mma", "nf4-b64")
    tensors = kernel.pack(random_weights(72, 256, find_format("nf4-b64"), "fp16", 0))
    x, out = torch.zeros(3, 256, dtype=torch.float16), torch.zeros(3, 72, dtype=torch.float16)
    run = kernel.bind(tensors, x, out)
    assert cupy.calls == []
    assert run() is launch.compiled("nf4_pairs.cu", "gemv", tuple(sorted(BYPASS.items())))
    [(entry, grid, block, args, shared, compiled, stream)] = cupy.calls
    assert (entry, grid, block, shared, stream) == ("gemv", (3,), (256,), 35840, STREAM)
    pointers = [t.data_ptr() for t in (tensors["words"], tensors["scales"], x, out)]
    assert [a.dtype for a in args] == [np.uint64] * 4 + [np.int32] * 2
    assert list(args) == [*pointers, 72, 256]
    assert compiled[:2] == ("nf4_pairs.cu", "90a")
    assert compiled[2] == BYPASS


def test_a_board_is_compiled_for_as_the_audit_compiles_for_it() -> None:
    boards = ((8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0))
    assert tuple(launch.architecture(*board) for board in boards) == ARCHITECTURES


def test_dequantize_is_launched_as_planned(cupy: FakeCupy) -> None:
    kernel = find("dequantize", "default", "int8-ch")
    tensors = kernel.pack(random_weights(20, 2048, find_format("int8-ch"), "fp16", 0))
    out = torch.zeros(20, 2048, dtype=torch.float16)
    kernel.bind(tensors, torch.zeros(1, 2048, dtype=torch.float16), out)()
    [(entry, grid, block, args, shared, compiled, _)] = cupy.calls
    assert (entry, grid, block, shared) == ("int8", (3, 2), (128,), 0)
    assert list(args)[2:] == [out.data_ptr(), 20, 2048]
    assert compiled[2]["GROUP"] == 0


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"x": torch.zeros(9, 256, dtype=torch.float16)}, "serves batches 1 to 8, but x has 9"),
        ({"x": torch.zeros(1, 192, dtype=torch.float16)}, "128 columns at a time, but k is 192"),
        ({"x": torch.zeros(1, 256)}, "should be fp16 or bf16"),
        (
            {"x": torch.zeros(1, 256, dtype=torch.bfloat16)},
            "x should be a contiguous torch.float16",
        ),
        ({"x": torch.zeros(1, 512, dtype=torch.float16)}, "words should hold 4096 numbers"),
        ({"out": torch.zeros(1, 64)}, "out should be a contiguous torch.float16"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(
    cupy: FakeCupy, change: dict[str, torch.Tensor], says: str
) -> None:
    kernel = find("fused", "mma", "int4-g128")
    tensors = kernel.pack(random_weights(64, 256, find_format("int4-g128"), "fp16", 0))
    x = change.get("x", torch.zeros(1, 256, dtype=torch.float16))
    out = change.get("out", torch.zeros(len(x), 64, dtype=torch.float16))
    with pytest.raises(ValueError, match=says):
        kernel.bind(tensors, x, out)


def test_without_cupy_they_are_left_out_and_the_reason_is_known(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    int4 = find_format("int4-g128")
    monkeypatch.setattr(launch.importlib.util, "find_spec", lambda name: None)
    assert cuda.missing() == "CuPy is not installed (pip install -e '.[cuda]')"
    assert {k.implementation for k in find_kernels("cuda", int4, "fp16", 1)} == {"triton", "torch"}
    monkeypatch.setattr(launch.importlib.util, "find_spec", lambda name: object())
    assert cuda.missing() is None
    rows = [
        (k.arm, k.variant)
        for k in find_kernels("cuda", int4, "fp16", 1)
        if k.implementation == "cuda"
    ]
    assert ("fused", "mma") in rows
    assert ("bypass", "simt") in rows
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    assert cuda.missing() == "they need compute capability 8.0"

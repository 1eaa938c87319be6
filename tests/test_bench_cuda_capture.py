"""How launches are captured into a graph, without a GPU: nothing may happen in there for the first time."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch

from bench.measure.devices import cuda


def test_every_launch_has_run_before_it_is_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    """A launch on another copy of the weights may be another kernel, and a capture allows no loading."""
    happened: list[str] = []

    @contextlib.contextmanager
    def noted(what: str) -> Iterator[None]:
        happened.append(what)
        yield
        happened.append(f"/{what}")

    stream = SimpleNamespace(wait_stream=lambda other: None)
    monkeypatch.setattr(torch.cuda, "Stream", lambda: stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: stream)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: "graph")
    monkeypatch.setattr(torch.cuda, "stream", lambda side: noted("side"))
    monkeypatch.setattr(torch.cuda, "graph", lambda graph: noted(graph))
    launches = [lambda i=i: happened.append(f"copy {i}") for i in range(3)]
    assert cuda._capture(launches) == "graph"
    copies = ["copy 0", "copy 1", "copy 2"]
    assert happened == ["side", *copies, "/side", "graph", *copies, "/graph"]


@pytest.mark.parametrize(
    ("kernel", "size"),
    [
        (SimpleNamespace(n_spills=4, n_regs=255), 16),  # Triton's, in words
        (SimpleNamespace(n_spills=0), 0),
        (SimpleNamespace(local_size_bytes=8, num_regs=255), 8),  # CuPy's
        (None, None),  # a library's
    ],
)
def test_local_memory_is_what_the_launched_kernel_says(
    kernel: object, size: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = cuda.CudaDevice.__new__(cuda.CudaDevice)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(device, "_bound", lambda prepared: [lambda: kernel])
    assert device.local_bytes(None) == size  # type: ignore[arg-type]

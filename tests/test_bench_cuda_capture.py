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

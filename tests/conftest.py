"""Without an NVIDIA GPU Triton kernels are interpreted and `gpu` tests skip."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest


def has_gpu() -> bool:
    """Whether the driver's own tool lists a GPU. Asking it loads nothing into this process."""
    tool = shutil.which("nvidia-smi")
    return tool is not None and subprocess.run([tool, "-L"], capture_output=True).returncode == 0


HAS_GPU = has_gpu()
if not HAS_GPU:
    os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is imported


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "gpu" in item.keywords and not HAS_GPU:
            item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU and its driver"))


@pytest.fixture(autouse=True)
def own_locks(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for the locks of devices, for others may test on this machine too."""
    folder = tmp_path_factory.mktemp("locks")
    monkeypatch.setenv("DEQUANT_BENCH_LOCKS", str(folder))
    return folder


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What proofs counted, and how many cells of formats, kernels, batches and targets this run executed."""
    from tests import ptx_summary

    ended = [r for result in ("passed", "failed") for r in terminalreporter.getreports(result)]
    counted = [
        f"{report.nodeid.rpartition('::')[2]}: {value}"
        for report in ended
        for name, value in report.user_properties
        if name == "counted"
    ]
    if counted:
        terminalreporter.section("what the proofs counted")
        for line in counted:
            terminalreporter.line(line)
    if table := ptx_summary.lines(report.user_properties for report in ended):
        terminalreporter.section("cells that were executed")
        for line in table:
            terminalreporter.line(line)

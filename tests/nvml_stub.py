"""Builds the stub NVML of nvml_stub.c and writes its scripts.

    folder = build(tmp_path)
    env = environment(folder, tmp_path / "boards", [*board(), "power 0 300"])
    subprocess.run([sys.executable, "-m", "bench.power"], env=env)

The binding loads libnvidia-ml.so.1 by name, so the stub is found through LD_LIBRARY_PATH, which the loader
reads once: a process of its own. In this process `loaded` puts the stub where the binding keeps the library.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from ctypes import CDLL
from pathlib import Path

import pynvml

SOURCE = Path(__file__).with_name("nvml_stub.c")
FLAGS = ("-std=c11", "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC")
HIDDEN = ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "NVML_STUB")

FIRST = "GPU-11111111-2222-3333-4444-555555555555"
SECOND = "GPU-99999999-8888-7777-6666-555555555555"
FIRST_PCI, SECOND_PCI = "00000000:17:00.0", "00000000:CA:00.0"

# NVML's return codes, nvml.h 13.0
NOT_SUPPORTED, NO_PERMISSION, DRIVER_NOT_LOADED, FUNCTION_NOT_FOUND = 3, 4, 9, 13
UNINITIALIZED, GPU_IS_LOST, VERSION_MISMATCH = 1, 15, 18


def build(folder: Path) -> Path:
    """Compiles the stub into a folder, which is returned.

    Raises:
        RuntimeError: there is no C compiler.
    """
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise RuntimeError(
            "the tests of the power sensors compile a stub of NVML and need a C compiler; "
            "install one (apt-get install gcc libc6-dev)."
        )
    target = folder / "libnvidia-ml.so.1"
    command = [compiler, *FLAGS, "-o", str(target), str(SOURCE), "-lm"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"the stub of NVML does not compile:\n{done.stderr}")
    return folder


def board(
    uuid: str = FIRST, pci: str = FIRST_PCI, name: str = "NVIDIA H100 PCIe", watts: float = 300.0
) -> list[str]:
    """The script of a healthy board that draws constant power."""
    return [f"board {uuid} {pci} {name}", "capability 9 0", f"power 0 {watts}", "ripple 1.5"]


def environment(folder: Path | None, script: Path, lines: Sequence[str]) -> dict[str, str]:
    """Variables for a process that finds the stub; no folder: it finds a library that cannot be loaded.

    A driver that is really there is hidden in both cases.
    """
    if folder is None:
        folder = script.parent / "no-library"
        folder.mkdir(exist_ok=True)
        (folder / "libnvidia-ml.so.1").touch()
    script.write_text("\n".join(lines) + "\n", encoding="utf-8")
    env = {name: value for name, value in os.environ.items() if name not in HIDDEN}
    env["NVML_STUB"] = str(script)
    env["LD_LIBRARY_PATH"] = str(folder)
    return env


@contextmanager
def loaded(folder: Path) -> Iterator[None]:
    """The binding with the stub instead of the driver's library, in this process.

    The stub reads the script that $NVML_STUB names whenever it is initialized.
    """
    before = pynvml.nvmlLib
    pynvml.nvmlLib = CDLL(str(folder / "libnvidia-ml.so.1"))
    pynvml._nvmlGetFunctionPointer_cache.clear()
    try:
        yield
    finally:
        pynvml.nvmlLib = before
        pynvml._nvmlGetFunctionPointer_cache.clear()

"""Compile CUDA C++ to PTX and machine code for a GPU that is not here.

NVRTC, NVIDIA's run-time compiler, is a library in a pip package and needs no driver. It is called
through cuda.bindings, because the friendlier cuda.core asks for the driver before it hands out PTX.

    ptx = compile_cuda(Path("gemv.cu"), capability=90, defines={"N": 32})
    entry = find_entry(ptx, "gemv")
    compile_module(Path("gemv.cu"), "90a").cubin
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

INSTALL = "install it with `pip install -e '.[cpp]'`"
ENTRY = re.compile(r"^\s*(?:\.visible\s+|\.weak\s+)?\.entry\s+([\w$]+)", re.MULTILINE)


class CudaError(Exception):
    """CUDA C++ cannot be compiled here, or this source cannot; one sentence says which."""


@dataclass(frozen=True)
class Module:
    """A compiled CUDA C++ file: its PTX, with line information, and its machine code (an ELF image)."""

    ptx: str
    cubin: bytes


def compile_cuda(path: Path, capability: int, defines: Mapping[str, object] | None = None) -> str:
    """The PTX of a CUDA C++ file for a compute capability times ten; otherwise as `compile_module`."""
    return compile_module(path, str(capability), defines).ptx


def compile_module(path: Path, arch: str, defines: Mapping[str, object] | None = None) -> Module:
    """A CUDA C++ file compiled for one architecture.

    Args:
        path: the .cu file. Files beside it may be included.
        arch: "90" or "90a" for sm_90 or sm_90a.
        defines: macros, as `-D NAME=value` would set them.

    Raises:
        CudaError: NVRTC is not installed, or refuses the source or the target.
        OSError: the file cannot be read.
        UnicodeDecodeError: the file is not text.
    """
    nvrtc, include = _nvrtc()
    options = [f"--gpu-architecture=sm_{arch}", "--std=c++17", "--generate-line-info"]
    options += [f"-I{include}", f"-I{path.parent}"]
    options += [f"-D{name}={value}" for name, value in (defines or {}).items()]
    encoded = [option.encode() for option in options]
    source = path.read_text(encoding="utf-8").encode()
    program = _checked(nvrtc.nvrtcCreateProgram(source, path.name.encode(), 0, [], []))
    try:
        status, *_ = nvrtc.nvrtcCompileProgram(program, len(encoded), encoded)
        if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            log = _data(nvrtc.nvrtcGetProgramLogSize, nvrtc.nvrtcGetProgramLog, program)
            why = first_error(log.rstrip(b"\0 ").decode()).rstrip(".")
            raise CudaError(f"{path.name} does not compile for sm_{arch}: {why}.")
        return Module(
            _data(nvrtc.nvrtcGetPTXSize, nvrtc.nvrtcGetPTX, program).rstrip(b"\0 ").decode(),
            _data(nvrtc.nvrtcGetCUBINSize, nvrtc.nvrtcGetCUBIN, program),
        )
    finally:
        nvrtc.nvrtcDestroyProgram(program)


def entries(ptx: str) -> tuple[str, ...]:
    """Names of the kernels in a PTX text, in their order."""
    return tuple(ENTRY.findall(ptx))


def find_entry(ptx: str, name: str) -> str:
    """The entry point of the kernel with this name in the source.

    Raises:
        CudaError: there is none; the sentence lists those that there are.
    """
    found = entries(ptx)
    if name in found:
        return name
    if any(re.match(rf"_Z{len(name)}{re.escape(name)}(?![\w$]*::)", entry) for entry in found):
        raise CudaError(
            f'kernel {name} has a C++ name in the compiled code; declare it extern "C".'
        )
    listing = ", ".join(found) if found else "none"
    raise CudaError(f"there is no kernel named {name}; the file has: {listing}.")


def first_error(log: str) -> str:
    """The first complaint of a compiler's log, "gemv.cu(12): identifier "y" is undefined"."""
    lines = [line.strip() for line in log.splitlines() if "error" in line]
    return re.sub(r"(: )?(catastrophic )?error: ", ": ", lines[0]) if lines else log.strip()


def _nvrtc() -> tuple[Any, str]:
    """The library's binding and the folder of CUDA's headers."""
    try:
        from cuda import pathfinder
        from cuda.bindings import nvrtc
    except ImportError:
        raise CudaError(f"CUDA C++ needs NVRTC, which is not installed; {INSTALL}.") from None
    try:
        _checked(nvrtc.nvrtcVersion())
        include = pathfinder.find_nvidia_header_directory("cudart")
    except (pathfinder.DynamicLibNotFoundError, RuntimeError):
        raise CudaError(f"CUDA C++ needs NVRTC, whose library is missing; {INSTALL}.") from None
    if include is None:
        raise CudaError(f"CUDA C++ needs CUDA's headers, which are not installed; {INSTALL}.")
    return nvrtc, include


def _checked(answer: tuple[Any, ...]) -> Any:
    """What a call returned beside its status."""
    status, *values = answer
    if status.value != 0:
        raise CudaError(f"NVRTC failed: {status.name}.")
    return values[0] if values else None


def _data(size: Any, get: Any, program: Any) -> bytes:
    """What NVRTC writes into a buffer of its own stated size."""
    length: int = _checked(size(program))
    buffer = b" " * length
    _checked(get(program, buffer))
    return buffer

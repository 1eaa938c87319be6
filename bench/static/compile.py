"""Compile a Triton kernel for a GPU that is not here, and read what the compiler made of it.

No driver is needed: Triton's wheel brings its own assembler and disassembler. Two traps decide the
shape of this module. An unknown compute capability makes LLVM abort the whole process, so targets
are checked against a list first; and a process whose kernels were imported under TRITON_INTERPRET=1
cannot compile, so callers run this in a process of its own.

    compiled = compile_kernel(kernel, {"x_ptr": "*fp16"}, {"K": 4096}, capability=90, num_warps=4)
    compiled.registers, compiled.stack_bytes, sass.hot_code(compiled.sass)
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.static.sass import SPILLS, Instruction, count, disassemble

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

CAPABILITIES = (75, 80, 86, 87, 89, 90, 100, 103, 110, 120, 121)
POINTER_ALIGNMENT_BYTES = 16
WARP_LANES = 32


@dataclass(frozen=True)
class CompiledKernel:
    """One kernel for one target.

    Attributes:
        capability: compute capability times ten: 90 for sm_90.
        ptx: the virtual assembly.
        cubin: the ELF image.
        sass: the machine code.
        registers: per thread.
        stack_bytes: per thread; anything above 0 is spilled registers or an array in local memory.
        shared_bytes: per program, static and dynamic together.
        num_warps: warps per program.
    """

    capability: int
    ptx: str
    cubin: bytes
    sass: tuple[Instruction, ...]
    registers: int
    stack_bytes: int
    shared_bytes: int
    num_warps: int

    @property
    def spills(self) -> bool:
        """Whether any value lives in local memory."""
        return self.stack_bytes > 0 or count(self.sass, SPILLS) > 0


def tool(name: str) -> Path:
    """A CUDA binary utility from Triton's wheel: "nvdisasm", "cuobjdump" or "ptxas".

    Raises:
        FileNotFoundError: the wheel has no such file.
    """
    import triton

    path = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    if not path.exists():
        raise FileNotFoundError(
            f"Triton {triton.__version__} should bring {name} at {path}, but does not; "
            f"install a Triton wheel built with the NVIDIA backend."
        )
    return path


def build_kernel(
    fn: Any,
    signature: Mapping[str, str | None],
    constexprs: Mapping[str, object],
    capability: int,
    aligned: Collection[str] = (),
    **options: object,
) -> Any:
    """Compile one Triton function: Triton's own compiled kernel, with `.asm` and `.metadata`.

    Args:
        fn: the function decorated with `triton.jit`.
        signature: type of every run-time argument: "*fp16" for a pointer, "i32" for a number, None
            for an absent one. Pointers are taken as aligned to 16 bytes, which launchers check.
        constexprs: value of every compile-time argument.
        capability: compute capability times ten.
        aligned: integers that are multiples of 16, which Triton's launcher tells the compiler.
        **options: num_warps, num_stages and other options of Triton's NVIDIA backend.

    Raises:
        ValueError: the capability is unknown, which would otherwise abort the process.
        TypeError: `fn` was decorated under TRITON_INTERPRET=1 and cannot be compiled.
    """
    if capability not in CAPABILITIES:
        raise ValueError(
            f"compute capability {capability} is not one Triton can compile for; "
            f"choose from {', '.join(map(str, CAPABILITIES))}."
        )
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from triton.runtime.jit import JITFunction

    if not isinstance(fn, JITFunction):
        raise TypeError(
            f"expected a function decorated with triton.jit, found {type(fn).__name__}; "
            f"import the kernel in a process where TRITON_INTERPRET is not set."
        )
    names = fn.arg_names
    types = {name: kind for name, kind in signature.items() if kind is not None}
    constants = {name: None for name in signature if name not in types} | dict(constexprs)
    multiples = [name for name, kind in types.items() if kind[0] == "*" or name in aligned]
    source = ASTSource(
        fn=fn,
        signature={name: types.get(name, "constexpr") for name in names},
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={
            (names.index(name),): [["tt.divisibility", POINTER_ALIGNMENT_BYTES]]
            for name in multiples
        },
    )
    target = GPUTarget("cuda", capability, WARP_LANES)
    return triton.compile(source, target=target, options=dict(options))


def compile_kernel(
    fn: Any,
    signature: Mapping[str, str | None],
    constexprs: Mapping[str, object],
    capability: int,
    **options: object,
) -> CompiledKernel:
    """Compile one Triton function and read its machine code.

    Arguments and errors are those of `build_kernel`.
    """
    return read_kernel(
        build_kernel(fn, signature, constexprs, capability, (), **options), capability
    )


def read_kernel(binary: Any, capability: int) -> CompiledKernel:
    """The machine code of what `build_kernel` returned, and what it needs to run."""
    cubin = binary.asm["cubin"]
    usage = resource_usage(cubin)
    sass = disassemble(cubin, tool("nvdisasm"))[binary.metadata.name]
    return CompiledKernel(
        capability=capability,
        ptx=binary.asm["ptx"],
        cubin=cubin,
        sass=sass,
        registers=usage["REG"],
        stack_bytes=usage["STACK"],
        shared_bytes=usage["SHARED"] + binary.metadata.shared,
        num_warps=binary.metadata.num_warps,
    )


def resource_usage(cubin: bytes) -> dict[str, int]:
    """What `cuobjdump --dump-resource-usage` reports: REG, STACK, SHARED (static only), LOCAL."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        output = subprocess.run(
            [tool("cuobjdump"), "--dump-resource-usage", file.name],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    return {key: int(value) for key, value in re.findall(r"(REG|STACK|SHARED|LOCAL):(\d+)", output)}

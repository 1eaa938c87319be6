"""Compile a kernel for a problem and a target, into what the emulator launches.

    built = build_triton(fn, "gemv", problem, capability=90)
    built = build_cuda(Path("gemv.cu"), "gemv", problem, capability=90)

Triton compiles in a forked process: some kernels make LLVM abort, and that should cost a sentence, not
the command.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import multiprocessing
import re
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bench.static.compile import build_kernel
from bench.static.ptx.problem import Bfloat16, Problem
from kernels.nvrtc import CudaError, compile_cuda, find_entry

POINTERS = {
    "float16": "*fp16", "float32": "*fp32", "float64": "*fp64", "bool": "*i1",
    "int8": "*i8", "int16": "*i16", "int32": "*i32", "int64": "*i64",
    "uint8": "*u8", "uint16": "*u16", "uint32": "*u32", "uint64": "*u64",
}  # fmt: skip
INT32 = np.iinfo(np.int32)
LANES = 32
ALIGNMENT = 16  # of integers that Triton compiles for


class SourceError(Exception):
    """A kernel file that cannot be used; one sentence says why."""


@dataclass(frozen=True)
class Built:
    """One kernel for one target, ready to launch.

    Attributes:
        ptx: the compiled text.
        entry: its entry point.
        block: threads per block.
        shared_bytes: dynamic shared memory.
        names: the run-time arguments, in the order of the entry point's parameters.
        scratch: how many null pointers Triton wants after them.
    """

    ptx: str
    entry: str
    block: int | tuple[int, ...]
    shared_bytes: int
    names: tuple[str, ...]
    scratch: int


def build_cuda(path: Path, name: str, problem: Problem, capability: int) -> Built:
    """A CUDA C++ kernel for one target.

    Raises:
        SourceError: it does not compile, or the problem does not fit its signature.
    """
    if problem.block is None:
        raise SourceError("a CUDA C++ kernel needs Problem(block=...), its threads per block.")
    try:
        ptx = compile_cuda(path, capability, problem.constexprs)
        entry = find_entry(ptx, name)
    except (CudaError, OSError, UnicodeDecodeError) as error:
        raise SourceError(str(error)) from None
    names = tuple(problem.args)
    wanted = parameters(ptx, entry)
    if wanted != len(names):
        raise SourceError(f"{name} takes {wanted} arguments, but its Problem has {len(names)}.")
    return Built(ptx, entry, problem.block, problem.shared_bytes, names, scratch=0)


def build_triton(fn: Any, name: str, problem: Problem, capability: int) -> Built:
    """A Triton kernel for one target; raises like `build_cuda`."""
    signature, constexprs, aligned, options = triton_arguments(fn, problem)
    ptx, shared_bytes, num_warps = _apart(
        partial(_compile_triton, fn, signature, constexprs, capability, aligned, options),
        f"{name} does not compile for sm_{capability}",
    )
    entry = find_entry(ptx, name)
    names = tuple(n for n, kind in signature.items() if kind is not None)
    scratch = parameters(ptx, entry) - len(names)
    return Built(ptx, entry, LANES * num_warps, shared_bytes, names, scratch)


def triton_arguments(
    fn: Any, problem: Problem
) -> tuple[dict[str, str | None], dict[str, object], list[str], dict[str, object]]:
    """What Triton's launcher would compile a kernel with: see `compile.build_kernel`.

    Returns:
        signature, constexprs, the integers that are multiples of 16, options.

    Raises:
        SourceError: the problem does not fit the kernel's signature.
    """
    signature, constexprs = match_signature(fn, problem)
    ones, aligned = specialized(fn, problem)
    signature = {n: None if n in ones else kind for n, kind in signature.items()}
    constexprs |= dict.fromkeys(ones, 1)
    options: dict[str, object] = {
        "num_warps": problem.num_warps,
        "num_stages": problem.num_stages,
        "enable_fp_fusion": True,  # as Triton 3.6 to 3.9 do unasked
    }
    return signature, constexprs, aligned, options


def match_signature(fn: Any, problem: Problem) -> tuple[dict[str, str | None], dict[str, object]]:
    """Types of the run-time arguments and values of the compile-time ones, in the kernel's order.

    Raises:
        SourceError: a name is missing, unknown, or given as the other sort.
    """
    compile_time = {p.name: p.default for p in fn.params if p.is_constexpr}
    defaults = {n: v for n, v in compile_time.items() if v is not inspect.Parameter.empty}
    constexprs = defaults | dict(problem.constexprs)
    for what, wanted, given in (
        ("args", [n for n in fn.arg_names if n not in compile_time], problem.args),
        ("constexprs", list(compile_time), constexprs),
    ):
        missing = [n for n in wanted if n not in given]
        unknown = [n for n in given if n not in wanted]
        if missing or unknown:
            lacks = f"lacks {', '.join(missing)}" if missing else ""
            extra = f"has {', '.join(unknown)}, which the kernel does not take" if unknown else ""
            raise SourceError(
                f"`{what}` of the Problem {' and '.join(filter(None, (lacks, extra)))}."
            )
    signature = {n: triton_type(n, problem.args[n]) for n in fn.arg_names if n in problem.args}
    return signature, constexprs


def specialized(fn: Any, problem: Problem) -> tuple[list[str], list[str]]:
    """Integer arguments that Triton's launcher compiles for: those that are 1, and multiples of 16.

    What is checked should be what would run. `do_not_specialize` is respected.
    """
    ones, aligned = [], []
    for parameter in fn.params:
        value = problem.args.get(parameter.name)
        if not isinstance(value, int | np.integer) or isinstance(value, bool):
            continue
        if parameter.is_constexpr or parameter.do_not_specialize:
            continue
        if value == 1:
            ones.append(parameter.name)
        elif value % ALIGNMENT == 0 and not parameter.do_not_specialize_on_alignment:
            aligned.append(parameter.name)
    return ones, aligned


def triton_type(name: str, value: object) -> str | None:
    """What Triton calls the type of an argument; None for an absent one.

    Raises:
        SourceError: Triton has no such type.
    """
    if value is None:
        return None
    if isinstance(value, Bfloat16):
        return "*bf16"
    if isinstance(value, np.ndarray):
        if value.dtype.name not in POINTERS:
            raise SourceError(f"argument {name} has dtype {value.dtype}, which Triton lacks.")
        return POINTERS[value.dtype.name]
    if isinstance(value, float | np.floating):
        return "fp32"
    if isinstance(value, bool):
        return "i1"
    assert isinstance(value, int | np.integer)
    return "i32" if INT32.min <= value <= INT32.max else "i64"


def parameters(ptx: str, entry: str) -> int:
    """How many parameters an entry point has."""
    found = re.search(rf"\.entry\s+{re.escape(entry)}\s*\(([^)]*)\)", ptx)
    return found[1].count(".param") if found else 0


def _compile_triton(
    fn: Any, signature: Mapping[str, str | None], constexprs: Mapping[str, object],
    capability: int, aligned: list[str], options: Mapping[str, object],
) -> tuple[str, int, int]:  # fmt: skip
    """PTX, bytes of dynamic shared memory, and warps per program."""
    with contextlib.redirect_stdout(io.StringIO()):  # Triton prints the whole PTX on some errors
        binary = build_kernel(fn, signature, constexprs, capability, aligned, **options)
    return binary.asm["ptx"], binary.metadata.shared, binary.metadata.num_warps


def _apart(work: Callable[[], tuple[str, int, int]], failure: str) -> tuple[str, int, int]:
    """What `work` returns in a forked process, which an abort may end.

    Raises:
        SourceError: `work` raised or its process died; the sentence begins with `failure`.
    """
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)

    def child() -> None:
        try:
            sender.send(work())
        except Exception as error:
            sender.send(complaint(error))
        except KeyboardInterrupt:
            pass  # the parent has it too, and says so

    process = context.Process(target=child)
    process.start()
    sender.close()
    try:
        answer = receiver.recv()
    except EOFError:
        process.join()
        code = process.exitcode or 0
        end = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        raise SourceError(f"{failure}: the compiler itself ended with {end}.") from None
    process.join()
    if isinstance(answer, str):
        raise SourceError(f"{failure}: {answer}.")
    ptx, shared_bytes, num_warps = answer
    return ptx, shared_bytes, num_warps


def complaint(error: BaseException) -> str:
    """What Triton's compiler objects to, in one line, with the source line if it names one."""
    while isinstance(cause := error.__cause__, type(error)) and hasattr(cause, "node"):
        error = cause  # a helper called by the kernel
    stated = getattr(error, "error_message", None)
    text = str(stated) if stated else f"{type(error).__name__}: {error}"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    chosen = next((line for line in lines if re.search(r"\berror\s*:", line)), lines[0])
    node, source = getattr(error, "node", None), getattr(error, "src", None)
    at = ""
    if node is not None and source:
        at = f", in `{source.splitlines()[node.lineno - 1].strip()}`"
    chosen = re.sub(r"^(\S+) \S+, line \d+; error\s*:", r"\1:", chosen)  # a temporary file's line
    return f"{chosen.rstrip('.: ')}{at}"

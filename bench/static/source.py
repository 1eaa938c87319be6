"""Kernel files as their authors write them: load one, find its problem, build it.

    kernel = open_kernel(Path("gemv.py"), "gemv")
    built = kernel.build(kernel.problem(Draw("random")), capability=90)

Everything that can be wrong with somebody else's file is a SourceError of one sentence.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from bench.static.build import Built, SourceError, build_cuda, build_triton
from bench.static.ptx.problem import Draw, Problem


@dataclass(frozen=True)
class Kernel:
    """A kernel of a file and the function that states its problem.

    Attributes:
        path: the file, .py or .cu.
        name: of the kernel in it.
        fn: the Triton function; None for CUDA C++.
        problem_path: the Python file with `problem`.
        make_problem: that function.
    """

    path: Path
    name: str
    fn: Any
    problem_path: Path
    make_problem: Callable[[Draw], object]

    def problem(self, draw: Draw) -> Problem:
        """What the author's function returns.

        Raises:
            SourceError: it raised, or returned something else.
        """
        try:
            with contextlib.redirect_stdout(sys.stderr):
                made = self.make_problem(draw)
        except (Exception, SystemExit) as error:
            what = describe(error, self.problem_path)
            raise SourceError(f"problem() failed on {draw.kind} input: {what}.") from None
        if not isinstance(made, Problem):
            raise SourceError(
                f"problem() in {self.problem_path.name} should return a Problem, "
                f"not {type(made).__name__}."
            )
        return made

    def build(self, problem: Problem, capability: int) -> Built:
        """The kernel compiled for one target.

        Raises:
            SourceError: it does not compile, or the problem does not fit its signature.
        """
        if self.fn is None:
            return build_cuda(self.path, self.name, problem, capability)
        return build_triton(self.fn, self.name, problem, capability)


def open_kernel(path: Path, name: str, problem: Path | None = None) -> Kernel:
    """A kernel by its name.

    Args:
        path: a .py file with Triton kernels, or a .cu file.
        name: of the kernel.
        problem: the Python file with `problem`; by default `path`, with the ending .py.

    Raises:
        SourceError: a file is missing or does not import, or what it should hold is not there.
    """
    if path.suffix not in (".py", ".cu"):
        raise SourceError(f"{path} should be a Triton file (.py) or a CUDA C++ file (.cu).")
    _check_file(path, "kernel file")
    problem_path = problem or path.with_suffix(".py")
    _check_file(problem_path, "file with problem()")
    module = load(problem_path)
    make_problem = getattr(module, "problem", None)
    if not callable(make_problem):
        raise SourceError(f"{problem_path.name} has no function problem(draw).")
    fn = None
    if path.suffix == ".py":
        fn = find_triton(module if path == problem_path else load(path), name, path)
    return Kernel(path, name, fn, problem_path, make_problem)


def load(path: Path) -> ModuleType:
    """A Python file as a module. Its folder becomes importable, after everything else.

    Raises:
        SourceError: it cannot be imported.
    """
    name = f"emulated_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path.resolve())
    if spec is None or spec.loader is None:
        raise SourceError(f"{path} is not a Python file.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    if (folder := str(path.parent.resolve())) not in sys.path:
        sys.path.append(folder)
    try:
        with _compiling(), contextlib.redirect_stdout(sys.stderr):
            spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise SourceError(f"{path.name} cannot be imported: {describe(error, path)}.") from None
    return module


def find_triton(module: ModuleType, name: str, path: Path) -> Any:
    """The function behind a Triton kernel, without the autotuner or heuristics around it.

    Raises:
        SourceError: the file has no such kernel.
    """
    from triton.runtime.jit import JITFunction

    def bare(value: Any) -> Any:
        while not isinstance(value, JITFunction) and hasattr(value, "fn"):
            value = value.fn
        return value

    own = {n: bare(value) for n, value in vars(module).items()}
    kernels = {n: fn for n, fn in own.items() if isinstance(fn, JITFunction)}
    if name in kernels:
        return kernels[name]
    if name in own:
        raise SourceError(f"{name} in {path.name} is not decorated with triton.jit.")
    listing = ", ".join(kernels) if kernels else "none"
    raise SourceError(f"{path.name} has no kernel named {name}; it has: {listing}.")


def describe(error: BaseException, path: Path) -> str:
    """An exception by its name, message and line in the author's file."""
    message = " ".join(str(error).split()).rstrip(".")
    text = f"{type(error).__name__}: {message}" if message else type(error).__name__
    if isinstance(error, SyntaxError):
        return text
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if Path(frame.filename) == path.resolve()]
    return f"{text} ({path.name} line {lines[-1]})" if lines else text


def _check_file(path: Path, what: str) -> None:
    if not path.is_file():
        raise SourceError(f"there is no {what} {path}.")


@contextlib.contextmanager
def _compiling() -> Iterator[None]:
    """Whatever is decorated meanwhile can be compiled, not only interpreted."""
    interpret = os.environ.pop("TRITON_INTERPRET", None)
    try:
        yield
    finally:
        if interpret is not None:
            os.environ["TRITON_INTERPRET"] = interpret

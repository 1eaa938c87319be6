"""Kernels that somebody else wrote: found by name, and taken into the same run as ours.

    my_module:my_kernel     a `Kernel` record in an importable module
    my_kernel               the same, registered by an installed package:

        [project.entry-points."dequant_bench.kernels"]
        my_kernel = "my_module:my_kernel"

bench/examples/ has one in PyTorch and one in Triton. What `pack` may use and what an arm has to write is said
in kernels/packing.py: its `reference` is what a kernel is compared with before it is timed, unless the record
states another one.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Sequence
from importlib.metadata import entry_points
from typing import get_args

from kernels.kernel import Arm, Kernel

OURS = ("triton", "cuda", "numba", "torch")  # implementations that are taken
GROUP = "dequant_bench.kernels"
NAME = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*|[\w-]+")
LONGEST_WORD = 64  # of implementation and variant, which name the rows and stand in every sample


class UserKernelError(ValueError):
    """There is no such kernel, or it is not one for this run; one sentence says why."""


class LostOnImportError(RuntimeError):
    """A module raised while it was imported, or left Python: what it holds is not known.

    Attributes:
        cause: what it raised.
    """

    def __init__(self, cause: BaseException) -> None:
        super().__init__(repr(cause))
        self.cause = cause


def check_name(name: str) -> str:
    """The name, if it is one; nothing is imported.

    Raises:
        UserKernelError: it has another form, or not exactly one installed package registers it.
    """
    if not NAME.fullmatch(name):
        raise UserKernelError(f"--kernel takes a name such as my_module:my_kernel, not {name!r}.")
    if ":" in name:
        return name
    found = sorted({point.value for point in entry_points(group=GROUP, name=name)})
    if len(found) > 1:
        raise UserKernelError(
            f"several installed packages register a kernel {name!r}; name one of them: {', '.join(found)}."
        )
    if not found:
        known = ", ".join(sorted({point.name for point in entry_points(group=GROUP)})) or "none"
        raise UserKernelError(
            f"no installed package registers a kernel {name!r} under {GROUP}; there are: {known}. "
            f"A kernel in a file of yours is named my_module:my_kernel."
        )
    return name


def load_kernels(
    names: Sequence[str], device: str, announce: Callable[[str], None] = lambda name: None
) -> list[Kernel]:
    """The records of these names.

    Args:
        names: checked ones.
        device: "cpu" or "cuda", that they have to be for.
        announce: told a name before its module is imported, which may be the last that is heard of it.

    Raises:
        UserKernelError: there is no such module, or what it holds is no kernel for this run.
        LostOnImportError: the one announced last raised when it was imported.
    """
    found: list[Kernel] = []
    for name in names:
        announce(name)
        kernel = load(name)
        if (fault := fault_of(kernel)) is not None:
            raise UserKernelError(f"{name} is no kernel that can be run: {fault}.")
        if kernel.device != device:
            raise UserKernelError(
                f"{name} is a kernel for {kernel.device!r}, but this run is on {device!r}."
            )
        if kernel.implementation in OURS or _identity(kernel) in map(_identity, found):
            raise UserKernelError(
                f"{name} calls itself {kernel.arm} ({kernel.implementation}, {kernel.variant}), as "
                f"another kernel of this run may; give it an implementation of its own."
            )
        found.append(kernel)
    return found


def _identity(kernel: Kernel) -> tuple[str, str, str]:
    """What tells two kernels of a run apart."""
    return kernel.arm, kernel.implementation, kernel.variant


def load(name: str) -> Kernel:
    """One record.

    Raises:
        UserKernelError: there is no such module or attribute, or it is something else.
        LostOnImportError: whatever else its import raises.
    """
    module, _, attribute = name.partition(":")
    try:
        if attribute:
            kernel = getattr(importlib.import_module(module), attribute)
        else:
            kernel = next(iter(entry_points(group=GROUP, name=name))).load()
    except BaseException as error:  # whatever somebody's module may raise, SystemExit too
        if not _is_absent(error, module):
            raise LostOnImportError(error) from None
        raise UserKernelError(f"{name} cannot be imported: {error}.") from None
    if not isinstance(kernel, Kernel):
        raise UserKernelError(
            f"{name} should be a kernels.kernel.Kernel, but it is a {type(kernel).__name__}."
        )
    return kernel


def _is_absent(error: BaseException, module: str) -> bool:
    """Whether a module or its attribute is not there; not what that module looks for in vain."""
    if isinstance(error, ModuleNotFoundError):
        return f"{module}.".startswith(f"{error.name}.")
    return isinstance(error, AttributeError) and getattr(error.obj, "__name__", None) == module


def fault_of(kernel: Kernel) -> str | None:
    """What of a record is not as kernels/kernel.py says, as a clause; None where all is.

    Only what is used before the kernel has a row of its own, which could say it.
    """
    if kernel.arm not in get_args(Arm):
        return f"its arm should be one of {', '.join(get_args(Arm))}, not {kernel.arm!r}"
    for what, word in (("implementation", kernel.implementation), ("variant", kernel.variant)):
        fits = isinstance(word, str) and 0 < len(word) <= LONGEST_WORD and word.isprintable()
        if not fits:
            return f"its {what} should be up to {LONGEST_WORD} printable characters, not {word!r}"
    for what, words in (("formats", kernel.formats), ("activations", kernel.activations)):
        if not isinstance(words, tuple) or not words or {type(w) for w in words} != {str}:
            return f"its {what} should be a tuple of names, not {words!r}"
    batches: object = kernel.batches
    if not isinstance(batches, tuple) or [type(b) for b in batches] != [int, int]:
        return f"its batches should be the smallest and the largest, not {batches!r}"
    return None

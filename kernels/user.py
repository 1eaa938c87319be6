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

from kernels.kernel import Kernel

OURS = ("triton", "cuda", "numba", "torch")  # implementations that are taken
GROUP = "dequant_bench.kernels"
NAME = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*|[\w-]+")


class UserKernelError(ValueError):
    """A kernel that cannot be had; one sentence says why."""


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
        UserKernelError: a module cannot be imported, or what it holds is no kernel for this run.
    """
    found: list[Kernel] = []
    for name in names:
        announce(name)
        kernel = load(name)
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
        UserKernelError: it cannot be imported, or is something else.
    """
    try:
        if ":" in name:
            module, attribute = name.split(":")
            kernel = getattr(importlib.import_module(module), attribute)
        else:
            kernel = next(iter(entry_points(group=GROUP, name=name))).load()
    except (Exception, SystemExit) as error:  # whatever somebody's module may raise
        leaves = isinstance(error, SystemExit)
        lines = [repr(error)] if leaves else str(error).strip().splitlines() or [repr(error)]
        raise UserKernelError(f"{name} cannot be imported: {lines[0]}.") from None
    if not isinstance(kernel, Kernel):
        raise UserKernelError(
            f"{name} should be a kernels.kernel.Kernel, but it is a {type(kernel).__name__}."
        )
    return kernel

"""A launch's arguments: checked against the kernel's parameters, and laid out as it reads them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.static.ptx.errors import PtxError
from bench.static.ptx.memory import GlobalMemory
from bench.static.ptx.program import Kernel, Parameter
from bench.static.ptx.types import KINDS

Array = npt.NDArray[Any]
Argument = Array | int | float | bytes

MOST_THREADS = 1024  # of a CTA, on every GPU
MOST_SHARED_BYTES = 227 * 1024  # of a CTA, on sm_90 and sm_100, which have the most


def lay_out(
    kernel: Kernel, args: Sequence[Argument]
) -> tuple[dict[str, bytes], dict[str, int], GlobalMemory]:
    """The bytes of each parameter, the address of each of the module's arrays, and the memory.

    An array given twice is one buffer. The module's own arrays are as new for every launch.

    Raises:
        PtxError: the number or a type does not fit, or two arrays overlap in part.
    """
    if len(args) != len(kernel.parameters):
        raise PtxError(
            f"{kernel.name} has {len(kernel.parameters)} parameters, "
            f"but {len(args)} arguments were given."
        )
    buffers: list[Array] = []
    laid_out = {}
    for parameter, argument in zip(kernel.parameters, args, strict=True):
        if isinstance(argument, np.ndarray):
            index = buffer_index(buffers, argument)
            laid_out[parameter.name] = number_bytes(parameter, GlobalMemory.address(index))
        else:
            laid_out[parameter.name] = number_bytes(parameter, argument)
    module = {name: len(buffers) + i for i, name in enumerate(kernel.module)}
    buffers += [np.frombuffer(raw, np.uint8).copy() for raw in kernel.module.values()]
    addresses = {name: GlobalMemory.address(index) for name, index in module.items()}
    return laid_out, addresses, GlobalMemory(buffers)


def buffer_index(buffers: list[Array], array: Array) -> int:
    """Where an array stands among the buffers, which it may join.

    Raises:
        PtxError: it overlaps another one in part.
    """
    for index, other in enumerate(buffers):
        same = array.__array_interface__ == other.__array_interface__
        if same:
            return index
        if array.size and other.size and np.may_share_memory(array, other):
            raise PtxError("two of the arrays overlap; pass copies, or the whole array twice.")
    buffers.append(array)
    return len(buffers) - 1


def number_bytes(parameter: Parameter, argument: object) -> bytes:
    """An argument as it lies in parameter memory.

    Raises:
        PtxError: it is not of the parameter's type, or does not fit into it.
    """
    if parameter.size_bytes:
        if isinstance(argument, bytes) and len(argument) == parameter.size_bytes:
            return argument
        raise PtxError(
            f"{parameter.name} is a struct of {parameter.size_bytes} bytes; pass as many, "
            f"not {argument!r}."
        )
    if isinstance(argument, float | np.floating) and parameter.type in ("f32", "b32"):
        return np.float32(argument).tobytes()
    is_integer = isinstance(argument, int | np.integer) and parameter.type[0] != "f"
    bits = KINDS[parameter.type].bits
    if is_integer and -(1 << bits - 1) <= int(argument) < 1 << bits:  # type: ignore[call-overload]
        return (int(argument) & (1 << bits) - 1).to_bytes(bits // 8, "little")  # type: ignore[call-overload]
    raise PtxError(f"{parameter.name} is .{parameter.type}, which {argument!r} is not.")


def three(sizes: int | Sequence[int]) -> tuple[int, int, int]:
    """A size along x, y and z.

    Raises:
        PtxError: more than three numbers, or one below 1.
    """
    given = tuple(sizes) if isinstance(sizes, Sequence) else (sizes,)
    if not 1 <= len(given) <= 3 or min(given) < 1:
        raise PtxError(f"one to three sizes of 1 or more are expected, not {sizes}.")
    x, y, z = (*given, 1, 1)[:3]
    return int(x), int(y), int(z)


def check_block(kernel: Kernel, block: tuple[int, int, int], shared_bytes: int) -> None:
    """Refuse a CTA that no GPU runs, or that the kernel was not compiled for.

    Raises:
        PtxError: too many threads or too much shared memory, or not as many threads as `.reqntid`.
    """
    if kernel.required_block and three(kernel.required_block) != block:
        wanted = " x ".join(map(str, kernel.required_block))
        raise PtxError(f"{kernel.name} is compiled for CTAs of {wanted} threads, not {block}.")
    threads = int(np.prod(block))
    if threads > MOST_THREADS:
        raise PtxError(f"a CTA has at most {MOST_THREADS} threads, not {threads}.")
    shared = kernel.shared_bytes + shared_bytes
    if shared_bytes < 0 or shared > MOST_SHARED_BYTES:
        raise PtxError(f"a CTA has 0 to {MOST_SHARED_BYTES} bytes of shared memory, not {shared}.")

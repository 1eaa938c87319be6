"""cvt: from every type to every other that a kernel here needs.

PTX ISA, "Data Movement and Conversion Instructions: cvt".

A conversion between numbers goes through float64 without loss and is rounded once at the end. The
exceptions are 64-bit integers, which NumPy converts to fp32 directly and correctly.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.static.ptx import numerics
from bench.static.ptx.types import KINDS

Array = npt.NDArray[Any]

TO_INTEGER: dict[str, Callable[[Array], Array]] = {
    "rni": np.rint,
    "rzi": np.trunc,
    "rmi": np.floor,
    "rpi": np.ceil,
}
FLOATS = ("f16", "bf16", "f32")


def conversion(opcode: str) -> tuple[Callable[..., Array], str, tuple[str, ...]]:
    """The function of a whitelisted cvt, the type of its result and those of its operands."""
    *modifiers, to, source = opcode.split(".")[1:]
    relu = "relu" in modifiers
    if to.endswith("x2") and source == "f32":
        return pack_function(to, relu), to, ("f32", "f32")
    if to.endswith("x2"):
        return repack_function(to, source, relu), to, (source,)
    if source in FLOATS and to in FLOATS:
        return float_function(to, source, modifiers, relu), to, (source,)
    if source in FLOATS:
        return rounding_function(to, source, modifiers), to, (source,)
    if to in FLOATS:
        return lambda a: from_integer(a, to), to, (source,)
    return lambda a: resize(a, to, saturate="sat" in modifiers), to, (source,)


def float_function(
    to: str, source: str, modifiers: list[str], relu: bool
) -> Callable[[Array], Array]:
    """Between floats; `.rni` and its like round to a whole number."""
    whole = next((TO_INTEGER[m] for m in modifiers if m in TO_INTEGER), None)

    def convert(a: Array) -> Array:
        value = numerics.decode(a, source)
        value = numerics.flush(value, source) if "ftz" in modifiers else value
        value = whole(value) if whole else value
        value = numerics.saturate(value) if "sat" in modifiers else value
        return numerics.encode(numerics.relu(value) if relu else value, to)

    return convert


def rounding_function(to: str, source: str, modifiers: list[str]) -> Callable[[Array], Array]:
    """Float to integer: rounded, clamped to the range of the integer.

    NaN becomes 0, or the number with only its highest bit set where the integer has 64 bits.
    """
    whole = next(TO_INTEGER[m] for m in modifiers if m in TO_INTEGER)
    dtype = KINDS[to].dtype
    limits = np.iinfo(dtype)
    of_nan = np.array(1 << 63 if limits.bits == 64 else 0, np.uint64).astype(dtype)

    def convert(a: Array) -> Array:
        given = numerics.decode(a, source)
        value = whole(numerics.flush(given, source) if "ftz" in modifiers else given)
        nan = np.isnan(value)
        high = value >= 2.0 ** (limits.bits - (limits.min < 0))  # float(limits.max) may round up
        inside = np.where(nan | high, 0.0, np.maximum(value, float(limits.min)))
        whole_number = np.where(high, dtype.type(limits.max), inside.astype(dtype))
        return np.where(nan, of_nan, whole_number)

    return convert


def from_integer(a: Array, to: str) -> Array:
    """Integer to float, rounded to nearest even."""
    if to == "f32":
        return a.astype(np.float32).view(np.uint32)
    return numerics.encode(a.astype(np.float64), to)


def resize(a: Array, to: str, *, saturate: bool) -> Array:
    """Integer to integer: cut or extended by its own sign; `.sat` clamps."""
    dtype = KINDS[to].dtype
    if saturate:
        limits, own = np.iinfo(dtype), np.iinfo(a.dtype)
        a = np.clip(a, max(limits.min, own.min), min(limits.max, own.max))
    return a.astype(dtype)


def pack_function(to: str, relu: bool) -> Callable[[Array, Array], Array]:
    """Two fp32 into a pair: the first operand becomes the high half."""

    def convert(high: Array, low: Array) -> Array:
        low, high = np.broadcast_arrays(low, high)
        value = numerics.decode(np.stack([low, high], axis=-1), "f32")
        return encode_pair(numerics.relu(value) if relu else value, to)

    return convert


def repack_function(to: str, source: str, relu: bool) -> Callable[[Array], Array]:
    """A pair of one type into a pair of another: fp8 and fp16."""

    def convert(a: Array) -> Array:
        if source in ("e4m3x2", "e5m2x2"):
            value = numerics.fp8_values(source[:4])[a]
        else:
            value = numerics.decode(a, source)
        return encode_pair(numerics.relu(value) if relu else value, to)

    return convert


def encode_pair(value: Array, to: str) -> Array:
    """Bits of a pair, [lanes, 2]."""
    if to in ("e4m3x2", "e5m2x2"):
        return numerics.to_fp8(value, to[:4])
    return numerics.encode(value, to)

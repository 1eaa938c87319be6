"""Floating-point arithmetic of the GPU, exactly, on NumPy arrays.

Every operation goes the same way: operands are *decoded* to float64 without loss, the operation is
done there and rounded *to odd*, and the result is *encoded*: rounded once to the type asked for.
Rounding to odd (of the two float64 neighbours of an inexact result, the one with the odd last bit)
keeps enough to make that one rounding the correct one, since float64 has more than two bits more
than any of the types (Boldo and Melquiond, "Emulation of FMA and correctly rounded sums", 2008).

    fma.rn.f16 d, a, b, c      encode(fma(decode(a), decode(b), decode(c)))

Types are "f32", "f16", "bf16", and the packed pairs "f32x2", "f16x2", "bf16x2", whose arrays have a
second axis of length 2, the low half first. NaN results are canonical, as the GPU's are (PTX ISA,
"Floating-Point Instructions" and "Half Precision Floating-Point Instructions").
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

NAN_BITS = {"f32": 0x7FFFFFFF, "f16": 0x7FFF, "bf16": 0x7FFF}
SMALLEST_NORMAL = {"f32": 2.0**-126, "f16": 2.0**-14, "bf16": 2.0**-126}
FP8_NAN = 0x7F


def element(kind: str) -> str:
    """The type of one half of a packed type; another type is its own."""
    return kind.removesuffix("x2")


def decode(bits: Array, kind: str) -> Array:
    """The numbers that these bits stand for, float64.

    Args:
        bits: unsigned, as wide as one element; for packed types with a last axis of 2.
        kind: type of the bits.
    """
    match element(kind):
        case "f32":
            return bits.view(np.float32).astype(np.float64)
        case "f16":
            return bits.view(np.float16).astype(np.float64)
        case _:
            return widen_bf16(bits).astype(np.float64)


def encode(value: Array, kind: str) -> Array:
    """Bits of the numbers rounded to nearest even, unsigned; NaN becomes the canonical one.

    Args:
        value: float64.
        kind: type to round to.
    """
    kind = element(kind)
    if kind == "bf16":
        bits = narrow_bf16(to_odd_float32(value))
    else:
        rounded = value.astype(np.float32 if kind == "f32" else np.float16)
        bits = rounded.view(np.uint32 if kind == "f32" else np.uint16)
    nan = np.isnan(value)
    return np.where(nan, bits.dtype.type(NAN_BITS[kind]), bits) if nan.any() else bits


def encode_directed(value: Array, mode: str) -> Array:
    """fp32 bits of numbers rounded down ("rm"), up ("rp") or toward zero ("rz").

    Args:
        value: float64, rounded to odd where it is inexact.
        mode: of rounding.
    """
    nearest = np.atleast_1d(value.astype(np.float32))
    too_high = nearest.astype(np.float64) > value
    too_low = nearest.astype(np.float64) < value
    down = too_high & ((mode == "rm") | ((mode == "rz") & (value > 0)))
    up = too_low & ((mode == "rp") | ((mode == "rz") & (value < 0)))
    moved = np.where(down, np.nextafter(nearest, np.float32(-np.inf)), nearest)
    moved = np.where(up, np.nextafter(nearest, np.float32(np.inf)), moved)
    return np.where(np.isnan(value), np.uint32(NAN_BITS["f32"]), moved.view(np.uint32))


def zero_downward(value: Array, a: Array, b: Array) -> Array:
    """A sum a + b of zero, rounded down, is -0 unless both are +0."""
    negative = (value == 0) & (np.signbit(a) | np.signbit(b))
    return np.where(negative, -0.0, value)


def widen_bf16(bits: Array) -> Array:
    """float32 of bf16 bits, without loss."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def narrow_bf16(value: Array) -> Array:
    """bf16 bits of float32, rounded to nearest even; NaN is left to the caller."""
    bits = np.ascontiguousarray(value).view(np.uint32)
    half = np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    return ((bits + half) >> np.uint32(16)).astype(np.uint16)


def to_odd_float32(value: Array) -> Array:
    """float32 rounded to odd, from float64: what may be rounded again without harm."""
    rounded = np.atleast_1d(value.astype(np.float32))
    difference = value - rounded.astype(np.float64)
    return make_odd(rounded, difference, np.int32)


def make_odd(rounded: Array, error: Array, integer: type[np.signedinteger[Any]]) -> Array:
    """The odd neighbour of `rounded` on the side of `error` (exact - rounded), where inexact."""
    bits = rounded.view(integer)
    inexact = (np.abs(error) > 0) & np.isfinite(rounded) & ((bits & 1) == 0)  # NaN: none
    if not inexact.any():
        return rounded
    away = np.where((error > 0) == ~np.signbit(rounded), integer(1), integer(-1))
    return np.where(inexact, bits + away, bits).view(rounded.dtype)


def add(a: Array, b: Array) -> Array:
    """a + b rounded to odd, float64 (Knuth's two-sum gives the error of the sum exactly)."""
    total = np.atleast_1d(a + b)
    back = total - a
    error = (a - (total - back)) + (b - back)
    return make_odd(total, error, np.int64)


def subtract(a: Array, b: Array) -> Array:
    """a - b rounded to odd."""
    return add(a, -b)


def multiply(a: Array, b: Array) -> Array:
    """a * b: exact, since no type has more than 24 bits."""
    return np.multiply(a, b)


def fma(a: Array, b: Array, c: Array) -> Array:
    """a * b + c rounded to odd: the product is exact."""
    return add(a * b, c)


def divide(a: Array, b: Array) -> Array:
    """a / b rounded to odd: the sign of the remainder a - (a / b) b says on which side it lies."""
    quotient = np.atleast_1d(a / b)
    product = quotient * b
    remainder = (a - product) - product_error(quotient, b)
    return make_odd(quotient, np.where(b < 0, -remainder, remainder), np.int64)


def reciprocal(a: Array) -> Array:
    """1 / a rounded to odd."""
    return divide(np.ones(1), a)


def square_root(a: Array) -> Array:
    """sqrt(a) rounded to odd."""
    root = np.atleast_1d(np.sqrt(a))
    square = root * root
    return make_odd(root, (a - square) - product_error(root, root), np.int64)


def product_error(a: Array, b: Array) -> Array:
    """a * b minus its float64 rounding, exactly (Dekker's product; Veltkamp's splitting)."""
    (a_high, a_low), (b_high, b_low) = split_bits(a), split_bits(b)
    return ((a_high * b_high - a * b) + a_high * b_low + a_low * b_high) + a_low * b_low


def split_bits(a: Array) -> tuple[Array, Array]:
    """The upper 26 bits of float64, and the rest."""
    scaled = a * (2.0**27 + 1)
    high = scaled - (scaled - a)
    return high, a - high


def minimum(a: Array, b: Array) -> Array:
    """The smaller; the number if one is NaN; -0 is smaller than +0."""
    return np.where(a == b, np.where(np.signbit(a), a, b), np.fmin(a, b))


def maximum(a: Array, b: Array) -> Array:
    """The larger; the number if one is NaN; +0 is larger than -0."""
    return np.where(a == b, np.where(np.signbit(a), b, a), np.fmax(a, b))


def minimum_nan(a: Array, b: Array) -> Array:
    """The smaller; NaN if either is."""
    return np.where(np.isnan(a) | np.isnan(b), np.nan, minimum(a, b))


def maximum_nan(a: Array, b: Array) -> Array:
    """The larger; NaN if either is."""
    return np.where(np.isnan(a) | np.isnan(b), np.nan, maximum(a, b))


def reciprocal_root(a: Array) -> Array:
    """1 / sqrt(a)."""
    return np.reciprocal(np.sqrt(a))


def copy_sign(a: Array, b: Array) -> Array:
    """copysign.f32 on bits: the sign of a and the rest of b."""
    return (a & np.uint32(1 << 31)) | (b & np.uint32((1 << 31) - 1))


def relu(value: Array) -> Array:
    """`.relu`: negative numbers become +0; NaN stays."""
    return np.where(value <= 0, 0.0, value)


def saturate(value: Array) -> Array:
    """`.sat`: into [0, 1]; NaN becomes +0."""
    return np.where(value > 0, np.minimum(value, 1.0), 0.0)


def flush(value: Array, kind: str) -> Array:
    """`.ftz`: subnormal numbers of the type become zero of the same sign."""
    tiny = np.abs(value) < SMALLEST_NORMAL[element(kind)]
    return np.where(tiny, np.copysign(0.0, value), value)


@cache
def fp8_values(kind: str) -> Array:
    """The number that each of the 256 codes of "e4m3" or "e5m2" stands for, float64.

    OCP 8-bit Floating Point Specification, table 1: e4m3 has no infinity and one NaN code a sign.
    """
    exponent_bits, bias = {"e4m3": (4, 7), "e5m2": (5, 15)}[kind]
    mantissa_bits = 7 - exponent_bits
    code = np.arange(256)
    exponent = code >> mantissa_bits & (1 << exponent_bits) - 1
    fraction = (code & (1 << mantissa_bits) - 1) / 2**mantissa_bits
    normal = (1 + fraction) * 2.0 ** (exponent - bias)
    value = np.where(exponent == 0, fraction * 2.0 ** (1 - bias), normal)
    if kind == "e4m3":
        value[code & 0x7F == 0x7F] = np.nan
    else:
        special = exponent == 31
        value[special] = np.where(fraction[special] == 0, np.inf, np.nan)
    return np.where(code < 128, value, -value)


def to_fp8(value: Array, kind: str) -> Array:
    """fp8 codes of float64, uint8: to nearest even, `.satfinite` (beyond the largest, the largest).

    NaN becomes 0x7F.
    """
    largest = {"e4m3": 0x7E, "e5m2": 0x7B}[kind]
    positive = fp8_values(kind)[: largest + 1]
    magnitude = np.abs(value)
    high = np.clip(np.searchsorted(positive, magnitude), 0, largest)
    low = np.maximum(high - 1, 0)
    below, above = magnitude - positive[low], positive[high] - magnitude
    take_low = (below < above) | ((below == above) & (low % 2 == 0))
    code = np.where(take_low & (magnitude < positive[-1]), low, high)
    signed = code | np.where(np.signbit(value), 0x80, 0)
    return np.where(np.isnan(value), FP8_NAN, signed).astype(np.uint8)

"""Integer and bit arithmetic of the GPU on NumPy arrays.

Operands arrive as arrays of the instruction's own type (int32 for .s32, uint16 for .b16), results
leave as such; overflow wraps. Sections of the PTX ISA are named at each group.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def width(a: Array) -> int:
    """Bits of one element."""
    return a.dtype.itemsize * 8


def wider(a: Array) -> np.dtype[Any]:
    """The integer type of the same sign and twice the width."""
    return np.dtype(f"{a.dtype.kind}{a.dtype.itemsize * 2}")


# "Integer Arithmetic Instructions"


def multiply_low(a: Array, b: Array) -> Array:
    """mul.lo: the low half of the product."""
    return np.multiply(a, b)


def multiply_wide(a: Array, b: Array) -> Array:
    """mul.wide: the whole product, twice as wide."""
    return np.multiply(a.astype(wider(a)), b.astype(wider(a)))


def multiply_high(a: Array, b: Array) -> Array:
    """mul.hi: the high half of the product."""
    if width(a) == 64:
        return multiply_high_64(a, b)
    return (multiply_wide(a, b) >> wider(a).type(width(a))).astype(a.dtype)


def multiply_high_64(a: Array, b: Array) -> Array:
    """mul.hi of 64 bits, from products of halves; signed numbers correct the unsigned result."""
    x, y = np.broadcast_arrays(a.view(np.uint64), b.view(np.uint64))
    low, half = np.uint64(0xFFFFFFFF), np.uint64(32)
    x0, x1, y0, y1 = x & low, x >> half, y & low, y >> half
    middle = x1 * y0 + (x0 * y0 >> half)
    carry = x0 * y1 + (middle & low)
    high = x1 * y1 + (middle >> half) + (carry >> half)
    if a.dtype.kind == "i":
        high = high - np.where(a < 0, y, np.uint64(0)) - np.where(b < 0, x, np.uint64(0))
    return high.view(a.dtype)


def multiply_add_low(a: Array, b: Array, c: Array) -> Array:
    """mad.lo."""
    return a * b + c


def multiply_add_wide(a: Array, b: Array, c: Array) -> Array:
    """mad.wide: c is twice as wide as a and b."""
    return multiply_wide(a, b) + c


def magnitude(a: Array) -> Array:
    """|a|, unsigned; the lowest number too has one."""
    bits = a.view(f"u{a.dtype.itemsize}")
    return np.where(a < 0, np.negative(bits), bits)


def divide(a: Array, b: Array) -> Array:
    """div: rounded toward zero; by zero, all ones (the ISA leaves it open)."""
    quotient = magnitude(a) // np.maximum(magnitude(b), 1)
    signed = np.where((a < 0) != (b < 0), np.negative(quotient), quotient).astype(a.dtype)
    return np.where(b == 0, ~a.dtype.type(0), signed)


def remainder(a: Array, b: Array) -> Array:
    """rem: a - b * (a div b), of the sign of a."""
    return a - divide(a, b) * b


def negate(a: Array) -> Array:
    """neg: the lowest number stays what it is."""
    return np.negative(a)


def dot4(a: Array, b: Array, c: Array) -> Array:
    """dp4a: four products of bytes, added to c. a and b have a last axis of 4 bytes."""
    products = a.astype(np.int32) * b.astype(np.int32)
    return (products.sum(-1, dtype=np.int32).view(c.dtype) + c).astype(c.dtype)


def extract(a: Array, position: Array, length: Array) -> Array:
    """bfe: `length` bits from `position`, extended by zeros or, if a is signed, by their sign."""
    bits = width(a)
    position, length = position & 0xFF, length & 0xFF
    spare = np.clip(bits - length.astype(np.int64), 0, bits - 1).astype(a.dtype)
    if a.dtype.kind == "i":  # beyond the top there is sign
        shifted = a >> np.minimum(position, bits - 1).astype(a.dtype)
    else:
        shifted = shift_right(a, position)
    return np.where(length == 0, a.dtype.type(0), (shifted << spare) >> spare)


def insert(a: Array, b: Array, position: Array, length: Array) -> Array:
    """bfi: the low `length` bits of a, put into b at `position`."""
    position, length = position & 0xFF, length & 0xFF
    one = a.dtype.type(1)
    bits = width(a)
    low = np.where(
        length >= bits,
        ~a.dtype.type(0),
        (one << np.minimum(length, bits - 1).astype(a.dtype)) - one,
    )
    mask = shift_left(low, position)
    return np.where(mask != 0, (b & ~mask) | (shift_left(a, position) & mask), b)


def leading_zeros(a: Array) -> Array:
    """clz, uint32."""
    count = np.full(a.shape, width(a), np.uint32)
    rest = a.copy()
    while rest.any():
        count -= (rest != 0).astype(np.uint32)
        rest >>= a.dtype.type(1)
    return count


def population(a: Array) -> Array:
    """popc, uint32."""
    return np.bitwise_count(a).astype(np.uint32)


def reverse(a: Array) -> Array:
    """brev."""
    result = np.zeros_like(a)
    one = a.dtype.type(1)
    for i in range(width(a)):
        result = (result << one) | ((a >> a.dtype.type(i)) & one)
    return result


# "Logic and Shift Instructions"


def shift_left(a: Array, amount: Array) -> Array:
    """shl: amounts beyond the width give 0."""
    bits = width(a)
    return np.where(
        amount >= bits, a.dtype.type(0), a << np.minimum(amount, bits - 1).astype(a.dtype)
    )


def shift_right(a: Array, amount: Array) -> Array:
    """shr: fills with zeros, or with the sign if a is signed; amounts clamp at the width."""
    bits = width(a)
    shifted = a >> np.minimum(amount, bits - 1).astype(a.dtype)
    if a.dtype.kind == "i":
        return shifted
    return np.where(amount >= bits, a.dtype.type(0), shifted)


def funnel(a: Array, b: Array, amount: Array, *, left: bool, wrap: bool) -> Array:
    """shf: the word [b:a] shifted; the high half for left, the low half for right."""
    amount = (amount & 31 if wrap else np.minimum(amount, 32)).astype(np.uint64)
    both = a.astype(np.uint64) | (b.astype(np.uint64) << np.uint64(32))
    shifted = (both << amount) >> np.uint64(32) if left else both >> amount
    return shifted.astype(np.uint32)


def lookup(a: Array, b: Array, c: Array, table: int) -> Array:
    """lop3: any function of three bits; bit 4a + 2b + c of `table` is the result."""
    result = np.zeros(np.broadcast_shapes(a.shape, b.shape, c.shape), a.dtype)
    for index in range(8):
        if table >> index & 1:
            term = (a if index & 4 else ~a) & (b if index & 2 else ~b) & (c if index & 1 else ~c)
            result = result | term
    return result


# "Data Movement and Conversion Instructions"


def permute(a: Array, b: Array, selector: Array) -> Array:
    """prmt: byte i of the result is byte `selector >> 4i & 7` of [b:a], or, with bit 3, its sign."""
    source = a.astype(np.uint64) | (b.astype(np.uint64) << np.uint64(32))
    result = np.zeros(np.broadcast_shapes(a.shape, b.shape, selector.shape), np.uint32)
    for i in range(4):
        nibble = selector >> np.uint32(4 * i)
        shift = ((nibble & np.uint32(7)) * np.uint32(8)).astype(np.uint64)
        byte = ((source >> shift) & np.uint64(0xFF)).astype(np.uint32)
        sign = np.where(byte & 0x80, np.uint32(0xFF), np.uint32(0))
        result = result | (np.where(nibble & np.uint32(8), sign, byte) << np.uint32(8 * i))
    return result

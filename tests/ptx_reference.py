"""Exact PTX arithmetic on plain integers: the oracle of the emulator's opcode tests.

`reference("fma.rn.ftz.f16x2")` parses the whole opcode and returns a function from operand bits to
result bits. It shares no code with the emulator and uses no floating-point arithmetic: a number is
(sign, mantissa, exponent) with integers of any length, and `Format.round` rounds it once. An opcode
or a modifier without a rule raises UnknownOpcodeError.

The rules are those of the PTX ISA, chapter 9.7 (the section is named at each rule). Where the ISA
says "NaN", the bits are the canonical NaN of the CUDA Programming Guide ("Floating-Point Standard");
where it says "unspecified NaN", `Reference.any_nan` is set. Where it leaves more open:

* `.relu` and `.sat` turn -0 into +0 (cuda_fp16.hpp defines relu as max(x, +0));
* `.ftz` looks at the rounded result: what rounds up to the smallest normal number is kept.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from math import isqrt

INFINITE, NAN = -1, -2  # in place of a mantissa
Value = tuple[int, int, int]  # sign, mantissa, exponent: (-1)^sign * mantissa * 2^exponent
Bits = Callable[..., int]
NAN_VALUE: Value = (0, NAN, 0)


class UnknownOpcodeError(ValueError):
    """The opcode, or one of its modifiers, has no rule here."""


@dataclass(frozen=True)
class Format:
    """A binary floating-point format; `quantum` is the exponent of its smallest subnormal."""

    width: int
    precision: int
    quantum: int
    largest: int
    infinity: int | None
    nan: int

    @property
    def sign_bit(self) -> int:
        return 1 << (self.width - 1)

    @property
    def smallest_normal(self) -> int:
        return 1 << (self.precision - 1)

    def is_nan(self, bits: int) -> bool:
        magnitude = bits & (self.sign_bit - 1)
        return magnitude > self.largest and magnitude != self.infinity

    def round(self, value: Value, mode: str) -> int:
        """The bits of a finite value, rounded once; overflow gives infinity or `largest`."""
        sign, mantissa, exponent = value
        if not mantissa:
            return sign << (self.width - 1)
        last = max(mantissa.bit_length() + exponent - self.precision, self.quantum)
        shift = last - exponent
        if shift <= 0:
            kept = mantissa << -shift
        else:
            kept = mantissa >> shift
            lost = mantissa - (kept << shift)
            kept += _rounds_up(mode, sign, kept & 1, lost, 1 << (shift - 1))
        bits = kept + ((last - self.quantum) << (self.precision - 1))
        if bits > self.largest:
            stays = mode == "rz" or mode == ("rp" if sign else "rm")
            bits = self.largest if stays or self.infinity is None else self.infinity
        return bits | sign << (self.width - 1)


def _rounds_up(mode: str, sign: int, odd: int, lost: int, half: int) -> bool:
    """PTX ISA 9.7.3, rounding modifiers: is the magnitude increased by one?"""
    if mode == "rn":
        return lost > half or (lost == half and odd == 1)
    if mode == "rna":
        return lost >= half
    return lost > 0 and mode == ("rm" if sign else "rp")


FORMATS = {
    "f64": Format(64, 53, -1074, 0x7FEF_FFFF_FFFF_FFFF, 0x7FF0 << 48, 0x7FFF_FFFF_FFFF_FFFF),
    "f32": Format(32, 24, -149, 0x7F7F_FFFF, 0x7F80_0000, 0x7FFF_FFFF),
    "tf32": Format(19, 11, -136, 0x3FBFF, 0x3FC00, 0x3FFFF),
    "f16": Format(16, 11, -24, 0x7BFF, 0x7C00, 0x7FFF),
    "bf16": Format(16, 8, -133, 0x7F7F, 0x7F80, 0x7FFF),
    "e5m2": Format(8, 3, -16, 0x7B, 0x7C, 0x7F),
    "e4m3": Format(8, 4, -9, 0x7E, None, 0x7F),
}
INTEGERS = {f"{sign}{width}": width for sign in "usb" for width in (8, 16, 32, 64)}
PACKED = {f"{name}x2": name for name in ("f32", "f16", "bf16", "e5m2", "e4m3")}


@cache
def width_of(kind: str) -> int:
    """Bits that an operand of this type occupies."""
    if kind in PACKED:
        return 2 * width_of(PACKED[kind])
    if kind in FORMATS:
        return 32 if kind == "tf32" else FORMATS[kind].width
    return 1 if kind == "pred" else INTEGERS[kind]


@dataclass(frozen=True)
class Reference:
    """One opcode: its operand types, its result type, and what it computes on bits."""

    opcode: str
    operands: tuple[str, ...]
    result: str
    compute: Bits
    any_nan: bool = False
    undefined: Callable[..., bool] = lambda *bits: False

    def __call__(self, *bits: int) -> int:
        return self.compute(*bits)

    def agrees(self, got: int, expected: int) -> bool:
        """Equal bits; any NaN for a NaN where the ISA leaves the NaN unspecified."""
        if got == expected or not self.any_nan:
            return got == expected
        kind = FORMATS[PACKED.get(self.result, self.result)]
        mask = (1 << kind.width) - 1
        lanes = range(0, width_of(self.result), kind.width)
        pairs = [(got >> lane & mask, expected >> lane & mask) for lane in lanes]
        return all(g == e or (kind.is_nan(g) and kind.is_nan(e)) for g, e in pairs)


class Modifiers:
    """The dot-separated parts of an opcode; each rule takes the parts it knows."""

    def __init__(self, opcode: str) -> None:
        self.opcode = opcode
        self.name, *self.parts = opcode.split(".")

    def fail(self) -> UnknownOpcodeError:
        return UnknownOpcodeError(f"no reference for {self.opcode}")

    def flag(self, part: str) -> bool:
        if part in self.parts:
            self.parts.remove(part)
            return True
        return False

    def choice(self, *parts: str, default: str | None = None) -> str:
        found = [part for part in parts if part in self.parts]
        if len(found) > 1 or (not found and default is None):
            raise self.fail()
        if not found:
            return str(default)
        self.parts.remove(found[0])
        return found[0]

    def types(self, count: int) -> list[str]:
        """The last `count` parts, which end the opcode: nothing else may be left."""
        if len(self.parts) != count:
            raise self.fail()
        return self.parts


# ---- integers -----------------------------------------------------------------------------------


def mask_of(width: int) -> int:
    return (1 << width) - 1


def signed(bits: int, width: int) -> int:
    return bits - (bits >> (width - 1) << width)


def reader(kind: str) -> Callable[[int], int]:
    """Bits to the integer that they stand for."""
    width = INTEGERS[kind]
    return partial(signed, width=width) if kind[0] == "s" else int


def limits(kind: str) -> tuple[int, int]:
    width = INTEGERS[kind]
    if kind[0] == "s":
        return -(1 << (width - 1)), mask_of(width - 1)
    return 0, mask_of(width)


def clamp(value: int, kind: str) -> int:
    low, high = limits(kind)
    return min(max(value, low), high) & mask_of(INTEGERS[kind])


def truncated_quotient(a: int, b: int) -> int:
    return abs(a) // abs(b) * (-1 if (a < 0) != (b < 0) else 1)


INTEGER_BINARY: dict[str, Callable[[int, int], int]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "min": min,
    "max": max,
    "div": truncated_quotient,
    "rem": lambda a, b: a - b * truncated_quotient(a, b),
}
ARITHMETIC_INTEGERS = ("u16", "u32", "u64", "s16", "s32", "s64")


def integer_binary(parts: Modifiers) -> Reference:
    """9.7.1.1 add, .2 sub, .8 div, .9 rem, .12 min, .13 max."""
    saturates = parts.name in ("add", "sub") and parts.flag("sat")
    (kind,) = parts.types(1)
    if kind not in ARITHMETIC_INTEGERS or (saturates and kind != "s32"):
        raise parts.fail()
    read, mask, apply = reader(kind), mask_of(INTEGERS[kind]), INTEGER_BINARY[parts.name]

    def compute(a: int, b: int) -> int:
        value = apply(read(a), read(b))
        return clamp(value, kind) if saturates else value & mask

    divides = parts.name in ("div", "rem")
    undefined = (lambda a, b: b == 0) if divides else (lambda a, b: False)
    return Reference(parts.opcode, (kind, kind), kind, compute, undefined=undefined)


def integer_multiply(parts: Modifiers) -> Reference:
    """9.7.1.3 mul, 9.7.1.4 mad: the low half, the high half, or the whole product."""
    half = parts.choice("lo", "hi", "wide")
    (kind,) = parts.types(1)
    if kind not in ARITHMETIC_INTEGERS or (half == "wide" and kind.endswith("64")):
        raise parts.fail()
    width, read = INTEGERS[kind], reader(kind)
    result = f"{kind[0]}{2 * width}" if half == "wide" else kind
    mask, shift = mask_of(INTEGERS[result]), width if half == "hi" else 0

    def compute(a: int, b: int, c: int = 0) -> int:
        return ((read(a) * read(b) >> shift) + c) & mask

    operands = (kind, kind) if parts.name == "mul" else (kind, kind, result)
    return Reference(parts.opcode, operands, result, compute)


def integer_unary(parts: Modifiers) -> Reference:
    """9.7.1.10 abs, 9.7.1.11 neg: two's complement, so the smallest number maps to itself."""
    (kind,) = parts.types(1)
    if kind not in ("s16", "s32", "s64"):
        raise parts.fail()
    read, mask, negates = reader(kind), mask_of(INTEGERS[kind]), parts.name == "neg"

    def compute(a: int) -> int:
        return (-read(a) if negates else abs(read(a))) & mask

    return Reference(parts.opcode, (kind,), kind, compute)


def dot_product(parts: Modifiers) -> Reference:
    """9.7.1.23 dp4a: four products of bytes, added to a 32-bit integer."""
    first, second = parts.types(2)
    if {first, second} - {"u32", "s32"}:
        raise parts.fail()
    read_a, read_b = reader(f"{first[0]}8"), reader(f"{second[0]}8")

    def compute(a: int, b: int, c: int) -> int:
        lanes = (0, 8, 16, 24)
        products = (read_a(a >> i & 0xFF) * read_b(b >> i & 0xFF) for i in lanes)
        return (c + sum(products)) & 0xFFFF_FFFF

    result = "u32" if first == second == "u32" else "s32"
    return Reference(parts.opcode, (first, second, result), result, compute)


def bit_count(parts: Modifiers) -> Reference:
    """9.7.1.14 popc, 9.7.1.15 clz, 9.7.1.18 brev."""
    (kind,) = parts.types(1)
    if kind not in ("b32", "b64"):
        raise parts.fail()
    width = INTEGERS[kind]
    compute: dict[str, Bits] = {
        "popc": int.bit_count,
        "clz": lambda a: width - a.bit_length(),
        "brev": lambda a: int(f"{a:0{width}b}"[::-1], 2),
    }
    return Reference(
        parts.opcode, (kind,), kind if parts.name == "brev" else "u32", compute[parts.name]
    )


def bit_field_extract(parts: Modifiers) -> Reference:
    """9.7.1.19 bfe: a field that leaves the operand is filled with the sign (or zero)."""
    (kind,) = parts.types(1)
    if kind not in ("u32", "u64", "s32", "s64"):
        raise parts.fail()
    width, read, is_signed = INTEGERS[kind], reader(kind), kind[0] == "s"

    def compute(a: int, position: int, length: int) -> int:
        position, length = position & 0xFF, length & 0xFF
        field = read(a) >> position & mask_of(length)  # Python's shift repeats the sign for ever
        if is_signed and length:
            field = signed(field, length)
        return field & mask_of(width)

    return Reference(parts.opcode, (kind, "u32", "u32"), kind, compute)


def bit_field_insert(parts: Modifiers) -> Reference:
    """9.7.1.20 bfi."""
    (kind,) = parts.types(1)
    if kind not in ("b32", "b64"):
        raise parts.fail()
    mask = mask_of(INTEGERS[kind])

    def compute(a: int, b: int, position: int, length: int) -> int:
        position, length = position & 0xFF, length & 0xFF
        field = mask_of(length) << position
        return ((b & ~field) | (a << position & field)) & mask

    return Reference(parts.opcode, (kind, kind, "u32", "u32"), kind, compute)


# ---- logic and shifts ---------------------------------------------------------------------------

LOGIC: dict[str, Callable[[int, int], int]] = {
    "and": lambda a, b: a & b,
    "or": lambda a, b: a | b,
    "xor": lambda a, b: a ^ b,
}


def logic(parts: Modifiers) -> Reference:
    """9.7.8.1 and, .2 or, .3 xor, .4 not."""
    (kind,) = parts.types(1)
    if kind not in ("pred", "b16", "b32", "b64"):
        raise parts.fail()
    mask = mask_of(width_of(kind))
    if parts.name == "not":
        return Reference(parts.opcode, (kind,), kind, lambda a: a ^ mask)
    return Reference(parts.opcode, (kind, kind), kind, LOGIC[parts.name])


def lookup_table(parts: Modifiers) -> Reference:
    """9.7.8.6 lop3: bit (a, b, c) of the table, a being the most significant."""
    if parts.types(1) != ["b32"]:
        raise parts.fail()

    def compute(a: int, b: int, c: int, table: int) -> int:
        result = 0
        for index in range(8):
            if table >> index & 1:
                where_a = a if index & 4 else ~a
                where_b = b if index & 2 else ~b
                result |= where_a & where_b & (c if index & 1 else ~c)
        return result & 0xFFFF_FFFF

    return Reference(parts.opcode, ("b32", "b32", "b32", "imm8"), "b32", compute)


def permute(parts: Modifiers) -> Reference:
    """9.7.9.7 prmt, default mode: bit 3 of a selector repeats the sign of the chosen byte."""
    if parts.types(1) != ["b32"]:
        raise parts.fail()

    def compute(a: int, b: int, selector: int) -> int:
        pool = b << 32 | a
        result = 0
        for lane in range(4):
            choice = selector >> 4 * lane & 0xF
            byte = pool >> 8 * (choice & 7) & 0xFF
            if choice & 8:
                byte = 0xFF * (byte >> 7)
            result |= byte << 8 * lane
        return result

    return Reference(parts.opcode, ("b32", "b32", "b32"), "b32", compute)


def shift(parts: Modifiers) -> Reference:
    """9.7.8.8 shl, 9.7.8.9 shr: the amount has 32 bits and is clamped at the width."""
    (kind,) = parts.types(1)
    if kind not in INTEGERS or kind.endswith("8") or (parts.name == "shl" and kind[0] != "b"):
        raise parts.fail()
    width, read, left = INTEGERS[kind], reader(kind), parts.name == "shl"
    mask = mask_of(width)

    def compute(a: int, amount: int) -> int:
        amount = min(amount, width)
        return (a << amount if left else read(a) >> amount) & mask

    return Reference(parts.opcode, (kind, "u32"), kind, compute)


def funnel_shift(parts: Modifiers) -> Reference:
    """9.7.8.7 shf: shifts b:a; left gives the upper word, right the lower one."""
    left = parts.choice("l", "r") == "l"
    wraps = parts.choice("wrap", "clamp") == "wrap"
    if parts.types(1) != ["b32"]:
        raise parts.fail()

    def compute(a: int, b: int, amount: int) -> int:
        amount = amount & 31 if wraps else min(amount, 32)
        pair = b << 32 | a
        return (pair << amount >> 32 if left else pair >> amount) & 0xFFFF_FFFF

    return Reference(parts.opcode, ("b32", "b32", "u32"), "b32", compute)


# ---- comparison and selection -------------------------------------------------------------------

COMPARISONS: dict[str, Callable[[int, int], bool]] = {
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: a != b,
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b,
    "ge": lambda a, b: a >= b,
}
UNSIGNED_COMPARISONS = {"lo": "lt", "ls": "le", "hi": "gt", "hs": "ge"}


def select(parts: Modifiers) -> Reference:
    """9.7.6.3 selp."""
    (kind,) = parts.types(1)
    if kind not in {*INTEGERS, "f32", "f64"} or kind.endswith("8"):
        raise parts.fail()
    return Reference(parts.opcode, (kind, kind, "pred"), kind, lambda a, b, c: a if c else b)


def move(parts: Modifiers) -> Reference:
    """9.7.9.4 mov, of one register or constant."""
    (kind,) = parts.types(1)
    if kind not in {*INTEGERS, "f32", "f64", "pred"} or kind.endswith("8"):
        raise parts.fail()
    return Reference(parts.opcode, (kind,), kind, int)


def compare(parts: Modifiers) -> Reference:
    """9.7.6.2 setp and 9.7.7.2 setp (f16, bf16), first destination; `.and` and so on take a c."""
    operator = parts.parts.pop(0)
    combine = LOGIC[parts.choice(*LOGIC)] if set(parts.parts) & set(LOGIC) else None
    flush = parts.flag("ftz")
    (kind,) = parts.types(1)
    if kind in ("f16", "bf16", "f32", "f64"):
        test = float_comparison(operator, kind, flush, parts)
    elif kind in INTEGERS and not kind.endswith("8") and not flush:
        test = integer_comparison(operator, kind, parts)
    else:
        raise parts.fail()
    if combine is None:
        return Reference(parts.opcode, (kind, kind), "pred", lambda a, b: int(test(a, b)))
    return Reference(
        parts.opcode,
        (kind, kind, "pred"),
        "pred",
        lambda a, b, c: combine(int(test(a, b)), c),
    )


def integer_comparison(operator: str, kind: str, parts: Modifiers) -> Callable[[int, int], bool]:
    """9.7.6.2: lo, ls, hi, hs are for unsigned types; bits are only equal or not."""
    if kind[0] == "u":
        operator = UNSIGNED_COMPARISONS.get(operator, operator)
    if operator not in COMPARISONS or (kind[0] == "b" and operator not in ("eq", "ne")):
        raise parts.fail()
    read, test = reader(kind), COMPARISONS[operator]
    return lambda a, b: test(read(a), read(b))


def float_comparison(
    operator: str, kind: str, flush: bool, parts: Modifiers
) -> Callable[[int, int], bool]:
    """9.7.6.2: an ordered comparison with a NaN is false, one that ends in `u` is true."""
    number, key = FORMATS[kind], sort_key(FORMATS[kind], flush)
    if operator in ("num", "nan"):
        wanted = operator == "nan"
        return lambda a, b: (number.is_nan(a) or number.is_nan(b)) == wanted
    unordered = operator.endswith("u")
    test = COMPARISONS.get(operator.removesuffix("u"))
    if test is None:
        raise parts.fail()

    def compare_numbers(a: int, b: int) -> bool:
        if number.is_nan(a) or number.is_nan(b):
            return unordered
        return test(key(a), key(b))

    return compare_numbers


def sort_key(number: Format, flush: bool) -> Callable[[int], int]:
    """An integer that orders the numbers of a format; both zeros give 0."""
    floor = number.smallest_normal if flush else 0

    def key(bits: int) -> int:
        magnitude = bits & (number.sign_bit - 1)
        if magnitude < floor:
            return 0
        return -magnitude if bits & number.sign_bit else magnitude

    return key


# ---- floating point -----------------------------------------------------------------------------


@cache
def decoder(kind: str, flush: bool = False) -> Callable[[int], Value]:
    """Bits of a format to a value; `flush` makes subnormal numbers signed zeros."""
    number = FORMATS[kind]
    sign_shift, fraction_bits = number.width - 1, number.precision - 1
    magnitude_mask, fraction_mask = number.sign_bit - 1, number.smallest_normal - 1
    hidden, below = number.smallest_normal, number.quantum - 1
    largest, infinity, quantum = number.largest, number.infinity, number.quantum

    def decode(bits: int) -> Value:
        sign, magnitude = bits >> sign_shift, bits & magnitude_mask
        if magnitude > largest:
            return sign, INFINITE if magnitude == infinity else NAN, 0
        field = magnitude >> fraction_bits
        if field:
            return sign, magnitude & fraction_mask | hidden, field + below
        return sign, 0 if flush else magnitude, quantum

    return cache(decode) if number.width <= 16 else decode


@dataclass(frozen=True)
class Finish:
    """What follows the exact result: rounding and the modifiers of the result."""

    mode: str = "rn"
    ftz: bool = False
    sat: bool = False
    relu: bool = False
    satfinite: bool = False


@cache
def encoder(kind: str, finish: Finish) -> Callable[[Value], int]:
    """A value to the bits of a format: rounded, flushed, clamped, in this order."""
    number, sign_bit = FORMATS[kind], FORMATS[kind].sign_bit
    one = round_exactly(number, 1)
    plain = not (finish.ftz or finish.sat or finish.relu or finish.satfinite)

    def encode(value: Value) -> int:
        sign, mantissa, _ = value
        if mantissa >= 0:
            bits = number.round(value, finish.mode)
            if plain:
                return bits
        elif mantissa == INFINITE and number.infinity is not None:
            bits = number.infinity | sign_bit * sign
        elif mantissa == INFINITE:
            bits = number.largest | sign_bit * sign
        else:
            return 0 if finish.sat else number.nan
        magnitude = bits & (sign_bit - 1)
        if finish.satfinite and magnitude > number.largest:
            magnitude = number.largest
        if finish.ftz and magnitude < number.smallest_normal:
            magnitude = 0
        if finish.sat:
            return 0 if sign else min(magnitude, one)
        return 0 if finish.relu and sign else magnitude | sign_bit * sign

    return encode


def round_exactly(number: Format, integer: int) -> int:
    return number.round((0, integer, 0), "rn")


def multiply(a: Value, b: Value) -> Value:
    sign = a[0] ^ b[0]
    if a[1] < 0 or b[1] < 0:
        invalid = a[1] == NAN or b[1] == NAN or a[1] == 0 or b[1] == 0
        return NAN_VALUE if invalid else (sign, INFINITE, 0)
    return sign, a[1] * b[1], a[2] + b[2]


def add(a: Value, b: Value, mode: str) -> Value:
    """IEEE 754: an exact zero is +0 (-0 in mode rm) unless both terms have the same sign."""
    if a[1] < 0 or b[1] < 0:
        if a[1] == NAN or b[1] == NAN or (a[1] == b[1] and a[0] != b[0]):
            return NAN_VALUE
        return a if a[1] == INFINITE else b
    exponent = min(a[2], b[2])
    total = (-a[1] if a[0] else a[1]) << (a[2] - exponent)
    total += (-b[1] if b[0] else b[1]) << (b[2] - exponent)
    if total == 0:
        return (a[0] if a[0] == b[0] else int(mode == "rm")), 0, 0
    return int(total < 0), abs(total), exponent


def divide(a: Value, b: Value) -> Value:
    """The quotient to 70 bits with a sticky last bit, which rounds like the exact one."""
    sign = a[0] ^ b[0]
    if NAN in (a[1], b[1]) or a[1] == b[1] == INFINITE or a[1] == b[1] == 0:
        return NAN_VALUE
    if a[1] == INFINITE or b[1] == 0:
        return sign, INFINITE, 0
    if b[1] == INFINITE or a[1] == 0:
        return sign, 0, 0
    extra = 70 + b[1].bit_length()
    quotient, rest = divmod(a[1] << extra, b[1])
    return sign, quotient << 1 | (rest > 0), a[2] - b[2] - extra - 1


def square_root(a: Value) -> Value:
    if a[1] == 0:
        return a
    if a[1] == NAN or a[0]:
        return NAN_VALUE
    if a[1] == INFINITE:
        return a
    mantissa, exponent = a[1] << 140 + (a[2] & 1), a[2] - (a[2] & 1) - 140
    root = isqrt(mantissa)
    return 0, root << 1 | (root * root < mantissa), exponent // 2 - 1


def lanewise(scalar: Bits, kind: str, arity: int) -> Bits:
    """The function on both halves of packed operands (lower half first)."""
    if kind not in PACKED:
        return scalar
    width = width_of(PACKED[kind])
    mask = mask_of(width)
    if arity == 1:
        return lambda a: scalar(a & mask) | scalar(a >> width) << width
    if arity == 2:
        return lambda a, b: scalar(a & mask, b & mask) | scalar(a >> width, b >> width) << width
    return lambda a, b, c: (
        scalar(a & mask, b & mask, c & mask) | scalar(a >> width, b >> width, c >> width) << width
    )


EXACT: dict[str, tuple[int, Callable[..., Value]]] = {
    "add": (2, lambda mode, a, b: add(a, b, mode)),
    "sub": (2, lambda mode, a, b: add(a, (b[0] ^ 1, b[1], b[2]), mode)),
    "mul": (2, lambda mode, a, b: multiply(a, b)),
    "fma": (3, lambda mode, a, b, c: add(multiply(a, b), c, mode)),
    "mad": (3, lambda mode, a, b, c: add(multiply(a, b), c, mode)),
    "div": (2, lambda mode, a, b: divide(a, b)),
    "rcp": (1, lambda mode, a: divide((0, 1, 0), a)),
    "sqrt": (1, lambda mode, a: square_root(a)),
}


def float_arithmetic(parts: Modifiers) -> Reference:
    """9.7.3 (f32, f64, f32x2) and 9.7.4 (f16, bf16): one rounding of the exact result."""
    kind = parts.parts[-1]
    element = PACKED.get(kind, kind)
    rounding_required = parts.name not in ("add", "sub", "mul")
    modes = ("rn",) if element.endswith("16") else ("rn", "rz", "rm", "rp")
    mode = parts.choice(*modes, default=None if rounding_required else "rn")
    ftz = element in ("f16", "f32") and parts.flag("ftz")
    sat = parts.name in ("add", "sub", "mul", "fma", "mad") and element in ("f16", "f32")
    sat = sat and kind != "f32x2" and parts.flag("sat")
    relu = parts.name == "fma" and element.endswith("16") and not sat and parts.flag("relu")
    parts.types(1)
    arity, exact = EXACT[parts.name]
    decode, encode = decoder(element, ftz), encoder(element, Finish(mode, ftz, sat, relu))
    if arity == 1:
        scalar: Bits = lambda a: encode(exact(mode, decode(a)))  # noqa: E731
    elif arity == 2:
        scalar = lambda a, b: encode(exact(mode, decode(a), decode(b)))  # noqa: E731
    else:
        scalar = lambda a, b, c: encode(exact(mode, decode(a), decode(b), decode(c)))  # noqa: E731
    compute = lanewise(scalar, kind, arity)
    return Reference(parts.opcode, (kind,) * arity, kind, compute, any_nan=element == "f64")


def float_or_mixed(parts: Modifiers) -> Reference:
    """9.7.3 add and fma, and 9.7.5 mixed precision: what fma.rn.f32.f16 multiplies, or add.rn.f32.f16
    takes first, is fp16; the last operand and the result are fp32."""
    if len(parts.parts) < 2 or parts.parts[-2] != "f32":
        return float_arithmetic(parts)
    parts.choice("rn")
    wide, narrow = parts.types(2)
    if narrow not in ("f16", "bf16"):
        raise parts.fail()
    arity, exact = EXACT[parts.name]
    kinds = (*(narrow,) * (arity - 1), wide)
    decoders = [decoder(kind, False) for kind in kinds]
    encode = encoder(wide, Finish("rn", False, False, False))

    def scalar(*bits: int) -> int:
        return encode(exact("rn", *(decode(b) for decode, b in zip(decoders, bits, strict=True))))

    return Reference(parts.opcode, kinds, wide, scalar)


def copy_sign(parts: Modifiers) -> Reference:
    """9.7.3 copysign: the sign of a on the magnitude of b."""
    (kind,) = parts.types(1)
    if kind != "f32":
        raise parts.fail()
    return Reference(
        parts.opcode, (kind, kind), kind, lambda a, b: (a >> 31 << 31) | b & mask_of(31)
    )


def float_sign(parts: Modifiers) -> Reference:
    """9.7.3.9 abs, .10 neg and 9.7.4.5 neg, .6 abs: a NaN gives an unspecified NaN."""
    kind = parts.parts[-1]
    element = PACKED.get(kind, kind)
    number = FORMATS[element]
    floor = number.smallest_normal if element in ("f16", "f32") and parts.flag("ftz") else 0
    parts.types(1)
    if kind == "f32x2":
        raise parts.fail()
    flip = number.sign_bit if parts.name == "neg" else 0

    def scalar(a: int) -> int:
        magnitude, sign = a & (number.sign_bit - 1), a & number.sign_bit
        if number.is_nan(a):
            return number.nan
        magnitude = 0 if magnitude < floor else magnitude
        return (sign ^ flip if flip else 0) | magnitude

    return Reference(parts.opcode, (kind,), kind, lanewise(scalar, kind, 1), any_nan=True)


def float_extremum(parts: Modifiers) -> Reference:
    """9.7.3.11 min, .12 max and 9.7.4.7, .8: -0 < +0; a NaN loses unless `.NaN` is given."""
    kind = parts.parts[-1]
    element = PACKED.get(kind, kind)
    number = FORMATS[element]
    floor = number.smallest_normal if element in ("f16", "f32") and parts.flag("ftz") else 0
    propagates = element != "f64" and parts.flag("NaN")
    parts.types(1)
    if kind == "f32x2":
        raise parts.fail()
    choose, sign_bit = (min if parts.name == "min" else max), number.sign_bit

    def flushed(a: int) -> int:
        return a & sign_bit if a & (sign_bit - 1) < floor else a

    def key(a: int) -> int:
        return ~(a & (sign_bit - 1)) if a & sign_bit else a

    def scalar(a: int, b: int) -> int:
        a, b = flushed(a), flushed(b)
        if number.is_nan(a):
            return number.nan if propagates or number.is_nan(b) else b
        if number.is_nan(b):
            return number.nan if propagates else a
        return choose(a, b, key=key)

    return Reference(parts.opcode, (kind, kind), kind, lanewise(scalar, kind, 2))


# ---- conversions --------------------------------------------------------------------------------


def convert(parts: Modifiers) -> Reference:
    """9.7.9.21 cvt."""
    if len(parts.parts) < 2:
        raise parts.fail()
    source, target = parts.parts.pop(), parts.parts.pop()
    if target in PACKED:
        return convert_packed(parts, target, source)
    known = {kind for kind in (*INTEGERS, *FORMATS) if kind not in ("b8", "b16", "b32", "b64")}
    if not {source, target} <= known - {"e4m3", "e5m2"} or source == "tf32":
        raise parts.fail()
    if source in FORMATS and target in FORMATS:
        return float_to_float(parts, target, source)
    if source in FORMATS:
        return float_to_integer(parts, target, source)
    if target in FORMATS:
        return integer_to_float(parts, target, source)
    return integer_to_integer(parts, target, source)


def integer_to_integer(parts: Modifiers, target: str, source: str) -> Reference:
    """9.7.9.21: extended by the source's sign, then cut; `.sat` clamps, where a value can be out."""
    read, mask, saturates = reader(source), mask_of(INTEGERS[target]), parts.flag("sat")
    parts.types(0)
    (low, high), (lowest, highest) = limits(source), limits(target)
    if saturates and lowest <= low and high <= highest:
        raise parts.fail()

    def compute(a: int) -> int:
        return clamp(read(a), target) if saturates else read(a) & mask

    return Reference(parts.opcode, (source,), target, compute)


def integer_to_float(parts: Modifiers, target: str, source: str) -> Reference:
    """9.7.9.21: rounding is mandatory."""
    mode, sat = parts.choice("rn", "rz", "rm", "rp"), parts.flag("sat")
    parts.types(0)
    read, encode = reader(source), encoder(target, Finish(mode, sat=sat))

    def compute(a: int) -> int:
        value = read(a)
        return encode((int(value < 0), abs(value), 0))

    return Reference(parts.opcode, (source,), target, compute)


INTEGER_ROUNDING = {"rni": "rn", "rzi": "rz", "rmi": "rm", "rpi": "rp"}


def to_integer(value: Value, mode: str) -> int:
    """A finite value rounded to an integer."""
    sign, mantissa, exponent = value
    if exponent >= 0:
        magnitude = mantissa << exponent
    else:
        magnitude = mantissa >> -exponent
        lost = mantissa - (magnitude << -exponent)
        magnitude += _rounds_up(mode, sign, magnitude & 1, lost, 1 << (-exponent - 1))
    return -magnitude if sign else magnitude


def float_to_integer(parts: Modifiers, target: str, source: str) -> Reference:
    """9.7.9.21: clamped; NaN gives 0, but the top bit for f64 or for 64-bit integers."""
    mode = INTEGER_ROUNDING[parts.choice(*INTEGER_ROUNDING)]
    flush = source == "f32" and parts.flag("ftz")
    parts.flag("sat")  # redundant, says the ISA
    parts.types(0)
    width, decode, (low, high) = INTEGERS[target], decoder(source, flush), limits(target)
    invalid = 1 << (width - 1) if source == "f64" or width == 64 else 0

    def compute(a: int) -> int:
        value = decode(a)
        if value[1] == NAN:
            return invalid
        if value[1] == INFINITE:
            return (low if value[0] else high) & mask_of(width)
        return clamp(to_integer(value, mode), target)

    return Reference(parts.opcode, (source,), target, compute)


def float_to_float(parts: Modifiers, target: str, source: str) -> Reference:
    """9.7.9.21: rounded where precision is lost; `.rni` and so on within one format."""
    if source == target and set(parts.parts) & set(INTEGER_ROUNDING):
        return float_to_integral_float(parts, source)
    narrows = FORMATS[target].precision < FORMATS[source].precision
    narrows |= FORMATS[target].quantum > FORMATS[source].quantum
    modes = ("rn", "rz", "rna") if target == "tf32" else ("rn", "rz", "rm", "rp")
    mode = parts.choice(*modes) if narrows else "rn"
    ftz = "f32" in (source, target) and parts.flag("ftz")
    sat = target in ("f16", "f32", "f64") and parts.flag("sat")
    from_f32 = source == "f32" and target in ("f16", "bf16", "tf32")
    relu = from_f32 and parts.flag("relu")
    satfinite = from_f32 and parts.flag("satfinite")
    parts.types(0)
    finish = Finish(mode, ftz and target == "f32", sat, relu, satfinite)
    decode, encode = decoder(source, ftz and source == "f32"), encoder(target, finish)
    shift_up = 13 if target == "tf32" else 0

    def compute(a: int) -> int:
        return encode(decode(a)) << shift_up

    unspecified = "f64" in (source, target) or (source, target) == ("bf16", "f32")
    return Reference(parts.opcode, (source,), target, compute, any_nan=unspecified)


def float_to_integral_float(parts: Modifiers, kind: str) -> Reference:
    """9.7.9.21, Integer Notes: the integer in the same format; the sign of a zero stays."""
    mode = INTEGER_ROUNDING[parts.choice(*INTEGER_ROUNDING)]
    ftz = kind == "f32" and parts.flag("ftz")
    sat = kind != "bf16" and parts.flag("sat")
    parts.types(0)
    decode, encode = decoder(kind, ftz), encoder(kind, Finish(sat=sat))

    def compute(a: int) -> int:
        value = decode(a)
        if value[1] < 0:
            return encode(value)
        return encode((value[0], abs(to_integer(value, mode)), 0))

    return Reference(parts.opcode, (kind,), kind, compute, any_nan=kind == "f64")


def convert_packed(parts: Modifiers, target: str, source: str) -> Reference:
    """9.7.9.21: two f32 (the first becomes the upper half), or one packed pair, to a pair."""
    element, narrow = PACKED[target], PACKED[target] in ("e4m3", "e5m2")
    if element == "f32" or source not in ("f32", "f16x2", "bf16x2", "e4m3x2", "e5m2x2"):
        raise parts.fail()
    if source != "f32" and (PACKED[source] in ("e4m3", "e5m2")) == narrow:
        raise parts.fail()
    if source != "f32" and not narrow and target != "f16x2":
        raise parts.fail()
    mode = parts.choice("rn", "rz") if source == "f32" and not narrow else parts.choice("rn")
    satfinite = parts.flag("satfinite") if narrow or source == "f32" else False
    if narrow and not satfinite:
        raise parts.fail()
    relu = parts.flag("relu")
    parts.types(0)
    decode = decoder(PACKED.get(source, source))
    encode = encoder(element, Finish(mode, relu=relu, satfinite=satfinite))
    if source == "f32":
        width = width_of(element)
        return Reference(
            parts.opcode,
            ("f32", "f32"),
            target,
            lambda a, b: encode(decode(a)) << width | encode(decode(b)),
        )
    into, out_of = width_of(element), width_of(PACKED[source])
    mask = mask_of(out_of)
    return Reference(
        parts.opcode,
        (source,),
        target,
        lambda a: encode(decode(a >> out_of)) << into | encode(decode(a & mask)),
    )


# ---- the table of families ----------------------------------------------------------------------

Rule = Callable[[Modifiers], Reference]


def by_type(integers: Rule, floats: Rule) -> Rule:
    """Mnemonics that integers and floating-point numbers share: the last part decides."""

    def build(parts: Modifiers) -> Reference:
        kind = parts.parts[-1] if parts.parts else ""
        is_float = PACKED.get(kind, kind) in ("f64", "f32", "f16", "bf16")
        return (floats if is_float else integers)(parts)

    return build


FAMILIES: dict[str, Rule] = {
    "add": by_type(integer_binary, float_or_mixed),
    **dict.fromkeys(("sub", "div"), by_type(integer_binary, float_arithmetic)),
    "rem": integer_binary,
    **dict.fromkeys(("mul", "mad"), by_type(integer_multiply, float_arithmetic)),
    "copysign": copy_sign,
    "fma": float_or_mixed,
    **dict.fromkeys(("rcp", "sqrt"), float_arithmetic),
    **dict.fromkeys(("min", "max"), by_type(integer_binary, float_extremum)),
    **dict.fromkeys(("neg", "abs"), by_type(integer_unary, float_sign)),
    **dict.fromkeys(("popc", "clz", "brev"), bit_count),
    **dict.fromkeys(("and", "or", "xor", "not"), logic),
    **dict.fromkeys(("shl", "shr"), shift),
    "bfe": bit_field_extract,
    "bfi": bit_field_insert,
    "dp4a": dot_product,
    "lop3": lookup_table,
    "prmt": permute,
    "shf": funnel_shift,
    "mov": move,
    "selp": select,
    "setp": compare,
    "cvt": convert,
}


@cache
def reference(opcode: str) -> Reference:
    """The exact meaning of one full opcode, such as `cvt.rn.satfinite.e4m3x2.f32`."""
    parts = Modifiers(opcode)
    if parts.name not in FAMILIES or not parts.parts:
        raise parts.fail()
    return FAMILIES[parts.name](parts)


def results(rule: Reference, operands: Sequence[Sequence[int]]) -> list[int]:
    """The rule on many cases: one sequence of bits per operand."""
    return list(map(rule.compute, *operands))

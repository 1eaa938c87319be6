"""Operands for the opcode tests: where PTX arithmetic goes wrong, and random bits everywhere else.

`operands(rule)` gives one array of bits per operand. Short formats are exhausted; otherwise there
are 20,480 cases, drawn from random bits, small numbers, the ends of the range and, for floats, ties
and their neighbours, cancellation, products at the borders of the range, and NaNs with payloads.
"""

import zlib

import numpy as np
from ptx_reference import FORMATS, INTEGERS, PACKED, Format, Reference, reference, results, width_of

Array = np.ndarray
COUNT = 20_480
SHIFT_AMOUNTS = {"shl": (1,), "shr": (1,), "shf": (2,), "bfe": (1, 2), "bfi": (2, 3)}
FLOATS = ("f64", "f32", "f16", "bf16")


def operands(rule: Reference, count: int = COUNT) -> list[Array]:
    """Cases of an opcode, the same in every run; those it leaves undefined are replaced."""
    rng = np.random.default_rng(zlib.crc32(rule.opcode.encode()))
    kinds = rule.operands
    if len(kinds) == 1 and width_of(kinds[0]) <= 32 and element_width(kinds[0]) <= 16:
        return [exhausted(kinds[0], rng)]
    if all(PACKED.get(kind, kind) in FLOATS for kind in kinds[:2]):
        columns = float_columns(rule, rng, count)
    else:
        columns = [integers(kind, rng, count) for kind in kinds]
    for index in SHIFT_AMOUNTS.get(rule.opcode.split(".")[0], ()):
        near = rng.integers(0, 70, count, dtype=np.uint64)
        columns[index] = np.where(rng.random(count) < 0.8, near, columns[index])
    put_corners(kinds, columns)
    if rule.undefined(1, 0):
        columns[1][columns[1] == 0] = 1
    return columns


def put_corners(kinds: tuple[str, ...], columns: list[Array]) -> None:
    """The first cases become all combinations of zeros, ends of the range, infinities, NaNs."""
    corners = [corners_of(kind, 9 if len(kinds) < 3 else 6) for kind in kinds]
    for column, values in zip(columns, np.meshgrid(*corners), strict=True):
        column[: values.size] = values.ravel()


def corners_of(kind: str, count: int) -> Array:
    width = {"pred": 1, "imm8": 8}.get(kind) or width_of(kind)
    if kind == "pred":
        return np.arange(2, dtype=np.uint64)
    if kind in INTEGERS or kind == "imm8":
        top = 1 << (width - 1)
        values = [0, 1, top, top - 1, 2 * top - 1, width, 2, top + 1, width - 1]
        return np.array(values[: count - 1], np.uint64)
    number = FORMATS[PACKED.get(kind, kind)]
    one, normal = number.round((0, 1, 0), "rn"), number.smallest_normal
    values = [0, one, number.infinity, number.nan, number.largest, 1, normal, normal - 1]
    values = [v | s for v in [*values, number.infinity + 1][:count] for s in (0, number.sign_bit)]
    lower = np.array(values, np.uint64)
    if kind not in PACKED:
        return lower
    return lower | np.roll(lower, 1) << np.uint64(number.width)


def element_width(kind: str) -> int:
    return width_of(PACKED.get(kind, kind))


def exhausted(kind: str, rng: np.random.Generator) -> Array:
    """Every value of a short format; a packed pair has every value in each half."""
    width = width_of(kind)
    if width <= 16:
        return np.arange(1 << width, dtype=np.uint64)
    half = np.arange(1 << 16, dtype=np.uint64)
    return half | rng.permutation(half) << np.uint64(16)


def mask(width: int) -> np.uint64:
    return np.uint64((1 << width) - 1)


def random_bits(width: int, rng: np.random.Generator, count: int) -> Array:
    return rng.integers(0, 1 << 64, count, dtype=np.uint64) & mask(width)


def pick(rng: np.random.Generator, *columns: Array) -> Array:
    """Each case from one of the columns."""
    return np.choose(rng.integers(0, len(columns), len(columns[0])), columns)


def jitter(rng: np.random.Generator, count: int, most: int = 1) -> Array:
    """-most .. most, as addends modulo 2^64."""
    return rng.integers(-most, most + 1, count).astype(np.int64).view(np.uint64)


def tie_pattern(bits: Array, low: Array, rng: np.random.Generator) -> Array:
    """The lowest `low` bits become 100..0, or the pattern just below or above that."""
    one = np.uint64(1)
    cleared = bits >> low << low
    half = np.where(low > 0, one << (np.maximum(low, one) - one), np.uint64(0))
    return cleared + half + np.where(low > 0, jitter(rng, len(bits)), np.uint64(0))


# ---- integers -----------------------------------------------------------------------------------


def integers(kind: str, rng: np.random.Generator, count: int) -> Array:
    width = {"pred": 1, "imm8": 8}.get(kind) or width_of(kind)
    if kind in PACKED or kind in FORMATS:
        return floats(PACKED.get(kind, kind), rng, count)
    if width == 1:
        return random_bits(1, rng, count)
    top = 1 << (width - 1)
    ends = [0, 1, 2, top - 2, top - 1, top, top + 1, 2 * top - 1, 2 * top - 2, 0x5555 % top]
    ends += [7, 8, 31, 32, 33, 63, 64, 127, 128, 255, top | 0x55, 0x80, 0x7F7F % top]
    bits = random_bits(width, rng, count)
    length = rng.integers(1, width + 1, count).astype(np.uint64)
    short = bits >> (np.uint64(width) - length)
    dropped = np.maximum(length.astype(np.int64) - rng.choice([8, 11, 24, 53], count), 0)
    ties = tie_pattern(short, dropped.astype(np.uint64), rng)
    ties = np.where(rng.random(count) < 0.5, ties, ~ties + np.uint64(1))
    special = rng.choice(np.array(ends, np.uint64), count)
    return pick(rng, bits, short, ties, special, jitter(rng, count, 20)) & mask(width)


# ---- floating point -----------------------------------------------------------------------------


def specials(number: Format) -> Array:
    """Zeros, infinities, NaNs, the ends of the normal and subnormal range, with both signs."""
    one = number.round((0, 1, 0), "rn")
    normal, infinity, largest = number.smallest_normal, number.infinity, number.largest
    magnitudes = [0, 1, 2, 3, normal - 1, normal, normal + 1, largest, largest - 1, infinity]
    magnitudes += [infinity + 1, infinity + (normal >> 1), number.nan, number.nan - 1]
    magnitudes += [one - 1, one, one + 1, one + normal, one - normal, one + normal // 2]
    for power in (7, 8, 15, 16, 31, 32, 63, 64):
        edge = number.round((0, 1, power), "rn")
        magnitudes += [edge - 1, edge, min(edge + 1, largest)]
    return np.array([m | s for m in magnitudes for s in (0, number.sign_bit)], np.uint64)


def field_of(bits: Array, number: Format) -> Array:
    """The biased exponents, signed so that they can be computed with."""
    magnitude = bits & np.uint64(number.sign_bit - 1)
    return (magnitude >> np.uint64(number.precision - 1)).astype(np.int64)


def with_field(bits: Array, field: Array, number: Format) -> Array:
    """The same signs and fractions with other exponents, kept finite."""
    shift = np.uint64(number.precision - 1)
    rest = bits & np.uint64(number.sign_bit | (number.smallest_normal - 1))
    field = np.clip(field, 0, (number.largest >> (number.precision - 1)))
    return rest | field.astype(np.uint64) << shift


def bias(number: Format) -> int:
    return number.round((0, 1, 0), "rn") >> (number.precision - 1)


def floats(kind: str, rng: np.random.Generator, count: int) -> Array:
    """Bits of one format: everything, the special ones, and ties at every bit position."""
    number = FORMATS[kind]
    bits = random_bits(number.width, rng, count)
    near_one = with_field(bits, bias(number) + rng.integers(-20, 21, count), number)
    farther = with_field(bits, bias(number) + rng.integers(-70, 71, count), number)
    low = rng.integers(0, number.precision, count).astype(np.uint64)
    ties = tie_pattern(pick(rng, bits, near_one, farther), low, rng) & mask(number.width)
    return pick(rng, bits, near_one, farther, ties, ties, rng.choice(specials(number), count))


def float_columns(rule: Reference, rng: np.random.Generator, count: int) -> list[Array]:
    """Operands of a float instruction; the halves of packed ones are drawn one after the other."""
    kind = rule.operands[0]
    if kind not in PACKED or rule.opcode.startswith("cvt"):
        return related(kind, rule, rng, count)
    lower = related(PACKED[kind], rule, rng, count)
    upper = related(PACKED[kind], rule, rng, count)
    width = np.uint64(width_of(PACKED[kind]))
    return [low | high << width for low, high in zip(lower, upper, strict=True)]


def related(kind: str, rule: Reference, rng: np.random.Generator, count: int) -> list[Array]:
    """Two or three operands that cancel, tie, or meet a border, or have nothing in common."""
    number = FORMATS[kind]
    a, b = floats(kind, rng, count), floats(kind, rng, count)
    if len(rule.operands) == 1:
        return [a]
    choice = rng.integers(0, 8, count)
    sign = random_bits(1, rng, count) * np.uint64(number.sign_bit)
    almost_a = (a ^ sign) + jitter(rng, count, 3) & mask(number.width)
    a, b = short_products(a, b, choice == 2, number, rng)
    b = np.select([choice == 0, choice == 1], [almost_a, half_ulp(a, sign, number, rng)], b)
    b = np.where(choice == 3, border_partner(a, b, number, rng), b)
    if len(rule.operands) == 2:
        return [a, b]
    if rule.operands[2] == "pred":
        return [a, b, random_bits(1, rng, count)]
    return [a, b, addends(kind, a, b, rng)]


def half_ulp(a: Array, sign: Array, number: Format, rng: np.random.Generator) -> Array:
    """Half a unit in the last place of `a`, or almost: added to `a` it makes a tie."""
    field = field_of(a, number) - number.precision + rng.integers(-1, 2, len(a))
    power = with_field(sign, field, number)
    return np.where(field > 0, power + jitter(rng, len(a)), power) & mask(number.width)


def short_products(
    a: Array, b: Array, where: Array, number: Format, rng: np.random.Generator
) -> tuple[Array, Array]:
    """Operands of few bits, whose exact product is a tie or fits."""
    kept = rng.integers(1, number.precision + 1, len(a))
    low_a = (number.precision - kept).astype(np.uint64)
    low_b = np.clip(kept - 1 - rng.integers(0, 3, len(a)), 0, number.precision - 1).astype(
        np.uint64
    )
    one = np.uint64(1)
    short_a, short_b = (a >> low_a | one) << low_a, (b >> low_b | one) << low_b
    return np.where(where, short_a, a), np.where(where, short_b, b)


def border_partner(a: Array, b: Array, number: Format, rng: np.random.Generator) -> Array:
    """The exponents of `a` and `b` add up to the largest, the smallest or a subnormal number."""
    highest = number.largest >> (number.precision - 1)
    small = rng.integers(-number.precision - 2, 3, len(a))
    target = np.where(rng.random(len(a)) < 0.3, highest + rng.integers(-2, 2, len(a)), small)
    return with_field(b, target + bias(number) - field_of(a, number), number)


def addends(kind: str, a: Array, b: Array, rng: np.random.Generator) -> Array:
    """The third operand of fma: minus the product, a tie with the product, tiny, or anything."""
    number, count = FORMATS[kind], len(a)
    product = np.array(results(reference(f"mul.rn.{kind}"), [a.tolist(), b.tolist()]), np.uint64)
    sign = random_bits(1, rng, count) * np.uint64(number.sign_bit)
    opposite = (product ^ np.uint64(number.sign_bit)) + jitter(rng, count, 2) & mask(number.width)
    tiny = sign | rng.integers(0, 3, count).astype(np.uint64)
    tie = half_ulp(product, sign, number, rng)
    twice = tie_partner(product, sign, number, rng)
    return pick(rng, floats(kind, rng, count), opposite, tiny, tie, twice)


def tie_partner(product: Array, sign: Array, number: Format, rng: np.random.Generator) -> Array:
    """A number of which the product is half a unit in the last place, or almost."""
    field = field_of(product, number) + number.precision + rng.integers(-1, 2, len(product))
    return with_field(random_bits(number.width, rng, len(product)) | sign, field, number)

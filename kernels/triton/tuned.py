"""The tile functions of `tiles.py` again, in inline PTX: what the best known instructions make of them.

A 16-bit weight needs half an instruction to be multiplied if two of them travel as one register of
two fp16 (a *pair*), so these functions turn a word into pairs without ever leaving registers. The codes of
an integer are put below the exponent of a number whose last place is UNIT, and its offset is subtracted:

    int4   0x5800 | code         = 128 + code / 8          one LOP3 for both halves of a pair
           0x5800 | code << 4    = 128 + code * 2          the upper nibbles of a byte: no shift
    int8   0x4800 | code         =   8 + code / 128        one PRMT for both halves

    others like int4: a LOP3 for each plane and pair, at places where few shifts are needed

    e4m3   s eeee mmm 0000000    = number * 2^-8           as fp16; sm_89 has an instruction for it
    e5m2   s eeeee mm 00000000   = number                  is an fp16 cut off: one PRMT for a pair
    e3m2   s 00eee mm 00000000   = number * 2^-12          a LOP3 for the sign, one for each plane; and
    e2m3   s 000ee mmm 0000000   = number * 2^-14          a multiplication, since products of numbers as
    e2m1   s 000ee m 000000000   = number * 2^-14          small would leave the normal numbers of fp16

The numbers that result are `(code - zero) * UNIT`, exact, and (but for e5m2, which fills fp16 and is
therefore multiplied in fp32) between -2 and 2: a product of sixteen of them with activations overflows
fp16 only where sixteen activations would. The caller multiplies by 1 / UNIT in fp32. A LOP3 holds one
constant in its instruction and the other in a register: written as `(w & mask) | magic` in Triton or
C++ it becomes two.

NF4 and FP4 make no pairs: each lane of a warp holds one of sixteen levels, and SHFL fetches the one that
a code names. SHFL looks at the four low bits of a code and no others, so nothing needs to be masked.

Triton's interpreter refuses inline PTX; the tests execute the compiled PTX on every code in every
place and compare it with `tiles.py` bit for bit.
"""

import triton
import triton.language as tl

from kernels import codebooks, formats
from kernels.triton import tiles

LEVELS = {name: codebooks.codebook(name).view("uint32").tolist() for name in ("nf4", "fp4")}


@triton.constexpr_function
def unit(bits, encoding):
    """What the numbers of this module are multiplied with."""
    if encoding == "int":
        return 2.0 ** (1 - bits)
    return {"e4m3": 2.0**-8, "e3m2": 2.0**-4, "e2m3": 2.0**-2, "e2m1": 2.0**-2}.get(encoding, 1.0)


@triton.constexpr_function
def makes_pairs(encoding):
    """Whether two weights at a time may be multiplied in fp16."""
    return encoding in ("int", "e4m3", "e3m2", "e2m3", "e2m1")


@triton.constexpr_function
def has_levels(encoding):
    """Whether sixteen levels in no simple order are to be looked up."""
    return encoding in LEVELS


@triton.constexpr_function
def select_level(encoding):
    """PTX that leaves one of sixteen levels in each lane of a warp, twice over: bits of an fp32 in $0."""
    picks = (
        f"setp.eq.u32 p, lane, {i}; selp.b32 $0, {bits}, $0, p;"
        for i, bits in enumerate(LEVELS[encoding])
    )
    start = ".reg .b32 lane; .reg .pred p; mov.u32 lane, %laneid; and.b32 lane, lane, 15;"
    return f"{{ {start} mov.b32 $0, $1; {' '.join(picks)} }}"


@triton.jit
def constants(
    zero,
    BITS: tl.constexpr,
    ENCODING: tl.constexpr,
    HAS_ZERO: tl.constexpr,
    UNIT: tl.constexpr = None,
):
    """What `number` and `pair` need beside the words: sixteen levels, or what is subtracted."""
    if has_levels(ENCODING):
        return tl.inline_asm_elementwise(
            select_level(ENCODING), "=&r,r", [0], dtype=tl.int32, is_pure=True, pack=1
        )
    elif BITS == 4 or BITS == 8:
        return zero_pairs(zero, BITS, HAS_ZERO, place_value(BITS, ENCODING, UNIT))
    else:
        return 0, 0  # not asked for: see pair_of_integers


@triton.constexpr_function
def place_value(bits, encoding, asked):
    """What 1 becomes in a pair: as asked, or `unit`."""
    return unit(bits, encoding) if asked is None else asked


@triton.jit
def zero_pairs(zero, BITS: tl.constexpr, HAS_ZERO: tl.constexpr, UNIT: tl.constexpr):
    """What `pairs` subtracts, for the lower and the upper nibbles of bytes: int32 tiles of two fp16.

    Args:
        zero: uint8 tile of zero points; anything where HAS_ZERO is false, for the middle code.
        BITS: of a code.
        HAS_ZERO: whether there are stored zero points.
        UNIT: what 1 becomes.
    """
    if HAS_ZERO:
        low = tl.inline_asm_elementwise(
            "prmt.b32 $0, $1, $2, 0x4040;",
            "=r,r,r",
            [zero.to(tl.int32), twice_fp16(1024.0 * UNIT) >> 8],
            dtype=tl.int32,
            is_pure=True,
            pack=1,
        )
        high = tl.inline_asm_elementwise(
            "sub.rn.f16x2 $0, $1, $2;",
            "=r,r,r",
            [low, twice_fp16(960.0 * UNIT)],  # 1024 - 1024 / 16
            dtype=tl.int32,
            is_pure=True,
            pack=1,
        )
        return low, high
    else:
        MIDDLE: tl.constexpr = tiles.middle(BITS)
        return twice_fp16((1024 + MIDDLE) * UNIT), twice_fp16((64 + MIDDLE) * UNIT)


@triton.jit
def pairs4(words, low, high, UNIT: tl.constexpr):
    """The 8 weights of int4 words: 4 tiles of two fp16, weights (2i, 2i + 1), times UNIT."""
    return tl.inline_asm_elementwise(
        """{
        .reg .b32 upper, a, b, c, d;
        shr.u32 upper, $4, 8;
        lop3.b32 a, $4, 0x000f000f, $5, 0xea;
        lop3.b32 b, $4, 0x00f000f0, $5, 0xea;
        lop3.b32 c, upper, 0x000f000f, $5, 0xea;
        lop3.b32 d, upper, 0x00f000f0, $5, 0xea;
        sub.rn.f16x2 $0, a, $6;
        sub.rn.f16x2 $2, c, $6;
        neg.f16x2 upper, $7;
        fma.rn.f16x2 $1, b, $8, upper;
        fma.rn.f16x2 $3, d, $8, upper;
        }""",
        "=&r,=&r,=&r,=&r,r,r,r,r,r",
        [words, twice_fp16(1024.0 * UNIT), low, high, 0x2C002C00],  # magic; zero points; 1 / 16
        dtype=(tl.int32, tl.int32, tl.int32, tl.int32),
        is_pure=True,
        pack=1,
    )


@triton.jit
def pairs8(words, low, UNIT: tl.constexpr):
    """The 4 weights of int8 words: 2 tiles of two fp16, times UNIT."""
    return tl.inline_asm_elementwise(
        """{
        .reg .b32 a, b;
        prmt.b32 a, $2, $3, 0x4140;
        prmt.b32 b, $2, $3, 0x4342;
        sub.rn.f16x2 $0, a, $4;
        sub.rn.f16x2 $1, b, $4;
        }""",
        "=&r,=&r,r,r,r",
        [words, twice_fp16(1024.0 * UNIT) >> 8, low],
        dtype=(tl.int32, tl.int32),
        is_pure=True,
        pack=1,
    )


@triton.jit
def pairs_e4m3(words, HAS_FP8: tl.constexpr):
    """The 4 weights of e4m3 words: 2 tiles of two fp16, times 2^-8."""
    if HAS_FP8:
        return tl.inline_asm_elementwise(
            """{
            .reg .b16 a, b;
            .reg .b32 low, high;
            mov.b32 {a, b}, $2;
            cvt.rn.f16x2.e4m3x2 low, a;
            cvt.rn.f16x2.e4m3x2 high, b;
            mul.rn.f16x2 $0, low, $3;
            mul.rn.f16x2 $1, high, $3;
            }""",
            "=&r,=&r,r,r",
            [words, 0x1C001C00],  # 2^-8
            dtype=(tl.int32, tl.int32),
            is_pure=True,
            pack=1,
        )
    else:
        return tl.inline_asm_elementwise(
            """{
            .reg .b32 a, b, c, d;
            prmt.b32 a, $2, 0, 0x1404;
            prmt.b32 b, $2, 0, 0x3424;
            shr.u32 c, a, 1;
            shr.u32 d, b, 1;
            and.b32 c, c, 0x3f803f80;
            and.b32 d, d, 0x3f803f80;
            lop3.b32 $0, a, 0x80008000, c, 0xea;
            lop3.b32 $1, b, 0x80008000, d, 0xea;
            }""",
            "=&r,=&r,r",
            [words],
            dtype=(tl.int32, tl.int32),
            is_pure=True,
            pack=1,
        )


@triton.jit
def pairs_e5m2(words):
    """The 4 weights of e5m2 words: 2 tiles of two fp16."""
    return tl.inline_asm_elementwise(
        """
        prmt.b32 $0, $2, 0, 0x1404;
        prmt.b32 $1, $2, 0, 0x3424;
        """,
        "=&r,=&r,r",
        [words],
        dtype=(tl.int32, tl.int32),
        is_pure=True,
        pack=1,
    )


@triton.jit
def merge(
    words,
    i: tl.constexpr,
    plane: tl.constexpr,
    BITS: tl.constexpr,
    mask: tl.constexpr,
    place: tl.constexpr,
    total,
):
    """Bits of weights 2i and 2i + 1 put beside what is there: a LOP3, and a shift that others may share.

    Args:
        words: tuple of int32 tiles.
        i: which pair.
        plane: whose bits.
        BITS: of a code.
        mask: which bits of the plane's field.
        place: bit of either half where the lowest bit of the field goes.
        total: int32 tile or number.
    """
    word = words[tiles.word_of(2 * i, BITS, plane, len(words))].to(tl.uint32, bitcast=True)
    shift: tl.constexpr = place - tiles.shift_of(2 * i, tiles.width(BITS, plane))
    if shift > 0:
        word = word << shift
    elif shift < 0:
        word = word >> -shift
    return tl.inline_asm_elementwise(
        "lop3.b32 $0, $1, $2, $3, 0xea;",
        "=r,r,r,r",
        [word, twice(mask << place), total],
        dtype=tl.int32,
        is_pure=True,
        pack=1,
    )


@triton.constexpr_function
def twice(half):
    """A register of two equal halves, as a signed integer."""
    bits = half << 16 | half
    return bits - (bits >> 31 << 32)


@triton.constexpr_function
def twice_fp16(number):
    """A register of two equal fp16, as a signed integer. The number must be one, and normal."""
    fraction, exponent = abs(number), 15
    while fraction >= 2:
        fraction, exponent = fraction / 2, exponent + 1
    while fraction < 1:
        fraction, exponent = fraction * 2, exponent - 1
    mantissa = int((fraction - 1) * 1024)
    assert 0 < exponent < 31
    assert fraction == 1 + mantissa / 1024
    half = (0x8000 if number < 0 else 0) | exponent << 10 | mantissa
    bits = half << 16 | half
    return bits - (bits >> 31 << 32)


@triton.constexpr_function
def place_of_pair(i, bits):
    """Bit of either half where the codes of weights 2i and 2i + 1 go, below an exponent.

    That of the widest plane's field modulo 8, where room is below it: one shift by 8 serves many pairs. A
    code of one bit needs room for the half that is subtracted.
    """
    at = formats.PLANES[bits][0] * i % 8
    below = sum(formats.PLANES[bits][1:])
    return max(at, below) - below if bits > 1 else max(at, 1)


@triton.jit
def pair_of_integers(words, i: tl.constexpr, BITS: tl.constexpr, UNIT: tl.constexpr):
    """Weights 2i and 2i + 1 of symmetric integers of less than 8 bits, times UNIT."""
    PLACE: tl.constexpr = place_of_pair(i, BITS)
    MAGIC: tl.constexpr = 1024.0 * UNIT  # its last place is UNIT
    OFFSET: tl.constexpr = MAGIC * 2.0**-PLACE + tiles.middle(BITS) * UNIT
    codes = twice_fp16(MAGIC)
    for plane in tl.static_range(tiles.planes(BITS)):
        codes = merge(
            words,
            i,
            plane,
            BITS,
            (1 << tiles.width(BITS, plane)) - 1,
            PLACE + tiles.after(BITS, plane),
            codes,
        )
    return multiply_add(codes, twice_fp16(2.0**-PLACE), twice_fp16(-OFFSET))


@triton.jit
def pair_of_floats(words, i: tl.constexpr, BITS: tl.constexpr, ENCODING: tl.constexpr):
    """Weights 2i and 2i + 1 of small floats of less than 8 bits, times `unit`."""
    LAYOUT: tl.constexpr = tiles.layout_of(ENCODING)
    SIGN: tl.constexpr = 1 << (tiles.width(BITS, 0) - 1)
    numbers = merge(words, i, 0, BITS, SIGN, 16 - tiles.width(BITS, 0), 0)
    for plane in tl.static_range(tiles.planes(BITS)):
        numbers = merge(
            words,
            i,
            plane,
            BITS,
            SIGN - 1 if plane == 0 else (1 << tiles.width(BITS, plane)) - 1,
            10 - LAYOUT[1] + tiles.after(BITS, plane),
            numbers,
        )
    return tl.inline_asm_elementwise(
        "mul.rn.f16x2 $0, $1, $2;",
        "=r,r,r",
        [numbers, twice_fp16(unit(BITS, ENCODING) * LAYOUT[2] * 2.0**-112)],  # 112 = 127 - 15
        dtype=tl.int32,
        is_pure=True,
        pack=1,
    )


@triton.jit
def pair(
    words,
    i: tl.constexpr,
    known,
    BITS: tl.constexpr,
    ENCODING: tl.constexpr,
    HAS_FP8: tl.constexpr,
    UNIT: tl.constexpr = None,
):
    """Weights 2i and 2i + 1 of int32 words as a pair.

    All pairs of a word are made at once; the compiler sees that it is always the same.

    Args:
        words: tuple of int32 tiles, plane after plane.
        i: which pair.
        known: `constants`.
        BITS: of a code.
        ENCODING: what a code stands for.
        HAS_FP8: whether the target converts FP8, as sm_89 and later do.
        UNIT: of integers, what 1 becomes; None for `unit`.
    """
    ONE: tl.constexpr = place_value(BITS, ENCODING, UNIT)
    if BITS == 8:
        word = words[i // 2]
        if ENCODING == "e4m3":
            return pairs_e4m3(word, HAS_FP8)[i % 2]
        elif ENCODING == "e5m2":
            return pairs_e5m2(word)[i % 2]
        else:
            return pairs8(word, known[0], ONE)[i % 2]
    elif ENCODING != "int":
        return pair_of_floats(words, i, BITS, ENCODING)
    elif BITS == 4:
        return pairs4(words[i // 4], known[0], known[1], ONE)[i % 4]
    else:
        return pair_of_integers(words, i, BITS, ONE)


@triton.jit
def number(
    words,
    i: tl.constexpr,
    known,
    BITS: tl.constexpr,
    ENCODING: tl.constexpr,
    HAS_FP8: tl.constexpr,
):
    """Weight i of each word before scaling, times UNIT: fp32, exact. All lanes must be there."""
    if has_levels(ENCODING):
        word = words[i * BITS // 32].to(tl.uint32, bitcast=True)
        return tl.inline_asm_elementwise(
            "shfl.sync.idx.b32 $0, $1, $2, 0x101f, 0xffffffff;",
            "=f,r,r",
            [known, word >> tiles.place_of(i, BITS)],
            dtype=tl.float32,
            is_pure=False,
            pack=1,
        )
    else:
        return widen(pair(words, i // 2, known, BITS, ENCODING, HAS_FP8))[i % 2]


@triton.jit
def numbers(words, known, BITS: tl.constexpr, ENCODING: tl.constexpr, HAS_FP8: tl.constexpr):
    """All weights of a unit of words [n, u], times UNIT: fp32 [n, u, per_unit(BITS)], in order."""
    parts = ()
    for i in tl.static_range(tiles.per_unit(BITS)):
        parts += (number(words, i, known, BITS, ENCODING, HAS_FP8),)
    shape: tl.constexpr = [words[0].shape[0], words[0].shape[1], tiles.per_unit(BITS)]
    return tl.reshape(tiles.join(parts), shape)


@triton.jit
def split_pair(pair):
    """The two numbers of a pair as fp16 tiles: names for halves of a register."""
    low = pair.to(tl.int16).to(tl.float16, bitcast=True)
    high = (pair >> 16).to(tl.int16).to(tl.float16, bitcast=True)
    return low, high


@triton.jit
def numbers16(
    words,
    known,
    BITS: tl.constexpr,
    ENCODING: tl.constexpr,
    HAS_FP8: tl.constexpr,
    dtype: tl.constexpr,
):
    """`numbers` in 16 bits, exact but for NF4 and FP4: pairs as they are, where they are of that dtype."""
    if dtype == tl.float16 and not has_levels(ENCODING):
        parts = ()
        for i in tl.static_range(tiles.per_unit(BITS) // 2):
            parts += split_pair(pair(words, i, known, BITS, ENCODING, HAS_FP8))
        shape: tl.constexpr = [words[0].shape[0], words[0].shape[1], tiles.per_unit(BITS)]
        return tl.reshape(tiles.join(parts), shape)
    else:
        return numbers(words, known, BITS, ENCODING, HAS_FP8).to(dtype)


@triton.jit
def twice_of(number):
    """A 16-bit number in both halves of a register."""
    return tl.inline_asm_elementwise(
        "mov.b32 $0, {$1, $1};", "=r,h", [number], dtype=tl.int32, is_pure=True, pack=1
    )


@triton.jit
def multiply(pair, factor):
    """`pair * factor` in each half, rounded to fp16: one instruction for two weights."""
    return tl.inline_asm_elementwise(
        "mul.rn.f16x2 $0, $1, $2;",
        "=r,r,r",
        [pair, factor],
        dtype=tl.int32,
        is_pure=True,
        pack=1,
    )


@triton.jit
def multiply_add(pair, x, total):
    """`total + pair * x` in each half, rounded to fp16: one instruction for two weights."""
    return tl.inline_asm_elementwise(
        "fma.rn.f16x2 $0, $1, $2, $3;",
        "=r,r,r,r",
        [pair, x, total],
        dtype=tl.int32,
        is_pure=True,
        pack=1,
    )


@triton.jit
def widen(pair):
    """The two numbers of a pair as fp32 tiles."""
    return tl.inline_asm_elementwise(
        """{
        .reg .b16 a, b;
        mov.b32 {a, b}, $2;
        cvt.f32.f16 $0, a;
        cvt.f32.f16 $1, b;
        }""",
        "=&f,=&f,r",
        [pair],
        dtype=(tl.float32, tl.float32),
        is_pure=True,
        pack=1,
    )

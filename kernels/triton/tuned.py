"""The tile functions of `tiles.py` again, in inline PTX: what the best known instructions make of them.

A 16-bit weight needs half an instruction to be multiplied if two of them travel as one register of
two fp16 (a *pair*), so these functions turn a word into pairs without ever leaving registers. The codes of
an integer are put below the exponent of a number whose last place is UNIT, and its offset is subtracted:

    int4   0x5800 | code         = 128 + code / 8          one LOP3 for both halves of a pair
           0x5800 | code << 4    = 128 + code * 2          the upper nibbles of a byte: no shift
    int8   0x4800 | code         =   8 + code / 128        one PRMT for both halves

    e4m3   s eeee mmm 0000000    = number * 2^-8           as fp16; sm_89 has an instruction for it
    e5m2   s eeeee mm 00000000   = number                  is an fp16 cut off: one PRMT for a pair

The numbers that result are `(code - zero) * UNIT`, exact, and (but for e5m2, which fills fp16 and is
therefore multiplied in fp32) between -2 and 2: a product of sixteen of them with activations overflows
fp16 only where sixteen activations would. The caller multiplies by 1 / UNIT in fp32. A LOP3 holds one
constant in its instruction and the other in a register: written as `(w & mask) | magic` in Triton or
C++ it becomes two.

NF4 makes no pairs: each lane of a warp holds one of its sixteen levels, and SHFL fetches the one that
a code names. SHFL looks at the four low bits of a code and no others, so nothing needs to be masked.

Triton's interpreter refuses inline PTX; the tests execute the compiled PTX on every code in every
place and compare it with `tiles.py` bit for bit.
"""

import triton
import triton.language as tl

from kernels import codebooks
from kernels.triton import tiles


@triton.constexpr_function
def unit(bits, encoding):
    """What the numbers of this module are multiplied with."""
    return {"int": 2.0**-3 if bits == 4 else 2.0**-7, "e4m3": 2.0**-8}.get(encoding, 1.0)


def knows(bits: int, encoding: str) -> bool:
    """Whether there are tile functions in PTX for codes of that many bits."""
    return bits == 8 or (bits == 4 and encoding in ("int", "nf4"))


@triton.constexpr_function
def makes_pairs(encoding):
    """Whether two weights at a time may be multiplied in fp16."""
    return encoding in ("int", "e4m3")


def _select_level() -> str:
    """PTX that leaves one level of NF4 in each lane of a warp, twice over: bits of an fp32 in $0."""
    bits = codebooks.codebook("nf4").view("uint32").tolist()
    picks = (f"setp.eq.u32 p, lane, {i}; selp.b32 $0, {b}, $0, p;" for i, b in enumerate(bits))
    start = ".reg .b32 lane; .reg .pred p; mov.u32 lane, %laneid; and.b32 lane, lane, 15;"
    return f"{{ {start} mov.b32 $0, $1; {' '.join(picks)} }}"


SELECT_LEVEL = tl.constexpr(_select_level())


@triton.jit
def constants(zero, BITS: tl.constexpr, ENCODING: tl.constexpr, HAS_ZERO: tl.constexpr):
    """What `number` and `pair` need beside the words: the levels of NF4, or what is subtracted."""
    if ENCODING == "nf4":
        return tl.inline_asm_elementwise(
            SELECT_LEVEL, "=&r,r", [0], dtype=tl.int32, is_pure=True, pack=1
        )
    else:
        return zero_pairs(zero, BITS, HAS_ZERO)


@triton.jit
def zero_pairs(zero, BITS: tl.constexpr, HAS_ZERO: tl.constexpr):
    """What `pairs` subtracts, for the lower and the upper nibbles of bytes: int32 tiles of two fp16.

    Args:
        zero: uint8 tile of zero points; anything where HAS_ZERO is false, for the middle code.
        BITS: of a code.
        HAS_ZERO: whether there are stored zero points.
    """
    if HAS_ZERO:
        low = tl.inline_asm_elementwise(
            "prmt.b32 $0, $1, $2, 0x4040;",
            "=r,r,r",
            [zero.to(tl.int32), 0x5858 if BITS == 4 else 0x4848],
            dtype=tl.int32,
            is_pure=True,
            pack=1,
        )
        high = tl.inline_asm_elementwise(
            "sub.rn.f16x2 $0, $1, $2;",
            "=r,r,r",
            [low, 0x57805780],  # 120
            dtype=tl.int32,
            is_pure=True,
            pack=1,
        )
        return low, high
    else:
        return 0x58085808 if BITS == 4 else 0x48804880, 0x48804880  # 129 or 9; 9


@triton.jit
def pairs4(words, low, high):
    """The 8 weights of int4 words: 4 tiles of two fp16, weights (2i, 2i + 1), times 2^-3."""
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
        [words, 0x58005800, low, high, 0x2C002C00],  # magic; zero points; 1 / 16
        dtype=(tl.int32, tl.int32, tl.int32, tl.int32),
        is_pure=True,
        pack=1,
    )


@triton.jit
def pairs8(words, low):
    """The 4 weights of int8 words: 2 tiles of two fp16, times 2^-7."""
    return tl.inline_asm_elementwise(
        """{
        .reg .b32 a, b;
        prmt.b32 a, $2, $3, 0x4140;
        prmt.b32 b, $2, $3, 0x4342;
        sub.rn.f16x2 $0, a, $4;
        sub.rn.f16x2 $1, b, $4;
        }""",
        "=&r,=&r,r,r,r",
        [words, 0x48484848, low],
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
def pair(
    words,
    i: tl.constexpr,
    known,
    BITS: tl.constexpr,
    ENCODING: tl.constexpr,
    HAS_FP8: tl.constexpr,
):
    """Weights 2i and 2i + 1 of int32 words as a pair.

    All pairs of a word are made at once; the compiler sees that it is always the same.

    Args:
        words: int32 tile.
        i: which pair.
        known: `constants`.
        BITS: of a code.
        ENCODING: what a code stands for.
        HAS_FP8: whether the target converts FP8, as sm_89 and later do.
    """
    word = words[2 * i * BITS // 32]
    if ENCODING == "e4m3":
        return pairs_e4m3(word, HAS_FP8)[i % 2]
    elif ENCODING == "e5m2":
        return pairs_e5m2(word)[i % 2]
    elif BITS == 4:
        return pairs4(word, known[0], known[1])[i % 4]
    else:
        return pairs8(word, known[0])[i % 2]


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
    if ENCODING == "nf4":
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
    """`numbers` in 16 bits, exact but for NF4: pairs as they are, where they are of that dtype."""
    if dtype == tl.float16 and ENCODING != "nf4":
        parts = ()
        for i in tl.static_range(tiles.per_unit(BITS) // 2):
            parts += split_pair(pair(words, i, known, BITS, ENCODING, HAS_FP8))
        shape: tl.constexpr = [words[0].shape[0], words[0].shape[1], tiles.per_unit(BITS)]
        return tl.reshape(tiles.join(parts), shape)
    else:
        return numbers(words, known, BITS, ENCODING, HAS_FP8).to(dtype)


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

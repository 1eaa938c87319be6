"""The tile functions of `tiles.py` again, in inline PTX: what the best known instructions make of them.

A 16-bit weight needs half an instruction to be multiplied if two of them travel as one register of
two fp16 (a *pair*), so these functions turn a word into pairs without ever leaving registers. The codes of
an integer are put below the exponent of a number whose last place is UNIT, and its offset is subtracted:

    int4   0x5800 | code         = 128 + code / 8          one LOP3 for both halves of a pair
           0x5800 | code << 4    = 128 + code * 2          the upper nibbles of a byte: no shift
    int8   0x4800 | code         =   8 + code / 128        one PRMT for both halves

The numbers that result are `(code - zero) * UNIT`, exact, and between -2 and 2: a product of sixteen of
them with activations overflows fp16 only where sixteen activations would. The caller multiplies by 1 / UNIT in
fp32. A LOP3 holds one constant in its instruction and the other in a register: written as
`(w & mask) | magic` in Triton or C++ it becomes two.

Triton's interpreter refuses inline PTX; the tests execute the compiled PTX on every code in every
place and compare it with `tiles.py` bit for bit.
"""

import triton
import triton.language as tl


@triton.constexpr_function
def unit(bits):
    """What a pair's numbers are multiplied with: 2^-3 for int4, 2^-7 for int8."""
    return 2.0**-3 if bits == 4 else 2.0**-7


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
    else:  # noqa: RET505 - without the else Triton compiles both returns
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
def pair(words, i: tl.constexpr, subtract, BITS: tl.constexpr):
    """Weights 2i and 2i + 1 of int32 words as a pair.

    All pairs of a word are made at once; the compiler sees that it is always the same.

    Args:
        words: int32 tile.
        i: which pair.
        subtract: `zero_pairs`.
        BITS: of a code.
    """
    if BITS == 4:
        return pairs4(words, subtract[0], subtract[1])[i]
    else:  # noqa: RET505
        return pairs8(words, subtract[0])[i]


@triton.jit
def number(words, i: tl.constexpr, subtract, BITS: tl.constexpr):
    """Weight i of each word before scaling, times UNIT: fp32, exact."""
    return widen(pair(words, i // 2, subtract, BITS))[i % 2]


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

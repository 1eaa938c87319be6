"""From packed words to numbers, as pure tile functions: no loads, no stores.

A word holds `32 / BITS` weights of one row (`packing.py` draws it). Weight i sits at bit

    int4   16 * (i % 2) + 4 * (i // 2)          int8   8 * i

and is taken out *in place*: one AND leaves `code << shift`, which an fp32 holds exactly, and the
multiply that undoes the shift rides along with the subtraction of the zero point in one fused
multiply-add (ENCODING "int"):

    number = float(word & (MASK << shift)) * 2^-shift - zero        LOP3, I2FP (sm_80: I2F), FFMA

That is one instruction less per weight than shifting first, and on sm_90 one less on the integer
pipe, the tight one. `number` is an exact small integer; the scale is applied later, once per group.

The other encodings (codebooks.py) have no zero points. Four bits of NF4 choose between sixteen constants
by fifteen selects. The exponent and mantissa of an FP8 code are moved to where an fp32 has them, below its
sign, and a multiplication mends the exponent's bias, for subnormal numbers too.

`split*` and `join*` rename registers. They cost nothing as long as the last axis lives in one
thread, which is where a 16-byte load puts it. The compile test counts instructions and would
notice.
"""

import triton
import triton.language as tl

from kernels import codebooks

NF4 = tl.constexpr(codebooks.NF4)
# Decided when Triton is imported (TRITON_INTERPRET=1). Two things differ there: loops count to the
# compile-time K, because Triton 3.6's interpreter cannot count to a run-time bound with NumPy 2.4;
# and products are taken in fp32, because the interpreter would multiply the bit patterns of bf16.
INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


@triton.jit
def split4(tile):
    """[..., 4] into four tiles [...], in order."""
    even, odd = tl.split(tl.reshape(tile, tile.shape[:-1] + [2, 2]))  # noqa: RUF005
    t0, t2 = tl.split(even)
    t1, t3 = tl.split(odd)
    return t0, t1, t2, t3


@triton.jit
def split8(tile):
    """[..., 8] into eight tiles [...], in order."""
    even, odd = tl.split(tl.reshape(tile, tile.shape[:-1] + [4, 2]))  # noqa: RUF005
    t0, t2, t4, t6 = split4(even)
    t1, t3, t5, t7 = split4(odd)
    return t0, t1, t2, t3, t4, t5, t6, t7


@triton.jit
def join4(t0, t1, t2, t3):
    """Four tiles [...] into [..., 2, 2], in order along the last two axes."""
    return tl.join(tl.join(t0, t2), tl.join(t1, t3))


@triton.jit
def join8(t0, t1, t2, t3, t4, t5, t6, t7):
    """Eight tiles [...] into [..., 2, 2, 2], in order along the last three axes."""
    return tl.join(join4(t0, t2, t4, t6), join4(t1, t3, t5, t7))


@triton.jit
def segment_start(segment, PER_LOAD: tl.constexpr, QUAD: tl.constexpr):
    """The weight, counted along k, at which a segment's first load starts.

    Four segments share a quad of weights: their first loads lie side by side, then their second.
    """
    return segment // 4 * QUAD + segment % 4 * PER_LOAD


@triton.constexpr_function
def shift_of(i, bits):
    """Bit at which weight i of a word starts."""
    return 16 * (i % 2) + 4 * (i // 2) if bits == 4 else bits * i


@triton.jit
def field(words, i: tl.constexpr, BITS: tl.constexpr):
    """The code of weight i of each word, still in place: uint32, `code << shift_of(i, BITS)`."""
    return words.to(tl.uint32, bitcast=True) & (((1 << BITS) - 1) << shift_of(i, BITS))


@triton.jit
def code(words, i: tl.constexpr, BITS: tl.constexpr):
    """The code of weight i of each word: int32 in 0 .. 2^BITS - 1."""
    return (field(words, i, BITS) >> shift_of(i, BITS)).to(tl.int32, bitcast=True)


@triton.jit
def number(words, i: tl.constexpr, zero, BITS: tl.constexpr, ENCODING: tl.constexpr):
    """Weight i of each word before scaling: fp32, exact. `zero` serves integers only."""
    if ENCODING == "int":
        unshift: tl.constexpr = 1.0 / (1 << shift_of(i, BITS))
        return field(words, i, BITS).to(tl.float32) * unshift - zero
    elif ENCODING == "nf4":
        return nf4(code(words, i, BITS))
    else:
        return fp8(code(words, i, BITS), ENCODING)


@triton.jit
def nf4(codes):
    """The levels of NF4 that codes 0 to 15 stand for: fp32. One bit after another halves the choice."""
    bit = (codes & 1) != 0
    a = tl.where(bit, NF4[1], NF4[0])
    b = tl.where(bit, NF4[3], NF4[2])
    c = tl.where(bit, NF4[5], NF4[4])
    d = tl.where(bit, NF4[7], NF4[6])
    e = tl.where(bit, NF4[9], NF4[8])
    f = tl.where(bit, NF4[11], NF4[10])
    g = tl.where(bit, NF4[13], NF4[12])
    h = tl.where(bit, NF4[15], NF4[14])
    bit = (codes & 2) != 0
    a, b, c, d = tl.where(bit, b, a), tl.where(bit, d, c), tl.where(bit, f, e), tl.where(bit, h, g)
    bit = (codes & 4) != 0
    a, b = tl.where(bit, b, a), tl.where(bit, d, c)
    return tl.where((codes & 8) != 0, b, a)


@triton.jit
def fp8(codes, ENCODING: tl.constexpr):
    """The finite numbers that codes 0 to 255 of "e4m3" or "e5m2" stand for: fp32."""
    MANTISSA: tl.constexpr = 3 if ENCODING == "e4m3" else 2
    UNBIAS: tl.constexpr = 2.0**120 if ENCODING == "e4m3" else 2.0**112  # 127 - 7, 127 - 15
    bits = (codes & 0x80) << 24 | (codes & 0x7F) << (23 - MANTISSA)
    return bits.to(tl.float32, bitcast=True) * UNBIAS


@triton.jit
def half(words, i: tl.constexpr, dtype: tl.constexpr):
    """Bypass reading "halves": 16-bit half i mod 2 of each word, taken as a number of `dtype`."""
    return (
        (words.to(tl.uint32, bitcast=True) >> (16 * (i % 2))).to(tl.uint16).to(dtype, bitcast=True)
    )


@triton.jit
def numbers(words, zero, BITS: tl.constexpr, ENCODING: tl.constexpr, dtype: tl.constexpr):
    """All weights of words [n, w] before scaling: [n, w, 32 / BITS] of `dtype`, in order along k.

    `zero` is a number, or a tile that broadcasts against the words.
    """
    n0 = number(words, 0, zero, BITS, ENCODING).to(dtype)
    n1 = number(words, 1, zero, BITS, ENCODING).to(dtype)
    n2 = number(words, 2, zero, BITS, ENCODING).to(dtype)
    n3 = number(words, 3, zero, BITS, ENCODING).to(dtype)
    if BITS == 8:
        joined = join4(n0, n1, n2, n3)
    else:
        n4 = number(words, 4, zero, BITS, ENCODING).to(dtype)
        n5 = number(words, 5, zero, BITS, ENCODING).to(dtype)
        n6 = number(words, 6, zero, BITS, ENCODING).to(dtype)
        n7 = number(words, 7, zero, BITS, ENCODING).to(dtype)
        joined = join8(n0, n1, n2, n3, n4, n5, n6, n7)
    return tl.reshape(joined, [words.shape[0], words.shape[1], 32 // BITS])


@triton.jit
def halves(words, BITS: tl.constexpr, dtype: tl.constexpr):
    """What bypass multiplies instead of `numbers`: same shape, every value a half of its word."""
    low = half(words, 0, dtype)
    high = half(words, 1, dtype)
    if BITS == 8:
        joined = join4(low, high, low, high)
    else:
        joined = join8(low, high, low, high, low, high, low, high)
    return tl.reshape(joined, [words.shape[0], words.shape[1], 32 // BITS])


@triton.jit
def sum_of_codes(words, BITS: tl.constexpr):
    """Sum of the codes of each word: int32. The consumer that keeps `unpack` alive."""
    total = code(words, 0, BITS)
    for i in tl.static_range(1, 32 // BITS):
        total += code(words, i, BITS)
    return total


@triton.constexpr_function
def zero_word(bits, encoding):
    """The word, as a signed integer, whose weights are all zero, without stored zero points."""
    if encoding == "int":
        return (0x88888888 if bits == 4 else 0x80808080) - (1 << 32)
    return 0x77777777 if encoding == "nf4" else 0


@triton.jit
def zero_point(zero, BITS: tl.constexpr, HAS_ZERO: tl.constexpr):
    """What `number` subtracts: the stored zero point as fp32, or the middle code."""
    if HAS_ZERO:
        return zero.to(tl.float32)
    else:
        return 1.0 * (1 << (BITS - 1))


@triton.jit
def group_bits(scale, zero, HAS_ZERO: tl.constexpr):
    """A group's contribution to the integer checksums: its scale's bits, and its zero point."""
    if scale.dtype == tl.float32:
        bits = scale.to(tl.int32, bitcast=True)
    else:
        bits = scale.to(tl.int16, bitcast=True).to(tl.int32)
    if HAS_ZERO:
        bits += zero.to(tl.int32)
    return bits


@triton.jit
def keep_zero(scale, zero, HAS_ZERO: tl.constexpr):
    """Bypass: keep a zero point's load alive, at one compare and select per group.

    255 is no zero point of a 4-bit format, but the compiler cannot know that.
    """
    if HAS_ZERO:
        scale = tl.where(zero == 255, 0.0, scale)
    return scale


@triton.jit
def dot(a, b, total=None):
    """Matrix product of two 16-bit tiles, accumulated in fp32."""
    if INTERPRETED:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, total)

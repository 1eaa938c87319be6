"""From packed words to numbers, as pure tile functions: no loads, no stores.

Words come as a tuple of tiles, plane after plane (`packing.py` draws them). The bits of a weight are taken
out *in place*: of one plane, an AND leaves `code << place`, which an fp32 holds exactly, and the multiply
that undoes the shift rides along with the subtraction of the zero point in one fused multiply-add
(ENCODING "int"):

    number = float(word & (MASK << place)) * 2^-place - zero        LOP3, I2FP (sm_80: I2F), FFMA

That is one instruction less per weight than shifting first, and on sm_90 one less on the integer
pipe, the tight one. `number` is an exact small integer; the scale is applied later, once per group. Of
several planes, the widest stays in place and the others are shifted to below it: a shift that serves both
weights of a pair, and an AND or OR, for each.

The other encodings (codebooks.py) have no zero points. Four bits of NF4 choose between sixteen constants
by fifteen selects, those of FP4 between eight and a sign. The exponent and mantissa of a small float are
moved to where an fp32 has them, below its sign, and a multiplication mends the exponent's bias, for
subnormal numbers too.

`split*` and `join` rename registers. They cost nothing as long as the last axis lives in one
thread, which is where a 16-byte load puts it. The compile test counts instructions and would
notice.
"""

import triton
import triton.language as tl

from kernels import codebooks, formats

NF4 = tl.constexpr(codebooks.NF4)
FP4 = tl.constexpr(tuple(codebooks.codebook("fp4")[:8].tolist()))
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
def split(tile, PARTS: tl.constexpr):
    """[n, m * PARTS] into a tuple of tiles [n, m], in order; PARTS is 1, 2 or 4."""
    if PARTS == 1:
        return (tile,)
    elif PARTS == 2:
        return tl.split(tl.reshape(tile, [tile.shape[0], tile.shape[1] // 2, 2]))
    else:
        return split4(tl.reshape(tile, [tile.shape[0], tile.shape[1] // 4, 4]))


@triton.jit
def join(parts):
    """A power of two of tiles [...] into [..., 2, 2, ...], in order along the last axes."""
    if len(parts) == 1:
        return parts[0]
    else:
        return tl.join(join(parts[0::2]), join(parts[1::2]))


@triton.jit
def segment_start(segment, PER_LOAD: tl.constexpr, QUAD: tl.constexpr):
    """The weight, counted along k, at which a segment's first load starts.

    Four segments share a quad of weights: their first loads lie side by side, then their second.
    """
    return segment // 4 * QUAD + segment % 4 * PER_LOAD


@triton.constexpr_function
def planes(bits):
    """How many planes codes are stored in."""
    return len(formats.PLANES[bits])


@triton.constexpr_function
def width(bits, plane):
    """Width in bits of a plane."""
    return formats.PLANES[bits][plane]


@triton.constexpr_function
def before(bits, plane):
    """Bits of a code in the planes before this one: so many words of 32 weights, too."""
    return sum(formats.PLANES[bits][:plane])


@triton.constexpr_function
def after(bits, plane):
    """Bits of a code in the planes after this one: below it."""
    return sum(formats.PLANES[bits][plane + 1 :])


@triton.constexpr_function
def per_unit(bits):
    """Weights that `numbers` makes at once: those of a word, or of 32 weights' words in every plane."""
    return 32 // bits if len(formats.PLANES[bits]) == 1 else 32


@triton.constexpr_function
def word_of(i, bits, plane, words):
    """Which of a number of words, plane after plane, holds the bits of weight i in a plane."""
    widths = formats.PLANES[bits]
    return sum(widths[:plane]) * words // bits + i * widths[plane] // 32


@triton.constexpr_function
def word_of_pair(i, bits, words):
    """Which of a number of words the bypass arm takes for weight i: packing.words_of_pairs."""
    widths = formats.PLANES[bits]
    if len(widths) == 1:
        return i // 2 * 2 * bits // 32
    place = i % 32 // 2 * 2 * bits // 32
    plane = max(p for p in range(len(widths)) if sum(widths[:p]) <= place)
    start = sum(widths[:plane])
    return start * words // bits + i // 32 * widths[plane] + place - start


@triton.constexpr_function
def shift_of(i, width):
    """Bit at which the field of weight i of a plane starts in its word."""
    field = i % (32 // width)
    return 16 * (field % 2) + width * (field // 2) if width < 8 else width * field


@triton.constexpr_function
def place_of(i, bits):
    """Bit at which `field` leaves the code of weight i: the widest plane's field, where room is below."""
    widths = formats.PLANES[bits]
    below = sum(widths[1:])
    shift = shift_of(i, widths[0])
    return shift // 16 * 16 + max(shift % 16, below) - below if below else shift


@triton.constexpr_function
def moved_by(i, bits, plane):
    """How far left a word of a plane is shifted to bring the bits of weight i to their place."""
    widths = formats.PLANES[bits]
    return place_of(i, bits) + sum(widths[plane + 1 :]) - shift_of(i, widths[plane])


@triton.constexpr_function
def mask_of(i, bits, plane):
    """Where the bits of weight i in a plane are, once moved."""
    widths = formats.PLANES[bits]
    return ((1 << widths[plane]) - 1) << (place_of(i, bits) + sum(widths[plane + 1 :]))


@triton.jit
def field(words, i: tl.constexpr, BITS: tl.constexpr):
    """The code of weight i, still in place: uint32, `code << place_of(i, BITS)`."""
    code = field_of_plane(words, i, BITS, 0)
    for plane in tl.static_range(1, planes(BITS)):
        code |= field_of_plane(words, i, BITS, plane)
    return code


@triton.jit
def field_of_plane(words, i: tl.constexpr, BITS: tl.constexpr, plane: tl.constexpr):
    """The bits of weight i in a plane, at their place in `field`."""
    word = words[word_of(i, BITS, plane, len(words))].to(tl.uint32, bitcast=True)
    shift: tl.constexpr = moved_by(i, BITS, plane)
    if shift > 0:
        word = word << shift
    elif shift < 0:
        word = word >> -shift
    return word & mask_of(i, BITS, plane)


@triton.jit
def code(words, i: tl.constexpr, BITS: tl.constexpr):
    """The code of weight i: int32 in 0 .. 2^BITS - 1."""
    return (field(words, i, BITS) >> place_of(i, BITS)).to(tl.int32, bitcast=True)


@triton.jit
def number(words, i: tl.constexpr, zero, BITS: tl.constexpr, ENCODING: tl.constexpr):
    """Weight i before scaling: fp32, exact. `zero` serves integers only."""
    if ENCODING == "int":
        unshift: tl.constexpr = 1.0 / (1 << place_of(i, BITS))
        return field(words, i, BITS).to(tl.float32) * unshift - zero
    elif ENCODING == "nf4":
        return nf4(code(words, i, BITS))
    elif ENCODING == "fp4":
        return fp4(code(words, i, BITS))
    else:
        return small_float(code(words, i, BITS), ENCODING)


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
def fp4(codes):
    """The numbers of bitsandbytes' FP4 that codes 0 to 15 stand for: fp32."""
    bit = (codes & 1) != 0
    a = tl.where(bit, FP4[1], FP4[0])
    b = tl.where(bit, FP4[3], FP4[2])
    c = tl.where(bit, FP4[5], FP4[4])
    d = tl.where(bit, FP4[7], FP4[6])
    bit = (codes & 2) != 0
    a, b = tl.where(bit, b, a), tl.where(bit, d, c)
    magnitude = tl.where((codes & 4) != 0, b, a).to(tl.int32, bitcast=True)
    return (magnitude | (codes & 8) << 28).to(tl.float32, bitcast=True)


@triton.constexpr_function
def layout_of(encoding):
    """Of a small float: its width, its mantissa's, and what mends the bias of its exponent in an fp32."""
    layout = codebooks.SMALL_FLOATS[encoding]
    return layout.bits, layout.mantissa, 2.0 ** (127 - layout.bias)


@triton.jit
def small_float(codes, ENCODING: tl.constexpr):
    """The finite numbers that codes of a small float stand for: fp32."""
    LAYOUT: tl.constexpr = layout_of(ENCODING)
    SIGN: tl.constexpr = 1 << (LAYOUT[0] - 1)
    bits = (codes & SIGN) << (32 - LAYOUT[0]) | (codes & (SIGN - 1)) << (23 - LAYOUT[1])
    return bits.to(tl.float32, bitcast=True) * LAYOUT[2]


@triton.jit
def half(words, i: tl.constexpr, BITS: tl.constexpr, dtype: tl.constexpr):
    """Bypass reading "halves": of the word that stands for weight i, half i mod 2 as a `dtype`."""
    word = words[word_of_pair(i, BITS, len(words))].to(tl.uint32, bitcast=True)
    return (word >> (16 * (i % 2))).to(tl.uint16).to(dtype, bitcast=True)


@triton.jit
def numbers(words, zero, BITS: tl.constexpr, ENCODING: tl.constexpr, dtype: tl.constexpr):
    """All weights of a unit of words [n, u] before scaling: [n, u, per_unit(BITS)] of `dtype`, in order.

    `zero` is a number, or a tile that broadcasts against the words.
    """
    parts = ()
    for i in tl.static_range(per_unit(BITS)):
        parts += (number(words, i, zero, BITS, ENCODING).to(dtype),)
    return tl.reshape(join(parts), [words[0].shape[0], words[0].shape[1], per_unit(BITS)])


@triton.jit
def halves(words, BITS: tl.constexpr, dtype: tl.constexpr):
    """What bypass multiplies instead of `numbers`: same shape, every value a half of a word."""
    parts = ()
    for i in tl.static_range(per_unit(BITS)):
        parts += (half(words, i, BITS, dtype),)
    return tl.reshape(join(parts), [words[0].shape[0], words[0].shape[1], per_unit(BITS)])


@triton.jit
def sum_of_words(words):
    """Sum of the words: int32. The consumer that keeps `stream` alive."""
    total = words[0]
    for i in tl.static_range(1, len(words)):
        total += words[i]
    return total


@triton.jit
def sum_of_codes(words, BITS: tl.constexpr):
    """Sum of the codes in words: int32. The consumer that keeps `unpack` alive."""
    total = code(words, 0, BITS)
    for i in tl.static_range(1, 32 * len(words) // BITS):
        total += code(words, i, BITS)
    return total


@triton.constexpr_function
def zero_word(bits, encoding, plane):
    """The word of a plane, as a signed integer, whose weights are all zero, without stored zero points.

    One bit has no zero: there a scale of 0 must do.
    """
    if encoding == "nf4":
        return 0x77777777
    if encoding != "int" or plane > 0 or bits == 1:
        return 0
    width = formats.PLANES[bits][plane]
    return sum(1 << top for top in range(width - 1, 32, width)) - (1 << 32)


@triton.constexpr_function
def middle(bits):
    """What is subtracted from codes without zero points: formats.WeightFormat.zero."""
    return 2.0 ** (bits - 1) if bits > 1 else 0.5


@triton.jit
def zero_point(zero, BITS: tl.constexpr, HAS_ZERO: tl.constexpr):
    """What `number` subtracts: the stored zero point as fp32, or the middle code."""
    if HAS_ZERO:
        return zero.to(tl.float32)
    else:
        return middle(BITS)


@triton.jit
def scale_number(stored, level, of_block, of_matrix, SCALE_TYPE: tl.constexpr):
    """What stored scales stand for, fp32 (of SCALE_TYPE "activation", as they are): scales.decode.

    Args:
        stored: the scales, or their codes as uint8.
        level: nested scales: the number that the code chooses.
        of_block: nested scales: what the codes of a block share.
        of_matrix: memory.scale_of_matrix.
        SCALE_TYPE: how scales are stored.
    """
    if SCALE_TYPE == "e8m0":
        return (stored.to(tl.uint32) << 23).to(tl.float32, bitcast=True)
    elif SCALE_TYPE == "e4m3":  # no scale is negative: there is no sign to look at
        return (stored.to(tl.uint32) << 20).to(tl.float32, bitcast=True) * of_matrix
    elif SCALE_TYPE == "nested":
        # The comparison changes nothing; but a product and a sum would be rounded as one.
        return tl.maximum(level * of_block, float("-inf")) + of_matrix
    else:
        return stored


@triton.jit
def group_bits(stored, zero, HAS_ZERO: tl.constexpr):
    """A group's contribution to the integer checksums: its scale's bits, and its zero point."""
    if stored.dtype == tl.float32:
        bits = stored.to(tl.int32, bitcast=True)
    elif stored.dtype == tl.uint8:
        bits = stored.to(tl.int32)
    else:
        bits = stored.to(tl.int16, bitcast=True).to(tl.int32)
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

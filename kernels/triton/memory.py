"""The loads that the kernels share."""

import triton
import triton.language as tl

from kernels import scales
from kernels.triton import tiles

OFFSET = tl.constexpr(scales.OFFSET)
BLOCK = tl.constexpr(scales.NESTED_BLOCK)
E4M3_UNBIAS = tl.constexpr(2.0**120)  # 127 - 7


@triton.jit
def load(ptr, inside, pad, WHOLE: tl.constexpr):
    """Load a tile; where `inside` is false, `pad`. WHOLE promises that it never is."""
    return tl.load(ptr) if WHOLE else tl.load(ptr, mask=inside, other=pad)


@triton.jit
def load_words(
    words_ptr,
    row,
    word,
    plane: tl.constexpr,
    K: tl.constexpr,
    BITS: tl.constexpr,
    ENCODING: tl.constexpr,
    PADDED: tl.constexpr,
    WHOLE: tl.constexpr,
):
    """Words of one plane: int32 [rows, words].

    Args:
        words_ptr: int32 [N, K * BITS / 32].
        row: which rows, each below N.
        word: which words, counted in the plane and row.
        plane: which plane.
        K: weights of a row.
        BITS: of a code.
        ENCODING: what a code stands for.
        PADDED: whether words beyond K mean weights that are zero, or are zero themselves.
        WHOLE: promises that no word is beyond K.
    """
    START: tl.constexpr = tiles.before(BITS, plane) * K // 32
    WORDS: tl.constexpr = tiles.width(BITS, plane) * K // 32
    PAD: tl.constexpr = tiles.zero_word(BITS, ENCODING, plane) if PADDED else 0
    address = words_ptr + row[:, None] * (K * BITS // 32) + (START + word)[None, :]
    return load(address, (word < WORDS)[None, :], PAD, WHOLE)


@triton.jit
def load_unit_words(
    words_ptr,
    row,
    k0,
    plane: tl.constexpr,
    COUNT: tl.constexpr,
    K: tl.constexpr,
    BITS: tl.constexpr,
    ENCODING: tl.constexpr,
    PADDED: tl.constexpr,
    WHOLE: tl.constexpr,
):
    """The words of one plane that `load_units` is made of: a tuple of tiles [rows, units]."""
    PER_WORD: tl.constexpr = 32 // tiles.width(BITS, plane)
    word = k0 // PER_WORD + tl.arange(0, COUNT // PER_WORD)
    tile = load_words(words_ptr, row, word, plane, K, BITS, ENCODING, PADDED, WHOLE)
    return tiles.split(tile, tiles.per_unit(BITS) // PER_WORD)


@triton.jit
def load_units(
    words_ptr,
    row,
    k0,
    COUNT: tl.constexpr,
    K: tl.constexpr,
    BITS: tl.constexpr,
    ENCODING: tl.constexpr,
    PADDED: tl.constexpr,
    WHOLE: tl.constexpr,
):
    """The words of COUNT weights from k0 on: a tuple of int32 tiles [rows, units], plane after plane.

    COUNT is a power of two of units of `tiles.per_unit(BITS)` weights; the others as in `load_words`.
    """
    words = ()
    for plane in tl.static_range(tiles.planes(BITS)):
        words += load_unit_words(words_ptr, row, k0, plane, COUNT, K, BITS, ENCODING, PADDED, WHOLE)
    return words


@triton.jit
def scale_of_matrix(second_ptr, SCALE_TYPE: tl.constexpr):
    """What all scales of a matrix share: the number that `tiles.scale_number` wants, or 0."""
    if SCALE_TYPE == "e4m3":
        return tl.load(second_ptr) * E4M3_UNBIAS
    elif SCALE_TYPE == "nested":
        return tl.load(second_ptr + OFFSET)
    else:
        return 0.0


@triton.jit
def scale_of(
    stored, offset, inside, second_ptr, of_matrix, SCALE_TYPE: tl.constexpr, WHOLE: tl.constexpr
):
    """What stored scales stand for: fp32, or their own dtype where they are numbers.

    Args:
        stored: tile of scales or their codes.
        offset: where they lie in the matrix of scales, counted row after row.
        inside: which of them exist; the others become anything finite.
        second_ptr: fp32, the second level (kernels/scales.py), or None.
        of_matrix: `scale_of_matrix`.
        SCALE_TYPE: how scales are stored.
        WHOLE: promises that all exist.
    """
    if SCALE_TYPE == "nested":
        level = tl.load(second_ptr + stored.to(tl.int32))
        of_block = load(second_ptr + OFFSET + 1 + offset // BLOCK, inside, 0.0, WHOLE)
    else:
        level, of_block = 0.0, 0.0
    return tiles.scale_number(stored, level, of_block, of_matrix, SCALE_TYPE)

"""Pack, unpack and dequantize in NumPy: the definition of every bit layout and every reference.

Nothing here is fast; everything here is what "right" means. One equation serves all integer formats, and
one all others:

    weight = (code - zero) * scale          code in 0 .. 2^bits - 1
    weight = codebook[code] * scale         codebooks.py

`zero` is the stored zero point, or the middle code (8 for 4 bits, 128 for 8) where a format has none;
`scale` is what the stored scale stands for (scales.py). Which codes and scales weights get: quantize.py.

W[n, k] is stored row by row. Along k, `32 / bits` codes share one little-endian 32-bit word:

    int8   bit 31                                     0
           [  w3   |  w2   |  w1   |  w0   ]              weight i sits in byte i

    int4   bit 31                                     0
           [ w7 | w5 | w3 | w1 | w6 | w4 | w2 | w0 ]      nibble 0 is the lowest

The int4 order 0,2,4,6,1,3,5,7 puts neighbours 16 bits apart, so `(word >> 4 * i) & 0x000f000f` is the
pair (w[2i], w[2i+1]), each in its own half: one mask serves two weights of a packed half2. One and two bits
are stored likewise: weight i of a word starts at bit 16 * (i % 2) + bits * (i // 2).

Other widths are cut into *planes* of 4, 2 and 1 bits, the most significant bits first (7 = 4 + 2 + 1). A row
holds its planes one after another, each packed as a matrix of its own width: no code crosses a word, and every
plane of 128 weights fills whole loads of 16 bytes.

    int6   row: [ k / 8 words of bits 5..2 | k / 16 words of bits 1..0 ]

Scales are [n, k / group_size] in the activation dtype, fp32, or bytes where the format says so; zero points
are bytes of the same shape. What others store in another order becomes this in converters.py.

The `bypass` arm reads words of its own: each 16-bit half is +-0x3C00..0x3CFF, which is a finite, normal
number near 1 as fp16, and near 1/64 as bf16 and as the upper half of an fp32. A kernel may then use the
bits as numbers at no cost, whatever its arithmetic. (Where scales are tiny it is 0x4600..0x46FF.) 32 weights
along k share `bits` words, a few of each plane; every pair of them takes one, in order, so that all are used.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from kernels import quantize as quantization
from kernels.codebooks import codebook
from kernels.formats import PLANES, WeightFormat
from kernels.scales import Float as Float  # "as": for those who import it from here
from kernels.scales import round_to as round_to

Float16 = Literal["fp16", "bf16"]
BypassReading = Literal["fp32", "halves", "turns"]

NIBBLE_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # nibble i of a word holds weight NIBBLE_ORDER[i]
SEGMENT = 32  # weights whose words are whole in every plane
SMALL_SCALE = 2.0**-16
WEIGHT_STD = 0.02  # W ~ N(0, 0.02^2), METHOD section 2


def code_order(width: int) -> tuple[int, ...]:
    """Which of a word's weights sits in each of its fields of a plane, lowest field first."""
    fields = range(32 // width)
    return tuple(fields) if width == 8 else (*fields[::2], *fields[1::2])


def pack(codes: NDArray[np.uint8], bits: int) -> NDArray[np.uint32]:
    """Codes [n, k] into words [n, k * bits / 32], plane after plane."""
    planes, left = [], bits
    for width in PLANES[bits]:
        left -= width
        planes.append(_pack_plane((codes >> left & (1 << width) - 1).astype(np.uint8), width))
    return np.concatenate(planes, axis=1)


def _pack_plane(codes: NDArray[np.uint8], width: int) -> NDArray[np.uint32]:
    fields = codes.reshape(len(codes), -1, 32 // width)[:, :, code_order(width)].astype(np.uint32)
    shifts = np.arange(0, 32, width, dtype=np.uint32)
    words: NDArray[np.uint32] = np.bitwise_or.reduce(fields << shifts, axis=2)
    return words


def split_planes(words: NDArray[np.uint32], bits: int) -> list[NDArray[np.uint32]]:
    """The planes of words [n, k * bits / 32], each [n, k * width / 32]."""
    ends = np.cumsum(PLANES[bits]) * words.shape[1] // bits
    return np.split(words, ends[:-1], axis=1)


def unpack(words: NDArray[np.uint32], bits: int) -> NDArray[np.uint8]:
    """Words [n, k * bits / 32] back into codes [n, k]."""
    codes = np.zeros((len(words), words.shape[1] * 32 // bits), np.uint8)
    for width, plane in zip(PLANES[bits], split_planes(words, bits), strict=True):
        shifts = np.arange(0, 32, width, dtype=np.uint32)
        fields = (plane[:, :, None] >> shifts) & np.uint32((1 << width) - 1)
        ordered = np.empty(fields.shape, np.uint8)
        ordered[:, :, code_order(width)] = fields
        codes = codes << width | ordered.reshape(codes.shape)
    return codes


@dataclass(frozen=True)
class Weights:
    """One weight matrix in one format, with every view of it that an arm or a reference needs.

    Attributes:
        format: how it is stored.
        activation: dtype of the activations, "fp16" or "bf16".
        codes: uint8 [n, k].
        scales: float32 [n, groups], what weights are multiplied by: already rounded to their dtype
            (`scale_dtype`), or decoded.
        zeros: uint8 [n, groups], or None where the format stores no zero point.
        seed: seed of the bypass words.
        scale_codes: uint8 [n, groups], where scales are stored in eight bits.
        second_level: float32, what such scales need besides their codes (scales.py), or None.
    """

    format: WeightFormat
    activation: Float
    codes: NDArray[np.uint8]
    scales: NDArray[np.float32]
    zeros: NDArray[np.uint8] | None
    seed: int = 0
    scale_codes: NDArray[np.uint8] | None = None
    second_level: NDArray[np.float32] | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of W."""
        n, k = self.codes.shape
        return n, k

    @cached_property
    def words(self) -> NDArray[np.uint32]:
        """Packed codes, uint32 [n, k * bits / 32]."""
        return pack(self.codes, self.format.bits)

    @cached_property
    def bypass_words(self) -> NDArray[np.uint32]:
        """Words of the bypass arm: every half finite and normal as fp16, bf16 and upper half of fp32.

        Scales as small as those of MXFP8's e5m2 get larger words, lest y leave the normal numbers of fp16.
        """
        rng = np.random.default_rng([self.seed, 1])
        halves = rng.integers(0, 0x100, size=(*self.words.shape, 2), dtype=np.uint16)
        halves |= np.uint16(0x3C00 if self.scales.max() > SMALL_SCALE else 0x4600) | (
            rng.integers(0, 2, halves.shape, dtype=np.uint16) << 15
        )
        words: NDArray[np.uint32] = halves.view(np.uint32)[:, :, 0]
        return words

    def per_weight(self, per_group: NDArray[Any]) -> NDArray[Any]:
        """Spread values [n, groups] over the weights [n, k]."""
        return np.repeat(per_group, self.codes.shape[1] // per_group.shape[1], axis=1)

    @property
    def numbers(self) -> NDArray[np.float64]:
        """What the codes stand for before scaling, exact in float64 [n, k]."""
        if self.format.encoding == "int":
            zero = self.format.zero if self.zeros is None else self.per_weight(self.zeros)
            numbers: NDArray[np.float64] = self.codes.astype(np.float64) - zero
        else:
            numbers = codebook(self.format.encoding).astype(np.float64)[self.codes]
        return numbers

    @cached_property
    def values(self) -> NDArray[np.float64]:
        """The dequantized weights, exact in float64 [n, k]."""
        dequantized: NDArray[np.float64] = self.numbers * self.per_weight(self.scales)
        return dequantized

    @cached_property
    def values16(self) -> NDArray[np.float32]:
        """The dequantized weights rounded to the activation dtype: what 16-bit kernels multiply."""
        return round_to(self.values, self.activation)

    def bypass_values(self, reading: BypassReading) -> NDArray[np.float64]:
        """What the bypass arm multiplies instead of weights, float64 [n, k].

        Args:
            reading: "fp32" takes the whole word as one fp32 for every weight of the word;
                "halves" takes its 16-bit halves in turn, as numbers of the activation dtype;
                "turns" does so too, but two neighbouring words stand for their pairs by turns.
        """
        places = words_by_turns if reading == "turns" else words_of_pairs
        words = self.bypass_words[:, places(self.codes.shape[1], self.format.bits)]
        if reading == "fp32":
            return np.repeat(words.view(np.float32).astype(np.float64), 2, axis=1)
        halves = np.ascontiguousarray(words).view(np.uint16)
        if self.activation == "fp16":
            return halves.view(np.float16).astype(np.float64)
        return (halves.astype(np.uint32) << 16).view(np.float32).astype(np.float64)


def words_of_pairs(k: int, bits: int) -> NDArray[np.int64]:
    """Which word of a row the bypass arm takes for each pair of neighbouring weights, int64 [k / 2].

    One plane: the word that holds the pair. Several: the words of 32 weights, plane after plane, in turn.
    """
    first = np.arange(0, k, 2)
    planes = PLANES[bits]
    if len(planes) == 1:
        return first * bits // 32
    starts = np.cumsum((0, *planes))  # of 32 weights, `width` words lie in each plane
    place = first % SEGMENT * bits // 32
    plane = np.searchsorted(starts, place, side="right") - 1
    within = first // SEGMENT * np.array(planes)[plane] + place - starts[plane]
    words: NDArray[np.int64] = starts[plane] * k // 32 + within
    return words


def words_by_turns(k: int, bits: int) -> NDArray[np.int64]:
    """The same where the pairs of two neighbouring words take the one and the other by turns: int64 [k / 2].

    So tensor cores read them: their two words of a row meet pairs 0 and 1 of x, then 2 and 3, which lie in
    neighbouring registers. Formats of one plane only.
    """
    pairs = np.arange(k // 2)
    words: NDArray[np.int64] = pairs * bits // 32 * 2 + pairs % 2  # 32 / bits pairs in two words
    return words


def scale_dtype(weight_format: WeightFormat, activation: Float) -> Float | Literal["u8"]:
    """The dtype that scales are stored in; "u8" where they are codes."""
    if weight_format.scale_bits == 8:
        return "u8"
    return "fp32" if weight_format.scale_bits == 32 else activation


def quantize(
    weights: NDArray[np.floating], weight_format: WeightFormat, activation: Float, seed: int = 0
) -> Weights:
    """W[n, k] rounded to the nearest codes (quantize.py); `seed` is that of the bypass words.

    Raises:
        ValueError: k does not divide into whole groups; a weight or a scale is not finite.
    """
    codes, scales = quantization.quantize(weights, weight_format, activation)
    stored = scales.zeros, seed, scales.codes, scales.second_level
    return Weights(weight_format, activation, codes, scales.numbers, *stored)


def random_weights(
    n: int, k: int, weight_format: WeightFormat, activation: Float, seed: int
) -> Weights:
    """Quantized W ~ N(0, 0.02^2) of shape [n, k], reproducible from the seed."""
    rng = np.random.default_rng(seed)
    normal = rng.standard_normal((n, k), dtype=np.float32) * np.float32(WEIGHT_STD)
    return quantize(normal, weight_format, activation, seed)


def random_activations(batch: int, k: int, activation: Float, seed: int) -> NDArray[np.float32]:
    """Activations x ~ N(0, 1) [batch, k], rounded to their dtype, reproducible from the seed."""
    rng = np.random.default_rng([seed, 2])
    return round_to(rng.standard_normal((batch, k), dtype=np.float32), activation)


def bits_of_scales(weights: Weights) -> NDArray[np.int64]:
    """The stored bits of each scale as a signed integer, int64 [n, groups]."""
    stored = scale_dtype(weights.format, weights.activation)
    if weights.scale_codes is not None:
        return weights.scale_codes.astype(np.int64)
    if stored == "fp16":
        return weights.scales.astype(np.float16).view(np.int16).astype(np.int64)
    bits = weights.scales.view(np.int32)
    return (bits >> 16 if stored == "bf16" else bits).astype(np.int64)


def reference(
    arm: str, weights: Weights, x: NDArray[np.float32], reading: BypassReading = "fp32"
) -> NDArray[Any]:
    """What an arm must write, computed in float64 (int64 for the integer stages).

    The early stages of the ladder multiply nothing; their loads and conversions are kept alive by a sum
    per row, which is stored and can therefore be checked:

        stream      sum of the words, of the scales' bits and of the zero points, modulo 2^32
        unpack      sum of the codes, of the scales' bits and of the zero points, modulo 2^32
        scale       sum of the dequantized weights; their numbers rounded to the activation dtype before they
                    are scaled, unless the reading is "fp32". That moves NF4 and FP4 alone

    `lowp` multiplies quantized activations: x is then what those stand for (lowp.py).

    Returns:
        int64 [n] for stream and unpack (as signed 32-bit values); float64 [n] for scale;
        float32 [n, k] for dequantize; float64 [batch, n] for arms that multiply.

    Raises:
        ValueError: no such arm.
    """
    if arm in ("stream", "unpack"):
        words = weights.words.view(np.int32) if arm == "stream" else weights.codes
        total = words.sum(axis=1, dtype=np.int64) + bits_of_scales(weights).sum(axis=1)
        if weights.zeros is not None:
            total += weights.zeros.sum(axis=1, dtype=np.int64)
        wrapped: NDArray[np.int64] = (total + (1 << 31)) % (1 << 32) - (1 << 31)
        return wrapped
    if arm == "scale":
        if reading == "fp32" or weights.format.encoding not in ("nf4", "fp4"):
            summed = weights.values  # other numbers are exact in 16 bits
        else:
            # Without x the roundings of equal codes add up; times x they average out, within the tolerance.
            rounded = round_to(weights.numbers, weights.activation)
            summed = rounded.astype(np.float64) * weights.per_weight(weights.scales)
        sums: NDArray[np.float64] = summed.sum(axis=1)
        return sums
    if arm == "dequantize":
        return weights.values16
    return x.astype(np.float64) @ multiplied(arm, weights, reading).T


def multiplied(arm: str, weights: Weights, reading: BypassReading = "fp32") -> NDArray[np.float64]:
    """The matrix [n, k] that an arm multiplies x with, in float64.

    Raises:
        ValueError: no such arm, or one that multiplies nothing.
    """
    if arm in ("native", "unfused", "upcast"):
        return weights.values16.astype(np.float64)
    if arm in ("fused", "lowp"):
        return weights.values
    if arm == "bypass":
        scaled: NDArray[np.float64] = weights.bypass_values(reading) * weights.per_weight(
            weights.scales
        )
        return scaled
    raise ValueError(f"there is no arm named {arm!r} that multiplies.")

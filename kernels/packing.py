"""Quantize, pack, unpack and dequantize in NumPy: the definition of every bit layout and every reference.

Nothing here is fast; everything here is what "right" means. One equation serves all integer formats, and
one all others:

    weight = (code - zero) * scale          code in 0 .. 2^bits - 1
    weight = codebook[code] * scale         codebooks.py

`zero` is the stored zero point, or the middle code (8 for 4 bits, 128 for 8) where a format has none.

W[n, k] is stored row by row. Along k, `32 / bits` codes share one little-endian 32-bit word:

    int8   bit 31                                     0
           [  w3   |  w2   |  w1   |  w0   ]              weight i sits in byte i

    int4   bit 31                                     0
           [ w7 | w5 | w3 | w1 | w6 | w4 | w2 | w0 ]      nibble 0 is the lowest

The int4 order 0,2,4,6,1,3,5,7 puts neighbours 16 bits apart, so `(word >> 4 * i) & 0x000f000f` is the
pair (w[2i], w[2i+1]), each in its own half: one mask serves two weights of a packed half2.

Scales are [n, k / group_size] in the activation dtype, or fp32 where the format says so; zero points are
bytes of the same shape. What others store in another order becomes this in converters.py.

The `bypass` arm reads words of its own: each 16-bit half is +-0x3C00..0x3CFF, which is a finite, normal
number near 1 as fp16, and near 1/64 as bf16 and as the upper half of an fp32. A kernel may then use the
bits as numbers at no cost, whatever its arithmetic.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from kernels.codebooks import codebook, full_scale, nearest_fp8, nearest_nf4
from kernels.formats import WeightFormat

Float = Literal["fp16", "bf16", "fp32"]
Float16 = Literal["fp16", "bf16"]
BypassReading = Literal["fp32", "halves"]

NIBBLE_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # nibble i of a word holds weight NIBBLE_ORDER[i]
WEIGHT_STD = 0.02  # W ~ N(0, 0.02^2), METHOD section 2


def code_order(bits: int) -> tuple[int, ...]:
    """Which of a word's weights sits in each of its fields, lowest field first."""
    return NIBBLE_ORDER if bits == 4 else tuple(range(32 // bits))


def pack(codes: NDArray[np.uint8], bits: int) -> NDArray[np.uint32]:
    """Codes [n, k] into words [n, k * bits / 32]."""
    n = codes.shape[0]
    fields = codes.reshape(n, -1, 32 // bits)[:, :, code_order(bits)].astype(np.uint32)
    shifts = np.arange(0, 32, bits, dtype=np.uint32)
    words: NDArray[np.uint32] = np.bitwise_or.reduce(fields << shifts, axis=2)
    return words


def unpack(words: NDArray[np.uint32], bits: int) -> NDArray[np.uint8]:
    """Words [n, k * bits / 32] back into codes [n, k]."""
    n, words_per_row = words.shape
    shifts = np.arange(0, 32, bits, dtype=np.uint32)
    fields = (words[:, :, None] >> shifts) & np.uint32((1 << bits) - 1)
    codes = np.empty((n, words_per_row, 32 // bits), np.uint8)
    codes[:, :, code_order(bits)] = fields
    return codes.reshape(n, -1)


def round_to(values: NDArray[np.floating], dtype: Float) -> NDArray[np.float32]:
    """Values rounded to nearest even in `dtype`, returned as float32 (which holds all three exactly)."""
    single = np.asarray(values, np.float32)
    if dtype == "fp16":
        return single.astype(np.float16).astype(np.float32)
    if dtype == "bf16":
        bits = single.view(np.uint32)
        rounded = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
        return (rounded & np.uint32(0xFFFF0000)).view(np.float32)
    return single


@dataclass(frozen=True)
class Weights:
    """One weight matrix in one format, with every view of it that an arm or a reference needs.

    Attributes:
        format: how it is stored.
        activation: dtype of the activations, "fp16" or "bf16".
        codes: uint8 [n, k].
        scales: float32 [n, groups], already rounded to their dtype (`scale_dtype`).
        zeros: uint8 [n, groups], or None where the format stores no zero point.
        seed: seed of the bypass words.
    """

    format: WeightFormat
    activation: Float
    codes: NDArray[np.uint8]
    scales: NDArray[np.float32]
    zeros: NDArray[np.uint8] | None
    seed: int = 0

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
        """Words of the bypass arm: every half finite and normal as fp16, bf16 and upper half of fp32."""
        rng = np.random.default_rng([self.seed, 1])
        halves = rng.integers(0, 0x100, size=(*self.words.shape, 2), dtype=np.uint16)
        halves |= np.uint16(0x3C00) | (rng.integers(0, 2, halves.shape, dtype=np.uint16) << 15)
        words: NDArray[np.uint32] = halves.view(np.uint32)[:, :, 0]
        return words

    def per_weight(self, per_group: NDArray[Any]) -> NDArray[Any]:
        """Spread values [n, groups] over the weights [n, k]."""
        return np.repeat(per_group, self.codes.shape[1] // per_group.shape[1], axis=1)

    @cached_property
    def values(self) -> NDArray[np.float64]:
        """The dequantized weights, exact in float64 [n, k]."""
        if self.format.encoding == "int":
            zero = self.format.zero_code if self.zeros is None else self.per_weight(self.zeros)
            steps = self.codes.astype(np.float64) - zero
        else:
            steps = codebook(self.format.encoding).astype(np.float64)[self.codes]
        dequantized: NDArray[np.float64] = steps * self.per_weight(self.scales)
        return dequantized

    @cached_property
    def values16(self) -> NDArray[np.float32]:
        """The dequantized weights rounded to the activation dtype: what 16-bit kernels multiply."""
        return round_to(self.values, self.activation)

    def bypass_values(self, reading: BypassReading) -> NDArray[np.float64]:
        """What the bypass arm multiplies instead of weights, float64 [n, k].

        Args:
            reading: "fp32" takes the whole word as one fp32 for every weight of the word;
                "halves" takes its 16-bit halves in turn, as numbers of the activation dtype.
        """
        per_word = self.format.weights_per_word
        if reading == "fp32":
            return np.repeat(
                self.bypass_words.view(np.float32).astype(np.float64), per_word, axis=1
            )
        halves = self.bypass_words.view(np.uint16).reshape(*self.bypass_words.shape, 2)
        if self.activation == "fp16":
            pair = halves.view(np.float16).astype(np.float64)
        else:
            pair = (halves.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
        return np.tile(pair, (1, 1, per_word // 2)).reshape(self.codes.shape)


def scale_dtype(weight_format: WeightFormat, activation: Float) -> Float:
    """The dtype that scales are stored in."""
    return "fp32" if weight_format.scale_bits == 32 else activation


def quantize(
    weights: NDArray[np.floating], weight_format: WeightFormat, activation: Float, seed: int = 0
) -> Weights:
    """Round-to-nearest quantization of W[n, k].

    Symmetric formats scale by the group's largest magnitude, so that the codes are
    middle +- (middle - 1). With a zero point the range [min(w, 0), max(w, 0)] maps to 0 .. 2^bits - 1.
    Of a codebook one number stands for the group's largest magnitude (`full_scale`).

    Raises:
        ValueError: k does not divide into whole groups.
    """
    n, k = weights.shape
    groups = weight_format.groups(k)
    grouped = np.asarray(weights, np.float64).reshape(n, groups, k // groups)
    stored = scale_dtype(weight_format, activation)
    if weight_format.zero_point:
        return _quantize_with_zero_points(grouped, weight_format, activation, seed)
    encoding = weight_format.encoding
    most = weight_format.zero_code - 1 if encoding == "int" else full_scale(encoding)
    scales = round_to(np.abs(grouped).max(axis=2) / most, stored)
    scales = np.where(scales > 0, scales, np.float32(1.0))
    steps = grouped / scales[:, :, None]
    if encoding == "int":
        middle = weight_format.zero_code
        codes = np.clip(np.rint(steps) + middle, 0, 2 * middle - 1).astype(np.uint8)
    elif encoding == "nf4":
        codes = nearest_nf4(steps)
    else:
        codes = nearest_fp8(steps, encoding)
    return Weights(weight_format, activation, codes.reshape(n, k), scales, None, seed)


def _quantize_with_zero_points(
    grouped: NDArray[np.float64], weight_format: WeightFormat, activation: Float, seed: int
) -> Weights:
    """Integers whose range [0, 2^bits - 1] is that of the group, zero included and exact."""
    top = (1 << weight_format.bits) - 1
    low = np.minimum(grouped.min(axis=2), 0.0)
    high = np.maximum(grouped.max(axis=2), 0.0)
    scales = round_to((high - low) / top, activation)
    scales = np.where(scales > 0, scales, np.float32(1.0))
    zeros = np.clip(np.rint(-low / scales), 0, top).astype(np.uint8)
    steps = np.rint(grouped / scales[:, :, None]) + zeros[:, :, None]
    codes = np.clip(steps, 0, top).astype(np.uint8).reshape(len(grouped), -1)
    return Weights(weight_format, activation, codes, scales, zeros, seed)


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
        scale       sum of the dequantized weights

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
        sums: NDArray[np.float64] = weights.values.sum(axis=1)
        return sums
    if arm == "dequantize":
        return weights.values16
    return x.astype(np.float64) @ multiplied(arm, weights, reading).T


def multiplied(arm: str, weights: Weights, reading: BypassReading = "fp32") -> NDArray[np.float64]:
    """The matrix [n, k] that an arm multiplies x with, in float64.

    Raises:
        ValueError: no such arm, or one that multiplies nothing.
    """
    if arm in ("native", "unfused"):
        return weights.values16.astype(np.float64)
    if arm == "fused":
        return weights.values
    if arm == "bypass":
        scaled: NDArray[np.float64] = weights.bypass_values(reading) * weights.per_weight(
            weights.scales
        )
        return scaled
    raise ValueError(f"there is no arm named {arm!r} that multiplies.")

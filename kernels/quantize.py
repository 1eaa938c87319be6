"""Round-to-nearest quantization of W[n, k]: which scale a group has, and which codes its weights.

    symmetric integers    scale = largest magnitude / (middle - 1), so that codes are middle +- (middle - 1)
    with a zero point     the range [min(w, 0), max(w, 0)] maps to 0 .. 2^bits - 1; zero is exact
    one bit               the sign, times the mean magnitude: the nearest such matrix (arXiv 1603.05279)
    a codebook            one number stands for the group's largest magnitude (`codebooks.full_scale`)
    e8m0                  the exponent of the largest number is that of the largest magnitude (OCP Microscaling,
                          section 6.3): what lies above the largest number saturates
    mxint8                likewise; codes are OCP's two's complement + 128 and count in units, where OCP counts
                          in 64ths, so that the stored exponent is OCP's less 6

Scales are rounded to the dtype they are stored in before weights are divided by them, except that codes of
`-dq` formats are made with the scale before it is quantized again, as bitsandbytes makes them.

Arithmetic is that of those who ship the format, bit for bit: float32, times a reciprocal for NF4, FP4
(bitsandbytes) and NVFP4 (torchao), divided for FP8 and microscaling. Integers are divided in float64, so that
no tie arises from rounding.

Limits: weights must be finite in fp32, and so must a scale in its dtype (fp16 ends at 65504); otherwise
ValueError says where. A group whose scale rounds to 0 becomes zeros: in fp16, of a scale up to 2^-25. What of
a weight exceeds fp16 through a wider scale, only the arms that make 16-bit weights cannot hold.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kernels import scales as stored_scales
from kernels.codebooks import full_scale, largest_exponent, nearest_code
from kernels.formats import WeightFormat
from kernels.scales import Float, round_to

WEIGHTS_AT_ONCE = 1 << 16  # whose temporaries stay in a core's cache


@dataclass(frozen=True)
class Scales:
    """The scales of a matrix and what makes codes of its weights.

    Attributes:
        numbers: float32 [n, groups], what codes are multiplied by.
        factors: float32 [n, groups], what weights are multiplied by to quantize them; None where they are
            divided by `numbers`.
        zeros: uint8 [n, groups], or None where the format stores no zero point.
        codes: uint8 [n, groups], where scales are stored in eight bits.
        second_level: float32, what such scales need besides their codes (scales.py), or None.
    """

    numbers: NDArray[np.float32]
    factors: NDArray[np.float32] | None = None
    zeros: NDArray[np.uint8] | None = None
    codes: NDArray[np.uint8] | None = None
    second_level: NDArray[np.float32] | None = None


def quantize(
    weights: NDArray[np.floating], weight_format: WeightFormat, activation: Float
) -> tuple[NDArray[np.uint8], Scales]:
    """Codes [n, k] and scales of W[n, k], rounded to fp32 first.

    Raises:
        ValueError: k does not divide into whole groups; a weight or a scale is not finite.
    """
    n, k = weights.shape
    groups = weight_format.groups(k)
    grouped = _finite(weights).reshape(n, groups, k // groups)
    scales = _scales(grouped, weight_format, activation)
    codes = np.empty(grouped.shape, np.uint8)
    rows = max(1, WEIGHTS_AT_ONCE // k)
    for first in range(0, n, rows):
        at = slice(first, first + rows)
        codes[at] = _codes(grouped[at], weight_format, scales, at)
    return codes.reshape(n, k), scales


def _finite(weights: NDArray[np.floating]) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):
        single = np.ascontiguousarray(weights, np.float32)
    if not np.isfinite(single).all():
        row, column = np.argwhere(~np.isfinite(single))[0]
        raise ValueError(
            f"weights must be finite as fp32, but row {row}, column {column} is "
            f"{weights[row, column]}; there is no code for it."
        )
    return single


def _scales(grouped: NDArray[np.float32], weight_format: WeightFormat, activation: Float) -> Scales:
    """Scales of groups [n, groups, size]."""
    encoding, scale_type = weight_format.encoding, weight_format.scale_type
    largest = np.abs(np.maximum(grouped.max(axis=2), -grouped.min(axis=2)))  # abs: of zeros no -0
    if weight_format.zero_point:
        return _with_zero_points(grouped, weight_format, activation)
    if scale_type == "e8m0":
        codes = stored_scales.encode_e8m0(largest, largest_exponent(encoding))
        return Scales(stored_scales.decode("e8m0", codes, None), codes=codes)
    most = weight_format.zero - 1 if encoding == "int" else full_scale(encoding)
    if scale_type == "e4m3":
        codes, second = stored_scales.encode_e4m3(largest, most)
        numbers = stored_scales.decode("e4m3", codes, second)
        factors = np.float32(1) / second[0] / stored_scales.decode_e4m3(codes)
        return Scales(numbers, factors, codes=codes, second_level=second)
    if scale_type == "nested":
        codes, second = stored_scales.encode_nested(largest)
        numbers = stored_scales.decode("nested", codes, second)
        return Scales(numbers, stored_scales.reciprocal(largest), codes=codes, second_level=second)
    if weight_format.bits == 1:
        wanted = 2 * np.abs(grouped).mean(axis=2, dtype=np.float64)
    else:
        wanted = largest / np.float64(most)
    numbers = _rounded(wanted, "fp32" if scale_type == "fp32" else activation, weight_format)
    if encoding in ("nf4", "fp4"):
        return Scales(numbers, stored_scales.reciprocal(numbers))
    return Scales(numbers)


def _with_zero_points(
    grouped: NDArray[np.float32], weight_format: WeightFormat, activation: Float
) -> Scales:
    """Scales of integers whose range is that of the group, zero included; 1 where it is no wider."""
    top = (1 << weight_format.bits) - 1
    low = np.minimum(grouped.min(axis=2), 0).astype(np.float64)
    high = np.maximum(grouped.max(axis=2), 0).astype(np.float64)
    numbers = _rounded((high - low) / top, activation, weight_format)
    numbers = np.where(numbers > 0, numbers, np.float32(1))
    zeros = np.clip(np.rint(-low / numbers), 0, top).astype(np.uint8)
    return Scales(numbers, zeros=zeros)


def _rounded(
    wanted: NDArray[np.float64], dtype: Float, weight_format: WeightFormat
) -> NDArray[np.float32]:
    """Scales [n, groups] in the dtype they are stored in."""
    with np.errstate(over="ignore"):
        rounded = round_to(wanted, dtype)
    if not np.isfinite(rounded).all():
        row, group = np.argwhere(~np.isfinite(rounded))[0]
        raise ValueError(
            f"{weight_format.name} cannot hold row {row}, group {group}: its scale "
            f"{wanted[row, group]:.4g} is beyond {dtype}. Scale the matrix down, or use a format "
            f"with wider scales."
        )
    return rounded


def _codes(
    grouped: NDArray[np.float32], weight_format: WeightFormat, scales: Scales, rows: slice
) -> NDArray[np.uint8]:
    """Codes of groups [rows, groups, size], which are those rows of the matrix."""
    if weight_format.encoding == "int":
        numbers = scales.numbers[rows, :, None]
        steps = np.divide(grouped, np.where(numbers > 0, numbers, 1), dtype=np.float64)
        if weight_format.bits == 1:
            return (steps >= 0).view(np.uint8)
        # Without a zero point the lowest code has no opposite and stays unused.
        zeros = weight_format.zero if scales.zeros is None else scales.zeros[rows, :, None]
        lowest, top = int(scales.zeros is None), (1 << weight_format.bits) - 1
        return np.clip(np.rint(steps, out=steps) + zeros, lowest, top).astype(np.uint8)
    if scales.factors is not None:
        return nearest_code(grouped * scales.factors[rows, :, None], weight_format.encoding)
    numbers = scales.numbers[rows, :, None]
    return nearest_code(grouped / np.where(numbers > 0, numbers, 1), weight_format.encoding)

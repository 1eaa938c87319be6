"""Weights as others store them, turned into ours: GPTQ, AWQ, bitsandbytes, microscaling and NVFP4.

Nothing is rounded: codes, scales and zero points are moved, never recomputed. W has n rows (outputs) and k
columns (inputs) throughout, in groups of g along k; GPTQ and AWQ store it transposed, bitsandbytes flat.

    GPTQ           qweight int32 [k * bits / 32, n]  codes of a column of W^T, the first in the lowest bits
                   qzeros int32 [k / g, n * bits / 32]  a zero point per row of W, less 1 ("gptq_v2": less 0)
                   scales fp16 [k / g, n]; g_idx int32 [k] must be in order (desc_act=False)
                   weight = (code - (stored + 1)) * scale; the sum is not cut to its bits: 16 stays 16
    AWQ            qweight int32 [k, n / 8]    eight rows of W, nibble i holds row 0, 2, 4, 6, 1, 3, 5, 7
                   qzeros int32 [k / g, n / 8] in the same order; scales fp16 [k / g, n]
                   weight = (code - zero) * scale
    bitsandbytes   uint8 [n * k / 2]           row after row, two codes a byte, the first in the upper nibble
                   absmax fp32 [n * k / 64], or itself quantized: uint8 codes of blocks of 256
                   weight = codebook[code] * absmax; no zero point
    MX (torchao)   codes [n, k], one a byte; of mxfp4 [n, k / 2], two a byte, the first in the lower nibble
                   e8m0 codes [n, k / 32], not swizzled
                   weight = codebook[code] * 2^(scale - 127); no zero point
    MXINT8 (OCP)   int8 [n, k], two's complement, which counts in 64ths: weight = q / 64 * 2^(scale - 127).
                   Here the code is q + 128, its zero 128, and the stored scale OCP's less 6
    NVFP4          codes as of mxfp4; e4m3 codes [n, k / 16], not swizzled; one fp32
                   weight = codebook[code] * (e4m3 * fp32); no zero point

Sources: the packing loops of AutoGPTQ (`qlinear_*.py: pack`, with its `zeros -= 1`) and AutoAWQ (`order_map`),
`functional.py` of bitsandbytes 0.50, `mx_tensor.py` and `nvfp4_tensor.py` of torchao 0.18, and section 5.3 of
the OCP Microscaling specification, revision 1.0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from kernels import scales as stored_scales
from kernels.formats import FORMATS, WeightFormat, find_format
from kernels.packing import NIBBLE_ORDER, Weights

NestedType = Literal["nf4", "fp4"]
MXINT8_FRACTION = 6  # bits of OCP's int8 behind the point


@dataclass(frozen=True)
class NestedAbsmax:
    """bitsandbytes' double-quantized absmax (`compress_statistics=True`).

    Attributes:
        codes: uint8, one per block of 64 weights.
        numbers: float32 [256], what the codes stand for (`nested_quant_map`).
        absmax: float32, one per 256 codes (`nested_absmax`).
        offset: added to all (`nested_offset`).
    """

    codes: NDArray[np.uint8]
    numbers: NDArray[np.float32]
    absmax: NDArray[np.float32]
    offset: float


def from_gptq(
    qweight: NDArray[np.int32],
    qzeros: NDArray[np.int32],
    scales: NDArray[np.float16],
    bits: Literal[4, 8] = 4,
    stored_minus: int = 1,
    g_idx: NDArray[np.int32] | None = None,
) -> Weights:
    """A GPTQ matrix. `stored_minus` is what its zero points were lowered by: 1, or 0 for "gptq_v2".

    Give the checkpoint's `g_idx` (int32 [k]), the group of each column of W: nothing else tells that columns
    were grouped in another order, and the weights would come out wrong.

    Raises:
        ValueError: no format has such groups, or `g_idx` is not in order; a zero point is 256, which no byte
            holds; shapes disagree; a scale is not finite.
    """
    in_order = tuple(range(32 // bits))
    codes = fields(qweight.T, bits, in_order)
    if g_idx is not None:
        k = codes.shape[1]
        _demand("g_idx", g_idx, (k,))
        if (g_idx != np.arange(k) // -(-k // len(qzeros))).any():
            raise ValueError(
                "g_idx is not in order (desc_act=True): these groups hold scattered columns, "
                "which no format here has; quantize with desc_act=False."
            )
    zeros = fields(qzeros, bits, in_order).T.astype(np.uint16) + stored_minus
    return _asymmetric(codes, zeros, scales, bits)


def from_awq(
    qweight: NDArray[np.int32], qzeros: NDArray[np.int32], scales: NDArray[np.float16]
) -> Weights:
    """An AWQ matrix.

    Raises:
        ValueError: no format has such groups; shapes disagree; a scale is not finite.
    """
    codes, zeros = (fields(words, 4, NIBBLE_ORDER).T for words in (qweight, qzeros))
    return _asymmetric(codes, zeros, scales, 4)


def from_bitsandbytes(
    packed: NDArray[np.uint8],
    absmax: NDArray[np.float32] | NestedAbsmax,
    n: int,
    k: int,
    quant_type: NestedType = "nf4",
) -> Weights:
    """An NF4 or FP4 matrix of bitsandbytes, blocks of 64; a nested absmax stays nested.

    Raises:
        ValueError: rows of k do not divide into blocks, which would then cross them; shapes disagree with
            n and k; an absmax is not finite.
    """
    nested = isinstance(absmax, NestedAbsmax)
    weight_format = find_format(f"{quant_type}-b64-dq" if nested else f"{quant_type}-b64")
    shape = n, weight_format.groups(k)
    blocks = math.prod(shape)
    flat = packed.reshape(-1)
    _demand("the packed codes, flat,", flat, (n * k // 2,))
    codes = np.stack([flat >> 4, flat & 15], axis=1).reshape(n, k)
    if isinstance(absmax, NestedAbsmax):
        _demand("the codes of absmax, flat,", absmax.codes.reshape(-1), (blocks,))
        _demand("nested_quant_map", absmax.numbers, (256,))
        _demand("nested_absmax", absmax.absmax, (-(-blocks // 256),))
        _demand("nested_offset", np.float32(absmax.offset), ())
        second = np.concatenate([absmax.numbers, [absmax.offset], absmax.absmax])
        return _coded(weight_format, codes, absmax.codes.reshape(shape), second.astype(np.float32))
    _demand("absmax, flat,", absmax.reshape(-1), (blocks,))
    return Weights(weight_format, "fp16", codes, absmax.reshape(shape), None)


def from_mx(
    format_name: str, qdata: NDArray[np.uint8 | np.int8], scales: NDArray[np.uint8]
) -> Weights:
    """A microscaling matrix: codes as their bytes, e8m0 scales as theirs.

    Raises:
        ValueError: not a format of microscaling; a code or a scale stands for no finite number; a scale of
            mxint8 is below 2^-121, where ours ends.
    """
    weight_format = find_format(format_name)
    if weight_format.scale_type != "e8m0":
        raise ValueError(f"{format_name} is not a microscaling format (mxfp4, mxfp6_e2m3, ...).")
    if format_name == "mxint8":
        _demand("scales", scales, (len(qdata), weight_format.groups(qdata.shape[1])))
        codes = qdata.view(np.uint8) ^ np.uint8(128)
        empty = (qdata.reshape(*scales.shape, 32) == 0).all(axis=2)
        if (~empty & (scales <= MXINT8_FRACTION)).any():
            raise ValueError("mxint8 is kept in units of 1/64: its e8m0 codes must exceed 6.")
        finite = (scales < 255) & ~empty
        lowered = scales - np.where(finite, MXINT8_FRACTION, 0).astype(np.uint8)
        return _coded(weight_format, codes, np.where(empty, np.uint8(0), lowered), None)
    codes = _two_per_byte(qdata) if weight_format.bits == 4 else qdata.view(np.uint8)
    return _coded(weight_format, codes, scales, None)


def from_nvfp4(
    qdata: NDArray[np.uint8], scales: NDArray[np.uint8], per_tensor_scale: float = 1.0
) -> Weights:
    """An NVFP4 matrix; torchao's `per_tensor_scale` is 1 where it is None.

    Raises:
        ValueError: a scale stands for no finite number.
    """
    second = np.array([per_tensor_scale], np.float32)
    return _coded(find_format("nvfp4"), _two_per_byte(qdata), scales, second)


def fields(words: NDArray[np.int32], bits: int, order: tuple[int, ...]) -> NDArray[np.uint8]:
    """Codes uint8 [rows, columns * 32 / bits] of words [rows, columns]; field i holds number order[i]."""
    shifts = np.arange(0, 32, bits, dtype=np.uint32)
    found = np.ascontiguousarray(words).view(np.uint32)[:, :, None] >> shifts
    codes = np.empty(found.shape, np.uint8)
    codes[:, :, order] = found & np.uint32((1 << bits) - 1)
    return codes.reshape(len(words), -1)


def _demand(what: str, found: NDArray[np.generic] | np.generic, shape: tuple[int, ...]) -> None:
    """Raises a ValueError unless `found` has this shape and nothing but finite numbers."""
    if found.shape != shape:
        raise ValueError(f"{what} must have shape {shape}, but has {found.shape}.")
    if not np.isfinite(found).all():
        raise ValueError(f"{what} must be finite, but holds infinities or NaN.")


def _two_per_byte(qdata: NDArray[np.uint8 | np.int8]) -> NDArray[np.uint8]:
    """Codes [n, k] of bytes [n, k / 2] that hold the first of two codes in the lower nibble."""
    pairs = qdata.view(np.uint8)
    return np.stack([pairs & 15, pairs >> 4], axis=2).reshape(len(pairs), -1)


def _coded(
    weight_format: WeightFormat,
    codes: NDArray[np.uint8],
    scale_codes: NDArray[np.uint8],
    second: NDArray[np.float32] | None,
) -> Weights:
    """Codes [n, k] with scales [n, groups] stored in eight bits.

    Raises:
        ValueError: a code or a scale stands for no finite number.
    """
    expected = len(codes), weight_format.groups(codes.shape[1])
    if scale_codes.shape != expected:
        raise ValueError(
            f"{weight_format.name} of shape {codes.shape} has {expected} scales, "
            f"but these are {scale_codes.shape}; swizzled ones must be put in order first."
        )
    numbers = stored_scales.decode(weight_format.scale_type, scale_codes, second)
    weights = Weights(
        weight_format, "fp16", codes, numbers, None, scale_codes=scale_codes, second_level=second
    )
    if not np.isfinite(weights.values).all():
        row, column = np.argwhere(~np.isfinite(weights.values))[0]
        raise ValueError(
            f"row {row}, column {column} of {weight_format.name} is no finite number: code "
            f"{codes[row, column]}, scale {weights.per_weight(numbers)[row, column]}."
        )
    return weights


def _asymmetric(
    codes: NDArray[np.uint8], zeros: NDArray[np.integer], scales: NDArray[np.float16], bits: int
) -> Weights:
    """Codes [n, k] and zero points [n, groups] with scales [groups, n].

    Raises:
        ValueError: no format has such groups; shapes disagree; a zero point is 256; a scale is not finite.
    """
    groups = zeros.shape[1]
    group_size = codes.shape[1] // groups
    candidates = [f for f in FORMATS if f.bits == bits and f.zero_point]
    found = [f for f in candidates if f.group_size == group_size]
    found += [f for f in candidates if f.group_size is None and groups == 1]
    if not found:
        raise ValueError(
            f"there is no {bits}-bit format with zero points and groups of {group_size}; "
            f"quantize with groups of 32, 64 or 128, or per channel."
        )
    shape = len(codes), found[0].groups(codes.shape[1])
    _demand("zero points, unpacked and transposed,", zeros, shape)
    _demand("scales", scales, shape[::-1])
    if zeros.max() > 255:
        raise ValueError("a zero point of 256 does not fit in the byte that is kept of it.")
    kept = np.ascontiguousarray(codes), np.ascontiguousarray(zeros, np.uint8)
    return Weights(found[0], "fp16", kept[0], scales.T.astype(np.float32), kept[1])

"""Weights as others store them, turned into ours: GPTQ, AWQ and bitsandbytes checkpoints.

Nothing is rounded: codes, scales and zero points are moved, never recomputed. W has n rows (outputs) and k
columns (inputs) throughout; these formats store it transposed or flat.

    GPTQ           qweight int32 [k / 8, n]    eight codes of a column of W^T, the first in the lowest nibble
                   qzeros int32 [k / g, n / 8] eight rows' zero points minus 1 (as it is in "gptq_v2")
                   scales fp16 [k / g, n]; g_idx must be in order (desc_act=False)
    AWQ            qweight int32 [k, n / 8]    eight rows of W, nibble i holds row 0, 2, 4, 6, 1, 3, 5, 7
                   qzeros int32 [k / g, n / 8] in the same order; scales fp16 [k / g, n]
    bitsandbytes   uint8 [n * k / 2]           row after row, two codes a byte, the first in the upper nibble
                   absmax fp32 [n * k / 64], or itself quantized: uint8 codes of blocks of 256

Sources: the packing loops of AutoGPTQ (`qlinear_*.py: pack`, with its `zeros -= 1`) and AutoAWQ (`order_map`),
and `functional.py` of bitsandbytes 0.50.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kernels.formats import FORMATS, WeightFormat
from kernels.packing import NIBBLE_ORDER, Weights

IN_ORDER = tuple(range(8))
NESTED_BLOCK = 256  # absmax values that share a scale of the second level


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

    def values(self) -> NDArray[np.float32]:
        """The absmax of every block of 64, float32, rounded after each operation as theirs is."""
        scales = np.repeat(self.absmax, NESTED_BLOCK)[: len(self.codes)]
        return self.numbers[self.codes] * scales + np.float32(self.offset)


def from_gptq(
    qweight: NDArray[np.int32],
    qzeros: NDArray[np.int32],
    scales: NDArray[np.float16],
    stored_minus: int = 1,
) -> Weights:
    """A GPTQ matrix. `stored_minus` is what its zero points were lowered by: 1, or 0 for "gptq_v2".

    Raises:
        ValueError: no format has such groups.
    """
    codes = nibbles(qweight.T, IN_ORDER)
    zeros = nibbles(qzeros, IN_ORDER).T + np.uint8(stored_minus)
    return _asymmetric(codes, zeros, scales)


def from_awq(
    qweight: NDArray[np.int32], qzeros: NDArray[np.int32], scales: NDArray[np.float16]
) -> Weights:
    """An AWQ matrix.

    Raises:
        ValueError: no format has such groups.
    """
    return _asymmetric(nibbles(qweight, NIBBLE_ORDER).T, nibbles(qzeros, NIBBLE_ORDER).T, scales)


def from_bitsandbytes(
    packed: NDArray[np.uint8],
    absmax: NDArray[np.float32] | NestedAbsmax,
    n: int,
    k: int,
) -> Weights:
    """An NF4 matrix of bitsandbytes, blocks of 64.

    Raises:
        ValueError: rows of k do not divide into blocks, which would then cross them.
    """
    weight_format = next(f for f in FORMATS if f.name == "nf4-b64")
    groups = weight_format.groups(k)
    flat = packed.reshape(-1)
    codes = np.stack([flat >> 4, flat & 15], axis=1).reshape(n, k)
    levels = absmax.values() if isinstance(absmax, NestedAbsmax) else absmax
    return Weights(weight_format, "fp16", codes, levels.reshape(n, groups), None)


def nibbles(words: NDArray[np.int32], order: tuple[int, ...]) -> NDArray[np.uint8]:
    """Codes uint8 [rows, 8 * columns] of words [rows, columns]; nibble i holds number order[i]."""
    shifts = np.arange(0, 32, 4, dtype=np.uint32)
    fields = np.ascontiguousarray(words).view(np.uint32)[:, :, None] >> shifts & np.uint32(15)
    codes = np.empty(fields.shape, np.uint8)
    codes[:, :, order] = fields
    return codes.reshape(len(words), -1)


def _asymmetric(
    codes: NDArray[np.uint8], zeros: NDArray[np.uint8], scales: NDArray[np.float16]
) -> Weights:
    """Codes [n, k] and zero points [n, groups] with scales [groups, n]."""
    group_size = codes.shape[1] // zeros.shape[1]
    found: list[WeightFormat] = [
        f for f in FORMATS if f.bits == 4 and f.zero_point and f.group_size == group_size
    ]
    if not found:
        raise ValueError(
            f"there is no 4-bit format with zero points and groups of {group_size}; "
            f"quantize with groups of 32, 64 or 128, or per channel."
        )
    contiguous = [np.ascontiguousarray(a) for a in (codes, zeros)]
    return Weights(found[0], "fp16", contiguous[0], scales.T.astype(np.float32), contiguous[1])

"""The arm `lowp`: no weight is dequantized; activations are quantized too, and tensor cores take both.

The question: what if nobody cast back at all? A tensor core that multiplies p-bit operands needs p-bit
activations, so what dequantization cost becomes the quantization of x, and an error that weights alone do not
have. Both are shown apart: every product has two rows, one whose activations were quantized before (its
implementation is the product's name, "triton") and one that quantizes them in a launch of its own first
("triton+triton"). The second is what a server pays; their difference within a block is the quantization.

    alias   format           operands               scales of W          scales of x
    W8A8    int8-ch          int8, int32 sums       one per row          fp32 per token
    W8A8    fp8_e4m3-ch      e4m3                   one per row          fp32 per token
    W8A8    mxfp8_e4m3       e4m3                   e8m0 per 32          e8m0 per 32
    W4A4    mxfp4            e2m1                   e8m0 per 32          e8m0 per 32
    W4A4    nvfp4            e2m1                   e4m3 per 16, and     e4m3 per 16, and
                                                    fp32 per matrix      fp32 per token

Activations are quantized when they arrive ("dynamic"), each row of x[batch, k] by itself, by the rules of
`packing.quantize`: the largest magnitude decides, nearest code, ties to even. The second level of nvfp4 is per
token here, where a static one would need calibration data.

Layout: codes lie in the order of k, one byte each or two e2m1 in one byte, the first in the lower half; int8
in two's complement. That is what the instructions read; the packed words of packing.py serve other arms.

The reference multiplies the *quantized* activations with the dequantized weights, in float64; what their
quantization adds to the error of y is `activation_error`, a number of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from kernels import packing
from kernels.codebooks import nearest_code
from kernels.formats import LOWP_ALIASES

if TYPE_CHECKING:
    from kernels.formats import WeightFormat
    from kernels.kernel import Launch, Tensors
    from kernels.packing import Weights

_DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
TOLERANCE = 1e-2  # of the largest |y|, as of other products; fp32 sums, one rounding to 16 bits


@dataclass(frozen=True)
class Activations:
    """Quantized activations.

    Attributes:
        codes: uint8 [batch, k * bits / 8], in the layout of the module.
        scales: fp32 [batch, 1], or uint8 [batch, k / group] where they are codes.
        token_scales: fp32 [batch] that scale codes are multiplied with; None without a second level.
        values: what they stand for, float64 [batch, k].
    """

    codes: NDArray[np.uint8]
    scales: NDArray[np.float32] | NDArray[np.uint8]
    token_scales: NDArray[np.float32] | None
    values: NDArray[np.float64]


def operand_bytes(codes: NDArray[np.uint8], weight_format: WeightFormat) -> NDArray[np.uint8]:
    """Codes [rows, k] as tensor cores read them: uint8 [rows, k * bits / 8]."""
    if weight_format.bits == 4:
        return codes[:, ::2] | codes[:, 1::2] << np.uint8(4)
    return codes ^ np.uint8(0x80) if weight_format.encoding == "int" else codes


def pack(weights: Weights) -> Tensors:
    """Weights on the CPU: codes uint8 [n, k * bits / 8], scales [n, groups], and what scales need besides.

    Scales are numbers of the dtype they are stored in, or codes; `matrix_scale` is fp32 [1].
    """
    codes = operand_bytes(weights.codes, weights.format)
    stored = packing.scale_dtype(weights.format, weights.activation)
    if weights.scale_codes is not None:
        scales = torch.from_numpy(weights.scale_codes.copy())
    else:
        scales = torch.from_numpy(weights.scales.copy()).to(_DTYPES[stored])
    tensors = {"codes": torch.from_numpy(codes.copy()), "scales": scales}
    if weights.second_level is not None:
        tensors["matrix_scale"] = torch.from_numpy(weights.second_level.copy())
    return tensors


def in_turn(first: Launch, second: Launch) -> Launch:
    """Both launches, one after the other: the quantization of x, and a product."""

    def launch() -> object:
        first()
        return second()

    return launch


def quantize_activations(x: NDArray[np.float32], weight_format: WeightFormat) -> Activations:
    """Quantize x [batch, k] like weights of the format, each row by itself.

    Quotients are fp32, as kernels have them: x has few digits, and often lies that close to a tie.

    Raises:
        ValueError: the format has no low-precision product, or k does not divide into its groups.
    """
    if weight_format.name not in LOWP_ALIASES:
        known = ", ".join(LOWP_ALIASES)
        raise ValueError(
            f"tensor cores take no operands in {weight_format.name}; choose one of {known}."
        )
    rule = weight_format
    if rule.scale_type == "activation":  # a token's scale is a number of its own, not the model's
        rule = replace(rule, scale_type="fp32")
    rows = [_in_fp32(packing.quantize(row[None], rule, "fp32"), row) for row in x]
    coded = rows[0].scale_codes is not None
    scales = [row.scale_codes if coded else row.scales for row in rows]
    second = [row.second_level for row in rows if row.second_level is not None]
    return Activations(
        codes=operand_bytes(np.concatenate([row.codes for row in rows]), rule),
        scales=np.concatenate([s for s in scales if s is not None]),
        token_scales=np.concatenate(second) if second else None,
        values=np.concatenate([row.values for row in rows]),
    )


def _in_fp32(quantized: Weights, row: NDArray[np.float32]) -> Weights:
    """The codes of one row again, those nearest to its fp32 quotients."""
    scales = quantized.per_weight(quantized.scales)
    steps = (row / np.where(scales > 0, scales, np.float32(1))).astype(np.float32)
    if quantized.format.encoding == "int":
        codes = (np.rint(steps) + 128).astype(np.uint8)
    else:
        codes = nearest_code(steps, quantized.format.encoding)
    return replace(quantized, codes=codes)


def activation_error(x: NDArray[np.float32], weights: Weights) -> float:
    """What quantizing x adds to the error of y: its largest change over the largest |y| without, in float64."""
    values = weights.values.T
    exact = x.astype(np.float64) @ values
    changed = quantize_activations(x, weights.format).values @ values
    return float(np.abs(changed - exact).max() / np.abs(exact).max())

"""torchao: the tensors that `quantize_` puts into a linear layer, filled with our codes and scales.

    unfused  torchao+torch   Int8Tensor (Int8WeightOnlyConfig): in eager mode its linear casts the codes to 16
                             bits, multiplies with the library's product and scales y, in three launches; what
                             torch.compile makes of that is not run here
    vendor   torchao         Int4TilePackedTo4dTensor (Int4WeightOnlyConfig, tile_packed_to_4d): PyTorch's
                             tinygemm, on a GPU with compute capability 8.0 and x in bf16

tinygemm reads weight = (code - 8) * scale + offset, both in bf16; a zero point is the offset
(8 - zero) * scale, rounded. It wants k in multiples of 1024, so rows are filled up with zeros as torchao does.
"""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from kernels.kernel import Kernel, Launch, Tensors
from kernels.packing import Weights

if TYPE_CHECKING:
    from kernels.peers import DeviceKind

BATCHES = (1, 256)
INT4_FORMATS = ("int4-g128", "int4-g128-zp", "int4-g64", "int4-g64-zp", "int4-g32", "int4-g32-zp")
MIDDLE_CODE = 8
INNER_K_TILES = 8  # as torchao fixes it
WHOLE_K = 1024  # what torchao fills k up to


def records(device: DeviceKind, release: str) -> dict[str, Kernel]:
    """Its rows on a device, by name."""
    activations = ("bf16",) if device == "cpu" else ("fp16", "bf16")
    found = {
        "torchao_int8": Kernel(
            *("unfused", "torchao+torch", device, ("int8-ch",), activations, BATCHES),
            *(pack_int8, bind_int8, release),
        )
    }
    if device == "cuda":
        found["torchao_int4"] = Kernel(
            *("vendor", "torchao", device, INT4_FORMATS, ("bf16",), BATCHES),
            *(pack_int4, bind_int4, release),
            least_capability=80,
        )
    return found


def _tensors() -> Any:
    """`torchao.quantization`, without what its import prints: binaries that do not load here, a deprecation."""
    for name in ("torchao", "torch.utils._pytree"):
        logging.getLogger(name).setLevel(logging.ERROR)
    import torchao.quantization

    return torchao.quantization


def pack_int8(weights: Weights) -> Tensors:
    """Codes int8 [n, k] in two's complement, scales fp32 [n, 1]."""
    codes = weights.codes.astype(np.int16) - weights.format.zero
    return {
        "codes": torch.from_numpy(codes.astype(np.int8)),
        "scales": torch.from_numpy(weights.scales.copy()),
    }


def bind_int8(tensors: Tensors, x: torch.Tensor, out: torch.Tensor) -> Launch:
    """`linear` on an Int8Tensor, which allocates the 16-bit copy and y."""
    codes, scales = tensors["codes"], tensors["scales"]
    matrix = _tensors().Int8Tensor(codes, scales, [1, x.shape[1]], x.dtype)
    return partial(torch.nn.functional.linear, x, matrix)


def pack_int4(weights: Weights) -> Tensors:
    """Bytes uint8 [n, k / 2], the first of two codes in the upper half; (scale, offset) bf16 [groups, n, 2]."""
    k, groups = weights.shape[1], weights.scales.shape[1]
    offsets = np.zeros_like(weights.scales)
    if weights.zeros is not None:
        offsets = (np.float32(MIDDLE_CODE) - weights.zeros) * weights.scales
    pairs = np.stack([weights.scales.T, offsets.T], axis=-1)
    more = -k % WHOLE_K
    codes = np.pad(weights.codes, ((0, 0), (0, more)))
    pairs = np.pad(pairs, ((0, more * groups // k), (0, 0), (0, 0)))
    return {
        "words": torch.from_numpy(codes[:, ::2] << 4 | codes[:, 1::2]),
        "scales_and_offsets": torch.from_numpy(pairs).to(torch.bfloat16),
    }


def bind_int4(tensors: Tensors, x: torch.Tensor, out: torch.Tensor) -> Launch:
    """`linear` on an Int4TilePackedTo4dTensor, whose tiles, as many bytes as `words`, are made here."""
    pairs, k = tensors["scales_and_offsets"], 2 * tensors["words"].shape[1]
    tiles = torch.ops.aten._convert_weight_to_int4pack(tensors["words"], INNER_K_TILES)
    shape = torch.Size((out.shape[1], x.shape[1]))
    matrix = _tensors().Int4TilePackedTo4dTensor(tiles, pairs, [1, k // len(pairs)], shape)
    return partial(torch.nn.functional.linear, x, matrix)

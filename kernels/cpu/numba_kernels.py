"""The Numba kernels as records: layout of their weights, and launches without arguments.

They accept bf16 activations. Vectors are sixteen words long, so k must divide by 128 (int4) or 64 (int8),
and by the 128 weights of the gemm's buffer from batch 16 on; every layer in profiles/shapes.toml does.
"""

from __future__ import annotations

from functools import lru_cache, partial

import numpy as np
import torch
from numpy.typing import NDArray

from kernels.codebooks import Encoding
from kernels.cpu import dequantize, gemm, gemv, gemv_batch, native
from kernels.cpu.activations import to_columns, to_fields
from kernels.cpu.simd import LANES
from kernels.cpu.torch_ops import pack_bf16
from kernels.formats import FORMATS, plain
from kernels.kernel import LADDER, Kernel, Launch, Tensors
from kernels.packing import Weights

_NO_ZEROS = np.zeros((0, 0), np.uint8)
_NO_SUMS = np.zeros(0, np.int32)


@lru_cache(maxsize=32)
def _scratch(size: int) -> NDArray[np.float32]:
    """Room for reordered activations, shared by all launches of one size: each fills it anew."""
    return np.zeros(size, np.float32)


def _pack(weights: Weights, words: NDArray[np.uint32]) -> Tensors:
    tensors = {
        "words": torch.from_numpy(words.view(np.int32)),
        "scales": torch.from_numpy(weights.scales),
    }
    if weights.format.scale_bits == 16:
        tensors["scales"] = tensors["scales"].to(torch.bfloat16)
    if weights.zeros is not None:
        tensors["zeros"] = torch.from_numpy(weights.zeros)
    return tensors


def pack_words(weights: Weights) -> Tensors:
    """{"words": int32 [n, words], "scales": bf16 or fp32 [n, groups], "zeros": uint8 where stored}."""
    return _pack(weights, weights.words)


def _pack_bypass(weights: Weights) -> Tensors:
    return _pack(weights, weights.bypass_words)


def _bits(tensor: torch.Tensor) -> NDArray[np.uint16] | NDArray[np.uint32]:
    """The bits of a bf16 or fp32 tensor as a NumPy array of the same shape, sharing its memory."""
    if tensor.dtype == torch.float32:
        return tensor.numpy().view(np.uint32)
    bits: NDArray[np.uint16] = tensor.view(torch.int16).numpy().view(np.uint16)
    return bits


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _packed_arguments(tensors: Tensors, k: int):
    """Flat words, scales, zeros and the packed width."""
    words, scales = tensors["words"], tensors["scales"]
    words_per_row = words.shape[1]
    bits = 32 * words_per_row // k
    _require(
        words_per_row % LANES == 0 and k % gemm.CHUNK == 0,
        f"the CPU kernels take k in multiples of {max(gemm.CHUNK, LANES * 32 // bits)}, "
        f"but k is {k}; choose another model.",
    )
    _require(
        words.is_contiguous()
        and scales.is_contiguous()
        and scales.dtype in (torch.bfloat16, torch.float32),
        f"words and scales must be contiguous and scales bf16 or fp32, but they are {scales.dtype}.",
    )
    zeros = tensors["zeros"].numpy() if "zeros" in tensors else _NO_ZEROS
    return words.numpy().reshape(-1), _bits(scales), zeros, bits


def _check_activations(x: torch.Tensor) -> None:
    _require(
        x.dtype == torch.bfloat16 and x.is_contiguous(),
        f"the CPU kernels take contiguous bf16 activations, but x is {x.dtype}; use --activation bf16.",
    )


def padded_batch(batch: int) -> int:
    """The batch in whole vectors: 16, or a multiple of 32."""
    return LANES if batch <= LANES else -(-batch // (2 * LANES)) * 2 * LANES


def _bind_stage(stage: int, encoding: int):
    def bind(tensors: Tensors, x: torch.Tensor, out: torch.Tensor) -> Launch:
        """Checks once, reserves the reordered activations, and returns the launch."""
        _check_activations(x)
        batch, k = x.shape
        words, scales, zeros, bits = _packed_arguments(tensors, k)
        has_zero = zeros.size > 0
        x_bits = _bits(x)
        multiplies = stage > gemv.SCALE
        sums = _NO_SUMS if multiplies else out.numpy()
        if stage == gemv.SCALE:
            _require(out.dtype == torch.float32, f"scale writes float32 sums, not {out.dtype}.")
        y = _bits(out) if multiplies else np.zeros((batch, out.shape[0]), np.uint16)
        if batch >= 16:
            padded = padded_batch(batch)
            columns = _scratch(k * padded)
            kernel = gemm.build(bits, encoding, has_zero, stage)

            def launch_gemm() -> None:
                if multiplies:
                    to_columns(x_bits, bits, padded, columns)
                kernel(words, scales, zeros, columns, k, padded, sums, y)

            return launch_gemm
        tile = 1 if batch == 1 else gemv_batch.BATCH_TILE
        fields = _scratch(-(-batch // tile) * tile * k)
        kernel = (gemv if batch == 1 else gemv_batch).build(bits, encoding, has_zero, stage)

        def launch() -> None:
            if multiplies:
                to_fields(x_bits, bits, tile, fields)
            kernel(words, scales, zeros, fields, sums, y)

        return launch

    return bind


def _bind_native(tensors: Tensors, x: torch.Tensor, out: torch.Tensor) -> Launch:
    _check_activations(x)
    batch, k = x.shape
    _require(k % gemm.CHUNK == 0, f"the CPU kernels take k in multiples of {gemm.CHUNK}, not {k}.")
    x_bits, y = _bits(x), _bits(out)
    weights = _bits(tensors["weights"]).reshape(-1)
    if batch >= 16:
        padded = padded_batch(batch)
        columns = _scratch(k * padded)
        kernel = gemm.build(16, gemv.INTEGER, False, gemv.FUSED)
        no_scales = np.zeros((0, 0), np.uint16)

        def launch_gemm() -> None:
            to_columns(x_bits, 16, padded, columns)
            kernel(weights, no_scales, _NO_ZEROS, columns, k, padded, _NO_SUMS, y)

        return launch_gemm
    tile = 1 if batch == 1 else gemv_batch.BATCH_TILE
    fields = _scratch(-(-batch // tile) * tile * k)
    kernel = native.gemv if batch == 1 else native.gemv_batch

    def launch() -> None:
        to_fields(x_bits, 16, tile, fields)
        kernel(weights, fields, y)

    return launch


def _bind_dequantize(encoding: int, tensors: Tensors, x: torch.Tensor, out: torch.Tensor) -> Launch:
    words, scales, zeros, bits = _packed_arguments(tensors, x.shape[1])
    matrix = _bits(out).reshape(-1).view(np.int32)
    kernel = dequantize.build(bits, encoding, zeros.size > 0)
    return lambda: kernel(words, scales, zeros, matrix)


def _encoded(encoding: Encoding) -> tuple[str, ...]:
    """The names of the formats of an encoding."""
    return tuple(f.name for f in FORMATS if plain(f) and f.encoding == encoding)


KERNELS = (
    *(
        Kernel(
            arm,
            "numba",
            "cpu",
            _encoded(name),
            ("bf16",),
            (1, 256),
            _pack_bypass if arm == "bypass" else pack_words,
            _bind_stage(gemv.STAGES[arm], encoding),
        )
        for name, encoding in gemv.ENCODINGS.items()
        for arm in LADDER
    ),
    Kernel("native", "numba", "cpu", ("bf16",), ("bf16",), (1, 256), pack_bf16, _bind_native),
    *(
        Kernel(
            "dequantize",
            "numba",
            "cpu",
            _encoded(name),
            ("bf16",),
            (1, 256),
            pack_words,
            partial(_bind_dequantize, encoding),
        )
        for name, encoding in gemv.ENCODINGS.items()
    ),
)

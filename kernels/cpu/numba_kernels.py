"""The Numba kernels as records: layout of their weights, and launches without arguments.

They accept fp16 and bf16 activations, and k in multiples of 128: a vector of weights, and the gemm's buffer;
every layer in profiles/shapes.toml has such k.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from kernels.codebooks import Encoding
from kernels.cpu import dequantize, gemm, gemv, gemv_batch, native
from kernels.cpu.activations import build_to_columns, build_to_fields
from kernels.cpu.planes import weights_of_lane
from kernels.cpu.simd import BF16, FP16, LANES, converts_fp16
from kernels.cpu.torch_ops import ACTIVATIONS, DTYPES, TOLERANCE, pack_16bit
from kernels.cpu.weights import (
    ENCODINGS,
    FUSED,
    INTEGER,
    SCALE,
    SCALE_TYPES,
    STAGES,
    Storage,
)
from kernels.formats import FORMATS, WeightFormat
from kernels.kernel import (
    LADDER,
    Arm,
    Configuration,
    Kernel,
    Launch,
    Tensors,
    UnsupportedError,
    no_configuration,
)
from kernels.packing import Float16, Weights
from kernels.scales import ScaleType

GEMM_BATCH = 16  # from which on weights are unpacked once for the whole batch
_HALVES = {torch.bfloat16: BF16, torch.float16: FP16}
_NO_ZEROS = np.zeros((0, 0), np.uint8)
_NO_SUMS = np.zeros(0, np.int32)
_NO_SECOND_LEVEL = np.zeros(0, np.float32)


@lru_cache(maxsize=32)
def _scratch(size: int) -> NDArray[np.float32]:
    """Room for reordered activations, shared by all launches of one size: each fills it anew."""
    return np.zeros(size, np.float32)


def _pack(weights: Weights, words: NDArray[np.uint32]) -> Tensors:
    tensors = {"words": torch.from_numpy(words.view(np.int32))}
    if weights.scale_codes is not None:
        tensors["scales"] = torch.from_numpy(weights.scale_codes)
    else:
        tensors["scales"] = torch.from_numpy(weights.scales)
        if weights.format.scale_bits == 16:
            tensors["scales"] = tensors["scales"].to(DTYPES[weights.activation])
    if weights.second_level is not None:
        tensors["second_level"] = torch.from_numpy(weights.second_level)
    if weights.zeros is not None:
        tensors["zeros"] = torch.from_numpy(weights.zeros)
    return tensors


def pack_words(weights: Weights) -> Tensors:
    """What is stored of weights.

    {"words": int32 [n, words], "scales": fp16, bf16, fp32 or uint8 [n, groups], "second_level": fp32 and
    "zeros": uint8 [n, groups] where the format has them}
    """
    return _pack(weights, weights.words)


def _pack_bypass(weights: Weights) -> Tensors:
    return _pack(weights, weights.bypass_words)


def _bits(tensor: torch.Tensor) -> NDArray[Any]:
    """The bits of a 16-bit, fp32 or uint8 tensor as a NumPy array of the same shape, sharing its memory."""
    if tensor.dtype in _HALVES:
        return tensor.view(torch.int16).numpy().view(np.uint16)
    return tensor.numpy().view({4: np.uint32, 1: np.uint8}[tensor.itemsize])


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def stored(
    tensors: Tensors, k: int, encoding: Encoding, scale_type: ScaleType, activation: torch.dtype
) -> tuple[Storage, tuple[NDArray[Any], ...]]:
    """How the weights are stored, and the kernels' first arguments: flat words, scales, second level, zeros.

    Raises:
        ValueError: k, or the layout or dtype of the tensors, is not what the kernels take.
    """
    words, scales = tensors["words"], tensors["scales"]
    _require(
        k % gemm.CHUNK == 0,
        f"the CPU kernels take k in multiples of {gemm.CHUNK}, but k is {k}; choose another model.",
    )
    stored_as = {"activation": activation, "fp32": torch.float32}.get(scale_type, torch.uint8)
    _require(
        words.is_contiguous() and scales.is_contiguous() and scales.dtype == stored_as,
        f"words and scales must be contiguous and scales {stored_as}, but they are {scales.dtype}.",
    )
    bits = 32 * words.shape[1] // k
    parts = max(1, scales.shape[1] * LANES * weights_of_lane(bits) // k)
    has_zero = "zeros" in tensors
    kind = _HALVES[activation] if scale_type == "activation" else SCALE_TYPES[scale_type]
    storage = Storage(bits, ENCODINGS[encoding], kind, parts, has_zero)
    second = tensors["second_level"].numpy() if "second_level" in tensors else _NO_SECOND_LEVEL
    zeros = tensors["zeros"].numpy() if has_zero else _NO_ZEROS
    return storage, (words.numpy().reshape(-1), _bits(scales), second, zeros)


def checked(x: torch.Tensor) -> int:
    """Which 16-bit float the activations are: BF16 or FP16.

    Raises:
        ValueError: neither, or not contiguous.
        UnsupportedError: fp16, which this processor cannot convert.
    """
    _require(
        x.dtype in _HALVES and x.is_contiguous(),
        f"the CPU kernels take contiguous fp16 or bf16 activations, but x is {x.dtype}.",
    )
    if x.dtype == torch.float16 and not converts_fp16():
        raise UnsupportedError("fp16 on a CPU needs its F16C instructions; use --activation bf16")
    return _HALVES[x.dtype]


def padded_batch(batch: int) -> int:
    """The batch in whole vectors: 16, or a multiple of 32."""
    return LANES if batch <= LANES else -(-batch // (2 * LANES)) * 2 * LANES


def _loop(
    weight_format: WeightFormat, activation: str, n: int, k: int, batch: int
) -> Configuration:
    """Which of the loops a batch takes, so that nobody mistakes the switch between them for physics."""
    if batch >= GEMM_BATCH:
        return Configuration(text="gemm")
    return Configuration(text="gemv" if batch == 1 else "gemv_batch")


def _reordered(
    x: torch.Tensor, half: int, lane_bits: int
) -> tuple[NDArray[np.float32], Callable[[], None]]:
    """Room for activations in the order that the loop of their batch reads, and what fills it."""
    batch, k = x.shape
    if batch >= GEMM_BATCH:
        padded = padded_batch(batch)
        columns = _scratch(k * padded)
        return columns, partial(build_to_columns(half), _bits(x), lane_bits, padded, columns)
    tile = 1 if batch == 1 else gemv_batch.BATCH_TILE
    fields = _scratch(-(-batch // tile) * tile * k)
    return fields, partial(build_to_fields(half), _bits(x), lane_bits, tile, fields)


def _bind_stage(
    stage: int,
    encoding: Encoding,
    scale_type: ScaleType,
    tensors: Tensors,
    x: torch.Tensor,
    out: torch.Tensor,
) -> Launch:
    """Checks once, reserves the reordered activations, and returns the launch."""
    half = checked(x)
    batch, k = x.shape
    storage, weights = stored(tensors, k, encoding, scale_type, x.dtype)
    ordered, reorder = _reordered(x, half, 32 // weights_of_lane(storage.bits))
    multiplies = stage > SCALE
    sums = _NO_SUMS if multiplies else out.numpy()
    if stage == SCALE:
        _require(out.dtype == torch.float32, f"scale writes float32 sums, not {out.dtype}.")
    y = _bits(out) if multiplies else np.zeros((batch, out.shape[0]), np.uint16)
    if batch >= GEMM_BATCH:
        multiply = partial(
            gemm.build(storage, stage, half), *weights, ordered, k, padded_batch(batch), sums, y
        )
    else:
        kernel = (gemv if batch == 1 else gemv_batch).build(storage, stage, half)
        multiply = partial(kernel, *weights, ordered, sums, y)

    def launch() -> None:
        if multiplies:
            reorder()
        multiply()

    return launch


def _bind_native(tensors: Tensors, x: torch.Tensor, out: torch.Tensor) -> Launch:
    half = checked(x)
    batch, k = x.shape
    _require(k % gemm.CHUNK == 0, f"the CPU kernels take k in multiples of {gemm.CHUNK}, not {k}.")
    weights, y = _bits(tensors["weights"]).reshape(-1), _bits(out)
    ordered, reorder = _reordered(x, half, 16)
    if batch >= GEMM_BATCH:
        stored_as = (weights, np.zeros((0, 0), np.uint16), _NO_SECOND_LEVEL, _NO_ZEROS)
        kernel = gemm.build(Storage(16, INTEGER, half, 1, False), FUSED, half)
        multiply = partial(kernel, *stored_as, ordered, k, padded_batch(batch), _NO_SUMS, y)
    else:
        kernel = (native.build_gemv if batch == 1 else native.build_gemv_batch)(half)
        multiply = partial(kernel, weights, ordered, y)

    def launch() -> None:
        reorder()
        multiply()

    return launch


def _bind_dequantize(
    encoding: Encoding,
    scale_type: ScaleType,
    tensors: Tensors,
    x: torch.Tensor,
    out: torch.Tensor,
) -> Launch:
    half = checked(x)
    storage, weights = stored(tensors, x.shape[1], encoding, scale_type, x.dtype)
    matrix = _bits(out).reshape(-1).view(np.int32)
    kernel = dequantize.build(storage, half)
    return lambda: kernel(*weights, matrix)


def _kernel(
    arm: Arm,
    formats: tuple[str, ...],
    activation: Float16,
    pack: Callable[[Weights], Tensors],
    bind: Callable[..., Launch],
    configuration: Callable[..., Configuration] = no_configuration,
) -> Kernel:
    return Kernel(
        *(arm, "numba", "cpu", formats, (activation,), (1, 256), pack, bind),
        tolerance=TOLERANCE[activation],
        configuration=configuration,
    )


def _kernels_of(
    encoding: Encoding, scale_type: ScaleType, activation: Float16
) -> tuple[Kernel, ...]:
    """The ladder, and dequantize, of the formats with such codes and scales; the tensors tell the rest."""
    formats = tuple(
        f.name
        for f in FORMATS
        if f.quantized and (f.encoding, f.scale_type) == (encoding, scale_type)
    )
    return (
        *(
            _kernel(
                arm,
                formats,
                activation,
                _pack_bypass if arm == "bypass" else pack_words,
                partial(_bind_stage, STAGES[arm], encoding, scale_type),
                _loop,
            )
            for arm in LADDER
        ),
        _kernel(
            *("dequantize", formats, activation, pack_words),
            partial(_bind_dequantize, encoding, scale_type),
        ),
    )


_LADDERS = tuple(
    kernel
    for encoding, scale_type in dict.fromkeys(
        (f.encoding, f.scale_type) for f in FORMATS if f.quantized
    )
    for activation in ACTIVATIONS
    for kernel in _kernels_of(encoding, scale_type, activation)
)
KERNELS = (
    *(kernel for kernel in _LADDERS if kernel.arm != "dequantize"),
    *(_kernel("native", (x,), x, pack_16bit, _bind_native, _loop) for x in ACTIVATIONS),
    *(kernel for kernel in _LADDERS if kernel.arm == "dequantize"),
)

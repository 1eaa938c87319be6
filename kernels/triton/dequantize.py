"""W[n, k] from packed words to 16-bit numbers in memory: number(code) * scale, rounded once.

The question: what does dequantization cost when it is a kernel of its own? Followed by the best
16-bit kernel it is the `unfused` arm, which is what a framework does that has no fused kernel.

One program owns a tile of BLOCK_N rows and BLOCK_W words. A lane reads its words and writes the
weights of each as 16 bytes (int4) side by side, so that a warp's stores are contiguous: the write
is 4 times the read and decides the time.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from kernels.codebooks import Encoding
from kernels.formats import WeightFormat
from kernels.kernel import Launch, Tensors
from kernels.packing import Float16
from kernels.triton import tiles, tuned
from kernels.triton.memory import load, load_units, scale_of, scale_of_matrix
from kernels.triton.plan import (
    FP8_CAPABILITY,
    Plan,
    capability_of,
    check_packed,
    compile_options,
    packed_arguments,
    packed_signature,
)

WORDS_PER_LOAD = tl.constexpr(4)  # 16 bytes


@triton.jit
def dequantize_kernel(
    words_ptr,  # int32 [N, K * BITS / 32]
    scales_ptr,  # activation dtype, fp32 or uint8 [N, K / GROUP_SIZE]
    zeros_ptr,  # uint8 [N, K / GROUP_SIZE], or None
    second_ptr,  # fp32, the second level of scales (kernels/scales.py), or None
    out_ptr,  # activation dtype [N, K]
    N: tl.constexpr,
    K: tl.constexpr,
    BITS: tl.constexpr,
    ENCODING: tl.constexpr,
    GROUP_SIZE: tl.constexpr,
    SCALE_TYPE: tl.constexpr,
    HAS_ZERO: tl.constexpr,
    TUNED: tl.constexpr,
    HAS_FP8: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    """One program owns BLOCK_N rows and BLOCK_W words of each (of the widest plane)."""
    UNIT: tl.constexpr = tiles.per_unit(BITS)
    COUNT: tl.constexpr = BLOCK_W * 32 // tiles.width(BITS, 0)
    UNITS: tl.constexpr = K // UNIT
    GROUPS: tl.constexpr = K // GROUP_SIZE
    SHARED: tl.constexpr = units_per_scale(UNIT, GROUP_SIZE, GROUPS)
    SLOTS: tl.constexpr = COUNT // UNIT // SHARED
    WHOLE: tl.constexpr = N % BLOCK_N == 0 and K % COUNT == 0
    row = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    weight_row = row if WHOLE else tl.minimum(row, N - 1)
    k0 = tl.program_id(1) * COUNT
    words = load_units(words_ptr, weight_row, k0, COUNT, K, BITS, ENCODING, False, WHOLE)

    # One scale and zero point for units that lie in one group: those of a load, or fewer.
    slot = tl.arange(0, BLOCK_N * SLOTS)
    slot_row = tl.program_id(0) * BLOCK_N + slot // SLOTS
    first = tl.program_id(1) * (COUNT // UNIT) + slot % SLOTS * SHARED
    offset = slot_row * GROUPS + first * UNIT // GROUP_SIZE
    known_slot = (slot_row < N) & (first < UNITS)
    scale = load(scales_ptr + offset, known_slot, 0, WHOLE)
    of_matrix = scale_of_matrix(second_ptr, SCALE_TYPE)
    scale = scale_of(scale, offset, known_slot, second_ptr, of_matrix, SCALE_TYPE, WHOLE)
    scale = spread(scale.to(tl.float32), BLOCK_N, SLOTS, SHARED)
    zero = 0
    if HAS_ZERO:
        zero = spread(load(zeros_ptr + offset, known_slot, 0, WHOLE), BLOCK_N, SLOTS, SHARED)
    if TUNED:
        known = tuned.constants(zero, BITS, ENCODING, HAS_ZERO)
        numbers = tuned.numbers(words, known, BITS, ENCODING, HAS_FP8)
        weights = numbers * (scale * (1.0 / tuned.unit(BITS, ENCODING)))[:, :, None]
    else:
        known = tiles.zero_point(zero, BITS, HAS_ZERO)
        weights = tiles.numbers(words, known, BITS, ENCODING, tl.float32) * scale[:, :, None]

    first = tl.program_id(1) * (COUNT // UNIT) + tl.arange(0, COUNT // UNIT)[None, :, None]
    column = first * UNIT + tl.arange(0, UNIT)[None, None, :]
    address = out_ptr + row[:, None, None] * K + column
    weights = weights.to(out_ptr.dtype.element_ty)
    if WHOLE:
        tl.store(address, weights)
    else:
        tl.store(address, weights, mask=(row < N)[:, None, None] & (first < UNITS))


@triton.constexpr_function
def units_per_scale(unit, group_size, groups):
    """Units, of those in a load, that certainly share a scale."""
    of_load = int(WORDS_PER_LOAD.value)
    return of_load if groups == 1 else min(of_load, group_size // unit)


@triton.jit
def spread(per_slot, ROWS: tl.constexpr, SLOTS: tl.constexpr, SHARED: tl.constexpr):
    """Values [ROWS * SLOTS] for every unit: [ROWS, SLOTS * SHARED]."""
    tile = tl.reshape(per_slot, [ROWS, SLOTS, 1])
    tile = tl.broadcast_to(tile, [ROWS, SLOTS, SHARED])
    return tl.reshape(tile, [ROWS, SLOTS * SHARED])


@dataclass(frozen=True)
class Config:
    """How the matrix is cut into programs. Any power of two.

    Attributes:
        block_n: rows per program.
        block_w: packed words of each row per program; of several planes, of the widest.
        num_warps: warps per program.
    """

    block_n: int
    block_w: int
    num_warps: int


def default_config(weight_format: WeightFormat) -> Config:
    """Untuned: 16 words per lane, or as many as hold 128 weights."""
    return Config(block_n=16, block_w=min(128, 32 * weight_format.planes[0]), num_warps=4)


def plan(
    weight_format: WeightFormat,
    activation: Float16,
    n: int,
    k: int,
    config: Config | None = None,
    tuned: bool = False,
    capability: int = 80,
) -> Plan:
    """What `bind` launches and what the ahead-of-time compiler compiles; arguments as gemv.plan."""
    config = config or default_config(weight_format)
    types = packed_signature(weight_format, activation, "dequantize")
    constexprs = {
        "N": n,
        "K": k,
        "BITS": weight_format.bits,
        "ENCODING": weight_format.encoding,
        "GROUP_SIZE": weight_format.group_size or k,
        "SCALE_TYPE": weight_format.scale_type,
        "HAS_ZERO": weight_format.zero_point,
        "TUNED": tuned,
        "HAS_FP8": tuned and weight_format.encoding == "e4m3" and capability >= FP8_CAPABILITY,
        "BLOCK_N": config.block_n,
        "BLOCK_W": config.block_w,
    }
    words = k // weight_format.weights_per_word
    return Plan(
        fn=dequantize_kernel,
        signature={name: types[name] for name in types if name not in ("x_ptr", "k_end")},
        constexprs=constexprs,
        options=compile_options(config.num_warps, num_stages=1),
        grid=(triton.cdiv(n, config.block_n), triton.cdiv(words, config.block_w)),
    )


def bind(
    tensors: Tensors,
    x: torch.Tensor,
    out: torch.Tensor,
    config: Config | None = None,
    encoding: Encoding = "int",
    tuned: bool = False,
) -> Launch:
    """Check the arguments of one launch, once.

    Args:
        tensors: `packed_tensors` on the device of x.
        x: activations [batch, k]; only their dtype and k matter.
        out: [n, k] in the dtype of x.
        config: how to cut the matrix; None for the default.
        encoding: what the codes in the words stand for.
        tuned: whether to take the tile functions in inline PTX, which cannot be interpreted.

    Raises:
        ValueError: an argument does not fit; the message says what would.
    """
    weight_format, activation, n, k, _ = check_packed(tensors, x, out, "dequantize", encoding)
    launch_plan = plan(weight_format, activation, n, k, config, tuned, capability_of(x))
    return launch_plan.launch(*packed_arguments(tensors), out)

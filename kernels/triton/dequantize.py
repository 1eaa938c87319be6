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
from kernels.triton.memory import load
from kernels.triton.plan import (
    FP8_CAPABILITY,
    Plan,
    capability_of,
    check_packed,
    compile_options,
    packed_signature,
)

WORDS_PER_LOAD = tl.constexpr(4)  # 16 bytes


@triton.jit
def dequantize_kernel(
    words_ptr,  # int32 [N, K * BITS / 32]
    scales_ptr,  # activation dtype or fp32 [N, K / GROUP_SIZE]
    zeros_ptr,  # uint8 [N, K / GROUP_SIZE], or None
    out_ptr,  # activation dtype [N, K]
    N: tl.constexpr,
    K: tl.constexpr,
    BITS: tl.constexpr,
    ENCODING: tl.constexpr,
    GROUP_SIZE: tl.constexpr,
    HAS_ZERO: tl.constexpr,
    TUNED: tl.constexpr,
    HAS_FP8: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    """One program owns BLOCK_N rows and BLOCK_W words of each."""
    PER_WORD: tl.constexpr = 32 // BITS
    WORDS: tl.constexpr = K // PER_WORD
    GROUPS: tl.constexpr = K // GROUP_SIZE
    SEGMENTS: tl.constexpr = BLOCK_W // WORDS_PER_LOAD
    WHOLE: tl.constexpr = N % BLOCK_N == 0 and WORDS % BLOCK_W == 0
    row = (tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N))[:, None]
    word = (tl.program_id(1) * BLOCK_W + tl.arange(0, BLOCK_W))[None, :]
    inside = (row < N) & (word < WORDS)
    words = load(words_ptr + row * WORDS + word, inside, 0, WHOLE)

    # One scale and zero point for the words of a load, which lie in one group.
    slot = tl.arange(0, BLOCK_N * SEGMENTS)
    slot_row = tl.program_id(0) * BLOCK_N + slot // SEGMENTS
    first = tl.program_id(1) * BLOCK_W + slot % SEGMENTS * WORDS_PER_LOAD
    offset = slot_row * GROUPS + first * PER_WORD // GROUP_SIZE
    known_slot = (slot_row < N) & (first < WORDS)
    scale = load(scales_ptr + offset, known_slot, 0.0, WHOLE).to(tl.float32)
    scale = spread(scale, BLOCK_N, SEGMENTS)
    zero = 0
    if HAS_ZERO:
        zero = spread(load(zeros_ptr + offset, known_slot, 0, WHOLE), BLOCK_N, SEGMENTS)
    if TUNED:
        known = tuned.constants(zero, BITS, ENCODING, HAS_ZERO)
        numbers = tuned.numbers(words, known, BITS, ENCODING, HAS_FP8)
        weights = numbers * (scale * (1.0 / tuned.unit(BITS, ENCODING)))[:, :, None]
    else:
        known = tiles.zero_point(zero, BITS, HAS_ZERO)
        weights = tiles.numbers(words, known, BITS, ENCODING, tl.float32) * scale[:, :, None]

    row = row[:, :, None]
    column = word[:, :, None] * PER_WORD + tl.arange(0, PER_WORD)[None, None, :]
    address = out_ptr + row * K + column
    weights = weights.to(out_ptr.dtype.element_ty)
    if WHOLE:
        tl.store(address, weights)
    else:
        tl.store(address, weights, mask=inside[:, :, None])


@triton.jit
def spread(per_load, ROWS: tl.constexpr, SEGMENTS: tl.constexpr):
    """Values [ROWS * SEGMENTS], one per load, for every word: [ROWS, SEGMENTS * WORDS_PER_LOAD]."""
    tile = tl.reshape(per_load, [ROWS, SEGMENTS, 1])
    tile = tl.broadcast_to(tile, [ROWS, SEGMENTS, WORDS_PER_LOAD])
    return tl.reshape(tile, [ROWS, SEGMENTS * WORDS_PER_LOAD])


@dataclass(frozen=True)
class Config:
    """How the matrix is cut into programs. Any power of two.

    Attributes:
        block_n: rows per program.
        block_w: packed words of each row per program.
        num_warps: warps per program.
    """

    block_n: int
    block_w: int
    num_warps: int


DEFAULT_CONFIG = Config(block_n=16, block_w=128, num_warps=4)  # untuned: 16 words per lane


def plan(
    weight_format: WeightFormat,
    activation: Float16,
    n: int,
    k: int,
    config: Config = DEFAULT_CONFIG,
    tuned: bool = False,
    capability: int = 80,
) -> Plan:
    """What `bind` launches and what the ahead-of-time compiler compiles; arguments as gemv.plan."""
    types = packed_signature(weight_format, activation, "dequantize")
    constexprs = {
        "N": n,
        "K": k,
        "BITS": weight_format.bits,
        "ENCODING": weight_format.encoding,
        "GROUP_SIZE": weight_format.group_size or k,
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
    config: Config = DEFAULT_CONFIG,
    encoding: Encoding = "int",
    tuned: bool = False,
) -> Launch:
    """Check the arguments of one launch, once.

    Args:
        tensors: `packed_tensors` on the device of x.
        x: activations [batch, k]; only their dtype and k matter.
        out: [n, k] in the dtype of x.
        config: how to cut the matrix.
        encoding: what the codes in the words stand for.
        tuned: whether to take the tile functions in inline PTX, which cannot be interpreted.

    Raises:
        ValueError: an argument does not fit; the message says what would.
    """
    weight_format, activation, n, k, _ = check_packed(tensors, x, out, "dequantize", encoding)
    launch_plan = plan(weight_format, activation, n, k, config, tuned, capability_of(x))
    return launch_plan.launch(tensors["words"], tensors["scales"], tensors.get("zeros"), out)

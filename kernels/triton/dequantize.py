"""W[n, k] from packed words to 16-bit numbers in memory: (code - zero) * scale, rounded once.

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

from kernels.formats import WeightFormat
from kernels.kernel import Launch, Tensors
from kernels.triton import tiles
from kernels.triton.plan import Plan, check_packed, compile_options, packed_signature


@triton.jit
def dequantize_kernel(
    words_ptr,  # int32 [N, K * BITS / 32]
    scales_ptr,  # activation dtype [N, K / GROUP_SIZE]
    zeros_ptr,  # uint8 [N, K / GROUP_SIZE], or None
    out_ptr,  # activation dtype [N, K]
    N: tl.constexpr,
    K: tl.constexpr,
    BITS: tl.constexpr,
    GROUP_SIZE: tl.constexpr,
    HAS_ZERO: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    """One program owns BLOCK_N rows and BLOCK_W words of each."""
    PER_WORD: tl.constexpr = 32 // BITS
    WORDS: tl.constexpr = K // PER_WORD
    GROUPS: tl.constexpr = K // GROUP_SIZE
    row = (tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N))[:, None]
    word = (tl.program_id(1) * BLOCK_W + tl.arange(0, BLOCK_W))[None, :]
    inside = (row < N) & (word < WORDS)

    words = tl.load(words_ptr + row * WORDS + word, mask=inside, other=0)
    offset = row * GROUPS + word * PER_WORD // GROUP_SIZE
    scale = tl.load(scales_ptr + offset, mask=inside, other=0.0).to(tl.float32)[:, :, None]
    zero = 0
    if HAS_ZERO:
        zero = tl.load(zeros_ptr + offset, mask=inside, other=0)
    subtract = tiles.zero_point(zero, BITS, HAS_ZERO)
    weights = tiles.numbers(words, subtract, BITS, tl.float32) * scale

    row = row[:, :, None]
    column = word[:, :, None] * PER_WORD + tl.arange(0, PER_WORD)[None, None, :]
    address = out_ptr + row * K + column
    tl.store(address, weights.to(out_ptr.dtype.element_ty), mask=inside[:, :, None])


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


DEFAULT_CONFIG = Config(block_n=4, block_w=128, num_warps=4)  # untuned: 4 words per lane


def plan(
    weight_format: WeightFormat, activation: str, n: int, k: int, config: Config = DEFAULT_CONFIG
) -> Plan:
    """What `bind` launches and what the ahead-of-time compiler compiles."""
    types = packed_signature(weight_format, activation, "dequantize")
    constexprs = {
        "N": n,
        "K": k,
        "BITS": weight_format.bits,
        "GROUP_SIZE": weight_format.group_size or k,
        "HAS_ZERO": weight_format.zero_point,
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
    tensors: Tensors, x: torch.Tensor, out: torch.Tensor, config: Config = DEFAULT_CONFIG
) -> Launch:
    """Check the arguments of one launch, once.

    Args:
        tensors: `packed_tensors` on the device of x.
        x: activations [batch, k]; only their dtype and k matter.
        out: [n, k] in the dtype of x.
        config: how to cut the matrix.

    Raises:
        ValueError: an argument does not fit; the message says what would.
    """
    weight_format, activation, n, k, _ = check_packed(tensors, x, out, "dequantize")
    launch_plan = plan(weight_format, activation, n, k, config)
    return launch_plan.launch(tensors["words"], tensors["scales"], tensors.get("zeros"), out)

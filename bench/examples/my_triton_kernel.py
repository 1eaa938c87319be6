"""Your own Triton kernel in the same run as ours, in twenty lines: y = x W^T, int4 with a scale per 128.

    python -m bench.dequant --format int4-g128 --kernel bench.examples.my_triton_kernel:kernel

on a GPU. Without one Triton's interpreter runs it, which shows whether it is right. Its times are then those of
the interpreter, and its name says so:

    TRITON_INTERPRET=1 python -m bench.dequant --gpu cpu --model Qwen2.5-0.5B --format int4-g128 \
        --batches 1 --deadline 60 --kernel bench.examples.my_triton_kernel:kernel
"""

import torch
import triton
import triton.language as tl

from kernels.kernel import Kernel, Launch, Tensors
from kernels.packing import Weights

INTERPRETED = triton.knobs.runtime.interpret
GROUP = 128
BLOCK_N = 256 if INTERPRETED else 16  # the interpreter's time is in its programs, few of them


@triton.jit
def gemv(bytes_ptr, scales_ptr, x_ptr, y_ptr, n, k, GROUP: tl.constexpr, BLOCK_N: tl.constexpr):
    """One program owns BLOCK_N rows of W and one row of x, and walks along k a group at a time."""
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    x_row, pairs = x_ptr + tl.program_id(1) * k, tl.arange(0, GROUP // 2)
    inside, y = rows < n, tl.zeros((BLOCK_N,), tl.float32)
    for g in range(k // GROUP):
        at = bytes_ptr + rows[:, None] * (k // 2) + g * (GROUP // 2) + pairs
        both = tl.load(at, mask=inside[:, None], other=0)
        even, odd = (both & 15).to(tl.float32) - 8, (both >> 4).to(tl.float32) - 8
        x_even = tl.load(x_row + g * GROUP + 2 * pairs).to(tl.float32)
        x_odd = tl.load(x_row + g * GROUP + 2 * pairs + 1).to(tl.float32)
        scale = tl.load(scales_ptr + rows * (k // GROUP) + g, mask=inside, other=0).to(tl.float32)
        y += scale * tl.sum(even * x_even + odd * x_odd, axis=1)
    tl.store(y_ptr + tl.program_id(1) * n + rows, y, mask=inside)


def pack(weights: Weights) -> Tensors:
    """A layout of your own, made once from codes [n, k] and scales [n, k / 128]: here two codes in a byte."""
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}[weights.activation]
    return {
        "bytes": torch.from_numpy(weights.codes[:, ::2] | weights.codes[:, 1::2] << 4),
        "scales": torch.from_numpy(weights.scales).to(dtype),
    }


def bind(tensors: Tensors, x: torch.Tensor, out: torch.Tensor) -> Launch:
    """Everything that can be done once is done here; the launch takes nothing and writes y[batch, n]."""
    (batch, k), n = x.shape, out.shape[1]
    grid = (triton.cdiv(n, BLOCK_N), batch)
    return lambda: gemv[grid](tensors["bytes"], tensors["scales"], x, out, n, k, GROUP, BLOCK_N)


kernel = Kernel(
    arm="fused",  # its place in the ladder: it dequantizes in registers
    implementation="mine-interpreted" if INTERPRETED else "mine",
    device="cpu" if INTERPRETED else "cuda",
    formats=("int4-g128",),
    activations=("fp16", "bf16"),
    batches=(1, 8),
    pack=pack,
    bind=bind,
    tolerance=1e-2,  # of the largest |y|
    # What it moves (`traffic`) and computes (`reference`) follows from the format: four bits per weight and a
    # scale per group, as this layout has. my_format.py is a kernel that states its own.
)

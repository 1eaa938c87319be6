"""y[B, n] = x[B, k] . W[n, k]^T with 16-bit weights: `gemv.py` and `gemm.py` without unpacking.

The question: what does the same hand make of weights that need no dequantization? Its weights are
the dequantized ones, rounded to the activation dtype, so this is also the "dequantize at load"
choice. A 16-bit kernel that loses to the library's is no baseline: the suite takes the better of
the two.

Each regime has a tile of its own, chosen for 16-bit weights, not the tile of the packed kernel. Given x and
y in fp32 the same kernels are those of `upcast`, see upcast.py.
"""

import torch
import triton
import triton.language as tl

from kernels.kernel import Launch, Tensors
from kernels.packing import Weights
from kernels.triton import gemm, gemv, tiles
from kernels.triton.memory import load
from kernels.triton.plan import (
    TORCH_DTYPES,
    Plan,
    check_batch,
    check_matrix,
    compile_options,
    multiprocessors_of,
)
from kernels.triton.tiles import INTERPRETED

CHUNK = tl.constexpr(8)  # weights, and activations, in one 16-byte load


@triton.jit
def native_gemv_kernel(
    weights_ptr,  # activation dtype [N, K]
    x_ptr,  # the same dtype, or fp32 [BATCH, K]
    out_ptr,  # dtype of x [BATCH, N]
    k_end,  # K again, but known only at run time: see plan.py
    N: tl.constexpr,
    K: tl.constexpr,
    BATCH: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """One program owns BLOCK_N rows of W; one lane owns 8 weights of each per step."""
    SEGMENTS: tl.constexpr = BLOCK_K // CHUNK
    WHOLE: tl.constexpr = K % BLOCK_K == 0
    row = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    weight_row = tl.minimum(row, N - 1)
    batch = tl.arange(0, BLOCK_B)
    x_row = tl.minimum(batch, BATCH - 1)

    y = tl.zeros([BLOCK_B, BLOCK_N, SEGMENTS], tl.float32)
    for k0 in range(0, K if INTERPRETED else k_end, BLOCK_K):
        column = k0 + tl.arange(0, BLOCK_K)
        inside = (column < K)[None, :]
        w = load(weights_ptr + weight_row[:, None] * K + column[None, :], inside, 0.0, WHOLE)
        x = load(x_ptr + x_row[:, None] * K + column[None, :], inside, 0.0, WHOLE)
        w = tiles.split8(tl.reshape(w, [BLOCK_N, SEGMENTS, CHUNK]))
        x = tiles.split8(tl.reshape(x, [BLOCK_B, SEGMENTS, CHUNK]))
        for i in tl.static_range(CHUNK):
            y += w[i].to(tl.float32)[None, :, :] * x[i].to(tl.float32)[:, None, :]

    inside = (batch < BATCH)[:, None] & (row < N)[None, :]
    address = out_ptr + batch[:, None] * N + row[None, :]
    tl.store(address, tl.sum(y, axis=2).to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def native_gemm_kernel(
    weights_ptr,  # activation dtype [N, K]
    x_ptr,  # the same dtype, or fp32 [BATCH, K]
    out_ptr,  # dtype of x [BATCH, N]
    k_end,  # K again, but known only at run time: see plan.py
    N: tl.constexpr,
    K: tl.constexpr,
    BATCH: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    NUM_STAGES: tl.constexpr,
):
    """One program owns BLOCK_N rows of W (the left operand) and BLOCK_B rows of x."""
    WHOLE: tl.constexpr = K % BLOCK_K == 0
    row = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    weight_row = tl.minimum(row, N - 1)
    batch = tl.program_id(1) * BLOCK_B + tl.arange(0, BLOCK_B)
    x_row = tl.minimum(batch, BATCH - 1)

    y = tl.zeros([BLOCK_N, BLOCK_B], tl.float32)
    for k0 in tl.range(0, K if INTERPRETED else k_end, BLOCK_K, num_stages=NUM_STAGES):
        column = k0 + tl.arange(0, BLOCK_K)
        inside = (column < K)[None, :]
        w = load(weights_ptr + weight_row[:, None] * K + column[None, :], inside, 0.0, WHOLE)
        x = load(x_ptr + x_row[:, None] * K + column[None, :], inside, 0.0, WHOLE)
        if x_ptr.dtype.element_ty == tl.float32:
            y = tl.dot(w.to(tl.float32), x.T, y, input_precision="ieee")
        else:
            y = tiles.dot(w, x.T, y)

    inside = (batch < BATCH)[None, :] & (row < N)[:, None]
    address = out_ptr + batch[None, :] * N + row[:, None]
    tl.store(address, y.to(out_ptr.dtype.element_ty), mask=inside)


def default_gemv_config(batch: int) -> gemv.Config:
    """Conservative and untuned. A step covers 1024 weights of a row, a quarter of int4's."""
    return gemv.Config(block_n=4 if batch <= 4 else 2, num_warps=4)


def default_gemm_config(n: int, batch: int, multiprocessors: int | None = None) -> gemm.Config:
    """Conservative and untuned; smaller tiles where a board would idle, as of the packed kernel."""
    block_b = min(max(16, triton.next_power_of_2(batch)), 64)
    largest = gemm.Config(
        block_b, block_n=32 if batch <= 16 else 64, block_k=64, num_warps=4, num_stages=5
    )
    return gemm.cut_for(largest, n, batch, multiprocessors)


def signature(activation: str) -> dict[str, str | None]:
    """Types of (weights, x, out, k_end)."""
    pointer = f"*{activation}"
    return {"weights_ptr": pointer, "x_ptr": pointer, "out_ptr": pointer, "k_end": "i32"}


def plan_gemv(
    activation: str, n: int, k: int, batch: int, config: gemv.Config | None = None
) -> Plan:
    """What `bind_gemv` launches and what the ahead-of-time compiler compiles."""
    config = config or default_gemv_config(batch)
    constexprs = {
        "N": n,
        "K": k,
        "BATCH": batch,
        "BLOCK_B": triton.next_power_of_2(batch),
        "BLOCK_N": config.block_n,
        "BLOCK_K": config.num_warps * gemv.WARP_LANES * CHUNK.value,
    }
    return Plan(
        fn=native_gemv_kernel,
        signature=signature(activation),
        constexprs=constexprs,
        options=compile_options(config.num_warps, 1, config.max_registers),
        grid=(triton.cdiv(n, config.block_n),),
    )


def plan_gemm(
    activation: str,
    n: int,
    k: int,
    batch: int,
    config: gemm.Config | None = None,
    multiprocessors: int | None = None,
) -> Plan:
    """What `bind_gemm` launches and what the ahead-of-time compiler compiles; see gemm.plan."""
    config = config or default_gemm_config(n, batch, multiprocessors)
    constexprs = {
        "N": n,
        "K": k,
        "BATCH": batch,
        "BLOCK_B": config.block_b,
        "BLOCK_N": config.block_n,
        "BLOCK_K": config.block_k,
        "NUM_STAGES": config.num_stages,
    }
    return Plan(
        fn=native_gemm_kernel,
        signature=signature(activation),
        constexprs=constexprs,
        options=compile_options(config.num_warps, config.num_stages, config.max_registers),
        grid=(triton.cdiv(n, config.block_n), triton.cdiv(batch, config.block_b)),
    )


def pack(weights: Weights) -> Tensors:
    """The dequantized matrix [n, k] in the activation dtype, on the CPU."""
    matrix = torch.from_numpy(weights.values16.copy())
    return {"weights": matrix.to(TORCH_DTYPES[weights.activation])}


def bind_gemv(
    tensors: Tensors, x: torch.Tensor, out: torch.Tensor, config: gemv.Config | None = None
) -> Launch:
    """Check the arguments of one launch, once: weights [n, k], x [batch, k], out [batch, n].

    Raises:
        ValueError: an argument does not fit; the message says what would.
    """
    activation, n, k, batch = check_matrix(tensors, x, out)
    check_batch("native gemv", batch, gemv.BATCHES)
    return plan_gemv(activation, n, k, batch, config).launch(tensors["weights"], x, out, k)


def bind_gemm(
    tensors: Tensors, x: torch.Tensor, out: torch.Tensor, config: gemm.Config | None = None
) -> Launch:
    """Check the arguments of one launch, once: weights [n, k], x [batch, k], out [batch, n].

    Raises:
        ValueError: an argument does not fit; the message says what would.
    """
    activation, n, k, batch = check_matrix(tensors, x, out)
    check_batch("native gemm", batch, gemm.BATCHES)
    launch_plan = plan_gemm(activation, n, k, batch, config, multiprocessors_of(x))
    return launch_plan.launch(tensors["weights"], x, out, k)

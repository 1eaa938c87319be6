"""An int4 matrix-vector product in twenty lines, and the problem that checks it.

    y[n] = sum over k of (code[n, k] - 8) * scale[n, k / GROUP] * x[k]

    python -m bench.emulate bench/examples/dequant_gemv.py:gemv
    python -m bench.emulate bench/examples/dequant_gemv.cu:gemv

Eight codes share a word, code 0 lowest. It is written to be read, not to be fast.
"""

import numpy as np
import triton
import triton.language as tl

from bench.static.ptx.problem import Draw, Problem

N, K, GROUP = 30, 512, 64
BLOCK_N, BLOCK_W = 4, 32


@triton.jit
def gemv(
    words_ptr, scales_ptr, x_ptr, y_ptr,
    N: tl.constexpr, K: tl.constexpr, GROUP: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_W: tl.constexpr,
):  # fmt: skip
    """One program owns BLOCK_N rows and walks along them BLOCK_W words at a time."""
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)[:, None]
    inside = n < N
    total = tl.zeros((BLOCK_N, BLOCK_W), tl.float32)
    for start in range(0, K // 8, BLOCK_W):
        w = start + tl.arange(0, BLOCK_W)[None, :]
        word = tl.load(words_ptr + n * (K // 8) + w, mask=inside)
        scale = tl.load(scales_ptr + n * (K // GROUP) + w // (GROUP // 8), mask=inside)
        for i in tl.static_range(8):
            code = (word >> (4 * i)) & 15
            x = tl.load(x_ptr + w * 8 + i)
            total += (code - 8).to(tl.float32) * scale.to(tl.float32) * x.to(tl.float32)
    tl.store(y_ptr + n, tl.sum(total, axis=1)[:, None], mask=inside)


def problem(draw: Draw) -> Problem:
    """Both kernels' arguments, and y in float64. N is no multiple of BLOCK_N: the mask matters."""
    codes = draw.integers(0, 16, (N, K))
    x = draw.floats(K, "fp16")
    scales = draw.floats((N, K // GROUP), "fp16")
    words = (codes.reshape(N, K // 8, 8) << np.arange(0, 32, 4)).sum(axis=2)
    weights = (codes - 8) * np.repeat(scales.astype(np.float64), GROUP, axis=1)
    return Problem(
        args={
            "words_ptr": words.astype(np.uint32).view(np.int32),  # unsigned codes wrap below 8
            "scales_ptr": scales,
            "x_ptr": x,
            "y_ptr": np.zeros(N, np.float32),
        },
        constexprs={"N": N, "K": K, "GROUP": GROUP, "BLOCK_N": BLOCK_N, "BLOCK_W": BLOCK_W},
        grid=-(-N // BLOCK_N),
        num_warps=4,
        block=32 * BLOCK_N,  # the CUDA kernel's: a warp per row
        expected={"y_ptr": weights @ x.astype(np.float64)},
        tolerance=1e-5,
        weights=N * K,
    )

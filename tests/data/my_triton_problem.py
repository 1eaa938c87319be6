"""The problem of bench/examples/my_triton_kernel.py, for bench.emulate: 24 rows are no multiple of a block."""

import numpy as np

from bench.static.ptx.problem import Draw, Problem

N, K, BATCH, GROUP, BLOCK_N = 24, 256, 2, 128, 16


def problem(draw: Draw) -> Problem:
    codes = draw.integers(0, 16, (N, K)).astype(np.uint8)
    scales, x = draw.floats((N, K // GROUP), "fp16"), draw.floats((BATCH, K), "fp16")
    weights = (codes.astype(np.float64) - 8) * np.repeat(scales.astype(np.float64), GROUP, axis=1)
    return Problem(
        args={
            "bytes_ptr": codes[:, ::2] | codes[:, 1::2] << 4,
            "scales_ptr": scales,
            "x_ptr": x,
            "y_ptr": np.zeros((BATCH, N), np.float32),
            "n": N,
            "k": K,
        },
        constexprs={"GROUP": GROUP, "BLOCK_N": BLOCK_N},
        grid=(-(-N // BLOCK_N), BATCH),
        expected={"y_ptr": x.astype(np.float64) @ weights.T},
        tolerance=1e-5,
        weights=N * K,
    )

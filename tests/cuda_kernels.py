"""The CUDA C++ kernels compiled by NVRTC, each once per session, and run in the emulator."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from bench.static.ptx import Report, Rounding, launch
from kernels import packing
from kernels.cuda.plan import (
    Plan,
    dequantize_plan,
    gemv_arrays,
    gemv_plan,
    stored_scales,
    stream_plan,
)
from kernels.formats import find_format
from kernels.nvrtc import Module, compile_module

SEED = 7


@cache
def module(path: Path, arch: str, defines: tuple[tuple[str, int], ...]) -> Module:
    return compile_module(path, arch, dict(defines))


def random_x(batch: int, k: int) -> np.ndarray:
    return packing.random_activations(batch, k, "fp16", SEED)


def run(
    variant: str,
    arm: str,
    format_name: str,
    n: int,
    k: int,
    batch: int = 1,
    arch: str = "80",
    x: np.ndarray | None = None,
    rounding: Rounding | None = None,
    wide: bool = False,
    folder: Path | None = None,
) -> tuple[float, np.ndarray, Report]:
    """Launch one kernel with race checks.

    Args:
        variant: "simt", "mma" or "dequantize".
        arm: "bypass", "fused" or "dequantize".
        format_name: of the weights.
        n: rows of W.
        k: columns of W.
        batch: rows of x.
        arch: "80" for sm_80.
        x: activations; random if None.
        rounding: of the tensor cores.
        wide: y in fp32.
        folder: where to take the sources from, if they are not ours.

    Returns:
        largest error over the largest |reference|, what was written, and what was counted.
    """
    weight_format = find_format(format_name)
    weights = packing.random_weights(n, k, weight_format, "fp16", SEED)
    x = random_x(batch, k) if x is None else x
    expected = packing.reference(arm, weights, x, "turns" if variant == "mma" else "halves")
    out: np.ndarray = np.full(expected.shape, np.nan, np.float32 if wide else np.float16)
    if arm == "dequantize":
        plan: Plan = dequantize_plan(weight_format, n, k)
        arguments: list[Any] = [weights.words.copy(), stored_scales(weights), out, n, k]
    elif arm == "stream":
        out = np.full(expected.shape, -1, np.int32)
        plan = stream_plan(weight_format, n, k)
        arrays = gemv_arrays(weights, "mma", bypass=False, plain=True)
        arguments = [arrays["words"].copy(), arrays["scales"].copy(), out, n, k]
    else:
        plan = gemv_plan(variant, arm, weight_format, n, k, batch)  # type: ignore[arg-type]
        arrays = gemv_arrays(weights, variant, arm == "bypass")
        words, scales = arrays["words"].copy(), arrays["scales"].copy()
        arguments = [words, scales, x.astype(np.float16), out, n, k]
    path = plan.path if folder is None else folder / plan.path.name
    defines = dict(plan.defines) | ({"WIDE_Y": 1} if wide else {})
    ptx = module(path, arch, tuple(sorted(defines.items()))).ptx
    report = launch(
        ptx, plan.source.entry, plan.grid, plan.block, arguments, plan.shared_bytes,
        rounding=rounding,
    )  # fmt: skip
    error = np.abs(out.astype(np.float64) - expected).max() / np.abs(expected).max()
    return float(error), out, report

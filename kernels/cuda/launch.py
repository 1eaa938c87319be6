"""Launches a plan on a GPU: compiled like the audit's (kernels/nvrtc.py) when first bound, loaded by CuPy.

Thin on purpose: everything that can be right or wrong without a GPU is in plan.py, layout.py and the sources.
"""

from __future__ import annotations

import importlib.util
import tempfile
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from kernels.cuda.plan import (
    FOLDER,
    Plan,
    dequantize_plan,
    gemv_arrays,
    gemv_plan,
    stored_scales,
    stream_plan,
)
from kernels.formats import WeightFormat
from kernels.kernel import Arm, Launch, Tensors
from kernels.nvrtc import compile_module
from kernels.triton.plan import TORCH_DTYPES, check, check_activations, check_batch

if TYPE_CHECKING:
    from kernels.packing import Weights

FIRST_CAPABILITY = (8, 0)  # that has m16n8k16 with fp16


def missing() -> str | None:
    """Why the CUDA C++ kernels are not there, in one clause; None if they are."""
    for package, name in (("cupy", "CuPy"), ("cuda", "NVRTC")):
        if importlib.util.find_spec(package) is None:
            return f"{name} is not installed (pip install -e '.[cuda]')"
    if torch.cuda.is_available() and torch.cuda.get_device_capability() < FIRST_CAPABILITY:
        return "they need compute capability 8.0"
    return None


def gemv_tensors(weights: Weights, variant: str, bypass: bool, plain: bool = False) -> Tensors:
    """Words and scales of a product, on the CPU; arguments as `gemv_arrays`."""
    return as_tensors(gemv_arrays(weights, variant, bypass, plain))


def dequantize_tensors(weights: Weights) -> Tensors:
    """Words and scales row by row, on the CPU."""
    return as_tensors({"words": weights.words, "scales": stored_scales(weights)})


def as_tensors(arrays: dict[str, Any]) -> Tensors:
    """Arrays as tensors; words as int32, since not every operation of torch takes uint32."""
    return {
        name: torch.from_numpy(array.view("int32") if array.dtype == np.uint32 else array.copy())
        for name, array in arrays.items()
    }


def bind_gemv(
    variant: str,
    arm: Arm,
    weight_format: WeightFormat,
    tensors: Tensors,
    x: torch.Tensor,
    out: torch.Tensor,
) -> Launch:
    """Check the arguments of a product, once.

    Args:
        variant: "simt" or "mma".
        arm: "bypass" or "fused".
        weight_format: of the weights.
        tensors: `gemv_tensors` on the device of x.
        x: activations [batch, k], fp16.
        out: [batch, n], fp16.

    Raises:
        ValueError: an argument does not fit; the message says what would.
    """
    _, batch, k = check_activations(x)
    n = out.shape[-1]
    plan = gemv_plan(variant, arm, weight_format, n, k, batch)
    check_batch(f"CUDA {variant}", batch, plan.source.batches)
    check_tensors(tensors, weight_format, n, k, x)
    check("x", x, (batch, k), torch.float16, x.device)
    check("out", out, (batch, n), torch.float16, x.device)
    return launch(plan, tensors["words"], tensors["scales"], x, out, n, k)


def bind_stream(
    weight_format: WeightFormat, tensors: Tensors, x: torch.Tensor, out: torch.Tensor
) -> Launch:
    """Check the arguments of a stream kernel, once; `out` is int32 [n], and of x only k matters.

    Raises:
        ValueError: an argument does not fit; the message says what would.
    """
    n, k = out.shape[0], x.shape[1]
    plan = stream_plan(weight_format, n, k)
    check_tensors(tensors, weight_format, n, k, x)
    check("out", out, (n,), torch.int32, x.device)
    return launch(plan, tensors["words"], tensors["scales"], out, n, k)


def bind_dequantize(
    weight_format: WeightFormat, tensors: Tensors, x: torch.Tensor, out: torch.Tensor
) -> Launch:
    """Check the arguments of a dequantize kernel, once; `out` is [n, k], and x says only the dtype.

    Raises:
        ValueError: an argument does not fit; the message says what would.
    """
    n, k = out.shape
    plan = dequantize_plan(weight_format, n, k)
    check_tensors(tensors, weight_format, n, k, x)
    check("out", out, (n, k), torch.float16, x.device)
    return launch(plan, tensors["words"], tensors["scales"], out, n, k)


def check_tensors(
    tensors: Tensors, weight_format: WeightFormat, n: int, k: int, x: torch.Tensor
) -> None:
    """Refuse packed weights that are too few, of another type, or elsewhere.

    Raises:
        ValueError: so it is.
    """
    scale = TORCH_DTYPES["fp32" if weight_format.scale_bits == 32 else "fp16"]
    for name, dtype, columns in (
        ("words", torch.int32, k // weight_format.weights_per_word),
        ("scales", scale, weight_format.groups(k)),
    ):
        tensor = tensors[name]
        check(name, tensor, tuple(tensor.shape), dtype, x.device)
        if tensor.numel() < n * columns:
            raise ValueError(
                f"{name} should hold {n * columns} numbers for W[{n}, {k}], but it has "
                f"{tensor.numel()}; pass what this kernel's pack made for the same W."
            )


def launch(plan: Plan, *arguments: torch.Tensor | int) -> Launch:
    """A launch without arguments, on PyTorch's stream of the moment, so that a graph can capture it."""
    function = compiled(plan.path.name, plan.source.entry, tuple(sorted(plan.defines.items())))
    return launch_function(function, plan.grid, plan.block, plan.shared_bytes, *arguments)


def launch_function(
    function: Any,
    grid: tuple[int, ...],
    block: int,
    shared_bytes: int,
    *arguments: torch.Tensor | int,
) -> Launch:
    """The same for a kernel that is compiled, which a launch returns; it keeps its tensors alive."""
    import cupy

    values = tuple(
        np.uint64(a.data_ptr()) if isinstance(a, torch.Tensor) else np.int32(a) for a in arguments
    )

    def run(kept_alive: tuple[object, ...]) -> object:
        with cupy.cuda.ExternalStream(torch.cuda.current_stream().cuda_stream):
            function(grid, (block,), values, shared_mem=shared_bytes)
        return function

    return partial(run, arguments)


@cache
def compiled(file: str, entry: str, defines: tuple[tuple[str, int], ...]) -> Any:
    """A kernel of a file, compiled for the board that is there.

    Not by CuPy, whose NVRTC and options are its own, and whose cache on disk does not see included files.

    Raises:
        CudaError: NVRTC is missing, or refuses the source.
    """
    import cupy

    arch = architecture(*torch.cuda.get_device_capability())
    cubin = compile_module(FOLDER / file, arch, dict(defines)).cubin
    with tempfile.NamedTemporaryFile(suffix=".cubin") as image:
        image.write(cubin)
        image.flush()
        return cupy.RawModule(path=image.name).get_function(entry)


def architecture(major: int, minor: int) -> str:
    """What a compute capability is compiled for: "89", and "90a" from 9.0 on, as the audit does."""
    return f"{major}{minor}" + ("a" if major >= 9 else "")

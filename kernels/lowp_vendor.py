"""PyTorch's own low-precision products: `torch._int_mm` (int8, CPU and GPU) and `torch._scaled_mm` (FP8, GPU).

Rows of the arm `lowp`, see lowp.py: "torch" multiplies activations that were quantized before, "triton+torch"
(on a CPU "torch+torch") quantizes them in every launch. `_int_mm` returns int32 sums, so that two elementwise
launches apply the scales and round; FP8 scales are applied by the product.

Limits that are PyTorch's: on a GPU `_int_mm` takes more than 16 rows, so fewer are filled up with zeros, and
sizes that are multiples of 8; `_scaled_mm` with scales per row writes bf16 and needs multiples of 16.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Literal

import torch

from kernels import lowp
from kernels.formats import find_format
from kernels.kernel import Kernel, UnsupportedError

if TYPE_CHECKING:
    from kernels.kernel import Launch, Tensors

BATCHES = (1, 256)
LEAST_ROWS = {"cuda": 17, "cpu": 1}  # that _int_mm takes
FP8_CAPABILITY = 89  # times ten


def quantize_int8(x: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor) -> None:
    """Quantize x [batch, k] to codes int8 and scales fp32 [batch, 1], in PyTorch operators: for the CPU."""
    wide = x.float()
    torch.div(wide.abs().amax(dim=1, keepdim=True), 127.0, out=scales)
    wide.div_(torch.where(scales > 0, scales, 1.0)).round_()
    codes.copy_(wide)


def bind_int8(tensors: Tensors, x: torch.Tensor, out: torch.Tensor, quantizes: bool) -> Launch:
    """`torch._int_mm`, then scales: codes uint8 [n, k], x [batch, k], out [batch, n] in the dtype of x.

    Raises:
        ValueError: a size is not one that the operator takes.
    """
    batch, k = x.shape
    n, device = tensors["codes"].shape[0], x.device
    if device.type == "cuda" and (n % 8 or k % 8):
        raise ValueError(
            f"torch._int_mm takes n and k in multiples of 8 on a GPU, not {n} and {k}."
        )
    rows = max(batch, LEAST_ROWS[device.type])
    codes = torch.zeros(rows, k, dtype=torch.int8, device=device)
    sums = torch.empty(rows, n, dtype=torch.int32, device=device)
    wide = torch.empty(batch, n, dtype=torch.float32, device=device)
    weights = tensors["codes"].view(torch.int8).T
    weight_scales = tensors["scales"].float().reshape(1, n)
    if device.type == "cuda":
        quantize, scales = _by_triton("int8-ch", x, codes[:batch])
    else:
        scales = torch.empty(batch, 1, device=device)
        quantize = partial(quantize_int8, x, codes[:batch], scales)
    quantize()

    def product() -> object:
        torch._int_mm(codes, weights, out=sums)
        torch.mul(sums[:batch], weight_scales, out=wide)
        return torch.mul(wide, scales, out=out)

    return lowp.in_turn(quantize, product) if quantizes else product


def bind_fp8(tensors: Tensors, x: torch.Tensor, out: torch.Tensor, quantizes: bool) -> Launch:
    """`torch._scaled_mm` with a scale per row and token: codes uint8 [n, k], x [batch, k], out bf16 [batch, n].

    Raises:
        ValueError: a size is not one that the operator takes.
        UnsupportedError: the device has no FP8 tensor cores.
    """
    batch, k = x.shape
    n = tensors["codes"].shape[0]
    needed = divmod(FP8_CAPABILITY, 10)
    if x.device.type != "cuda" or torch.cuda.get_device_capability(x.device) < needed:
        raise UnsupportedError(f"FP8 tensor cores need compute capability {FP8_CAPABILITY / 10}")
    if n % 16 or k % 16:
        raise ValueError(f"torch._scaled_mm takes n and k in multiples of 16, not {n} and {k}.")
    codes = torch.empty(batch, k, dtype=torch.uint8, device=x.device)
    quantize, scales = _by_triton("fp8_e4m3-ch", x, codes)
    quantize()
    product: Callable[[], object] = partial(
        torch._scaled_mm,
        codes.view(torch.float8_e4m3fn),
        tensors["codes"].view(torch.float8_e4m3fn).T,
        scales,
        tensors["scales"].reshape(1, n),
        out_dtype=out.dtype,
        out=out,
    )
    return lowp.in_turn(quantize, product) if quantizes else product


def _by_triton(
    format_name: str, x: torch.Tensor, codes: torch.Tensor
) -> tuple[Launch, torch.Tensor]:
    """Our launch that quantizes x into these codes, and the scales that it writes."""
    from kernels.triton.lowp import bind_quantize

    into = codes.view(torch.uint8)
    launch, to = bind_quantize(find_format(format_name), x, into)
    return launch, to.scales


def _kernels(device: Literal["cuda", "cpu"], name: str) -> tuple[Kernel, Kernel]:
    """The product alone, and with the quantization of x before it."""
    integer = find_format(name).encoding == "int"
    bind = bind_int8 if integer else bind_fp8
    product = Kernel(
        arm="lowp",
        implementation="torch",
        device=device,
        formats=(name,),
        activations=("fp16", "bf16") if integer else ("bf16",),
        batches=BATCHES,
        pack=lowp.pack,
        bind=partial(bind, quantizes=False),
        variant="int_mm" if integer else "scaled_mm",
        tolerance=lowp.TOLERANCE,
        least_capability=0 if integer else FP8_CAPABILITY,
    )
    before = "triton" if device == "cuda" else "torch"
    whole = partial(bind, quantizes=True)
    return product, replace(product, implementation=f"{before}+torch", bind=whole)


CUDA_KERNELS = (*_kernels("cuda", "int8-ch"), *_kernels("cuda", "fp8_e4m3-ch"))
CPU_KERNELS = _kernels("cpu", "int8-ch")

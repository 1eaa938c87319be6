"""bitsandbytes: NF4, fused or in two launches, and LLM.int8().

    vendor   bitsandbytes                `Linear4bit` (`matmul_4bit`): by batch, shape and board it fuses, or
                                         dequantizes and calls the library; on a CPU it fuses, with scales in
                                         bf16, where there is AVX512-BF16, by the kernel in its wheel (another
                                         one, of Hugging Face's hub, would need their package `kernels`)
    unfused  bitsandbytes+torch          `dequantize_4bit`, then the library's 16-bit linear; the matrix between
                                         them is allocated in every call (a CPU has no other way)
    lowp     bitsandbytes+bitsandbytes   LLM.int8(): `matmul` on int8 weights, which quantizes x in every call
             bitsandbytes                its product alone: `int8_linear_matmul`, `int8_mm_dequant`

LLM.int8() computes in fp16: it casts x in bf16 in every call. Columns of x beyond 6, which the paper keeps in
16 bits, are looked for on a CPU only ("bitsandbytes-outliers6+bitsandbytes"): on a GPU that waits for the host,
which no graph can capture.
"""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from kernels.codebooks import codebook
from kernels.kernel import Arm, Kernel, Launch, Tensors
from kernels.packing import Weights

if TYPE_CHECKING:
    from kernels.peers import DeviceKind

BATCHES = (1, 256)
OUTLIERS = 6.0  # the threshold of the paper and of transformers
INT8_LEVELS = 127.0
LAID_OUT = "packing_format_for_cpu"  # of a quantization state: as `Linear4bit` marks it on a CPU


def records(device: DeviceKind, release: str) -> dict[str, Kernel]:
    """Its rows on a device, by name."""
    activations = ("bf16",) if device == "cpu" else ("fp16", "bf16")

    def nf4(arm: Arm, implementation: str, bind: Any, pack: Any = pack_nf4) -> Kernel:
        formats = ("nf4-b64",)
        return Kernel(
            arm, implementation, device, formats, activations, BATCHES, pack, bind, release
        )

    def int8(implementation: str, bind: Any) -> Kernel:
        formats = ("int8-ch",)
        return Kernel(
            "lowp", implementation, device, formats, activations, BATCHES, pack_int8, bind, release
        )

    found = {
        "bitsandbytes": nf4(
            *("vendor", "bitsandbytes", bind_nf4, pack_nf4_for_cpu if device == "cpu" else pack_nf4)
        ),
        "bitsandbytes_unfused": nf4("unfused", "bitsandbytes+torch", bind_unfused),
        "bitsandbytes_int8": int8("bitsandbytes+bitsandbytes", partial(bind_int8, 0.0)),
        "bitsandbytes_int8_product": int8("bitsandbytes", bind_int8_product),
    }
    if device == "cpu":
        found["bitsandbytes_int8_outliers"] = int8(
            f"bitsandbytes-outliers{OUTLIERS:g}+bitsandbytes", partial(bind_int8, OUTLIERS)
        )
    return found


def _package() -> Any:
    """The package, without what it would print: that `kernels` is not Hugging Face's; that bf16 is cast."""
    for part in ("backends.cpu.ops", "autograd._functions"):
        logging.getLogger(f"bitsandbytes.{part}").setLevel(logging.ERROR)
    import bitsandbytes

    return bitsandbytes


def pack_nf4(weights: Weights) -> Tensors:
    """Its layout: two codes in a byte, the first in the upper half; fp32 scales; the levels."""
    codes = weights.codes.reshape(-1, 2)
    return {
        "words": torch.from_numpy(codes[:, :1] << 4 | codes[:, 1:]),
        "scales": torch.from_numpy(weights.scales.astype(np.float32)),
        "levels": torch.from_numpy(codebook("nf4").copy()),
    }


def pack_nf4_for_cpu(weights: Weights) -> Tensors:
    """The same as its linear keeps it on a CPU: with AVX512-BF16 words [n, k / 2] and scales bf16 [k / 64, n].

    `Linear4bit` lays weights out anew in its first call. Here that is done once, so that no copy of them
    does it within a sample.
    """
    tensors, (n, k) = pack_nf4(weights), weights.shape
    x = torch.zeros(1, k, dtype=torch.bfloat16)
    linear = _linear(tensors, x, n)
    linear(x)
    if _laid_out(kept := linear.weight):
        tensors |= {"words": kept.data, "scales": kept.quant_state.absmax}
    return tensors


def _laid_out(weight: Any) -> bool:
    """Whether a weight is in the layout for CPUs; bitsandbytes marks its state so."""
    return bool(getattr(weight.quant_state, LAID_OUT, False))


def _state(tensors: Tensors, x: torch.Tensor, n: int) -> Any:
    """What bitsandbytes calls the quantization state of W[n, k]."""
    k, scales = x.shape[1], tensors["scales"]
    laid_out = tensors["words"].shape[1] > 1
    state = _package().functional.QuantState(
        absmax=scales if laid_out else scales.flatten(),
        shape=torch.Size((n, k)),
        code=tensors["levels"],
        blocksize=n * k // scales.numel(),
        quant_type="nf4",
        dtype=x.dtype,
    )
    if laid_out:
        setattr(state, LAID_OUT, True)
    return state


def _linear(tensors: Tensors, x: torch.Tensor, n: int) -> Any:
    """A `Linear4bit` that holds these weights, as after loading a quantized model."""
    k, nn = x.shape[1], _package().nn
    state = _state(tensors, x, n)
    linear = nn.Linear4bit(k, n, bias=False, compute_dtype=x.dtype, quant_type="nf4", device="meta")
    linear.weight = nn.Params4bit(
        tensors["words"], requires_grad=False, quant_state=state, blocksize=state.blocksize,
        quant_type="nf4", bnb_quantized=True,
    )  # fmt: skip
    return linear.eval()


def bind_nf4(tensors: Tensors, x: torch.Tensor, out: torch.Tensor) -> Launch:
    """A call of `Linear4bit`."""
    return partial(_linear(tensors, x, out.shape[1]), x)


def bind_unfused(tensors: Tensors, x: torch.Tensor, out: torch.Tensor) -> Launch:
    """The weights in the dtype of x, then y = x . weights^T."""
    state, words = _state(tensors, x, out.shape[1]), tensors["words"]
    dequantize = _package().functional.dequantize_4bit
    return lambda: torch.nn.functional.linear(x, dequantize(words, state))


def pack_int8(weights: Weights) -> Tensors:
    """Codes int8 [n, k] in two's complement, and what it calls SCB, fp32 [n]: weight = code * SCB / 127."""
    codes = weights.codes.astype(np.int16) - weights.format.zero
    return {
        "codes": torch.from_numpy(codes.astype(np.int8)),
        "magnitudes": torch.from_numpy(weights.scales[:, 0] * np.float32(INT8_LEVELS)),
    }


def bind_int8(threshold: float, tensors: Tensors, x: torch.Tensor, out: torch.Tensor) -> Launch:
    """LLM.int8() whole: x is quantized, columns beyond the threshold (0: none) are multiplied apart."""
    bitsandbytes = _package()
    state = bitsandbytes.MatmulLtState()
    state.CB, state.SCB = tensors["codes"], tensors["magnitudes"]
    state.has_fp16_weights = state.is_training = False
    return partial(bitsandbytes.matmul, x, state.CB, state=state, threshold=threshold)


def bind_int8_product(tensors: Tensors, x: torch.Tensor, out: torch.Tensor) -> Launch:
    """The product of int8 codes and its scales; x is quantized here, once."""
    functional = _package().functional
    codes, magnitudes, _ = functional.int8_vectorwise_quant(x.half())

    def launch() -> torch.Tensor:
        sums = functional.int8_linear_matmul(codes, tensors["codes"])
        y: torch.Tensor = functional.int8_mm_dequant(sums, magnitudes, tensors["magnitudes"])
        return y

    return launch

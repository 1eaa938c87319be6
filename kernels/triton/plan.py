"""One launch as data: which function, compile-time values and grid; and its checked arguments.

The launcher runs a plan and the ahead-of-time compiler compiles one, so what is audited is what is
timed.

Shapes are compile-time values, so that divisions by them are shifts and a whole last step needs no
masks. The one exception is `k_end`, the bound of the loop along k: with a known trip count the
compiler unrolls the short loops (stream, bypass) and not the long one (fused), and their difference
would then contain the loop's own cost.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from kernels.formats import FORMATS, WeightFormat
from kernels.kernel import Arm, Launch, Tensors, output_shape
from kernels.packing import Float16, scale_dtype
from kernels.scales import second_level_numbers

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kernels.codebooks import Encoding
    from kernels.packing import Weights

TORCH_DTYPES = {
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "fp32": torch.float32,
    "int32": torch.int32,
    "u8": torch.uint8,
}
ACTIVATIONS: tuple[Float16, ...] = ("fp16", "bf16")
FP8_CAPABILITY = 89  # from here on FP8 is converted by an instruction
ALIGNMENT_BYTES = 16  # of every pointer: the width of the widest load
NO_CAP = 255  # registers, the most that a thread can have


@dataclass(frozen=True)
class Plan:
    """A Triton function specialized to one problem and one configuration.

    Attributes:
        fn: the function decorated with `triton.jit`.
        signature: type of each run-time argument, {"words_ptr": "*i32"}; None for an absent one.
        constexprs: value of each compile-time argument.
        options: num_warps, num_stages and other options of Triton's NVIDIA backend.
        grid: programs along each axis.
    """

    fn: Any
    signature: Mapping[str, str | None]
    constexprs: Mapping[str, object]
    options: Mapping[str, object]
    grid: tuple[int, ...]

    def launch(self, *values: torch.Tensor | int | None) -> Launch:
        """A launch without arguments on these values, given in the order of the signature."""
        arguments = dict(zip(self.signature, values, strict=True))
        return functools.partial(self.fn[self.grid], **arguments, **self.constexprs, **self.options)


def compile_options(
    num_warps: int, num_stages: int, max_registers: int | None = None
) -> dict[str, object]:
    """Launch options; fused multiply-add is asked for by name because its default is changing."""
    return {
        "num_warps": num_warps,
        "num_stages": num_stages,
        "maxnreg": max_registers,
        "enable_fp_fusion": True,
    }


def needs_second_level(weight_format: WeightFormat) -> bool:
    """Whether the stored scales are no numbers without a second level."""
    return second_level_numbers(weight_format.scale_type, 1) > 0


def packed_signature(
    weight_format: WeightFormat, activation: Float16, arm: Arm
) -> dict[str, str | None]:
    """Types of (words, scales, zeros, second level, x, out, k) for an arm that reads packed weights."""
    _, written = output_shape(arm, 1, 1, 1)
    return {
        "words_ptr": "*i32",
        "scales_ptr": f"*{scale_dtype(weight_format, activation)}",
        "zeros_ptr": "*u8" if weight_format.zero_point else None,
        "second_ptr": "*fp32" if needs_second_level(weight_format) else None,
        "x_ptr": f"*{activation}",
        "out_ptr": f"*{activation}"
        if written == "activation"
        else "*" + written.replace("int", "i"),
        "k_end": "i32",
    }


def packed_arguments(tensors: Tensors) -> list[torch.Tensor | None]:
    """The packed weights in the order of `packed_signature`."""
    return [tensors.get(name) for name in ("words", "scales", "zeros", "second_level")]


def packed_tensors(weights: Weights, bypass: bool = False) -> Tensors:
    """Packed weights on the CPU: words int32 [n, k * bits / 32], scales and zeros [n, groups].

    Scales that are stored in eight bits are their codes, uint8; their second level is fp32.

    Args:
        weights: what to pack.
        bypass: take the words of the bypass arm instead of the packed codes.
    """
    words = weights.bypass_words if bypass else weights.words
    stored = TORCH_DTYPES[scale_dtype(weights.format, weights.activation)]
    numbers = weights.scales if weights.scale_codes is None else weights.scale_codes
    scales = torch.from_numpy(numbers.copy()).to(stored)
    tensors = {"words": torch.from_numpy(words.view("int32").copy()), "scales": scales}
    if weights.zeros is not None:
        tensors["zeros"] = torch.from_numpy(weights.zeros.copy())
    if weights.second_level is not None:
        tensors["second_level"] = torch.from_numpy(weights.second_level.copy())
    return tensors


def capability_of(tensor: torch.Tensor) -> int:
    """Compute capability times ten of the tensor's device; 80 where it is interpreted."""
    if tensor.device.type != "cuda":
        return 80
    major, minor = torch.cuda.get_device_capability(tensor.device)
    return 10 * major + minor


def multiprocessors_of(tensor: torch.Tensor) -> int | None:
    """Multiprocessors of the tensor's device; None where it is interpreted."""
    if tensor.device.type != "cuda":
        return None
    return int(torch.cuda.get_device_properties(tensor.device).multi_processor_count)


def activation_of(tensor: torch.Tensor, name: str) -> Float16:
    """The name of a tensor's dtype, "fp16" or "bf16".

    Raises:
        ValueError: the tensor has another dtype.
    """
    for activation in ACTIVATIONS:
        if TORCH_DTYPES[activation] == tensor.dtype:
            return activation
    raise ValueError(f"{name} should be fp16 or bf16, but it is {tensor.dtype}; convert it first.")


def format_of(
    tensors: Tensors, k: int, activation: Float16, encoding: Encoding = "int"
) -> WeightFormat:
    """The format of an encoding whose layout these packed tensors have.

    Raises:
        ValueError: no format stores k weights per row in words and scales of these shapes.
    """
    found: list[WeightFormat] = []
    word_columns, groups = tensors["words"].shape[-1], tensors["scales"].shape[-1]
    for weight_format in FORMATS:
        if (
            weight_format.encoding == encoding
            and weight_format.quantized
            and k % weight_format.weights_per_whole == 0
            and k % (weight_format.group_size or k) == 0
            and weight_format.zero_point == ("zeros" in tensors)
            and needs_second_level(weight_format) == ("second_level" in tensors)
            and (word_columns * 32, groups) == (k * weight_format.bits, weight_format.groups(k))
        ):
            found.append(weight_format)
    for weight_format in found:
        if TORCH_DTYPES[scale_dtype(weight_format, activation)] == tensors["scales"].dtype:
            return weight_format
    if found:
        return found[0]  # its scales have another dtype, which the caller refuses
    stored = "with" if "zeros" in tensors else "without"
    second = "with a second level" if "second_level" in tensors else "without a second level"
    raise ValueError(
        f"x has k = {k} columns, but no weight format stores that many weights per row in "
        f"{word_columns} words and {groups} scales {stored} zero points and {second}; "
        f"pass x [batch, k] and the tensors that this kernel's pack made for the same k."
    )


def check(
    name: str,
    tensor: torch.Tensor,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    device: torch.device,
) -> None:
    """Refuse a tensor that a kernel would read or write wrongly.

    Raises:
        ValueError: wrong shape, dtype or device, not contiguous, or not aligned to 16 bytes.
    """
    expected = f"{name} should be a contiguous {dtype} tensor of shape {list(shape)} on {device}"
    if (tuple(tensor.shape), tensor.dtype, tensor.device) != (shape, dtype, device):
        raise ValueError(
            f"{expected}, but it is a {tensor.dtype} tensor of shape {list(tensor.shape)} on "
            f"{tensor.device}; allocate it for this problem (kernel.output_shape gives outputs)."
        )
    if not tensor.is_contiguous():
        raise ValueError(
            f"{expected}, but its strides are {tensor.stride()}; pass {name}.contiguous()."
        )
    if tensor.data_ptr() % ALIGNMENT_BYTES:
        raise ValueError(
            f"{expected}, and start at a multiple of {ALIGNMENT_BYTES} bytes, the width of its "
            f"loads; it is a view into the middle of a buffer: pass {name}.clone()."
        )


def check_batch(regime: str, batch: int, batches: tuple[int, int]) -> None:
    """Refuse a batch outside what a regime serves.

    Raises:
        ValueError: the batch is too small or too large.
    """
    low, high = batches
    if not low <= batch <= high:
        raise ValueError(
            f"the {regime} kernel serves batches {low} to {high}, but x has {batch} rows; "
            f"choose the kernel with find_kernels(..., batch={batch})."
        )


def check_activations(x: torch.Tensor) -> tuple[Float16, int, int]:
    """Check the activations of any arm.

    Returns:
        activation dtype, batch, k.

    Raises:
        ValueError: x is no matrix, or of another dtype.
    """
    if x.dim() != 2:
        raise ValueError(f"x should be [batch, k], but it has shape {list(x.shape)}; reshape it.")
    batch, k = x.shape
    return activation_of(x, "x"), batch, k


def check_packed(
    tensors: Tensors, x: torch.Tensor, out: torch.Tensor, arm: Arm, encoding: Encoding = "int"
) -> tuple[WeightFormat, Float16, int, int, int]:
    """Check every argument of an arm that reads packed weights.

    Returns:
        format, activation dtype, n, k, batch.

    Raises:
        ValueError: the first argument that does not fit, and what would.
    """
    activation, batch, k = check_activations(x)
    n = tensors["words"].shape[0]
    weight_format = format_of(tensors, k, activation, encoding)
    shape, written = output_shape(arm, n, k, batch)
    groups = (n, weight_format.groups(k))
    check("x", x, (batch, k), x.dtype, x.device)
    words = (n, k * weight_format.bits // 32)
    check("words", tensors["words"], words, torch.int32, x.device)
    stored = TORCH_DTYPES[scale_dtype(weight_format, activation)]
    check("scales", tensors["scales"], groups, stored, x.device)
    if weight_format.zero_point:
        check("zeros", tensors["zeros"], groups, torch.uint8, x.device)
    if needs_second_level(weight_format):
        numbers = second_level_numbers(weight_format.scale_type, n * groups[1])
        check("second_level", tensors["second_level"], (numbers,), torch.float32, x.device)
    check(
        "out", out, shape, x.dtype if written == "activation" else TORCH_DTYPES[written], x.device
    )
    return weight_format, activation, n, k, batch


def check_matrix(
    tensors: Tensors, x: torch.Tensor, out: torch.Tensor, written: torch.dtype | None = None
) -> tuple[str, int, int, int]:
    """Check every argument of an arm that multiplies by a 16-bit matrix.

    Args:
        tensors: {"weights": [n, k]} in the dtype of x.
        x: activations [batch, k].
        out: [batch, n].
        written: dtype of out; None for that of x.

    Returns:
        activation dtype, n, k, batch.

    Raises:
        ValueError: the first argument that does not fit, and what would.
    """
    activation, batch, k = check_activations(x)
    n = tensors["weights"].shape[0]
    check("x", x, (batch, k), x.dtype, x.device)
    check("weights", tensors["weights"], (n, k), x.dtype, x.device)
    check("out", out, (batch, n), written or x.dtype, x.device)
    return activation, n, k, batch

"""The record that describes one timed kernel, and the words for its arm.

A kernel is plain data plus its functions: `pack` lays weights out as the kernel wants them, `bind` fixes its
arguments so that a launch takes none. What a launch must move (`traffic`) and what it has to compute
(packing.py, `reference`) follow from format and arm, unless a kernel of another layout states its own. Nothing
here touches a device.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import astuple, dataclass
from typing import TYPE_CHECKING, Literal

from kernels.formats import WeightFormat, find_format
from kernels.packing import BypassReading, Weights
from kernels.scales import second_level_numbers

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

Arm = Literal[
    "stream",
    "unpack",
    "scale",
    "bypass",
    "fused",
    "native",
    "vendor",
    "dequantize",
    "unfused",
    "lowp",
    "upcast",
]
LADDER: tuple[Arm, ...] = ("stream", "unpack", "scale", "bypass", "fused")
PRODUCTS: tuple[Arm, ...] = (  # write y[batch, n]
    *("bypass", "fused", "native", "vendor", "unfused", "lowp", "upcast"),
)

Tensors = dict[str, "torch.Tensor"]
Launch = Callable[[], object]
Reference = Callable[[Weights, "NDArray[np.float32]"], "NDArray[np.float64]"]


class UnsupportedError(RuntimeError):
    """The device lacks the instructions that a kernel is about: no row, and no fault of the kernel."""


@dataclass(frozen=True)
class Traffic:
    """What one launch must move and do, counted from the shapes: no re-reads, no padding.

    Attributes:
        bytes_read: weights, scales, zero points and activations, each once.
        bytes_written: the output, once.
        flops: two per multiply-add.
    """

    bytes_read: int
    bytes_written: int
    flops: int


@dataclass(frozen=True)
class Configuration:
    """How a kernel is launched on a problem.

    Attributes:
        config: for `bind`; None for the kernel's default.
        text: in words that begin with "tuned" or "untuned"; or the loop that a kernel runs at this batch, where
            it has several; "" for a kernel that has nothing to configure.
    """

    config: Hashable | None = None
    text: str = ""


def no_configuration(
    weight_format: WeightFormat, activation: str, n: int, k: int, batch: int
) -> Configuration:
    """Of a kernel that has nothing to configure."""
    return Configuration()


@dataclass(frozen=True)
class Kernel:
    """One kernel that can be timed.

    Attributes:
        arm: its place in the causal ladder.
        implementation: who wrote it: "triton", "numba", "torch".
        device: "cuda" or "cpu".
        formats: names of the weight formats it reads. A 16-bit kernel names "fp16" and "bf16".
        activations: dtypes of x, y and the scales that it accepts.
        batches: smallest and largest batch it accepts.
        pack: weights to this kernel's own tensors (on the CPU; the device copies and rotates them).
        bind: (tensors of one copy, x [batch, k], output) to a launch without arguments. Checks shapes
            and dtypes once and raises ValueError; the launch itself allocates nothing. A kernel with a
            configuration takes it as `config`.
        variant: tile variant, for the row key.
        reading: how the bypass arm reads its words as numbers. Unless it is "fp32", the scale arm rounds
            numbers to the activation dtype before it scales them.
        tolerance: largest allowed error relative to the largest reference magnitude.
        scratch_bits: per weight, that `upcast` in two launches writes to memory and reads back.
        least_capability: compute capability, times ten, whose instructions it needs.
        configuration: (format, activation, n, k, batch) to the launch configuration for the device that is
            here; what it holds is passed to `bind` as `config`, unless it is None.
        traffic: (format, n, k, batch) to what one launch moves, for a layout that stores other bytes than the
            format; None: counted from the format.
        reference: (weights, some rows of x [rows, k]) to what the kernel has to write for them, for a kernel
            that means other numbers than the format; None: packing.py's. The report says that there is one,
            and how far it is from packing.py's.
    """

    arm: Arm
    implementation: str
    device: Literal["cuda", "cpu"]
    formats: tuple[str, ...]
    activations: tuple[str, ...]
    batches: tuple[int, int]
    pack: Callable[[Weights], Tensors]
    bind: Callable[..., Launch]
    variant: str = "default"
    reading: BypassReading = "fp32"
    tolerance: float = 1e-2
    scratch_bits: int = 0
    least_capability: int = 0
    configuration: Callable[[WeightFormat, str, int, int, int], Configuration] = no_configuration
    traffic: Callable[[WeightFormat, int, int, int], Traffic] | None = None
    reference: Reference | None = None

    @property
    def weight_bits(self) -> int | None:
        """16 for kernels that read 16-bit weights, 32 for fp32, None when the format decides."""
        return {"fp16": 16, "bf16": 16, "fp32": 32}.get(self.formats[0])

    def reads(self, weight_format: WeightFormat, activation: str) -> WeightFormat:
        """The format of the weights it reads when the problem is about `weight_format`."""
        if self.weight_bits == 16:
            return find_format(activation)
        return find_format("fp32") if self.weight_bits == 32 else weight_format

    def accepts(self, weight_format: WeightFormat, activation: str, batch: int) -> bool:
        """Whether this kernel has a row for such a problem (16-bit kernels serve every format)."""
        name = activation if self.weight_bits == 16 else weight_format.name
        readable = self.weight_bits == 32 or name in self.formats
        low, high = self.batches
        return readable and activation in self.activations and low <= batch <= high


def traffic_of(
    kernel: Kernel, weight_format: WeightFormat, activation: str, n: int, k: int, batch: int
) -> Traffic:
    """What one launch of a kernel moves and does on W[n, k]: as it states, or as its format has it.

    Raises:
        ValueError: what it states is no traffic.
    """
    reads = kernel.reads(weight_format, activation)
    if kernel.traffic is None:
        return traffic(kernel.arm, reads, n, k, batch, kernel.scratch_bits)
    stated = kernel.traffic(reads, n, k, batch)
    if not isinstance(stated, Traffic) or not all(
        isinstance(count, int) and count >= 0 for count in astuple(stated)
    ):
        raise ValueError(f"its traffic should be three whole numbers, not {stated!r}")
    return stated


def output_shape(arm: Arm, n: int, k: int, batch: int) -> tuple[tuple[int, ...], str]:
    """Shape and dtype of what an arm writes; "activation" stands for the dtype of x.

    stream and unpack write one int32 per row, scale one fp32 per row, dequantize the matrix itself, all
    others y[batch, n]; upcast keeps that in fp32.
    """
    if arm in ("stream", "unpack"):
        return (n,), "int32"
    if arm == "scale":
        return (n,), "fp32"
    if arm == "dequantize":
        return (n, k), "activation"
    return (batch, n), "fp32" if arm == "upcast" else "activation"


def traffic(
    arm: Arm, reads: WeightFormat, n: int, k: int, batch: int, scratch_bits: int = 0
) -> Traffic:
    """Bytes and operations of one launch of an arm on W[n, k] (METHOD section 3, column "bits moved").

    Args:
        arm: the arm.
        reads: the format of the weights it reads (Kernel.reads).
        n: rows of W.
        k: columns of W.
        batch: rows of x.
        scratch_bits: Kernel.scratch_bits.

    `unfused`, and `upcast` in two launches, write the weights wider and read these back, which a large
    cache may absorb: an upper bound. x and y of `upcast` are fp32, those of all others 16 bits.
    """
    weights = n * k
    groups = n * reads.groups(k) if reads.quantized else 0
    second_level = second_level_numbers(reads.scale_type, groups)
    stored = (weights * reads.bits + groups * reads.group_bits) // 8 + 4 * second_level
    wide = 4 if arm == "upcast" else 2
    x, y, flops = wide * batch * k, wide * batch * n, 2 * batch * weights
    scratch = weights * (16 if arm == "unfused" else scratch_bits) // 8
    if arm in ("stream", "unpack", "scale"):
        return Traffic(stored, 4 * n, 0)
    if arm == "dequantize":
        return Traffic(stored, 2 * weights, 0)
    return Traffic(stored + scratch + x, scratch + y, flops)

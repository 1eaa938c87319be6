"""What a kernel asks of a GPU: instructions, bytes and tensor work per weight, as plain data.

Counts come from machine code (`bench/static/audit.py` for our kernels, `peers.py` for other people's).
They are per weight and per pass: a pass dequantizes every weight once and multiplies it with up to
`rows_per_pass` rows of x. Batch 64 in a kernel whose tile has 16 rows makes four passes.

One thread-instruction serves one lane, so a warp instruction on 128 weights counts 32 / 128.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from math import ceil
from typing import Literal

TENSOR_ROWS = 16  # rows of the smallest tensor-core tile (m16n8k16)

Origin = Literal["seen", "assumed"]
Operands = Literal["16-bit", "int8", "fp8", "fp4"]  # of tensor cores


@dataclass(frozen=True)
class InstructionCounts:
    """Thread-instructions on the hot path, per weight.

    Attributes:
        total: all of them: what the schedulers issue.
        integer: LOP3, SHF, PRMT, IADD3 and their kin. What was typed off other people's kernels (peers.toml)
            has their IMAD here as well, since nobody counted it apart.
        imad: IMAD and IDP, on the pipe of fp32; .WIDE and .HI, which take it twice as long, are two.
        half2: HADD2, HMUL2, HFMA2.
        fp32: FADD, FMUL, FFMA.
        conversion: I2F and MUFU, on the slow unit (XU).
        fast_conversion: I2FP and F2FP, on the integer pipe where there are such instructions.
        tensor: HMMA and its kin.
        shared: accesses of shared memory, and shuffles.
        loads: loads from global memory, in units of 128 bits.
        scattered: further 32-lane turns of the load/store unit, times 32: an access that touches eight lines
            of memory takes eight turns in place of one. Not part of `total`.
        bytes: stored bytes of a weight, scales and zero points included.
    """

    total: float = 0.0
    integer: float = 0.0
    imad: float = 0.0
    half2: float = 0.0
    fp32: float = 0.0
    conversion: float = 0.0
    fast_conversion: float = 0.0
    tensor: float = 0.0
    shared: float = 0.0
    loads: float = 0.0
    scattered: float = 0.0
    bytes: float = 0.0

    def __add__(self, other: InstructionCounts) -> InstructionCounts:
        """The sum, field by field."""
        names = [f.name for f in fields(self)]
        return InstructionCounts(*(getattr(self, n) + getattr(other, n) for n in names))

    def __mul__(self, factor: float) -> InstructionCounts:
        """Every field times a number."""
        return InstructionCounts(*(getattr(self, f.name) * factor for f in fields(self)))

    @property
    def load_store(self) -> float:
        """Lanes of the load/store unit that a weight occupies; 128 bits take four turns."""
        return self.shared + 4 * self.loads + self.scattered


def counts_of_classes(
    classes: Mapping[str, int],
    integer_to_float: int,
    wide_imad: int,
    load_widths: Mapping[int, int],
    weights: int,
    bytes_per_weight: float,
) -> InstructionCounts:
    """Counts per weight from an audit of machine code.

    Args:
        classes: instructions of the hot path by class of `bench/static/sass.py`: "int", "imad", "half2",
            "fp32", "cvt", "mma", "exchange", "load", "other".
        integer_to_float: those of class "cvt" that run on the slow unit.
        wide_imad: those of class "imad" that count twice.
        load_widths: loads from global memory by width in bits.
        weights: weights that one lane handles on that path.
        bytes_per_weight: stored bytes, scales and zero points included.
    """
    turns = sum(number * max(1, width // 32) for width, number in load_widths.items())
    return InstructionCounts(
        total=sum(classes.values()) / weights,
        integer=classes.get("int", 0) / weights,
        imad=(classes.get("imad", 0) + wide_imad) / weights,
        half2=classes.get("half2", 0) / weights,
        fp32=classes.get("fp32", 0) / weights,
        conversion=integer_to_float / weights,
        fast_conversion=(classes.get("cvt", 0) - integer_to_float) / weights,
        tensor=classes.get("mma", 0) / weights,
        shared=classes.get("exchange", 0) / weights,
        loads=turns / 4 / weights,
        bytes=bytes_per_weight,
    )


@dataclass(frozen=True)
class KernelCost:
    """One kernel as the model sees it.

    Attributes:
        name: which kernel.
        family: whose kernels it is pooled with when errors are counted.
        counts: per weight, in one pass.
        origin: "seen" in machine code, or "assumed" from source code and relatives.
        source: where the counts come from.
        tensor_cores: whether it multiplies with them; x is then padded to whole tiles.
        rows_per_pass: rows of x that one dequantized weight is multiplied with, at most.
        per_row: what each row of x adds, per weight; independent of passes.
        per_tile: what each further 16 rows of a pass add, per weight.
        rereads: whether every pass reads the weights from memory again (if the cache cannot hold them).
        slice_columns: columns of y whose partial sums are added one after another by the programs that
            share them, when there are more multiprocessors than slices; None without such a reduction.
        slice_depth: rows along k that one program takes at least: k over it, at most, share a slice.
        bytes_in_flight: bytes of weights that one multiprocessor has requested at a time; None: unknown.
        requested_bytes: of weights and x, that all programs of one operator request from the last-level cache;
            None: unknown.
        unevenness: work of the busiest multiprocessor over the mean of all; 1 where programs fill the board.
        batches: smallest and largest batch that takes this path.
        minimum_capability: compute capability that it needs.
        operands: what the tensor cores multiply.
        warp_mma: whether its tensor-core instruction is the one of a single warp, slow on newer boards.
        unmodelled: why the method cannot say anything about it (spills, guarded loops); empty if it can.
    """

    name: str
    family: str
    counts: InstructionCounts
    origin: Origin = "seen"
    source: str = ""
    tensor_cores: bool = False
    rows_per_pass: int = 1
    per_row: InstructionCounts = InstructionCounts()
    per_tile: InstructionCounts = InstructionCounts()
    rereads: bool = False
    slice_columns: int | None = None
    slice_depth: int = 64
    bytes_in_flight: float | None = None
    requested_bytes: float | None = None
    unevenness: float = 1.0
    batches: tuple[int, int] = (1, 1 << 30)
    minimum_capability: float = 7.5
    operands: Operands = "16-bit"
    warp_mma: bool = False
    unmodelled: str = ""

    def passes(self, batch: int) -> int:
        """How often every weight is dequantized."""
        return ceil(batch / self.rows_per_pass)

    def tile_rows(self, batch: int) -> int:
        """Rows of one pass: a power of two from 16 to `rows_per_pass` on tensor cores."""
        rows = min(batch, self.rows_per_pass)
        if not self.tensor_cores:
            return rows
        return max(TENSOR_ROWS, min(self.rows_per_pass, 1 << (rows - 1).bit_length()))

    def multiplied_rows(self, batch: int) -> int:
        """Rows of x that are multiplied, padding included."""
        return self.tile_rows(batch) * self.passes(batch)

    def instructions(self, batch: int) -> InstructionCounts:
        """All that a weight costs at this batch."""
        further = self.tile_rows(batch) / TENSOR_ROWS - 1 if self.tensor_cores else 0.0
        one_pass = self.counts + self.per_tile * further
        return one_pass * self.passes(batch) + self.per_row * batch


@dataclass(frozen=True)
class Problem:
    """y[batch, n] = x[batch, k] W[n, k]^T, and how it is run.

    Attributes:
        n: rows of W.
        k: columns of W.
        batch: rows of x.
        cold: whether weights come from memory by construction (rotated copies).
        graph: whether it is launched within a captured graph.
        other_bytes: moved once beside the stored weights; None: x and y in 16 bits.
    """

    n: int
    k: int
    batch: int
    cold: bool = True
    graph: bool = True
    other_bytes: int | None = None

    @property
    def weights(self) -> int:
        """Number of weights."""
        return self.n * self.k

    @property
    def activation_bytes(self) -> int:
        """Of x and y in 16 bits, each once, or what stands in their place."""
        if self.other_bytes is not None:
            return self.other_bytes
        return 2 * self.batch * (self.n + self.k)

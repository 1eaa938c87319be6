"""One launch of a CUDA C++ kernel as data, and the weights as it reads them.

What is compiled and audited without a GPU is what a GPU runs: both take the plan from here and the machine code
from kernels/nvrtc.py, with the same options.

    plan = gemv_plan("mma", "fused", find_format("int4-g128"), n=4096, k=4096, batch=1)
    tensors = gemv_tensors(weights, variant="mma")
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernels.cuda.layout import BLOCK_ROWS, ROW_WORDS, reorder, tile_scales, tile_words
from kernels.formats import WeightFormat
from kernels.kernel import Arm
from kernels.packing import Weights

FOLDER = Path(__file__).parent
CHUNK = 128  # columns of W that a warp of the tensor-core kernels takes at a time (tiles.cuh)
ARMS: tuple[Arm, ...] = (
    "bypass",
    "fused",
)  # offsets are folded out of the loops: there is no "scale"


@dataclass(frozen=True)
class Source:
    """A kernel for one format.

    Attributes:
        file: its .cu file.
        entry: name of the kernel in it.
        batches: smallest and largest.
        defines: macros.
        order: where the fields of a packed word come from: field i is field order[i] of packing.py's.
        shared_bytes: static shared memory of a table that the bypass does not make, but has to take.

    The macro RESIDENT is how many blocks a multiprocessor has to hold (__launch_bounds__). The compiler then
    spends the registers that this leaves, in fused and bypass alike, and as many of both are resident.
    """

    file: str
    entry: str
    batches: tuple[int, int]
    defines: Mapping[str, int] = field(default_factory=dict)
    order: tuple[int, ...] = ()
    shared_bytes: int = 0


@dataclass(frozen=True)
class Plan:
    """A kernel compiled for one problem, and its launch.

    Attributes:
        source: file and entry.
        defines: macros.
        grid: blocks along each axis.
        block: threads per block.
        shared_bytes: dynamic shared memory.
        weights_per_pass: that one lane handles in one pass of the loop (dequantize: in all).
    """

    source: Source
    defines: Mapping[str, int]
    grid: tuple[int, ...]
    block: int
    shared_bytes: int
    weights_per_pass: int

    @property
    def path(self) -> Path:
        """The .cu file."""
        return FOLDER / self.source.file


MANY, ONE = (1, 8), (1, 1)
TABLE_BYTES = 256 * 32 * 4  # of nf4_pairs.cu
SUMS_BYTES = 8 * 32 * 4  # static, for each row of x (tiles.cuh)
TABLE_ROOM_BYTES = 38 * 1024  # with 1 KB of the driver's, a sixth block does not fit into 228 KB
INT4_ORDER = (0, 2, 1, 3, 4, 6, 5, 7)  # w0 w4 w2 w6 w1 w5 w3 w7
NF4_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)  # w0 w1 w2 w3 w4 w5 w6 w7


def nf4_source(wide_scales: int) -> Source:
    """nf4_pairs.cu with scales of fp32 or fp16."""
    defines = {"WIDE_SCALES": wide_scales, "RESIDENT": 3}
    return Source("nf4_pairs.cu", "gemv", MANY, defines, NF4_ORDER, TABLE_BYTES)


SOURCES: dict[str, dict[str, Source]] = {
    "simt": {"int4-g128": Source("int4_simt.cu", "gemv", ONE, {"RESIDENT": 7})},
    "mma": {
        "int4-g128": Source("int4_mma.cu", "gemv", MANY, {"RESIDENT": 3}, INT4_ORDER),
        "int8-ch": Source("int8_mma.cu", "gemv", MANY, {"PER_ROW": 1, "RESIDENT": 4}),
        "int8-g128": Source("int8_mma.cu", "gemv", MANY, {"PER_ROW": 0, "RESIDENT": 3}),
        "nf4-b64": nf4_source(wide_scales=1),
        "nf4-b64-s16": nf4_source(wide_scales=0),
        "fp8_e4m3-ch": Source("fp8_mma.cu", "gemv", MANY, {"PER_ROW": 1, "RESIDENT": 4}),
        "fp8_e4m3-b128": Source("fp8_mma.cu", "gemv", MANY, {"PER_ROW": 0, "RESIDENT": 4}),
    },
    "dequantize": {
        name: Source("dequantize.cu", entry, (1, 256), {"GROUP": group, "WIDE_SCALES": wide})
        for name, entry, group, wide in (
            ("int4-g128", "int4", 128, 0),
            ("int8-ch", "int8", 0, 0),
            ("int8-g128", "int8", 128, 0),
            ("nf4-b64", "nf4", 64, 1),
            ("nf4-b64-s16", "nf4", 64, 0),
            ("fp8_e4m3-ch", "e4m3", 0, 1),
            ("fp8_e4m3-b128", "e4m3", 128, 1),
        )
    },
}
GEMV_VARIANTS = ("simt", "mma")
SIMT_ROWS, SIMT_BLOCK = 16, 128  # rows and threads of a block of int4_simt.cu
MMA_BLOCK = 256
DEQUANTIZE_ROWS, DEQUANTIZE_BLOCK, DEQUANTIZE_COLUMNS = 8, 128, 8


def gemv_plan(
    variant: str, arm: Arm, weight_format: WeightFormat, n: int, k: int, batch: int
) -> Plan:
    """What a product launches.

    Args:
        variant: "simt" or "mma".
        arm: "bypass" or "fused".
        weight_format: one of SOURCES[variant].
        n: rows of W.
        k: columns of W.
        batch: rows of x.

    Raises:
        ValueError: k does not divide into whole chunks.
    """
    source = SOURCES[variant][weight_format.name]
    if k % CHUNK:
        raise ValueError(f"the CUDA kernels take {CHUNK} columns at a time, but k is {k}.")
    bypass = arm == "bypass"
    defines = dict(source.defines) | {"BYPASS": int(bypass)}
    if variant == "simt":
        grid = (-(-n // SIMT_ROWS),)
        return Plan(source, defines, grid, SIMT_BLOCK, 0, 4 * weight_format.weights_per_word * 4)
    return Plan(
        source=source,
        defines=defines | {"BATCH": batch},
        grid=(-(-n // BLOCK_ROWS),),
        block=MMA_BLOCK,
        shared_bytes=instead_of_table(source, batch) if bypass else 0,
        weights_per_pass=BLOCK_ROWS * CHUNK // 32,
    )


def instead_of_table(source: Source, batch: int) -> int:
    """Dynamic shared memory that lets no more blocks in than a kernel with a table has.

    That kernel fits into 48 registers on sm_90 and has five blocks there; one without it needs fewer registers.
    """
    room = TABLE_ROOM_BYTES - SUMS_BYTES * batch
    return max(source.shared_bytes, room) if source.shared_bytes else 0


def stream_plan(weight_format: WeightFormat, n: int, k: int) -> Plan:
    """What reads the words and scales of a tensor-core product and computes nothing.

    At least as many of its blocks fit on a multiprocessor as of fused's: it is a floor.

    Raises:
        ValueError: k does not divide into whole chunks.
    """
    fused = gemv_plan("mma", "fused", weight_format, n, k, 1)
    defines = {
        "TILE_WIDTH": ROW_WORDS * weight_format.weights_per_word,
        "CHUNK_SCALES": CHUNK // weight_format.group_size if weight_format.group_size else 0,
        "WIDE_SCALES": int(weight_format.scale_bits == 32),
        "RESIDENT": fused.defines["RESIDENT"],
    }
    source = Source("stream.cu", "stream", (1, 8), defines)
    shared_bytes = instead_of_table(fused.source, 1)
    return replace(fused, source=source, defines=defines, shared_bytes=shared_bytes)


def dequantize_plan(weight_format: WeightFormat, n: int, k: int) -> Plan:
    """What writes the whole matrix.

    Raises:
        ValueError: there are fewer rows than a thread owns, or k does not divide into 16-byte stores.
    """
    if n < DEQUANTIZE_ROWS or k % DEQUANTIZE_COLUMNS:
        raise ValueError(
            f"the CUDA dequantize kernel needs at least {DEQUANTIZE_ROWS} rows and k divisible by "
            f"{DEQUANTIZE_COLUMNS}, but W is {n} x {k}."
        )
    source = SOURCES["dequantize"][weight_format.name]
    columns = DEQUANTIZE_BLOCK * DEQUANTIZE_COLUMNS
    return Plan(
        source=source,
        defines=source.defines,
        grid=(-(-n // DEQUANTIZE_ROWS), -(-k // columns)),
        block=DEQUANTIZE_BLOCK,
        shared_bytes=0,
        weights_per_pass=DEQUANTIZE_ROWS * DEQUANTIZE_COLUMNS,
    )


def stored_scales(weights: Weights) -> NDArray[Any]:
    """Scales [n, groups] as the kernels read them: fp16 or fp32."""
    return weights.scales.astype(np.float32 if weights.format.scale_bits == 32 else np.float16)


def gemv_arrays(
    weights: Weights, variant: str, bypass: bool, plain: bool = False
) -> dict[str, NDArray[Any]]:
    """Words and scales in the order of a variant: row by row (packing.py), or in tiles (layout.py).

    Args:
        weights: what to lay out.
        variant: "simt" or "mma".
        bypass: the words of the bypass arm.
        plain: codes stay where packing.py has them within a word.

    Raises:
        ValueError: rows do not divide into tiles.
    """
    words, scales = weights.bypass_words if bypass else weights.words, stored_scales(weights)
    if variant == "simt":
        return {"words": words, "scales": scales}
    source = SOURCES[variant][weights.format.name]
    if source.order and not (bypass or plain):
        words = reorder(words, weights.format.bits, source.order)
    return {"words": tile_words(words), "scales": tile_scales(scales)}

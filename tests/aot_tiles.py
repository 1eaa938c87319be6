"""Compile the tile functions on their own, to PTX that the emulator runs over every input."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import triton
import triton.language as tl

from kernels.triton import tiles, tuned
from kernels.triton.plan import FP8_CAPABILITY
from tests.aot_ptx import Ptx
from tests.aot_triton import in_workers

BLOCK = 256
NUM_WARPS = 4


@dataclass(frozen=True)
class Tile:
    """One tile function for one target."""

    bits: int
    encoding: str
    has_zero: bool
    tuned: bool
    capability: int


@triton.jit
def numbers_kernel(
    words_ptr,
    zeros_ptr,
    out_ptr,
    BITS: tl.constexpr,  # noqa: N803
    ENCODING: tl.constexpr,  # noqa: N803
    HAS_ZERO: tl.constexpr,  # noqa: N803
    TUNED: tl.constexpr,  # noqa: N803
    HAS_FP8: tl.constexpr,  # noqa: N803
    BLOCK: tl.constexpr,  # noqa: N803
):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    words = (tl.load(words_ptr + at),)
    zero = tl.load(zeros_ptr + at)
    for i in tl.static_range(32 // BITS):
        if TUNED:
            known = tuned.constants(zero, BITS, ENCODING, HAS_ZERO)
            number = tuned.number(words, i, known, BITS, ENCODING, HAS_FP8)
        else:
            known = tiles.zero_point(zero, BITS, HAS_ZERO)
            number = tiles.number(words, i, known, BITS, ENCODING) * tuned.unit(BITS, ENCODING)
        tl.store(out_ptr + at * (32 // BITS) + i, number)


def compile_tiles(jobs: list[Tile], cache: Path) -> dict[Tile, Ptx]:
    """The PTX of every tile function; launch it on a grid of one program per 256 words."""
    answers = in_workers("tests.aot_tiles", jobs, cache)
    return {job: Ptx(**a | {"grid": tuple(a["grid"])}) for job, a in answers.items()}


def emit(tile: Tile) -> Ptx:
    """Compile one tile function; only in a process that does not interpret."""
    from bench.static.compile import build_kernel

    signature = {"words_ptr": "*i32", "zeros_ptr": "*u8", "out_ptr": "*fp32"}
    constexprs = {
        "BITS": tile.bits,
        "ENCODING": tile.encoding,
        "HAS_ZERO": tile.has_zero,
        "TUNED": tile.tuned,
        "HAS_FP8": tile.encoding == "e4m3" and tile.capability >= FP8_CAPABILITY,
        "BLOCK": BLOCK,
    }
    options = {"num_warps": NUM_WARPS, "enable_fp_fusion": True}
    built = build_kernel(numbers_kernel, signature, constexprs, tile.capability, **options)
    return Ptx.of(built, (1,))


if __name__ == "__main__":
    for fields in json.load(sys.stdin):
        print(json.dumps(asdict(emit(Tile(*fields)))), flush=True)

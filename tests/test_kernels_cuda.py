"""The CUDA C++ kernels: their layouts, their results in the emulator, and bugs that those would show."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from cuda_kernels import random_x, run

from bench.static.ptx import FaultError, Rounding
from kernels import packing
from kernels.cuda import KERNELS, TOLERANCE
from kernels.cuda.layout import reorder, tile_scales, tile_words
from kernels.cuda.plan import FOLDER, INT4_ORDER, NF4_ORDER, SOURCES, gemv_plan
from kernels.formats import find_format

MMA, SIMT = tuple(SOURCES["mma"]), tuple(SOURCES["simt"])
FOLDED = (
    "int4-g128",
    "int8-ch",
    "int8-g128",
)  # magic numbers and zero point subtracted after the loop
RAGGED = (41, 1280)  # rows that fill no block; ten chunks of 128 columns for eight warps

# ---- layouts ------------------------------------------------------------------------------------


def test_a_lane_finds_its_words_together() -> None:
    words = np.arange(64 * 24, dtype=np.uint32).reshape(64, 24)
    tiles = tile_words(words)
    assert tiles.shape == (2, 3, 2, 32, 4)
    for block, part, tile, g, t in ((0, 0, 0, 0, 0), (1, 2, 1, 5, 3), (0, 1, 1, 7, 2)):
        row, column = 32 * block + 16 * tile + g, 8 * part + 2 * t
        expected = [words[row, column], words[row + 8, column]]
        expected += [words[row, column + 1], words[row + 8, column + 1]]
        assert tiles[block, part, tile, 4 * g + t].tolist() == expected
    assert sorted(tiles.ravel()) == list(range(64 * 24))


def test_scales_follow_their_rows_and_missing_rows_are_zeros() -> None:
    scales = np.arange(1, 41 * 3 + 1, dtype=np.float32).reshape(41, 3)
    tiles = tile_scales(scales)
    assert tiles.shape == (2, 3, 2, 8, 2)
    assert tiles[0, 2, 1, 3].tolist() == [scales[19, 2], scales[27, 2]]
    assert tiles[1, 0, 0, 0].tolist() == [scales[32, 0], scales[40, 0]]
    assert not tiles[1, :, 1].any()
    assert not tiles[1, :, 0, 1:, 1].any()


def test_rows_that_do_not_divide_into_tiles_are_refused() -> None:
    with pytest.raises(ValueError, match="8 words of a row at a time, but a row has 12"):
        tile_words(np.zeros((32, 12), np.uint32))
    with pytest.raises(ValueError, match="128 columns at a time, but k is 192"):
        gemv_plan("mma", "fused", find_format("nf4-b64"), 32, 192, 1)


@pytest.mark.parametrize(
    ("order", "weights"),
    [(INT4_ORDER, (0, 4, 2, 6, 1, 5, 3, 7)), (NF4_ORDER, (0, 1, 2, 3, 4, 5, 6, 7))],
)
def test_codes_move_within_a_word(order: tuple[int, ...], weights: tuple[int, ...]) -> None:
    codes = np.arange(8, dtype=np.uint8)[None]
    [word] = reorder(packing.pack(codes, 4), 4, order)[0]
    assert tuple(int(word) >> 4 * i & 15 for i in range(8)) == weights


# ---- numbers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("format_name", MMA)
def test_tensor_core_products_are_right(format_name: str) -> None:
    """`make proof` runs the other architectures, batches and arms."""
    error, _, _ = run("mma", "fused", format_name, *RAGGED, batch=3, arch="90")
    assert error < TOLERANCE / 2


@pytest.mark.parametrize("format_name", ["int4-g128", "nf4-b64", "int8-ch", "fp8_e4m3-b128"])
def test_the_bypass_multiplies_the_words_themselves(format_name: str) -> None:
    error, _, _ = run("mma", "bypass", format_name, *RAGGED, batch=2)
    assert error < TOLERANCE / 2


@pytest.mark.parametrize("arm", ["bypass", "fused"])
def test_the_product_without_tensor_cores_is_right(arm: str) -> None:
    error, _, _ = run("simt", arm, "int4-g128", *RAGGED, arch="90")
    assert error < TOLERANCE


@pytest.mark.parametrize("format_name", MMA)
def test_the_stream_reads_every_word_and_scale_once(format_name: str) -> None:
    error, _, report = run("mma", "stream", format_name, *RAGGED)
    assert error == 0
    _, _, fused = run("mma", "fused", format_name, *RAGGED)
    words = [[a.bytes for a in r.accesses if "no_allocate" in a.opcode] for r in (report, fused)]
    assert sum(words[0]) == sum(words[1])


@pytest.mark.proof
@pytest.mark.parametrize("arch", ["80", "86", "89", "90", "120"])
@pytest.mark.parametrize("format_name", MMA)
@pytest.mark.parametrize("arm", ["bypass", "fused"])
def test_products_are_right_everywhere(arch: str, format_name: str, arm: str) -> None:
    for batch in (1, 2, 5, 8):
        assert run("mma", arm, format_name, *RAGGED, batch=batch, arch=arch)[0] < TOLERANCE / 2


@pytest.mark.parametrize("format_name", SOURCES["dequantize"])
@pytest.mark.parametrize("arch", ["80", pytest.param("90", marks=pytest.mark.proof)])
def test_dequantized_weights_are_those_of_the_reference_to_the_last_bit(
    format_name: str, arch: str
) -> None:
    """sm_80 widens fp8 by moving bits, sm_90 by an instruction."""
    error, _, _ = run("dequantize", "dequantize", format_name, *RAGGED, arch=arch)
    assert error == 0


# How far y is off before fp16 rounds it, relative to the largest |y|. The magic numbers add about 1000 |x| to a
# sum and are subtracted again: where all x are positive, most digits go. Models of how tensor cores truncate
# (tensor_core.Rounding): None is one correct rounding; V100's, with 4 terms and no extra bit, is the worst.
FOLDING = {
    ("int4-g128", "normal"): (3e-5, 6e-5),
    ("int4-g128", "positive"): (2e-4, 6e-3),
    ("int8-ch", "normal"): (1e-5, 2e-5),
    ("int8-ch", "positive"): (1e-4, 3e-3),
}


@pytest.mark.parametrize(("format_name", "values"), FOLDING)
def test_folding_the_offset_costs_no_more_digits_than_stated(format_name: str, values: str) -> None:
    x = random_x(1, 2048)
    x = np.abs(x) if values == "positive" else x
    exact, truncated = FOLDING[format_name, values]
    error, _, _ = run("mma", "fused", format_name, 32, 2048, x=x, wide=True)
    assert error < exact
    for rounding in (Rounding(4, 0), Rounding(8, 1), Rounding(16, 2)):
        error, _, _ = run("mma", "fused", format_name, 32, 2048, x=x, rounding=rounding, wide=True)
        assert error < truncated


def test_fp8_has_no_offset_and_loses_nothing_to_truncation() -> None:
    error, _, _ = run("mma", "fused", "fp8_e4m3-ch", 32, 2048, rounding=Rounding(4, 0), wide=True)
    assert error < 1e-6


# ---- memory -------------------------------------------------------------------------------------


def test_lanes_look_up_different_pairs_without_waiting_for_each_other() -> None:
    _, _, report = run("mma", "fused", "nf4-b64", *RAGGED)
    blocks, chunks = -(-RAGGED[0] // 32), RAGGED[1] // 128
    loads = [a for a in report.accesses if a.space == "shared" and not a.write]
    shared = [a for a in loads if a.requests == blocks * chunks]
    assert len(shared) == 64  # look-ups of a lane in one pass of the loop
    assert all(a.passes == a.ideal_passes for a in shared)


@pytest.mark.parametrize("format_name", ["int4-g128", "int8-ch"])
def test_a_warp_reads_its_words_side_by_side_and_each_once(format_name: str) -> None:
    n, k = 64, 1024
    _, _, report = run("mma", "fused", format_name, n, k)
    words = [a for a in report.accesses if "L1::no_allocate" in a.opcode]
    assert sum(a.bytes for a in words) == n * k * find_format(format_name).bits // 8
    assert all(a.sector_efficiency == 1 for a in words)


# ---- bugs ---------------------------------------------------------------------------------------

MUTATIONS = {
    "a wrong magic number": ("int4-g128", "int4_mma.cu", "both(0x6400)", "both(0x6000)"),
    "a wrong offset": ("int4-g128", "int4_mma.cu", "LOW_OFFSET = 1032", "LOW_OFFSET = 1024"),
    "a shift left out": ("int4-g128", "int4_mma.cu", "low(v >> 8), x)", "low(v), x)"),
    "rows exchanged": (
        "int8-ch",
        "int8_mma.cu",
        "first(w.x), first(w.y)",
        "first(w.y), first(w.x)",
    ),
    "bytes exchanged": ("int8-ch", "int8_mma.cu", "0x5352", "0x5253"),
    "a scale left out": ("fp8_e4m3-ch", "fp8_mma.cu", "UNIT * (", "1.0f * (1.0f + 0 * "),
    "a wrong level": ("nf4-b64", "nf4.cuh", "-0.0910", "-0.0810"),
    "a warp forgotten": ("fp8_e4m3-ch", "tiles.cuh", "w = 0; w < WARPS", "w = 1; w < WARPS"),
    "a row of x for another": ("int4-g128", "tiles.cuh", "min(g, BATCH - 1)", "0"),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_planted_bug_is_a_wrong_result(name: str, tmp_path: Path) -> None:
    format_name, file, right, wrong = MUTATIONS[name]
    error, _, _ = run(
        "mma", "fused", format_name, 32, 1024, 2, folder=planted(tmp_path, file, right, wrong)
    )
    assert not error < TOLERANCE


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("nf4_pairs.cu", "    __syncthreads();\n}"),
        ("tiles.cuh", "    __syncthreads();\n    const int row"),
    ],
)
def test_a_missing_barrier_is_a_fault(file: str, line: str, tmp_path: Path) -> None:
    folder = planted(tmp_path, file, line, line.replace("    __syncthreads();\n", ""))
    with pytest.raises(FaultError):
        run("mma", "fused", "nf4-b64", 32, 1024, folder=folder)


def planted(folder: Path, file: str, right: str, wrong: str) -> Path:
    """A copy of the sources with one text replaced."""
    for path in (*FOLDER.glob("*.cu"), *FOLDER.glob("*.cuh")):
        shutil.copy(path, folder)
    source = (folder / file).read_text()
    assert source.count(right) == 1
    (folder / file).write_text(source.replace(right, wrong))
    return folder


# ---- records ------------------------------------------------------------------------------------


def test_every_kernel_is_listed_once_and_products_have_a_bypass() -> None:
    rows = [(k.arm, k.variant, *k.formats) for k in KERNELS]
    assert len(set(rows)) == len(rows)
    fused = {row[1:] for row in rows if row[0] == "fused"}
    assert fused == {row[1:] for row in rows if row[0] == "bypass"}
    assert {row[1:] for row in rows if row[0] == "stream"} == {("mma", f) for f in MMA}
    assert fused == {("simt", f) for f in SIMT} | {("mma", f) for f in MMA}
    assert {row[2] for row in rows if row[0] == "dequantize"} == set(SOURCES["dequantize"])
    assert tuple(f for f in MMA if f.startswith("int")) == FOLDED

"""Which launch configuration is the default: by format and batch, and by how many programs a board needs."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kernels.formats import FORMATS, WeightFormat, find_format
from kernels.kernel import LADDER
from kernels.triton import configs, dequantize, gemm, gemv, native, plan_of
from profiles.specs import load_gpu, load_gpus

INT4 = find_format("int4-g128")
H100, A100, RTX4090 = (int(load_gpu(key).sms.value) for key in ("h100", "a100", "rtx4090"))
LEAST_SHARED_BYTES = (
    99 * 1024 - 1024
)  # of a program, from compute capability 8.6 on; sm_120 keeps some


@pytest.mark.parametrize(
    ("n", "batch", "multiprocessors", "tile"),
    [  # rows of x, rows of W, warps, stages
        (4096, 64, None, (64, 64, 4, 3)),
        (4096, 64, A100, (64, 64, 4, 4)),  # of twice 64 programs 20 would wait for one of 108
        (4096, 64, H100, (32, 64, 4, 5)),  # and none for one of 132,
        (4096, 64, RTX4090, (32, 64, 4, 5)),  # or of 128
        (4096, 65, H100, (64, 64, 4, 4)),  # two tiles along the batch
        (4224, 64, H100, (32, 64, 4, 5)),  # 66 programs
        (4225, 64, H100, (64, 64, 4, 4)),  # 67
        (6144, 64, H100, (64, 64, 4, 4)),
        (6144, 32, H100, (32, 64, 4, 5)),
        (4096, 32, H100, (16, 64, 4, 5)),
        (1024, 64, H100, (16, 32, 4, 5)),  # no fewer rows of x: now rows of W
        (1024, 256, H100, (32, 64, 4, 5)),
        (41, 72, H100, (16, 32, 4, 5)),  # no smaller tile
        (4096, 16, None, (16, 32, 2, 5)),
        (4096, 16, A100, (16, 32, 2, 5)),
        (4096, 16, H100, (16, 16, 2, 5)),
        (28672, 16, H100, (16, 32, 2, 5)),
        (1024, 16, H100, (16, 16, 2, 5)),
    ],
)
def test_a_tile_is_as_large_as_leaves_a_board_work(
    n: int, batch: int, multiprocessors: int | None, tile: tuple[int, ...]
) -> None:
    found = gemm.default_config(INT4, n, batch, multiprocessors)
    assert (found.block_b, found.block_n, found.num_warps, found.num_stages) == tile
    assert found.block_k == 128


@pytest.mark.parametrize(
    ("n", "batch", "tile"),
    [
        (4096, 16, (16, 32, 4, 5)),
        (1024, 16, (16, 32, 4, 5)),
        (4096, 64, (32, 64, 4, 5)),
        (28672, 64, (64, 64, 4, 5)),
        (1024, 64, (16, 32, 4, 5)),
    ],
)
def test_native_is_cut_by_the_same_rule(n: int, batch: int, tile: tuple[int, ...]) -> None:
    found = native.default_gemm_config(n, batch, H100)
    assert (found.block_b, found.block_n, found.num_warps, found.num_stages) == tile


@pytest.mark.parametrize("variant", ["gemv", "gemv-ptx"])
@pytest.mark.parametrize("capability", [80, 90, 100, 120])
def test_every_stage_of_gemv_is_cut_alike(variant: str, capability: int) -> None:
    """Whatever the format: registers of its own would be a second difference between two stages.

    Those that read no x have no rows of it in their tile.
    """
    for weight_format in filter(lambda f: f.quantized, FORMATS):
        for batch in (1, 3, 16):
            problem = (weight_format, "fp16", 4096, 4096, batch, capability)
            plans = [plan_of(arm, variant, *problem) for arm in LADDER]
            words = {configs.words(plan).split(maxsplit=1)[1] for plan in plans}
            assert (len(words), len({plan.grid for plan in plans})) == (1, 1), problem


@pytest.mark.parametrize("variant", ["gemm", "gemm-ptx"])
def test_every_stage_of_the_ladder_is_cut_alike(variant: str) -> None:
    """Or their differences would not be those of one constant."""
    problem = (INT4, "fp16", 4096, 4096, 64, 90)
    plans = [plan_of(arm, variant, *problem, multiprocessors=H100) for arm in LADDER]
    assert {configs.words(plan) for plan in plans} == {
        "block_b=32 block_n=64 block_k=128 num_warps=4 num_stages=5 maxnreg=255"
    }
    assert {plan.grid for plan in plans} == {(64, 2)}


@pytest.mark.parametrize(
    "multiprocessors", sorted({int(g.sms.value) for g in load_gpus().values()})
)
def test_what_is_in_flight_fits_into_the_smallest_shared_memory(multiprocessors: int) -> None:
    """Words and x of every step but one, and the dequantized tile: as Triton 3.9 lays them out on sm_89."""
    for weight_format in FORMATS:
        if not weight_format.quantized:
            continue
        for n in (41, 1024, 4096, 6144, 28672):
            for batch in (16, 17, 64, 256):
                c = gemm.default_config(weight_format, n, batch, multiprocessors)
                words = c.block_n * c.block_k * weight_format.bits // 8
                step_bytes = words + 2 * c.block_b * c.block_k
                needed = (c.num_stages - 1) * step_bytes + 2 * c.block_n * c.block_k
                assert needed <= LEAST_SHARED_BYTES, (weight_format.name, n, batch)


@pytest.mark.parametrize(
    ("arm", "variant", "n", "batch", "other"),
    [
        ("fused", "gemm-ptx", 4096, 64, True),
        ("bypass", "gemm", 4096, 64, True),
        ("fused", "gemm", 28672, 16, False),  # the same tile on every board
        ("native", "gemm", 28672, 64, False),
        ("native", "gemm", 4096, 64, True),
        ("fused", "gemv-ptx", 1024, 1, False),
        ("dequantize", "ptx", 1024, 1, False),
        ("upcast", "gemm", 1024, 64, False),
    ],
)
def test_a_board_is_named_only_where_it_matters(
    arm: str, variant: str, n: int, batch: int, other: bool
) -> None:
    assert (configs.default_for(arm, variant, INT4, n, batch, H100) is not None) == other


@pytest.mark.parametrize(
    ("name", "k", "warps"),
    [
        ("int4-g128", 4096, 2),  # a lane reads 32 weights: 64 lanes, 2048
        ("int4-g128", 14336, 2),
        ("int8-ch", 4096, 2),
        ("int8-g32", 4096, 4),  # 16 weights
        ("int8-g32", 1024, 2),
        ("int2-g128", 4096, 2),  # 64
        ("int2-g128", 14336, 1),
    ],
)
def test_a_step_of_gemv_is_2048_weights(name: str, k: int, warps: int) -> None:
    assert gemv.default_config(find_format(name), k, 1).num_warps == warps


def test_a_lane_of_dequantize_writes_16_bytes_of_each_row() -> None:
    config = dequantize.Config(block_n=4, chunks=1, num_warps=2)
    plan = plan_of("dequantize", "ptx", INT4, "fp16", 4098, 14336, 1, 90, config)
    assert (config.block_k, plan.grid) == (8 * 64, (1025, 28))
    assert configs.words(plan) == "block_n=4 block_k=512 num_warps=2 num_stages=1"
    wide = plan_of("dequantize", "ptx", INT4, "fp16", 4096, 14336, 1, 90, replace(config, chunks=4))
    assert wide.grid == (1024, 7)


@pytest.mark.parametrize("weight_format", [f for f in FORMATS if f.quantized], ids=lambda f: f.name)
def test_the_grid_of_dequantize_holds_its_default(weight_format: WeightFormat) -> None:
    """So that a ranking shows it among the others."""
    grid = configs.grid("dequantize", "ptx", weight_format, 1, 90)
    assert dequantize.default_config(weight_format) in grid
    assert len(set(grid)) == len(grid) == 18

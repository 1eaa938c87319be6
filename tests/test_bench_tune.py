"""bench.tune: it finds what was planted, says what it chose, and does not use what is stale."""

from __future__ import annotations

import itertools
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import triton
from typer.testing import CliRunner

import bench.tune
from bench.measure.devices import Problem
from bench.measure.devices.simulated import BOARDS, Scenario, SimulatedDevice
from bench.measure.tuning import FRESH_BLOCKS, Outcome, tune
from bench.static.audit import Audit, Job, plan_for
from bench.static.cost import Problem as Shape
from bench.static.tuning import modelled
from kernels import packing
from kernels.formats import find_format
from kernels.kernel import Configuration, Kernel, Launch
from kernels.triton import KERNELS, configs, dequantize, gemv, lowp
from kernels.unfused import compose
from profiles import tuned
from profiles.specs import load_gpu
from profiles.tuned import Tuned, TunedBoard, load_tuned, save_tuned
from tests.triton_cases import run

PROBLEM = Problem("up", 14336, 4096, 1, find_format("int4-g128"), "fp16")
CANDIDATES = tuple(gemv.Config(n, w) for n in (1, 2, 4) for w in (2, 4))
BEST = gemv.Config(2, 4)
BOARD = "NVIDIA Planted 100"


def tuned_on(scenario: Scenario) -> Outcome:
    device = SimulatedDevice(BOARDS["h100"], scenario)
    (kernel,) = (k for k in device.kernels(PROBLEM) if k.arm == "fused")
    return tune(device, PROBLEM, kernel, CANDIDATES, "graph", seed=1)


def planted(factors: dict[gemv.Config | None, float], noise: float = 0.01) -> Scenario:
    return Scenario(noise=noise, block_noise=0.03, configurations=tuple(factors.items()))


def test_the_planted_best_is_found_with_its_lead() -> None:
    slower = dict(zip(CANDIDATES, itertools.count(1.06, 0.03), strict=False))
    outcome = tuned_on(planted(slower | {BEST: 0.92}))
    assert outcome.config == BEST
    assert outcome.low < 1 / 0.92 < outcome.high
    assert outcome.high - outcome.low < 0.03
    assert outcome.blocks == FRESH_BLOCKS
    assert len(outcome.median_s) == len(CANDIDATES) + 1


def test_the_default_stands_where_nothing_is_faster() -> None:
    """All alike: one of them wins the pilot by luck, and the fresh blocks do not confirm it."""
    outcome = tuned_on(planted(dict.fromkeys(CANDIDATES, 1.0)))
    assert (outcome.config, outcome.speedup) == (None, 1.0)


def test_a_wrong_default_is_no_choice() -> None:
    with pytest.raises(ValueError, match=r"default configuration failed: off by 0\.5"):
        tuned_on(Scenario(errors=(("fused", 0.5),)))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A board that is here, and a folder of its own for what was tuned on it."""
    monkeypatch.setattr(configs, "board", lambda: (BOARD, 90))
    monkeypatch.setattr(configs, "load_tuned", lambda name: load_tuned(name, tmp_path))
    tuned.load_tuned.cache_clear()
    return tmp_path


def choice(**other: object) -> Tuned:
    fields = {
        "arm": "fused", "variant": "gemv-ptx", "format": "int4-g128", "activation": "fp16",
        "n": 4096, "k": 14336, "batch": 1, "config": {"block_n": 8, "num_warps": 2},
        "speedup": 1.08, "low": 1.05, "high": 1.1, "blocks": 21, "candidates": 13,
    }  # fmt: skip
    return Tuned.model_validate(fields | other)


def board_with(*choices: Tuned, **other: str) -> TunedBoard:
    found = TunedBoard(
        board=BOARD, kind="measured", created=datetime(2026, 11, 22, tzinfo=UTC),
        triton=triton.__version__, sources=configs.sources(), choices=choices,
    )  # fmt: skip
    return found.model_copy(update=other)


def ladder(arm: str) -> Kernel:
    wanted = (find_format("int4-g128"), "fp16", 1)
    (kernel,) = (
        k for k in KERNELS if (k.arm, k.variant) == (arm, "gemv-ptx") and k.accepts(*wanted)
    )
    return kernel


def asked(arm: str, batch: int = 1) -> tuple[object, str]:
    found = ladder(arm).configuration(find_format("int4-g128"), "fp16", 4096, 14336, batch)
    return found.config, found.text


def test_what_was_written_is_what_is_read(folder: Path) -> None:
    found = board_with(choice(), choice(batch=2, config={}))
    path = save_tuned(found, folder)
    assert path.name == "nvidia-planted-100.toml"
    assert load_tuned(BOARD, folder) == found


@pytest.mark.parametrize("arm", ["fused", "bypass", "stream"])
def test_the_whole_ladder_takes_the_choice_of_fused(folder: Path, arm: str) -> None:
    save_tuned(board_with(choice()), folder)
    config, text = asked(arm)
    assert config == gemv.Config(block_n=8, num_warps=2)
    assert text.startswith("tuned, block_b=1 block_n=8 ")
    assert " num_warps=2" in text


def test_untuned_problems_and_boards_say_so(folder: Path) -> None:
    config, text = asked("fused")
    assert config is None
    assert text.startswith("untuned, block_b=1 block_n=4 ")
    save_tuned(board_with(choice()), folder)
    config, text = asked("fused", batch=2)
    assert (config, text[:9]) == (None, "untuned, ")


def test_dequantize_has_one_choice_for_all_batches_and_unfused_names_both(folder: Path) -> None:
    int4 = find_format("int4-g128")
    first = next(
        k
        for k in KERNELS
        if (k.arm, k.variant) == ("dequantize", "ptx") and k.accepts(int4, "fp16", 1)
    )
    native = next(
        k for k in KERNELS if (k.arm, k.variant, k.implementation) == ("native", "gemm", "triton")
    )
    problem = (int4, "fp16", 4096, 14336, 64)
    assert (
        first.configuration(*problem).text
        == "untuned, block_n=8 block_k=1024 num_warps=4 num_stages=1"
    )
    unfused = compose(first, native)
    assert unfused.configuration(*problem) == Configuration(
        None,
        "untuned, block_n=8 block_k=1024 num_warps=4 num_stages=1 (dequantize); "
        "untuned, block_b=64 block_n=64 block_k=64 num_warps=4 num_stages=5 maxnreg=255 (native)",
    )
    fields = {"block_n": 2, "chunks": 4, "num_warps": 8}
    save_tuned(board_with(choice(arm="dequantize", variant="ptx", config=fields)), folder)
    best = dequantize.Config(**fields)
    assert first.configuration(*problem) == Configuration(
        best, "tuned, block_n=2 block_k=8192 num_warps=8 num_stages=1"
    )
    found = unfused.configuration(*problem)
    assert found.config == (best, None)
    assert found.text.startswith("untuned, block_b=64 ")
    assert found.text.endswith(
        "; tuned, block_n=2 block_k=8192 num_warps=8 num_stages=1 (dequantize)"
    )


def test_unfused_hands_each_launch_its_configuration() -> None:
    """Interpreted: a tile of 2 rows and 1024 columns, and the product right."""
    weights = packing.random_weights(5, 384, find_format("int4-g128"), "fp16", seed=7)
    x = packing.random_activations(3, 384, "fp16", seed=7)
    given: list[object] = []

    def kernel(arm: str, variant: str) -> Kernel:
        found = next(
            k for k in KERNELS
            if (k.arm, k.variant, k.implementation) == (arm, variant, "triton")
            and k.accepts(weights.format if arm == "dequantize" else find_format("fp16"), "fp16", 3)
        )  # fmt: skip

        def bind(*arguments: Any, config: object | None = None) -> Launch:
            given.append(config)
            return found.bind(*arguments, config=config)

        return replace(found, bind=bind)

    config = (dequantize.Config(2, 1, 4), gemv.Config(1, 4))
    unfused = compose(kernel("dequantize", "default"), kernel("native", "gemv"))
    out = run(replace(unfused, bind=partial(unfused.bind, config=config)), weights, x, "cpu")
    assert given == list(config)
    expected = packing.reference("unfused", weights, x, unfused.reading)
    assert np.abs(out - expected).max() <= 2e-3 * np.abs(expected).max()


def test_a_default_that_won_is_tuned(folder: Path) -> None:
    save_tuned(board_with(choice(config={})), folder)
    config, text = asked("fused")
    assert (config, text[:7]) == (None, "tuned, ")


@pytest.mark.parametrize(
    ("change", "said"),
    [({"triton": "1.0"}, "found with Triton 1.0, "), ({"sources": "0"}, "other kernel sources")],
)
def test_stale_choices_are_said_and_ignored(
    folder: Path, change: dict[str, str], said: str
) -> None:
    save_tuned(board_with(choice(), **change), folder)
    config, text = asked("fused")
    assert config is None
    assert text.startswith("untuned (stale: ")
    assert said in text


def test_sources_are_what_kernels_are_compiled_from(tmp_path: Path) -> None:
    (tmp_path / "triton").mkdir()
    for name in ("formats.py", "triton/gemv.py"):
        (tmp_path / name).write_text("a = 1\n")
    before = configs.sources(tmp_path)
    (tmp_path / "triton" / "gemv.py").write_text("a = 2\n")
    configs.sources.cache_clear()
    assert configs.sources(tmp_path) != before


def test_a_damaged_file_is_named(folder: Path) -> None:
    path = tuned.path_of(BOARD, folder)
    path.write_text("board = [")
    with pytest.raises(ValueError, match=r"nvidia-planted-100\.toml is damaged .* delete it"):
        asked("fused")


def test_the_command_tunes_every_arm_with_a_grid() -> None:
    assert bench.tune.ARMS == configs.TUNABLE


def test_every_grid_holds_what_its_kernel_takes() -> None:
    int8, fp8 = find_format("int8-ch"), find_format("fp8_e4m3-ch")
    for arm, variant in (("fused", "gemv"), ("native", "gemm"), ("upcast", "gemm")):
        found = configs.grid(arm, variant, int8, 16, 90)
        assert len(set(found)) == len(found) <= 36
    assert {c.block_n for c in configs.grid("lowp", "dot", fp8, 1, 90)} == {64, 128}
    with pytest.raises(ValueError, match="multiplied in 16 bits"):
        lowp.plan(fp8, "fp16", 256, 256, 1, configs.grid("lowp", "dot", int8, 1, 80)[0], 90)


def test_a_spilling_kernel_has_no_modelled_time_and_a_crowded_one_a_longer() -> None:
    classes = {"int": 60, "half2": 60, "load": 9, "other": 10}
    audit = Audit(
        "gemv", 90, classes, 0, {128: 9}, True, weights=128, registers=56, num_warps=4,
        resident_warps=32,
    )  # fmt: skip
    gpu, job = load_gpu("h100"), Job("fused", "gemv-ptx", "int4-g128", "fp16", 1, 90)

    def asked(n: int, found: Audit) -> tuple[float | None, float | None, str]:
        return modelled(gpu, job, plan_for(job, n, 14336), found, Shape(n, 14336, 1))

    fine, even, reason = asked(132 * 4 * 16, audit)  # 16 programs of two warps fit
    uneven, worse, _ = asked(132 * 4 * 16 + 4, audit)
    assert (even, reason) == (1, "")
    assert fine is not None
    assert uneven is not None
    assert worse == pytest.approx(17 / (16 + 1 / 132))
    assert fine < uneven
    spilt = Audit(**{**vars(audit), "spill_instructions": 4})
    assert asked(4096, spilt)[::2] == (
        None,
        "spills: values go through local memory, which is not counted",
    )
    crowded = Audit(**{**vars(audit), "resident_warps": 0})
    assert asked(4096, crowded)[2] == "no program fits on a multiprocessor"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--gpu", "cpu"], "bench.tune times kernels on an NVIDIA GPU, and --gpu cpu is none here"),
        (["--static", "--gpu", "gpu9000"], "nothing is known of a GPU named 'gpu9000'"),
        (
            ["--static", "--arm", "stream"],
            "--arm takes fused, native, lowp, upcast, dequantize, not 'stream'",
        ),
        (["--batches", "0"], "--batches takes numbers from 1 to 256, not '0'"),
        (["--format", "int9"], "there is no weight format named 'int9'"),
        (["--model", "nobody"], "nobody"),
    ],
)
def test_usage_is_refused_in_one_sentence(arguments: list[str], said: str) -> None:
    app = bench.tune.typer.Typer()
    app.command()(bench.tune.main)
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert said in result.output
    assert len(result.output.strip().splitlines()) == 1


@pytest.mark.gpu
def test_a_real_board_is_tuned(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A small grid on the GPU that is here; the choice is read back by the kernel that it is for."""
    from bench.measure.devices import open_device

    device = open_device("cuda")
    kernel = ladder("fused")
    candidates = configs.grid("fused", "gemv-ptx", PROBLEM.format, 1, 80)[:4]
    outcome = tune(device, PROBLEM, kernel, candidates, "graph", seed=1)
    assert outcome.config in (None, *candidates)
    assert not outcome.refused

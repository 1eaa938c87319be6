"""The probes: their opcodes survive in machine code, their results are what clocks say, the rest is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cuda_kernels import module
from planted_profile import profile_of, sample_rows
from typer.testing import CliRunner

from bench.measure.devices import probes as runner
from bench.measure.devices.probes import latency_clocks, rate_per_clock, row, work_s
from bench.probe import add
from bench.static.cuda_audit import ARCHITECTURES, Proof, proofs, prove
from bench.static.ptx import launch
from bench.usage import UsageError
from kernels.cuda.plan import FOLDER
from kernels.cuda.probes import CAST, PROBES, THROUGHPUT, Probe
from profiles.reader import load_profile, write_profile

BY_NAME = {(p.name, p.role): p for p in PROBES}


def test_every_instruction_has_a_dependent_and_an_independent_chain() -> None:
    names = {"I2F", "I2FP", "F2F", "F2FP", "LOP3", "PRMT", "HFMA2", "SHFL", "LDS", "F2FP.E4M3"}
    assert {(p.name, p.role) for p in THROUGHPUT} == {
        (name, role) for name in names for role in ("dependent", "independent")
    }
    assert {p.role for p in CAST} == {"bypass", "fused"}


@pytest.mark.parametrize(
    "probe", [p for p in THROUGHPUT if p.role == "dependent"], ids=lambda p: p.name
)
def test_the_probed_instruction_survives(probe: Probe) -> None:
    """`make proof` looks at every probe and architecture."""
    proof = prove(probe, "90a")
    assert proof.failure is None
    assert proof.count == 16
    assert proof.others <= 4


def test_a_probe_that_was_optimized_away_is_seen() -> None:
    probe = BY_NAME["LOP3", "dependent"]
    assert Proof(probe, "90a", "LOP3.LUT", 1, 3).failure == "16 x LOP3 expected, 1 left"
    assert Proof(probe, "90a", "LOP3.LUT", 16, 3).failure is None
    assert (
        Proof(probe, "90a", "LOP3.LUT", 16, 17).failure
        == "17 other instructions beside 16 x LOP3.LUT"
    )


@pytest.mark.proof
def test_every_probed_instruction_survives_everywhere() -> None:
    found = list(proofs())
    assert {proof.arch for proof in found} == set(ARCHITECTURES)
    assert [proof for proof in found if proof.failure] == []


def test_the_fused_probe_has_what_the_bypass_has_not() -> None:
    """The words are changed and multiplied in both; only one of them makes numbers."""
    for name in ("int8 folded", "fp8_e4m3"):
        fused, bypass = (prove(BY_NAME[name, role], "90a") for role in ("fused", "bypass"))
        assert fused.count + fused.others - (bypass.count + bypass.others) in (16, 17)


# ---- what clocks mean ---------------------------------------------------------------------------


def test_rates_latencies_and_work_are_computed_as_stated() -> None:
    independent, dependent = BY_NAME["LOP3", "independent"], BY_NAME["LOP3", "dependent"]
    # 512 threads, 100 passes of 128 instructions in 102,400 clocks: 64 per clock
    assert rate_per_clock(independent, 512, 100, 102_400) == 64
    # one chain, 100 passes of 16 instructions in 8,000 clocks: 5 clocks each
    assert latency_clocks(dependent, 100, 8_000) == 5
    # 8 words of 8 weights, 10 passes, 1,000 threads: 640,000 weights
    assert work_s(BY_NAME["int4", "fused"], 1000, 10, 0.64) == 1e-6
    value = row("x", [*map(float, range(1, 12))], "clocks").value
    # the sign interval of eleven: x(2) to x(10) covers 98.8 %, x(3) to x(9) only 93.5 %
    assert (value.value, value.n, value.kind) == (6, 11, "measured")
    assert value.low is not None
    assert value.high is not None
    assert 2 < value.low < 3
    assert 9 < value.high < 10
    assert row("x", [3.0, 1.0, 2.0], "clocks").value.low is None


class FakeBoard:
    multi_processor_count, major, minor, L2_cache_size = 4, 8, 0, 1 << 20


def test_a_board_without_fp8_is_not_asked_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str]] = []

    def clocks_of(probe: Probe, blocks: int, threads: int) -> float:
        asked.append((probe.name, probe.role))
        assert (blocks, threads) == (4, 32 if probe.role == "dependent" else runner.THREADS)
        return probe.units * threads * runner.ITERATIONS / (64.0 if threads > 32 else 8.0)

    monkeypatch.setattr(runner.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(runner.torch.cuda, "get_device_properties", lambda index: FakeBoard)
    monkeypatch.setattr(runner, "missing", lambda: None)
    monkeypatch.setattr(runner, "clocks_of", clocks_of)
    for part in ("dequant_work", "bandwidth", "launch_times"):
        monkeypatch.setattr(runner, part, lambda *sizes: [])
    results = {r.name: r for r in runner.measure()}
    assert results["rate LOP3"].value.value == 64
    assert results["latency LOP3"] == row("latency LOP3", [4.0] * runner.ROUNDS, "clocks")
    assert not any("E4M3" in name for name in results)
    assert len(asked) == 2 * 9 * runner.ROUNDS


def test_without_a_gpu_the_command_says_so() -> None:
    import typer

    from bench.probe import main

    app = typer.Typer()
    app.command()(main)
    answer = CliRunner().invoke(app)
    assert answer.exit_code == 2
    assert answer.output == "error: the probes need an NVIDIA GPU, and PyTorch finds none.\n"


def test_probes_go_into_the_profile_of_the_same_board(tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    before = write_profile(profile_of(sample_rows()), None, path)
    rows = [row("rate LOP3", [63.0, 64.0, 63.5], "per clock and SM")]
    add(path, before.device.name, rows)
    after = load_profile(path)
    assert after.probes == tuple(rows)
    assert after.model_copy(update={"probes": ()}) == before
    with pytest.raises(UsageError, match=r"is of .*, but this is a toaster"):
        add(path, "a toaster", rows)


# ---- the memory probes do what they say ---------------------------------------------------------


def emulated(entry: str, block: int, *arguments: Any) -> Any:
    ptx = module(FOLDER / "bandwidth.cu", "80", ()).ptx
    return launch(ptx, entry, 3, block, list(arguments))


def test_the_read_probe_reads_everything_in_every_pass_and_copy_copies() -> None:
    count = 1000
    source = np.random.default_rng(7).integers(0, 1 << 32, 4 * count, dtype=np.uint32)
    report = emulated("read", 64, source, np.zeros(1, np.uint32), count, 2)
    assert report.bytes("global", write=False) == 2 * 16 * count
    assert report.sector_efficiency == 1
    target = np.zeros_like(source)
    report = emulated("copy", 64, source, target, count)
    assert (target == source).all()
    assert report.bytes("global", write=True) == 16 * count

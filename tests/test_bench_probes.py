"""The probes: their opcodes survive in machine code, their results are what clocks say, the rest is refused."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, date, datetime
from io import StringIO
from itertools import groupby
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any, get_args

import numpy as np
import pytest
from cuda_kernels import module
from planted_profile import profile_of, sample_rows
from pydantic import ValidationError
from rich.console import Console
from typer.testing import CliRunner, Result

from bench import probe as bench_probe
from bench.measure.devices import probes as runner
from bench.measure.devices.probes import latency_clocks, rate_per_clock, rate_row, row, work_s
from bench.probe import add
from bench.static import foreign, limits_table, sass
from bench.static.cost import InstructionCounts, KernelCost
from bench.static.cuda_audit import ARCHITECTURES, Proof, proofs, prove
from bench.static.limits import supply_demand
from bench.static.model import End, pipe_cycles
from bench.static.peers import load_peers
from bench.static.ptx import launch
from bench.usage import UsageError
from kernels.cuda.plan import FOLDER
from kernels.cuda.probes import CAST, PROBES, THROUGHPUT, Probe
from kernels.nvrtc import CudaError
from profiles import specs
from profiles.reader import load_profile, write_profile
from profiles.record import Quantity, absent
from profiles.schema import ProbeReport, ProbeRow
from profiles.specs import load_gpu, load_gpus, with_measured

BY_NAME = {(p.name, p.role): p for p in PROBES}


def test_every_instruction_has_a_dependent_and_an_independent_chain() -> None:
    names = {
        "I2F",
        "I2FP",
        "F2F",
        "F2FP",
        "LOP3",
        "PRMT",
        "HFMA2",
        "SHFL",
        "LDS",
        "F2FP.E4M3",
        "IMAD",
        "FFMA",
    }
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


def test_a_rate_that_no_multiprocessor_can_issue_is_refused() -> None:
    assert rate_row("rate LOP3", [64.0] * 10 + [128.0]).value.value == 64
    refused = rate_row("rate LOP3", [64.0] * 10 + [128.5])
    assert refused.value == absent(
        "refused: a round shows 128.5 instructions per clock, and a multiprocessor issues at most 128: its "
        "clocks are wrong"
    )
    gpu = load_gpu("a100")
    kept = with_measured(gpu, probed().model_copy(update={"rows": (refused,)}))
    assert kept.multiprocessor == gpu.multiprocessor


@pytest.mark.parametrize("role", ["dependent", "independent"])
def test_the_clock_is_read_between_barriers_for_it_stands_for_all_warps(role: str) -> None:
    """In machine code: all warps begin together, and none is still in the loop when the clock is read."""
    probe = BY_NAME["LOP3", role]
    image = module(FOLDER / probe.file, "90a", tuple(probe.defines.items())).cubin
    with NamedTemporaryFile(suffix=".cubin") as file:
        file.write(image)
        file.flush()
        [code] = foreign.disassemble(Path(file.name))[1].values()
    loop = sass.hot_path(code)
    kinds = ("bar" if i.is_any(("BAR.SYNC",)) else "clock" if "SR_CLOCK" in i.operands
             else "loop" if i in loop else "" for i in code)  # fmt: skip
    order = [kind for kind, _ in groupby(filter(None, kinds))][-5:]
    assert order == ["bar", "clock", "loop", "bar", "clock"]


class FakeBoard:
    name = "NVIDIA toaster"
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
    monkeypatch.setattr(runner, "cuda_compilers", lambda: {"cupy": "14.1", "nvrtc": None})
    monkeypatch.setattr(runner.torch.version, "cuda", "13.0")
    report = runner.measure(runner.here())
    assert (report.board, report.capability, report.sms) == ("NVIDIA toaster", "8.0", 4)
    assert report.toolchain == "CUDA 13.0, cupy 14.1"
    results = {r.name: r for r in report.rows}
    assert results["rate LOP3"].value.value == 64
    assert results["latency LOP3"] == row("latency LOP3", [4.0] * runner.ROUNDS, "clocks")
    assert not any("E4M3" in name for name in results)
    assert len(asked) == 2 * 11 * runner.ROUNDS


def command(*arguments: str) -> Result:
    import typer

    app = typer.Typer()
    app.command()(bench_probe.main)
    return CliRunner().invoke(app, list(arguments))


def test_without_a_gpu_the_command_says_so() -> None:
    answer = command()
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


# ---- measured rates in place of published ones --------------------------------------------------

SAID = "bench.probe on NVIDIA A100-SXM4-80GB, 2027-01-02, CUDA 13.0"


def probed(sms: int = 108, **rates: float) -> ProbeReport:
    """A report of an A100 with these rates, each within 1 %; with its read bandwidth and empty launch."""
    values = {f"rate {name.replace('_', '.')}": rate for name, rate in rates.items()}
    values |= {"read": 1800.0, "empty launch, graph": 1.5}
    return ProbeReport(
        board="NVIDIA A100-SXM4-80GB",
        capability="8.0",
        sms=sms,
        created=datetime(2027, 1, 2, tzinfo=UTC),
        toolchain="CUDA 13.0",
        rows=tuple(
            ProbeRow(name=name, unit="per clock and SM",
                     value=Quantity(value=v, low=0.99 * v, high=1.01 * v, n=11))
            for name, v in values.items()
        ),
    )  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where reports are read from, empty; what was read is forgotten again."""
    monkeypatch.setattr(specs, "MEASURED_FOLDER", tmp_path / "measured")
    load_gpus.cache_clear()
    yield tmp_path / "measured"
    load_gpus.cache_clear()


def test_none_is_committed() -> None:
    assert not specs.MEASURED_FOLDER.exists()
    assert [key for key, gpu in load_gpus().items() if specs.measured(gpu)] == []


def test_a_pipe_is_as_fast_as_the_slowest_of_its_instructions_and_the_published_stands_beside() -> (
    None
):
    gpu = with_measured(load_gpu("a100"), probed(LOP3=63.0, PRMT=32.0))
    assert gpu.multiprocessor is not None
    lanes = gpu.multiprocessor.integer_lanes
    assert (lanes.value, lanes.low, lanes.high) == (32.0, 0.99 * 32.0, 1.01 * 63.0)
    assert (lanes.sort, lanes.source, lanes.read_on) == ("measured", SAID, date(2027, 1, 2))
    assert {(other.value, other.sort) for other in lanes.others} == {
        (64.0, "toolchain"), (64.0, "datasheet"),
    }  # fmt: skip
    assert lanes.disputed
    assert gpu.multiprocessor.half2_lanes.sort == "datasheet"  # not probed here
    # 1,800 of 2,039 GB/s, and 1.5 us
    assert gpu.dram_efficiency is not None
    assert gpu.launch_s is not None
    assert gpu.dram_efficiency.value == pytest.approx(1800 / 2039)
    assert gpu.launch_s.value == pytest.approx(1.5e-6)
    assert sorted(specs.measured(gpu)) == ["dram_efficiency", "integer_lanes", "launch_s"]
    near = with_measured(load_gpu("a100"), probed(LOP3=63.6)).multiprocessor
    assert near is not None
    assert not near.integer_lanes.disputed  # 63.6 measured is the published 64


def test_rates_that_differ_in_the_last_digit_are_no_faster_pipe() -> None:
    """On an A100 conversions have no fast pipe: 16.1 against 15.9 does not make one."""
    kernel = load_peers()["awq-v1"].cost
    assert kernel.counts.fast_conversion > 0
    published = load_gpu("a100").multiprocessor
    noisy = with_measured(load_gpu("a100"), probed(I2F=15.9, I2FP=16.1, F2FP=16.1)).multiprocessor
    assert published is not None
    assert noisy is not None
    for end in ("value", "better", "worse"):
        before, after = (pipe_cycles(kernel, m, 1, end) for m in (published, noisy))
        assert after["integer"] == before["integer"]
        assert after["xu"] == pytest.approx(before["xu"], rel=0.02)


def load_pipes(name: str) -> specs.Multiprocessor:
    """As published."""
    pipes = load_gpu(name).multiprocessor
    assert pipes is not None
    return pipes


def reported(name: str, **rates: float) -> specs.Multiprocessor:
    """The multiprocessor of a board with these measured rates."""
    gpu = load_gpu(name)
    report = probed(sms=round(gpu.sms.value), **rates)
    pipes = with_measured(
        gpu, report.model_copy(update={"capability": gpu.capability})
    ).multiprocessor
    assert pipes is not None
    return pipes


def test_a_measured_rate_is_never_overruled_by_the_share_of_the_pipe_of_fp32() -> None:
    """Published is that an HFMA2 of a 4090 takes two of 128 lanes: 64 a clock, where 127 were measured."""
    kernel = KernelCost("k", "k", InstructionCounts(half2=16.0))
    rates = {"value": 127.0, "better": 1.01 * 127, "worse": 0.99 * 127}
    pipes = reported("rtx4090", HFMA2=127.0)
    for end in get_args(End):
        cycles = pipe_cycles(kernel, pipes, 1, end)
        assert max(cycles.values()) == pytest.approx(16 / rates[end])
    slots = pipes.half2_slots
    assert (slots.value, slots.sort, slots.source[:11]) == (128 / 127, "measured", "bench.probe")
    assert {(o.value, o.sort) for o in slots.others} == {(2, "assumed"), (1, "toolchain")}
    # as slow as its slots say, or slower: they stay; where it has a pipe of its own too
    assert reported("rtx4090", HFMA2=63.0).half2_slots == load_pipes("rtx4090").half2_slots
    assert reported("a100", HFMA2=63.0).half2_slots == load_pipes("a100").half2_slots
    assert pipes.imad_slots == load_pipes("rtx4090").imad_slots  # not probed


def test_integer_products_and_fp32_are_as_fast_as_measured() -> None:
    """Where IMAD ran at 64 a clock and FFMA at 32, an IMAD would take half a lane at most."""
    pipes = reported("a100", IMAD=64.0, FFMA=32.0)
    assert (pipes.imad_lanes.value, pipes.fp32_lanes.value) == (64, 32)
    assert (pipes.imad_lanes.sort, pipes.fp32_lanes.sort) == ("measured", "measured")
    assert pipes.imad_slots.value == 0.5
    kernel = KernelCost("k", "k", InstructionCounts(imad=24.0))
    assert pipe_cycles(kernel, pipes, 1)["fp32"] == pytest.approx(24 / 64)


def test_r_follows_what_was_measured_on_that_board_alone_and_says_so(folder: Path) -> None:
    """Limited by the slow unit: at half of its rate R is half."""
    kernel = load_peers()["gemlite-int8"]
    before = supply_demand(load_gpu("a100"), kernel.cost)
    assert (before.limiter, load_gpu("a100").multiprocessor.conversion_lanes.value) == ("XU", 16)  # type: ignore[union-attr]
    folder.mkdir()
    (folder / "a100-80.json").write_text(probed(I2F=8.0, I2FP=8.0, F2FP=8.0).model_dump_json())
    load_gpus.cache_clear()
    gpu, other = load_gpu("a100-80"), load_gpu("a100-40")
    after = supply_demand(gpu, kernel.cost)
    assert (after.value, after.limiter) == (pytest.approx(before.value / 2), "XU")  # type: ignore[operator]
    assert after.low == pytest.approx(0.99 * before.value / 2 * before.low / before.value, rel=1e-6)  # type: ignore[operator]
    assert specs.measured(other) == {}
    lines = limits_table.peer_lines([gpu, other], [kernel], 1)
    console = Console(width=300, record=True, file=StringIO())
    console.print(limits_table.render([gpu, other], lines, 1))
    text = console.export_text()
    assert f"{after.value:.2f}/" in text
    assert (
        "Measured, not published, are of a100-80 dram_efficiency, launch_s, conversion_lanes, "
        f"fast_conversion_lanes: {SAID}." in text
    )
    rates = {d["gpu"]: d["measured_rates"] for d in limits_table.to_data([gpu, other], lines, 1)}
    assert rates["a100-40"] == []
    assert "conversion_lanes" in rates["a100-80"]


def test_a_report_of_another_board_or_kind_is_refused(folder: Path) -> None:
    with pytest.raises(
        ValueError, match=r"ran on NVIDIA A100-SXM4-80GB, with 108 .* h100-sxm has 132 of 9\.0"
    ):
        with_measured(load_gpu("h100"), probed())
    with pytest.raises(ValueError, match="with 100 multiprocessors"):
        with_measured(load_gpu("a100"), probed(sms=100))
    simulated = row("rate LOP3", [1.0, 2.0], "clocks").model_copy(
        update={"value": Quantity(value=1.0, low=1.0, high=1.0, kind="simulated")}
    )
    with pytest.raises(ValidationError, match="hold numbers of another kind"):
        ProbeReport.model_validate(probed().model_dump() | {"rows": [simulated.model_dump()]})
    folder.mkdir()
    (folder / "a100-80.json").write_text("{}")
    load_gpus.cache_clear()
    with pytest.raises(
        ValueError, match=r"a100-80\.json is no report of python -m bench\.probe: Field"
    ):
        load_gpus()


def test_the_command_writes_what_models_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = probed(LOP3=63.0)
    monkeypatch.setattr(runner, "here", lambda: report.model_copy(update={"rows": ()}))
    monkeypatch.setattr(runner, "measure", lambda empty: report)
    folder.parent.mkdir(exist_ok=True)
    answer = command("--spec", "a100")
    assert (answer.exit_code, answer.stderr) == (0, f"Wrote {folder / 'a100-80.json'}\n")
    load_gpus.cache_clear()
    assert specs.measured(load_gpu("a100"))["integer_lanes"].value == 63.0
    for name, says in (("h100", "but h100-sxm has 132 of 9.0"), ("toaster", "nothing is known of")):
        refused = command("--spec", name)
        assert refused.exit_code == 2
        assert says in refused.stderr


@pytest.mark.parametrize("error", [CudaError("NVRTC is missing."), ImportError("no libcuda.")])
def test_what_is_missing_when_probes_start_is_a_sentence(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def measure(report: ProbeReport) -> ProbeReport:
        raise error

    monkeypatch.setattr(runner, "here", probed)
    monkeypatch.setattr(runner, "measure", measure)
    answer = command()
    assert (answer.exit_code, answer.stderr) == (2, f"error: {error}\n")


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

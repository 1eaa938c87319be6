"""Audits of machine code: counts by hand, what boards allow, limits, and what the command says."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

from bench import sass as command
from bench.static import audit_all, audit_cache, sass, targets
from bench.static.audit import (
    MEASURES,
    Audit,
    Job,
    audit_code,
    bytes_moved,
    counts_of,
    jobs_of,
    row_of,
    rows_of,
)
from bench.static.audit_cache import Cache
from bench.static.audit_gate import Breach, GateError, breaches, load_limits
from bench.static.audit_report import Report, budget, render, to_data
from kernels.formats import find_format
from profiles import specs
from profiles.specs import load_gpu

FUSED = Job("fused", "gemv-ptx", "int4-g128", "fp16", 1, 90)
BYPASS = replace(FUSED, arm="bypass")
APP = typer.Typer()
APP.command()(command.main)

LOOP = """
MOV R1, 0x0
LDG.E.128.CONSTANT R4, [R2]
LDG.E.U16 R3, [R2]
LOP3.LUT R6, R4, 0xf000f, R7, 0xea, !PT
IADD3 R6, R6, R7, RZ
I2F.F16.U32 R8, R6
I2FP.F32.S32 R9, R6
HFMA2 R10, R8, R9, R10
FFMA R11, R9, R9, R11
SHFL.IDX R5, R4, 0x1, 0x1f
BRA 0x10
STL [R1], R4
EXIT
"""


def code(text: str) -> sass.Code:
    lines = [line.split(maxsplit=1) for line in text.strip().splitlines()]
    return sass.parse({"opcode": o, "operands": "".join(rest)} for o, *rest in lines)


def planted(job: Job, **changes: object) -> Audit:
    """64 weights a pass: 128 instructions with dequantization, 64 without."""
    classes = {"int": 64, "half2": 40, "cvt": 16, "load": 8} if job.arm == "fused" else {
        "int": 16, "half2": 40, "load": 8,
    }  # fmt: skip
    slow = 8 if job.arm == "fused" else 0
    audit = Audit(job.name, job.capability, classes, slow, {128: 8}, looped=True, weights=64,
                  registers=56, shared_bytes=32, num_warps=2, resident_warps=36)  # fmt: skip
    return replace(audit, **changes)  # type: ignore[arg-type]


def test_a_listing_by_hand() -> None:
    audit = audit_code("k", 90, code(LOOP), weights=4, registers=40)
    assert audit.classes == {
        "load": 2, "int": 2, "cvt": 2, "half2": 1, "fp32": 1, "exchange": 1, "other": 1,
    }  # fmt: skip
    assert audit.slow_conversions == 1  # I2F; I2FP is on the integer pipe
    assert audit.loads == {128: 1, 16: 1}
    assert audit.spill_instructions == audit.spills == 1  # though it lies behind the loop
    assert audit.looped
    row = row_of(audit)
    assert row.value("total") == 10 / 4
    assert row.value("cvt") == 0.5
    assert row.value("mma") == 0.0
    assert row.value("registers") == 40
    assert row.value("shared_bytes") is None


def test_without_a_number_of_weights_nothing_is_said_per_weight() -> None:
    row = row_of(audit_code("k", 90, code(LOOP)))
    assert row.per_weight["total"] == 10
    assert row.value("total") is None
    assert row.value("spills") == 1


def test_a_stack_without_spill_instructions_still_counts() -> None:
    audit = audit_code("k", 90, code("LDG.E R1, [R2]\nEXIT"), stack_bytes=16)
    assert (audit.spills, audit.looped) == (16, False)


def test_the_difference_is_what_dequantization_adds() -> None:
    rows = {row.name: row for row in rows_of({BYPASS: planted(BYPASS), FUSED: planted(FUSED)})}
    extra = rows["gemv-ptx/fused-bypass/int4-g128/fp16"]
    assert extra.value("total") == 1.0
    assert extra.value("int") == 0.75
    assert extra.value("cvt") == 0.25
    assert extra.value("half2") == extra.value("load") == 0.0
    assert extra.value("registers") is None


@pytest.mark.parametrize(
    "other",
    [replace(BYPASS, capability=80), replace(BYPASS, variant="gemv"), replace(BYPASS, batch=16)],
)
def test_only_the_same_kernel_is_subtracted(other: Job) -> None:
    rows = list(rows_of({other: planted(other), FUSED: planted(FUSED)}))
    assert [row.name for row in rows] == [other.name, FUSED.name]


def test_tiles_that_differ_have_no_difference() -> None:
    audits = {BYPASS: planted(BYPASS, weights=32), FUSED: planted(FUSED)}
    assert len(list(rows_of(audits))) == 2


AROUND = """
MOV R1, 0x0
BRA.U !UP1, 0x60
LDG.E.128 R4, [R2]
BRA.U UP2, 0x50
FADD R6, R6, R7
BRA.U UP0, 0x20
STG.E [R2], R6
EXIT
BRA 0x80
"""


def test_what_runs_once_and_what_a_branch_may_skip() -> None:
    """A loop from 0x20 to 0x50; before and after it a move, a branch, a store and the end; FADD is guarded."""
    audit = audit_code("k", 90, code(AROUND))
    assert (audit.looped, audit.instructions) == (True, 4)
    assert sum(audit.outside.values()) == 4
    assert audit.outside["int"] == 1
    assert audit.guarded == 1
    assert audit_code("k", 90, code("MOV R1, 0x0\nEXIT")).outside == {}


def test_wide_products_count_twice_and_only_for_their_pipe() -> None:
    """ptxas leaves 4 clocks between two IMAD.WIDE or IMAD.HI, and 2 between two IMAD."""
    lines = "IMAD R1, R2, R3, R4\nIMAD.WIDE.U32 R4, R2, R3, R4\nIMAD.HI.U32 R1, R2, R3, RZ\nEXIT"
    audit = audit_code("k", 90, code(lines), weights=1)
    assert (audit.classes["imad"], audit.wide_imad, audit.instructions) == (3, 2, 4)
    found = counts_of(audit, 1.0)
    assert (found.imad, found.integer, found.total) == (5.0, 0.0, 4.0)


def test_fast_conversions_of_old_machine_code_are_fast() -> None:
    """On 8.0 there is F2FP and no I2FP: what is not slow there has the integer pipe's rate."""
    new, old = planted(FUSED), planted(replace(FUSED, capability=80))
    assert (counts_of(new, 0.5).integer, counts_of(new, 0.5).fast_conversion) == (1.0, 8 / 64)
    assert (counts_of(old, 0.5).integer, counts_of(old, 0.5).fast_conversion) == (1.0 + 8 / 64, 0)
    assert counts_of(old, 0.5).conversion == 8 / 64


def test_unfused_is_both_of_its_launches() -> None:
    first = Job("dequantize", "ptx", "int4-g128", "fp16", 1, 90)
    second = Job("native", "gemv", "fp16", "fp16", 1, 90)
    others = [replace(second, capability=80), replace(second, format="bf16", activation="bf16")]
    audits = {first: planted(first), second: planted(second, weights=32)}
    rows = list(rows_of(audits | {job: planted(job) for job in others}))
    (both,) = [row for row in rows if row.job and row.job.arm == "unfused"]
    assert both.name == "ptx+gemv/unfused/int4-g128/fp16"
    assert both.per_weight["total"] == 64 / 64 + 64 / 32
    assert both.value("registers") is None
    assert rows.index(both) == 1  # after its first launch


def test_what_is_made_of_a_lower_bound_is_marked_and_has_no_gate(tmp_path: Path) -> None:
    """The bypass and the 16-bit product have a loop of unknown length; fused and dequantize have none."""
    dequantize = Job("dequantize", "ptx", "int4-g128", "fp16", 1, 90)
    native = Job("native", "gemv", "fp16", "fp16", 1, 90)
    audits = {job: planted(job) for job in (FUSED, dequantize)}
    audits |= {job: planted(job, unknown_loops=1) for job in (BYPASS, native)}
    rows = list(rows_of(audits))
    names = {row.job.arm for row in rows if row.job and row.lower_bound}
    assert names == {"bypass", "fused-bypass", "native", "unfused"}
    shown = io.StringIO()
    Console(file=shown, width=120).print(render(Report(rows, [], "")))
    lines = [line.split("  ")[0].strip() for line in shown.getvalue().splitlines()]
    assert {"≥ gemv-ptx fused - bypass", "≥ ptx+gemv unfused", "gemv-ptx fused"} <= set(lines)
    assert "≥ a lower bound, or made of one" in shown.getvalue()
    data = to_data(Report(rows, [], ""))["kernels"]
    assert {row["arm"] for row in data if row["lower_bound"]} == names
    for arm in (*names, "fused"):
        path = write(tmp_path / "limits.toml", f'[[limit]]\nkernel = "*/{arm}/*"\ntotal = 99')
        if arm == "fused":
            assert breaches(load_limits(path), rows) == []
        else:
            with pytest.raises(GateError, match="cannot be held against a lower bound"):
                breaches(load_limits(path), rows)


def test_budget_by_hand() -> None:
    """3350 GB/s over 132 SMs at 1.98 GHz: 12.82 bytes a clock, so 24.86 weights of 4.125 bits."""
    found = budget(load_gpu("h100"), 4.125 / 8)
    weights_per_clock = 3350e9 / (132 * 1.98e9) / (4.125 / 8)
    assert weights_per_clock == pytest.approx(24.86, abs=0.01)
    assert found["issue"] == pytest.approx(128 / weights_per_clock)
    assert found["integer"] == pytest.approx(64 / weights_per_clock)
    assert found["conversion"] == pytest.approx(16 / weights_per_clock)


def test_r_by_hand() -> None:
    """Two instructions a weight, one on the integer pipe and an eighth fast: 2.575 / 1.125 < 5.149 / 2."""
    rows = list(rows_of({FUSED: planted(FUSED)}))
    gpu = load_gpu("h100")
    ratio = Report(rows, [gpu], "").ratio(rows[0], gpu)
    allowed = budget(gpu, bytes_moved("fused", find_format("int4-g128")))
    assert ratio is not None
    assert ratio.value == pytest.approx(allowed["integer"] / (1 + 8 / 64))
    assert ratio.limiter == "ALU"
    assert ratio.at_reached_issue == pytest.approx(0.65 * allowed["issue"] / 2)


def test_r_is_for_the_board_whose_code_it_is_and_not_for_spills() -> None:
    spilling = planted(FUSED, spill_instructions=3)
    rows = list(rows_of({FUSED: spilling}))
    report = Report(rows, [load_gpu("h100"), load_gpu("a100")], "")
    spilled = report.ratio(rows[0], load_gpu("h100"))
    assert spilled is not None
    assert (spilled.value, spilled.reason) == (None, "spills")
    assert report.ratio(rows[0], load_gpu("a100")) is None


def test_dequantize_moves_what_it_writes_too() -> None:
    weight_format = find_format("int4-g128")
    assert bytes_moved("fused", weight_format) == 4.125 / 8
    assert bytes_moved("dequantize", weight_format) == 20.125 / 8


def test_jobs_are_every_kernel_once() -> None:
    jobs = jobs_of(["fused", "dequantize", "native"], ["int4-g128", "fp16"], ["fp16"], [80, 90])
    assert len(jobs) == len(set(jobs)) == 2 * (4 + 2 + 2)
    assert {j.batch for j in jobs if j.variant == "gemm"} == {16}
    assert {j.format for j in jobs if j.arm == "native"} == {"fp16"}


# --- limits


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


ROWS = list(rows_of({BYPASS: planted(BYPASS), FUSED: planted(FUSED)}))


def test_limits_name_the_rows_beyond_them(tmp_path: Path) -> None:
    text = """
    [[limit]]
    kernel = "gemv-ptx/fused/int4-*"
    arch = "sm_90"
    total = 1.99
    registers = 56
    [[limit]]
    kernel = "*/fused-bypass/*"
    cvt = 0.2
    """
    found = breaches(load_limits(write(tmp_path / "limits.toml", text)), ROWS)
    assert found == [
        Breach("gemv-ptx/fused/int4-g128/fp16", "sm_90", "total", 2.0, 1.99),
        Breach("gemv-ptx/fused-bypass/int4-g128/fp16", "sm_90", "cvt", 0.25, 0.2),
    ]
    assert found[0].sentence == ("gemv-ptx/fused/int4-g128/fp16 on sm_90: total is 2, limit 1.99.")


def test_a_limit_may_be_reached_and_json_works(tmp_path: Path) -> None:
    entry = {"kernel": "*", "total": 2.0, "spills": 0, "cvt": 0.25}
    path = write(tmp_path / "limits.json", json.dumps({"limit": [entry]}))
    assert breaches(load_limits(path), ROWS) == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[[limit", "neither TOML nor JSON"),
        ("a = 1", "at least one [[limit]]"),
        ("[[limit]]\ntotal = 2", "limit 1 of"),
        ('[[limit]]\nkernel = "*"\narch = 90\ntotal = 1', "as text"),
        ('[[limit]]\nkernel = "*"', "limits nothing"),
        ('[[limit]]\nkernel = "*"\nspeed = 2', f"limits 'speed'; choose from {MEASURES[0]}"),
        ('[[limit]]\nkernel = "*"\ntotal = "2"', "a number from 0 up, not 2"),
        ('[[limit]]\nkernel = "*"\ntotal = nan', "a number from 0 up, not nan"),
        ('[[limit]]\nkernel = "*"\nspills = true', "a number from 0 up, not True"),
    ],
)
def test_limits_that_cannot_be_used(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(GateError) as error:
        load_limits(write(tmp_path / "limits.toml", text))
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("kernel", "arch", "measure", "said"),
    [
        ("gemv-pxt/*", "*", "total", "no kernel that was counted has such a name"),
        ("*", "sm_80", "total", "no kernel that was counted has such a name"),
        ("*fused-bypass*", "*", "registers", "it is not known of what that names"),
    ],
)
def test_a_limit_that_guards_nothing_is_an_error(
    tmp_path: Path, kernel: str, arch: str, measure: str, said: str
) -> None:
    text = json.dumps({"limit": [{"kernel": kernel, "arch": arch, measure: 1}]})
    with pytest.raises(GateError, match=said):
        breaches(load_limits(write(tmp_path / "limits.json", text)), ROWS)


# --- the cache


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache", "sources", "3.9.0")


def test_what_is_stored_is_found(cache: Cache) -> None:
    assert cache.load(FUSED) is None
    cache.store(FUSED, planted(FUSED))
    assert cache.load(FUSED) == planted(FUSED)
    assert [p.suffix for p in cache.folder.iterdir()] == [".json"]


def test_a_change_of_anything_misses(cache: Cache) -> None:
    cache.store(FUSED, planted(FUSED))
    assert replace(cache, programs="others").load(FUSED) is None
    assert replace(cache, compiler="3.9.1").load(FUSED) is None
    for change in ({"capability": 80}, {"batch": 2}, {"activation": "bf16"}, {"arm": "scale"}):
        assert cache.load(replace(FUSED, **change)) is None  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "",
        lambda text: text[:-20],
        lambda text: text.replace('"int": 64', '"int": 65'),
        lambda text: text.replace('"sha256"', '"sha"'),
        lambda text: "[]",
        lambda text: "\x00" * 100,
    ],
)
def test_a_damaged_entry_counts_as_missing(cache: Cache, damage) -> None:
    cache.store(FUSED, planted(FUSED))
    path = cache.path(cache.key(FUSED))
    damaged = damage(path.read_text())
    assert damaged != path.read_text()
    path.write_text(damaged)
    assert cache.load(FUSED) is None
    cache.store(FUSED, planted(FUSED))
    assert cache.load(FUSED) == planted(FUSED)


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    blocked = Cache(write(tmp_path / "file", "") / "cache", "s", "c")
    blocked.store(FUSED, planted(FUSED))
    assert blocked.load(FUSED) is None


def test_every_program_that_counts_counts(tmp_path: Path) -> None:
    for name in audit_cache.PROGRAMS:
        path = tmp_path / "bench" / "static" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path, "1")

    def digest() -> str:
        return audit_cache.programs_digest.__wrapped__(tmp_path)

    seen = {digest()}
    for path in sorted(tmp_path.rglob("*.py")):
        write(path, "2")
        seen.add(digest())
    assert len(seen) == len(audit_cache.PROGRAMS) + 1


def test_batches_that_only_move_addresses_are_one_build(cache: Cache) -> None:
    """A tile of 64 rows serves 64, 128 and 256; those of the small kernels are unrolled over the batch."""
    gemm = Job("fused", "gemm", "int4-g128", "fp16", 64, 90)
    assert cache.key(gemm) == cache.key(replace(gemm, batch=256))
    assert cache.key(gemm) != cache.key(replace(gemm, batch=32))
    assert cache.key(gemm) != cache.key(replace(gemm, batch=96))  # half of a tile is masked
    assert cache.key(FUSED) != cache.key(replace(FUSED, batch=2))
    stream = replace(FUSED, arm="stream")
    assert cache.key(replace(stream, batch=2)) == cache.key(replace(stream, batch=4))


# --- the command


@pytest.fixture
def compilations(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> list[Job]:
    """Planted audits in place of a compiler; the jobs that were compiled."""
    done: list[Job] = []

    def compiled(jobs: Iterable[Job], report: object) -> Iterator[tuple[Job, Audit | str]]:
        for job in jobs:
            done.append(job)
            yield job, planted(job)

    monkeypatch.setattr(audit_all, "compiled", compiled)
    monkeypatch.setattr(audit_cache, "open_cache", lambda: cache)
    return done


SMALL = ("--gpu", "h100", "--format", "int4-g128", "--arm", "fused,bypass")


def test_the_second_run_compiles_nothing(compilations: list[Job], cache: Cache) -> None:
    first = CliRunner().invoke(APP, SMALL)
    assert (first.exit_code, len(compilations)) == (0, 8)
    again = CliRunner().invoke(APP, SMALL)
    assert (again.output, len(compilations)) == (first.output, 8)
    cache.path(cache.key(compilations[2])).write_text("damaged")
    CliRunner().invoke(APP, SMALL)
    assert compilations[8:] == [compilations[2]]


def test_what_was_compiled_before_an_interruption_stays(
    compilations: list[Job], monkeypatch: pytest.MonkeyPatch, cache: Cache
) -> None:
    def compiled(jobs: Iterable[Job], *_: object) -> Iterator[tuple[Job, Audit | str]]:
        yield FUSED, planted(FUSED)
        raise KeyboardInterrupt

    monkeypatch.setattr(audit_all, "compiled", compiled)
    done = CliRunner().invoke(APP, SMALL)
    assert (done.exit_code, done.stderr) == (130, "Interrupted.\n")
    assert cache.load(FUSED) is not None


@pytest.mark.usefixtures("compilations")
def test_tables_fit_and_name_everything() -> None:
    boards = "t4,a100,h100,b200,rtx4090,rtx5090,orin"
    done = CliRunner().invoke(APP, ["--gpu", boards, "--arm", "stream,fused,bypass,dequantize"])
    assert done.exit_code == 0
    assert max(map(len, done.output.splitlines())) <= 80
    assert "…" not in done.output  # nothing was cut off
    whole = [x for x in done.output.splitlines() if x.startswith("default dequantize ")]
    assert len(whole) == 4 * (7 + 7 + 2)  # per format: two tables per architecture, R in two parts
    for text in ("gemv-ptx fused - bypass", "default dequantize", "h100-sxm", "sm_120", "128x8",
                 "36/64", "MODELLED", "COMPILED AND COUNTED, not run"):  # fmt: skip
        assert text in done.output


@pytest.mark.usefixtures("compilations")
def test_json_says_the_same() -> None:
    done = CliRunner().invoke(APP, [*SMALL, "--json"])
    data = json.loads(done.stdout)
    assert data["kind"] == "modelled"
    rows = {row["kernel"]: row for row in data["kernels"]}
    extra = rows["gemv-ptx/fused-bypass/int4-g128/fp16"]
    assert extra["instructions"]["total"] == 1.0
    assert (extra["instructions_per"], extra["audit"], extra["ratios"]) == ("weight", None, {})
    fused = rows[FUSED.name]
    assert fused["audit"]["registers"] == 56
    assert fused["arch"] == "sm_90"
    assert fused["ratios"]["h100-sxm"]["limiter"] == "ALU"
    (board,) = data["budgets"]
    assert board["per_weight"]["issue"] == pytest.approx(5.149, abs=0.001)
    assert data["gate"] == []


def test_a_gate_ends_with_1_and_names_the_row(compilations: list[Job], tmp_path: Path) -> None:
    path = write(tmp_path / "l.toml", '[[limit]]\nkernel = "gemv-ptx/fused/*"\ntotal = 1.5')
    done = CliRunner().invoke(APP, [*SMALL, "--gate", str(path)])
    assert done.exit_code == 1
    assert "gate: gemv-ptx/fused/int4-g128/fp16 on sm_90: total is 2, limit 1.5." in done.stderr
    write(path, '[[limit]]\nkernel = "*/fused/*"\ntotal = 2')
    done = CliRunner().invoke(APP, [*SMALL, "--gate", str(path), "--json"])
    assert (done.exit_code, json.loads(done.stdout)["gate"]) == (0, [])
    assert "all 1 limits" in done.stderr


def test_kernels_stand_beside_their_targets_and_one_that_misses_ends_with_1(
    compilations: list[Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Planted: 2 instructions per weight of a fused kernel, 1 of dequantize, on every architecture."""
    classes = {"int": 80, "half2": 40, "load": 8}

    def compiled(jobs: Iterable[Job], *_: object) -> Iterator[tuple[Job, Audit]]:
        for job in jobs:
            compilations.append(job)
            four = job.arm == "fused" and job.format.startswith("int4")
            yield job, planted(job, **({"classes": classes} if four else {}))

    monkeypatch.setattr(audit_all, "compiled", compiled)
    done = CliRunner().invoke(APP, ["--targets"])
    assert (done.exit_code, done.stderr) == (0, "")
    assert max(map(len, done.output.splitlines())) <= 80
    rows = [line.split() for line in done.stdout.splitlines()[1 : 1 + len(targets.TARGETS)]]
    assert rows[0] == ["fused", "int4-g128,", "fp16", *["2.00"] * 5, "2.40", "2.00", "0", "128"]
    assert rows[-1] == ["dequantize", "nf4-b64,", "fp16", *["1.00"] * 5, "6.00", "1.00", "0", "128"]
    assert {job.variant for job in compilations} == {"gemv", "gemv-ptx", "default", "ptx"}
    monkeypatch.setitem(targets.TARGETS, ("fused", "int8-ch", "fp16"), 1.99)
    done = CliRunner().invoke(APP, ["--targets", "--json", "--format", "int8-ch,nf4-b64"])
    assert done.exit_code == 1
    said = "fused int8-ch, fp16: needs 2.00 instructions per weight, target 1.99"
    assert done.stderr.splitlines() == [said]
    failures = {row["format"]: row["failure"] for row in json.loads(done.stdout)}
    assert failures == {"int8-ch": said.split(": ")[1], "nf4-b64": None}


def test_a_target_is_for_sm_90_and_no_kernel_may_spill() -> None:
    jobs = [job for job in targets.jobs(["int8-ch"]) if job.variant == "gemv-ptx"]
    slow = {"classes": {"other": 200}}
    audits = {job: planted(job, **(slow if job.capability == 80 else {})) for job in jobs}
    (line,) = targets.lines(audits, ["int8-ch"])
    assert (line.found[80], line.failure, line.own) == (3.125, None, None)
    audits[jobs[0]] = planted(jobs[0], spill_instructions=2)
    (line,) = targets.lines(audits, ["int8-ch"])
    assert line.failure == "spills"
    audits[jobs[0]] = planted(jobs[0], unknown_loops=1)
    (line,) = targets.lines(audits, ["int8-ch"])
    assert line.failure == "a loop within the loop: how often it runs is not in the code"
    (line,) = targets.lines({}, ["int8-ch"])
    assert line.failure == "was not counted on sm_90"


def test_four_bit_integers_need_no_conversion() -> None:
    """Planted: 16 in 64 weights, on one architecture; of eight bits they are shown and no failure."""
    for name, said in {
        "int4-g128": "converts 0.25 times per weight, which integers of 4 bits need not",
        "int8-ch": None,
    }.items():
        jobs = [job for job in targets.jobs([name]) if job.activation == "fp16"]
        clean = {"classes": {"int": 128}}
        audits = {job: planted(job, **({} if job.capability == 80 else clean)) for job in jobs}
        line = targets.lines(audits, [name])[0]
        assert (line.conversions, line.failure) == (0.25, said)


@pytest.mark.parametrize(
    ("name", "loads", "is_wide"),
    [
        ("int4-g128", {128: 8, 16: 4}, True),  # of W 4, of x 4; scales of 4 rows
        ("int4-g128", {128: 4, 64: 8, 16: 4}, False),  # W in halves
        ("int4-g128", {128: 7, 64: 2, 16: 4}, False),  # one load of W in halves
        ("int4-g128", {128: 7, 32: 4, 16: 4}, False),
        ("int4-g128", {128: 8, 16: 4, 8: 4}, False),  # zero points, of a format that has none
        ("int4-g128-zp", {128: 8, 16: 4, 8: 4}, True),
        ("nf4-b64", {128: 8, 32: 4}, True),
        ("nf4-b64", {128: 3, 32: 4}, False),
        ("int8-ch", {128: 12}, True),
        ("int8-ch", {128: 11, 64: 2}, False),
        ("int8-g128", {256: 6, 16: 4}, True),
    ],
)
def test_weights_are_loaded_128_bits_at_a_time(
    name: str, loads: dict[int, int], is_wide: bool
) -> None:
    """128 weights in a pass, as our kernels have."""
    job = replace(FUSED, format=name)
    audit = planted(job, loads=loads, weights=128, classes={"int": 128})
    assert targets.wide(audit, find_format(name)) == is_wide
    line = targets.lines({job: audit}, [name])[0]  # of fp16
    assert line.wide_loads == is_wide
    said = None if is_wide else "loads weights in pieces of less than 128 bits"
    assert line.failure == said
    shown = io.StringIO()
    Console(file=shown, width=80).print(targets.render([line]))
    assert ("<128" in shown.getvalue()) == (not is_wide)


def test_a_kernel_that_does_not_compile_costs_its_row(
    compilations: list[Job], monkeypatch: pytest.MonkeyPatch, cache: Cache
) -> None:
    def compiled(jobs: Iterable[Job], *_: object) -> Iterator[tuple[Job, Audit | str]]:
        for job in jobs:
            yield job, planted(job) if job.arm == "fused" else "it does not compile: why."

    monkeypatch.setattr(audit_all, "compiled", compiled)
    done = CliRunner().invoke(APP, SMALL)
    assert done.exit_code == 1
    assert "FAILED gemv/bypass/int4-g128/fp16 on sm_90: it does not compile: why." in " ".join(
        done.output.split()
    )
    assert cache.load(BYPASS) is None


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--targets", "--gpu", "h100"], "--targets takes --format and --json, and nothing else."),
        (["--targets", "--format", "mxfp4"], "there is no 'mxfp4'; choose --format from int4-g128,"),
        (["--gpu", "h1000"], "nothing is known of a GPU named 'h1000'; choose one of"),
        (["--gpu", ","], "nothing is known of a GPU named ','"),
        (["--format", "int3"], "there is no 'int3'; choose --format from"),
        (["--arm", "vendor"], "there is no 'vendor'; choose --arm from stream"),
        (["--activation", "fp32"], "there is no 'fp32'; choose --activation from fp16, bf16."),
        (["--arm", "native", "--format", "int8-ch"], "no Triton kernel has arm native"),
        (["--weights", "0", "--cubin", "x"], "--weights takes a number from 1 up, not 0."),
        (["--weights", "8"], "--weights and --regex are for --source, --cubin and --so."),
        (["--cubin", "a", "--so", "b"], "give one of --source, --cubin and --so"),
        (["--cubin", "missing"], "there is no file missing."),
        (["--cubin", "README.md", "--regex", "("], "--regex '(' is no regular expression"),
        (["--cubin", "README.md"], "README.md is no cubin that cuobjdump can read."),
        (["--so", "README.md"], "README.md holds no machine code of a GPU"),
        (["--so", "README.md", "--all"], "--all, --arm and --activation choose among our own"),
        (["--cubin", "README.md", "--format", "int3"], "no weight format named 'int3'"),
        (["--source", "gemv.py"], "name a file and a kernel in it, such as gemv.py:gemv"),
        (["--source", "g.py:g", "--regex", "x"], "--regex is for --cubin and --so"),
        (["--gate", "missing.toml"], "cannot read missing.toml: No such file or directory."),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_one_sentence(
    compilations: list[Job], arguments: list[str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(__file__).parent.parent)
    done = CliRunner().invoke(APP, arguments)
    assert done.exit_code == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert said in done.stderr
    assert (done.stdout, compilations) == ("", [])


def test_a_board_that_nothing_compiles_for(monkeypatch: pytest.MonkeyPatch) -> None:
    from bench.static import compile as compiler

    monkeypatch.setattr(compiler, "CAPABILITIES", (80, 90))
    done = CliRunner().invoke(APP, ["--gpu", "t4"])
    assert done.exit_code == 2
    assert "nothing can be compiled for compute capability 7.5 of the" in done.stderr
    assert "it can be for sm_80, sm_90." in done.stderr


# --- R


BOARDS = ("--limits", "--gpu", "h100,l4", "--format", "int4-g128,int8-ch")


def test_limits_have_our_kernels_and_other_peoples(compilations: list[Job]) -> None:
    done = CliRunner().invoke(APP, BOARDS)
    assert done.exit_code == 0
    assert {(j.arm, j.batch, j.capability) for j in compilations} == {
        ("fused", 1, 90),
        ("fused", 1, 89),
    }
    lines = done.stdout.splitlines()
    ours = next(i for i, line in enumerate(lines) if line.startswith("int4-g128"))
    peers = next(i for i, line in enumerate(lines) if line.startswith("other people's:"))
    assert ours < peers < next(i for i, line in enumerate(lines) if line.startswith("Marlin"))
    assert "MODELLED" in done.stdout


def test_limits_as_json_and_as_a_picture(compilations: list[Job], tmp_path: Path) -> None:
    path = tmp_path / "r.png"
    done = CliRunner().invoke(APP, [*BOARDS, "--batch", "32", "--json", "--plot", str(path)])
    assert done.exit_code == 0
    data = json.loads(done.stdout)
    assert {entry["batch"] for entry in data} == {32}
    assert {entry["whose"] for entry in data} == {"ours", "other people's"}
    assert {j.variant for j in compilations} == {"gemm", "gemm-ptx"}
    assert path.read_bytes().startswith(b"\x89PNG")
    for bad, said in ((tmp_path / "a" / "b.png", "cannot write"), (tmp_path / "b.txt", "b.txt")):
        failed = CliRunner().invoke(APP, [*BOARDS, "--plot", str(bad)])
        assert (failed.exit_code, said in failed.stderr) == (2, True)
    assert CliRunner().invoke(APP, ["--plot", str(path)]).exit_code == 2
    assert CliRunner().invoke(APP, [*BOARDS, "--format", "fp16"]).exit_code == 2


@pytest.fixture
def reports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder in place of the one with reports of probes."""
    monkeypatch.setattr(specs, "MEASURED_FOLDER", tmp_path)
    specs.load_gpus.cache_clear()
    yield tmp_path
    specs.load_gpus.cache_clear()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b'{"board": "NVIDIA H100', "is no report of python -m bench.probe: Invalid JSON: EOF"),
        (b"{}", "is no report of python -m bench.probe: Field required"),
        (b"\xff", "is no report of python -m bench.probe: Invalid JSON"),
        (None, "cannot be read: Is a directory"),
    ],
)
def test_measured_rates_that_cannot_be_read_are_a_sentence(
    reports: Path, compilations: list[Job], content: bytes | None, says: str
) -> None:
    path = reports / "h100-sxm.json"
    path.mkdir() if content is None else path.write_bytes(content)
    done = CliRunner().invoke(APP, ["--limits", "--format", "int4-g128"])
    assert done.exit_code == 2, done.output
    assert done.stderr.startswith(f"error: {path} {says}")
    assert compilations == []

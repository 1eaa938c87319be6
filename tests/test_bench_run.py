"""The whole pipeline on a device without hardware, in real worker processes: φ comes out as planted."""

from __future__ import annotations

from pathlib import Path

import fake_device
import pytest

from bench.analysis.decompose import decompose
from bench.measure import worker
from bench.measure.journal import Journal, read_journal
from bench.measure.ledger import samples_table
from bench.measure.records import Plan
from bench.measure.run import Progress, Result, Run
from kernels.formats import find_format
from profiles.schema import ArmRow, Comparison, Operator, Protocol

OPERATORS = (Operator(name="up", n=64, k=128), Operator(name="down", n=128, k=128, count=2))


def plan(batches: tuple[int, ...] = (1, 2)) -> Plan:
    protocol = Protocol(
        pilot_blocks=10, fresh_blocks_minimum=21, fresh_blocks_maximum=30, processes=3,
        target_half_width=0.05, confidence=0.95, sample_minimum_s=1e-3,
    )  # fmt: skip
    return Plan(
        "fake", "tiny", 2, OPERATORS, (find_format("int4-g128"),), batches, None, None, protocol
    )


def measure(
    tmp_path: Path, opener: object, batches: tuple[int, ...] = (1,)
) -> tuple[Result, tuple[ArmRow, ...], tuple[Comparison, ...], Journal, list[Progress]]:
    reports: list[Progress] = []
    with Journal(tmp_path / "run.jsonl") as journal:
        run = Run(plan(batches), journal, reports.append, opener)  # type: ignore[arg-type]
        result = run.measure()
    rows, comparisons = decompose(
        samples_table(journal.rows), result.workload, run.plan.protocol, result.facts
    )
    return result, rows, comparisons, journal, reports


def test_planted_times_come_out(tmp_path: Path) -> None:
    result, rows, comparisons, journal, reports = measure(tmp_path, fake_device.healthy, (1, 2))
    assert result.complete
    assert result.workload.activation == "bf16"
    assert result.workload.launch_mode == "eager"
    layer = {c.batch: c for c in comparisons if c.operator == "layer"}
    for batch in (1, 2):  # one `up` and two `down`
        assert layer[batch].phi_exposed_s.value == pytest.approx(3 * batch * 50e-6)
        assert layer[batch].phi_unfused_s.value == pytest.approx(3 * batch * 400e-6)
        assert layer[batch].speedup_fused.value == pytest.approx(2.5)
        assert layer[batch].converged
    assert not [row for row in rows if row.failure]
    fresh = [r for r in journal.rows if r["phase"] == "fresh" and r["batch"] == 1]
    blocks = {(r["process"], r["block"]) for r in fresh}
    assert len(blocks) == 21
    assert {process for process, _ in blocks} == {0, 1, 2}
    assert [report.done for report in reports] == sorted(report.done for report in reports)
    assert reports[-1].left_s is not None


def test_the_journal_holds_every_sample(tmp_path: Path) -> None:
    *_, journal, _ = measure(tmp_path, fake_device.healthy)
    assert read_journal(tmp_path / "run.jsonl") == journal.ledger
    compared = ("fused", "bypass", "unfused", "native")
    expected = (10 * len(compared) + 21 * len(fake_device.TIMES_S)) * len(OPERATORS)
    assert len(journal.rows) == expected


def test_a_crashing_kernel_costs_its_rows_only(tmp_path: Path) -> None:
    result, rows, comparisons, *_ = measure(tmp_path, fake_device.with_deadly_fused)
    assert result.complete
    failed = {(row.operator, row.arm): row.failure for row in rows if row.failure}
    assert failed == {
        ("up", "fused"): "it crashed with SIGSEGV",
        ("down", "fused"): "it crashed with SIGSEGV",
    }
    layer = next(c for c in comparisons if c.operator == "layer")
    assert layer.phi_exposed_s.value is None
    assert layer.phi_exposed_s.reason
    assert layer.phi_unfused_s.value == pytest.approx(3 * 400e-6)


def test_a_hanging_kernel_costs_its_rows_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "SAMPLE_DEADLINE_S", 0.3)
    result, rows, comparisons, *_ = measure(tmp_path, fake_device.with_stuck_stream)
    assert result.complete
    failed = {(row.operator, row.arm): row.failure for row in rows if row.failure}
    assert set(failed) == {("up", "stream"), ("down", "stream")}
    assert failed["up", "stream"] == "it did not finish within 0.3 s"
    layer = next(c for c in comparisons if c.operator == "layer")
    assert layer.phi_exposed_s.value == pytest.approx(3 * 50e-6)


def test_local_memory_of_a_kernel_is_in_its_rows(tmp_path: Path) -> None:
    _, rows, *_ = measure(tmp_path, fake_device.with_spilling_fused)
    found = {
        (row.operator, row.arm): row.local_bytes for row in rows if row.local_bytes is not None
    }
    operators = [operator.name for operator in OPERATORS]
    assert found == {
        (o, arm): size for o in operators for arm, size in (("fused", 16), ("bypass", 0))
    }


def test_a_wrong_kernel_yields_no_sample(tmp_path: Path) -> None:
    _, rows, comparisons, journal, _ = measure(tmp_path, fake_device.with_wrong_bypass)
    assert "bypass" not in {row["arm"] for row in journal.rows}
    wrong = next(row for row in rows if row.arm == "bypass" and row.operator == "up")
    assert wrong.time_s.value is None
    assert wrong.error_vs_reference == 0.5
    assert wrong.failure is not None
    assert wrong.failure.startswith("wrong result")
    assert next(c for c in comparisons if c.operator == "layer").phi_exposed_s.value is None

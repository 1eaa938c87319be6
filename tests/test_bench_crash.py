"""What a kernel may do to its process: it costs a row, the row says what happened, the run goes on."""

from __future__ import annotations

import multiprocessing as mp
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import fake_device
import pytest

from bench.analysis.decompose import decompose
from bench.measure import run, worker
from bench.measure.assemble import assemble
from bench.measure.devices import DeviceError, Prepared
from bench.measure.journal import Journal, read_journal
from bench.measure.ledger import Ledger, samples_table
from bench.measure.records import Plan
from bench.measure.run import Run
from bench.measure.worker import Setup, Worker, WorkerLostError
from kernels.formats import find_format
from profiles.schema import Operator, Protocol

OPERATORS = (Operator(name="up", n=64, k=128), Operator(name="down", n=128, k=128))
INT4 = "int4-g128"


def measure(tmp_path: Path, opener: object) -> tuple[Ledger, dict[tuple[str, str], str]]:
    """One process only: each start of a worker takes a second."""
    protocol = Protocol(
        pilot_blocks=10, fresh_blocks_minimum=21, fresh_blocks_maximum=30, processes=1,
        target_half_width=0.05, confidence=0.95, sample_minimum_s=1e-3,
    )  # fmt: skip
    plan = Plan("fake", "tiny", 2, OPERATORS, (find_format(INT4),), (1,), None, None, protocol)
    with Journal(tmp_path / "run.jsonl") as journal:
        Run(plan, journal, lambda state: None, opener).measure()  # type: ignore[arg-type]
    ledger = journal.ledger
    rows, _ = decompose(samples_table(ledger.rows), ledger.workload, protocol, ledger.facts)
    assert mp.active_children() == []
    return ledger, {(row.operator, row.arm): row.failure for row in rows if row.failure}


def opened(kind: str, marker: str, name: str) -> fake_device.FakeDevice:
    """A device on which one arm does something terrible, once per process or, with a marker, once."""
    device = fake_device.FakeDevice()
    verify = device.verify

    def terrible(prepared: Prepared) -> float:
        if prepared.kernel.arm != "fused" or prepared.problem.operator != "up":
            return verify(prepared)
        if kind == "hang":
            signal.pause()
        if kind == "exit":
            os._exit(7)
        os.kill(os.getpid(), getattr(signal, kind))
        return 0.0

    def lose_between_arms(copies: object) -> None:
        if not marker or not Path(marker).exists():
            if marker:
                Path(marker).touch()
            os.kill(os.getpid(), signal.SIGKILL)

    if kind == "between":
        device.rotate = lose_between_arms  # type: ignore[method-assign, assignment]
    else:
        device.verify = terrible  # type: ignore[method-assign]
    return device


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        pytest.param("SIGABRT", "it crashed with SIGABRT", marks=pytest.mark.proof),
        ("SIGKILL", "it was killed with SIGKILL, most likely by the system for want of memory"),
        pytest.param("exit", "its process ended with exit code 7", marks=pytest.mark.proof),
        ("hang", "it did not finish within 0.5 s"),
    ],
)
def test_dying_while_it_is_verified_costs_the_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, says: str
) -> None:
    monkeypatch.setattr(worker, "KERNEL_DEADLINE_S", 0.5)
    ledger, failures = measure(tmp_path, partial(opened, kind, ""))
    assert failures == {("up", "fused"): says}
    assert {row["arm"] for row in ledger.rows if row["operator"] == "up"} == set(
        fake_device.TIMES_S
    ) - {"fused"}
    assert "fused" in {row["arm"] for row in ledger.rows if row["operator"] == "down"}


def slow_to_verify(name: str) -> fake_device.FakeDevice:
    device = fake_device.FakeDevice()
    device.verify_s = 0.2
    return device


def test_the_deadline_is_of_one_kernel_not_of_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twelve arms of 0.2 s take far longer than the deadline of 1 s."""
    monkeypatch.setattr(worker, "KERNEL_DEADLINE_S", 1.0)
    _, failures = measure(tmp_path, slow_to_verify)
    assert failures == {}


def test_a_death_that_no_arm_explains_is_tried_again(tmp_path: Path) -> None:
    ledger, failures = measure(tmp_path, partial(opened, "between", str(tmp_path / "marker")))
    assert failures == {}
    assert ledger.finished


def test_but_not_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "MAX_UNEXPLAINED_DEATHS", 1)
    with pytest.raises(WorkerLostError, match="SIGKILL"):
        measure(tmp_path, partial(opened, "between", ""))
    assert mp.active_children() == []


def unfit(name: str) -> fake_device.FakeDevice:
    raise RuntimeError("the driver is too old\nand more")


def absent(name: str) -> fake_device.FakeDevice:
    raise DeviceError("there is no such device.")


def test_a_device_that_does_not_open_leaves_no_process() -> None:
    setup = Setup("fake", OPERATORS, None, None, {})
    with pytest.raises(WorkerLostError, match=r"could not be opened: the driver is too old$"):
        Worker(setup, unfit)  # type: ignore[arg-type]
    with pytest.raises(DeviceError, match="there is no such device"):
        Worker(setup, absent)  # type: ignore[arg-type]
    assert mp.active_children() == []


class Forgetful(fake_device.InProcess):
    """A worker, without a process, that can import a kernel of somebody else once; later it dies of that."""

    imported = False

    def __init__(self, setup: Setup, opener: Callable[[str], fake_device.FakeDevice]) -> None:
        if setup.kernels and Forgetful.imported:
            raise WorkerLostError("it crashed with SIGSEGV", None, "mine:kernel")
        Forgetful.imported = True
        super().__init__(setup, opener)
        if setup.kernels:
            self.session.users = [fake_device.fake_kernel("fused", "mine")]
            self.opened = replace(self.opened, users={"mine:kernel": ("fused", "mine", "default")})


def test_a_kernel_that_cannot_be_imported_any_more_costs_its_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the second of three processes; what it was timed at in the first does not count."""
    monkeypatch.setattr(run, "Worker", Forgetful)
    protocol = Protocol(
        pilot_blocks=10, fresh_blocks_minimum=21, fresh_blocks_maximum=30, processes=3,
        target_half_width=0.05, confidence=0.95, sample_minimum_s=1e-3,
    )  # fmt: skip
    plan = Plan(
        *("fake", "tiny", 2, OPERATORS, (find_format(INT4),), (1,), None, None, protocol),
        kernels=("mine:kernel",),
    )
    said: list[str] = []
    with Journal(tmp_path / "run.jsonl") as journal:
        Run(plan, journal, lambda state: None, fake_device.healthy, say=said.append).measure()
    ledger = read_journal(tmp_path / "run.jsonl")
    assert ledger == journal.ledger
    assert ledger.finished
    assert said == [
        "FAILED importing mine:kernel: it crashed with SIGSEGV; the run goes on without it."
    ]
    timed = {(row["process"], row["implementation"]) for row in ledger.rows}
    assert timed == {(0, "mine"), *((process, "fake") for process in range(3))} | {
        (process, "fake+fake") for process in range(3)
    }
    profile = assemble(ledger)
    assert [(lost.name, lost.reason) for lost in profile.lost_kernels] == [
        ("mine:kernel", "it crashed with SIGSEGV")
    ]
    rows = {(r.operator, r.arm): r for r in profile.rows if r.implementation == "mine"}
    assert {r.failure for r in rows.values()} == {"importing mine:kernel: it crashed with SIGSEGV"}
    assert {key for key in rows if key[0] != "layer"} == {("up", "fused"), ("down", "fused")}
    assert {r.blocks for r in profile.rows if r.arm == "bypass"} == {21}

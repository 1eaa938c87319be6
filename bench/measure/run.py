"""The timing plan: a pilot fixes how many fresh blocks there will be; processes share the fresh ones.

    process 0   per format:  verify | per batch:  pilot x 10 | fresh x 1/3
    process 1   per format:  verify | per batch:               fresh x 1/3
    process 2   per format:  verify | per batch:               fresh x 1/3

A block times every arm of every operator once, in random order. The pilot is never part of an estimate: its
width only says how many blocks the estimate needs (stopping when an interval looks narrow enough would make
it lie). Blocks come from several processes because where a process lands in memory moves its times.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import pyarrow as pa

from bench.analysis import decompose
from bench.analysis.arms import ArmKey
from bench.analysis.arms import Problem as ProblemKey
from bench.measure.devices import Device, Mode, open_device
from bench.measure.journal import Journal
from bench.measure.session import ArmName, ArmState, Timed
from bench.measure.worker import Opened, Setup, Worker, WorkerDied
from kernels.formats import WeightFormat
from profiles.schema import Operator, Protocol, Traffic, Workload, samples_schema

CELL_S = 5.0  # a format and batch takes about this long at most, unless the least blocks take longer
MAX_DEATHS = 20
WHY_NULL = {
    "minor_faults": "a sample on this device is not timed by the host",
    "involuntary_switches": "a sample on this device is not timed by the host",
    "steal_s": "a sample on this device is not timed by the host, or /proc/stat is not there",
    "probe_us": "this device has no parallel region to probe",
    "sm_clock_mhz": "clocks are read with the energy sensors, which are not measured yet",
    "temperature_c": "temperature is read with the energy sensors, which are not measured yet",
}


@dataclass(frozen=True)
class Plan:
    """What to measure. None for activation and mode: the device's default."""

    gpu: str
    model: str
    layers: int
    operators: tuple[Operator, ...]
    formats: tuple[WeightFormat, ...]
    batches: tuple[int, ...]
    activation: Literal["fp16", "bf16"] | None
    mode: Mode | None
    protocol: Protocol
    seed: int = 0


@dataclass
class Result:
    """What a run found out, complete or not.

    Attributes:
        opened: the device, as its first worker described it.
        workload: what was run.
        facts: per arm, what is known besides its samples.
        complete: whether every planned block was run.
    """

    opened: Opened
    workload: Workload
    facts: dict[ArmKey, decompose.ArmFacts] = field(default_factory=dict)
    complete: bool = False


@dataclass(frozen=True)
class Progress:
    """Where a run is: what it does, seconds of work left as far as known, and the share done."""

    doing: str
    left_s: float | None
    done: float


class Run:
    """One run of a plan. `measure` does it; after Ctrl-C `result` holds what there is.

    Raises:
        DeviceError: the device is not there.
        WorkerDied: workers kept dying, and no kernel could be blamed.
        OSError: the journal cannot be written.
    """

    def __init__(
        self,
        plan: Plan,
        journal: Journal,
        report: Callable[[Progress], None],
        opener: Callable[[str], Device] = open_device,
    ) -> None:
        self.plan = plan
        self._opener = opener
        self.journal = journal
        self.result: Result | None = None
        self._report = report
        self._skip: dict[ArmName, str] = {}
        self._repeats: dict[ArmName, int] = {}
        self._blocks: dict[tuple[str, int], int] = {}  # fresh blocks of a format and batch
        self._block_s: dict[tuple[str, int], float] = {}
        self._cells_done = 0
        self._deaths = 0

    def measure(self) -> Result:
        """Runs the plan; returns when every block has been timed."""
        self._report(Progress("opening the device", None, 0.0))
        for process in range(self.plan.protocol.processes):
            self._process(process)
        assert self.result is not None
        self.result.complete = True
        return self.result

    def _process(self, process: int) -> None:
        worker = self._open()
        try:
            for weight_format in self.plan.formats:
                worker = self._begin(worker, weight_format, process)
                for batch in self.plan.batches:
                    worker = self._cell(worker, weight_format, batch, process)
                    self._cells_done += 1
        finally:
            worker.close()

    def _open(self) -> Worker:
        plan = self.plan
        setup = Setup(plan.gpu, plan.operators, plan.activation, plan.mode, self._skip)
        worker = Worker(setup, self._opener)
        if self.result is None:
            opened = worker.opened
            workload = Workload(
                model=plan.model,
                layers=plan.layers,
                operators=plan.operators,
                activation=opened.activation,
                formats=tuple(f.name for f in plan.formats),
                batches=plan.batches,
                launch_mode=opened.mode,
                cache_state="cold",
                rotation_bytes=0,
                seeds={"order": plan.seed},
            )
            self.result = Result(opened, workload)
        return worker

    def _begin(self, worker: Worker, weight_format: WeightFormat, process: int) -> Worker:
        """Verifies a format's arms; a kernel that kills the worker is skipped and the rest verified again."""
        doing = f"process {process + 1}: verifying {weight_format.name}"
        self._report(Progress(doing, self._left_s(process), self._done()))
        while True:
            try:
                begun = worker.begin(weight_format.name, self.plan.batches, self._repeats)
                break
            except WorkerDied as death:
                worker = self._replace(worker, death)
        assert self.result is not None
        known = self.result.workload.rotation_bytes or begun.rotation_bytes
        self.result.workload = self.result.workload.model_copy(
            update={"rotation_bytes": min(known, begun.rotation_bytes)}
        )
        for state in begun.states:
            self._note(state)
        return worker

    def _note(self, state: ArmState) -> None:
        """Records what verification said of an arm; the first failure stays."""
        assert self.result is not None
        if not state.failure:
            self._repeats.setdefault(state.name, state.repeats)
        key = self._key(state.name)
        known = self.result.facts.get(key)
        if known is None or known.failure is None:
            self.result.facts[key] = decompose.ArmFacts(
                error_vs_reference=state.error,
                traffic=Traffic(
                    bytes_read=state.traffic.bytes_read,
                    bytes_written=state.traffic.bytes_written,
                    flops=state.traffic.flops,
                ),
                failure=state.failure or None,
                calls_per_sample=None if state.failure else state.repeats,
            )

    def _cell(self, worker: Worker, weight_format: WeightFormat, batch: int, process: int) -> Worker:
        """The blocks of one format and batch in one process."""
        cell = (weight_format.name, batch)
        if process == 0:
            for block in range(self.plan.protocol.pilot_blocks):
                worker = self._block(worker, weight_format, batch, process, "pilot", block)
            self._blocks[cell] = self._fresh_blocks(cell)
        share = self._share(self._blocks[cell], process)
        for block in range(share):
            worker = self._block(worker, weight_format, batch, process, "fresh", block)
        return worker

    def _block(
        self,
        worker: Worker,
        weight_format: WeightFormat,
        batch: int,
        process: int,
        phase: str,
        block: int,
    ) -> Worker:
        """One block, again after a crash without the kernel that crashed."""
        total = self._blocks.get((weight_format.name, batch))
        of = f" of {self._share(total, process)}" if total and phase == "fresh" else ""
        doing = f"process {process + 1}: {weight_format.name}, batch {batch}, {phase} {block + 1}{of}"
        self._report(Progress(doing, self._left_s(process), self._done()))
        seed = (self.plan.seed, process, batch, block, int(phase == "fresh"))
        while True:
            try:
                timed = worker.block(batch, seed)
                break
            except WorkerDied as death:
                worker = self._replace(worker, death)
                worker = self._begin(worker, weight_format, process)
        self._note_block_s(weight_format.name, batch, timed)
        self.journal.add([self._row(t, process, phase, block) for t in timed])
        return worker

    def _replace(self, worker: Worker, death: WorkerDied) -> Worker:
        """A new worker that leaves the suspect alone."""
        worker.close()
        self._deaths += 1
        if death.suspect is None or self._deaths > MAX_DEATHS:
            raise death
        self._skip[death.suspect] = str(death)
        assert self.result is not None
        key = self._key(death.suspect)
        self.result.facts[key] = decompose.ArmFacts(failure=str(death))
        return self._open()

    def _fresh_blocks(self, cell: tuple[str, int]) -> int:
        """Blocks for the target width, at least the protocol's minimum, within the time of a cell."""
        assert self.result is not None
        pilot = [r for r in self.journal.rows if (r["format"], r["batch"]) == cell]
        protocol = self.plan.protocol
        needed = decompose.fresh_blocks(samples_table(pilot), self.result.workload, protocol)
        blocks = max(needed.values(), default=protocol.fresh_blocks_minimum)
        affordable = math.floor(CELL_S / self._block_s[cell])
        blocks = max(protocol.fresh_blocks_minimum, min(blocks, affordable))
        return math.ceil(blocks / protocol.processes) * protocol.processes

    def _share(self, blocks: int, process: int) -> int:
        return blocks // self.plan.protocol.processes

    def _note_block_s(self, weight_format: str, batch: int, timed: list[Timed]) -> None:
        """Remembers how long a block takes: its samples and the discarded launch before each."""
        seconds = sum(t.sample.time_s * (t.sample.calls + 1) + 1e-4 for t in timed)
        self._block_s[weight_format, batch] = seconds

    def _left_s(self, process: int) -> float | None:
        """Seconds of timing left, from the blocks known so far; None before the first."""
        if not self._block_s:
            return None
        cells = [(f.name, b) for f in self.plan.formats for b in self.plan.batches]
        known = [c for c in cells if c in self._block_s]
        mean = sum(self._block_s[c] for c in known) / len(known)
        processes = self.plan.protocol.processes
        left = 0.0
        for index in range(self._cells_done, len(cells) * processes):
            cell = cells[index % len(cells)]
            blocks = self._blocks.get(cell, self.plan.protocol.fresh_blocks_minimum * 1.5) / processes
            if index < len(cells):
                blocks += self.plan.protocol.pilot_blocks
            left += blocks * self._block_s.get(cell, mean)
        return left

    def _done(self) -> float:
        total = len(self.plan.formats) * len(self.plan.batches) * self.plan.protocol.processes
        return self._cells_done / total

    def _key(self, name: ArmName) -> ArmKey:
        assert self.result is not None
        workload = self.result.workload
        problem = ProblemKey(
            name.operator, name.batch, name.format, workload.launch_mode, workload.cache_state
        )
        return ArmKey(problem, name.arm, name.implementation, name.variant, name.weight_format)

    def _row(self, timed: Timed, process: int, phase: str, block: int) -> dict[str, Any]:
        """A sample as a row of the samples table."""
        assert self.result is not None
        name, sample, workload = timed.name, timed.sample, self.result.workload
        operator = next(o for o in self.plan.operators if o.name == name.operator)
        return {
            "process": process,
            "block": block,
            "position": timed.position,
            "phase": phase,
            "operator": name.operator,
            "n": operator.n,
            "k": operator.k,
            "batch": name.batch,
            "format": name.format,
            "arm": name.arm,
            "implementation": name.implementation,
            "variant": name.variant,
            "weight_format": name.weight_format,
            "launch_mode": workload.launch_mode,
            "cache_state": workload.cache_state,
            "time_s": sample.time_s,
            "calls": sample.calls,
            "started_s": sample.started_s,
            "minor_faults": sample.minor_faults,
            "involuntary_switches": sample.involuntary_switches,
            "steal_s": sample.steal_s,
            "probe_us": sample.probe_us,
            "sm_clock_mhz": None,
            "temperature_c": None,
            "flags": " ".join(sample.flags),
        }


def samples_table(rows: list[dict[str, Any]]) -> pa.Table:
    """Samples as the table that a profile keeps, with a reason for every column without a value."""
    missing = {name: why for name, why in WHY_NULL.items() if all(r[name] is None for r in rows)}
    return pa.Table.from_pylist(rows, schema=samples_schema(missing))

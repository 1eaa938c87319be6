"""The timing plan: a pilot fixes how many fresh blocks there will be; processes share the fresh ones.

    process 0   per format:  verify  | per batch:  pilot x 10 | fresh x 1/3
    process 1   per format:  warm up | per batch:               fresh x 1/3
    process 2   per format:  warm up | per batch:               fresh x 1/3

A block times every arm of every operator once, in random order. The pilot is never part of an estimate: its
width only says how many blocks the estimate needs (stopping when an interval looks narrow enough would make
it lie). The pilot times the arms that a phi may be made of. Where a phi needs more fresh blocks than the
minimum, the ones beyond it time only the arms that have a part in it, spread among the full blocks. Blocks
come from several processes because where a process lands in memory moves its times.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from bench.analysis import decompose
from bench.analysis.arms import ArmKey
from bench.analysis.arms import Problem as ProblemKey
from bench.measure.devices import Device, Float16, Mode, open_device
from bench.measure.journal import Journal
from bench.measure.session import ArmName, ArmState, Timed
from bench.measure.worker import Opened, Setup, Worker, WorkerLostError
from kernels.formats import WeightFormat
from profiles.schema import Operator, Protocol, Traffic, Workload, samples_schema

CELL_S = 15.0  # the fresh blocks of a format and batch take about this long at most
MAX_DEATHS = 20
OVERHEAD_S = 1e-4  # between two samples
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
    activation: Float16 | None
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
        WorkerLostError: workers kept dying, and no kernel could be blamed.
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
        self._estimate_s: dict[ArmName, float] = {}
        self._lean: dict[tuple[str, int], set[ArmName]] = {}  # arms of blocks beyond the minimum
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
                seeds={"order": plan.seed, **opened.seeds},
            )
            self.result = Result(opened, workload)
        return worker

    def _begin(self, worker: Worker, weight_format: WeightFormat, process: int) -> Worker:
        """Verifies a format's arms; a kernel that kills the worker is skipped and the rest verified again."""
        doing = f"process {process + 1}: verifying {weight_format.name}"
        self._report(Progress(doing, self._left_s(), self._done()))
        while True:
            try:
                begun = worker.begin(weight_format.name, self.plan.batches, self._repeats)
                break
            except WorkerLostError as death:
                worker = self._replace(worker, death)
        assert self.result is not None
        known = self.result.workload.rotation_bytes or begun.rotation_bytes
        self.result.workload = self.result.workload.model_copy(
            update={"rotation_bytes": min(known, begun.rotation_bytes)}
        )
        for state in begun.states:
            self._note(state)
        for batch in self.plan.batches:
            cell = (weight_format.name, batch)
            self._block_s[cell] = self._cost_s(
                [n for n in self._repeats if (n.format, n.batch) == cell]
            )
        return worker

    def _note(self, state: ArmState) -> None:
        """Records what verification said of an arm; the first failure stays."""
        assert self.result is not None
        if not state.failure:
            self._repeats.setdefault(state.name, state.repeats)
        if state.estimate_s is not None:
            self._estimate_s.setdefault(state.name, state.estimate_s)
        key = self._key(state.name)
        known = self.result.facts.get(key)
        if known is None or (known.failure is None and state.failure):
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

    def _cell(
        self, worker: Worker, weight_format: WeightFormat, batch: int, process: int
    ) -> Worker:
        """The blocks of one format and batch in one process."""
        cell = (weight_format.name, batch)
        if process == 0:
            likely = self._likely(cell)
            for block in range(self.plan.protocol.pilot_blocks):
                worker = self._block(worker, weight_format, batch, process, "pilot", block, likely)
            self._plan_fresh(cell)
        share, full = self._share(self._blocks[cell]), self._share(self._least())
        for block in range(share):
            every = (block + 1) * full // share > block * full // share
            only = None if every else self._lean[cell]
            worker = self._block(worker, weight_format, batch, process, "fresh", block, only)
        return worker

    def _block(
        self,
        worker: Worker,
        weight_format: WeightFormat,
        batch: int,
        process: int,
        phase: str,
        block: int,
        only: set[ArmName] | None = None,
    ) -> Worker:
        """One block, again after a crash without the kernel that crashed."""
        total = self._blocks.get((weight_format.name, batch))
        of = f" of {self._share(total)}" if total and phase == "fresh" else ""
        doing = (
            f"process {process + 1}: {weight_format.name}, batch {batch}, {phase} {block + 1}{of}"
        )
        self._report(Progress(doing, self._left_s(), self._done()))
        seed = (self.plan.seed, process, batch, block, int(phase == "fresh"))
        while True:
            try:
                timed = worker.block(batch, seed, only, self.journal.elapsed_s)
                break
            except WorkerLostError as death:
                worker = self._replace(worker, death)
                worker = self._begin(worker, weight_format, process)
        self.journal.add([self._row(t, process, phase, block) for t in timed])
        return worker

    def _replace(self, worker: Worker, death: WorkerLostError) -> Worker:
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

    def _likely(self, cell: tuple[str, int]) -> set[ArmName]:
        """The arms that a phi may be made of: the pilot times no others.

        A 16-bit kernel that took more than twice as long as the fastest when it was verified, over
        the whole layer, is not going to be best16.
        """
        names = [n for n in self._estimate_s if (n.format, n.batch) == cell]
        sixteen = [n for n in names if n.weight_format in ("fp16", "bf16")]
        totals: dict[tuple[str, str, str], float] = defaultdict(float)
        for name in sixteen:
            totals[name.arm, name.implementation, name.variant] += self._estimate_s[name]
        limit = 2 * min(totals.values(), default=0.0)
        likely = {n for n in sixteen if totals[n.arm, n.implementation, n.variant] <= limit}
        return likely | {n for n in names if n.arm in ("fused", "bypass", "unfused")}

    def _plan_fresh(self, cell: tuple[str, int]) -> None:
        """From the pilot: how many fresh blocks, within the time of a cell, and the arms they need."""
        assert self.result is not None
        workload, protocol = self.result.workload, self.plan.protocol
        lost = {self._key(name) for name in self._skip}
        pilot = samples_table(
            [
                r
                for r in self.journal.rows
                if (r["format"], r["batch"]) == cell and _key(r) not in lost
            ]
        )
        compared = decompose.compared_arms(pilot, workload)
        self._lean[cell] = {name for name in self._repeats if self._key(name) in compared}
        full_s, lean_s = self._block_s[cell], self._cost_s(self._lean[cell])
        by_problem = sorted(decompose.fresh_blocks(pilot, workload, protocol).values())
        needed = by_problem[-2:][0] if by_problem else 0  # one noisy operator does not hold up all
        least = self._least()
        affordable = least + max(0, math.floor((CELL_S - least * full_s) / max(lean_s, 1e-6)))
        blocks = max(least, min(needed, affordable))
        self._blocks[cell] = math.ceil(blocks / protocol.processes) * protocol.processes

    def _cost_s(self, names: Collection[ArmName]) -> float:
        """Roughly what a block of these arms takes: launches, discarded ones, and the bookkeeping."""
        return sum(
            self._estimate_s.get(name, 0.0) * (self._repeats.get(name, 1) + 1) + OVERHEAD_S
            for name in names
        )

    def _least(self) -> int:
        """The least fresh blocks of a row, in equal shares for the processes."""
        protocol = self.plan.protocol
        return math.ceil(protocol.fresh_blocks_minimum / protocol.processes) * protocol.processes

    def _share(self, blocks: int) -> int:
        return blocks // self.plan.protocol.processes

    def _left_s(self) -> float | None:
        """Seconds of timing left, from the blocks known so far; None before the first."""
        if not self._block_s:
            return None
        cells = [(f.name, b) for f in self.plan.formats for b in self.plan.batches]
        mean = sum(self._block_s.values()) / len(self._block_s)
        protocol, least = self.plan.protocol, self._least()
        left = 0.0
        for index in range(self._cells_done, len(cells) * protocol.processes):
            cell = cells[index % len(cells)]
            full_s = self._block_s.get(cell, mean)
            lean_s = self._cost_s(self._lean.get(cell, ()))
            extra = self._blocks.get(cell, least) - least
            left += (least * full_s + extra * lean_s) / protocol.processes
            left += protocol.pilot_blocks * full_s / 2 if index < len(cells) else 0.0
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


def _key(row: dict[str, Any]) -> ArmKey:
    problem = ProblemKey(*(row[name] for name in ProblemKey._fields))
    return ArmKey(problem, *(row[name] for name in ArmKey._fields[1:]))


def samples_table(rows: list[dict[str, Any]]) -> pa.Table:
    """Samples as the table that a profile keeps, with a reason for every column without a value."""
    missing = {name: why for name, why in WHY_NULL.items() if all(r[name] is None for r in rows)}
    return pa.Table.from_pylist(rows, schema=samples_schema(missing))

"""The timing plan: a pilot fixes how many fresh blocks there will be; processes share the fresh ones.

    process 0   per format:  verify  | per batch:  pilot x 10 | fresh x 1/3
    process 1   per format:  warm up | per batch:               fresh x 1/3
    process 2   per format:  warm up | per batch:               fresh x 1/3
    energy      per format:  warm up | trials of idle, one arm for seconds on end, idle; see energy.py

A block times every arm of every operator once, in random order. The pilot is never part of an estimate: its
width only says how many blocks the estimate needs (stopping when an interval looks narrow enough would make
it lie). The pilot times the arms that a phi may be made of. Where a phi needs more fresh blocks than the
minimum, the ones beyond it time only the arms that have a part in it, spread among the full blocks. Blocks
come from several processes because where a process lands in memory moves its times.
"""

from __future__ import annotations

import contextlib
import math
import os
import sys
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any

from bench.analysis import decompose
from bench.analysis.arms import ArmKey
from bench.analysis.arms import Problem as ProblemKey
from bench.analysis.decompose import ARM_ORDER
from bench.analysis.energy import load_s, trial_delays
from bench.measure import resume
from bench.measure.devices import Burst, Device, DeviceError, open_device
from bench.measure.energy import EnergyLoad, announcement, in_order, loads
from bench.measure.journal import Journal
from bench.measure.ledger import Cell, Ledger, samples_table
from bench.measure.lock import DeviceLock
from bench.measure.meters import Meter, NoMeter, Recording, find_meter, same_sensor
from bench.measure.records import (
    BlockRecord,
    DeathRecord,
    EnergyPlan,
    FailedWindowsRecord,
    FinishedRecord,
    HeaderRecord,
    NoEnergyRecord,
    OpenedRecord,
    Phase,
    Plan,
    PlannedRecord,
    Readings,
    ResumedRecord,
    SensorRecord,
    SquareRecord,
    VerifiedRecord,
    WindowRecord,
)
from bench.measure.resume import ResumeError
from bench.measure.session import ArmName
from bench.measure.square import bursts
from bench.measure.worker import Opened, Setup, Worker, WorkerLostError
from kernels.formats import WeightFormat
from profiles.schema import DeviceInfo, Workload
from profiles.sensors import published_traits

CELL_S = 15.0  # the fresh blocks of a format and batch take about this long at most
MAX_DEATHS = 50  # of workers, each with a kernel to blame
MAX_UNEXPLAINED_DEATHS = 3
OVERHEAD_S = 1e-4  # between two samples


@dataclass(frozen=True)
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
    facts: dict[ArmKey, decompose.ArmFacts]
    complete: bool


@dataclass(frozen=True)
class Progress:
    """Where a run is: what it does, seconds of work left as far as known, and the share done."""

    doing: str
    left_s: float | None
    done: float


class Run:
    """One run of a plan, from its beginning or from where its journal ends.

    All that it learns it writes into the journal; `measure` does the work, and `result` is what the
    journal says, after Ctrl-C as well.

    Args:
        plan: what to measure; that of the journal's header where it has one.
        journal: new, or of a run that was interrupted.
        report: told before every block what is done.
        opener: how a worker opens its device.
        warn: told in sentences what is different from before the interruption.
        say: told in sentences what energy will be measured with, and how long that takes; and, when that
            happens, that a kernel cannot be imported.
        open_meter: finds what measures the energy of a device.

    Raises:
        DeviceError: the device is not there, or in use.
        ResumeError: it is another device than the journal's, or the kernels have changed.
        WorkerLostError: workers kept dying, and no kernel could be blamed.
        OSError: the journal cannot be written.
    """

    def __init__(
        self,
        plan: Plan,
        journal: Journal,
        report: Callable[[Progress], None],
        opener: Callable[[str], Device] = open_device,
        warn: Callable[[str], None] = lambda sentence: None,
        say: Callable[[str], None] = lambda sentence: None,
        open_meter: Callable[[DeviceInfo], Meter | NoMeter] = find_meter,
    ) -> None:
        self.plan = plan
        self._say = say
        self._open_meter = open_meter
        self._meter: Meter | NoMeter | None = None
        self._running: list[EnergyLoad] = []  # the load of the window that is being measured
        self._opener = opener
        self.journal = journal
        self._report = report
        self._warn = warn
        self._block_s: dict[Cell, float] = {}
        self._lean_s: dict[Cell, float] = {}
        self._cells_done = 0
        self._deaths = 0
        self._unexplained = 0
        self._resumed = self._ledger.header is not None
        self._checked = False  # the device is the journal's, and ours alone
        self._held = contextlib.ExitStack()

    @property
    def result(self) -> Result | None:
        """What is known so far; None before a device has been opened."""
        ledger = self.journal.ledger
        if ledger.opened is None:
            return None
        return Result(ledger.opened, ledger.workload, ledger.facts, ledger.finished)

    def measure(self) -> Result:
        """Runs what is left of the plan; returns when every block has been timed."""
        if self._ledger.header is None:
            created = datetime.now(UTC)
            argv = command_line()
            sources = resume.sources()
            self.journal.add(
                HeaderRecord(created=created, argv=argv, plan=self.plan, sources=sources)
            )
        if not self._ledger.finished:
            self._report(Progress("opening the device", None, 0.0))
            with self._held:
                for process in range(self.plan.protocol.processes):
                    self._process(process)
                self._energy()
            self.journal.add(FinishedRecord())
        assert self.result is not None
        return self.result

    @property
    def _ledger(self) -> Ledger:
        return self.journal.ledger

    def _process(self, process: int) -> None:
        left = [
            (
                weight_format,
                [b for b in self.plan.batches if self._unfinished(weight_format, b, process)],
            )
            for weight_format in self.plan.formats
        ]
        worker = self._open() if any(batches for _, batches in left) else None
        try:
            for weight_format, batches in left:
                if worker is not None and batches:
                    worker = self._begin(worker, weight_format, process)
                for batch in self.plan.batches:
                    if worker is not None and batch in batches:
                        worker = self._cell(worker, weight_format, batch, process)
                    self._cells_done += 1
        finally:
            if worker is not None:
                worker.close()

    def _start(self) -> Worker:
        """A worker, without the kernels whose import takes it down, now or in an earlier process.

        Raises:
            WorkerLostError: it is something else.
        """
        plan, ledger = self.plan, self._ledger
        while True:
            kernels = tuple(name for name in plan.kernels if name not in ledger.unimportable)
            setup = Setup(
                plan.gpu, plan.operators, plan.activation, plan.mode, ledger.skip, ledger.bars,
                kernels, plan.deadline_s,
            )  # fmt: skip
            try:
                return Worker(setup, self._opener)
            except WorkerLostError as death:
                if death.importing not in kernels:
                    raise
                self.journal.add(
                    DeathRecord(suspect=None, reason=death.reason, importing=death.importing)
                )
                self._say(f"FAILED {death}; the run goes on without it.")

    def _open(self) -> Worker:
        """A worker on the device, once that is known to be the right one and in nobody's use."""
        ledger = self._ledger
        worker = self._start()
        if self._checked:
            return worker
        try:
            opened = worker.opened
            differences = resume.differences(ledger, opened, self.journal.path)
            # Not before it is open: which board this is, the worker alone may ask a driver. Opening times
            # nothing; what it costs another run on the device is a moment of one block.
            self._held.enter_context(DeviceLock(opened.device))
            if ledger.opened is None:
                self.journal.add(OpenedRecord(opened=opened))
            if self._resumed:
                now = datetime.now(UTC)
                argv = command_line()
                self.journal.add(ResumedRecord(created=now, argv=argv, differences=differences))
            for sentence in differences:
                self._warn(sentence)
            self._find_meter(opened.device)
            self._checked = True
        except BaseException:
            worker.close()
            raise
        return worker

    def _begin(self, worker: Worker, weight_format: WeightFormat, process: int) -> Worker:
        """Verifies a format's arms; a kernel that kills the worker is skipped and the rest verified again."""
        doing = f"process {process + 1}: verifying {weight_format.name}"
        self._report(Progress(doing, self._left_s(), self._done()))
        while True:
            try:
                begun = worker.begin(weight_format.name, self.plan.batches, self._ledger.repeats)
                break
            except WorkerLostError as death:
                worker = self._replace(worker, death)
        self.journal.add(
            VerifiedRecord(
                process=process,
                format=weight_format.name,
                rotation_bytes=begun.rotation_bytes,
                states=tuple(begun.states),
            )
        )
        for batch in self.plan.batches:
            cell = (weight_format.name, batch)
            self._block_s[cell] = self._cost_s(
                [n for n in self._ledger.repeats if (n.format, n.batch) == cell]
            )
        return worker

    def _unfinished(self, weight_format: WeightFormat, batch: int, process: int) -> bool:
        """Whether a cell has blocks that a process has still to run."""
        cell = (weight_format.name, batch)
        return cell not in self._ledger.planned or bool(self._fresh_left(cell, process))

    def _fresh_left(self, cell: Cell, process: int) -> list[int]:
        """The planned fresh blocks of a cell that a process has still to run."""
        blocks = range(self._share(self._ledger.planned[cell].fresh_blocks))
        return [b for b in blocks if (process, *cell, "fresh", b) not in self._ledger.blocks]

    def _cell(
        self, worker: Worker, weight_format: WeightFormat, batch: int, process: int
    ) -> Worker:
        """The blocks of one format and batch in one process, those that have not been run yet."""
        cell = (weight_format.name, batch)
        if cell not in self._ledger.planned:
            for block in range(self.plan.protocol.pilot_blocks):
                if (process, *cell, "pilot", block) not in self._ledger.blocks:
                    worker = self._block(worker, weight_format, batch, process, "pilot", block)
            self._plan_fresh(cell)
        for block in self._fresh_left(cell, process):
            worker = self._block(worker, weight_format, batch, process, "fresh", block)
        return worker

    def _only(self, cell: Cell, phase: Phase, block: int) -> set[ArmName] | None:
        """The arms of a block, None for all: it follows from the journal, so a resumed run takes the same."""
        if phase == "pilot":
            return self._likely(cell)
        planned = self._ledger.planned[cell]
        share, full = self._share(planned.fresh_blocks), self._share(self._least())
        every = (block + 1) * full // share > block * full // share
        return None if every else set(planned.lean)

    def _block(
        self,
        worker: Worker,
        weight_format: WeightFormat,
        batch: int,
        process: int,
        phase: Phase,
        block: int,
    ) -> Worker:
        """One block, again after a crash without the kernel that crashed."""
        cell = (weight_format.name, batch)
        planned = self._ledger.planned.get(cell)
        of = f" of {self._share(planned.fresh_blocks)}" if planned else ""
        doing = (
            f"process {process + 1}: {weight_format.name}, batch {batch}, {phase} {block + 1}{of}"
        )
        self._report(Progress(doing, self._left_s(), self._done()))
        seed = (self.plan.seed, process, batch, block, int(phase == "fresh"))
        while True:
            try:
                only = self._only(cell, phase, block)
                timed = worker.block(batch, seed, only, self.journal.elapsed_s)
                break
            except WorkerLostError as death:
                worker = self._replace(worker, death)
                worker = self._begin(worker, weight_format, process)
        self.journal.add(
            BlockRecord(
                process=process,
                format=weight_format.name,
                batch=batch,
                phase=phase,
                block=block,
                timed=tuple(timed),
            )
        )
        return worker

    def _find_meter(self, device: DeviceInfo) -> None:
        """Looks for an energy sensor, and says what will be measured with it.

        Raises:
            ResumeError: the windows so far were measured with another sensor.
        """
        plan, before = self.plan.energy, self._ledger.sensor
        self._meter = NoMeter("it was not asked for") if plan is None else self._open_meter(device)
        if isinstance(self._meter, NoMeter):
            record = SensorRecord(info=None, reason=self._meter.reason)
        else:
            self._held.callback(self._meter.close)
            info = self._meter.info
            record = SensorRecord(info=info, published=published_traits(info.model))
        if before is None or not self._ledger.square:
            self.journal.add(record)
        elif record.info is None:
            self._warn(f"the energy sensor of before is gone: {record.reason}.")
        elif not same_sensor(before.info, record.info):
            raise ResumeError(
                f"the joules of {self.journal.path} were measured with another sensor, or under another "
                f"power limit; resume it there, or start a new run."
            )
        if plan is not None:
            self._say(announcement(plan, record, len(self.plan.formats)))

    def _energy(self) -> None:
        """The energy windows of every format that are left. Whatever happens here, the times are there."""
        plan = self.plan.energy
        if plan is None or isinstance(self._meter, NoMeter):
            return
        for weight_format in self.plan.formats:
            try:
                self._energy_of(weight_format.name, plan)
            except (WorkerLostError, DeviceError) as lost:
                self.journal.add(NoEnergyRecord(format=weight_format.name, reason=str(lost)))

    def _energy_of(self, weight_format: str, plan: EnergyPlan) -> None:
        """The windows of one format. What fails in one costs that arm the rest of its windows.

        Raises:
            WorkerLostError: workers kept dying, and no arm could be blamed.
            DeviceError: the device is gone, or in use.
        """
        worker: Worker | None = None
        unexplained = 0
        try:
            while left := self._windows_left(weight_format, plan):
                worker = worker or self._open()
                if self._meter is None or isinstance(self._meter, NoMeter):
                    return
                self._running = []
                try:
                    self._windows(worker, self._meter, plan, left)
                except WorkerLostError as death:
                    worker.close()
                    worker = None
                    guilty = self._running or [ld for _, ld in left if death.suspect in ld.arms]
                    unexplained += not guilty
                    if unexplained > MAX_UNEXPLAINED_DEATHS:
                        raise
                    self._give_up_windows(dict.fromkeys(guilty, str(death)))
        finally:
            if worker is not None:
                worker.close()

    def _give_up_windows(self, failed: Mapping[EnergyLoad, str]) -> None:
        for load, reason in failed.items():
            self.journal.add(
                FailedWindowsRecord(
                    format=load.format, batch=load.batch, kernel=load.kernel, reason=reason
                )
            )

    def _windows_left(self, weight_format: str, plan: EnergyPlan) -> list[tuple[int, EnergyLoad]]:
        """The windows of a format that have not been measured, in order."""
        ledger = self._ledger
        if weight_format in ledger.no_energy:
            return []
        found = loads(ledger, weight_format, plan.batches, plan.arms)
        return [
            (trial, load)
            for trial, load in in_order(found, self.plan.seed, plan.rules.trials)
            if load.key not in ledger.failed_windows and (*load.key, trial) not in ledger.windows
        ]

    def _windows(
        self, worker: Worker, meter: Meter, plan: EnergyPlan, left: list[tuple[int, EnergyLoad]]
    ) -> None:
        """Measures windows of one format."""
        every = list(dict.fromkeys(load for _, load in left))
        first = min(every, key=lambda load: (load.batch, ARM_ORDER.index(load.kernel.arm)))
        self._report(Progress(f"energy: preparing {first.format}", None, 0.0))
        begun = worker.begin(
            first.format,
            sorted({load.batch for load in every}),
            self._ledger.repeats,
            [load.arms for load in every],
        )
        if begun.refused:
            self._give_up_windows(
                {ld: begun.refused[ld.arms] for ld in every if ld.arms in begun.refused}
            )
            return
        if self._ledger.square is None:
            self._report(Progress("energy: characterising the sensor", None, 0.0))
            wave = self._record(worker, meter, first, bursts(), 0, 0.0)
            self.journal.add(
                SquareRecord(
                    format=first.format,
                    batch=first.batch,
                    kernel=first.kernel,
                    loads=wave.loads,
                    readings=Readings.of(wave.trace),
                    sampling=wave.sampling,
                )
            )
        traits = self._ledger.traits
        if traits is None:
            why = "nothing is published about this sensor, and a square wave did not show what it is like"
            self.journal.add(NoEnergyRecord(format=first.format, reason=why))
            return
        seconds, delays_s = load_s(traits, plan.rules), trial_delays(traits, plan.rules)
        each_s = seconds + 2 * plan.rules.idle_s
        for index, (trial, load) in enumerate(left):
            doing = (
                f"energy: {load.format}, batch {load.batch}, {load.kernel.arm}, trial {trial + 1}"
            )
            self._report(Progress(doing, (len(left) - index) * each_s, index / len(left)))
            recorded = self._record(worker, meter, load, ((seconds, 0.0),), trial, delays_s[trial])
            self.journal.add(
                WindowRecord(
                    format=load.format,
                    batch=load.batch,
                    kernel=load.kernel,
                    trial=trial,
                    load=recorded.loads[0],
                    idle_s=plan.rules.idle_s,
                    rotation_bytes=begun.rotation_bytes,
                    readings=Readings.of(recorded.trace),
                    sampling=recorded.sampling,
                )
            )

    def _record(
        self,
        worker: Worker,
        meter: Meter,
        load: EnergyLoad,
        pattern: Sequence[Burst],
        trial: int,
        delay_s: float,
    ) -> Recording:
        """A load as its pattern says, with the sensor around it; a simulated device is at its moment."""
        self._running = [load]
        worker.ready(load.arms)
        seed = (self.plan.seed, self.plan.protocol.processes, load.batch, trial, 1)
        run = partial(worker.steady, pattern, seed, self.journal.elapsed_s)
        assert self.plan.energy is not None
        recording = meter.record(run, self.plan.energy.rules.idle_s, delay_s)
        self._running = []
        return recording

    def _replace(self, worker: Worker, death: WorkerLostError) -> Worker:
        """A new worker that leaves the suspect alone; without a suspect it may try again, not for ever."""
        worker.close()
        self.journal.add(DeathRecord(suspect=death.suspect, reason=str(death)))
        self._deaths += 1
        self._unexplained += death.suspect is None
        if self._deaths > MAX_DEATHS or self._unexplained > MAX_UNEXPLAINED_DEATHS:
            raise death
        return self._open()

    def _likely(self, cell: tuple[str, int]) -> set[ArmName]:
        """The arms that a phi may be made of: the pilot times no others.

        A 16-bit kernel that took more than twice as long as the fastest when it was verified, over
        the whole layer, is not going to be best16.
        """
        names = [n for n in self._ledger.estimate_s if (n.format, n.batch) == cell]
        sixteen = [n for n in names if n.weight_format in ("fp16", "bf16")]
        totals: dict[tuple[str, str, str], float] = defaultdict(float)
        for name in sixteen:
            totals[name.arm, name.implementation, name.variant] += self._ledger.estimate_s[name]
        limit = 2 * min(totals.values(), default=0.0)
        likely = {n for n in sixteen if totals[n.arm, n.implementation, n.variant] <= limit}
        return likely | {n for n in names if n.arm in ("fused", "bypass", "unfused")}

    def _plan_fresh(self, cell: tuple[str, int]) -> None:
        """From the pilot: how many fresh blocks, within the time of a cell, and the arms they need."""
        ledger, protocol = self._ledger, self.plan.protocol
        lost = {ledger.key(name) for name in ledger.skip}
        rows = [r for r in ledger.rows if (r["format"], r["batch"]) == cell]
        samples = samples_table([r for r in rows if not lost or _key(r) not in lost])
        pilot = decompose.read_pilot(samples, ledger.workload)
        compared = decompose.compared_arms(pilot)
        lean = tuple(name for name in ledger.repeats if ledger.key(name) in compared)
        full_s, lean_s = self._block_s[cell], self._cost_s(lean)
        by_problem = sorted(decompose.fresh_blocks(pilot, protocol).values())
        needed = by_problem[-2:][0] if by_problem else 0  # one noisy operator does not hold up all
        least = self._least()
        affordable = least + max(0, math.floor((CELL_S - least * full_s) / max(lean_s, 1e-6)))
        blocks = max(least, min(needed, affordable))
        self.journal.add(
            PlannedRecord(
                format=cell[0],
                batch=cell[1],
                fresh_blocks=math.ceil(blocks / protocol.processes) * protocol.processes,
                lean=lean,
            )
        )

    def _cost_s(self, names: Collection[ArmName]) -> float:
        """Roughly what a block of these arms takes: launches, discarded ones, and the bookkeeping."""
        return sum(
            self._ledger.estimate_s.get(name, 0.0) * (self._ledger.repeats.get(name, 1) + 1)
            + OVERHEAD_S
            for name in names
        )

    def _lean_cost_s(self, cell: Cell, lean: Collection[ArmName]) -> float:
        """The cost of a planned cell's lean block, remembered: progress asks for it after every block."""
        if cell not in self._lean_s:
            self._lean_s[cell] = self._cost_s(lean)
        return self._lean_s[cell]

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
            planned = self._ledger.planned.get(cell)
            left += least * full_s / protocol.processes
            if planned is not None:
                extra = planned.fresh_blocks - least
                left += extra * self._lean_cost_s(cell, planned.lean) / protocol.processes
            left += protocol.pilot_blocks * full_s / 2 if index < len(cells) else 0.0
        return left

    def _done(self) -> float:
        total = len(self.plan.formats) * len(self.plan.batches) * self.plan.protocol.processes
        return self._cells_done / total


def longest_s(plan: Plan) -> float:
    """What the blocks of a plan take at most, where the least of a cell fit into CELL_S; seconds.

    Of two formats at nine batches on a CPU of two cores they took 18 s per format and batch, verification
    included, and this allows 18.6 s.
    """
    protocol = plan.protocol
    pilot = protocol.pilot_blocks / protocol.fresh_blocks_minimum / 2  # half of the arms, or less
    return len(plan.formats) * len(plan.batches) * CELL_S * (1 + pilot)


def command_line() -> tuple[str, ...]:
    """The command line; bytes that are not UTF-8 are spelled out, for JSON has no place for them."""
    return (
        "bench.dequant",
        *(os.fsencode(a).decode(errors="backslashreplace") for a in sys.argv[1:]),
    )


def _key(row: dict[str, Any]) -> ArmKey:
    problem = ProblemKey(*(row[name] for name in ProblemKey._fields))
    return ArmKey(problem, *(row[name] for name in ArmKey._fields[1:]))

"""What the records of a run add up to.

A run changes what it knows only by adding a record, so a run that was interrupted knows the same again once
its journal has been read. Nothing here needs a device.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from bench.analysis import decompose
from bench.analysis.arms import ArmKey
from bench.analysis.arms import Problem as ProblemKey
from bench.analysis.characterise import Characterisation, characterise
from bench.analysis.joules import Key
from bench.analysis.traces import switched_s
from bench.measure.records import (
    AnyRecord,
    BlockRecord,
    DeathRecord,
    FailedWindowsRecord,
    FinishedRecord,
    HeaderRecord,
    NoEnergyRecord,
    OpenedRecord,
    Phase,
    Plan,
    PlannedRecord,
    ResumedRecord,
    SensorRecord,
    SquareRecord,
    VerifiedRecord,
    WindowRecord,
)
from bench.measure.session import ArmName, ArmState, Bar, Timed
from bench.measure.worker import Opened
from profiles.schema import Implementation, Kind, Traffic, Workload, samples_schema
from profiles.sensors import Traits, completed

if TYPE_CHECKING:
    import pyarrow as pa

CRASHES_OF_ONE_KERNEL = 2  # after these it is not tried on further problems
PEERS = "kernels.peers"  # the module of the field's kernels

WHY_NULL = {
    "minor_faults": "a sample on this device is not timed by the host",
    "involuntary_switches": "a sample on this device is not timed by the host",
    "steal_s": "a sample on this device is not timed by the host, or /proc/stat is not there",
    "probe_us": "this device has no parallel region to probe",
    "sm_clock_mhz": "clocks are read in the energy windows, not around a sample of milliseconds",
    "temperature_c": "temperature is read in the energy windows, not around a sample of milliseconds",
}

Cell = tuple[str, int]  # a format and a batch
WindowKey = tuple[str, int, Implementation, int]  # format, batch, arm of the layer, trial
BlockKey = tuple[int, str, int, Phase, int]  # process, format, batch, phase, block


@dataclass
class Ledger:
    """What is known of a run.

    Attributes:
        header: what was asked for; None before the first record.
        opened: the device, as its first worker described it.
        facts: per arm, what is known besides its samples.
        unimportable: kernels of somebody else that were lost when they were imported, and how. Where one could
            be imported before, its arms are skipped from then on.
        crashed: arms that took a worker with them, and how.
        skip: these, and arms whose kernel has crashed too often elsewhere; and why.
        timed: arms that have a sample.
        repeats: launches per sample of the verified arms.
        estimate_s: roughly the seconds of one launch, of the verified arms.
        rotation_bytes: least bytes touched between two uses of a weight copy; 0 before any.
        planned: fresh blocks per format and batch.
        blocks: those that have been run.
        rows: every sample, as columns by name (profiles.schema.SAMPLE_COLUMNS).
        elapsed_s: seconds of all samples and energy windows.
        sensor: what measures energy; None before a device has been opened.
        square: bursts that show how the sensor behaves; None before they were run.
        windows: energy windows.
        failed_windows: arms of layers that have no further ones, and why.
        no_energy: formats whose energy cannot be measured, and why.
        resumed: once for each time the run went on after an interruption.
        finished: whether every planned block has been run.
    """

    header: HeaderRecord | None = None
    opened: Opened | None = None
    facts: dict[ArmKey, decompose.ArmFacts] = field(default_factory=dict)
    unimportable: dict[str, str] = field(default_factory=dict)
    crashed: dict[ArmName, str] = field(default_factory=dict)
    skip: dict[ArmName, str] = field(default_factory=dict)
    timed: set[ArmName] = field(default_factory=set)
    repeats: dict[ArmName, int] = field(default_factory=dict)
    estimate_s: dict[ArmName, float] = field(default_factory=dict)
    rotation_bytes: int = 0
    planned: dict[Cell, PlannedRecord] = field(default_factory=dict)
    blocks: set[BlockKey] = field(default_factory=set)
    rows: list[dict[str, Any]] = field(default_factory=list)
    elapsed_s: float = 0.0
    sensor: SensorRecord | None = None
    square: SquareRecord | None = None
    windows: dict[WindowKey, WindowRecord] = field(default_factory=dict)
    failed_windows: dict[Key, str] = field(default_factory=dict)
    no_energy: dict[str, str] = field(default_factory=dict)
    resumed: list[ResumedRecord] = field(default_factory=list)
    finished: bool = False

    @classmethod
    def of(cls, records: Iterable[AnyRecord]) -> Ledger:
        """All that some records say."""
        ledger = cls()
        for record in records:
            ledger.add(record)
        return ledger

    @property
    def plan(self) -> Plan:
        """What is to be measured; there is a header."""
        assert self.header is not None
        return self.header.plan

    @property
    def workload(self) -> Workload:
        """What is run; a device has been opened."""
        assert self.opened is not None
        plan = self.plan
        return Workload(
            model=plan.model,
            layers=plan.layers,
            operators=plan.operators,
            activation=self.opened.activation,
            formats=tuple(f.name for f in plan.formats),
            batches=plan.batches,
            launch_mode=self.opened.mode,
            cache_state="cold",
            rotation_bytes=self.rotation_bytes,
            seeds={"order": plan.seed, **self.opened.seeds},
        )

    @property
    def kind(self) -> Kind:
        """The kind of evidence; a device has been opened."""
        assert self.opened is not None
        return self.opened.device.evidence

    @property
    def traits(self) -> Traits | None:
        """How the energy sensor behaves: as found here, where nothing was found as published."""
        if self.sensor is None:
            return None
        found = self.found_traits
        return self.sensor.published if found is None else completed(found, self.sensor.published)

    @property
    def found_traits(self) -> Traits | None:
        """How the energy sensor behaves, as far as it was found here."""
        if self.square is None or self.sensor is None or self.sensor.info is None:
            return None
        return self.characterised.traits(self.sensor.info.model)

    @cached_property
    def characterised(self) -> Characterisation:
        """What the bursts of load show of the sensor; they have been run."""
        assert self.square is not None
        return characterise(self.square.readings.trace(), switched_s(self.square.loads), self.kind)

    @property
    def bars(self) -> tuple[Bar, ...]:
        """Kernels that crashed again and again, and from which batch on they are not tried any more."""
        crashes: defaultdict[tuple[str, ...], list[ArmName]] = defaultdict(list)
        for name in self.crashed:
            crashes[name.kernel].append(name)
        return tuple(
            Bar(
                kernel,
                max(name.batch for name in names[:CRASHES_OF_ONE_KERNEL]),
                "not tried: "
                + " and ".join(
                    f"on {name.operator} at batch {name.batch} {self.crashed[name]}"
                    for name in names[:CRASHES_OF_ONE_KERNEL]
                ),
            )
            for kernel, names in crashes.items()
            if len(names) >= CRASHES_OF_ONE_KERNEL
        )

    @property
    def without_rows(self) -> list[str]:
        """Kernels of users that take nothing of what a finished run is about, by the names they were asked for.

        Those of the field (kernels/peers/) are all asked for, whatever the formats.
        """
        if self.opened is None or not self.finished:
            return []
        known = {(key.arm, key.implementation, key.variant) for key in self.facts}
        return [
            name
            for name, called in self.opened.users.items()
            if called not in known and not name.startswith(f"{PEERS}:")
        ]

    def key(self, name: ArmName) -> ArmKey:
        """An arm as analysis names it."""
        assert self.opened is not None
        problem = ProblemKey(name.operator, name.batch, name.format, self.opened.mode, "cold")
        return ArmKey(problem, name.arm, name.implementation, name.variant, name.weight_format)

    def add(self, record: AnyRecord) -> None:
        """Takes in the next record."""
        match record:
            case HeaderRecord():
                self.header = record
            case OpenedRecord():
                self.opened = record.opened
            case VerifiedRecord():
                self.rotation_bytes = min(
                    self.rotation_bytes or record.rotation_bytes, record.rotation_bytes
                )
                for state in record.states:
                    self._note(state)
            case PlannedRecord():
                self.planned[record.format, record.batch] = record
            case BlockRecord():
                self._add_block(record)
            case SensorRecord():
                self.sensor = record
            case SquareRecord():
                self.square = record
                self.elapsed_s += record.loads[-1].ended_s - record.loads[0].began_s
            case WindowRecord():
                self.windows[*record.key, record.trial] = record
                self.elapsed_s += record.load.ended_s - record.load.began_s
            case FailedWindowsRecord():
                self.failed_windows[record.key] = record.reason
            case NoEnergyRecord():
                self.no_energy[record.format] = record.reason
            case DeathRecord():
                if record.importing is not None:
                    self._lose(record.importing, record.reason)
                if record.suspect is not None:
                    self.crashed[record.suspect] = record.reason
                    self._give_up(record.suspect, record.reason)
                    for bar in self.bars:
                        for name in self.repeats.keys() - self.timed - self.skip.keys():
                            if bar.covers(name):
                                self._give_up(name, bar.reason)
            case ResumedRecord():
                self.resumed.append(record)
            case FinishedRecord():
                self.finished = True

    def _lose(self, user: str, reason: str) -> None:
        """A kernel of somebody else cannot be imported any more, or never could."""
        self.unimportable[user] = reason
        called = self.opened.users.get(user) if self.opened is not None else None
        for name in self.repeats.keys() - self.skip.keys():
            if (name.arm, name.implementation, name.variant) == called:
                self._give_up(name, f"importing {user}: {reason}")

    def _give_up(self, name: ArmName, reason: str) -> None:
        """The arm is not run again; samples that it has do not count."""
        self.skip[name] = reason
        self.facts[self.key(name)] = decompose.ArmFacts(failure=reason)

    def _note(self, state: ArmState) -> None:
        """What verification said of an arm; the first failure stays."""
        if not state.failure:
            self.repeats.setdefault(state.name, state.repeats)
        if state.estimate_s is not None:
            self.estimate_s.setdefault(state.name, state.estimate_s)
        key = self.key(state.name)
        known = self.facts.get(key)
        if known is None or (known.failure is None and state.failure):
            self.facts[key] = decompose.ArmFacts(
                error_vs_reference=state.error,
                traffic=Traffic(**asdict(state.traffic)) if state.traffic else None,
                failure=state.failure or None,
                activation_error=state.activation_error,
                reference_error=state.reference_error,
                local_bytes=state.local_bytes,
                configuration=state.configuration,
                calls_per_sample=None if state.failure else state.repeats,
            )

    def _add_block(self, record: BlockRecord) -> None:
        rows = [self._row(timed, record) for timed in record.timed]
        self.rows += rows
        self.timed |= {timed.name for timed in record.timed}
        self.elapsed_s += sum(row["time_s"] * row["calls"] for row in rows)
        self.blocks.add((record.process, record.format, record.batch, record.phase, record.block))

    def _row(self, timed: Timed, block: BlockRecord) -> dict[str, Any]:
        """A sample as a row of the samples table."""
        assert self.opened is not None
        name, sample = timed.name, timed.sample
        operator = next(o for o in self.plan.operators if o.name == name.operator)
        return {
            "process": block.process,
            "block": block.block,
            "position": timed.position,
            "phase": block.phase,
            "operator": name.operator,
            "n": operator.n,
            "k": operator.k,
            "batch": name.batch,
            "format": name.format,
            "arm": name.arm,
            "implementation": name.implementation,
            "variant": name.variant,
            "weight_format": name.weight_format,
            "launch_mode": self.opened.mode,
            "cache_state": "cold",
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
    import pyarrow as pa

    missing = {name: why for name, why in WHY_NULL.items() if all(r[name] is None for r in rows)}
    return pa.Table.from_pylist(rows, schema=samples_schema(missing))

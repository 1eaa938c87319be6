"""The facts of a run as the journal keeps them: the profile is made of these and of nothing else.

    header    what was asked for, when, and with which kernels and software; always first
    opened    the device, as the first worker found it
    verified  what a worker found out about the arms of a format
    planned   from the pilot: the fresh blocks of a format and batch
    block     one block with its samples
    sensor    what measures the energy of the run, or why nothing does
    square    bursts of load that show how the sensor behaves
    window    one energy window with the trace of its sensor
    failed_windows  why an arm has no further ones
    no_energy a format whose energy cannot be measured, and why
    death     a worker was lost, and the arm it was running
    resumed   the run went on after an interruption, and what was different then
    finished  every planned block has been run

All are plain data: they go to JSON and come back equal.
"""

from __future__ import annotations

import math
from datetime import datetime
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, PlainSerializer, PlainValidator, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from bench.analysis.energy import Rules
from bench.analysis.joules import Key
from bench.analysis.traces import CHANNELS, Load, Trace, Window
from bench.measure.devices import Float16, Mode
from bench.measure.power import Sampling, SensorInfo
from bench.measure.session import ArmName, ArmState, Timed
from bench.measure.worker import Opened
from kernels.formats import WeightFormat, find_format
from profiles.schema import Git, Implementation, Operator, Protocol, Record, Software
from profiles.sensors import Traits

Phase = Literal["pilot", "fresh"]
EnergyArms = Literal["default", "full"]


def _find_format(value: object) -> WeightFormat:
    return value if isinstance(value, WeightFormat) else find_format(str(value))


FormatByName = Annotated[
    WeightFormat, PlainValidator(_find_format), PlainSerializer(lambda known: known.name)
]


@dataclass(frozen=True)
class EnergyPlan:
    """Which energy windows to measure.

    Attributes:
        arms: best16, bypass, fused and unfused, or every arm of the layer.
        batches: of these problems.
        rules: length of a window, trials, idle time, and when to refuse.
    """

    arms: EnergyArms
    batches: tuple[int, ...]
    rules: Rules


@dataclass(frozen=True)
class Plan:
    """What to measure. None for activation and mode: the device's default; for energy: none."""

    gpu: str
    model: str
    layers: int
    operators: tuple[Operator, ...]
    formats: tuple[FormatByName, ...]
    batches: tuple[int, ...]
    activation: Float16 | None
    mode: Mode | None
    protocol: Protocol
    seed: int = 0
    energy: EnergyPlan | None = None
    kernels: tuple[str, ...] = ()  # somebody else's, by the names of kernels/user.py
    deadline_s: float | None = None  # of a kernel that is compiled and verified; None: the worker's


class Sources(Record):
    """What measures: the kernels, the checkout and the packages. `software` knows no driver yet."""

    kernels_sha256: str
    git: Git
    software: Software


class HeaderRecord(Record):
    """What was asked for; `created` is UTC."""

    record: Literal["header"] = "header"
    version: Literal[1] = 1
    created: datetime
    argv: tuple[str, ...]
    plan: Plan
    sources: Sources


class OpenedRecord(Record):
    """The device that the run is about."""

    record: Literal["opened"] = "opened"
    opened: Opened


class VerifiedRecord(Record):
    """The arms of a format in one process, and the bytes touched between two uses of a weight copy."""

    record: Literal["verified"] = "verified"
    process: int
    format: str
    rotation_bytes: int
    states: tuple[ArmState, ...]


class PlannedRecord(Record):
    """How many fresh blocks a format and batch get; those beyond the minimum time `lean` only."""

    record: Literal["planned"] = "planned"
    format: str
    batch: int
    fresh_blocks: int
    lean: tuple[ArmName, ...]


class BlockRecord(Record):
    """One block: every arm that was timed in it."""

    record: Literal["block"] = "block"
    process: int
    format: str
    batch: int
    phase: Phase
    block: int
    timed: tuple[Timed, ...]


class SensorRecord(Record):
    """What measures the energy of the run.

    Attributes:
        info: of the sensor; None: there is none.
        published: what is published of it.
        reason: why there is none, or none was asked for.
    """

    record: Literal["sensor"] = "sensor"
    info: SensorInfo | None
    published: Traits | None = None
    reason: str = ""


class Readings(Record):
    """A trace as columns without NaN; null is what a reading does not have.

    Columns that are null throughout are left out, and so are empty errors.
    """

    time_s: tuple[float, ...]
    read_s: tuple[float, ...]
    values: dict[str, tuple[float | None, ...]]
    errors: dict[int, str]

    @classmethod
    def of(cls, trace: Trace) -> Readings:
        """A trace, ready to be written."""
        return cls(
            time_s=tuple(trace.time_s.tolist()),
            read_s=tuple(trace.read_s.tolist()),
            values={
                channel: tuple(None if math.isnan(v) else v for v in column.tolist())
                for channel, column in trace.values.items()
                if not np.isnan(column).all()
            },
            errors={i: error for i, error in enumerate(trace.errors) if error},
        )

    def trace(self) -> Trace:
        """The trace again."""
        nothing: tuple[float | None, ...] = (None,) * len(self.time_s)
        return Trace(
            np.array(self.time_s),
            np.array(self.read_s),
            {c: np.array(self.values.get(c, nothing), float) for c in CHANNELS},
            tuple(self.errors.get(i, "") for i in range(len(self.time_s))),
        )


class LoadRecord(Record):
    """Base of what is of one arm on the whole layer."""

    format: str
    batch: int
    kernel: Implementation

    @property
    def key(self) -> Key:
        """Which arm."""
        return (self.format, self.batch, self.kernel)


class SquareRecord(LoadRecord):
    """Bursts of an arm with rests between them, and what the sensor said: how it behaves is in there."""

    record: Literal["square"] = "square"
    loads: tuple[Load, ...]
    readings: Readings
    sampling: Sampling


class WindowRecord(LoadRecord):
    """One energy window: an arm of the layer, and what the sensor said around it."""

    record: Literal["window"] = "window"
    trial: int
    load: Load
    idle_s: float
    rotation_bytes: int
    readings: Readings
    sampling: Sampling

    @property
    def window(self) -> Window:
        """As analysis takes it."""
        return Window(self.load, self.readings.trace(), self.idle_s, self.idle_s)


class FailedWindowsRecord(LoadRecord):
    """An arm has no further energy windows. Its times stand: they were taken before."""

    record: Literal["failed_windows"] = "failed_windows"
    reason: str


class NoEnergyRecord(Record):
    """The energy of a format cannot be measured."""

    record: Literal["no_energy"] = "no_energy"
    format: str
    reason: str


class DeathRecord(Record):
    """A worker was lost while it ran `suspect`; None when it ran no arm.

    `importing` is the kernel of somebody else that it was importing, by its name in the plan.
    """

    record: Literal["death"] = "death"
    suspect: ArmName | None
    reason: str
    importing: str | None = None


class ResumedRecord(Record):
    """The run went on; `differences` are sentences, `created` is UTC."""

    record: Literal["resumed"] = "resumed"
    created: datetime
    argv: tuple[str, ...]
    differences: tuple[str, ...]


class FinishedRecord(Record):
    """Every planned block has been run."""

    record: Literal["finished"] = "finished"


AnyRecord = (
    HeaderRecord
    | OpenedRecord
    | VerifiedRecord
    | PlannedRecord
    | BlockRecord
    | SensorRecord
    | SquareRecord
    | WindowRecord
    | FailedWindowsRecord
    | NoEnergyRecord
    | DeathRecord
    | ResumedRecord
    | FinishedRecord
)
_ADAPTER: TypeAdapter[AnyRecord] = TypeAdapter(Annotated[AnyRecord, Field(discriminator="record")])


def dump(record: AnyRecord) -> bytes:
    """A record as one JSON object without line breaks."""
    return _ADAPTER.dump_json(record)


def load(text: bytes) -> AnyRecord:
    """The record that `dump` made this of.

    Raises:
        ValueError: it is not one; the message is one line.
    """
    try:
        return _ADAPTER.validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the record"
        raise ValueError(f"{where}: {first['msg']}") from None

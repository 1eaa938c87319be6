"""The facts of a run as the journal keeps them: the profile is made of these and of nothing else.

    header    what was asked for, when, and with which kernels and software; always first
    opened    the device, as the first worker found it
    verified  what a worker found out about the arms of a format
    planned   from the pilot: the fresh blocks of a format and batch
    block     one block with its samples
    death     a worker was lost, and the arm it was running
    resumed   the run went on after an interruption, and what was different then
    finished  every planned block has been run

All are plain data: they go to JSON and come back equal.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field, PlainSerializer, PlainValidator, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from bench.measure.devices import Float16, Mode
from bench.measure.session import ArmName, ArmState, Timed
from bench.measure.worker import Opened
from kernels.formats import WeightFormat, find_format
from profiles.schema import Git, Operator, Protocol, Record, Software

Phase = Literal["pilot", "fresh"]


def _find_format(value: object) -> WeightFormat:
    return value if isinstance(value, WeightFormat) else find_format(str(value))


FormatByName = Annotated[
    WeightFormat, PlainValidator(_find_format), PlainSerializer(lambda known: known.name)
]


@dataclass(frozen=True)
class Plan:
    """What to measure. None for activation and mode: the device's default."""

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


class DeathRecord(Record):
    """A worker was lost while it ran `suspect`; None when it ran no arm."""

    record: Literal["death"] = "death"
    suspect: ArmName | None
    reason: str


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

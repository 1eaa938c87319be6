"""What is known of GPUs without having one: clocks, bandwidths and lanes, each with its source.

`specs/<gpu>.toml` holds one board, `specs/sm_<xy>.toml` the multiprocessor of its compute capability. A
number carries an interval, its unit, where it was read and what sort of evidence that is:

    measured    by `python -m bench.probe` on that board, with its toolchain and date
    datasheet   the vendor's own figure, or a database of such figures
    toolchain   read from the vendor's compiler: a belief, not a measurement
    fitted      found from published measurements
    assumed     neither: recalled, or the middle of what is said

Where published figures differ, the others stand beside the chosen one and the interval holds them all. A
number that nobody published is absent, and so is what would follow from it.

A report of the probes in `specs/measured/<gpu>.json` takes the place of what is published for that board's
pipes, read bandwidth and empty launch (`with_measured`). There is none in the repository: nobody has run them.

    gpu = load_gpu("h100")
    gpu.memory_gb_per_s.value, gpu.memory_gb_per_s.source
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from datetime import date
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError, model_validator

from profiles.record import Record
from profiles.schema import ProbeReport

SCHEDULERS = 4  # of a multiprocessor, since 5.0; each issues for one warp at a time
SPECS_FOLDER = Path(__file__).with_name("specs")
MEASURED_FOLDER = SPECS_FOLDER / "measured"
CAPABILITY_PREFIX = "sm_"
Sort = Literal["measured", "datasheet", "toolchain", "fitted", "assumed"]
# Of a measured number with a published one: a probe's loop has instructions of its own.
AGREEMENT = 0.03
CLEARLY = 1.5  # faster than the slow unit: two measured rates are never quite the same

# The instructions that are probed on each pipe. A pipe is as fast as the slowest of them.
PROBED: dict[str, tuple[str, ...]] = {
    "integer_lanes": ("LOP3", "PRMT"),
    "imad_lanes": ("IMAD",),
    "fp32_lanes": ("FFMA",),
    "half2_lanes": ("HFMA2",),
    "conversion_lanes": ("I2F",),
    "fast_conversion_lanes": ("I2FP", "F2FP"),
    "shared_lanes": ("SHFL", "LDS"),
}
# What takes lanes of fp32, by the pipe whose rate says how many at most.
SLOTS = {"imad_slots": "imad_lanes", "half2_slots": "half2_lanes"}


class Other(Record):
    """What another source says about the same number."""

    value: float
    sort: Sort
    source: str
    read_on: date


class Number(Record):
    """One number, its interval and where it comes from.

    Attributes:
        value: the one that is used.
        low: lower end of what it may be.
        high: upper end.
        unit: in words, as datasheets write it.
        sort: what kind of evidence it is.
        source: whose number it is.
        read_on: the day it was read there.
        others: what other sources say; all within the interval, unless the number was measured.
    """

    value: float
    low: float
    high: float
    unit: str
    sort: Sort
    source: str
    read_on: date
    others: tuple[Other, ...] = ()

    @model_validator(mode="after")
    def _within(self) -> Number:
        published = () if self.sort == "measured" else self.others
        for value in (self.value, *(other.value for other in published)):
            if not self.low <= value <= self.high:
                raise ValueError(f"{value} is not within {self.low} to {self.high} {self.unit}")
        if not self.source.strip() or not self.unit.strip():
            raise ValueError("a number needs a source and a unit")
        return self

    @property
    def disputed(self) -> bool:
        """Whether another source gives another value."""
        return any(self.differs(other.value) for other in self.others)

    def differs(self, value: float) -> bool:
        """Whether a value is another one; a measured number has no last digit in common with any."""
        least = AGREEMENT * self.value if self.sort == "measured" else 0.0
        return abs(value - self.value) > least


class Multiprocessor(Record):
    """One streaming multiprocessor (SM) of a compute capability. Lanes: thread-instructions per clock.

    Attributes:
        capability: such as "8.0".
        issue_lanes: all instructions: four schedulers of 32 lanes.
        integer_lanes: LOP3, SHF, PRMT, IADD3; FSETP, FSEL and FMNMX too.
        imad_lanes: IMAD and IDP, which run on the FMA pipe or on one half of it.
        imad_slots: of fp32_lanes that one IMAD takes.
        half2_lanes: HFMA2 and its kin; one instruction gives two results.
        half2_slots: of fp32_lanes that one HFMA2 takes; 0 where it has a pipe of its own.
        fp32_lanes: FFMA, FADD, FMUL.
        conversion_lanes: I2F and MUFU, the slow unit (XU).
        fast_conversion_lanes: I2FP and F2FP.
        shared_lanes: 32-bit accesses of shared memory, and shuffles.
        dram_latency_s: seconds from a load that misses every cache to its data; None: unknown.
        warps: resident at a time, at most.
        shared_memory_kib: KiB.
        registers: 32-bit ones.
    """

    capability: str
    issue_lanes: Number
    integer_lanes: Number
    imad_lanes: Number
    imad_slots: Number
    half2_lanes: Number
    half2_slots: Number
    fp32_lanes: Number
    conversion_lanes: Number
    fast_conversion_lanes: Number
    shared_lanes: Number
    dram_latency_s: Number | None = None
    warps: Number
    shared_memory_kib: Number
    registers: Number


class Gpu(Record):
    """One board. What is None has not been published, or not been found.

    Attributes:
        key: the name of its file.
        name: as its vendor writes it.
        aliases: what it is called on the command line.
        capability: compute capability.
        sms: multiprocessors.
        sm_clock_mhz: highest boost clock; from the base clock.
        memory_gib: capacity, 2^30 bytes, as the driver reports it: error correction and the driver's own share
            are off it, so that it is up to 6 % less than a datasheet's.
        memory_gb_per_s: peak bandwidth, 1e9 bytes per second.
        memory_bus_bits: width of the memory bus.
        memory_pin_gbit_per_s: data rate of one of its pins.
        l2_mb: last-level cache, MB.
        board_power_w: power limit.
        tensor_fp16_tflops: dense, fp32 accumulation.
        tensor_fp16_half_accumulate_tflops: dense, fp16 accumulation, where that is faster.
        tensor_fp8_tflops: dense.
        tensor_fp4_tflops: dense.
        dram_efficiency: the share of peak bandwidth that reading a large array reaches.
        launch_s: seconds that an empty kernel takes within a captured graph.
        multiprocessor: None where nothing is known about the compute capability.
    """

    key: str
    name: str
    aliases: tuple[str, ...]
    capability: str
    sms: Number
    sm_clock_mhz: Number
    memory_gib: Number
    memory_gb_per_s: Number
    memory_bus_bits: Number
    memory_pin_gbit_per_s: Number
    l2_mb: Number
    board_power_w: Number
    tensor_fp16_tflops: Number | None = None
    tensor_fp16_half_accumulate_tflops: Number | None = None
    tensor_fp8_tflops: Number | None = None
    tensor_fp4_tflops: Number | None = None
    dram_efficiency: Number | None = None
    launch_s: Number | None = None
    multiprocessor: Multiprocessor | None = None


def numbers(record: Record) -> dict[str, Number]:
    """Every number of a board or a multiprocessor that is known, by its name."""
    found = {name: getattr(record, name) for name in type(record).model_fields}
    return {name: value for name, value in found.items() if isinstance(value, Number)}


def measured(gpu: Gpu) -> dict[str, Number]:
    """The numbers of a board that were measured on it, by their names."""
    known = numbers(gpu) | (numbers(gpu.multiprocessor) if gpu.multiprocessor else {})
    return {name: number for name, number in known.items() if number.sort == "measured"}


def measured_notes(gpus: Iterable[Gpu]) -> list[str]:
    """A sentence for every board of which numbers were measured."""
    return [
        f"Measured, not published, are of {gpu.key} {', '.join(found)}: {next(iter(found.values())).source}."
        for gpu in gpus
        if (found := measured(gpu))
    ]


def with_measured(gpu: Gpu, report: ProbeReport) -> Gpu:
    """The board with what the probes found in place of what is published, which stands beside it.

    What no probe found, or found without an interval, stays as it is. Where fast conversions are about as fast
    as slow ones, both have the number of the slow: to a model they run on one pipe. No rate says whether
    IMAD or HFMA2 shares the pipe of fp32: their slots of it stay as published, but are never so many that the
    pipe would be slower than they were measured to be.

    Raises:
        ValueError: the probes ran on another board.
    """
    here, there = (report.capability, report.sms), (gpu.capability, round(gpu.sms.value))
    if here != there:
        raise ValueError(
            f"the probes ran on {report.board}, with {here[1]} multiprocessors of compute capability "
            f"{here[0]}, but {gpu.key} has {there[1]} of {there[0]}."
        )
    found = {row.name: row.value for row in report.rows}
    said: dict[str, Any] = {
        "sort": "measured",
        "source": f"bench.probe on {report.board}, {report.created:%Y-%m-%d}, {report.toolchain}",
        "read_on": report.created.date(),
    }

    def number(
        old: Number | None, unit: str, probes: Iterable[str], factor: float = 1.0
    ) -> Number | None:
        values = [
            (q.value, q.low, q.high)
            for q in (found[name] for name in probes if name in found)
            if q.value is not None and q.low is not None and q.high is not None
        ]
        if not values:
            return old
        others = () if old is None else (_as_other(old), *old.others)
        ends = {"value": min(v for v, _, _ in values), "low": min(v for _, v, _ in values),
                "high": max(v for _, _, v in values)}  # fmt: skip
        scaled = {name: factor * end for name, end in ends.items()}
        return Number.model_validate({**scaled, **said, "unit": unit, "others": others})

    pipes = gpu.multiprocessor
    if pipes is not None:
        lanes = {name: getattr(pipes, name) for name in PROBED}
        pipes = pipes.model_copy(
            update={
                name: number(old, old.unit, [f"rate {opcode}" for opcode in PROBED[name]])
                for name, old in lanes.items()
            }
        )
        slow, fast = pipes.conversion_lanes, pipes.fast_conversion_lanes
        if slow.sort == fast.sort == "measured" and fast.value <= CLEARLY * slow.value:
            pipes = pipes.model_copy(update={"fast_conversion_lanes": slow})
        pipes = pipes.model_copy(
            update={
                slots: _capped(getattr(pipes, slots), pipes.fp32_lanes, getattr(pipes, lanes), said)
                for slots, lanes in SLOTS.items()
            }
        )
    peak = gpu.memory_gb_per_s.value
    return gpu.model_copy(
        update={
            "multiprocessor": pipes,
            "launch_s": number(gpu.launch_s, "s", ["empty launch, graph"], 1e-6),
            "dram_efficiency": number(gpu.dram_efficiency, "fraction of peak", ["read"], 1 / peak),
        }
    )


def _capped(slots: Number, fp32: Number, lanes: Number, said: Mapping[str, Any]) -> Number:
    """Slots of one instruction: at most the fp32 lanes per measured lane of its own.

    At each end, too, but that an interval holds its value: one of fp32 that is the wider leaves a little more.
    """
    if lanes.sort != "measured":
        return slots
    value = min(slots.value, fp32.value / lanes.value)
    low = min(slots.low, fp32.high / lanes.high, value)
    high = max(min(slots.high, fp32.low / lanes.low), value)
    if (value, low, high) == (slots.value, slots.low, slots.high):
        return slots
    others = (_as_other(slots), *slots.others)
    return Number(value=value, low=low, high=high, unit=slots.unit, others=others, **said)


def _as_other(number: Number) -> Other:
    return Other(value=number.value, sort=number.sort, source=number.source, read_on=number.read_on)


def measured_file(gpu: Gpu) -> Path:
    """Where a report of the probes on this board is, if there is one."""
    return MEASURED_FOLDER / f"{gpu.key}.json"


def _read_measured(gpu: Gpu) -> Gpu:
    """The board with the report of its probes, where there is one.

    Raises:
        ValueError: the report cannot be read, or is of another board.
    """
    path = measured_file(gpu)
    if not path.exists():
        return gpu
    try:
        report = ProbeReport.model_validate_json(path.read_bytes())
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}.") from None
    except ValidationError as error:
        raise ValueError(
            f"{path} is no report of python -m bench.probe: {error.errors()[0]['msg']}."
        ) from None
    return with_measured(gpu, report)


@cache
def load_gpus() -> dict[str, Gpu]:
    """Every board in `specs/`, by the name of its file, with what was measured on it.

    Raises:
        ValueError: a report of measured rates cannot be used.
    """
    files = sorted(SPECS_FOLDER.glob("*.toml"))
    tables = {path.stem: _resolved(path) for path in files}
    multiprocessors = {
        table["capability"]: Multiprocessor(**table)
        for key, table in tables.items()
        if key.startswith(CAPABILITY_PREFIX)
    }
    return {
        key: _read_measured(
            Gpu(key=key, multiprocessor=multiprocessors.get(table["capability"]), **table)
        )
        for key, table in tables.items()
        if not key.startswith(CAPABILITY_PREFIX)
    }


def load_gpu(name: str) -> Gpu:
    """The board of that name or alias, in any mixture of cases.

    Raises:
        ValueError: no such board; the message lists those that exist.
    """
    gpus = load_gpus()
    for gpu in gpus.values():
        if name.lower() in (gpu.key, gpu.name.lower(), *gpu.aliases):
            return gpu
    raise ValueError(f"nothing is known of a GPU named {name!r}; choose one of {', '.join(gpus)}.")


def _resolved(path: Path) -> dict[str, Any]:
    """The fields of one file, each number with the text of its source in place of its short name."""
    table: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    sources = table.pop("sources")
    fields = table.pop("numbers")
    for number in fields.values():
        for said in (number, *number.get("others", ())):
            source = sources[said["source"]]
            said["source"], said["read_on"] = source["text"], source["read_on"]
    return {**table, **fields}

"""What is known of GPUs without having one: clocks, bandwidths and lanes, each with its source.

`specs/<gpu>.toml` holds one board, `specs/sm_<xy>.toml` the multiprocessor of its compute capability. A
number carries an interval, its unit, where it was read and what sort of evidence that is:

    datasheet   the vendor's own figure, or a database of such figures
    toolchain   read from the vendor's compiler: a belief, not a measurement
    fitted      found from published measurements
    assumed     neither: recalled, or the middle of what is said

Where published figures differ, the others stand beside the chosen one and the interval holds them all. A
number that nobody published is absent, and so is what would follow from it.

    gpu = load_gpu("h100")
    gpu.memory_gb_per_s.value, gpu.memory_gb_per_s.source
"""

from __future__ import annotations

import tomllib
from datetime import date
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pydantic import model_validator

from profiles.record import Record

SPECS_FOLDER = Path(__file__).with_name("specs")
CAPABILITY_PREFIX = "sm_"
Sort = Literal["datasheet", "toolchain", "fitted", "assumed"]


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
        others: what other sources say; all within the interval.
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
        for value in (self.value, *(other.value for other in self.others)):
            if not self.low <= value <= self.high:
                raise ValueError(f"{value} is not within {self.low} to {self.high} {self.unit}")
        if not self.source.strip() or not self.unit.strip():
            raise ValueError("a number needs a source and a unit")
        return self

    @property
    def disputed(self) -> bool:
        """Whether another source gives another value."""
        return any(other.value != self.value for other in self.others)


class Multiprocessor(Record):
    """One streaming multiprocessor (SM) of a compute capability. Lanes: thread-instructions per clock.

    Attributes:
        capability: such as "8.0".
        issue_lanes: all instructions: four schedulers of 32 lanes.
        integer_lanes: LOP3, SHF, PRMT, IADD3.
        half2_lanes: HFMA2 and its kin; one instruction gives two results.
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
    half2_lanes: Number
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


@cache
def load_gpus() -> dict[str, Gpu]:
    """Every board in `specs/`, by the name of its file."""
    files = sorted(SPECS_FOLDER.glob("*.toml"))
    tables = {path.stem: _resolved(path) for path in files}
    multiprocessors = {
        table["capability"]: Multiprocessor(**table)
        for key, table in tables.items()
        if key.startswith(CAPABILITY_PREFIX)
    }
    return {
        key: Gpu(key=key, multiprocessor=multiprocessors.get(table["capability"]), **table)
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

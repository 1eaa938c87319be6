"""The profile: what a run leaves behind, and all that a reader may rely on.

A profile is one JSON file and one Parquet file of samples beside it. The JSON holds the facts of
the run, one row per timed arm and one comparison per (operator, batch, format); the Parquet file
holds every sample, so that anyone can compute the first from the second again.

    run.json             Profile: device, software, workload, protocol, rows, comparisons
    run.1a2b3c4d.parquet every sample, columns in SAMPLE_COLUMNS; named and hashed by the JSON

Two rules hold everywhere. A number is a `Quantity` with an interval and the kind of evidence behind
it. A value that is not known is null, and the reason is written down beside it.

Units are the last word of a name (`_s _us _j _w _mhz _bytes _gb_per_s`); a name without one is a
ratio, a count or a word. After a change here, `python -m profiles.schema` writes `schema.json`
anew.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, field_validator, model_validator

from profiles.record import Facts as Facts
from profiles.record import Kind as Kind
from profiles.record import Quantity as Quantity
from profiles.record import Record as Record
from profiles.record import absent as absent
from profiles.record import quantities as quantities
from profiles.record import scaled as scaled
from profiles.sensors import Traits

if TYPE_CHECKING:
    import pyarrow as pa

SCHEMA_VERSION = 1
SCHEMA_FILE = Path(__file__).with_name("schema.json")
NOT_HERE = (
    "not on this device: "  # begins the failure of a kernel whose instructions a device lacks
)
LAYER = "layer"  # the operator name that stands for the sum over a layer's operators

Arm = Literal[
    "stream",
    "unpack",
    "scale",
    "bypass",
    "fused",
    "native",
    "vendor",
    "dequantize",
    "unfused",
    "lowp",
    "upcast",
]
Activation = Literal["fp16", "bf16"]
LaunchMode = Literal["graph", "eager"]
Limiter = Literal["DRAM", "L2", "issue", "XU", "ALU", "shared", "tensor", "latency", "launch"]
CacheState = Literal["cold", "hot"]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class DeviceInfo(Facts):
    """The machine or board that ran the kernels."""

    name: str
    kind: Literal["cpu", "cuda", "simulated", "modelled"]
    uuid_hash: str | None = Field(
        description="shortened SHA-256 of the board's or machine's own id"
    )
    cores: int | None = Field(
        description="CPU cores usable by the run, or streaming multiprocessors"
    )
    last_level_cache_bytes: int | None
    memory_bytes: int | None
    capability: str | None = Field(description="CUDA compute capability, or the CPU's vector sets")
    extra: dict[str, str | int | float | bool | None] = Field(default={})

    @property
    def evidence(self) -> Kind:
        """The kind of evidence that a run on it gives."""
        return self.kind if self.kind in ("simulated", "modelled") else "measured"


class Software(Facts):
    """Versions; null where a part is not installed or not used."""

    python: str
    os: str
    numpy: str | None
    torch: str | None
    triton: str | None
    numba: str | None
    driver: str | None
    cuda: str | None
    threading_layer: str | None
    extra: dict[str, str | int | float | bool | None] = Field(default={})


class Git(Facts):
    """The checkout that ran."""

    commit: str | None
    dirty: bool | None


class Operator(Record):
    """One linear operator y[batch, n] = x[batch, k] W[n, k]^T and how often a layer has it."""

    name: str
    n: Annotated[int, Field(gt=0)]
    k: Annotated[int, Field(gt=0)]
    count: Annotated[int, Field(gt=0)] = 1


class Workload(Record):
    """What was run."""

    model: str
    layers: Annotated[int, Field(gt=0)]
    operators: Annotated[tuple[Operator, ...], Field(min_length=1)]
    activation: Activation
    formats: tuple[str, ...]
    batches: tuple[Annotated[int, Field(gt=0)], ...]
    launch_mode: LaunchMode
    cache_state: CacheState
    rotation_bytes: Annotated[int, Field(ge=0)] = Field(
        description="bytes touched between two uses of one weight copy"
    )
    seeds: dict[str, int]


class Protocol(Record):
    """How it was timed, fixed before the first fresh block; a modelled profile has no blocks."""

    pilot_blocks: Annotated[int, Field(ge=0)]
    fresh_blocks_minimum: Annotated[int, Field(ge=0)]
    fresh_blocks_maximum: Annotated[int, Field(ge=0)]
    processes: Annotated[int, Field(ge=0)]
    target_half_width: Annotated[float, Field(gt=0)] = Field(
        description="largest half-width of a phi's interval, as a fraction of t(best16)"
    )
    confidence: Annotated[float, Field(gt=0, lt=1)]
    sample_minimum_s: Annotated[float, Field(gt=0)]
    interval_method: str = "hettmansperger-sheather"


class Implementation(Record):
    """Which kernel stands for an arm; with the problem it identifies a row."""

    arm: Arm
    implementation: str
    variant: str
    weight_format: str = Field(description="what the kernel reads: bf16, fp32 or the row's format")


class Traffic(Record):
    """What one call must move and do, counted from the shapes."""

    bytes_read: Annotated[int, Field(ge=0)]
    bytes_written: Annotated[int, Field(ge=0)]
    flops: Annotated[int, Field(ge=0)]


class ArmRow(Record):
    """One arm on one problem. The fields down to `kind`, with the device, are the row key.

    The operator "layer" is the sum over the layer's operators; it has no n and k. A kernel that
    crashed or gave wrong numbers has a `failure` and no time; so has one that needs instructions which the
    device lacks, and its failure begins with "not on this device: ".

    The arm `lowp` has two implementations: a product whose activations were quantized before ("triton"), and
    the same with their quantization in a launch before it ("triton+triton").
    """

    operator: str
    n: Annotated[int, Field(gt=0)] | None
    k: Annotated[int, Field(gt=0)] | None
    batch: Annotated[int, Field(gt=0)]
    format: str
    activation: Activation
    arm: Arm
    implementation: str
    variant: str
    weight_format: str
    launch_mode: LaunchMode
    cache_state: CacheState
    kind: Kind

    time_s: Quantity = Field(description="median seconds of one call, over the fresh blocks")
    calls_per_sample: Annotated[int, Field(gt=0)] | None = None
    blocks: Annotated[int, Field(ge=0)] = Field(default=0, description="fresh blocks")
    flags: tuple[str, ...] = ()
    converged: bool | None = Field(
        default=None,
        description="whether every phi that uses the arm met its target; null: none does",
    )
    error_vs_reference: Annotated[float, Field(ge=0)] | None = Field(
        default=None,
        description="largest error over the largest magnitude of the reference; null: not verified",
    )
    reference_error: Annotated[float, Field(ge=0)] | None = Field(
        default=None,
        description="a kernel that was compared with a reference of its own: how far that is from the "
        "product of x and the dequantized weights, at most, over the largest magnitude of it; null: it was "
        "compared with that product",
    )
    activation_error: Annotated[float, Field(ge=0)] | None = Field(
        default=None,
        description="lowp: what quantizing the activations changes y by, at most, over the largest "
        "magnitude of y, in float64; null: another arm",
    )
    local_bytes: Annotated[int, Field(ge=0)] | None = Field(
        default=None,
        description="bytes of local memory per thread, where registers spill; of a call of several launches, "
        "the last one's; null: not known, as on a CPU or of a library",
    )
    configuration: str = Field(
        default="",
        description='launch configuration: "untuned, ..." or "tuned, ..."; or the loop that a kernel with '
        "several runs at this batch; empty: it has none",
    )
    traffic: Traffic | None = None
    stream_bandwidth_fraction: Quantity = absent("the arm's traffic is not known")
    energy_j: Quantity = Field(
        default=absent("energy was not measured"),
        description="gross joules of one call, from windows of seconds; see `energy`",
    )
    failure: str | None = None
    limiter: Limiter | None = Field(
        default=None, description="of a modelled time: the resource that would take longest alone"
    )

    @property
    def key(self) -> tuple[object, ...]:
        """The row key, without the device that all rows of a profile share."""
        return (
            *(self.operator, self.n, self.k, self.batch, self.format, self.activation),
            *(self.arm, self.implementation, self.variant, self.weight_format),
            *(self.launch_mode, self.cache_state, self.kind),
        )

    @model_validator(mode="after")
    def _consistent(self) -> ArmRow:
        is_layer = self.operator == LAYER
        if (self.n is None) != is_layer or (self.k is None) != is_layer:
            raise ValueError(f'n and k are null for the operator "{LAYER}" and for no other')
        if self.failure is not None and self.time_s.value is not None:
            raise ValueError("a failed arm has no time: a fast wrong kernel is not data")
        return self


class Quality(Record):
    """How far one phi can be trusted."""

    half_width_over_best16: Annotated[float, Field(ge=0)] | None = Field(
        description="half-width of the interval of phi over t(best16)"
    )
    between_process_spread_s: Annotated[float, Field(ge=0)] | None = Field(
        description="half the range of the per-process medians of phi"
    )
    converged: bool | None = Field(
        description="half-width within the target; null: there is no phi"
    )
    flags: tuple[str, ...] = ()
    reason: str = ""

    @model_validator(mode="after")
    def _explained(self) -> Quality:
        values = (self.half_width_over_best16, self.between_process_spread_s, self.converged)
        if None in values and not self.reason.strip():
            raise ValueError("a null in the quality of a phi needs a reason")
        return self


class Extrapolated(Record):
    """A decode step: the layer times the layers. Not run; without lm_head and attention."""

    layers: Annotated[int, Field(gt=0)]
    best16_s: Quantity
    fused_s: Quantity
    unfused_s: Quantity
    phi_exposed_s: Quantity
    phi_unfused_s: Quantity


class Comparison(Record):
    """What dequantization cost on one problem; every difference and ratio is paired within blocks.

    phi_exposed_s = t(fused) - t(bypass), phi_unfused_s = t(unfused) - t(best16), and so in joules,
    cor_exposed = phi_exposed / t(bypass), cor_unfused = phi_unfused / t(best16),
    speedup_X = t(best16) / t(X), energy_ratio_X = the same in joules, non_stream_time_s = t(fused) - t(stream),
    quantization_s = t(lowp) - t(lowp_product).
    """

    operator: str
    n: Annotated[int, Field(gt=0)] | None
    k: Annotated[int, Field(gt=0)] | None
    batch: Annotated[int, Field(gt=0)]
    format: str
    activation: Activation
    launch_mode: LaunchMode
    cache_state: CacheState
    kind: Kind

    best16: Implementation | None = Field(description="the faster of the 16-bit arms, by name")
    fused: Implementation | None
    unfused: Implementation | None
    library: Implementation | None = Field(description="a library's own kernel for this format")
    upcast: Implementation | None = Field(default=None, description="16-bit weights times fp32")
    lowp: Implementation | None = Field(
        default=None, description="tensor cores take p-bit operands; x is quantized in every call"
    )
    lowp_product: Implementation | None = Field(
        default=None, description="the same product, x quantized before"
    )

    phi_exposed_s: Quantity
    phi_unfused_s: Quantity
    phi_exposed_j: Quantity = absent("energy was not measured")
    phi_unfused_j: Quantity = absent("energy was not measured")
    non_stream_time_s: Quantity
    cor_exposed: Quantity
    cor_unfused: Quantity
    speedup_fused: Quantity
    speedup_unfused: Quantity
    speedup_library: Quantity
    quantization_s: Quantity = absent("there is no lowp arm")
    speedup_upcast: Quantity = absent("there is no upcast arm")
    speedup_lowp: Quantity = absent("there is no lowp arm")
    energy_ratio_fused: Quantity = absent("energy was not measured")
    energy_ratio_unfused: Quantity = absent("energy was not measured")
    energy_flags: tuple[str, ...] = Field(
        default=(), description="words on the windows that these joules are made of"
    )
    quality_exposed: Quality
    quality_unfused: Quality
    extrapolated: Extrapolated | None = None

    @property
    def key(self) -> tuple[object, ...]:
        """What tells two comparisons of a profile apart."""
        return (
            *(self.operator, self.n, self.k, self.batch, self.format, self.activation),
            *(self.launch_mode, self.cache_state, self.kind),
        )

    @property
    def converged(self) -> bool | None:
        """Whether every phi there is met its target; None when there is no phi."""
        known = [
            quality.converged
            for quality in (self.quality_exposed, self.quality_unfused)
            if quality.converged is not None
        ]
        return all(known) if known else None

    @property
    def flags(self) -> tuple[str, ...]:
        """Flags of both phis, each once."""
        return tuple(dict.fromkeys(self.quality_exposed.flags + self.quality_unfused.flags))


class LostKernel(Record):
    """A kernel that was asked for by name and is lost: nothing but its name is known, so it has no row.

    Where it could be imported in an earlier process of the run, it has rows too, each with a failure.
    """

    name: str = Field(description="as it was asked for: my_module:my_kernel, or an entry point")
    reason: str = Field(description="what became of the process that imported it, a clause")


class Resumption(Record):
    """The run went on after an interruption."""

    at: datetime = Field(description="UTC, ISO 8601")
    differences: tuple[str, ...] = Field(
        description="sentences: what was not as it was when the run began, such as a version"
    )


class EnergyRow(Record):
    """Joules of one arm on the whole layer, from windows of seconds with nothing else running.

    Gross joules are all that the sensor's scope drew; net ones are without what it draws while idle.
    `layer_s` are seconds of one layer within the windows: the clock settles elsewhere than when arms take
    turns. The numbers per token are of a step of all layers, which was not run: extrapolated, and
    without lm_head, attention and the host.
    """

    batch: Annotated[int, Field(gt=0)]
    format: str
    kernel: Implementation
    energy_j: Quantity = Field(description="gross joules of one layer")
    net_j: Quantity = Field(description="without idle watts times time")
    token_j: Quantity = Field(
        description="gross joules of all layers, over the batch; extrapolated"
    )
    power_w: Quantity
    idle_w: Quantity = Field(description="before and after, with the context alive")
    layer_s: Quantity = Field(description="seconds of one layer within the windows")
    source: str | None = Field(description="the channel that energy_j comes from; null: none")
    sources: dict[str, float] = Field(
        description="gross joules of one layer by each channel of the sensor, side by side"
    )
    disagreement: float | None = Field(
        description="largest relative difference of two channels over the same time; null: one channel"
    )
    sm_clock_mhz: float | None = Field(description="mean over the windows; null: no such channel")
    memory_clock_mhz: float | None = Field(description="the same of the memory")
    temperature_begin_c: float | None = Field(
        description="lowest at the begin of a window; or null"
    )
    temperature_end_c: float | None = Field(description="highest at the end of a window; or null")
    throttle_share: float | None = Field(
        description="of the readings, those that name a reason to throttle; null: no such channel"
    )
    windows: Annotated[int, Field(ge=0)] = Field(description="that count")
    refused: tuple[str, ...] = Field(default=(), description="why the other windows do not count")
    flags: tuple[str, ...] = ()


class EnergyCurve(Record):
    """Joules per token over the batch, of one arm: token_j = a_j + b_j / batch, fitted."""

    format: str
    arm: Arm
    implementation: str
    a_j: Quantity = Field(description="what every token costs")
    b_j: Quantity = Field(description="what a step costs however many tokens it yields")
    largest_residual: Annotated[float, Field(ge=0)] | None = Field(
        description="of the fit, over the value; null: there is no fit"
    )
    fits: bool | None = Field(description="whether it describes its points; null: there is no fit")
    reason: str = Field(
        default="", description="why there is no fit, or why it does not describe its points"
    )


class SensorChannel(Record):
    """What a square wave showed of one channel of the energy sensor."""

    channel: str
    update_s: Quantity
    averaging_s: Quantity
    lag_s: Quantity
    residual_w: Annotated[float, Field(ge=0)] | None = Field(
        description="standard deviation of what the load does not explain"
    )


class EnergyProtocol(Record):
    """How energy was measured."""

    arms: Literal["default", "full"]
    batches: tuple[Annotated[int, Field(gt=0)], ...]
    window_s: Annotated[float, Field(gt=0)] = Field(description="least seconds that count")
    trials: Annotated[int, Field(ge=1)]
    idle_s: Annotated[float, Field(ge=0)] = Field(description="before and after each window")
    updates_minimum: Annotated[int, Field(ge=1)] = Field(description="of the sensor, in a window")
    rotation_bytes: Annotated[int, Field(ge=0)] | None = Field(
        description="least bytes touched between two uses of one weight copy; null: no window"
    )


class SamplingCost(Record):
    """What reading the sensor cost, over all windows."""

    readings: Annotated[int, Field(ge=0)]
    failed: Annotated[int, Field(ge=0)]
    late: Annotated[int, Field(ge=0)] = Field(description="by more than a period")
    longest_read_s: Annotated[float, Field(ge=0)]
    cpu_share: Annotated[float, Field(ge=0)] | None = Field(
        description="processor time of the reading thread over the time it ran"
    )


class Samples(Record):
    """A Parquet file beside the profile."""

    file: Annotated[str, Field(pattern=r"^[^/\\]+\.parquet$")]
    sha256: Sha256
    rows: Annotated[int, Field(ge=0)]


class Energy(Record):
    """Joules of a run, or why there are none."""

    reason: str = Field(default="", description="why there are none; empty when there are")
    sensor: str | None = None
    scope: str | None = Field(default=None, description="what the joules are of")
    channels: tuple[str, ...] = ()
    missing: dict[str, str] = Field(default={}, description="channel to why the sensor has none")
    facts: dict[str, str | int | float | bool | None] = Field(default={})
    published: Traits | None = Field(default=None, description="what is published of the sensor")
    characterised: Traits | None = Field(default=None, description="what this run found of it")
    characterised_reason: str = Field(default="", description="why that is null")
    characterised_channels: tuple[SensorChannel, ...] = ()
    characterised_load: str | None = Field(
        default=None, description="what was switched on and off for that"
    )
    protocol: EnergyProtocol | None = None
    rows: tuple[EnergyRow, ...] = ()
    curves: tuple[EnergyCurve, ...] = ()
    sampling: SamplingCost | None = None
    traces: dict[str, Samples] = Field(
        default={}, description="format to every reading of its windows, and of the square wave"
    )

    @model_validator(mode="after")
    def _explained(self) -> Energy:
        if not self.rows and not self.reason.strip():
            raise ValueError("energy without rows needs a reason")
        return self


class Parameter(Record):
    """One number that a modelled profile rests on; `profiles/specs/` has its source."""

    value: float
    low: float
    high: float
    unit: str
    sort: Literal["measured", "datasheet", "toolchain", "fitted", "assumed"]


class SupplyDemand(Record):
    """R: weights per second that the pipes allow over those that memory delivers, of one kernel."""

    format: str
    batch: Annotated[int, Field(gt=0)]
    kernel: Implementation
    ratio: Quantity = Field(description="at 100 % of issue; below 1 the kernel is cast-bound")
    at_reached_issue: float | None = Field(description="at 65 % of issue; null: no ratio")
    limiter: Limiter | None = Field(description="the pipe that runs out first; null: no ratio")


class Modelled(Record):
    """What a modelled profile rests on, and what it refused to say."""

    board: str = Field(description="its file in profiles/specs/")
    rows: Annotated[int, Field(ge=0)] = Field(description="arms on operators, as planned")
    refused: dict[str, Annotated[int, Field(gt=0)]] = Field(
        description="why a row has no time, to the number of such rows"
    )
    compiler: str
    model: str = Field(
        default="unversioned",
        description="version of the model, and the beginning of the SHA-256 of what defines it",
    )
    intervals: str = Field(description="where the intervals come from")
    notes: tuple[str, ...] = ()
    parameters: dict[str, Parameter]
    ratios: tuple[SupplyDemand, ...] = ()

    @property
    def refused_rows(self) -> int:
        """Rows without a time."""
        return sum(self.refused.values())


class ProbeRow(Record):
    """What a probe of this device found: the rate of an instruction, a bandwidth, the cost of a launch."""

    name: str = Field(description='"rate LOP3", "latency LDS", "dequant work nf4", "read", ...')
    unit: Literal["per clock and SM", "clocks", "s per weight", "GB/s", "us"]
    value: Quantity = Field(description="median of n rounds and its 95% interval")


class ProbeReport(Record):
    """What `python -m bench.probe` found on one board; `profiles/specs/measured/` holds such files.

    Attributes:
        board: as the driver names it.
        capability: compute capability, "9.0".
        sms: multiprocessors.
        created: when, in UTC.
        toolchain: what compiled and launched the probes, with versions.
        rows: the probes.
    """

    board: str
    capability: str
    sms: Annotated[int, Field(gt=0)]
    created: datetime
    toolchain: str
    rows: tuple[ProbeRow, ...]

    @model_validator(mode="after")
    def _measured(self) -> ProbeReport:
        if any(row.value.kind != "measured" for row in self.rows):
            raise ValueError("probes are measured, but these hold numbers of another kind")
        return self


class Profile(Record):
    """One run on one device. All quantities are of the profile's own kind."""

    schema_version: Literal[1] = 1
    created: datetime = Field(description="UTC, ISO 8601")
    kind: Kind
    complete: bool = Field(
        description="false when the run was cut short; what is here is still valid"
    )
    device: DeviceInfo
    software: Software
    git: Git
    argv: tuple[str, ...]
    workload: Workload
    kernels_sha256: Sha256 = Field(description="over the source files of the kernels")
    protocol: Protocol
    rows: tuple[ArmRow, ...]
    comparisons: tuple[Comparison, ...]
    energy: Energy = Energy(reason="energy was not measured")
    samples: Samples | None = None
    modelled: Modelled | None = Field(
        default=None, description="of a modelled profile: what it rests on"
    )
    resumed: tuple[Resumption, ...] = Field(
        default=(), description="one for each time the run went on after an interruption"
    )
    lost_kernels: tuple[LostKernel, ...] = Field(
        default=(), description="whose import raised, exited, hung or took its process with it"
    )
    probes: tuple[ProbeRow, ...] = Field(
        default=(), description="what `python -m bench.probe` added, on the same board"
    )

    @field_validator("created")
    @classmethod
    def _in_utc(cls, created: datetime) -> datetime:
        if created.utcoffset() != timedelta(0):
            raise ValueError("created must be in UTC, as in 2026-01-31T12:00:00Z")
        return created

    @model_validator(mode="after")
    def _unique_and_of_one_kind(self) -> Profile:
        energy = {
            quantity.kind
            for r in (*self.energy.rows, *self.energy.curves)
            for quantity in quantities(r)
        }
        if energy - {self.kind}:
            raise ValueError(f"a {self.kind} profile has joules of kind {sorted(energy)}")
        if self.modelled is not None and self.kind != "modelled":
            raise ValueError(f"a {self.kind} profile does not rest on a model")
        if {probe.value.kind for probe in self.probes} - {self.kind}:
            raise ValueError(f"a {self.kind} profile has probes of another kind")
        for name, items in (("row", self.rows), ("comparison", self.comparisons)):
            seen: set[tuple[object, ...]] = set()
            for item in items:
                if item.key in seen:
                    raise ValueError(f"two {name}s have the key {item.key}")
                seen.add(item.key)
                kinds = {item.kind} | {quantity.kind for quantity in quantities(item)}
                if kinds != {self.kind}:
                    raise ValueError(
                        f"a {self.kind} profile holds only {self.kind} values, "
                        f"but {name} {item.key} has {sorted(kinds)}"
                    )
        return self


@dataclass(frozen=True)
class Column:
    """One column of the samples file: name, Arrow type, meaning, and whether it may be null."""

    name: str
    type: Literal["int32", "int64", "float64", "string"]
    meaning: str
    nullable: bool = False


SAMPLE_COLUMNS = (
    Column("process", "int32", "which worker process, from 0"),
    Column(
        "block",
        "int32",
        "block within the phase of a process, from 0; a block times every arm once",
    ),
    Column("position", "int32", "order of the sample within its block"),
    Column("phase", "string", '"pilot" fixes the number of blocks; only "fresh" makes estimates'),
    Column("operator", "string", "operator name, as in the workload"),
    Column("n", "int32", "rows of W"),
    Column("k", "int32", "columns of W"),
    Column("batch", "int32", "rows of x"),
    Column("format", "string", "weight format of the problem"),
    Column("arm", "string", "rung of the causal ladder"),
    Column("implementation", "string", "who wrote the kernel"),
    Column("variant", "string", "tile variant"),
    Column(
        "weight_format", "string", "what the kernel reads: bf16, fp16, fp32 or the problem's format"
    ),
    Column("launch_mode", "string", "graph or eager"),
    Column("cache_state", "string", "cold or hot"),
    Column("time_s", "float64", "seconds of one call: the sample's duration over its calls"),
    Column("calls", "int32", "calls in the sample"),
    Column("started_s", "float64", "when the sample began, on the device's clock"),
    Column("minor_faults", "int64", "page faults during the sample", nullable=True),
    Column("involuntary_switches", "int64", "times the thread lost its core", nullable=True),
    Column("steal_s", "float64", "time the hypervisor took from all cores", nullable=True),
    Column("probe_us", "float64", "an empty parallel region beside the sample", nullable=True),
    Column("sm_clock_mhz", "float64", "clock of the multiprocessors", nullable=True),
    Column(
        "temperature_c", "float64", "temperature of the device, in degrees Celsius", nullable=True
    ),
    Column("flags", "string", "words separated by spaces; empty when nothing was odd"),
)


def samples_schema(missing: Mapping[str, str] | None = None) -> pa.Schema:
    """The Arrow schema of the samples file.

    Args:
        missing: for each column that is null throughout, why; kept in the schema's metadata.

    Raises:
        ValueError: `missing` names a column that does not exist or may not be null.
    """
    import pyarrow as pa

    missing = dict(missing or {})
    nullable = {column.name for column in SAMPLE_COLUMNS if column.nullable}
    if wrong := sorted(set(missing) - nullable):
        raise ValueError(f"{', '.join(wrong)}: not a column that may be null ({sorted(nullable)}).")
    fields = [
        pa.field(c.name, getattr(pa, c.type)(), c.nullable, metadata={"meaning": c.meaning})
        for c in SAMPLE_COLUMNS
    ]
    metadata = {
        "schema_version": str(SCHEMA_VERSION),
        "missing": json.dumps(missing, sort_keys=True),
    }
    return pa.schema(fields, metadata=metadata)


def schema_text() -> str:
    """The JSON Schema of a profile, as `schema.json` holds it."""
    return json.dumps(Profile.model_json_schema(), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    SCHEMA_FILE.write_text(schema_text(), encoding="utf-8")
    print(f"wrote {SCHEMA_FILE.name}")

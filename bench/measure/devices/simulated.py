"""A device without hardware, whose kernel times are planted: what the instrument must find again.

    python -m bench.dequant --gpu simulated:h100              # a quiet machine
    python -m bench.dequant --gpu simulated:h100/throttling   # one that misbehaves; see SCENARIOS

The true time of a launch is a sum of planted parts, so that every phi is known before it is measured:

    launches * launch_s + bytes / (bandwidth * share) + flops / compute + weights * row tiles * work_s

    phi exposed = weights * row tiles * (work_s of fused - work_s of bypass)

The numbers of a board are of the size of its datasheet's, and nothing else about them is real: this is no
model of that board, and its profiles are of the kind "simulated", which readers refuse unless asked.

What a machine does to a launch is a Scenario: noise, drift, boost decay, throttling, stalls, blocks that
depend on each other. Every sample is a function of the scenario, the block's seed, the seconds sampled
before the block, and what the block has run so far. Nothing is carried from block to block, so that a
block that is run again, in this process or another, gives the same samples.

The clock is virtual: samples alone move it, by as much as they took.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from bench.analysis.pairs import THROTTLED
from bench.analysis.traces import Load
from bench.measure.devices import (
    CHUNK_S,
    DEFAULT_ACTIVATION,
    Burst,
    DeviceError,
    Float16,
    Kind,
    Mode,
    PoolKey,
    Prepared,
    Problem,
    Sample,
)
from bench.measure.devices.seeded import seeded
from kernels.formats import FORMATS, LOWP_ALIASES
from kernels.kernel import Arm, Kernel, Launch, Tensors, traffic
from kernels.packing import Weights
from profiles.schema import DeviceInfo

PREFIX = "simulated:"
COLD_MULTIPLE = 2  # caches that must be touched between two uses of a copy for it to be cold
ROW_TILE = 16  # rows of x that share one dequantization of the weights
RIGHT_ERROR = 1e-4  # of an arm whose numbers are right
OTHER_STAGE_ERROR = 0.7  # of an arm that computes what another stage is asked for
_PURPOSES = ("", "sample", "block", "drift", "throttle", "arm", "process", "operator")


@dataclass(frozen=True)
class Board:
    """The planted machine.

    Attributes:
        name: as a profile says it.
        bandwidth_gb_per_s: of memory.
        cache_gb_per_s: of the last-level cache.
        compute_gflop_per_s: of multiply-adds, two operations each.
        launch_s: what a launch costs the device (t0 of METHOD section 4), in either mode.
        host_s: what an eager launch costs the host; it hides behind a longer kernel.
        cache_bytes: of the last level.
        memory_bytes: of the board.
        cores: streaming multiprocessors.
        idle_w: drawn by the idle board.
        busy_w: drawn by the board at most.
    """

    name: str
    bandwidth_gb_per_s: float
    cache_gb_per_s: float
    compute_gflop_per_s: float
    launch_s: float
    host_s: float
    cache_bytes: int
    memory_bytes: int
    cores: int
    idle_w: float
    busy_w: float


BOARDS = {
    "h100": Board(
        "simulated H100", 3350, 9000, 800e3, 2e-6, 8e-6, 50 << 20, 80 << 30, 132, 70, 600
    ),
    "a100": Board(
        "simulated A100", 2000, 6000, 300e3, 3e-6, 8e-6, 40 << 20, 80 << 30, 108, 50, 350
    ),
}


class Cost(NamedTuple):
    """What an arm costs on any board.

    Attributes:
        share: of the bandwidth that its loads and stores reach.
        work_s: per weight and row tile, beyond moving bytes and multiplying.
        launches: how many kernels it is.
        power: of what a busy board draws beyond an idle one, the share that it draws.
    """

    share: float
    work_s: float
    launches: int = 1
    power: float = 0.8


COSTS: dict[Arm, Cost] = {
    "stream": Cost(0.90, 0.0, power=0.70),
    "unpack": Cost(0.90, 0.02e-12, power=0.76),
    "scale": Cost(0.90, 0.05e-12, power=0.80),
    "bypass": Cost(0.90, 0.03e-12, power=0.78),
    "fused": Cost(0.90, 0.09e-12, power=0.84),
    "native": Cost(0.85, 0.01e-12, power=0.74),
    "vendor": Cost(0.92, 0.0, power=0.76),
    "dequantize": Cost(0.90, 0.06e-12, power=0.78),
    "unfused": Cost(0.90, 0.06e-12, launches=2, power=0.77),
    "lowp": Cost(0.90, 0.0, power=0.72),
    "upcast": Cost(0.80, 0.2e-12, power=0.82),
}
SW_THERMAL_SLOWDOWN = 0x20  # NVML's event reason
THROTTLED_POWER = 0.8  # of what a kernel draws, while the clock is throttled


@dataclass(frozen=True)
class Scenario:
    """How the simulated machine behaves. Shares are of the true time; the default does nothing.

    Attributes:
        seed: of everything random, beside the seed of the block.
        noise: standard deviation of the logarithm of a sample's factor.
        jitter_s: mean of an exponential delay added to a sample.
        block_noise: as `noise`, of a factor that all samples of a block share.
        drift: amplitude of a sine that every kernel's time follows; its phase is drawn per run.
        drift_s: period of that sine.
        warmup: share by which the first launches are slower; falls off by e in `warmup_s`.
        warmup_s: see there.
        boost: share by which the first launches are faster; falls off by e in `boost_s`.
        boost_s: see there.
        throttle: share by which a throttled clock is slower; its samples carry the flag `throttled`.
        throttle_s: length of an episode.
        throttle_every_s: there is one episode in each such stretch, anywhere in it.
        stall_share: of samples that stall.
        stall_s: length of a plateau; a stall lasts one, or with probability 1/2 one more, and so on.
        arm_noise: standard deviation of the logarithm of a factor that an arm keeps for a block.
        autocorrelation: of that factor between neighbouring blocks of one process, AR(1).
        process_noise: standard deviation of the logarithm of a factor that an arm keeps for a process.
        operator_noise: of one that an arm keeps on an operator for the whole run, whatever the batch.
        shift: share by which the fused arm is slower from one fresh block on.
        shift_block: that block, in its process.
        shift_process: the process in which it happens, for good; None: in each anew.
        free_bytes: memory for weights; None: nine tenths of the board's.
        as_slow_as: (arm, other): the arm takes the time of the other.
        errors: (arm, error): what verification finds of an arm.
        configurations: (configuration, factor): what a kernel's time is multiplied by in it.
    """

    seed: int = 1
    noise: float = 0.0
    jitter_s: float = 0.0
    block_noise: float = 0.0
    drift: float = 0.0
    drift_s: float = 1.0
    warmup: float = 0.0
    warmup_s: float = 1.0
    boost: float = 0.0
    boost_s: float = 1.0
    throttle: float = 0.0
    throttle_s: float = 0.0
    throttle_every_s: float = 1.0
    stall_share: float = 0.0
    stall_s: float = 8e-3
    arm_noise: float = 0.0
    autocorrelation: float = 0.0
    process_noise: float = 0.0
    operator_noise: float = 0.0
    shift: float = 0.0
    shift_block: int = 0
    shift_process: int | None = None
    free_bytes: int | None = None
    as_slow_as: tuple[tuple[Arm, Arm], ...] = ()
    errors: tuple[tuple[Arm, float], ...] = ()
    configurations: tuple[tuple[Hashable, float], ...] = ()


NOISE = 0.01
SCENARIOS = {  # their times are short, because the virtual seconds of a run are few
    "quiet": Scenario(noise=0.002),
    "noise": Scenario(noise=NOISE, jitter_s=2e-6),
    "moments": Scenario(noise=NOISE, block_noise=0.03),
    "stalls": Scenario(noise=NOISE, stall_share=0.08),
    "drift": Scenario(noise=NOISE, drift=0.03, drift_s=1.7),
    "boost": Scenario(noise=NOISE, boost=0.03, boost_s=0.3, warmup=0.2, warmup_s=0.01),
    "throttling": Scenario(noise=NOISE, throttle=0.3, throttle_s=0.15, throttle_every_s=0.6),
    "ar03": Scenario(arm_noise=NOISE, autocorrelation=0.3),
    "ar06": Scenario(arm_noise=NOISE, autocorrelation=0.6),
    "shift": Scenario(noise=NOISE, shift=0.05, shift_block=4),
    "shift-once": Scenario(noise=NOISE, shift=0.05, shift_block=4, shift_process=1),
    "shift-between": Scenario(noise=NOISE, shift=0.05, shift_process=1),
    "loud": Scenario(noise=0.5),
    "warm": Scenario(noise=0.002, free_bytes=64 << 20),
    "wrong": Scenario(noise=0.002, errors=(("fused", 0.25),)),
    "stale": Scenario(
        noise=0.002, as_slow_as=(("bypass", "fused"),), errors=(("bypass", OTHER_STAGE_ERROR),)
    ),
    "stale-unseen": Scenario(noise=0.002, as_slow_as=(("bypass", "fused"),)),
}


def find_simulated(name: str) -> tuple[Board, str]:
    """The board and the scenario's name that "simulated:BOARD" or "simulated:BOARD/SCENARIO" ask for.

    Raises:
        DeviceError: there is no such board or scenario; the message lists those there are.
    """
    board, _, scenario = name.strip().lower().removeprefix(PREFIX).partition("/")
    scenario = scenario or "quiet"
    if board not in BOARDS or scenario not in SCENARIOS:
        raise DeviceError(
            f"--gpu {name} is no simulated device. Use {PREFIX}BOARD or {PREFIX}BOARD/SCENARIO; "
            f"boards: {', '.join(BOARDS)}; scenarios: {', '.join(SCENARIOS)}."
        )
    return BOARDS[board], scenario


def open_simulated(name: str) -> SimulatedDevice:
    """The simulated device of that name.

    Raises:
        DeviceError: there is no such board or scenario.
    """
    board, scenario = find_simulated(name)
    return SimulatedDevice(board, SCENARIOS[scenario], scenario)


@dataclass(frozen=True)
class _Block:
    """Where a block is in its run; see bench.measure.run for the seed that says so."""

    seed: tuple[int, ...] = ()

    def _at(self, index: int, default: int = 0) -> int:
        return self.seed[index] if len(self.seed) == 5 else default

    @property
    def run(self) -> int:
        return self.seed[0] if self.seed else 0

    @property
    def process(self) -> int:
        return self._at(1)

    @property
    def index(self) -> int:
        return self._at(3)

    @property
    def fresh(self) -> bool:
        return bool(self._at(4, 1))


def true_time_s(board: Board, problem: Problem, kernel: Kernel, arm: Arm, mode: Mode) -> float:
    """Seconds of one launch of a kernel on cold weights, as planted; see the module.

    Args:
        board: the machine.
        problem: the operator.
        kernel: what is launched: it says which weights are read.
        arm: whose cost it has: its own, unless a scenario says otherwise.
        mode: in eager mode a launch takes at least the host's time.
    """
    reads = kernel.reads(problem.format, problem.activation)
    moved = traffic(kernel.arm, reads, problem.n, problem.k, problem.batch)
    cost = COSTS[arm]
    tiles = math.ceil(problem.batch / ROW_TILE)
    launches = cost.launches + (arm == "lowp" and "+" in kernel.implementation)
    seconds = (
        launches * board.launch_s
        + (moved.bytes_read + moved.bytes_written) / (board.bandwidth_gb_per_s * 1e9 * cost.share)
        + moved.flops / (board.compute_gflop_per_s * 1e9)
        + problem.n * problem.k * tiles * cost.work_s
    )
    return max(seconds, launches * board.host_s) if mode == "eager" else seconds


@dataclass
class SimulatedDevice:
    """See the module.

    Attributes:
        board: the planted machine.
        scenario: what happens to it.
        scenario_name: for the profile.
        arms: the arms there are kernels of.
    """

    board: Board
    scenario: Scenario = field(default_factory=Scenario)
    scenario_name: str = "custom"
    arms: tuple[Arm, ...] = tuple(arm for arm in COSTS if arm != "unfused")

    kind: Kind = field(default="simulated", init=False)
    default_activation: Float16 = field(default=DEFAULT_ACTIVATION["simulated"], init=False)
    default_mode: Mode = field(default="graph", init=False)
    own_cycle: bool = field(default=True, init=False)
    cache_bytes: int = field(init=False)
    _copies: dict[PoolKey, int] = field(default_factory=dict, init=False)
    _block: _Block = field(default_factory=_Block, init=False)
    _clock_s: float = field(default=0.0, init=False)
    _ready: tuple[Arm, float] = field(default=("stream", 0.0), init=False)
    _position: int = field(default=0, init=False)
    _cold_s: dict[tuple[object, ...], float] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self.cache_bytes = self.board.cache_bytes

    def describe(self) -> DeviceInfo:
        """The board, and the scenario it is in."""
        return DeviceInfo(
            name=f"{self.board.name} ({self.scenario_name})",
            kind="simulated",
            uuid_hash=None,
            cores=self.board.cores,
            last_level_cache_bytes=self.board.cache_bytes,
            memory_bytes=self.board.memory_bytes,
            capability=None,
            missing=dict.fromkeys(("uuid_hash", "capability"), "a simulated device has none"),
            extra={"scenario": self.scenario_name, "scenario_seed": self.scenario.seed},
        )

    def software(self) -> dict[str, str]:
        """Nothing is loaded."""
        return {}

    def now_s(self) -> float:
        """The virtual clock, seconds."""
        return self._clock_s

    def seeds(self) -> dict[str, int]:
        """The seed of the scenario; there are no inputs."""
        return {"scenario": self.scenario.seed}

    def free_bytes(self) -> int:
        """See the protocol; a scenario may be short of memory."""
        planted = self.scenario.free_bytes
        return self.board.memory_bytes * 9 // 10 if planted is None else planted

    def kernels(self, problem: Problem) -> tuple[Kernel, ...]:
        """One kernel per arm that accepts the problem; two of `lowp`, the second quantizes x as well."""
        kernels = (kernel for arm in self.arms for kernel in _kernels(arm))
        accepted = (problem.format, problem.activation, problem.batch)
        return tuple(kernel for kernel in kernels if kernel.accepts(*accepted))

    def prepare(self, problem: Problem, kernel: Kernel) -> Prepared:
        """Notes the problem: there are no weights."""
        reads = kernel.reads(problem.format, problem.activation)
        stored = traffic("stream", reads, problem.n, problem.k, problem.batch).bytes_read
        return Prepared(problem, kernel, (problem.operator, reads.name), stored)

    def verify(self, prepared: Prepared) -> float:
        """The planted error."""
        return dict(self.scenario.errors).get(prepared.kernel.arm, RIGHT_ERROR)

    def activation_error(self, prepared: Prepared) -> float | None:
        """There are no activations."""

    def reference_error(self, prepared: Prepared) -> float | None:
        """No planted kernel has a reference of its own."""

    def local_bytes(self, prepared: Prepared) -> int | None:
        """No registers are planted."""

    def warm(self, prepared: Prepared) -> None:
        """Nothing is compiled."""

    def estimate_s(self, prepared: Prepared) -> float:
        """The true seconds of one launch on cold weights."""
        return self._true_s(prepared, "graph")

    def rotate(self, copies: Mapping[PoolKey, int]) -> None:
        """See the protocol. A pool that touches less than twice the cache is partly found there."""
        self._copies = dict(copies)

    def start_block(self, seed: tuple[int, ...], elapsed_s: float) -> None:
        """Goes to the moment of that block; see the module."""
        self._block, self._clock_s, self._position = _Block(tuple(seed)), elapsed_s, 0

    def sample(self, prepared: Prepared, repeats: int, mode: Mode) -> Sample:
        """The true time, with all that the scenario does to it at this moment."""
        s, block, started_s = self.scenario, self._block, self._clock_s
        number = _number(prepared)
        rng = _random(s, "sample", *block.seed, number, self._position)
        noise, stalls, delay = rng.standard_normal(), rng.random(), rng.standard_exponential()
        level = s.noise * noise
        if s.block_noise:
            level += s.block_noise * _block_level(s, block.seed)
        if s.arm_noise:
            level += s.arm_noise * _autoregressive(s, block.seed, number)
        if s.process_noise:
            arm = zlib.crc32(prepared.kernel.arm.encode())
            level += s.process_noise * _kept(s, "process", block.run, block.process, arm)
        if s.operator_noise:
            level += s.operator_noise * _kept(s, "operator", block.run, number)
        factor = math.exp(level) * slowdown(s, block.run, started_s)
        factor *= 1 + self._shift(prepared.kernel.arm)
        touched = (self._copies.get(prepared.pool, 1 << 62) - 1) * prepared.copy_bytes
        seconds = repeats * factor * self._true_s(prepared, mode, touched) + s.jitter_s * delay
        if stalls < s.stall_share:
            seconds += s.stall_s * int(rng.geometric(0.5))
        self._clock_s += seconds
        self._position += 1
        flags = (THROTTLED,) if _throttled(s, block.run, started_s) else ()
        return Sample(seconds / repeats, repeats, started_s, flags=flags)

    def ready(self, layer: Sequence[tuple[Prepared, int]], copies: int, mode: Mode) -> None:
        """Notes which arm, and how long a layer of it takes."""
        touched = (copies - 1) * sum(count * prepared.copy_bytes for prepared, count in layer)
        layer_s = sum(count * self._true_s(prepared, mode, touched) for prepared, count in layer)
        self._ready = layer[0][0].kernel.arm, layer_s

    def steady(self, bursts: Sequence[Burst]) -> tuple[Load, ...]:
        """Layers back to back, chunk by chunk; each chunk as slow as the moment at which it begins."""
        loads = []
        for seconds, rest_s in bursts:
            loads.append(self._burst(*self._ready, seconds))
            self._clock_s += rest_s
        return tuple(loads)

    def _burst(self, arm: Arm, layer_s: float, seconds: float) -> Load:
        board, run = self.board, self._block.run
        drawn_w = COSTS[arm].power * (board.busy_w - board.idle_w)
        chunk = max(1, round(min(CHUNK_S, seconds / 4) / layer_s))
        marks: list[tuple[float, int]] = [(self._clock_s, 0)]
        planted: list[tuple[float, float, int]] = []
        end_s = self._clock_s + seconds
        while self._clock_s < end_s:
            throttled = _throttled(self.scenario, run, self._clock_s)
            share = THROTTLED_POWER if throttled else 1.0
            reasons = SW_THERMAL_SLOWDOWN if throttled else 0
            planted.append((self._clock_s, board.idle_w + share * drawn_w, reasons))
            self._clock_s += chunk * layer_s * slowdown(self.scenario, run, self._clock_s)
            marks.append((self._clock_s, marks[-1][1] + chunk))
        planted.append((self._clock_s, board.idle_w, 0))
        return Load(tuple(marks), tuple(planted))

    def check(self) -> None:
        """Nothing can break."""

    def release(self) -> None:
        """See the protocol."""
        self._copies = {}

    def _true_s(self, prepared: Prepared, mode: Mode, touched: float = math.inf) -> float:
        """Seconds of one launch; weights that are still in the cache come faster.

        Args:
            prepared: what is launched.
            mode: how.
            touched: bytes between two uses of a copy of its weights.
        """
        arm = dict(self.scenario.as_slow_as).get(prepared.kernel.arm, prepared.kernel.arm)
        seconds = self._on_cold_weights_s(prepared, arm, mode)
        seconds *= dict(self.scenario.configurations).get(prepared.configuration.config, 1.0)
        hit = max(0.0, 1 - touched / (COLD_MULTIPLE * self.board.cache_bytes))
        slow, fast = self.board.bandwidth_gb_per_s, self.board.cache_gb_per_s
        saved_s = prepared.copy_bytes * (1 / slow - 1 / fast) / (1e9 * COSTS[arm].share)
        return seconds - hit * saved_s

    def _on_cold_weights_s(self, prepared: Prepared, arm: Arm, mode: Mode) -> float:
        """`true_time_s`, remembered: every sample asks for it."""
        problem, kernel = prepared.problem, prepared.kernel
        key = (
            *(problem.operator, problem.n, problem.k, problem.batch, problem.format.name),
            *(problem.activation, kernel.arm, kernel.implementation, arm, mode),
        )
        if key not in self._cold_s:
            self._cold_s[key] = true_time_s(self.board, problem, kernel, arm, mode)
        return self._cold_s[key]

    def _shift(self, arm: Arm) -> float:
        """The level shift of an arm in this block, as a share."""
        s, block = self.scenario, self._block
        if arm != "fused" or not block.fresh or not s.shift:
            return 0.0
        process = block.process if s.shift_process is None else s.shift_process
        return s.shift if (block.process, block.index) >= (process, s.shift_block) else 0.0


def slowdown(s: Scenario, run: int, at_s: float) -> float:
    """What drift, warm-up, boost and throttling multiply every kernel's time by at a moment.

    Args:
        s: the scenario.
        run: the seed of the run.
        at_s: seconds on the virtual clock.
    """
    factor = 1.0
    if s.drift:
        phase = _phase(s, run)
        factor += s.drift * math.sin(2 * math.pi * (at_s / s.drift_s + phase))
    factor += s.warmup * math.exp(-at_s / s.warmup_s) - s.boost * math.exp(-at_s / s.boost_s)
    return factor * (1 + s.throttle * _throttled(s, run, at_s))


@lru_cache(maxsize=256)
def _phase(s: Scenario, run: int) -> float:
    """Of a run's drift, in periods."""
    return float(_random(s, "drift", run).random())


def _random(s: Scenario, what: str, *numbers: int) -> np.random.Generator:
    """A generator of its own for each purpose, each time at its beginning."""
    return seeded(_PURPOSES.index(what), s.seed, *numbers)


def _throttled(s: Scenario, run: int, at_s: float) -> bool:
    """Whether an episode is on: one begins at a random moment of every stretch."""
    if not s.throttle:
        return False
    now = int(at_s // s.throttle_every_s)
    return any(
        begin <= at_s < begin + s.throttle_s
        for begin in (_episode_s(s, run, stretch) for stretch in (now - 1, now))
    )


@lru_cache(maxsize=4096)
def _episode_s(s: Scenario, run: int, stretch: int) -> float:
    """When the episode of a stretch begins."""
    if stretch < 0:
        return -math.inf
    drawn = _random(s, "throttle", run, stretch).random()
    return (stretch + float(drawn)) * s.throttle_every_s


@lru_cache(maxsize=1)
def _block_level(s: Scenario, seed: tuple[int, ...]) -> float:
    """What all samples of a block share, of unit variance; remembered while the block lasts."""
    return float(_random(s, "block", *seed).standard_normal())


@lru_cache(maxsize=1 << 12)
def _kept(s: Scenario, what: str, *numbers: int) -> float:
    """A normal deviate that stays as long as its numbers do."""
    return float(_random(s, what, *numbers).standard_normal())


@lru_cache(maxsize=1 << 16)
def _autoregressive(s: Scenario, seed: tuple[int, ...], number: int) -> float:
    """AR(1) of unit variance over the blocks of a process: each decayed, plus its own innovation.

    A function of the seeds of this block and of those before it; remembered, for it is recursive.
    """
    own = float(_random(s, "arm", *seed, number).standard_normal())
    if len(seed) != 5 or seed[3] == 0 or not s.autocorrelation:
        return own
    before = _autoregressive(s, (*seed[:3], seed[3] - 1, seed[4]), number)
    rho = s.autocorrelation
    return rho * before + math.sqrt(1 - rho**2) * own


def _number(prepared: Prepared) -> int:
    """A number for an arm on a problem, the same in every process."""
    kernel, problem = prepared.kernel, prepared.problem
    words = (problem.operator, problem.format.name, kernel.arm, kernel.implementation)
    return zlib.crc32(" ".join(words).encode())


@lru_cache
def _kernels(arm: Arm) -> tuple[Kernel, ...]:
    """Kernels that are only names: nothing packs or launches them."""
    if arm == "lowp":
        product = replace(_kernel(arm), formats=tuple(LOWP_ALIASES))
        return product, replace(product, implementation="simulated+simulated")
    return (_kernel(arm),)


def _kernel(arm: Arm) -> Kernel:
    sixteen = arm in ("native", "vendor", "upcast")
    formats = ("fp16", "bf16") if sixteen else tuple(f.name for f in FORMATS if f.quantized)
    implementation = "simulated-library" if arm == "vendor" else "simulated"
    activations = ("fp16", "bf16")
    return Kernel(arm, implementation, "cuda", formats, activations, (1, 256), _no_pack, _no_bind)


def _no_pack(weights: Weights) -> Tensors:
    raise NotImplementedError("a simulated kernel has no weights to pack")


def _no_bind(tensors: Tensors, x: object, out: object) -> Launch:
    raise NotImplementedError("a simulated kernel cannot be launched")

"""A device without hardware: kernel times from a table, a clock that only its own samples move."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from bench.analysis.traces import Load
from bench.measure.devices import Device, Mode, PoolKey, Prepared, Problem, Sample, open_device
from bench.measure.devices.simulated import BOARDS, SCENARIOS, SimulatedDevice
from bench.measure.meters import NoMeter
from bench.measure.session import ArmName, Session, Timed
from bench.measure.worker import Begun, Opened, Setup, WorkerLostError
from kernels.formats import find_format
from kernels.kernel import Arm, Kernel, Tensors
from kernels.packing import Weights
from profiles.schema import DeviceInfo

COPY_BYTES = 1 << 20
TIMES_S: dict[str, float] = {
    "stream": 100e-6,
    "bypass": 150e-6,
    "fused": 200e-6,
    "native": 500e-6,
    "dequantize": 300e-6,
    "unfused": 900e-6,
}


def _no_pack(weights: Weights) -> Tensors:
    raise AssertionError("a fake kernel packs nothing")


def fake_kernel(arm: Arm, implementation: str = "fake") -> Kernel:
    formats = ("bf16",) if arm == "native" else ("int4-g128",)
    return Kernel(
        arm,
        implementation,
        "cpu",
        formats,
        ("bf16",),
        (1, 256),
        _no_pack,
        lambda t, x, y: lambda: None,
    )


class FakeDevice:
    """See the module. `errors`, `local`, `deadly` and `stuck` say which arms are wrong, spill, crash or hang.

    With `noise`, a fraction, times vary as a function of the block's seed, the time before the block and the
    place within it: a block that is run again gives the same samples.
    """

    kind = "cpu"
    default_activation = "bf16"
    default_mode = "eager"
    own_cycle = False
    cache_bytes = 8 * COPY_BYTES

    def __init__(self) -> None:
        self.clock_s = 0.0
        self.copies: dict[PoolKey, int] = {}
        self.sampled: list[tuple[str, str, int]] = []
        self.errors: dict[str, float] = {}
        self.local: dict[str, int] = {}
        self.deadly: set[str] = set()
        self.stuck: set[str] = set()
        self.verify_s = 0.0
        self.noise = 0.0
        self.slowness_s = 0.0
        self.rng = np.random.default_rng(0)

    def describe(self) -> DeviceInfo:
        return DeviceInfo(
            name="fake", kind="cpu", uuid_hash="0" * 16, cores=1, last_level_cache_bytes=1,
            memory_bytes=1, capability="none",
        )  # fmt: skip

    def software(self) -> dict[str, str]:
        return {"threading_layer": "none"}

    def now_s(self) -> float:
        return self.clock_s

    def check(self) -> None:
        pass

    def seeds(self) -> dict[str, int]:
        return {"weights": 1}

    def free_bytes(self) -> int:
        return 1 << 40

    def kernels(self, problem: Problem) -> tuple[Kernel, ...]:
        return tuple(fake_kernel(arm) for arm in TIMES_S if arm != "unfused")  # type: ignore[arg-type]

    def prepare(self, problem: Problem, kernel: Kernel) -> Prepared:
        layout = "words" if kernel.weight_bits is None else "matrix"
        return Prepared(problem, kernel, (problem.operator, layout), COPY_BYTES)

    def verify(self, prepared: Prepared) -> float:
        time.sleep(self.verify_s)
        return self.errors.get(prepared.kernel.arm, 1e-4)

    def local_bytes(self, prepared: Prepared) -> int | None:
        return self.local.get(prepared.kernel.arm)

    def warm(self, prepared: Prepared) -> None:
        pass

    def estimate_s(self, prepared: Prepared) -> float:
        return TIMES_S[prepared.kernel.arm]

    def rotate(self, copies: Mapping[PoolKey, int]) -> None:
        self.copies = dict(copies)

    def start_block(self, seed: tuple[int, ...], elapsed_s: float) -> None:
        if self.noise:
            self.clock_s = elapsed_s
            self.rng = np.random.default_rng((*seed, int(elapsed_s * 1e6)))

    def sample(self, prepared: Prepared, repeats: int, mode: str) -> Sample:
        arm = prepared.kernel.arm
        if arm in self.deadly:
            os.kill(os.getpid(), signal.SIGSEGV)
        if arm in self.stuck:
            time.sleep(60)
        time.sleep(self.slowness_s)
        started, seconds = self.clock_s, TIMES_S[arm] * prepared.problem.batch
        seconds *= float(np.exp(self.noise * self.rng.standard_normal()))
        self.clock_s += seconds * repeats
        self.sampled.append((prepared.problem.operator, arm, repeats))
        return Sample(seconds, repeats, started)

    def release(self) -> None:
        self.copies = {}


def no_meter(device: DeviceInfo) -> NoMeter:
    return NoMeter("a fake device draws nothing")


def healthy(name: str) -> FakeDevice:
    return FakeDevice()


def with_deadly_fused(name: str) -> FakeDevice:
    device = FakeDevice()
    device.deadly = {"fused"}
    return device


def with_stuck_stream(name: str) -> FakeDevice:
    device = FakeDevice()
    device.stuck = {"stream"}
    return device


def with_wrong_bypass(name: str) -> FakeDevice:
    device = FakeDevice()
    device.errors = {"bypass": 0.5}
    return device


def with_spilling_fused(name: str) -> FakeDevice:
    device = FakeDevice()
    device.local = {"fused": 16, "bypass": 0}
    return device


def noisy(name: str) -> FakeDevice:
    device = FakeDevice()
    device.noise = 0.03
    return device


def noisy_with_deadly_fused(name: str) -> FakeDevice:
    device = noisy(name)
    device.deadly = {"fused"}
    return device


class SlowlySimulated(SimulatedDevice):
    """The simulated device, whose samples take real time so that a run can be killed in one."""

    slowness_s = 0.0

    def sample(self, prepared: Prepared, repeats: int, mode: Mode) -> Sample:
        time.sleep(self.slowness_s)
        return super().sample(prepared, repeats, mode)


def throttling(name: str) -> SlowlySimulated:
    """A simulated H100 whose clock is throttled now and then."""
    return SlowlySimulated(BOARDS["h100"], SCENARIOS["throttling"])


def cpu_with_a_small_cache(name: str) -> Device:
    """The real CPU device, for operators so small that its cache would hold thousands of copies."""
    device = open_device("cpu")
    device.cache_bytes = 1 << 20
    return device


class InProcess:
    """A worker without a process, for tests of hundreds of runs. What would kill a process is raised."""

    def __init__(self, setup: Setup, opener: Callable[[str], FakeDevice]) -> None:
        self.device = opener(setup.gpu)
        self.session = Session(
            self.device, setup.operators, "bf16", "eager", setup.skip, self.announce, setup.bars
        )
        about = (self.device.describe(), self.device.cache_bytes, "bf16", "eager")
        self.opened = Opened(*about, self.device.software(), self.device.seeds())
        self.deadly, self.device.deadly = self.device.deadly, set()
        self.name: ArmName | None = None

    def announce(self, name: ArmName | None) -> None:
        self.name = name

    def begin(self, weight_format: str, *others: Any) -> Begun:
        states = self.session.begin(find_format(weight_format), *others)
        return Begun(states, self.session.rotation_bytes, self.session.refused)

    def ready(self, layer: Any) -> None:
        self.session.ready(layer)

    def steady(self, *arguments: Any) -> tuple[Load, ...]:
        return self.session.steady(*arguments)

    def block(self, *arguments: Any) -> list[Timed]:
        timed = self.session.block(*arguments)
        for sample in timed:
            if sample.name.arm in self.deadly:
                raise WorkerLostError("it crashed with SIGSEGV", sample.name)
        return timed

    def close(self) -> None:
        pass

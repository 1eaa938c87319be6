"""Devices: what can run a kernel, time it, and say what it is. `open_device` finds one by name.

A device is small on purpose. Verification, blocks, processes and statistics are written against this
protocol and know neither events nor threads, so that all of it is tested without a GPU.

A sample, on any device:

    probe | one launch, discarded | clock, counters | launch x repeats | clock, counters
                                    `----------------- the sample ------------------'
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

from kernels.kernel import Configuration

if TYPE_CHECKING:
    from bench.analysis.traces import Load
    from kernels.formats import WeightFormat
    from kernels.kernel import Kernel
    from profiles.schema import DeviceInfo
    from profiles.specs import Gpu

Mode = Literal["graph", "eager"]
Kind = Literal["cpu", "cuda", "simulated"]
Float16 = Literal["fp16", "bf16"]
DEFAULT_ACTIVATION: dict[Kind, Float16] = {"cpu": "bf16", "cuda": "fp16", "simulated": "fp16"}
PoolKey = tuple[str, str]  # operator, and the layout of the weights
Burst = tuple[float, float]  # seconds of work at least, seconds of rest after it
TOOL_TIMEOUT_S = 20.0  # a driver that has lost its board may never answer
CHUNK_S = 0.05  # of layers between two marks of a steady load, at most


class DeviceError(RuntimeError):
    """The device asked for is not there, or is another one. The message is one sentence for the user."""


@dataclass(frozen=True)
class Problem:
    """One linear operator y[batch, n] = x[batch, k] . W[n, k]^T with weights in one format."""

    operator: str
    n: int
    k: int
    batch: int
    format: WeightFormat
    activation: Float16


@dataclass(frozen=True)
class Prepared:
    """A kernel that a device holds ready to launch on a problem.

    Attributes:
        problem: the problem.
        kernel: the kernel.
        pool: which weight copies it rotates over; arms that read the same words share a pool, and
            each launch of any of them takes the next copy.
        copy_bytes: size of one copy.
        configuration: its launch configuration.
    """

    problem: Problem
    kernel: Kernel
    pool: PoolKey
    copy_bytes: int
    configuration: Configuration = field(default=Configuration())


@dataclass(frozen=True)
class Sample:
    """One timed sample.

    Attributes:
        time_s: seconds per launch.
        calls: launches in the sample.
        started_s: device.now_s() at its start.
        minor_faults: page faults of the process during the sample; None where unknown.
        involuntary_switches: times a thread of the process lost its core; None where unknown.
        steal_s: time the hypervisor took from all cores; None where unknown.
        probe_us: an empty parallel region just before; None where there is no such thing.
        flags: what was odd, in words.
    """

    time_s: float
    calls: int
    started_s: float
    minor_faults: int | None = None
    involuntary_switches: int | None = None
    steal_s: float | None = None
    probe_us: float | None = None
    flags: tuple[str, ...] = ()


class Device(Protocol):
    """One device, in the process that uses it.

    Attributes:
        kind: "cpu", "cuda" or "simulated".
        default_activation: dtype of x unless asked otherwise.
        default_mode: how launches are timed unless asked otherwise.
        cache_bytes: size of the last-level cache, which rotation must exceed twice.
        own_cycle: whether a sample replays all copies of its pool in a fixed order, so that these
            alone must exceed the cache; otherwise the other arms of a block count too.
    """

    kind: Kind
    default_activation: Float16
    default_mode: Mode
    cache_bytes: int
    own_cycle: bool

    def describe(self) -> DeviceInfo:
        """What it is, with a reason for every unknown."""
        ...

    def software(self) -> dict[str, str]:
        """What only the loaded libraries know: driver, cuda, threading_layer, those that apply."""
        ...

    def now_s(self) -> float:
        """The clock of every timestamp in a run, in seconds."""
        ...

    def seeds(self) -> dict[str, int]:
        """Seeds of the inputs, by name."""
        ...

    def free_bytes(self) -> int:
        """Memory that rotated weights may take."""
        ...

    def kernels(self, problem: Problem) -> tuple[Kernel, ...]:
        """Every kernel that has a row for the problem."""
        ...

    def prepare(self, problem: Problem, kernel: Kernel) -> Prepared:
        """Lays out one copy of the weights and binds the kernel to it.

        Raises:
            ValueError: the kernel cannot take this problem.
            UnsupportedError: the device lacks the instructions that the kernel is about.
        """
        ...

    def verify(self, prepared: Prepared) -> float:
        """Runs it once: largest error over the largest magnitude of a float64 reference."""
        ...

    def activation_error(self, prepared: Prepared) -> float | None:
        """Of `lowp`: what quantizing x adds to the error of y, over its largest magnitude; None: unknown."""
        ...

    def reference_error(self, prepared: Prepared) -> float | None:
        """Of a kernel with a reference of its own: how far that is from ours, over our largest; None: none."""
        ...

    def local_bytes(self, prepared: Prepared) -> int | None:
        """Bytes of local memory per thread, where registers spill. None: nobody says.

        Of a call of several launches, the last one's.
        """
        ...

    def warm(self, prepared: Prepared) -> None:
        """Runs it once, so that loading and compiling are over before the first sample."""
        ...

    def estimate_s(self, prepared: Prepared) -> float:
        """Roughly the seconds of one launch on cold weights; used only to choose repeats."""
        ...

    def rotate(self, copies: Mapping[PoolKey, int]) -> None:
        """Gives each pool that many copies of its weights."""
        ...

    def start_block(self, seed: tuple[int, ...], elapsed_s: float) -> None:
        """A block begins: its seed, and the seconds of all samples of the run before it.

        A simulated device makes its moment from them, so that a block that is run again after a
        crash gives the same samples. Hardware has its own moment.
        """
        ...

    def sample(self, prepared: Prepared, repeats: int, mode: Mode) -> Sample:
        """Times at least `repeats` launches."""
        ...

    def ready(self, layer: Sequence[tuple[Prepared, int]], copies: int, mode: Mode) -> None:
        """Makes whole layers ready for `steady`, down to the last thing that is not running them.

        Args:
            layer: the operators in order, all of one batch, and how often the layer has each.
            copies: layers with weights of their own, one after the other; each launch of an operator within
                a layer has its own copy too.
            mode: "graph" or "eager".
        """
        ...

    def steady(self, bursts: Sequence[Burst]) -> tuple[Load, ...]:
        """Runs the layers that are ready back to back, for energy: nothing else happens meanwhile.

        Args:
            bursts: for how long to run, and to rest after that, again and again.

        Returns:
            One load per burst.
        """
        ...

    def check(self) -> None:
        """Raises when an earlier error has left the device unusable in this process."""
        ...

    def release(self) -> None:
        """Forgets everything prepared and frees its memory."""
        ...


def find_device(name: str) -> Kind:
    """Which kind of device a name stands for here: "auto", "cpu", "cuda", or part of a GPU's name.

    "simulated:" and a board's name stand for a device without hardware; see `simulated.py`.

    Raises:
        DeviceError: it is not there; the message says what was expected, what was found, what to do.
    """
    wanted = name.strip().lower()
    if wanted.startswith("simulated"):
        from bench.measure.devices.simulated import find_simulated

        find_simulated(wanted)
        return "simulated"

    from bench.measure.devices.cuda import find_gpu

    if wanted == "cpu":
        return "cpu"
    gpu, why = find_gpu()
    if gpu is not None and (wanted in ("auto", "cuda") or names_gpu(wanted, gpu)):
        return "cuda"
    if wanted == "auto":
        return "cpu"
    found = f"the GPU found is {gpu}" if gpu else f"no usable NVIDIA GPU was found ({why})"
    raise DeviceError(
        f"--gpu {name} was asked for, but {found}. Use --gpu auto for what is there, "
        f"or --gpu cpu to measure the CPU."
    )


def modelled_board(name: str) -> Gpu | None:
    """The board that stands in for a GPU that is named and not here; None where a device is measured.

    Only on a machine without any NVIDIA GPU: where there is another one, a model of the one that was named
    would be taken for a measurement of it.

    Raises:
        DeviceError: there is another GPU, or one that PyTorch cannot use, or nothing is known of that name.
    """
    wanted = name.strip().lower()
    if wanted in ("auto", "cpu", "cuda") or wanted.startswith("simulated"):
        return None

    from bench.measure.devices.cuda import find_gpu
    from profiles.specs import load_gpu

    gpu, why = find_gpu()
    if gpu is not None:
        find_device(name)  # raises where it is another one
        return None
    present = nvidia_gpus()
    if present:
        raise DeviceError(
            f"--gpu {name} was asked for, and this machine has {present[0]}, but it cannot be used "
            f"({why}); a model would be taken for a measurement of it. Install a PyTorch with CUDA, or "
            f"use --gpu cpu."
        )
    try:
        return load_gpu(wanted)
    except ValueError as error:
        raise DeviceError(f"no usable NVIDIA GPU was found ({why}), and {error}") from None


def nvidia_gpus() -> tuple[str, ...]:
    """What the driver's own tool lists, whether or not PyTorch can use it."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return ()
    try:
        done = subprocess.run([tool, "-L"], capture_output=True, text=True, timeout=TOOL_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired):
        return ()
    return tuple(line for line in done.stdout.splitlines() if done.returncode == 0 and line)


def open_device(name: str) -> Device:
    """The device of that name, ready for use.

    Raises:
        DeviceError: it is not there.
    """
    kind = find_device(name)
    if kind == "simulated":
        from bench.measure.devices.simulated import open_simulated

        return open_simulated(name)
    if kind == "cpu":
        from bench.measure.devices.cpu import CpuDevice

        return CpuDevice()
    from bench.measure.devices.cuda import CudaDevice

    return CudaDevice()


def names_gpu(wanted: str, gpu: str) -> bool:
    """Whether `wanted` is a run of whole words of the GPU's name: rtx4090 is RTX 4090, l4 is not L40S."""
    asked = "".join(re.findall(r"[a-z0-9]+", wanted.lower()))
    words = re.findall(r"[a-z0-9]+", gpu.lower())
    runs = {"".join(words[i:j]) for i in range(len(words)) for j in range(i + 1, len(words) + 1)}
    return asked in runs

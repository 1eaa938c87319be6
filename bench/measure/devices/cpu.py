"""The CPU as a device: a monotonic clock around calls, with the hazards of a shared machine written down.

Hazards, each seen to change a result several times over: a neighbour on one of our cores turns every
parallel call into whole scheduler slices (8 ms); memory fresh from the kernel page-faults for longer than a
kernel computes; a hypervisor takes the cores away. An empty parallel region shows the first before a sample
is taken; the counters of the process and of /proc/stat show the others afterwards. Nothing is dropped.
"""

from __future__ import annotations

import ctypes
import math
import mmap
import os
import re
import resource
import time
from pathlib import Path

import numba
import torch
from numba import njit, prange

from bench.analysis.traces import Load
from bench.measure import environment
from bench.measure.devices import CHUNK_S, DEFAULT_ACTIVATION, Float16, Kind, Mode, Prepared, Sample
from bench.measure.devices.tensors import TensorDevice
from kernels.kernel import Launch
from profiles.schema import DeviceInfo

HEALTHY_PROBE_US = 100.0  # an empty parallel region takes 2 to 10 us; a lost core makes it 8,000
PROBE_RETRIES = 10
ESTIMATE_S = (
    4e-3  # long enough for the threads of one library to go to sleep and of another to wake
)
ASSUMED_CACHE_BYTES = 256 << 20  # where the machine does not say: larger than most
PLANNED_BANDWIDTH_PER_CORE = 12e9  # bytes per second; only used to choose repeats


@njit(parallel=True, cache=True)
def _empty_region(sink):
    """Nothing, in parallel."""
    for i in prange(sink.size):
        sink[i] = 0


class CpuDevice(TensorDevice):
    """This machine's processor; see the module."""

    kind: Kind = "cpu"
    torch_device = "cpu"
    default_activation: Float16 = DEFAULT_ACTIVATION["cpu"]
    default_mode: Mode = "eager"
    own_cycle = False

    def __init__(self) -> None:
        super().__init__()
        self._free: list[mmap.mmap] = []
        self._used: list[mmap.mmap] = []
        self._retries = PROBE_RETRIES
        self._cycle: list[Launch] = []
        self.threads = len(os.sched_getaffinity(0))
        torch.set_num_threads(self.threads)
        numba.set_num_threads(min(self.threads, numba.config.NUMBA_NUM_THREADS))
        self._sink = torch.zeros(self.threads, dtype=torch.int32).numpy()
        found = environment.machine()
        known = {k: v for k, v in found.facts.items() if k in DeviceInfo.model_fields}
        extra = {k: v for k, v in found.facts.items() if k not in known}
        known["name"] = known["name"] or "unknown CPU"
        missing = {k: why for k, why in found.missing.items() if k in known}
        extra |= {f"{k}_unknown_because": why for k, why in found.missing.items() if k in extra}
        self._info = DeviceInfo(kind="cpu", **known, missing=missing, extra=extra)
        self.cache_bytes = self._info.last_level_cache_bytes or ASSUMED_CACHE_BYTES
        _keep_freed_memory()

    def describe(self) -> DeviceInfo:
        """Model, cores, caches and memory."""
        return self._info

    def software(self) -> dict[str, str]:
        """The threading layer that Numba chose."""
        _empty_region(self._sink)
        return {"threading_layer": str(numba.threading_layer())}

    def now_s(self) -> float:
        """The monotonic clock, seconds."""
        return time.perf_counter()

    def local_bytes(self, prepared: Prepared) -> int | None:
        """Numba does not say."""

    def free_bytes(self) -> int:
        """Half of the memory that is available, so that the machine stays usable."""
        meminfo = Path("/proc/meminfo")
        if meminfo.exists():
            available = re.search(r"^MemAvailable:\s*(\d+) kB", meminfo.read_text("ascii"), re.M)
            if available:
                return int(available[1]) * 1024 // 2
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2

    def estimate_s(self, prepared: Prepared) -> float:
        """The fastest of some warm launches, or what reading its weights from memory takes, if longer.

        Two at least: a lost core makes one take a scheduler's slice of 8 ms, whatever it does.
        """
        launch = self._bound(prepared)[0]
        deadline = time.perf_counter() + ESTIMATE_S
        times: list[float] = []
        while len(times) < 2 or time.perf_counter() < deadline:
            start = time.perf_counter()
            launch()
            times.append(time.perf_counter() - start)
        return max(min(times), prepared.copy_bytes / (PLANNED_BANDWIDTH_PER_CORE * self.threads))

    def sample(self, prepared: Prepared, repeats: int, mode: Mode) -> Sample:
        """See the protocol. The mode is always eager: a CPU has no graphs.

        A single launch that fills a sample alone has none discarded before it: the probe has woken
        the threads, and the microseconds that a first launch may cost are lost in the milliseconds.
        """
        bound = self._bound(prepared)
        discarded = int(repeats > 1)
        launches = self._pools[prepared.pool].take(bound, repeats + discarded)
        probe_us, flags = self._wait_until_healthy()
        for launch in launches[:discarded]:
            launch()
        launches = launches[discarded:]
        steal_before = environment.steal_s()
        before = resource.getrusage(resource.RUSAGE_SELF)
        start = time.perf_counter()
        for launch in launches:
            launch()
        end = time.perf_counter()
        after = resource.getrusage(resource.RUSAGE_SELF)
        steal_after = environment.steal_s()
        steal = None if steal_before is None or steal_after is None else steal_after - steal_before
        if steal:
            flags = (*flags, "stolen")
        return Sample(
            time_s=(end - start) / repeats,
            calls=repeats,
            started_s=start,
            minor_faults=after.ru_minflt - before.ru_minflt,
            involuntary_switches=after.ru_nivcsw - before.ru_nivcsw,
            steal_s=steal,
            probe_us=probe_us,
            flags=flags,
        )

    def _wait_until_healthy(self) -> tuple[float, tuple[str, ...]]:
        """Probes until an empty region is fast again; after some retries goes on with a flag.

        A machine that stays busy is not waited for again and again: the retries come back with
        every healthy probe.
        """
        _empty_region(self._sink)  # wakes the threads
        while True:
            start = time.perf_counter()
            _empty_region(self._sink)
            probe_us = (time.perf_counter() - start) * 1e6
            if probe_us <= HEALTHY_PROBE_US:
                self._retries = PROBE_RETRIES
                return probe_us, ()
            if self._retries == 0:
                return probe_us, ("busy",)
            self._retries -= 1

    def _ready(self, launches: list[Launch], mode: Mode) -> None:
        """See the base. The mode is always eager."""
        self._cycle = launches

    def _burst(self, seconds: float) -> Load:
        """See the base."""
        done, now_s = 0, time.monotonic()
        marks, end_s = [(now_s, 0)], now_s + seconds
        while now_s < end_s:
            for launch in self._cycle:
                launch()
            done, now_s = done + self._layers, time.monotonic()
            if now_s >= min(marks[-1][0] + CHUNK_S, end_s):
                marks.append((now_s, done))
        return Load(tuple(marks))

    def check(self) -> None:
        """See the protocol: a CPU goes on or is gone."""

    def release(self) -> None:
        """See the protocol. The memory is kept for the next format: first touches are slow."""
        super().release()
        self._free += self._used
        self._used = []

    def _reserve(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """Anonymous memory in huge pages where the kernel has them: fewer misses, and fewer surprises."""
        length = math.prod(shape) * dtype.itemsize
        fitting = [m for m in self._free if len(m) >= length]
        memory = min(fitting, key=len, default=None)
        if memory is None:
            if self._free:  # all too small: with one less for one more, formats do not pile up
                self._free.remove(max(self._free, key=len))
            memory = mmap.mmap(-1, max(length, 1))
            if hasattr(mmap, "MADV_HUGEPAGE"):
                memory.madvise(mmap.MADV_HUGEPAGE)
        else:
            self._free.remove(memory)
        self._used.append(memory)
        return torch.frombuffer(memory, dtype=dtype, count=math.prod(shape)).reshape(shape)

    def _run(self, launch: Launch) -> object:
        return launch()


def _keep_freed_memory() -> None:
    """Asks glibc to keep freed blocks: mapping them anew would page-fault inside timed calls."""
    try:
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD
        libc.mallopt(-1, 1 << 30)  # M_TRIM_THRESHOLD
    except (OSError, AttributeError):
        pass  # another C library: the faults, if any, are counted in every sample

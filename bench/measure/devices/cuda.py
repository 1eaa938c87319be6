"""An NVIDIA GPU as a device: CUDA events around a captured graph, or around eager launches.

    graph   all copies of the weights in turn, captured once, replayed until the sample is long enough
    eager   the same launches through their usual dispatch: the difference is exposed host time

    steady  graphs of whole layers, two chunks of them always queued, so that the board never waits

Thin on purpose: whatever can be tested without a GPU lives elsewhere.
"""

from __future__ import annotations

import hashlib
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial

import torch

from bench.analysis.traces import Load
from bench.measure.devices import CHUNK_S, DEFAULT_ACTIVATION, Float16, Kind, Mode, Prepared, Sample
from bench.measure.devices.tensors import TensorDevice
from kernels.kernel import Launch
from profiles.schema import DeviceInfo


def find_gpu() -> tuple[str | None, str]:
    """The name of the first visible NVIDIA GPU, or None and why there is none."""
    if not torch.cuda.is_available():
        if torch.version.cuda is None:
            return None, "this build of PyTorch has no CUDA support"
        return None, "PyTorch finds no CUDA driver or device"
    return torch.cuda.get_device_name(0), ""


class CudaDevice(TensorDevice):
    """The first visible GPU; see the module."""

    kind: Kind = "cuda"
    torch_device = "cuda"
    default_activation: Float16 = DEFAULT_ACTIVATION["cuda"]
    default_mode: Mode = "graph"
    own_cycle = True

    def __init__(self) -> None:
        super().__init__()
        self._properties = torch.cuda.get_device_properties(0)
        self._graphs: dict[Prepared, torch.cuda.CUDAGraph] = {}
        self._cycle: tuple[Callable[[], object], float] | None = None  # layers, and seconds
        self.cache_bytes = self._properties.L2_cache_size

    def describe(self) -> DeviceInfo:
        """Board, multiprocessors, cache, memory and capability."""
        p = self._properties
        return DeviceInfo(
            name=p.name,
            kind="cuda",
            uuid_hash=hashlib.sha256(str(p.uuid).encode()).hexdigest()[:16],
            cores=p.multi_processor_count,
            last_level_cache_bytes=p.L2_cache_size,
            memory_bytes=p.total_memory,
            capability=f"{p.major}.{p.minor}",
        )

    def software(self) -> dict[str, str]:
        """The CUDA version PyTorch was built with; the driver's comes with NVML."""
        return {"cuda": str(torch.version.cuda)}

    def now_s(self) -> float:
        """The host's monotonic clock, seconds; durations come from events."""
        return time.perf_counter()

    def free_bytes(self) -> int:
        """Nine tenths of the free memory of the board."""
        return torch.cuda.mem_get_info()[0] * 9 // 10

    def local_bytes(self, prepared: Prepared) -> int | None:
        """See the protocol. A launch returns its kernel: Triton's, which counts words, or CuPy's."""
        kernel = self._run(self._bound(prepared)[0])
        words = getattr(kernel, "n_spills", None)
        return getattr(kernel, "local_size_bytes", None) if words is None else 4 * words

    def estimate_s(self, prepared: Prepared) -> float:
        """The mean of ten launches in a graph, so that host time is not taken for the kernel's."""
        launch = self._bound(prepared)[0]
        graph = _capture([launch] * 10)
        graph.replay()
        return self._time(graph.replay) / 10

    def sample(self, prepared: Prepared, repeats: int, mode: Mode) -> Sample:
        """See the protocol. In graph mode whole graphs are replayed, each all copies in turn."""
        launches = self._bound(prepared)
        rounds = -(-repeats // len(launches))
        if mode == "graph":
            replay = self._graph(prepared).replay
        else:

            def replay() -> None:
                _launch(launches)

        replay()
        started = self.now_s()
        seconds = self._time(lambda: [replay() for _ in range(rounds)])
        calls = rounds * len(launches)
        return Sample(time_s=seconds / calls, calls=calls, started_s=started)

    def _ready(self, launches: list[Launch], mode: Mode) -> None:
        """See the base. The graph of the arm before is freed first."""
        self._cycle = None
        cycle: Callable[[], object] = partial(_launch, launches)
        if mode == "graph":
            cycle = _capture(launches).replay
        cycle()
        self._cycle = cycle, self._time(cycle)

    def _burst(self, seconds: float) -> Load:
        """See the base. A mark is set when a chunk of layers is over, with the next one queued."""
        assert self._cycle is not None
        cycle, cycle_s = self._cycle
        rounds = max(1, round(min(CHUNK_S, seconds / 4) / max(cycle_s, 1e-6)))
        now_s = time.monotonic()
        marks, end_s = [(now_s, 0)], now_s + seconds
        queued: deque[torch.cuda.Event] = deque()
        while queued or now_s < end_s:
            while len(queued) < 2 and now_s < end_s:
                for _ in range(rounds):
                    cycle()
                queued.append(torch.cuda.Event(blocking=True))
                queued[-1].record()
            queued.popleft().synchronize()
            now_s = time.monotonic()
            marks.append((now_s, marks[-1][1] + rounds * self._layers))
        return Load(tuple(marks))

    def check(self) -> None:
        """See the protocol: an illegal access leaves the context unusable."""
        torch.cuda.synchronize()

    def release(self) -> None:
        """See the protocol."""
        self._graphs.clear()
        super().release()
        torch.cuda.empty_cache()

    def _graph(self, prepared: Prepared) -> torch.cuda.CUDAGraph:
        """One launch per copy; graphs of the batch before are dropped."""
        if any(known.problem.batch != prepared.problem.batch for known in self._graphs):
            self._graphs.clear()
        if prepared not in self._graphs:
            self._graphs[prepared] = _capture(self._bound(prepared))
            self._graphs[prepared].replay()
        return self._graphs[prepared]

    def _time(self, work: Callable[[], object]) -> float:
        """Seconds between two events around some work."""
        start = torch.cuda.Event(enable_timing=True)
        end = torch.cuda.Event(enable_timing=True)
        start.record()
        work()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / 1e3

    def _reserve(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="cuda")

    def _run(self, launch: Launch) -> object:
        result = launch()
        torch.cuda.synchronize()
        return result


def _launch(launches: Sequence[Launch]) -> None:
    for launch in launches:
        launch()


def _capture(launches: Sequence[Launch]) -> torch.cuda.CUDAGraph:
    """A graph of the launches in order, after a warm-up on a side stream, as PyTorch asks.

    All of them are warmed up: Triton compiles for how an argument is aligned, a copy of the weights may begin
    elsewhere than the first, and nothing can be loaded while a stream is captured.
    """
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        _launch(launches)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        _launch(launches)
    return graph

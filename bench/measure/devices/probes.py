"""Runs the probes of kernels/cuda on the GPU that is there.

    python -m bench.probe

A rate is thread-instructions per clock and multiprocessor, from the clock that the kernel itself reads: it does
not depend on the board's frequency. One block per multiprocessor, eight chains per thread. A latency is clocks
per instruction of one warp and one chain. The dequant work is the time per weight of the whole board, fused
less bypass. Thin on purpose: what can be computed without a GPU is in functions of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Literal

import torch

from bench.analysis.stats import median_interval
from bench.measure.devices import DeviceError
from bench.measure.environment import cuda_compilers
from kernels.cuda.launch import compiled, launch_function, missing
from kernels.cuda.probes import CAST, THROUGHPUT, Probe
from kernels.kernel import Launch
from profiles.record import Quantity, absent
from profiles.schema import ProbeReport, ProbeRow

Unit = Literal["per clock and SM", "clocks", "s per weight", "GB/s", "us"]

THREADS = 512
ITERATIONS = 4096
ROUNDS = 11
LAUNCHES = 1000
ISSUED = 128  # thread-instructions per clock that the four schedulers of a multiprocessor can issue
OPERANDS = (0x3C013C01, 0x00010203, 0x07060504, 0x3C003C00)


def row(name: str, rounds: Sequence[float], unit: Unit) -> ProbeRow:
    """The median of some rounds, and its 95% interval."""
    found = median_interval(rounds)
    value = Quantity(
        value=found.value, low=found.low, high=found.high, n=found.n, reason=found.reason
    )
    return ProbeRow(name=name, unit=unit, value=value)


def rate_per_clock(probe: Probe, threads: int, iterations: int, clocks: float) -> float:
    """Units of a probe that all threads of a multiprocessor complete in a clock."""
    return probe.units * threads * iterations / clocks


def rate_row(name: str, rounds: Sequence[float]) -> ProbeRow:
    """The median of some rates and its interval; none where a round is faster than instructions are issued."""
    most = max(rounds)
    if most > ISSUED:
        why = (
            f"refused: a round shows {most:.4g} instructions per clock, and a multiprocessor issues at most "
            f"{ISSUED}: its clocks are wrong"
        )
        return ProbeRow(name=name, unit="per clock and SM", value=absent(why))
    return row(name, rounds, "per clock and SM")


def latency_clocks(probe: Probe, iterations: int, clocks: float) -> float:
    """Clocks between one instruction of a chain and the next."""
    return clocks / (probe.units * iterations)


def work_s(probe: Probe, threads: int, iterations: int, seconds: float) -> float:
    """Seconds of the whole board per weight."""
    return seconds / (probe.units * threads * iterations)


def here() -> ProbeReport:
    """The report of this board, before anything is measured.

    Raises:
        DeviceError: there is no GPU, or no CuPy.
    """
    if not torch.cuda.is_available():
        raise DeviceError("the probes need an NVIDIA GPU, and PyTorch finds none.")
    why = missing()
    if why is not None:
        raise DeviceError(f"the probes cannot run: {why}.")
    board = torch.cuda.get_device_properties(0)
    versions = {"CUDA": torch.version.cuda, **cuda_compilers()}
    return ProbeReport(
        board=board.name,
        capability=f"{board.major}.{board.minor}",
        sms=board.multi_processor_count,
        created=datetime.now(UTC),
        toolchain=", ".join(f"{name} {known}" for name, known in versions.items() if known),
        rows=(),
    )


def measure(report: ProbeReport) -> ProbeReport:
    """The report with every probe that its board, which is here, can run."""
    board = torch.cuda.get_device_properties(0)
    arch = report.capability.replace(".", "")
    results: list[ProbeRow] = []
    for probe in THROUGHPUT:
        if probe.exists(arch):
            alone = probe.role == "dependent"
            threads = 32 if alone else THREADS
            rounds = [clocks_of(probe, board.multi_processor_count, threads) for _ in range(ROUNDS)]
            if alone:
                values = [latency_clocks(probe, ITERATIONS, c) for c in rounds]
                results.append(row(f"latency {probe.name}", values, "clocks"))
            else:
                values = [rate_per_clock(probe, threads, ITERATIONS, c) for c in rounds]
                results.append(rate_row(f"rate {probe.name}", values))
    results += dequant_work(board.multi_processor_count)
    results += bandwidth(board.multi_processor_count, board.L2_cache_size)
    results += launch_times()
    return report.model_copy(update={"rows": tuple(results)})


def clocks_of(probe: Probe, blocks: int, threads: int) -> float:
    """The median over blocks of the clocks that a probe took; after one run that is discarded."""
    run, clocks = prepared(probe, blocks, threads)
    run()
    run()
    torch.cuda.synchronize()
    return float(clocks.to("cpu").to(torch.float64).median())


def prepared(probe: Probe, blocks: int, threads: int) -> tuple[Launch, torch.Tensor]:
    """A launch of a probe, and the clocks that it writes."""
    operands = torch.tensor(OPERANDS, dtype=torch.int32, device="cuda")
    clocks = torch.zeros(blocks, dtype=torch.int64, device="cuda")
    sink = torch.zeros(1, dtype=torch.int32, device="cuda")
    function = compiled(probe.file, "probe", tuple(sorted(probe.defines.items())))
    return launch_function(
        function, (blocks,), threads, 0, operands, clocks, sink, ITERATIONS
    ), clocks


def dequant_work(blocks: int) -> list[ProbeRow]:
    """Seconds per weight of each way of dequantizing, with operands in registers."""
    found = []
    for bypass, fused in zip(CAST[::2], CAST[1::2], strict=True):
        runs = [(probe, prepared(probe, blocks, THREADS)[0]) for probe in (bypass, fused)]
        differences = []
        for _ in range(ROUNDS):
            without, whole = (
                work_s(probe, blocks * THREADS, ITERATIONS, seconds(run)) for probe, run in runs
            )
            differences.append(whole - without)
        found.append(row(f"dequant work {fused.name}", differences, "s per weight"))
    return found


def bandwidth(multiprocessors: int, l2_bytes: int) -> list[ProbeRow]:
    """GB/s of a stream read and a copy of main memory, and of reading what stays in the L2."""
    large, small = max(1 << 30, 8 * l2_bytes) // 16, l2_bytes // 4 // 16
    source = torch.zeros(large * 4, dtype=torch.int32, device="cuda")
    target = torch.empty_like(source)
    sink = torch.zeros(1, dtype=torch.int32, device="cuda")
    read, copy = (compiled("bandwidth.cu", entry, ()) for entry in ("read", "copy"))
    blocks, passes = 4 * multiprocessors, 50
    runs = {
        "read": (launch_function(read, (blocks,), THREADS, 0, source, sink, large, 1), large * 16),
        "copy": (launch_function(copy, (blocks,), THREADS, 0, source, target, large), large * 32),
        "L2 read": (
            launch_function(read, (blocks,), THREADS, 0, source, sink, small, passes),
            small * 16 * passes,
        ),
    }
    return [
        row(name, [moved / seconds(run) / 1e9 for _ in range(ROUNDS)], "GB/s")
        for name, (run, moved) in runs.items()
    ]


def launch_times() -> list[ProbeRow]:
    """Microseconds of an empty launch, eager and in a graph."""
    run = launch_function(compiled("bandwidth.cu", "empty", ()), (1,), 32, 0)

    def many() -> None:
        for _ in range(LAUNCHES):
            run()

    many()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        many()
    works = {"empty launch, eager": many, "empty launch, graph": graph.replay}
    return [
        row(name, [seconds(work) / LAUNCHES * 1e6 for _ in range(ROUNDS)], "us")
        for name, work in works.items()
    ]


def seconds(work: Callable[[], object]) -> float:
    """Between two events around some work, after one run that is discarded."""
    work()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    work()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1e3

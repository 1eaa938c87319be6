"""Every fault of a power sensor, planted in a stub of NVML: what the user sees, and the exit code.

    python -m tests.power_faults          prints both tables as Markdown

The first table really runs `python -m bench.power`. The second reads a sensor through the thread that reads it
during a window, while the fault happens: what the trace then carries is all that an analysis can go by.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench.analysis.traces import Trace
from bench.measure.power import Sampler, Sampling
from bench.measure.power.nvml import NvmlSensor
from tests.nvml_stub import (
    DRIVER_NOT_LOADED,
    FIRST,
    FIRST_PCI,
    FUNCTION_NOT_FOUND,
    GPU_IS_LOST,
    NO_PERMISSION,
    NOT_SUPPORTED,
    SECOND,
    SECOND_PCI,
    UNINITIALIZED,
    VERSION_MISMATCH,
    board,
    build,
    environment,
    loaded,
)

ROOT = Path(__file__).resolve().parent.parent
SECONDS = 0.8
FIELDS = (83, 185, 186)


def every_field(line: str) -> list[str]:
    return [line.format(f"field:{field}") for field in FIELDS]


def calls(line: str) -> list[str]:
    """The functions that are asked where fields say nothing."""
    functions = ("nvmlDeviceGetPowerUsage", "nvmlDeviceGetTotalEnergyConsumption")
    return [line.format(function) for function in functions]


def either_way(value: str) -> list[str]:
    return [*every_field(f"value {{}} {value}"), *calls(f"value {{}} {value}")]


@dataclass(frozen=True)
class Case:
    """A fault, planted in the first of the boards.

    Attributes:
        fault: its name.
        script: lines that follow the healthy board's.
        code: the exit code that there has to be.
        sees: what the last line has to contain.
        shows: a pattern of a further line that there has to be, and that the table quotes.
        gpu: what is asked for.
        library: whether there is a library at all.
        other_first: a second board, which NVML lists first.
        variables: further variables of the environment.
    """

    fault: str
    script: Sequence[str]
    code: int
    sees: str
    shows: str = ""
    gpu: str = FIRST
    library: bool = True
    other_first: bool = False
    variables: tuple[tuple[str, str], ...] = ()


CASES = (
    Case("none", (), 0, "Usable: NVML of NVIDIA H100 PCIe at 00000000:17:00.0."),
    Case(
        "library missing", (), 1, "No energy sensor. NVML: the driver's library libnvidia-ml.so.1 "
        "is not here.", library=False,
    ),
    Case(
        "no driver", (f"fault nvmlInit {DRIVER_NOT_LOADED}",), 1,
        "No energy sensor. NVML: no NVIDIA driver is loaded.",
    ),
    Case(
        "driver and library differ", (f"fault nvmlInit {VERSION_MISMATCH}",), 1,
        "driver and library are of different versions, as after an update without a restart.",
    ),
    Case(
        "permission denied", (f"fault nvmlInit {NO_PERMISSION}",), 1,
        "No energy sensor. NVML: permission denied by the driver.",
    ),
    Case(
        "permission denied, fields",
        [*every_field(f"fault {{}} {NO_PERMISSION}"), *calls(f"fault {{}} {NO_PERMISSION}")], 1,
        "No energy sensor. NVML: permission denied by the driver.",
    ),
    Case(
        "one field not supported", (f"fault field:186 {NOT_SUPPORTED}",), 0,
        "No power_instant_w: not supported by this board and driver.",
    ),
    Case(
        "no field supported: older calls serve",
        (f"fault nvmlDeviceGetFieldValues {FUNCTION_NOT_FOUND}",), 0,
        "No power_instant_w: the driver's library is too old for it.",
    ),
    Case(
        "nothing supported",
        [*every_field(f"fault {{}} {NOT_SUPPORTED}"), *calls(f"fault {{}} {NOT_SUPPORTED}")], 1,
        "No energy sensor. NVML: not supported by this board and driver.",
    ),
    Case("reads 0 for ever", either_way("0"), 1, "No energy sensor. NVML: it reads 0."),
    Case(
        "reads NaN", [*every_field("value {} nan"), *calls(f"fault {{}} {NOT_SUPPORTED}")], 1,
        "No energy sensor. NVML: it reads NaN.",
    ),
    Case(
        "reads 0xFFFFFFFF", either_way("4294967295"), 1,
        "it reads 4294967295, which stands for not available",
    ),
    Case(
        "0 for a moment", ("value field:186 0 0.3 0.4",), 0,
        "readings failed: power_instant_w: it reads 0.",
    ),
    Case("frozen sensor", ("freeze 0",), 1, "it is frozen."),
    Case(
        "counter reset", ("reload 0.35",), 0,
        "J: the counter was reset or went round.",
    ),
    Case(
        "counter goes round", ("counter 0.1 4294900 4294967296",), 0,
        "J: the counter was reset or went round.",
    ),
    Case(
        "GPU lost", (f"fault * {GPU_IS_LOST} 0.4",), 1,
        "No energy sensor. NVML: the GPU is lost: it has fallen off the bus.",
    ),
    Case(
        "driver reload", (f"fault * {UNINITIALIZED} 0.4",), 1,
        "NVML is not initialized any more, as after a reload of the driver.",
    ),
    Case("slow call", ("delay nvmlDeviceGetFieldValues 0.2 0.3 0.35",), 0, "A reading took 2"),
    Case(
        "MIG", ("mig 1",), 1, "MIG is on at NVIDIA H100 PCIe: the power is the whole board's, not "
        "the slice's.",
    ),
    Case("virtual GPU", ("virtualization 2",), 1, "NVIDIA H100 PCIe is a virtual GPU"),
    Case("other process on it", ("process {stranger}",), 1, "another process uses NVIDIA H100 PCIe"),
    Case(
        "two GPUs, CUDA's order reversed", (), 0, f"Usable: NVML of NVIDIA H100 PCIe at {FIRST_PCI}",
        shows=r"power_instant_w +(29[89]|30[01])\S* W", other_first=True,
        variables=(("CUDA_VISIBLE_DEVICES", "1,0"),),
    ),
    Case(
        "two GPUs, the other one", (), 0, f"Usable: NVML of NVIDIA H100 PCIe at {SECOND_PCI}",
        shows=r"power_instant_w +(9[89]|10[01])\S* W", gpu=SECOND, other_first=True,
        variables=(("CUDA_VISIBLE_DEVICES", "1,0"),),
    ),
    Case(
        "no such GPU", (), 2, "error: there is no GPU rtx4090 here; the driver lists NVIDIA H100 PCIe.",
        gpu="rtx4090",
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """What `python -m bench.power` did.

    Attributes:
        code: exit code.
        output: everything it printed.
        sentence: the last line.
    """

    code: int
    output: str
    sentence: str


def run(case: Case, library: Path, folder: Path) -> Outcome:
    """Runs the command against the fault."""
    other = board(SECOND, SECOND_PCI, watts=100) if case.other_first else []
    stranger = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    script = [line.format(stranger=stranger.pid) for line in case.script]
    boards = folder / re.sub(r"\W+", "-", case.fault)
    lines = [*other, *board(), *script]
    lines.sort(key=lambda line: not line.startswith("fault nvmlInit"))  # not a board's
    env = environment(library if case.library else None, boards, lines)
    command = [sys.executable, "-m", "bench.power", "--gpu", case.gpu, "--seconds", str(SECONDS)]
    with stranger:
        done = subprocess.run(
            command, cwd=ROOT, env=env | dict(case.variables), capture_output=True, text=True
        )
        stranger.kill()
    output = (done.stdout + done.stderr).rstrip()
    return Outcome(done.returncode, output, output.splitlines()[-1] if output else "")


def run_all(folder: Path) -> list[Outcome]:
    """Every case, two at a time."""
    library = build(folder)
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(lambda case: run(case, library, folder), CASES))


# What happens during a window


@dataclass(frozen=True)
class MidWindow:
    """A fault half a second after a healthy sensor was opened.

    Attributes:
        fault: its name.
        script: lines that follow the healthy board's.
        carries: a pattern of what the trace must be found to carry.
    """

    fault: str
    script: Sequence[str]
    carries: str


MID_WINDOW = (
    MidWindow("none", (), r"^nothing odd$"),
    MidWindow("counter reset", ("reload 0.5",), r"energy_j falls by 1090 J"),
    MidWindow(
        "counter goes round", ("counter 0.1 4294847 4294967296",), r"energy_j falls by 4\.29\d*e\+06 J"
    ),
    MidWindow("frozen sensor", ("freeze 0.5",), r"no channel changes in the last 0\.[4-9]\d s"),
    MidWindow("zero", ("value field:186 0 0.5",), r"power_instant_w: it reads 0"),
    MidWindow("NaN", ("value field:186 nan 0.5",), r"power_instant_w: it reads NaN"),
    MidWindow("GPU lost", (f"fault * {GPU_IS_LOST} 0.5",), r"ends with: the GPU is lost"),
    MidWindow(
        "driver reload", (f"fault * {UNINITIALIZED} 0.5",), r"ends with: NVML is not initialized"
    ),
    MidWindow(
        "slow call", ("delay nvmlDeviceGetFieldValues 0.2 0.5 0.55",), r"a call took 0\.2\d s, [1-9]\d* late"
    ),
    MidWindow(
        "throttling", ("value nvmlDeviceGetCurrentClocksEventReasons 32 0.5",), r"event reasons 0x20"
    ),
)  # fmt: skip


def sample(case: MidWindow, library: Path, folder: Path) -> tuple[Trace, Sampling]:
    """What the sampling thread gets of a second in which the fault happens."""
    script = folder / "window"
    script.write_text("\n".join([*board(), *case.script]) + "\n")
    before = os.environ.get("NVML_STUB")
    os.environ["NVML_STUB"] = str(script)
    try:
        with loaded(library):
            sensor = NvmlSensor.open(FIRST)
            with Sampler(sensor) as sampler:
                time.sleep(1.0)
            sensor.close()
    finally:
        os.environ.pop("NVML_STUB")
        if before is not None:
            os.environ["NVML_STUB"] = before
    assert sampler.result is not None
    return sampler.result


def carried(trace: Trace, sampling: Sampling) -> str:
    """What is odd about a trace, in words."""
    odd = []
    energy = trace.values["energy_j"]
    steps = np.diff(energy[~np.isnan(energy)])
    if np.any(steps < 0):
        odd.append(f"energy_j falls by {-steps.min():.6g} J")
    changed_s = [
        float(trace.time_s[1:][np.diff(trace.values[c]) != 0].max(initial=trace.time_s[0]))
        for c in ("energy_j", "power_instant_w", "power_average_w")
        if not np.any(np.isnan(trace.values[c]))
    ]
    still_s = trace.time_s[-1] - max(changed_s, default=trace.time_s[-1])
    if still_s > 0.3:
        odd.append(f"no channel changes in the last {still_s:.2f} s")
    if sampling.longest_read_s > 0.15:
        odd.append(f"a call took {sampling.longest_read_s:.2f} s, {sampling.late} late")
    if sampling.wall_s < 0.9:
        odd.append(f"ends with: {trace.errors[-1]}")
    elif sampling.failed:
        error = next(e for e in trace.errors if e)
        odd.append(f"{sampling.failed} of {sampling.readings} readings: {error}")
    reasons = trace.values["event_reasons"]
    reasons = reasons[~np.isnan(reasons)]
    if np.any(reasons):
        odd.append(f"event reasons {int(reasons.max()):#x}")
    return "; ".join(odd) or "nothing odd"


def main() -> None:
    """Prints both tables."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        print("| fault | what the user sees | exit code |\n|---|---|---|")
        for case, outcome in zip(CASES, run_all(folder), strict=True):
            shown = re.search(case.shows, outcome.output) if case.shows else None
            quoted = f" ({' '.join(shown[0].split())})" if shown else ""
            print(f"| {case.fault} | {outcome.sentence}{quoted} | {outcome.code} |")
        # The joules of such a window, or why there are none, are to be a third column here: what
        # bench.analysis.energy.window_joules(window, traits, rules) says of it.
        print("\n| fault during a window | what the trace carries |\n|---|---|")
        for fault in MID_WINDOW:
            print(f"| {fault.fault} | {carried(*sample(fault, folder, folder))} |")


if __name__ == "__main__":
    main()

"""Every fault of a power sensor, planted in a stub of NVML: what the user sees, and the exit code.

    python -m tests.power_faults          prints both tables as Markdown; half a minute

The first table really runs `python -m bench.power`. The second measures energy windows in real time, one board
for each fault, through the meter that a run uses; the fault happens in the middle of each window:

    seconds   0        0.9     1.5              3.1              4.7     5.3
              | opened  | idle  |###### load #####|##### load ####|  idle |
                                                fault
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import typer
from typer.testing import CliRunner

from bench import power
from bench.analysis.energy import Rules, WindowEnergy, window_joules
from bench.analysis.energy_trials import ArmEnergy, combine
from bench.analysis.traces import Load, Reading, Trace, Window
from bench.measure.meters import HostMeter, Recording
from bench.measure.power import SensorInfo
from bench.measure.power.files import Recorded, save_windows
from bench.measure.power.nvml import NvmlSensor
from bench.measure.replay import SQUARE, WINDOW
from profiles.sensors import published_traits
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

OPENED_S, BEGAN_S, FAULT_S, ENDED_S = 0.6, 1.5, 3.1, 4.7  # since the stub's `start`
IDLE_W, BUSY_W, THROTTLED_W = 60.0, 300.0, 240.0
LAYER_J = 0.3  # a thousand layers per second at 300 W
RULES = Rules(window_s=1.5, updates=10, idle_s=0.6, settle_s=0.25, trials=2, frozen_updates=5)
TRAITS = published_traits("NVIDIA H100 PCIe")


def power_of(busy: Sequence[tuple[float, float]]) -> list[str]:
    """Idle, then from when on how many watts, then idle."""
    return [f"power {at} {watts}" for at, watts in ((0, IDLE_W), *busy, (ENDED_S, IDLE_W))]


STEADY = power_of([(BEGAN_S, BUSY_W)])
THROTTLING = power_of([(BEGAN_S, BUSY_W), (FAULT_S, THROTTLED_W)])


@dataclass(frozen=True)
class MidWindow:
    """A fault in the middle of every window of an arm.

    Attributes:
        fault: its name.
        script: lines that follow the healthy board's.
        carries: a pattern of what the trace must be found to carry.
        refused: a pattern of why there are no joules; empty where there must be the right ones.
        source: the channel that they then come from.
        slow: whether the second half runs at 80 % of the speed and power.
    """

    fault: str
    script: Sequence[str]
    carries: str
    refused: str = ""
    source: str = "energy_j"
    slow: bool = False


def since(line: str) -> list[str]:
    """Of every field, from the fault on."""
    return every_field(f"{line} {FAULT_S}")


_FALLS_AT = 4294967.296 - IDLE_W * BEGAN_S - BUSY_W * (FAULT_S - BEGAN_S)  # 2^32 mJ at the fault
MID_WINDOW = (
    MidWindow("none", (), r"^nothing odd$"),
    MidWindow(
        "counter reset", (f"reload {FAULT_S}",), r"energy_j falls by 1[4-6]\d\d",
        source="power_instant_w",
    ),
    MidWindow(
        "counter goes round", (f"counter 0.1 {_FALLS_AT:.3f} 4294967296",),
        r"energy_j falls by 4\.29\d*e\+06 J", source="power_instant_w",
    ),
    MidWindow(
        "frozen sensor", (f"freeze {FAULT_S}",), r"no channel changes in the last [12]\.\d\d s",
        r"the energy counter: it stood still for [12]\.\d\d s, though .* it repeated one value bit for bit",
    ),
    MidWindow(
        "zero, all channels", since("value {} 0"), r"energy_j.*: it reads 0",
        r"its readings end 1\.\d\d s before the load does: .*it reads 0",
    ),
    MidWindow("zero, one channel", (f"value field:186 0 {FAULT_S}",), r"power_instant_w: it reads 0"),
    MidWindow(
        "NaN, all channels", since("value {} nan"), r"energy_j.*: it reads NaN",
        r"its readings end 1\.\d\d s before the load does: .*it reads NaN",
    ),
    MidWindow("NaN, one channel", (f"value field:186 nan {FAULT_S}",), r"power_instant_w: it reads NaN"),
    MidWindow(
        "GPU lost", (f"fault * {GPU_IS_LOST} {FAULT_S}",), r"ends with: the GPU is lost",
        r"its readings end 1\.\d\d s before the load does: the GPU is lost: it has fallen off the bus",
    ),
    MidWindow(
        "driver reload", (f"fault * {UNINITIALIZED} {FAULT_S}",), r"ends with: NVML is not initialized",
        r"its readings end 1\.\d\d s before the load does: NVML is not initialized any more",
    ),
    MidWindow(
        "slow call", (f"delay nvmlDeviceGetFieldValues 0.2 {FAULT_S} {FAULT_S + 0.05}",),
        r"a call took 0\.[2-9]\d s",
    ),
    MidWindow(
        "throttling", (f"value nvmlDeviceGetCurrentClocksEventReasons 32 {FAULT_S}",),
        r"event reasons 0x20", slow=True,
    ),
    MidWindow(
        "another process on the board", (f"process {{stranger}} {FAULT_S}",),
        r"another process used the board",
        r"another process used the board .*after the window the driver listed 1 process of others",
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Answer:
    """What comes of the windows of a fault.

    Attributes:
        recordings: the windows, one per trial.
        windows: joules of each, or why there are none.
        arm: joules of the arm, or why there are none.
        code: exit code of `bench.power --replay`, given their traces.
        output: everything that printed.
    """

    recordings: tuple[Recording, ...]
    windows: tuple[WindowEnergy, ...]
    arm: ArmEnergy
    code: int
    output: str

    @property
    def sentence(self) -> str:
        """The arm, in words."""
        joules = self.arm.gross_j
        if joules.value is None or joules.low is None:
            return f"no joules: {joules.reason}"
        flag = ", flagged: throttled" if self.arm.throttled else ""
        return (
            f"{joules.value:.4f} ± {joules.value - joules.low:.4f} J per layer ({LAYER_J:g} planted) "
            f"by {self.arm.source}{flag}"
        )


@contextmanager
def scripted(library: Path, script: Path, lines: Sequence[str]) -> Iterator[None]:
    """The stub in this process, with a script."""
    script.write_text("\n".join(lines) + "\n", encoding="utf-8")
    before = os.environ.get("NVML_STUB")
    os.environ["NVML_STUB"] = str(script)
    try:
        with loaded(library):
            yield
    finally:
        os.environ.pop("NVML_STUB")
        if before is not None:
            os.environ["NVML_STUB"] = before


def record(
    cases: Sequence[MidWindow], library: Path, folder: Path
) -> list[tuple[SensorInfo, Recording]]:
    """One window of every case, all at once, on a board each."""
    start_s = time.monotonic() + OPENED_S
    stranger = orphan()
    lines = [f"start {start_s}"]
    for index, case in enumerate(cases):
        healthy = board(f"GPU-{index:08}", f"00000000:{index + 1:02X}:00.0")
        lines += [line for line in healthy if not line.startswith("power")]
        lines += THROTTLING if case.slow else STEADY
        lines += [line.format(stranger=stranger) for line in case.script]
    with scripted(library, folder / "windows", lines), ExitStack() as stack:
        stack.callback(os.kill, stranger, signal.SIGKILL)
        sensors = [NvmlSensor.open(f"GPU-{index:08}") for index in range(len(cases))]
        for sensor in sensors:
            stack.callback(sensor.close)
        pool = stack.enter_context(ThreadPoolExecutor(len(cases)))
        loads = [partial(run_load, start_s, case) for case in cases]
        waiting = [
            pool.submit(HostMeter(sensor).record, load, RULES.idle_s, 0.0)
            for sensor, load in zip(sensors, loads, strict=True)
        ]
        return [(s.info, w.result()) for s, w in zip(sensors, waiting, strict=True)]


def orphan() -> int:
    """A process that is no relative of this one; it ends by itself after a minute."""
    script = "sleep 60 > /dev/null 2>&1 & echo $!"
    return int(subprocess.run(["sh", "-c", script], check=True, capture_output=True).stdout)


def run_load(start_s: float, case: MidWindow) -> tuple[Load, ...]:
    """The load that the script of a board draws power for."""
    ahead_s = start_s + BEGAN_S - time.monotonic()
    assert ahead_s > 0, f"the machine is too busy: the load began {-ahead_s:.2f} s ago"
    time.sleep(start_s + ENDED_S - time.monotonic())
    half = round((FAULT_S - BEGAN_S) * BUSY_W / LAYER_J)
    watts = THROTTLED_W if case.slow else BUSY_W
    rest = round((ENDED_S - FAULT_S) * watts / LAYER_J)
    marks = ((BEGAN_S, 0), (FAULT_S, half), (ENDED_S, half + rest))
    return (Load(tuple((start_s + at_s, layers) for at_s, layers in marks)),)


def answers(library: Path, folder: Path) -> dict[str, Answer]:
    """Two windows of every fault in real time, and what comes of them."""
    trials = [record(MID_WINDOW, library, folder) for _ in range(RULES.trials)]
    return {
        case.fault: answer(
            trials[0][i][0], tuple(trial[i][1] for trial in trials), folder / f"{i}.power.parquet"
        )
        for i, case in enumerate(MID_WINDOW)
    }


def answer(info: SensorInfo, recordings: tuple[Recording, ...], path: Path) -> Answer:
    """What the analysis says, and what the command says of the same traces in a file."""
    assert TRAITS is not None
    windows = [Window(r.loads[0], r.trace, RULES.idle_s, RULES.idle_s) for r in recordings]
    said = tuple(window_joules(window, TRAITS, RULES) for window in windows)
    save_windows(path, info, [without_square_wave(), *map(labelled, range(RULES.trials), windows)])
    app = typer.Typer(add_completion=False)
    app.command()(power.main)
    done = CliRunner(env={"COLUMNS": "200"}).invoke(app, ["--replay", str(path)])
    return Answer(recordings, said, combine(said, rules=RULES), done.exit_code, done.output)


def without_square_wave() -> Recorded:
    """Where a square wave would be, nothing: the published traits apply."""
    label: dict[str, str | int] = {
        "of": SQUARE,
        "switched_s": "[0, 1]",
        "kind": "measured",
        "layers": 1,
    }
    label["rules"] = json.dumps(asdict(RULES))
    nothing = Trace.of([Reading(0.0, 0.0, {}, "the sensor was not characterised")])
    return Recorded(label, Window(Load(((0.0, 0), (1.0, 1))), nothing, 0.0, 0.0))


def labelled(trial: int, window: Window) -> Recorded:
    label: dict[str, str | int] = {"of": WINDOW, "format": "int4-g128", "batch": 1, "trial": trial}
    kernel = {"arm": "fused", "implementation": "a", "variant": "b", "weight_format": "int4-g128"}
    return Recorded({**label, **kernel}, window)


def carried(found: Recording) -> str:
    """What is odd about a window's trace, in words."""
    odd, trace, sampling = [], found.trace, found.sampling
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
    if still_s > 1.0:
        odd.append(f"no channel changes in the last {still_s:.2f} s")
    if sampling.longest_read_s > 0.15:
        odd.append(f"a call took {sampling.longest_read_s:.2f} s, {sampling.late} readings late")
    if trace.time_s[-1] < found.loads[0].ended_s:
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
        print(
            "\n| fault during a window | what the trace carries | what the user gets | "
            "exit code of `bench.power --replay` |\n|---|---|---|---|"
        )
        for fault, found in answers(folder, folder).items():
            print(f"| {fault} | {carried(found.recordings[0])} | {found.sentence} | {found.code} |")


if __name__ == "__main__":
    main()

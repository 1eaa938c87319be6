"""python -m bench.power: what it says of this machine, and what its exit code stands for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from bench.measure import environment
from bench.measure.power import Sampling, SensorError, SensorInfo
from bench.measure.power.discover import JOULES, Found
from bench.measure.power.look import Look
from bench.measure.power.rapl import RaplSensor
from bench.power import Candidate, View, verdict

ROOT = Path(__file__).resolve().parent.parent


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "bench.power", *arguments], cwd=ROOT, capture_output=True, text=True
    )


def test_the_cpu_of_this_machine_has_a_sensor_or_a_reason() -> None:
    done = command("--gpu", "cpu", "--seconds", "0.3")
    sentence = done.stdout.splitlines()[-1]
    try:
        RaplSensor.open().close()
        expected = (0, f"Usable: RAPL of {environment.machine().facts['name']}.")
    except SensorError as reason:
        expected = (1, f"No energy sensor. RAPL: {reason}.")
    assert (done.returncode, sentence) == expected


@pytest.mark.parametrize(
    "arguments", [["--gpu", "simulated:gpu"], ["--gpu", ""], ["--seconds", "0"], ["x"]]
)
def test_what_cannot_be_meant_is_a_usage_error(arguments: list[str]) -> None:
    done = command(*arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert "Traceback" not in done.stderr


def never() -> RaplSensor:
    raise AssertionError("nothing is opened here")


def seen(name: str, of: str, changes: int = 5, gone: str = "", fell_j: float = 0.0) -> View:
    look = Look(
        now={"energy_j": 5.0}, read_s=0.001, channel_s={}, changes={"energy_j": changes}, update_s={},
        fell_j=fell_j, step_s=0.01, errors=(), gone=gone,
        sampling=Sampling(10, 0, 0, 0.001, None, 3.0),
    )  # fmt: skip
    info = SensorInfo(name, "everything", of, ("energy_j",))
    return View(Candidate(name, of, never), (Found(name, ("energy_j",)),), info, look)


def absent(name: str, of: str, reason: str) -> View:
    return View(Candidate(name, of, never), (Found(name, JOULES, reason),))


CPU = seen("RAPL", "Xeon")
GPU = seen("NVML", "H100")
VERDICTS = {
    "both": ([GPU, CPU], 0, "Usable: NVML of H100."),
    "cpu alone": ([absent("NVML", "", "no driver"), CPU], 0, "Usable: RAPL of Xeon."),
    "gpu without, cpu with": (
        [absent("NVML", "H100", "MIG is on"), CPU], 1, "No energy sensor. NVML: MIG is on.",
    ),
    "one gpu of two": (
        [absent("NVML", "A100", "MIG is on"), GPU], 0,
        "Usable: NVML of H100. Not usable: A100: MIG is on.",
    ),
    "a caution of one of two": (
        [GPU, seen("NVML", "A100", fell_j=12.5)], 0,
        "Usable: NVML of H100, NVML of A100. "
        "A100: energy_j fell by 12.5 J: the counter was reset or went round.",
    ),
    "none": (
        [absent("NVML", "", "no driver"), absent("RAPL", "Xeon", "no counters")], 1,
        "No energy sensor. NVML: no driver; RAPL: no counters.",
    ),
    "frozen": (
        [seen("NVML", "H100", changes=0)], 1,
        "No energy sensor. NVML: what it says did not change in 3.0 s: it is frozen.",
    ),
    "lost": ([seen("NVML", "H100", gone="the GPU is lost")], 1, "No energy sensor. NVML: the GPU is lost."),
}  # fmt: skip


@pytest.mark.parametrize(("views", "code", "sentence"), VERDICTS.values(), ids=VERDICTS)
def test_the_exit_code_is_about_the_device_that_would_be_measured(
    views: list[View], code: int, sentence: str
) -> None:
    assert verdict(views) == (code, sentence)

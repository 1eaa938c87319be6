"""Which energy sensor a device has, and for every channel that it lacks, why.

    sensor, found = find_sensor(device.describe())

An NVIDIA GPU is read through NVML, a CPU through RAPL. A simulated device brings its own sensor.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bench.analysis.traces import CHANNELS
from bench.measure.power import Sensor, SensorError
from bench.measure.power.nvml import NvmlSensor
from bench.measure.power.rapl import ROOT, RaplSensor
from profiles.schema import DeviceInfo

JOULES = ("energy_j", "power_instant_w", "power_average_w")  # one of them is what a sensor needs


@dataclass(frozen=True)
class Found:
    """One finding.

    Attributes:
        name: "NVML" or "RAPL".
        channels: what it is about.
        reason: why they cannot be used, a clause without a full stop; empty when they can.
    """

    name: str
    channels: tuple[str, ...]
    reason: str = ""

    @property
    def usable(self) -> bool:
        """Whether the channels are there."""
        return not self.reason


def find_sensor(device: DeviceInfo, root: Path = ROOT) -> tuple[Sensor | None, tuple[Found, ...]]:
    """The sensor that says what a device draws, or None; and what was found on the way.

    Args:
        device: the measured device; a GPU is told by the hash of its UUID, whatever the order in which
            CUDA or NVML list it.
        root: where sys is found; another folder in tests.
    """
    if device.kind == "simulated":
        return None, ()
    if device.kind == "cpu":
        return open_usable("RAPL", lambda: RaplSensor.open(device.name, root))
    if device.uuid_hash is None:
        why = "the device does not say its UUID, so its board cannot be told from others"
        return None, (Found("NVML", JOULES, why),)
    uuid_hash = device.uuid_hash
    return open_usable("NVML", lambda: NvmlSensor.open(uuid_hash))


def open_usable(
    name: str, open_sensor: Callable[[], Sensor]
) -> tuple[Sensor | None, tuple[Found, ...]]:
    """A sensor if it opens and has joules or watts, and its channels; or why not."""
    try:
        sensor = open_sensor()
    except SensorError as problem:
        return None, (Found(name, JOULES, str(problem)),)
    info = sensor.info
    found = [Found(name, info.channels)] if info.channels else []
    found += [Found(name, (c,), info.missing[c]) for c in CHANNELS if c in info.missing]
    if not set(JOULES) & set(info.channels):
        sensor.close()
        return None, tuple(f for f in found if not f.usable)
    return sensor, tuple(found)


def absence(found: tuple[Found, ...]) -> str:
    """Why there is no energy sensor, as one clause: for a profile, and for whoever asks."""
    reasons = dict.fromkeys(f"{f.name}: {f.reason}" for f in found if set(f.channels) & set(JOULES))
    return "no energy sensor: " + ("; ".join(reasons) or "this device has none")

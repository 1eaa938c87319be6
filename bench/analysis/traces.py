"""What power sensors said while something ran: the raw material of every joule.

A trace is a table of readings in the order in which they were taken. Nothing is left out of it: a reading that
failed is a row with its error, a channel that a sensor does not have is NaN throughout.

    time_s | read_s | energy_j | power_instant_w | power_average_w | clocks, temperature, reasons | error

A window is a trace around one steady load, with what the load had done by when:

    ~~~~~ idle ~~~~~|######## load, layer after layer #########|~~~~~ idle ~~~~~
                 began_s                                    ended_s
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

CHANNELS = {
    "energy_j": "joules that a counter has counted since some moment before",
    "power_instant_w": "watts over the sensor's own window, which ends a little before now",
    "power_average_w": "watts over a trailing average that is longer, mostly one second",
    "sm_clock_mhz": "clock of the multiprocessors",
    "memory_clock_mhz": "clock of the memory",
    "temperature_c": "temperature in degrees Celsius",
    "event_reasons": "NVML's bit mask of reasons why clocks are not higher",
}
POWERS = ("power_instant_w", "power_average_w")
SHARED = (
    "another process used the board"  # so begins the error of a row that spoils the whole trace
)


@dataclass(frozen=True)
class Reading:
    """What a sensor said once.

    Attributes:
        time_s: the middle of the call, on the host's monotonic clock.
        read_s: how long the call took.
        values: by channel; channels that had none are not there.
        error: why the reading failed, or a channel of it; empty when all is well.
    """

    time_s: float
    read_s: float
    values: dict[str, float]
    error: str = ""


@dataclass(frozen=True)
class Trace:
    """Readings as columns.

    Attributes:
        time_s: [readings], rising.
        read_s: [readings].
        values: channel to [readings]; NaN where a reading has none. Every channel is there.
        errors: [readings].
    """

    time_s: Floats
    read_s: Floats
    values: dict[str, Floats]
    errors: tuple[str, ...]

    @classmethod
    def of(cls, readings: Sequence[Reading]) -> Trace:
        """Readings in the order in which they were taken."""
        return cls(
            np.array([r.time_s for r in readings], float),
            np.array([r.read_s for r in readings], float),
            {
                channel: np.array([r.values.get(channel, np.nan) for r in readings], float)
                for channel in CHANNELS
            },
            tuple(r.error for r in readings),
        )

    @property
    def shared(self) -> str:
        """Why the watts are not those of the load alone; empty where nothing is known against it."""
        return next((error for error in self.errors if error.startswith(SHARED)), "")

    def readings(self) -> list[Reading]:
        """The same as rows; what is NaN is left out."""
        return [
            Reading(
                float(self.time_s[i]),
                float(self.read_s[i]),
                {c: float(v[i]) for c, v in self.values.items() if not np.isnan(v[i])},
                self.errors[i],
            )
            for i in range(len(self.time_s))
        ]


@dataclass(frozen=True)
class Load:
    """What a device did between two moments of the host's monotonic clock.

    Attributes:
        marks: (when, layers finished by then), rising; the first is (began_s, 0).
        planted: (from when, watts, NVML's event reasons) of a device without hardware; empty on every
            other.
    """

    marks: tuple[tuple[float, int], ...]
    planted: tuple[tuple[float, float, int], ...] = ()

    @property
    def began_s(self) -> float:
        """When the first layer began."""
        return self.marks[0][0]

    @property
    def ended_s(self) -> float:
        """When the last layer was finished."""
        return self.marks[-1][0]

    @property
    def layers(self) -> int:
        """How many layers there were."""
        return self.marks[-1][1]

    @property
    def layer_s(self) -> float:
        """Seconds of one layer, the mean over the load."""
        return (self.ended_s - self.began_s) / self.layers


def switched_s(loads: Sequence[Load]) -> list[float]:
    """The moments at which loads went on, off, on, off, ..."""
    return [moment for load in loads for moment in (load.began_s, load.ended_s)]


@dataclass(frozen=True)
class Window:
    """A load, and what the sensor said before, during and after it.

    Attributes:
        load: what ran.
        trace: from the idle time before to the idle time after.
        idle_before_s: seconds before the load during which the device had nothing to do.
        idle_after_s: the same after it.
    """

    load: Load
    trace: Trace
    idle_before_s: float
    idle_after_s: float

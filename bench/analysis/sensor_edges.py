"""The edges of a channel: the moments at which a sensor said something new.

Readings change only at the sensor's own updates, and polls fall anywhere between them. So a channel is cut
down to its edges, each known to within a poll:

    poll     |    |    |    |    |    |    |    |
    reading  7    7    9    9    9    9    8    8      edges at ] ] between 7|9 and 9|8
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bench.analysis.traces import Trace

Floats = NDArray[np.float64]

COUNTER = "energy_j"
NAMES = {
    "energy_j": "the energy counter",
    "power_instant_w": "the instantaneous power",
    "power_average_w": "the averaged power",
}


@dataclass(frozen=True)
class Edges:
    """When a channel changed, and to what.

    Attributes:
        time_s: [edges], the middle of the time in which it may have changed.
        half_s: [edges], half of that time.
        value: [edges].
    """

    time_s: Floats
    half_s: Floats
    value: Floats


def polls(trace: Trace, channel: str) -> tuple[Floats, Floats, Floats]:
    """Times, durations and values of the polls that have a value of a channel."""
    there = np.isfinite(trace.values[channel])
    return trace.time_s[there], trace.read_s[there], trace.values[channel][there]


def edges(trace: Trace, channel: str, update_s: float | None) -> Edges:
    """The changes of a channel.

    A value was taken at some moment of its call. One that differs from the value before came with the last
    update before that moment, so after the poll before, and at most one update period ago.

    Args:
        trace: readings.
        channel: of them.
        update_s: how often it changes; None where that is not known.
    """
    time_s, read_s, value = polls(trace, channel)
    changed = np.flatnonzero(np.diff(value) != 0) + 1
    high = time_s[changed] + read_s[changed] / 2
    low = time_s[changed - 1] - read_s[changed - 1] / 2
    if update_s is not None:
        low = np.maximum(low, time_s[changed] - read_s[changed] / 2 - update_s)
    return Edges((low + high) / 2, (high - low) / 2, value[changed])

"""Power sensors: one small protocol, and the thread that reads one while something else runs.

    sensor.read()  every period, late readings counted, failed ones kept  ->  Trace

The thread belongs to the process that waits, not to the one that launches kernels: reading a sensor must not
slow what it measures, and a crash of the measured process must not lose the trace. Both processes read the
same monotonic clock of the host.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Protocol

from bench.analysis.traces import Reading, Trace

STUCK_S = 30.0  # for a reading; a driver may hold a call for ever when its GPU is gone
PERIOD_S = 0.01  # a tenth of the shortest update period of most boards


class SensorError(RuntimeError):
    """A sensor cannot be read, and why; the message is a clause without a full stop."""


@dataclass(frozen=True)
class SensorInfo:
    """What a sensor is.

    Attributes:
        name: "NVML", "RAPL", "simulated", "replay" or "none".
        scope: what its joules are of: "the whole board", "CPU packages", ...
        model: the board or processor, whose published traits apply.
        channels: those that it has.
        missing: channel to why it has none, for the others that one might expect.
        facts: what else is to be recorded: driver, library, power limit, persistence mode, ECC, MIG, ...
    """

    name: str
    scope: str
    model: str
    channels: tuple[str, ...]
    missing: dict[str, str] = field(default_factory=dict)
    facts: dict[str, str | int | float | bool | None] = field(default_factory=dict)


class Sensor(Protocol):
    """Something that says joules or watts."""

    @property
    def info(self) -> SensorInfo:
        """What it is."""
        ...

    def read(self) -> tuple[dict[str, float], str]:
        """Values by channel, now; and what was wrong with channels that are missing, else "".

        Raises:
            SensorError: it cannot be read any more.
        """
        ...

    def close(self) -> None:
        """Gives back what it holds; may be called twice."""
        ...


class Clock(Protocol):
    """A clock that can be waited for: the host's, or a virtual one."""

    def now_s(self) -> float:
        """Seconds since some moment, never falling."""
        ...

    def sleep(self, seconds: float) -> None:
        """Waits."""
        ...


class HostClock:
    """CLOCK_MONOTONIC, which all processes of the host share."""

    def now_s(self) -> float:
        """See the protocol."""
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        """See the protocol."""
        time.sleep(seconds)


@dataclass(frozen=True)
class Sampling:
    """What reading the sensor cost.

    Attributes:
        readings: how many there are.
        failed: how many of them carry an error.
        late: readings that began more than a period after their time.
        longest_read_s: the slowest call.
        cpu_s: processor time of the thread; None where it is not known.
        wall_s: from the first reading to the last.
    """

    readings: int
    failed: int
    late: int
    longest_read_s: float
    cpu_s: float | None
    wall_s: float


def poll(
    sensor: Sensor,
    clock: Clock,
    stop: Callable[[], bool],
    period_s: float = PERIOD_S,
    readings: list[Reading] | None = None,
) -> tuple[Trace, Sampling]:
    """Reads a sensor every period until told to stop; each reading goes into `readings` at once.

    A call that takes longer than a period makes the next reading late; that is taken at once, and the period
    begins anew from it. A sensor that fails for good leaves one last row with its error.
    """
    readings = [] if readings is None else readings
    late, due_s = 0, clock.now_s()
    while not stop():
        before_s = clock.now_s()
        if before_s > due_s + period_s:
            late, due_s = late + 1, before_s
        values: dict[str, float] = {}
        gone = False
        try:
            values, error = sensor.read()
        except SensorError as problem:
            error, gone = str(problem), True
        after_s = clock.now_s()
        readings.append(Reading((before_s + after_s) / 2, after_s - before_s, values, error))
        if gone:
            break
        due_s += period_s
        clock.sleep(max(0.0, due_s - after_s))
    return summed_up(readings, late)


def summed_up(readings: list[Reading], late: int) -> tuple[Trace, Sampling]:
    """Readings as a trace, and what they cost."""
    return Trace.of(readings), Sampling(
        readings=len(readings),
        failed=sum(bool(r.error) for r in readings),
        late=late,
        longest_read_s=max((r.read_s for r in readings), default=0.0),
        cpu_s=None,
        wall_s=readings[-1].time_s - readings[0].time_s if readings else 0.0,
    )


class Sampler:
    """A thread that polls a sensor until it is stopped.

    Use as a context manager; `result` is there after its end. An error that no sensor should raise ends the
    thread; it is raised again at the end of the block. A sensor that does not answer any more is not waited
    for longer than STUCK_S: its last row says so.
    """

    def __init__(self, sensor: Sensor, period_s: float = PERIOD_S) -> None:
        self._sensor, self._period_s = sensor, period_s
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="power", daemon=True)
        self._fault: Exception | None = None
        self._readings: list[Reading] = []
        self.result: tuple[Trace, Sampling] | None = None

    def _run(self) -> None:
        began_s = time.thread_time()
        try:
            trace, sampling = poll(
                self._sensor, HostClock(), self._end.is_set, self._period_s, self._readings
            )
        except Exception as fault:
            self._fault = fault
            return
        cpu_s = time.thread_time() - began_s
        self.result = (trace, replace(sampling, cpu_s=cpu_s))

    def __enter__(self) -> Sampler:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._end.set()
        self._thread.join(STUCK_S)
        if self._thread.is_alive():
            so_far = list(self._readings)
            why = f"the sensor has not answered for {STUCK_S:g} s"
            so_far.append(Reading(time.monotonic(), STUCK_S, {}, why))
            self.result = summed_up(so_far, late=1)
        if self._fault is not None and error[0] is None:
            raise self._fault

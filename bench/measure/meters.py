"""Meters: a sensor around loads, with idle time before and after.

HostMeter       a thread of this process reads the sensor while another process runs the loads
SimulatedMeter  the loads are over in no time; a simulated sensor reads afterwards what was planted
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Protocol, runtime_checkable

from bench.analysis.traces import POWERS, SHARED, Load, Reading, Trace
from bench.measure.devices.simulated import BOARDS, Board
from bench.measure.power import (
    HostClock,
    Sampler,
    Sampling,
    Sensor,
    SensorError,
    SensorInfo,
    poll,
)
from bench.measure.power.discover import absence, find_sensor
from bench.measure.power.simulated import PowerCurve, SimulatedSensor, VirtualClock
from profiles.schema import DeviceInfo
from profiles.sensors import Traits, published_traits

UPDATE_WAIT_S = 0.5  # for a sensor to say something new
UPDATE_POLL_S = 0.001
NOTICED_S = 0.0037  # after which a simulated update is noticed: some time within a poll


@dataclass(frozen=True)
class NoMeter:
    """Nothing measures energy here.

    Attributes:
        reason: why not, a clause.
    """

    reason: str


@dataclass(frozen=True)
class Recording:
    """Some loads, with idle time before the first and after the last, and what the sensor said.

    Attributes:
        loads: one per burst.
        trace: of the whole time.
        sampling: what reading the sensor cost.
    """

    loads: tuple[Load, ...]
    trace: Trace
    sampling: Sampling


class Meter(Protocol):
    """What measures the energy of loads."""

    @property
    def info(self) -> SensorInfo:
        """The sensor."""
        ...

    def record(
        self, run: Callable[[], tuple[Load, ...]], idle_s: float, delay_s: float
    ) -> Recording:
        """Loads with idle time around them.

        Args:
            run: runs the loads and returns when they are over.
            idle_s: before and after.
            delay_s: between an update of the sensor and the beginning of the first load.
        """
        ...

    def close(self) -> None:
        """Gives back the sensor."""
        ...


def same_sensor(before: SensorInfo | None, now: SensorInfo) -> bool:
    """Whether joules of both may meet in one profile: the same sensor, under the same power limit."""
    if before is None:
        return False
    fixed = ("uuid_hash", "power_limit_w")
    return (before.name, before.scope, before.model, before.channels) == (
        now.name, now.scope, now.model, now.channels,
    ) and all(before.facts.get(name) == now.facts.get(name) for name in fixed)  # fmt: skip


@runtime_checkable
class Shared(Protocol):
    """A sensor whose watts may be those of other processes too."""

    def strangers(self) -> tuple[int | None, int | None]:
        """How many processes of others use the board now, and how many cannot be told; None: unknown."""
        ...


class HostMeter:
    """A sensor of this machine, read by a thread of this process while another one runs the loads.

    Who uses the board is asked before and after, since it costs the driver time. A process that is not
    ours leaves a row without values in the trace, whose error makes analysis refuse the window.
    """

    def __init__(self, sensor: Sensor) -> None:
        self._sensor = sensor
        self._last: dict[str, float] = {}

    @property
    def info(self) -> SensorInfo:
        """See the protocol."""
        return self._sensor.info

    def read(self) -> tuple[dict[str, float], str]:
        """The sensor's values, remembered for `record`."""
        values, error = self._sensor.read()
        self._last = values
        return values, error

    def close(self) -> None:
        """See the protocol."""
        self._sensor.close()

    def record(
        self, run: Callable[[], tuple[Load, ...]], idle_s: float, delay_s: float
    ) -> Recording:
        """See the protocol."""
        clock = HostClock()
        with contextlib.suppress(SensorError):  # whatever is wrong, the next reading says so too
            self._sensor.read()  # thrown away: after a pause a counter may not know what it missed
        began_s, before = clock.now_s(), self._users()
        with Sampler(self) as sampler:
            clock.sleep(idle_s)
            self._wait_for_update(clock)
            clock.sleep(delay_s)
            loads = run()
            clock.sleep(idle_s)
        assert sampler.result is not None
        after, ended_s = self._users(), clock.now_s()
        return Recording(
            loads,
            *_noted(
                *sampler.result,
                first=_sharing(began_s, before[0], "before"),
                last=_sharing(ended_s, after[0] or max(0, after[1] - before[1]), "after"),
            ),
        )

    def _users(self) -> tuple[int, int]:
        """Processes of others on the board now, and those that cannot be told; 0 where that is not known.

        In a container ours cannot be told either; so only more of them than before say something.
        """
        others, unknown = None, None
        if isinstance(self._sensor, Shared):
            others, unknown = self._sensor.strangers()
        return others or 0, unknown or 0

    def _wait_for_update(self, clock: HostClock) -> None:
        """Until the sensor says something new, or has not for a while."""
        # the shortest: the phase of the power is what trials shift
        channel = next((c for c in (*POWERS, "energy_j") if c in self.info.channels), "")
        before = self._last.get(channel)
        end_s = clock.now_s() + UPDATE_WAIT_S
        while clock.now_s() < end_s:
            if self._last.get(channel) != before:
                return
            clock.sleep(UPDATE_POLL_S)


def _sharing(time_s: float, count: int, when: str) -> list[Reading]:
    """A row without values that says how many others used the board; nothing for none."""
    if not count:
        return []
    listed = f"{count} {'processes' if count > 1 else 'process'}"
    why = f"{SHARED} (see nvidia-smi): {when} the window the driver listed {listed} of others"
    return [Reading(time_s, 0.0, {}, why)]


def _noted(
    trace: Trace, sampling: Sampling, first: list[Reading], last: list[Reading]
) -> tuple[Trace, Sampling]:
    """A trace with rows before and after it, which count as failed readings."""
    added = len(first) + len(last)
    if not added:
        return trace, sampling
    readings, failed = sampling.readings + added, sampling.failed + added
    noted = replace(sampling, readings=readings, failed=failed)
    return Trace.of([*first, *trace.readings(), *last]), noted


class SimulatedMeter:
    """The published sensor of a board, reading the power that a simulated device was planted with."""

    def __init__(self, board: Board, traits: Traits, seed: int) -> None:
        self._board, self._traits, self._seed = board, traits, seed

    @property
    def info(self) -> SensorInfo:
        """See the protocol."""
        curve, clock = PowerCurve(self._board.idle_w), VirtualClock()
        return self._sensor(curve, clock, 0.0, [(0.0, 0.0)]).info

    def record(
        self, run: Callable[[], tuple[Load, ...]], idle_s: float, delay_s: float
    ) -> Recording:
        """See the protocol. The loads are over in no time; the sensor is read afterwards."""
        loads = run()
        curve = PowerCurve(self._board.idle_w)
        for (from_s, watts, _), (to_s, _, _) in pairwise(p for load in loads for p in load.planted):
            if watts != curve.idle_w:
                curve.add(from_s, to_s, watts)
        began_s, end_s = loads[0].began_s, loads[-1].ended_s + idle_s
        clock = VirtualClock(began_s - delay_s - idle_s)
        reasons = [(from_s, float(why)) for load in loads for from_s, _, why in load.planted]
        sensor = self._sensor(curve, clock, began_s - delay_s - NOTICED_S, reasons)
        return Recording(loads, *poll(sensor, clock, lambda: clock.now_s() >= end_s))

    def _sensor(
        self,
        curve: PowerCurve,
        clock: VirtualClock,
        update_s: float,
        reasons: Sequence[tuple[float, float]],
    ) -> SimulatedSensor:
        """The sensor, one of whose updates is at `update_s`."""
        return SimulatedSensor(
            curve,
            clock,
            self._traits,
            seed=self._seed,
            phase_s=update_s % (self._traits.update_s or 1.0),
            conditions=[(from_s, {"event_reasons": why}) for from_s, why in reasons],
        )

    def close(self) -> None:
        """See the protocol."""


def find_meter(device: DeviceInfo) -> Meter | NoMeter:
    """What measures the energy of a device, or why nothing does."""
    if device.kind == "simulated":
        board = next(b for b in BOARDS.values() if device.name.startswith(b.name))
        traits = published_traits(board.name)
        assert traits is not None
        return SimulatedMeter(board, traits, int(device.extra["scenario_seed"] or 0))
    sensor, found = find_sensor(device)
    if sensor is None:
        return NoMeter(absence(found))
    return HostMeter(sensor)

"""Energy windows of a run: which loads there are, in which order they come, and the meter around each.

    trial 0   batches in random order; of each, its arms in random order   idle | load | idle
    trial 1   the same in another order, started another quarter of the sensor's period later
    ...

A load is one arm on every operator of a layer, layer after layer. Arms of one batch are neighbours in time, so
that what is compared was equally warm.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import numpy as np

from bench.analysis.arms import Arms, add_layers, members, pick_roles, read_arms
from bench.analysis.decompose import ARM_ORDER
from bench.analysis.energy import load_s
from bench.analysis.traces import POWERS, Load, Trace
from bench.measure.devices.simulated import BOARDS, Board
from bench.measure.ledger import Ledger, samples_table
from bench.measure.power import HostClock, Sampler, Sampling, Sensor, SensorInfo, poll
from bench.measure.power.discover import absence, find_sensor
from bench.measure.power.simulated import PowerCurve, SimulatedSensor, VirtualClock
from bench.measure.records import EnergyArms, EnergyPlan, SensorRecord
from bench.measure.session import ArmName
from profiles.schema import LAYER, DeviceInfo, Implementation
from profiles.sensors import Traits, published_traits

BATCHES = (1, 8, 64, 256)  # of the default windows, where the run has them
UPDATE_WAIT_S = 0.5  # for a sensor to say something new
UPDATE_POLL_S = 0.001


@dataclass(frozen=True)
class EnergyLoad:
    """One arm on the whole layer.

    Attributes:
        format: of the problem.
        batch: of the problem.
        kernel: the arm of the layer, as its row names it.
        arms: the arm on each operator.
    """

    format: str
    batch: int
    kernel: Implementation
    arms: tuple[ArmName, ...]


def loads(
    ledger: Ledger, weight_format: str, batches: tuple[int, ...], which: EnergyArms
) -> list[EnergyLoad]:
    """The loads of a format, from the fresh blocks of the run.

    Args:
        ledger: of the run; its timing is over.
        weight_format: which format.
        batches: which batches.
        which: "default": best16, bypass, fused and unfused of each; "full": every arm of the layer.
    """
    rows = [r for r in ledger.rows if r["format"] == weight_format and r["batch"] in batches]
    timed = read_arms(samples_table(rows), "fresh")
    for key, fact in ledger.facts.items():
        if fact.failure is not None and key.problem in timed:
            timed[key.problem].pop(key.kernel, None)
    problems = add_layers(timed, ledger.workload)
    found = []
    for problem in sorted(problems):
        if problem.operator != LAYER:
            continue
        for kernel in _chosen(problems[problem], weight_format, which):
            arms = tuple(
                ArmName(key.problem.operator, problem.batch, weight_format, *key[1:])
                for key in members(timed, problem, kernel, ledger.workload)
            )
            found.append(EnergyLoad(weight_format, problem.batch, kernel, arms))
    return found


def _chosen(arms: Arms, weight_format: str, which: EnergyArms) -> list[Implementation]:
    if which == "full":
        return list(arms)
    roles = pick_roles(arms, weight_format)
    chosen = (roles.best16, roles.bypass, roles.fused, roles.unfused)
    return [kernel for kernel in chosen if kernel is not None]


def in_order(some: list[EnergyLoad], seed: int, trials: int) -> Iterator[tuple[int, EnergyLoad]]:
    """Every trial of every load, in the order in which they are measured."""
    batches = sorted({load.batch for load in some})
    for trial in range(trials):
        rng = np.random.default_rng((seed, trial))
        for batch in rng.permutation(batches):
            of_batch = [load for load in some if load.batch == batch]
            for index in rng.permutation(len(of_batch)):
                yield trial, of_batch[index]


def announcement(plan: EnergyPlan, sensor: SensorRecord) -> str:
    """What energy will be measured with, and how long that takes; or why it will not be."""
    if sensor.info is None:
        return f"Joules: none will be measured: {sensor.reason}."
    rules = plan.rules
    guess_s = load_s(sensor.published, rules) if sensor.published else 2 * rules.window_s
    each_s = guess_s + 2 * rules.idle_s
    arms = "best16, bypass, fused and unfused" if plan.arms == "default" else "every arm"
    count = len(plan.batches) * rules.trials * (4 if plan.arms == "default" else len(ARM_ORDER))
    return (
        f"Joules: by {sensor.info.name}, of {sensor.info.scope}; {arms} at batch "
        f"{', '.join(map(str, plan.batches))}, {rules.trials} trials of {each_s:.0f} s each: "
        f"{'about' if plan.arms == 'default' else 'up to'} {count * each_s / 60:.0f} min per format, "
        f"after the times."
    )


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


class HostMeter:
    """A sensor of this machine, read by a thread of this process while another one runs the loads."""

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
        with Sampler(self) as sampler:
            clock.sleep(idle_s)
            self._wait_for_update(clock)
            clock.sleep(delay_s)
            loads = run()
            clock.sleep(idle_s)
        assert sampler.result is not None
        return Recording(loads, *sampler.result)

    def _wait_for_update(self, clock: HostClock) -> None:
        """Until the sensor says something new, or has not for a while."""
        channels = ("energy_j", *POWERS)
        before = [self._last.get(channel) for channel in channels]
        end_s = clock.now_s() + UPDATE_WAIT_S
        while clock.now_s() < end_s:
            if [self._last.get(channel) for channel in channels] != before:
                return
            clock.sleep(UPDATE_POLL_S)


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
        sensor = self._sensor(curve, clock, began_s - delay_s, reasons)
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

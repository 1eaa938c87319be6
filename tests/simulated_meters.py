"""Joules on simulated sensors, ours beside what a naive meter says of the same loads.

    python -m tests.simulated_meters            # half a minute

Every board has the update period and the averaging windows that are published for it, planted gain 1 and
offset 0. Errors are of joules per layer against the planted power, exactly integrated.

Ours is four windows, each begun a quarter of the sensor's period later than the one before, and combined.
The naive meter does what most tools do: it polls the power reading every 100 ms while the load runs, and
multiplies the mean by the time. Of its four runs the worst is shown, since it would have done one. "short"
is the same meter over the first 0.3 s of the load.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cache

import numpy as np

from bench.analysis.energy import (
    Rules,
    WindowEnergy,
    load_s,
    trial_delays,
    window_joules,
)
from bench.analysis.energy_trials import ArmEnergy, combine
from bench.analysis.sensor_edges import edges
from bench.analysis.traces import POWERS, Load, Reading, Trace, Window
from bench.measure.power import poll
from bench.measure.power.simulated import Errors, Faults, PowerCurve, SimulatedSensor, VirtualClock
from profiles.sensors import Traits, published_traits

BOARDS = {
    "V100": "Tesla V100-SXM2-16GB",
    "2080 Ti": "NVIDIA GeForce RTX 2080 Ti",
    "A100": "NVIDIA A100-SXM4-80GB",
    "3090": "NVIDIA GeForce RTX 3090",
    "4090": "NVIDIA GeForce RTX 4090",
    "H100": "NVIDIA H100 PCIe",
    "A10": "NVIDIA A10",
}
COUNTERS = ("all", "seen", "none")  # what the energy counter counts, or that there is none
IDLE_W, BUSY_W, LAYER_S = 60.0, 300.0, 1e-3
NAIVE_POLL_S, SHORT_S = 0.1, 0.3
POLL_S = 0.01
RULES = Rules()
HEALTHY = Errors(jitter_s=0.001)


PHASE_EDGES = (
    20  # the last ones: a period that is one in a hundred longer than published drifts by 20 %
)
PHASE_STEPS = 400
PHASE_AGREEMENT = 0.8


def update_phase_s(trace: Trace, traits: Traits) -> float | None:
    """Where in its period the sensor updates its power: updates fall at this plus multiples of update_s.

    An update lies between the last poll before it and the first one after it. The phase that most of the
    last edges allow is taken, in the middle where several do; that is good to a fraction of a poll.

    Returns:
        None where nothing changes, or changes do not keep to the period.
    """
    channel = next((c for c in POWERS if c in traits.averaging_s), None)
    if traits.update_s is None or channel is None:
        return None
    found = edges(trace, channel, traits.update_s)
    middle, half = found.time_s[-PHASE_EDGES:], found.half_s[-PHASE_EDGES:]
    if len(middle) < 3:
        return None
    period_s = traits.update_s
    phases = np.arange(0, period_s, period_s / PHASE_STEPS)
    off = (phases[:, None] - middle + period_s / 2) % period_s - period_s / 2
    votes = (abs(off) <= half).mean(axis=1)
    if votes.max() < PHASE_AGREEMENT:
        return None
    best = np.exp(2j * np.pi * phases[votes == votes.max()] / period_s).mean()
    return float(np.angle(best) / (2 * np.pi)) % 1.0 * period_s


@dataclass(frozen=True)
class Ran:
    """A planted load: until when, its marks, and what was read alongside from when."""

    ended_s: float
    marks: tuple[tuple[float, int], ...]
    conditions: tuple[tuple[float, dict[str, float]], ...] = ()


Plant = Callable[[PowerCurve, float, float, Traits], Ran]  # curve, begin, seconds, traits


def constant(curve: PowerCurve, began_s: float, lasts_s: float, traits: Traits) -> Ran:
    layers = round(lasts_s / LAYER_S)
    ended_s = began_s + layers * LAYER_S
    curve.add(began_s, ended_s, BUSY_W)
    return Ran(ended_s, ((began_s, 0), (ended_s, layers)))


def ramp(curve: PowerCurve, began_s: float, lasts_s: float, traits: Traits) -> Ran:
    """A board that heats up: a fifth more power at the end."""
    layers = round(lasts_s / LAYER_S)
    ended_s = began_s + layers * LAYER_S
    curve.add(began_s, ended_s, BUSY_W, 1.2 * BUSY_W)
    return Ran(ended_s, ((began_s, 0), (ended_s, layers)))


def gapped(curve: PowerCurve, began_s: float, lasts_s: float, busy_s: float, idle_s: float) -> Ran:
    """Layers of 1 ms while busy, in turn with idle times."""
    marks, t, done = [(began_s, 0)], began_s, 0
    while t < began_s + lasts_s:
        curve.add(t, t + busy_s, BUSY_W)
        done += round(busy_s / LAYER_S)
        marks += [(t + busy_s, done), (t + busy_s + idle_s, done)]
        t = t + busy_s + idle_s
    return Ran(t, tuple(marks))


def short_gaps(curve: PowerCurve, began_s: float, lasts_s: float, traits: Traits) -> Ran:
    return gapped(curve, began_s, lasts_s, LAYER_S, LAYER_S)


def in_step(curve: PowerCurve, began_s: float, lasts_s: float, traits: Traits) -> Ran:
    """Half of each update period busy, half idle: what a sensor that sees a part of it cannot know."""
    half_s = (traits.update_s or 0.1) / 2
    return gapped(curve, began_s, lasts_s, half_s, half_s)


def throttling(curve: PowerCurve, began_s: float, lasts_s: float, traits: Traits) -> Ran:
    """From the middle on 30 % less power, and layers that take 1.4 times as long."""
    first, slow_s = round(lasts_s / 2 / LAYER_S), 1.4 * LAYER_S
    middle_s = began_s + first * LAYER_S
    second = round(lasts_s / 2 / slow_s)
    ended_s = middle_s + second * slow_s
    curve.add(began_s, middle_s, BUSY_W)
    curve.add(middle_s, ended_s, 0.7 * BUSY_W)
    fast = {"sm_clock_mhz": 1400.0, "event_reasons": 0.0, "temperature_c": 60.0}
    slow = {"sm_clock_mhz": 1000.0, "event_reasons": 32.0, "temperature_c": 85.0}
    marks = ((began_s, 0), (middle_s, first), (ended_s, first + second))
    return Ran(ended_s, marks, ((began_s, fast), (middle_s, slow)))


def too_short(curve: PowerCurve, began_s: float, lasts_s: float, traits: Traits) -> Ran:
    return constant(curve, began_s, SHORT_S, traits)


LOADS: dict[str, Plant] = {
    "constant": constant,
    "ramp": ramp,
    "1 ms gaps": short_gaps,
    "gaps in step": in_step,
    "throttling": throttling,
    "too short": too_short,
}
STEADY = ("constant", "ramp", "1 ms gaps", "throttling")  # of which nobody may refuse one


@dataclass(frozen=True)
class Trial:
    """One run, ours and naive.

    Attributes:
        window: what was polled.
        curve: what was planted.
        ours: what our meter says.
    """

    window: Window
    curve: PowerCurve
    ours: WindowEnergy

    @property
    def true_j(self) -> float:
        """Planted joules per layer."""
        load = self.window.load
        return self.curve.energy_j(load.began_s, load.ended_s) / load.layers

    def naive(self, lasts_s: float = float("inf")) -> float:
        """Relative error of mean power times time, from the load's begin on.

        The power is what nvmlDeviceGetPowerUsage gives: the one-second average where the board has one.
        """
        trace, began_s = self.window.trace, self.window.load.began_s
        until_s = min(self.window.load.ended_s, began_s + lasts_s)
        power_w = trace.values["power_average_w"]
        if not np.isfinite(power_w).any():
            power_w = trace.values["power_instant_w"]
        at = np.searchsorted(trace.time_s, np.arange(began_s, until_s, NAIVE_POLL_S))
        joules = float(power_w[at].mean()) * (until_s - began_s)
        return joules / self.curve.energy_j(began_s, until_s) - 1


@dataclass(frozen=True)
class Cell:
    """One board and one load."""

    trials: tuple[Trial, ...]
    arm: ArmEnergy

    @property
    def ours(self) -> float | None:
        """Relative error; None where ours refuses."""
        true_j = float(np.mean([t.true_j for t in self.trials]))
        value = self.arm.gross_j.value
        return None if value is None else value / true_j - 1

    @property
    def naive(self) -> float:
        return _worst(t.naive() for t in self.trials)

    @property
    def naive_short(self) -> float:
        return _worst(t.naive(SHORT_S) for t in self.trials)


def run(
    traits: Traits,
    plant: Plant,
    delay_s: float = 0.0,
    seed: int = 0,
    errors: Errors = HEALTHY,
    faults: Callable[[float], Faults] = lambda began_s: Faults(),
    rules: Rules = RULES,
    lag_s: float = 0.0,
) -> Trial:
    """One window: idle, the load from delay_s after an update of the sensor, idle.

    faults are given the moment at which the load will begin, as it is known before the trial: an update later
    at most.
    """
    clock, curve = VirtualClock(1000.0), PowerCurve(IDLE_W)
    idle_until_s = clock.now_s() + rules.idle_s
    sensor = SimulatedSensor(
        curve,
        clock,
        traits,
        seed=seed,
        errors=errors,
        faults=faults(idle_until_s),
        lag_s=lag_s,
    )
    before, _ = poll(sensor, clock, lambda: clock.now_s() >= idle_until_s, POLL_S)
    began_s = clock.now_s()
    phase_s = update_phase_s(before, traits)
    if phase_s is not None and traits.update_s is not None:
        began_s += (phase_s - began_s) % traits.update_s + delay_s
    ran = plant(curve, began_s, load_s(traits, rules), traits)
    sensor.conditions = ran.conditions
    over_s = ran.ended_s + rules.idle_s
    after, _ = poll(sensor, clock, lambda: clock.now_s() >= over_s, POLL_S)
    readings: list[Reading] = before.readings() + after.readings()
    window = Window(Load(ran.marks), Trace.of(readings), began_s - 1000.0, over_s - ran.ended_s)
    return Trial(window, curve, window_joules(window, traits, rules))


def board_traits(board: str) -> Traits:
    traits = published_traits(BOARDS[board])
    assert traits is not None
    return traits


@cache
def cell(board: str, load: str, counter: str = "all", seed: int = 0) -> Cell:
    """Four trials of a load on a board, and what they make together."""
    traits = board_traits(board)
    errors, faults = HEALTHY, Faults()
    if counter == "none":
        faults = Faults(missing={"energy_j": "Not Supported"})
    else:
        errors = replace(errors, counter="seen" if counter == "seen" else "all")
    trials = tuple(
        run(traits, LOADS[load], delay_s, seed * 100 + i, errors, lambda _: faults)
        for i, delay_s in enumerate(trial_delays(traits, RULES))
    )
    return Cell(trials, combine([t.ours for t in trials], "simulated", RULES))


def table(counter: str) -> str:
    """Boards and loads, one line each."""
    lines = [f"{'board':8} {'load':13} {'ours':>8} {'naive':>8} {'short':>8}  source, or reason"]
    for board in BOARDS:
        for load in LOADS:
            c = cell(board, load, counter)
            ours = "refused" if c.ours is None else f"{c.ours:+.1%}"
            said = c.arm.reason or c.arm.source + (", throttled" if c.arm.throttled else "")
            lines.append(
                f"{board:8} {load:13} {ours:>8} {c.naive:>+8.1%} {c.naive_short:>+8.1%}  {said}"
            )
    return "\n".join(lines)


def _worst(values: Iterable[float]) -> float:
    return max(values, key=abs)


def main() -> None:
    titles = {
        "all": "The energy counter counts all that is drawn",
        "seen": "The energy counter adds up what the power sensor sees",
        "none": "There is no energy counter",
    }
    for counter, title in titles.items():
        print(f"{title}\n\n{table(counter)}\n")


if __name__ == "__main__":
    main()

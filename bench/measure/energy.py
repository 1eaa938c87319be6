"""Energy windows of a run: which loads there are, and in which order they come.

    trial 0   batches in random order; of each, its arms in random order   idle | load | idle
    trial 1   the same in another order, started another quarter of the sensor's period later
    ...

A load is one arm on every operator of a layer, layer after layer. Arms of one batch are neighbours in time, so
that what is compared was equally warm.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from bench.analysis.arms import Arms, add_layers, members, pick_roles, read_arms
from bench.analysis.decompose import ARM_ORDER
from bench.analysis.energy import load_s
from bench.analysis.joules import Key
from bench.measure.ledger import Ledger, samples_table
from bench.measure.records import EnergyArms, EnergyPlan, SensorRecord
from bench.measure.session import ArmName
from profiles.schema import LAYER, Implementation

BATCHES = (1, 8, 64, 256)  # of the default windows, where the run has enough of them for a curve
SQUARE_S = 40.0  # the square wave, and rest around it


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

    @property
    def key(self) -> Key:
        """Which arm, as records and rows name it."""
        return (self.format, self.batch, self.kernel)


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


def announcement(plan: EnergyPlan, sensor: SensorRecord, formats: int) -> str:
    """What energy will be measured with, and how long that takes; or why it will not be."""
    if sensor.info is None:
        return f"Joules: none will be measured: {sensor.reason}."
    rules = plan.rules
    guess_s = load_s(sensor.published, rules) if sensor.published else 2 * rules.window_s
    each_s = guess_s + 2 * rules.idle_s
    arms = "best16, bypass, fused and unfused" if plan.arms == "default" else "every arm"
    count = len(plan.batches) * rules.trials * (4 if plan.arms == "default" else len(ARM_ORDER))
    minutes = (formats * count * each_s + SQUARE_S) / 60
    return (
        f"Joules: by {sensor.info.name}, of {sensor.info.scope}; {arms} at batch "
        f"{', '.join(map(str, plan.batches))}, {rules.trials} trials of {each_s:.0f} s each: "
        f"{'about' if plan.arms == 'default' else 'up to'} {math.ceil(minutes)} min after the times."
        + (
            f" Its watts include those of {graphics} graphics processes, such as a desktop."
            if (graphics := sensor.info.facts.get("graphics_processes"))
            else ""
        )
    )

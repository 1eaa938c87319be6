"""B* and N* against planted ones: whole runs on simulated devices whose crossings are known.

    python -m tests.planted_trap              # 500 runs of every case, some minutes
    python -m tests.planted_trap --runs 50

A run is one of bench.dequant (plan, session, journal, decomposition), as in planted_truth.py; what follows is
what bench.trap does. The truth comes from the planted times alone:

    B*    the integer batches at which t(best16) - t(fused), as planted, changes sign
    N*    where calls t0 + N c of the two arms, as planted, are equal (with eager launches: the host's time too)

A B* is found when its sign is right and every planted crossing lies within an interval; an N* when its sign is
right and N*, if there is one, lies within its interval.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from unittest import mock

import typer

from bench.analysis.critical_scale import REACH, costs_of, critical_scale
from bench.analysis.crossing import crossing
from bench.analysis.decompose import decompose
from bench.analysis.phi_curve import layers_of
from bench.analysis.replicates import Book
from bench.analysis.verdict import Sign, sign
from bench.measure.devices import Problem
from bench.measure.devices.simulated import (
    BOARDS,
    COSTS,
    ROW_TILE,
    SCENARIOS,
    Board,
    Cost,
    Scenario,
    SimulatedDevice,
    true_time_s,
)
from bench.measure.journal import Journal
from bench.measure.ledger import samples_table
from bench.measure.records import Plan
from bench.measure.run import Run
from kernels.formats import find_format
from kernels.kernel import Arm
from profiles.schema import Operator, Profile, Protocol
from tests import planted_profile
from tests.planted_truth import _without_processes

FORMAT = find_format("int4-g128")
OPERATORS = (
    Operator(name="small", n=1024, k=1024),
    Operator(name="middle", n=2048, k=2048),
    Operator(name="wide", n=6144, k=2048),
    Operator(name="large", n=4096, k=8192),
)
BATCHES = (1, 8, 64, 128, 256)
ARMS: tuple[Arm, ...] = ("bypass", "fused", "native")
LAYERS = 36
CALLS = LAYERS * len(OPERATORS)
SMALLEST = CALLS * OPERATORS[0].n * OPERATORS[0].k / REACH  # weights between which N* is looked for
LARGEST = CALLS * OPERATORS[-1].n * OPERATORS[-1].k * REACH
REPLICATES = 300
RUNS = 500
TO_FIND = 0.93
WORK_S = COSTS["fused"].work_s


@dataclass(frozen=True)
class Case:
    """A planted machine.

    Attributes:
        name: for the table.
        board: the machine.
        costs: of arms, where they are not those of the simulated device.
        batch: at which N* is looked for.
        eager: whether N* is that of eager launches, from a second run.
    """

    name: str
    board: Board = BOARDS["h100"]
    costs: dict[Arm, Cost] = field(default_factory=dict)
    batch: int = 1
    eager: bool = False

    def cost(self, arm: Arm) -> Cost:
        return self.costs.get(arm, COSTS[arm])


def _fused(launches: int = 1, work_s: float = WORK_S) -> dict[Arm, Cost]:
    return {"fused": Cost(0.90, work_s, launches), "bypass": Cost(0.90, 0.01e-12, launches)}


SLOW_NATIVE: dict[Arm, Cost] = {"native": Cost(0.85, 0.25e-12)}
CASES = (
    Case("dequantized once per row tile"),
    Case("launches of fused cost more", costs=_fused(launches=3)),
    Case("slow multiplication of native", costs=_fused(6, 0.05e-12) | SLOW_NATIVE, batch=8),
    Case("dequantization beyond memory", costs=_fused(work_s=2e-12)),
    Case("memory beyond everything", board=replace(BOARDS["h100"], bandwidth_gb_per_s=250.0)),
    Case("launches of native cost more",
         costs=_fused(work_s=2e-12) | {"native": Cost(0.85, 0.01e-12, 3)}),
    Case("eager launches, two of fused", costs=_fused(launches=2), eager=True),
)  # fmt: skip


@dataclass(frozen=True)
class Truth:
    """What is planted: sign and crossings over the measured batches, sign and N*."""

    batch_sign: Sign
    batches: tuple[tuple[int, int], ...]  # the last batch before a crossing, and the first after it
    scale_sign: Sign
    params: float


@dataclass(frozen=True)
class Found:
    """Whether one run found B* and N*, and what it said."""

    batch: bool
    scale: bool
    said: str


def true_layer_s(case: Case, arm: Arm, batch: int) -> float:
    """Seconds of a layer of an arm, as planted."""
    device = SimulatedDevice(case.board, Scenario(), arms=ARMS)
    total = 0.0
    for o in OPERATORS:
        problem = Problem(o.name, o.n, o.k, batch, FORMAT, "fp16")
        kernel = next(k for k in device.kernels(problem) if k.arm == arm)
        total += true_time_s(case.board, problem, kernel, arm, "graph")
    return total


def truth(case: Case) -> Truth:
    """From the planted times, without any run."""
    with mock.patch.dict(COSTS, case.costs):
        gains = {
            b: true_layer_s(case, "native", b) - true_layer_s(case, "fused", b)
            for b in range(1, BATCHES[-1] + 1)
        }
    turns = tuple((b, b + 1) for b in range(1, BATCHES[-1]) if (gains[b] > 0) != (gains[b + 1] > 0))
    found = sign(["wins" if gains[b] > 0 else "loses" for b in BATCHES])
    return Truth(found, turns, *true_scale(case))


def true_scale(case: Case) -> tuple[Sign, float]:
    """Sign and N*, from what is planted of each arm, by bisection between equal signs."""
    tiles = math.ceil(case.batch / ROW_TILE)

    def step_s(arm: Arm, weights: float) -> float:
        cost = case.cost(arm)
        bits = 16.0 if arm == "native" else FORMAT.bits_stored(2048)
        each = bits / 8 / (case.board.bandwidth_gb_per_s * 1e9 * cost.share)
        each += 2 * case.batch / (case.board.compute_gflop_per_s * 1e9) + tiles * cost.work_s
        device = CALLS * cost.launches * case.board.launch_s + weights * each
        return max(device, CALLS * cost.launches * case.board.host_s) if case.eager else device

    def wins(weights: float) -> bool:
        return step_s("fused", weights) < step_s("native", weights)

    if wins(SMALLEST) == wins(LARGEST):
        return ("always" if wins(SMALLEST) else "never"), math.nan
    low, high = SMALLEST, LARGEST
    while high / low > 1 + 1e-9:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if wins(middle) == wins(SMALLEST) else (low, middle)
    return ("wins_below" if wins(SMALLEST) else "wins_above"), low


def run_book(case: Case, scenario: Scenario, seed: int, mode: str = "graph") -> Book:
    """A run of a case, as bench.trap opens it."""
    protocol = Protocol(
        pilot_blocks=10, fresh_blocks_minimum=21, fresh_blocks_maximum=30, processes=3,
        target_half_width=0.02, confidence=0.95, sample_minimum_s=1e-3,
    )  # fmt: skip
    plan = Plan(
        "simulated:h100", "planted", LAYERS, OPERATORS, (FORMAT,), BATCHES, None, mode,
        protocol, seed,
    )  # fmt: skip
    device = SimulatedDevice(case.board, scenario, arms=ARMS)
    with (
        mock.patch.dict(COSTS, case.costs),
        tempfile.TemporaryDirectory(prefix="planted-") as folder,
        Journal(Path(folder) / "run.jsonl") as journal,
    ):
        run = Run(plan, journal, lambda progress: None, partial(_open, case.board, scenario))
        result = run.measure()
    samples = samples_table(journal.rows)
    rows, comparisons = decompose(samples, result.workload, protocol, result.facts, "simulated")
    profile = Profile(
        software=planted_profile.SOFTWARE, created="2026-01-31T12:00:00Z", kind="simulated",
        complete=True, device=device.describe(),
        git={"commit": "a" * 40, "dirty": False}, argv=(), workload=result.workload,
        kernels_sha256="0" * 64, protocol=protocol, rows=rows, comparisons=comparisons,
    )  # fmt: skip
    return Book.open(profile, samples, REPLICATES)


def _open(board: Board, scenario: Scenario, name: str) -> SimulatedDevice:
    return SimulatedDevice(board, scenario, arms=ARMS)


def one_run(case: Case, planted: Truth, seed: int) -> Found:
    """A run of a case, and whether B* and N* were found."""
    scenario = replace(SCENARIOS["moments"], seed=1000 * CASES.index(case) + 1)
    book = run_book(case, scenario, seed)
    host = (
        run_book(case, replace(scenario, seed=scenario.seed + 1), seed, "eager")
        if case.eager
        else None
    )
    points = [(c.batch, c.speedup_fused) for c in layers_of(book)]
    at = crossing(points, "simulated")
    batch = at.sign == planted.batch_sign and len(at.at) == len(planted.batches)
    for q, (before, after) in zip(at.at, planted.batches, strict=False):
        batch = batch and q.low <= before and after <= q.high
    costs = costs_of(book, FORMAT.name, "fused", host)[case.batch]
    scale = critical_scale(book, FORMAT.name, "fused", costs, CALLS, case.eager)
    right = scale.sign == planted.scale_sign
    if right and not math.isnan(planted.params):
        right = (
            scale.params.low is not None and scale.params.low <= planted.params <= scale.params.high
        )
    return Found(batch, right, f"{at.words}; {scale.sign} {scale.params}")


def table(runs: int, processes: int | None = None) -> Iterator[tuple[Case, Truth, list[Found]]]:
    """Every case, with the runs of each."""
    context = multiprocessing.get_context("fork")
    with context.Pool(processes or os.cpu_count(), _without_processes) as pool:
        for case in CASES:
            planted = truth(case)
            found = pool.imap_unordered(partial(one_run, case, planted), range(runs), chunksize=5)
            yield case, planted, list(found)


def line(case: Case, planted: Truth, found: list[Found]) -> str:
    """One row of the table."""
    batches = ", ".join(f"{a}-{b}" for a, b in planted.batches)
    params = "" if math.isnan(planted.params) else f"{planted.params / 1e9:.2f} B"
    shares = [sum(getattr(f, what) for f in found) / len(found) for what in ("batch", "scale")]
    return (
        f"{case.name:30} {planted.batch_sign:10} {batches:8} {shares[0]:7.1%}   "
        f"{planted.scale_sign:10} {params:>7} {shares[1]:7.1%}  {len(found)}"
    )


def main(runs: int = RUNS, processes: int = 0) -> None:
    """Print the table."""
    print(
        f"{'planted machine':30} {'B* planted':19} {'found':>7}   {'N* planted':18} {'found':>7}  runs"
    )
    for row in table(runs, processes or None):
        print(line(*row), flush=True)


if __name__ == "__main__":
    typer.run(main)

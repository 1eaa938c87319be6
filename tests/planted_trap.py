"""B* and N* against planted ones: whole runs on simulated devices whose crossings are known.

    python -m tests.planted_trap              # 500 runs of every case, some minutes
    python -m tests.planted_trap --runs 50

A run is one of bench.dequant (plan, session, journal, energy windows, profile), as in planted_truth.py; what
follows is what bench.trap does. The truth comes from the planted times and watts alone:

    B*    the whole batches between which best16 - arm, as planted, changes sign: in seconds of the fused and of
          the unfused path, in joules of the fused one, and of dequantizing at load against the fused kernel
    N*    where steps of square operators of the two arms, as planted, x and y included, take equally long
          (with eager launches: the host's time too); at a small batch and at a large one
    repaid   after how many steps dequantizing at load has cost less than the fused kernel

A question is answered when the sign is right and every planted turn lies within the interval given. Since an
interval from 0 to infinity holds everything, the table has the width of the intervals beside: the middle of the
ratios of their ends.

One machine is not what the method takes it to be. Its arms keep a factor for a process and another one on an
operator, so that neither are processes alike nor costs t0 + c n k; and its fused kernels take longer, one after
another in a layer, than the operators that are timed alone add up to, which no row of the profile shows. What
is planted there is the law: the batch and the size at which chained layers without those factors turn.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import pathlib
import statistics
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from unittest import mock

import typer

from bench.analysis.at_load import at_load
from bench.analysis.critical_scale import REACH, costs_of, critical_scale
from bench.analysis.crossing import crossing, inverse
from bench.analysis.energy import Rules
from bench.analysis.phi_curve import layers_of
from bench.analysis.replicates import Book
from bench.analysis.resampled import resampled
from bench.analysis.verdict import Path, Sign, ratio_of, sign
from bench.measure import run as run_module
from bench.measure.assemble import assemble
from bench.measure.devices import Mode, Problem
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
from bench.measure.records import EnergyPlan, Plan
from bench.measure.run import Run
from bench.measure.square import bursts
from kernels.formats import find_format
from kernels.kernel import Arm
from kernels.unfused import compose
from profiles.schema import Operator, Protocol, Quantity
from tests.planted_truth import _without_processes

FORMAT = find_format("int4-g128")
OPERATORS = (
    Operator(name="small", n=1024, k=1024),
    Operator(name="middle", n=2048, k=2048),
    Operator(name="wide", n=6144, k=2048),
    Operator(name="large", n=4096, k=8192),
)
BATCHES = (1, 8, 64, 128, 256)
LARGE = BATCHES[-1]
ARMS: tuple[Arm, ...] = ("fused", "native")  # no bypass: no question is about phi
LAYERS = 36
CALLS = LAYERS * len(OPERATORS)
SMALLEST = CALLS * OPERATORS[0].n * OPERATORS[0].k  # weights between which N* is looked for
LARGEST = CALLS * OPERATORS[-1].n * OPERATORS[-1].k * REACH
REPLICATES = 300
RUNS = 500
TO_FIND = 0.93
WORK_S = COSTS["fused"].work_s
WINDOWS = Rules(window_s=1.0, updates=9, idle_s=0.3, settle_s=0.2, trials=3)
SQUARE = bursts()[:2]  # of the square wave: the sensor is the published one, which is known


@dataclass(frozen=True)
class Case:
    """A planted machine.

    Attributes:
        name: for the table.
        board: the machine.
        costs: of arms, where they are not those of the simulated device.
        batch: the small one at which N* is looked for; the other is LARGE.
        eager: whether N* is that of eager launches, from a second run.
        unfused: whether there is an unfused path, and dequantizing at load.
        joules: whether B* is asked for in joules, from energy windows, and N* is not asked for.
        process_noise: standard deviation of the logarithm of a factor of an arm in a process.
        operator_noise: of one of an arm on an operator.
        chained: by how much longer fused takes in a layer than its operators add up to.
    """

    name: str
    board: Board = BOARDS["h100"]
    costs: dict[Arm, Cost] = field(default_factory=dict)
    batch: int = 1
    eager: bool = False
    unfused: bool = False
    joules: bool = False
    process_noise: float = 0.0
    operator_noise: float = 0.0
    chained: float = 1.0

    @property
    def arms(self) -> tuple[Arm, ...]:
        """Those of the device."""
        return (*ARMS, "dequantize") if self.unfused else ARMS

    @property
    def paths(self) -> tuple[Path, ...]:
        """Quantized arms to ask about."""
        return ("fused", "unfused") if self.unfused else ("fused",)

    def cost(self, arm: Arm) -> Cost:
        """Of an arm on this machine."""
        return self.costs.get(arm, COSTS[arm])


def _fused(launches: int = 1, work_s: float = WORK_S) -> dict[Arm, Cost]:
    return {"fused": Cost(0.90, work_s, launches)}


SLOW_NATIVE: dict[Arm, Cost] = {"native": Cost(0.85, 0.25e-12)}
CASES = (
    Case("launches of fused cost more", costs=_fused(launches=3)),
    Case("slow multiplication of native", costs=_fused(6, 0.05e-12) | SLOW_NATIVE, batch=8),
    Case("dequantization beyond memory", costs=_fused(work_s=2e-12), unfused=True),
    Case("memory beyond everything", board=replace(BOARDS["h100"], bandwidth_gb_per_s=250.0)),
    Case("launches of native cost more",
         costs=_fused(work_s=1e-12) | {"native": Cost(0.85, 0.01e-12, 16)}),
    Case("eager launches, two of fused", costs=_fused(launches=2), eager=True),
    Case("scratch that stays in the cache", costs={"unfused": Cost(3.0, 0.06e-12, 2)}, unfused=True),
    Case("fused draws more",
         costs={"fused": Cost(0.90, WORK_S, power=1.0), "native": Cost(0.85, 0.01e-12, power=0.5)},
         joules=True),
    Case("fused is faster, and draws far more",
         costs={"fused": Cost(0.45, 0.0, power=1.0), "native": Cost(0.85, 0.0, power=0.3)},
         joules=True),
    Case("neither processes nor operators alike", costs=_fused(launches=3),
         process_noise=0.02, operator_noise=0.03, chained=1.02),
)  # fmt: skip


@dataclass(frozen=True)
class Planted:
    """What is true of one question.

    Attributes:
        sign: which side wins.
        at: where it turns, from and to: batches before and after it; twice N*, or twice a number of steps.
    """

    sign: Sign
    at: tuple[tuple[float, float], ...]

    def found(self, sign: Sign, at: Sequence[Quantity]) -> bool:
        """Whether the sign is right and every turn lies within its interval."""
        return (sign, len(at)) == (self.sign, len(self.at)) and all(
            q.low is not None and q.high is not None and q.low <= low and high <= q.high
            for q, (low, high) in zip(at, self.at, strict=True)
        )

    @property
    def words(self) -> str:
        """For the table."""
        if not self.at:
            return self.sign
        low, high = self.at[0]
        if low != high:
            return f"{self.sign} {low:.0f} to {high:.0f}"
        return f"{self.sign} {low / 1e9:.2f} B" if low > 1e6 else f"{low:.2f} steps"


@dataclass(frozen=True)
class Found:
    """What one run said to each question: whether it is right, in which words, and how sure.

    `width` has the ratio of the ends of the widest interval, where there is any.
    """

    right: dict[str, bool]
    said: dict[str, str]
    width: dict[str, float]


def true_layer_s(case: Case, arm: Arm, batch: int) -> float:
    """Seconds of a layer of an arm, as planted."""
    device = SimulatedDevice(case.board, Scenario(), arms=("dequantize", "native", "fused"))
    total = 0.0
    for o in OPERATORS:
        problem = Problem(o.name, o.n, o.k, batch, FORMAT, "fp16")
        kernels = {k.arm: k for k in device.kernels(problem)}
        kernels["unfused"] = compose(kernels["dequantize"], kernels["native"])
        total += true_time_s(case.board, problem, kernels[arm], arm, "graph")
    return total * (case.chained if arm == "fused" else 1.0)


def true_layer_j(case: Case, arm: Arm, batch: int) -> float:
    """Joules of a layer of an arm, as planted."""
    board = case.board
    watts = board.idle_w + case.cost(arm).power * (board.busy_w - board.idle_w)
    return watts * true_layer_s(case, arm, batch)


def truth(case: Case) -> dict[str, Planted]:
    """Every question's answer, from the planted times alone, without any run."""
    found: dict[str, Planted] = {}
    with mock.patch.dict(COSTS, case.costs):
        for path in case.paths:
            found[f"B* {path}"] = _turns(case, path, true_layer_s)
        if case.joules:
            found["B* fused, joules"] = _turns(case, "fused", true_layer_j)
        if case.unfused:
            found["B* at load"] = _turns(case, "fused", true_layer_s, turned=True)
            lost = true_layer_s(case, "fused", 1) - true_layer_s(case, "native", 1)
            if lost > 0:
                steps = true_layer_s(case, "dequantize", 1) / lost
                found["at load, repaid"] = Planted("always", ((steps, steps),))
    for path, batch in scales_of(case):
        found[f"N* {path}, B = {batch}"] = true_scale(case, path, batch)
    return found


def scales_of(case: Case) -> Iterator[tuple[Path, int]]:
    """Where N* is asked for; eager launches were run at the small batch alone."""
    for path in () if case.joules else case.paths:
        for batch in (case.batch,) if case.eager else (case.batch, LARGE):
            yield path, batch


def _turns(
    case: Case, path: Path, cost: Callable[[Case, Arm, int], float], turned: bool = False
) -> Planted:
    """Over every whole batch; of the winning by 16 bits where it is turned."""
    wins = {
        b: (cost(case, "native", b) > cost(case, path, b)) != turned for b in range(1, LARGE + 1)
    }
    at = tuple((b, b + 1) for b in range(1, LARGE) if wins[b] != wins[b + 1])
    return Planted(sign(["wins" if wins[b] else "loses" for b in BATCHES]), at)


def true_scale(case: Case, path: Path, batch: int) -> Planted:
    """Sign and N* of a step of square operators, by bisection between equal signs."""
    tiles = math.ceil(batch / ROW_TILE)
    bits = {"native": 16.0, "fused": FORMAT.bits_stored(2048)}
    bits["unfused"] = bits["fused"] + 32

    def step_s(arm: Arm, weights: float) -> float:
        cost, each = case.cost(arm), weights / CALLS
        moved = each * bits[arm] / 8 + 2 * batch * 2 * math.sqrt(each)  # x and y besides
        device = cost.launches * case.board.launch_s + each * tiles * cost.work_s
        device += moved / (case.board.bandwidth_gb_per_s * 1e9 * cost.share)
        device += 2 * batch * each / (case.board.compute_gflop_per_s * 1e9)
        device *= case.chained if arm == "fused" else 1.0
        return CALLS * max(device, cost.launches * case.board.host_s if case.eager else 0.0)

    def wins(weights: float) -> bool:
        return step_s(path, weights) < step_s("native", weights)

    if wins(SMALLEST) == wins(LARGEST):
        return Planted("always" if wins(SMALLEST) else "never", ())
    low, high = SMALLEST, LARGEST
    while high / low > 1 + 1e-9:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if wins(middle) == wins(SMALLEST) else (low, middle)
    return Planted("wins_below" if wins(SMALLEST) else "wins_above", ((low, low),))


def run_book(case: Case, scenario: Scenario, seed: int, mode: Mode = "graph") -> Book:
    """A run of a case, as bench.trap opens it; a second run, with eager launches, at one batch only."""
    # A pilot chooses the number of fresh blocks and nothing else. Without it every run has the least that a
    # measurement has, and the widest intervals.
    protocol = Protocol(
        pilot_blocks=0, fresh_blocks_minimum=21, fresh_blocks_maximum=21, processes=3,
        target_half_width=0.02, confidence=0.95, sample_minimum_s=1e-3,
    )  # fmt: skip
    batches = BATCHES if mode == "graph" else (case.batch,)
    plan = Plan(
        "simulated:h100", "planted", LAYERS, OPERATORS, (FORMAT,), batches, None, mode,
        protocol, seed, EnergyPlan("default", batches, WINDOWS) if case.joules else None,
    )  # fmt: skip
    with (
        mock.patch.dict(COSTS, case.costs),
        mock.patch.object(run_module, "bursts", return_value=SQUARE),
        tempfile.TemporaryDirectory(prefix="planted-") as folder,
        Journal(pathlib.Path(folder) / "run.jsonl") as journal,
    ):
        Run(plan, journal, lambda progress: None, partial(_open, case, scenario)).measure()
        samples = samples_table(journal.rows)
        profile = assemble(journal.ledger, samples)
    return Book.open(profile, samples, REPLICATES)


def _open(case: Case, scenario: Scenario, name: str) -> SimulatedDevice:
    return SimulatedDevice(case.board, scenario, arms=case.arms)


def one_run(case: Case, planted: Mapping[str, Planted], seed: int) -> Found:
    """A run of a case, and which questions it answered as planted."""
    scenario = replace(
        SCENARIOS["moments"], seed=1000 * CASES.index(case) + 1,
        process_noise=case.process_noise, operator_noise=case.operator_noise,
    )  # fmt: skip
    if case.joules:  # so that windows differ too
        scenario = replace(scenario, drift=0.03, drift_s=1.7)
    book = run_book(case, scenario, seed)
    host = None
    if case.eager:
        host = run_book(case, replace(scenario, seed=scenario.seed + 1), seed, "eager")
    said = dict(answers(case, book, host))
    return Found(
        {what: planted[what].found(*each) for what, each in said.items()},
        {what: f"{given} {', '.join(map(str, at))}" for what, (given, at) in said.items()},
        {
            what: max(q.high / q.low if q.low and q.high else math.inf for q in at)
            for what, (_, at) in said.items()
            if at
        },
    )


def answers(
    case: Case, book: Book, host: Book | None
) -> Iterator[tuple[str, tuple[Sign, tuple[Quantity, ...]]]]:
    """What bench.trap says to every question that `truth` answers."""

    def over_batches(ratios: Iterable[tuple[int, Quantity]]) -> tuple[Sign, tuple[Quantity, ...]]:
        found = crossing(list(ratios), "simulated")
        return found.sign, found.at

    layers = layers_of(resampled(book))
    for path in case.paths:
        yield f"B* {path}", over_batches((c.batch, ratio_of(c, path, "time")) for c in layers)
    if case.joules:
        ratios = ((c.batch, ratio_of(c, "fused", "energy")) for c in layers)
        yield "B* fused, joules", over_batches(ratios)
    if case.unfused:
        at = ((c.batch, inverse(ratio_of(c, "fused", "time"))) for c in layers)
        yield "B* at load", over_batches(at)
        repaid = next(iter(at_load(book))).steps_fused
        if repaid.value is not None:
            yield "at load, repaid", ("always", (repaid,))
    costs = {path: costs_of(book, FORMAT.name, path, host) for path, _ in scales_of(case)}
    for path, batch in scales_of(case):
        each = costs[path][batch]
        scale = critical_scale(book, FORMAT.name, path, each, CALLS, case.eager)
        params = () if scale.params.value is None else (scale.params,)
        yield f"N* {path}, B = {batch}", (scale.sign, params)


def table(
    runs: int, processes: int | None = None
) -> Iterator[tuple[Case, dict[str, Planted], list[Found]]]:
    """Every case, with the runs of each."""
    context = multiprocessing.get_context("fork")
    with context.Pool(processes or os.cpu_count(), _without_processes) as pool:
        for case in CASES:
            planted = truth(case)
            found = pool.imap_unordered(partial(one_run, case, planted), range(runs), chunksize=5)
            yield case, planted, list(found)


def share(found: Sequence[Found], what: str) -> float:
    """Of runs that answered a question, and rightly; one that said nothing did not."""
    return sum(f.right.get(what, False) for f in found) / len(found)


def lines(case: Case, planted: Mapping[str, Planted], found: Sequence[Found]) -> Iterator[str]:
    """The rows of a machine."""
    yield f"{case.name}:"
    for what, each in planted.items():
        yield (
            f"  {what:19} {each.words:22} {share(found, what):7.1%} of {len(found)}   {width(found, what)}"
        )


def width(found: Sequence[Found], what: str) -> str:
    """The middle of the ratios of the ends of the intervals that were given, and nine tenths of them."""
    known = sorted(f.width[what] for f in found if what in f.width)
    if not known:
        return "–"
    return f"x {statistics.median(known):.3g} (9 of 10 up to x {known[math.ceil(0.9 * len(known)) - 1]:.3g})"


def main(runs: int = RUNS, processes: int = 0) -> None:
    """Print the table."""
    print(f"{'planted machine':21} {'planted':22}   found            width: high over low")
    for row in table(runs, processes or None):
        print("\n".join(lines(*row)), flush=True)


if __name__ == "__main__":
    typer.run(main)

"""The instrument against planted truth: whole runs on a simulated device, thousands of them per scenario.

    python -m tests.planted_truth            # 2,000 runs per scenario on every core, some minutes
    python -m tests.planted_truth --runs 200

A run here is a run: the timing plan, the session, the journal and the decomposition are those of
bench.dequant. Only the worker is not a process of its own, and the journal is not synced to disk.

The estimand of a run is the true median paired difference (METHOD section 8): of what is planted, with
the noise that is planted, over the moments at which the fresh blocks of that run took place. A block's
moment is the mean of what it did to the two arms, so that the order within a block is noise, not truth.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import resource
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import scipy.optimize
import scipy.special
import scipy.stats
import typer

from bench.analysis import stats
from bench.analysis.decompose import decompose
from bench.analysis.run_gate import AUTOCORRELATED_RUN, PROCESSES_DIFFER, SHIFTED_RUN
from bench.measure import resume
from bench.measure import run as run_module
from bench.measure.devices.simulated import (
    BOARDS,
    SCENARIOS,
    Scenario,
    SimulatedDevice,
    slowdown,
    true_time_s,
)
from bench.measure.journal import Journal
from bench.measure.ledger import samples_table
from bench.measure.records import Plan
from bench.measure.run import Run
from bench.measure.session import Session
from bench.measure.worker import Begun, Opened, Setup
from kernels.formats import find_format
from kernels.kernel import Arm
from profiles.schema import ArmRow, Comparison, Operator, Protocol

OPERATOR = Operator(name="up", n=4096, k=4096)
ARMS: tuple[Arm, ...] = ("bypass", "fused", "native", "dequantize")
PHIS = {"exposed": ("fused", "bypass"), "unfused": ("unfused", "native")}
FEWEST, MOST = 21, 90  # fresh blocks of bench.dequant

COVERED = ("noise", "moments", "stalls", "drift", "boost", "throttling")
TO_COVER = (0.93, 0.985)  # of runs
DEPENDENT = ("ar06", "ar03", "shift", "shift-once", "shift-between")
HEALTHY = ("noise", "moments", "stalls")
ROW_GATES = frozenset((stats.AUTOCORRELATED, stats.SHIFTED))
RUN_GATES = (AUTOCORRELATED_RUN, SHIFTED_RUN, PROCESSES_DIFFER)
TO_FLAG = 0.90  # of runs
TO_LEAVE = 0.02  # of healthy runs may be flagged
LARGEST_BIAS = 0.01  # of t(best16)
TO_SAVE = 2.0  # samples that a reference harness needs over ours, where the clock moves
NARROW = 0.038  # half-width over phi at which the broken estimator stops

RUNS, REFERENCE_RUNS, DEPENDENT_RUNS, CURVE_RUNS = 2000, 400, 1000, 300
WHOLE_RUNS, HEALTHY_WHOLE_RUNS = 40, 120
CURVE = (21, 24, 45, 60, 90, 120, 150)  # blocks
WHOLE_OPERATORS = tuple(Operator(name=name, n=2048, k=2048) for name in ("q", "o", "up", "down"))
WHOLE_BATCHES = (1, 2, 4, 8, 16)


class InProcess:
    """A worker that is no process: the session behind the same methods."""

    def __init__(self, setup: Setup, opener: Callable[[str], SimulatedDevice]) -> None:
        device = opener(setup.gpu)
        chosen = (
            setup.activation or device.default_activation,
            setup.mode or device.default_mode,
        )
        self.session = Session(device, setup.operators, *chosen, setup.skip, bars=setup.bars)
        self.opened = Opened(
            device.describe(), device.cache_bytes, *chosen, device.software(), device.seeds()
        )

    def begin(self, weight_format: str, *others: Any) -> Begun:
        states = self.session.begin(find_format(weight_format), *others)
        return Begun(states, self.session.rotation_bytes, self.session.refused)

    def ready(self, layer: Any) -> None:
        self.session.ready(layer)

    def steady(self, *arguments: Any) -> Any:
        return self.session.steady(*arguments)

    def block(self, *arguments: Any) -> Any:
        return self.session.block(*arguments)

    def close(self) -> None:
        pass


@dataclass(frozen=True)
class Unpaired:
    """A difference of medians of two arms that ran one after the other, and how many samples it took."""

    value: float
    half_width: float
    samples: int


@dataclass(frozen=True)
class Found:
    """What one run says of one phi, and what went into it."""

    value: float
    low: float
    high: float
    true: float
    best16_s: float
    flags: tuple[str, ...]
    differences: tuple[float, ...]
    arm_s: float
    others: dict[str, Unpaired]


def plan(
    seed: int,
    blocks: tuple[int, int] = (FEWEST, MOST),
    operators: tuple[Operator, ...] = (OPERATOR,),
    batches: tuple[int, ...] = (1,),
) -> Plan:
    """The protocol of bench.dequant on a GPU."""
    protocol = Protocol(
        pilot_blocks=10, fresh_blocks_minimum=blocks[0], fresh_blocks_maximum=blocks[1],
        processes=3, target_half_width=0.02, confidence=0.95, sample_minimum_s=1e-3,
    )  # fmt: skip
    formats = (find_format("int4-g128"),)
    return Plan(
        "simulated:h100", "tiny", 1, operators, formats, batches, None, None, protocol, seed
    )


def named(name: str, variant: int = 0) -> Scenario:
    """The scenario with random numbers of its own, so that rows of a table are independent."""
    return replace(SCENARIOS[name], seed=100 * variant + list(SCENARIOS).index(name))


@dataclass(frozen=True)
class Task:
    """Runs of one scenario: what each is, and how many fresh blocks it may have."""

    scenario: Scenario
    blocks: tuple[int, int] = (FEWEST, MOST)
    references: int = 0  # in the first so many runs, both reference harnesses have the same time


def pipeline(
    scenario: Scenario, of: Plan
) -> tuple[tuple[ArmRow, ...], tuple[Comparison, ...], Journal]:
    """A plan, run and decomposed as bench.dequant does it."""
    with (
        tempfile.TemporaryDirectory(prefix="planted-") as folder,
        Journal(Path(folder) / "run.jsonl") as journal,
    ):
        run = Run(of, journal, lambda progress: None, partial(_open, scenario))
        result = run.measure()
    samples = samples_table(journal.rows)
    found = decompose(samples, result.workload, of.protocol, result.facts, "simulated")
    return (*found, journal)


def one_run(task: Task, seed: int) -> list[Found]:
    """The pipeline once; what it says of each phi in PHIS."""
    rows, comparisons, journal = pipeline(task.scenario, plan(seed, task.blocks))
    c = comparisons[0]
    best16_s = next(r.time_s.value for r in rows if (r.operator, r.arm) == ("up", "native"))
    found = []
    for name, (a, b) in PHIS.items():
        phi, quality = getattr(c, f"phi_{name}_s"), getattr(c, f"quality_{name}")
        others = {}
        if seed < task.references and name == "exposed":
            share_s = journal.elapsed_s / (len(PHIS) * 2)  # an equal part of the time for each arm
            for reference in (repeats_of_each, until_steady):
                others[reference.__name__] = reference(task.scenario, seed, (b, a), share_s)
        found.append(
            Found(
                phi.value, phi.low, phi.high, planted(task.scenario, seed, journal.rows, a, b),
                best16_s, quality.flags,
                paired(journal.rows, a, b), journal.elapsed_s / (len(PHIS) * 2), others,
            )
        )  # fmt: skip
    return found


def whole_run(scenario: Scenario, seed: int) -> tuple[str, ...]:
    """The flags of the first row of a run of some operators and batches."""
    _, comparisons, _ = pipeline(
        scenario, plan(seed, operators=WHOLE_OPERATORS, batches=WHOLE_BATCHES)
    )
    return comparisons[0].flags


def _open(scenario: Scenario, name: str) -> SimulatedDevice:
    return SimulatedDevice(BOARDS["h100"], scenario, arms=ARMS)


def planted(scenario: Scenario, seed: int, rows: list[dict[str, Any]], a: str, b: str) -> float:
    """The estimand of a run: the median of what its blocks' differences are drawn from."""
    times_s = dict(_times_s())
    moments: dict[tuple[int, int], list[float]] = {}
    for row in rows:
        if row["phase"] == "fresh" and row["arm"] in (a, b):
            moments.setdefault((row["process"], row["block"]), []).append(row["started_s"])
    factor = np.array([np.mean([slowdown(scenario, seed, t) for t in m]) for m in moments.values()])
    centre = (times_s[a] - times_s[b]) * factor
    if np.ptp(factor) == 0:
        return float(centre[0])
    spread = scenario.noise * math.hypot(times_s[a], times_s[b]) * factor
    return float(
        scipy.optimize.brentq(
            lambda m: scipy.special.ndtr((m - centre) / spread).mean() - 0.5,
            centre.min(), centre.max(),
        )
    )  # fmt: skip


@cache
def _times_s() -> tuple[tuple[str, float], ...]:
    """The true time of every arm, from its parts."""
    device = SimulatedDevice(BOARDS["h100"], Scenario(), arms=ARMS)
    session = Session(device, (OPERATOR,), "fp16", "graph")
    session.begin(find_format("int4-g128"), [1], {})
    return tuple(
        (
            a.state.name.arm,
            true_time_s(device.board, a.prepared.problem, a.prepared.kernel, arm, "graph"),
        )
        for a in session._arms[1]
        for arm in [a.state.name.arm]
    )


def paired(rows: list[dict[str, Any]], a: str, b: str) -> tuple[float, ...]:
    """Differences of two arms in the fresh blocks, straight from the samples."""
    times = {
        (r["arm"], r["process"], r["block"]): r["time_s"] for r in rows if r["phase"] == "fresh"
    }
    return tuple(t - times[b, p, n] for (arm, p, n), t in times.items() if arm == a)


# The harnesses to compare with: each arm on its own, one after the other. --------------------------


class OneByOne:
    """Samples of one arm after another, on the device and clock of a run."""

    def __init__(self, scenario: Scenario, seed: int) -> None:
        self.device = SimulatedDevice(BOARDS["h100"], scenario, arms=ARMS)
        self.session = Session(self.device, (OPERATOR,), "fp16", "graph")
        self.session.begin(find_format("int4-g128"), [1], {})
        self.arms = {a.state.name.arm: a for a in self.session._arms[1]}
        self.seed, self.taken, self.counted_s = seed, 0, 0.0

    def sample(self, arm: str) -> float:
        """One sample, as long as one of ours. What a block shares, five neighbours share here."""
        if self.taken % (len(ARMS) + 1) == 0:
            seed = (self.seed, 0, 1, self.taken // (len(ARMS) + 1), 1)
            self.device.start_block(seed, self.device.now_s())
        self.taken += 1
        found = self.arms[arm]
        return self.device.sample(found.prepared, found.state.repeats, "graph").time_s


def repeats_of_each(
    scenario: Scenario, seed: int, arms: tuple[str, str], share_s: float
) -> Unpaired:
    """Like triton.testing.do_bench: warm up, repeat one kernel for a given time, take the median."""
    return _one_after_the_other(OneByOne(scenario, seed), arms, share_s, lambda times: False)


def until_steady(scenario: Scenario, seed: int, arms: tuple[str, str], share_s: float) -> Unpaired:
    """Like nvbench's stdrel: repeat one kernel until its noise is below 0.5 %, or time is up.

    That takes a fraction of the time. So both arms are done again and again, as a user would who has the
    time, as often as comes closest to it; and the median of the differences is taken.
    """

    def steady(times: list[float]) -> bool:
        if len(times) < 10:
            return False
        return float(np.std(times)) / math.sqrt(len(times)) < 0.005 * float(np.mean(times))

    sequence = OneByOne(scenario, seed)
    found = [_one_after_the_other(sequence, arms, share_s, steady)]
    while sequence.counted_s * (1 + 0.5 / len(found)) < len(arms) * share_s:
        found.append(_one_after_the_other(sequence, arms, share_s, steady))
    return Unpaired(
        float(np.median([f.value for f in found])),
        float(np.median([f.half_width for f in found])) / math.sqrt(len(found)),
        sum(f.samples for f in found),
    )


def _one_after_the_other(
    sequence: OneByOne,
    arms: tuple[str, str],
    share_s: float,
    stop: Callable[[list[float]], bool],
) -> Unpaired:
    medians = []
    for arm in arms:
        sequence.sample(arm)  # the first is discarded, and not counted
        began_s, times = sequence.device.now_s(), []
        while sequence.device.now_s() - began_s < share_s and not stop(times):
            times.append(sequence.sample(arm))
        sequence.counted_s += sequence.device.now_s() - began_s
        medians.append(stats.median_interval(times))
    b, a = medians
    widths = [math.inf if i.half_width is None else i.half_width for i in medians]
    half_width = math.hypot(*widths)
    return Unpaired(a.value - b.value, half_width, a.n + b.n)


def stop_on_width(differences: Sequence[float], target_s: float) -> stats.Interval:
    """Paired like ours, but looked at after every block until the interval seems narrow enough."""
    for n in range(6, len(differences) + 1):
        interval = stats.median_interval(differences[:n])
        if interval.half_width <= target_s:
            break
    return interval


# Tables. -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Share:
    """How many of some runs did something, with the exact binomial interval of that share."""

    count: int
    runs: int

    @property
    def value(self) -> float:
        return self.count / self.runs

    def __str__(self) -> str:
        interval = scipy.stats.binomtest(self.count, self.runs).proportion_ci()
        return f"{self.value:6.1%} ({interval.low:.1%} to {interval.high:.1%})"


def share(of: Iterable[bool]) -> Share:
    hits = list(of)
    return Share(sum(hits), len(hits))


@dataclass(frozen=True)
class CoverageRow:
    """How often an estimator's 95 % interval held the estimand, and its mean error."""

    scenario: str
    estimator: str
    phi: str
    covered: Share
    samples: float
    bias: float  # mean error over t(best16)
    flagged: float

    @property
    def good(self) -> bool:
        inside = TO_COVER[0] <= self.covered.value <= TO_COVER[1]
        return inside and abs(self.bias) <= LARGEST_BIAS


@dataclass(frozen=True)
class FlagRow:
    """How often runs of a scenario were flagged, and whether they ought to be; None: nobody asks."""

    scenario: str
    where: str
    flagged: Share
    wanted: bool | None

    @property
    def good(self) -> bool:
        if self.wanted is None:
            return True
        return self.flagged.value >= TO_FLAG if self.wanted else self.flagged.value <= TO_LEAVE


@dataclass(frozen=True)
class SavingRow:
    """Ours against a reference harness at the same device time; errors are 95th percentiles over phi."""

    scenario: str
    reference: str
    ours: float
    theirs: float
    claimed: Share
    samples: float  # theirs for our width


@dataclass(frozen=True)
class Tables:
    """All that is printed and asserted."""

    coverage: tuple[CoverageRow, ...]
    flags: tuple[FlagRow, ...]
    curve: dict[str, tuple[float, ...]]
    savings: tuple[SavingRow, ...]
    seconds: float = field(compare=False, default=0.0)
    cpu_seconds: float = field(compare=False, default=0.0)


def coverage_rows(name: str, runs: Sequence[Sequence[Found]]) -> list[CoverageRow]:
    """Ours for both phis; where the references ran, the unpaired one beside it."""
    rows = []
    for index, phi in enumerate(PHIS):
        found = [run[index] for run in runs]
        rows.append(
            CoverageRow(
                name, "ours", phi,
                share(f.low <= f.true <= f.high for f in found),
                2 * float(np.mean([len(f.differences) for f in found])),
                float(np.mean([(f.value - f.true) / f.best16_s for f in found])),
                float(np.mean([bool(ROW_GATES & set(f.flags)) for f in found])),
            )
        )  # fmt: skip
    apart = [(f, f.others["repeats_of_each"]) for f, *_ in runs if f.others]
    if apart:
        rows.append(
            CoverageRow(
                name, "unpaired", "exposed",
                share(abs(u.value - f.true) <= u.half_width for f, u in apart),
                float(np.mean([u.samples for _, u in apart])),
                float(np.mean([(u.value - f.true) / f.best16_s for f, u in apart])), 0.0,
            )
        )  # fmt: skip
    return rows


def stopping_row(runs: Sequence[Sequence[Found]]) -> CoverageRow:
    """The estimator that stops when its interval looks narrow enough, on blocks of ours."""
    found = [(f, stop_on_width(f.differences, NARROW * f.true)) for f, *_ in runs]
    return CoverageRow(
        "noise", "stop on width", "exposed",
        share(i.low <= f.true <= i.high for f, i in found),
        2 * float(np.mean([i.n for _, i in found])),
        float(np.mean([(i.value - f.true) / f.best16_s for f, i in found])), 0.0,
    )  # fmt: skip


def saving_rows(name: str, runs: Sequence[Sequence[Found]]) -> list[SavingRow]:
    """Errors of ours and of each reference, in runs of equal device time."""
    found = [f for f, *_ in runs if f.others]

    def error(values: Iterable[float]) -> float:
        return float(
            np.quantile([abs(v / f.true - 1) for v, f in zip(values, found, strict=True)], 0.95)
        )

    ours = error(f.value for f in found)
    rows = []
    for reference in found[0].others:
        theirs = [f.others[reference] for f in found]
        claimed = share(
            abs(u.value - f.true) <= u.half_width for f, u in zip(found, theirs, strict=True)
        )
        wrong = error(u.value for u in theirs)
        rows.append(SavingRow(name, reference, ours, wrong, claimed, (wrong / ours) ** 2))
    return rows


def row_flags(name: str, runs: Sequence[Sequence[Found]]) -> FlagRow:
    """How often phi exposed of a run of one operator is flagged by the gates of a single row."""
    flagged = share(bool(ROW_GATES & set(found.flags)) for found, *_ in runs)
    return FlagRow(name, "single row", flagged, None)


def run_flags(name: str, runs: Sequence[Sequence[str]]) -> list[FlagRow]:
    """How often a whole run is flagged by the gates of runs: by any, and by each."""
    wanted = name in DEPENDENT if name in (*DEPENDENT, *HEALTHY) else None
    flagged = share(bool(set(RUN_GATES) & set(flags)) for flags in runs)
    rows = [FlagRow(name, "whole run", flagged, wanted)]
    for gate in RUN_GATES:
        if any(gate in flags for flags in runs):
            rows.append(FlagRow(name, f"  {gate}", share(gate in flags for flags in runs), None))
    return rows


def power(runs: Sequence[Sequence[Found]]) -> tuple[float, ...]:
    """Share of rows flagged by the gates, for each number of blocks in CURVE, from the same runs."""
    shares = []
    for n in CURVE:
        groups = np.repeat([0, 1, 2], n // 3)
        flagged = []
        for run in runs:
            blocks = np.array(run[0].differences).reshape(3, -1)[:, : n // 3]
            flagged.append(bool(stats.gates(blocks.ravel(), groups).flags))
        shares.append(float(np.mean(flagged)))
    return tuple(shares)


def tables(runs: int = RUNS) -> Tables:
    """Everything, on every core. The shares of the smaller tables scale with the runs."""
    began_s, began_cpu_s = time.monotonic(), _cpu_s()
    scale = runs / RUNS
    coverage: list[CoverageRow] = []
    savings: list[SavingRow] = []
    flags: list[FlagRow] = []

    def some(number: int) -> range:
        return range(max(20, round(number * scale)))

    with multiprocessing.get_context("spawn").Pool(os.cpu_count(), _without_processes) as pool:

        def all_of(task: Task, seeds: range) -> list[list[Found]]:
            return pool.map(partial(one_run, task), seeds, chunksize=10)

        for name in COVERED:
            task = Task(named(name), references=len(some(REFERENCE_RUNS)))
            found = all_of(task, range(runs))
            coverage += coverage_rows(name, found)
            savings += saving_rows(name, found)
        coverage.append(stopping_row(all_of(Task(named("noise", 60), (60, 60)), range(runs))))
        for name in DEPENDENT:
            flags.append(row_flags(name, all_of(Task(named(name)), some(DEPENDENT_RUNS))))
        for name in (*DEPENDENT, *COVERED):
            seeds = some(HEALTHY_WHOLE_RUNS if name in HEALTHY else WHOLE_RUNS)
            each = pool.map(partial(whole_run, named(name, 1)), seeds, chunksize=2)
            flags += run_flags(name, each)
        curve = {
            name: power(all_of(Task(named(name, 2), (CURVE[-1],) * 2), some(CURVE_RUNS)))
            for name in ("noise", "ar03", "ar06")
        }
        pool.close()
        pool.join()
    return Tables(
        tuple(coverage), tuple(flags), curve, tuple(savings),
        time.monotonic() - began_s, _cpu_s() - began_cpu_s,
    )  # fmt: skip


def _cpu_s() -> float:
    """Processor seconds of this process and of those that it has waited for."""
    both = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(used.ru_utime + used.ru_stime for used in both)


def _without_processes() -> None:
    """In each process of the pool: no workers' processes, no waiting for the disk, facts read once."""
    run_module.Worker = InProcess  # type: ignore[misc, assignment]
    os.fsync = lambda file: None  # type: ignore[assignment]
    resume.sources = cache(resume.sources)  # type: ignore[assignment]


def text(t: Tables) -> str:
    """The tables as they are printed."""
    low, high = TO_COVER
    lines = [
        f"Coverage of the 95 % interval of phi (wanted: {low:.0%} to {high:.1%}), with its own exact "
        "binomial interval.",
        "Bias: mean error over t(best16). The estimators beside ours are broken on purpose.",
        f"{'scenario':11} {'estimator':14} {'phi':8} {'runs':>5} {'samples':>8} "
        f"{'covered':>26} {'bias':>8} {'flagged':>8}",
    ]
    for r in t.coverage:
        verdict = "" if r.good else "  MISSES" if r.estimator == "ours" else "  fails"
        lines.append(
            f"{r.scenario:11} {r.estimator:14} {r.phi:8} {r.covered.runs:5} {r.samples:8.0f} "
            f"{r.covered!s:>26} {r.bias:8.3%} "
            + (f"{r.flagged:8.1%}" if r.estimator == "ours" else " " * 8)
            + verdict
        )
    rows = 2 * len(WHOLE_OPERATORS) * len(WHOLE_BATCHES)
    lines += [
        "",
        f"Flagged, of runs of one row and of whole runs of {rows} rows (wanted: {TO_FLAG:.0%} where blocks "
        f"depend on each other",
        f"or a level shifts, at most {TO_LEAVE:.0%} of healthy ones; nobody asks where the clock moves).",
    ]
    for f in t.flags:
        verdict = "" if f.good else "  MISSES"
        lines.append(f"{f.scenario:13} {f.where:20} {f.flagged.runs:5} {f.flagged!s:>26}{verdict}")
    lines += ["", "Rows flagged by either gate, by number of blocks in three processes."]
    lines.append(f"{'blocks':11} " + " ".join(f"{n:6}" for n in CURVE))
    lines += [
        f"{name:11} " + " ".join(f"{s:6.1%}" for s in shares) for name, shares in t.curve.items()
    ]
    lines += [
        "",
        "At the same device time, pilot included: error of phi exposed that 95 % of runs stay below, and "
        "the samples",
        "that the reference would need for our error, over ours, if its own fell with their square root "
        "(no drift does).",
        "until_steady is run again and again until that time is up. Claimed: how often its own 95 % interval "
        "holds.",
        f"{'scenario':11} {'reference':16} {'ours':>8} {'theirs':>8} {'samples':>9}  claimed",
    ]
    lines += [
        f"{s.scenario:11} {s.reference:16} {s.ours:8.1%} {s.theirs:8.1%} {s.samples:8.1f}x "
        f" {s.claimed}"
        for s in t.savings
    ]
    return "\n".join(
        [*lines, "", f"{t.seconds:.0f} s on {os.cpu_count()} cores, {t.cpu_seconds:.0f} CPU s."]
    )


def main(runs: int = RUNS) -> None:
    """Run everything and print it."""
    print(text(tables(runs)))


if __name__ == "__main__":
    typer.run(main)

"""What trials of a kernel show, as tables for people and as JSON for programs.

    Console().print(render("gemv of gemv.py", trials, seed=0, race=True))

Errors come first, by kind of input and target, then one sentence per way to go wrong; then what the first
launch that ran to its end executed and moved: PTX instructions per weight, sectors of global memory,
bank conflicts.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from bench.static.ptx import Access, Fault, Report
from bench.static.trial import Trial

EXECUTED = "executed in our PTX emulator, not on hardware"
COLUMNS = 5  # targets that fit side by side on 80 columns
WORST = 5  # memory accesses that are listed per target
COUNTS = ("requests", "bytes", "distinct_bytes", "sectors", "passes", "ideal_passes")


def render(name: str, trials: list[Trial], seed: int, race: bool) -> RenderableType:
    """Everything the command prints."""
    targets = list(dict.fromkeys(trial.target for trial in trials))
    parts: list[RenderableType] = [Text(f"{name}, {EXECUTED} (seed {seed}).", style="bold")]
    for start in range(0, len(targets), COLUMNS):
        parts += [Text(), _errors(trials, targets[start : start + COLUMNS])]
    parts += [Text(), *_complaints(trials), _verdict(trials)]
    counted = {target: trial for target in targets if (trial := first_counted(trials, target))}
    for start in range(0, len(counted), COLUMNS):
        chosen = dict(list(counted.items())[start : start + COLUMNS])
        parts += [Text(), _instructions(chosen)]
    for alike, accesses in same_memory(counted):
        parts += [Text(), *_memory(", ".join(alike), accesses)]
    parts += [Text(), *(Text(line) for line in _notes(trials, race))]
    return Group(*parts)


def first_counted(trials: list[Trial], target: str) -> Trial | None:
    """The first launch for a target that ran to its end; its counts are shown."""
    return next((t for t in trials if t.target == target and t.report is not None), None)


def _errors(trials: list[Trial], targets: list[str]) -> RenderableType:
    """Kinds of input down, targets across, the largest error in each cell."""
    tolerances = sorted({trial.tolerance for trial in trials})
    span = " to ".join(f"{t:.2g}" for t in (tolerances[0], tolerances[-1])[: len(tolerances)])
    table = _table("input")
    for target in targets:
        table.add_column(target, justify="right", no_wrap=True)
    for kind in dict.fromkeys(trial.kind for trial in trials):
        cells = {t.target: _cell(t) for t in trials if t.kind == kind}
        table.add_row(kind, *(cells.get(target, Text("–", style="dim")) for target in targets))
    return _titled(f"Largest error over the largest expected value (tolerance {span})", table)


def _cell(trial: Trial) -> RenderableType:
    if trial.worst is None or trial.verdict == "input changed":
        return Text(trial.verdict.upper(), style="bold red")
    error = f"{trial.worst.error:.2g}"
    return Text(error) if trial.verdict == "right" else Text(f"WRONG {error}", style="bold red")


def complaints(trials: list[Trial]) -> Iterator[tuple[Trial, list[Trial]]]:
    """Per way to go wrong, the first trial and all the trials that ended like it."""
    groups: dict[tuple[str, str], list[Trial]] = {}
    for trial in trials:
        if trial.verdict != "right":
            how = "" if trial.report else trial.sentence
            groups.setdefault((trial.verdict, how), []).append(trial)
    for group in groups.values():
        yield group[0], group


def _complaints(trials: list[Trial]) -> Iterator[RenderableType]:
    for first, alike in complaints(trials):
        others = f" ({len(alike)} launches)" if len(alike) > 1 else ""
        text = Text()
        text.append(f"{first.verdict.upper()} ", style="bold red")
        input_ = "" if first.verdict == "not emulated" else f", {first.kind} input{others}"
        text.append(f"on {first.target}{input_}: {first.sentence}")
        yield text


def _verdict(trials: list[Trial]) -> RenderableType:
    good = sum(trial.verdict == "right" for trial in trials)
    style = "bold green" if good == len(trials) else "bold red"
    return Text(f"{good} of {len(trials)} launches are right.", style=style)


def _instructions(counted: dict[str, Trial]) -> RenderableType:
    """Classes of instruction down, targets across, per weight or per thread."""
    per_weight = all(trial.weights for trial in counted.values())
    unit = "weight" if per_weight else "thread"
    kinds = ", ".join(dict.fromkeys(trial.kind for trial in counted.values()))
    table = _table("class")
    reports = {target: _report(trial) for target, trial in counted.items()}
    for target in counted:
        table.add_column(target, justify="right", no_wrap=True)
    units = {
        target: trial.weights
        if per_weight and trial.weights
        else reports[target].ctas * reports[target].threads
        for target, trial in counted.items()
    }
    classes = dict.fromkeys(name for report in reports.values() for name in report.by_class)
    ranked = sorted(classes, key=lambda name: -max(r.by_class[name] for r in reports.values()))
    for name in ranked:
        table.add_row(
            name, *(f"{32 * r.by_class[name] / units[t]:.3f}" for t, r in reports.items())
        )
    totals = (f"{report.per_weight(units[target]):.3f}" for target, report in reports.items())
    table.add_row("all", *totals, style="bold")
    return _titled(f"PTX instructions per {unit}, as executed on {kinds} input", table)


def _report(trial: Trial) -> Report:
    assert trial.report is not None
    return trial.report


def by_place(accesses: Iterable[Access]) -> list[Access]:
    """Accesses with those of one opcode at one place in the source added up, as of an unrolled loop."""
    places: dict[tuple[object, ...], Access] = {}
    for access in accesses:
        key = (access.source or access.line, access.opcode, access.space, access.write)
        if (so_far := places.get(key)) is None:
            places[key] = replace(access)
            continue
        for count in COUNTS:
            setattr(so_far, count, getattr(so_far, count) + getattr(access, count))
    return list(places.values())


def same_memory(counted: dict[str, Trial]) -> list[tuple[list[str], list[Access]]]:
    """Targets whose memory accesses are the same, and those accesses."""
    groups: list[tuple[list[str], list[Access]]] = []
    for target, trial in counted.items():
        accesses = [
            replace(a, line=0 if a.source else a.line) for a in by_place(_report(trial).accesses)
        ]
        for targets, known in groups:
            if known == accesses:
                targets.append(target)
                break
        else:
            groups.append(([target], accesses))
    return groups


def _memory(target: str, accesses: list[Access]) -> Iterator[RenderableType]:
    """The least efficient accesses of some targets."""
    scattered = [a for a in accesses if a.sectors]
    if scattered:
        yield _sectors(target, sorted(scattered, key=lambda a: a.distinct_bytes / a.sectors))
    shared = [a for a in accesses if a.space == "shared"]
    if not shared:
        yield Text(f"{target}: no shared memory is used.")
        return
    beyond = sum(a.passes - a.ideal_passes for a in shared)
    ideal = sum(a.ideal_passes for a in shared)
    yield Text(f"{target}: {beyond} bank conflicts beyond {ideal} passes through shared memory.")
    conflicts = sorted(shared, key=lambda a: a.ideal_passes - a.passes)[:WORST]
    for a in (a for a in conflicts if a.passes > a.ideal_passes):
        yield Text(f"  {_place(a)}: {a.passes} passes where {a.ideal_passes} would do, {a.opcode}")


def _sectors(target: str, accesses: list[Access]) -> RenderableType:
    """Accesses to global memory, worst first."""
    table = _table("source")
    for column in ("requests", "sectors\nper request", "bytes used\nof moved"):
        table.add_column(column, justify="right")
    table.add_column("instruction", overflow="fold")
    for a in accesses[:WORST]:
        table.add_row(
            _place(a), str(a.requests), f"{a.sectors / a.requests:.2f}",
            f"{a.sector_efficiency:.0%}", a.opcode,
        )  # fmt: skip
    number = len(accesses)
    shown = f", worst {WORST} of {number} places" if number > WORST else ""
    return _titled(f"{target}: global memory in 32-byte sectors{shown}", table)


def _place(access: Access) -> str:
    return access.source or f"PTX line {access.line}"


def _notes(trials: list[Trial], race: bool) -> Iterator[str]:
    yield f"Shared-memory races: {races(trials, race)}."
    approximate = dict.fromkeys(op for t in trials if t.report for op in t.report.approximate)
    if approximate:
        yield f"Computed more exactly here than on hardware: {', '.join(approximate)}."


def races(trials: list[Trial], race: bool) -> str:
    """Whether a shared-memory race was found, or looked for at all."""
    if not race:
        return "not looked for"
    if all(trial.verdict == "not emulated" for trial in trials):
        return "nothing was run"
    faults = [t.sentence for t in trials if t.verdict == "fault"]
    if any(sentence.startswith(Fault.RACE) for sentence in faults):
        return "found, see above"
    return "none found before the faults above" if faults else "none found"


def _table(first: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column(first, no_wrap=True)
    return table


def _titled(title: str, table: Table) -> RenderableType:
    """A table below its title, which may be wider."""
    return Group(Text(title, style="bold"), table)


def as_json(name: str, trials: list[Trial], seed: int, race: bool) -> str:
    """The same as the tables, for programs. A number that JSON cannot hold is a string."""
    return json.dumps(
        {
            "kernel": name,
            "executed": EXECUTED,
            "seed": seed,
            "race": races(trials, race),
            "right": all(trial.verdict == "right" for trial in trials),
            "trials": [_trial_json(trial) for trial in trials],
        },
        indent=2,
    )


def _trial_json(trial: Trial) -> dict[str, Any]:
    made: dict[str, Any] = {
        "target": trial.target,
        "input": trial.kind,
        "verdict": trial.verdict,
        "tolerance": trial.tolerance,
        "sentence": trial.sentence,
    }
    if worst := trial.worst:
        made["worst"] = {
            "argument": worst.argument,
            "index": worst.index,
            "got": _number(worst.got),
            "expected": _number(worst.expected),
            "error": _number(worst.error),
        }
    if report := trial.report:
        made["ptx_instructions"] = dict(report.instructions)
        made["ptx_instructions_by_class"] = dict(report.by_class)
        if trial.weights:
            made["ptx_instructions_per_weight"] = report.per_weight(trial.weights)
        made["bank_conflicts"] = report.bank_conflicts
        made["sector_efficiency"] = report.sector_efficiency
        made["accesses"] = [asdict(access) for access in report.accesses]
    return made


def _number(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)

"""Holds the modelled GPU against published times of weight-only kernels, and lists where it is wrong.

    python -m bench.validate             errors, coverage and baselines by family, board, batch and format
    python -m bench.validate --json      the same for programs, with every row

The 90 % interval of a row comes from the residuals of other sources only. Rows that the model would refuse
to answer for are scored apart: weights that may sit in the cache, operators below 20 us. Rows that have no
finite interval, because the other sources are too few, count in no coverage. Exit codes: 0 the model is better
than both baselines in every weight-only family of five rows or more and its intervals, of times and of ratios
to 16-bit kernels, hold 85 to 97 % of the rows, 1 it is not or they do not, 2 usage or a table that cannot be
read, 130 interrupted.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from bench.static.freeze import frozen
from bench.static.parameters import SMALL_BATCH
from bench.static.published import load_rows
from bench.static.score import (
    VENDOR_FAMILY,
    Scored,
    by_board,
    differences_covered,
    errors,
    held_out,
    predict_row,
    ratios,
)
from bench.usage import exit_codes

PUBLISHED = Path(__file__).resolve().parent.parent / "tests" / "data" / "published"
COVERAGE = (0.85, 0.97)
GOAL_MAPE = 0.20
LEAST_ROWS = 5  # of a family or batch that counts
FOUR_BITS = ("int4", "nf4", "table4")
BANNER = "MODELLED times against figures that others published. This suite measured none of them."


@dataclass(frozen=True)
class Requirement:
    """Something that the model must do, and whether it does."""

    text: str
    found: str
    met: bool


def score(folder: Path = PUBLISHED) -> list[Scored]:
    """Every published figure with its prediction and its held-out interval."""
    return held_out([predict_row(row) for row in load_rows(folder)])


def weight_only(rows: Sequence[Scored], standing: str = "scored") -> list[Scored]:
    """Rows of one standing, without those of 16-bit kernels."""
    return [s for s in rows if s.standing == standing and s.family != VENDOR_FAMILY]


def sixteen_bit(rows: Sequence[Scored]) -> list[Scored]:
    """Scored rows of 16-bit kernels."""
    return [s for s in rows if s.standing == "scored" and s.family == VENDOR_FAMILY]


def grouped(
    rows: Sequence[Scored], key: Callable[[Scored], str | int]
) -> list[tuple[str, list[Scored]]]:
    """Rows by a key, in its order."""
    return [(str(k), [s for s in rows if key(s) == k]) for k in sorted({key(s) for s in rows})]


def requirements(rows: Sequence[Scored]) -> list[Requirement]:
    """What was asked of the model, beside what it reaches."""
    scored = weight_only(rows)
    small = [s for s in scored if s.small]
    asked = []
    for words, group in ((f"batch up to {SMALL_BATCH}", small), ("all batches", scored)):
        families = grouped(group, lambda s: s.family)
        few = [f for f, g in families if len(g) < LEAST_ROWS]
        worse = [f for f, g in families if f not in few and not errors(g).beats_baselines]
        text = f"better than both baselines in each weight-only family, {words}"
        found = f"worse in: {', '.join(worse) or 'none'}"
        found += f"; of fewer than {LEAST_ROWS} rows, not counted: {', '.join(few)}" if few else ""
        asked.append(Requirement(text, found, not worse))
    paired = [s for s in held_out(ratios(rows)) if s.standing == "scored"]
    return [
        *asked,
        _coverage("", "leaving a source out", scored),
        _coverage("ratios to 16 bits: ", "leaving a source out", paired),
    ]


def _coverage(before: str, after: str, rows: Sequence[Scored]) -> Requirement:
    """Whether intervals hold the share that they should; rows without a finite one are counted and named."""
    (low, high), found = COVERAGE, errors(rows)
    text = f"{before}90 % intervals hold {low:.0%} to {high:.0%} of the rows, {after}"
    none = f"{found.rows - found.bounded} rows: no finite interval"
    if found.coverage is None:
        return Requirement(text, none, met=False)
    said = f"{found.coverage:.1%} of {found.bounded} rows; {none}"
    return Requirement(text, said, low <= found.coverage <= high)


def _differences(rows: Sequence[Scored]) -> Requirement:
    """Whether intervals of a difference, made of a ratio's and a time's, hold the share that they should."""
    held = differences_covered(rows, held_out(ratios(rows)))
    text = "goal: 90 % intervals of weight-only less 16-bit time hold 85% of the pairs, leaving a source out"
    share = sum(held) / len(held) if held else 0.0
    return Requirement(text, f"{share:.1%} of {len(held)} pairs", share >= COVERAGE[0])


def goals(rows: Sequence[Scored]) -> list[Requirement]:
    """What was hoped for; missing it is said and is no error."""
    scored = weight_only(rows)
    four_bits = [s for s in scored if s.small and s.format in FOUR_BITS]
    mape = errors(four_bits).mape
    batches = {b: errors(group) for b, group in grouped(scored, lambda s: s.row.problem.batch)}
    low = {
        b: f"{e.coverage:.0%} at {b}"
        for b, e in batches.items()
        if e.bounded >= LEAST_ROWS and e.coverage is not None and e.coverage < COVERAGE[0]
    }
    boards = {b: errors(group) for b, group in grouped(sixteen_bit(rows), lambda s: s.row.gpu)}
    worse = {
        b: f"{b} ({e.mape:.0%} against {min(e.ideal_mape, e.constant_mape):.0%})"
        for b, e in boards.items()
        if not e.beats_baselines
    }
    return [
        Requirement(
            f"goal: MAPE up to {GOAL_MAPE:.0%} for 4-bit weights, batch up to {SMALL_BATCH}",
            f"{mape:.1%} of {len(four_bits)} rows",
            mape <= GOAL_MAPE,
        ),
        _coverage("goal: ", "leaving a board out", held_out(scored, by_board)),
        _differences(rows),
        Requirement(
            f"goal: 90 % intervals hold {COVERAGE[0]:.0%} of the rows of each batch",
            f"fewer: {', '.join(low.values()) or 'none'}",
            not low,
        ),
        Requirement(
            "goal: better than both baselines for 16-bit kernels on each board",
            f"worse on: {', '.join(worse.values()) or 'none'}",
            not worse,
        ),
    ]


def failing(rows: Sequence[Scored]) -> list[Scored]:
    """Scored rows outside their finite interval, the worst first."""
    missed = [s for s in rows if s.standing == "scored" and s.width is not None and not s.covered]
    return sorted(missed, key=lambda s: -abs(s.residual))


def tables(rows: Sequence[Scored]) -> list[tuple[str, list[tuple[str, list[Scored]]]]]:
    """Every table that is printed: its title and its groups."""
    scored, apart = weight_only(rows), weight_only(rows, "apart")
    small = [s for s in scored if s.small]
    return [
        (
            f"By kernel family, batch up to {SMALL_BATCH}",
            [*grouped(small, lambda s: s.family), ("all", small)],
        ),
        ("By kernel family, all batches", [*grouped(scored, lambda s: s.family), ("all", scored)]),
        ("By board", grouped(scored, lambda s: s.row.gpu)),
        ("By batch", grouped(scored, lambda s: s.row.problem.batch)),
        ("By weight format", grouped(scored, lambda s: s.format)),
        ("Apart: refused as answers", grouped(apart, lambda s: s.reason)),
        ("16-bit kernels, for comparison", grouped(sixteen_bit(rows), lambda s: s.row.gpu)),
    ]


def render(rows: Sequence[Scored]) -> RenderableType:
    """Everything, for people."""
    standings = Counter(s.standing for s in rows)
    reasons = Counter(s.reason for s in rows if s.standing == "refused")
    apart = len(weight_only(rows, "apart"))
    head = Text(f"{BANNER}\n", style="bold")
    version = frozen().version
    head.append(
        f"Model {frozen().name} ({frozen().digest[:12]}); version {version.version} was frozen on "
        f"{version.frozen_on} with {len(version.tables)} of these tables in view.\n"
        f"{len(rows)} figures: {standings['scored']} scored, {standings['apart']} apart, "
        f"{standings['refused']} not modelled "
        f"({'; '.join(f'{n} {reason}' for reason, n in reasons.most_common())}).\n"
        f"Of weight-only kernels {apart} of {apart + len(weight_only(rows))} stand apart: the model would "
        "give no answer there.\nErrors are mean/median. 0.8 bw + 3 us: the time at 0.8 x bandwidth, and 3 us.\n"
    )
    parts: list[RenderableType] = [head]
    for title, groups in tables(rows):
        parts += [Text(title, style="bold"), _table(groups), Text()]
    missed = failing(rows)
    parts.append(Text(f"{len(missed)} scored rows outside their 90 % interval:", style="bold"))
    parts.append(_hanging([(" ", _sentence(s), "") for s in missed]))
    parts.append(Text("\nAsked of the model:", style="bold"))
    asked = [
        ("met", f"{r.text}: {r.found}", "green") if r.met
        else ("MISSED", f"{r.text}: {r.found}", "bold red")
        for r in (*requirements(rows), *goals(rows))
    ]  # fmt: skip
    parts.append(_hanging(asked))
    return Group(*parts)


def _hanging(lines: Sequence[tuple[str, str, str]]) -> Table:
    """Words, sentences and styles; a long sentence goes on under its beginning."""
    table = Table.grid(padding=(0, 1, 0, 0))
    for word, sentence, style in lines:
        table.add_row(word, Text(sentence), style=style)
    return table


def to_json(rows: Sequence[Scored]) -> str:
    """The same for programs."""
    data: dict[str, Any] = {
        "kind": "modelled",
        "model": {"version": frozen().name, "sha256": frozen().digest},
        "requirements": [asdict(r) for r in (*requirements(rows), *goals(rows))],
        "tables": {
            title: {name: asdict(errors(group)) for name, group in groups}
            for title, groups in tables(rows)
        },
        "failing": [_sentence(s) for s in failing(rows)],
        "rows": [{**asdict(s), "covered": s.covered, "interval": s.interval} for s in rows],
    }
    return json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False)


def _table(groups: Sequence[tuple[str, Sequence[Scored]]]) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0))
    table.add_column("")
    names = ("rows", "error", "bias", "in\n90 %", "in\ncorners", "ideal", "0.8 bw\n+ 3 us")
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("mostly limited by", no_wrap=True)
    for name, group in groups:
        e = errors(group)
        limiter, count = max(e.limiters.items(), key=lambda item: item[1])
        table.add_row(
            *(name, str(e.rows), _both(e.mape, e.median), f"{e.bias:+.0%}"),
            "-" if e.coverage is None else f"{e.coverage:.0%}",
            f"{e.corner_coverage:.0%}",
            *(_both(e.ideal_mape, e.ideal_median), _both(e.constant_mape, e.constant_median)),
            limiter if count == e.rows else f"{limiter}, {count} of {e.rows}",
            style=None if e.beats_baselines else "yellow",
        )
    return table


def _both(mean: float, median: float) -> str:
    return f"{100 * mean:.0f}/{median:.0%}"


def _sentence(s: Scored) -> str:
    assert s.interval is not None
    low, high = s.interval
    unit = "us" if s.row.source.metric == "time_us" else "x"
    return (
        f"{s.row}: published {s.row.value:.4g} {unit}, modelled {s.predicted:.4g} "
        f"[{low:.4g} to {high:.4g}] {unit}, limiter {s.limiter}"
    )


def main(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead.")] = False,
) -> None:
    """Hold the modelled GPU against published figures."""
    with exit_codes(OSError, ValueError):  # tables, or measured rates, that cannot be read
        rows = score()
    if as_json:
        sys.stdout.write(to_json(rows) + "\n")
    else:
        Console().print(render(rows))
    raise typer.Exit(int(not all(r.met for r in requirements(rows))))


if __name__ == "__main__":
    typer.run(main)

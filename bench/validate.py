"""Holds the modelled GPU against published times of weight-only kernels, and lists where it is wrong.

    python -m bench.validate             errors, coverage and baselines by family, board, batch and format
    python -m bench.validate --json      the same for programs, with every row

The 90 % interval of a row comes from the residuals of other sources only. Rows that the model would refuse
to answer for are scored apart: weights that may sit in the cache, operators below 20 us. Exit codes: 0 the
model is better than both baselines in every weight-only family and its intervals hold 85 to 97 % of the
rows, 1 it is not or they do not, 2 usage.
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
from bench.static.score import VENDOR_FAMILY, Scored, by_board, errors, held_out, predict_row

PUBLISHED = Path(__file__).resolve().parent.parent / "tests" / "data" / "published"
COVERAGE = (0.85, 0.97)
GOAL_MAPE = 0.20
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
        worse = [f for f, g in grouped(group, lambda s: s.family) if not errors(g).beats_baselines]
        text = f"better than both baselines in each weight-only family, {words}"
        asked.append(Requirement(text, f"worse in: {', '.join(worse) or 'none'}", not worse))
    (low, high), coverage = COVERAGE, errors(scored).coverage
    text = f"90 % intervals hold {low:.0%} to {high:.0%} of the rows, leaving a source out"
    asked.append(Requirement(text, f"{coverage:.1%}", low <= coverage <= high))
    return asked


def goals(rows: Sequence[Scored]) -> list[Requirement]:
    """What was hoped for; missing it is said and is no error."""
    scored = weight_only(rows)
    four_bits = [s for s in scored if s.small and s.format in FOUR_BITS]
    mape, (low, high) = errors(four_bits).mape, COVERAGE
    coverage = errors(held_out(scored, by_board)).coverage
    return [
        Requirement(
            f"goal: MAPE up to {GOAL_MAPE:.0%} for 4-bit weights, batch up to {SMALL_BATCH}",
            f"{mape:.1%} of {len(four_bits)} rows",
            mape <= GOAL_MAPE,
        ),
        Requirement(
            f"goal: 90 % intervals hold {low:.0%} to {high:.0%} of the rows, leaving a board out",
            f"{coverage:.1%}",
            low <= coverage <= high,
        ),
    ]


def failing(rows: Sequence[Scored]) -> list[Scored]:
    """Scored rows outside their interval, the worst first."""
    missed = [s for s in rows if s.standing == "scored" and not s.covered]
    return sorted(missed, key=lambda s: -abs(s.residual))


def tables(rows: Sequence[Scored]) -> list[tuple[str, list[tuple[str, list[Scored]]]]]:
    """Every table that is printed: its title and its groups."""
    scored, apart = weight_only(rows), weight_only(rows, "apart")
    sixteen = [s for s in rows if s.standing == "scored" and s.family == VENDOR_FAMILY]
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
        ("16-bit kernels, for comparison", grouped(sixteen, lambda s: s.row.gpu)),
    ]


def render(rows: Sequence[Scored]) -> RenderableType:
    """Everything, for people."""
    standings = Counter(s.standing for s in rows)
    reasons = Counter(s.reason for s in rows if s.standing == "refused")
    head = Text(f"{BANNER}\n", style="bold")
    version = frozen().version
    head.append(
        f"Model {frozen().name} ({frozen().digest[:12]}); version {version.version} was frozen on "
        f"{version.frozen_on} with {len(version.tables)} of these tables in view.\n"
        f"{len(rows)} figures: {standings['scored']} scored, {standings['apart']} apart, "
        f"{standings['refused']} not modelled "
        f"({'; '.join(f'{n} {reason}' for reason, n in reasons.most_common())}).\n"
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
        "rows": [
            {**asdict(s), "covered": s.covered, "interval": s.interval if s.predicted else None}
            for s in rows
        ],
    }
    return json.dumps(data, indent=1, ensure_ascii=False)


def _table(groups: Sequence[tuple[str, Sequence[Scored]]]) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0))
    table.add_column("")
    for name in ("rows", "MAPE", "bias", "in\n90 %", "in\ncorners", "ideal", "0.8 bw\n+ 3 us"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("mostly limited by", no_wrap=True)
    for name, group in groups:
        e = errors(group)
        limiter, count = max(e.limiters.items(), key=lambda item: item[1])
        table.add_row(
            *(name, str(e.rows), f"{e.mape:.0%}", f"{e.bias:+.0%}", f"{e.coverage:.0%}"),
            *(f"{e.corner_coverage:.0%}", f"{e.ideal_mape:.0%}", f"{e.constant_mape:.0%}"),
            limiter if count == e.rows else f"{limiter}, {count} of {e.rows}",
            style=None if e.beats_baselines else "yellow",
        )
    return table


def _sentence(s: Scored) -> str:
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
    rows = score()
    if as_json:
        sys.stdout.write(to_json(rows) + "\n")
    else:
        Console().print(render(rows))
    raise typer.Exit(int(not all(r.met for r in requirements(rows))))


if __name__ == "__main__":
    typer.run(main)

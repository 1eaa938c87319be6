"""How fast each pipe of an architecture is: what the model uses, what ptxas says here, what is published.

The numbers in use and the published ones are data (`profiles/specs/sm_*.toml`, with source and sort); those of
ptxas are read anew from its scheduling (`stalls.py`). Where they differ it is shown, and no mean is taken.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from bench.static.stalls import OPERATIONS, Read, assembler_version, probe
from profiles.specs import Multiprocessor, Number

NOTE = (
    "Results per clock and multiprocessor. In use: value and interval of the model, and its sort. ptxas: read "
    "from the stall counts that this assembler puts between instructions, its belief and no measurement; "
    "{word} marks an instruction of variable latency. Published: what other sources give. A ! marks a pipe on "
    "which they differ; two pipes that take turns (HFMA2, HFMA2.MMA) add up."
)


def render(multiprocessors: Iterable[Multiprocessor]) -> RenderableType:
    """A table per architecture."""
    parts: list[RenderableType] = []
    for multiprocessor in multiprocessors:
        capability = round(float(multiprocessor.capability) * 10)
        title = f"sm_{capability}: ptxas {assembler_version(capability)}"
        table = Table(
            title=Text(title), title_justify="left", title_style="bold", box=None, padding=(0, 1)
        )
        for head in ("pipe", "in use", "ptxas", "published"):
            table.add_column(head, overflow="fold")
        for row in rows(multiprocessor):
            mark = " !" if row["differ"] else ""
            style = "yellow" if row["differ"] else None
            published = ", ".join(f"{o['value']:g} ({o['sort']})" for o in row["published"])
            used = f"{row['value']:g} [{row['low']:g}, {row['high']:g}] {row['sort']}"
            table.add_row(f"{row['pipe']}{mark}", used, _said(row["ptxas"]), published, style=style)
        parts += [table, Text()]
    return Group(*parts, Text(NOTE.format(word="(v)"), style="dim"))


def to_data(multiprocessors: Iterable[Multiprocessor]) -> list[dict[str, Any]]:
    """The same for programs."""
    found = []
    for multiprocessor in multiprocessors:
        capability = round(float(multiprocessor.capability) * 10)
        for row in rows(multiprocessor):
            reads = {
                name: {"lanes": r.lanes, "variable": r.variable} for name, r in row["ptxas"].items()
            }
            found.append(
                {"arch": f"sm_{capability}", "assembler": assembler_version(capability)}
                | row
                | {"ptxas": reads}
            )
    return found


def rows(multiprocessor: Multiprocessor) -> Iterator[dict[str, Any]]:
    """Each pipe: its number in use, what ptxas says, what others say, and whether they differ."""
    read = probe(round(float(multiprocessor.capability) * 10))
    for pipe in OPERATIONS:
        number: Number = getattr(multiprocessor, f"{pipe}_lanes")
        lanes = {r.lanes for r in read[pipe].values() if r.lanes is not None}
        yield {
            "pipe": pipe,
            "value": number.value,
            "low": number.low,
            "high": number.high,
            "sort": number.sort,
            "source": number.source,
            "ptxas": read[pipe],
            "published": [
                {"value": o.value, "sort": o.sort, "source": o.source} for o in number.others
            ],
            "differ": number.disputed or any(map(number.differs, lanes)),
        }


def _said(reads: dict[str, Read]) -> str:
    """The opcodes of a pipe with their lanes."""
    said = [
        f"{name} {'not said' if r.lanes is None else f'{r.lanes:g}'}{' (v)' if r.variable else ''}"
        for name, r in reads.items()
    ]
    return ", ".join(said) or "not read"

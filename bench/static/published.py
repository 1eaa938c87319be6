"""Published times and speed-ups of weight-only kernels, as rows that a model can be held against.

The figures are copied from the sources below into CSV files, nothing else; their README says whose they are
and under which licence. A time is in microseconds; a speed-up is over the 16-bit kernel on the same board.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bench.static.cost import Problem

Metric = Literal["time_us", "speedup"]


@dataclass(frozen=True)
class Source:
    """Where a file of figures comes from, and how they were taken.

    Attributes:
        key: the name of the file.
        metric: what its values are.
        cold: whether weights were read from memory by construction.
        graph: whether launches were captured in a graph; False also where nobody says.
    """

    key: str
    metric: Metric
    cold: bool
    graph: bool


SOURCES = (
    Source("aiconfigurator", "time_us", cold=False, graph=False),
    Source("gemlite", "speedup", cold=False, graph=False),
    Source("graphcore", "time_us", cold=True, graph=True),
    Source("marlin", "speedup", cold=False, graph=False),
)


@dataclass(frozen=True)
class Row:
    """One published figure.

    Attributes:
        source: whose figure.
        gpu: the board's file in `profiles/specs`.
        kernel: the kernel's name in `peers.toml`.
        problem: what was run.
        value: microseconds, or times faster than 16 bits.
    """

    source: Source
    gpu: str
    kernel: str
    problem: Problem
    value: float

    def __str__(self) -> str:
        """In one line."""
        p = self.problem
        return f"{self.source.key} {self.gpu} {self.kernel} {p.n} x {p.k} batch {p.batch}"


def load_rows(folder: Path) -> tuple[Row, ...]:
    """Every figure in a folder that has one file per source.

    Raises:
        FileNotFoundError: a source's file is not there.
        ValueError: a value that is not above zero.
    """
    return tuple(row for source in SOURCES for row in _rows(source, folder / f"{source.key}.csv"))


def _rows(source: Source, path: Path) -> list[Row]:
    rows = []
    with path.open(encoding="utf-8", newline="") as file:
        for number, fields in enumerate(csv.DictReader(file), start=2):
            n, k, batch = (int(fields[name]) for name in ("n", "k", "batch"))
            value = float(fields["value"])
            if value <= 0:
                raise ValueError(f"{path.name}, line {number}: {value} is no time and no speed-up")
            problem = Problem(n, k, batch, cold=source.cold, graph=source.graph)
            rows.append(Row(source, fields["gpu"], fields["kernel"], problem, value))
    return rows

"""The table of R: GPUs by kernels, as text and as plain data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from bench.static.limits import Ratio, supply_demand
from bench.static.peers import Peer
from profiles.specs import Gpu

STYLES = {"hidden": "green", "open": "yellow", "cast-bound": "bold red", "unknown": "dim"}
NOTE = (
    "MODELLED. R = weights/s the pipes allow / weights/s memory delivers, at 100 % and at 65 % of issue. Red: "
    "below 1, cast-bound. Yellow: the two fall on either side of 1. After them the pipe that runs out first. A "
    "* marks R whose interval over published clocks and rates holds 1; a dash, a path "
    "that the board does not have or pipes of which nothing is known. Clocks are the highest boost: a board "
    "that runs slower has a lower R."
)


def ratios(
    gpus: Sequence[Gpu], peers: Sequence[Peer], batch: int
) -> list[tuple[Gpu, list[tuple[Peer, Ratio]]]]:
    """R of every kernel on every board."""
    return [(gpu, [(peer, supply_demand(gpu, peer.cost, batch)) for peer in peers]) for gpu in gpus]


def render(gpus: Sequence[Gpu], peers: Sequence[Peer], batch: int) -> RenderableType:
    """One line per kernel, one column per board."""
    found = ratios(gpus, peers, batch)
    table = Table(title=f"Supply over demand at batch {batch}, modelled", title_justify="left")
    table.add_column("kernel")
    table.add_column("weights")
    for gpu in gpus:
        table.add_column(gpu.key, justify="right", no_wrap=True)
    for index, peer in enumerate(peers):
        cells = [_cell(line[index][1]) for _, line in found]
        table.add_row(peer.cost.name, peer.format, *cells)
    return Group(table, Text(NOTE, style="dim"))


def to_data(gpus: Sequence[Gpu], peers: Sequence[Peer], batch: int) -> list[dict[str, Any]]:
    """The same for programs; every entry says that it is modelled."""
    return [
        {
            "kind": "modelled",
            "gpu": gpu.key,
            "kernel": peer.key,
            "format": peer.format,
            "batch": batch,
            **asdict(ratio),
            "verdict": ratio.verdict,
        }
        for gpu, line in ratios(gpus, peers, batch)
        for peer, ratio in line
    ]


def _cell(ratio: Ratio) -> Text:
    if ratio.value is None or ratio.low is None or ratio.high is None:
        return Text("-", style="dim")
    doubtful = "*" if ratio.low < 1 <= ratio.high else ""
    text = f"{ratio.value:.1f} {ratio.at_reached_issue:.1f}{doubtful}\n{ratio.limiter}"
    return Text(text, style=STYLES[ratio.verdict])

"""The table of R: boards by kernels, as text and as plain data.

A `Line` is one kernel on every board. Ours are compiled for each board's architecture, and of the fused kernels
of a format the one with the largest R stands for it; other people's are one count for all boards.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import median
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from bench.static.audit import Audit, Job, K, jobs_of
from bench.static.audit_report import capability_of
from bench.static.limits import STYLES, Ratio, supply_demand
from bench.static.ours import ratio_of
from bench.static.peers import Peer
from kernels.formats import WeightFormat, find_format
from profiles.specs import Gpu, measured, measured_notes

OURS = "ours"
PEERS = "other people's"
SIDE_BY_SIDE = 3
WIDEST = 24  # characters of a kernel's name
SHORT = {"shared": "smem"}
NOTE = (
    "MODELLED. R = weights/s the pipes allow / weights/s memory delivers, at 100 % and at 65 % of issue. Red: "
    "cast-bound, below 1 with its interval over published clocks and rates. Green: hidden, above 1 with its "
    "interval and at 65 % too. Yellow: undecided. After them the pipe that runs out first. A * marks R whose "
    "interval holds 1; a dash, a path "
    "that the board does not have or pipes of which nothing is known. Clocks are the highest boost: a board "
    "that runs slower has a lower R. Our kernels are listed by format, each by its fused kernel with the "
    "largest R."
)


@dataclass(frozen=True)
class Line:
    """One kernel on every board.

    Attributes:
        key: its name for programs.
        name: its name for people.
        format: of its weights.
        whose: OURS or PEERS.
        ratios: by the key of the board.
    """

    key: str
    name: str
    format: str
    whose: str
    ratios: Mapping[str, Ratio]


def peer_lines(gpus: Sequence[Gpu], peers: Iterable[Peer], batch: int) -> list[Line]:
    """Other people's kernels."""
    return [
        Line(
            *(peer.key, peer.cost.name, peer.format, PEERS),
            {gpu.key: supply_demand(gpu, peer.cost, batch) for gpu in gpus},
        )
        for peer in peers
    ]


def our_jobs(gpus: Iterable[Gpu], formats: Iterable[WeightFormat], batch: int) -> list[Job]:
    """What has to be compiled for our lines: the fused kernels that serve a batch."""
    from kernels import find_kernels

    names = [f.name for f in formats]
    capabilities = dict.fromkeys(map(capability_of, gpus))
    served = {
        (name, kernel.variant)
        for name in names
        for kernel in find_kernels("cuda", find_format(name), "fp16", batch)
        if kernel.arm == "fused"
    }
    jobs = jobs_of(["fused"], names, ["fp16"], capabilities)
    return [replace(job, batch=batch) for job in jobs if (job.format, job.variant) in served]


def our_lines(
    gpus: Sequence[Gpu], formats: Sequence[WeightFormat], batch: int, audits: Mapping[Job, Audit]
) -> list[Line]:
    """Our fused kernels, a line per format, those of few bits first."""
    jobs = our_jobs(gpus, formats, batch)
    lines = []
    for weight_format in sorted(formats, key=lambda f: f.bits_stored(K)):
        ratios = {}
        for gpu in gpus:
            own = [
                ratio_of(gpu, job, audits[job])
                for job in jobs
                if job in audits
                and (job.format, job.capability) == (weight_format.name, capability_of(gpu))
            ]
            none = Ratio(None, reason="no kernel of ours could be counted")
            ratios[gpu.key] = max(own, key=lambda r: r.value or 0.0, default=none)
        name = weight_format.name
        lines.append(Line(name, name, name, OURS, ratios))
    return lines


def render(gpus: Sequence[Gpu], lines: Sequence[Line], batch: int) -> RenderableType:
    """One line per kernel, a few boards side by side, the least able to hide dequantization first."""

    def middle(gpu: Gpu) -> float:
        values = [r.value for line in lines if (r := line.ratios[gpu.key]).value is not None]
        return median(values or [0.0])

    ordered = sorted(gpus, key=middle)
    parts: list[RenderableType] = []
    for first in range(0, len(ordered), SIDE_BY_SIDE):
        some = ordered[first : first + SIDE_BY_SIDE]
        table = Table(box=None, padding=(0, 1, 0, 0))
        table.add_column(Text(f"R at batch {batch}", style="bold"), no_wrap=True)
        for gpu in some:
            table.add_column(gpu.key, justify="right", no_wrap=True)
        before = lines[0].whose if lines else ""
        for line in lines:
            if line.whose != before:
                table.add_row(Text(f"{line.whose}:", style="dim"))
                before = line.whose
            table.add_row(
                line.name[:WIDEST].rstrip(", "), *(_cell(line.ratios[gpu.key]) for gpu in some)
            )
        parts += [table, Text()]
    notes = [Text(note, style="bold") for note in measured_notes(gpus)]
    return Group(*parts, Text(NOTE, style="dim"), *notes)


def to_data(gpus: Sequence[Gpu], lines: Sequence[Line], batch: int) -> list[dict[str, Any]]:
    """The same for programs; every entry says that it is modelled."""
    return [
        {
            "kind": "modelled",
            "gpu": gpu.key,
            "whose": line.whose,
            "kernel": line.key,
            "format": line.format,
            "batch": batch,
            **asdict(line.ratios[gpu.key]),
            "verdict": line.ratios[gpu.key].verdict,
            "measured_rates": sorted(measured(gpu)),
        }
        for gpu in gpus
        for line in lines
    ]


def _cell(ratio: Ratio) -> Text:
    if ratio.value is None or ratio.low is None or ratio.high is None:
        return Text("-", style="dim")
    doubtful = "*" if ratio.low < 1 <= ratio.high else ""
    digits = 2 if ratio.value < 2 else 1
    reached = ratio.at_reached_issue or 0.0
    limiter = SHORT.get(ratio.limiter or "", ratio.limiter)
    text = f"{ratio.value:.{digits}f}/{reached:.{digits}f}{doubtful} {limiter}"
    return Text(text, style=STYLES[ratio.verdict])

"""The picture of R: which boards hide dequantization, and which do not, for which kernels.

Blue cells have pipes to spare at 65 % of issue and at the low end of R's interval, red ones are cast-bound up
to its high end, yellow ones are undecided. Boards are in the order of the instructions that they can spend on a
byte from memory, so that the border between the colours is a line.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import log2
from pathlib import Path
from typing import TYPE_CHECKING

from bench.static.limits import Ratio
from bench.static.limits_table import Line
from profiles.specs import Gpu

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SPAN = 3.0  # powers of two beyond 1 after which a colour is full
GREY, YELLOW = "#ececec", "#ffe680"
DARK = 0.55  # of a colour: beyond it text is white
NOTE = (
    "R = weights/s the pipes allow / weights/s memory delivers, at 100 % of issue and, below it, at 65 %, "
    "which real kernels reach. Counted in machine code,\nagainst data sheets at the highest clock; below 1 "
    "a kernel is cast-bound. Ours: the fused kernel with the largest R. Grey: no such path, or not known."
    "\nIn brackets: instructions that a board can issue while one byte arrives. Nothing here was measured."
)


def instructions_per_byte(gpu: Gpu) -> float:
    """Thread-instructions that can be issued while one byte arrives, at the highest clock."""
    if gpu.multiprocessor is None:
        return float("inf")
    lanes = gpu.multiprocessor.issue_lanes.value * gpu.sms.value
    return lanes * gpu.sm_clock_mhz.value * 1e6 / (gpu.memory_gb_per_s.value * 1e9)


def colour(ratio: Ratio) -> tuple[str | tuple[float, ...], bool]:
    """The colour of a cell, and whether it is dark."""
    from matplotlib import colormaps

    if ratio.value is None or ratio.at_reached_issue is None:
        return GREY, False
    if ratio.verdict == "undecided":
        return YELLOW, False
    hidden = ratio.verdict == "hidden"
    beyond = log2(ratio.at_reached_issue) if hidden else -log2(ratio.value)
    share = 0.12 + 0.7 * min(1.0, beyond / SPAN)
    return colormaps["Blues" if hidden else "Reds"](share), share > DARK


def draw(gpus: Sequence[Gpu], lines: Sequence[Line], batch: int, path: Path) -> None:
    """Writes the picture; its format follows from the name.

    Raises:
        OSError: the file cannot be written.
        ValueError: no picture can be written under such a name.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    gpus = sorted(gpus, key=instructions_per_byte)
    size = (3.2 + 0.78 * len(gpus), 1.9 + 0.36 * len(lines))
    figure, axis = pyplot.subplots(figsize=size)
    try:
        for row, line in enumerate(lines):
            for column, gpu in enumerate(gpus):
                _cell(axis, row, column, line.ratios[gpu.key])
        axis.set_xlim(-0.5, len(gpus) - 0.5)
        axis.set_ylim(len(lines) - 0.5, -0.5)
        names = [f"{g.key} ({instructions_per_byte(g):.0f})" for g in gpus]
        axis.set_xticks(range(len(gpus)), names, rotation=35, ha="left", fontsize=9)
        axis.xaxis.tick_top()
        axis.set_yticks(range(len(lines)), [_label(line) for line in lines], fontsize=9)
        axis.tick_params(length=0)
        axis.set_frame_on(False)
        for whose in dict.fromkeys(line.whose for line in lines):
            rows = [row for row, line in enumerate(lines) if line.whose == whose]
            where = (len(gpus) - 0.42, sum(rows) / len(rows))
            axis.text(*where, whose, rotation=270, ha="left", va="center", fontsize=9)
            if rows[0]:
                axis.axhline(rows[0] - 0.5, color="#111111", linewidth=1.5)
        _legend(axis)
        figure.suptitle(
            f"MODELLED: which boards hide dequantization? R at batch {batch}",
            x=0.01, ha="left", fontsize=13, fontweight="bold",
        )  # fmt: skip
        figure.text(0.01, 0.008, NOTE, fontsize=7.5, color="#444444", va="bottom")
        figure.tight_layout(rect=(0, 0.55 / size[1], 1, 1))
        figure.savefig(path, dpi=140, metadata={"Software": None} if path.suffix == ".png" else {})
    finally:
        pyplot.close(figure)


def _label(line: Line) -> str:
    return line.name if line.name == line.format else f"{line.name} ({line.format})"


def _cell(axis: Axes, row: int, column: int, ratio: Ratio) -> None:
    """One board and kernel: R at 100 %, and smaller below it at 65 % of issue."""
    from matplotlib.patches import Rectangle

    background, dark = colour(ratio)
    corner = (column - 0.48, row - 0.46)
    axis.add_patch(Rectangle(corner, 0.96, 0.92, facecolor=background, linewidth=0))
    ink = "white" if dark else "#1a1a1a"
    if ratio.value is None or ratio.at_reached_issue is None:
        axis.text(column, row, "–", ha="center", va="center", fontsize=8, color="#777777")
        return
    place = {"ha": "center", "va": "center", "color": ink}
    axis.text(column, row - 0.14, _short(ratio.value), fontsize=9, **place)  # type: ignore[arg-type]
    axis.text(column, row + 0.24, _short(ratio.at_reached_issue), fontsize=6.5, **place)  # type: ignore[arg-type]


def _short(value: float) -> str:
    return f"{value:.{2 if value < 2 else 1 if value < 20 else 0}f}"


def _legend(axis: Axes) -> None:
    from matplotlib import colormaps
    from matplotlib.patches import Patch

    handles = [
        Patch(color=colormaps["Reds"](0.6), label="cast-bound: R < 1, its interval too"),
        Patch(color=YELLOW, label="undecided"),
        Patch(color=colormaps["Blues"](0.6), label="hidden: R > 1, its interval and at 65 % too"),
    ]
    axis.legend(
        handles=handles, loc="upper center", bbox_to_anchor=(0.5, -0.005), ncol=3,
        frameon=False, fontsize=8.5,
    )  # fmt: skip

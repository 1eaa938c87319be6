"""The pictures of `python -m bench.trap`: waterfalls, phi over p, trap maps.

    PROFILE.waterfall.png    the parts of the fused kernel of each format, at one batch
    PROFILE.phi.png          phi over stored bits, one panel per path
    PROFILE.trap.png         model sizes by batches, coloured by the ratio to 16 bits; undecided cells are grey

Every picture says what kind of evidence it shows, of what.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.analysis.ladder import PARTS, Ladder
from bench.analysis.phi_curve import CASTING
from bench.analysis.replicates import Book
from bench.analysis.trap import Answers
from bench.analysis.trap_map import TrapMap
from bench.curves import COLORS
from bench.trap_tables import some
from profiles.schema import LAYER, Quantity

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PART_COLORS = {
    "fixed per call": "#7a7a7a",
    "move": COLORS["stream"],
    "unpack": COLORS["unpack"],
    "scale": COLORS["scale"],
    "multiply": COLORS["bypass"],
    "residual": COLORS["unfused"],
}
PANELS_PER_ROW = 3
MAPS_PER_ROW = 2  # so that numbers in cells can be read on a page
NAME_ROOM = 0.25  # of the axis, above everything drawn
NAME_BITS = 0.8  # bits on the axis that the name of a format takes
CHARACTERS_PER_INCH = 18  # of a note
LARGEST_RATIO = 4.0  # beyond which colours do not change
DARK_BEYOND = 1.1  # of the ratio's logarithm: black cannot be read on such cells


def draw(book: Book, answers: Answers, profile: Path, folder: Path) -> Iterator[Path]:
    """Writes every picture that there is something to show of, and says where.

    Args:
        book: of the profile.
        answers: what to draw.
        profile: whose name the pictures have, packed (run.json.gz) or not.
        folder: where they go.

    Raises:
        OSError: a file cannot be written.
    """
    import matplotlib

    matplotlib.use("Agg")
    stem = profile.name.removesuffix(".gz").removesuffix(".json")
    chosen = [
        x for x in answers.ladders
        if (x.problem.operator, x.problem.batch) == (LAYER, answers.questions.batch)
    ]  # fmt: skip
    for name, figure in (
        ("waterfall", _waterfalls(book, chosen)),
        ("phi", _phi(book, answers)),
        ("trap", _maps(book, answers.maps)),
    ):
        if figure is not None:
            yield _saved(figure, folder / f"{stem}.{name}.png")


def _saved(figure: Figure, path: Path) -> Path:
    from matplotlib import pyplot

    try:
        figure.savefig(path, dpi=150, metadata={"Software": None})
    finally:
        pyplot.close(figure)
    return path


def _panels(
    count: int, width: float, height: float, columns: int = PANELS_PER_ROW
) -> tuple[Figure, list[Axes]]:
    from matplotlib import pyplot

    columns = min(count, columns)
    rows = math.ceil(count / columns)
    figure, axes = pyplot.subplots(
        rows, columns, figsize=(1 + width * columns, 1 + height * rows), squeeze=False
    )
    flat = [axis for row in axes for axis in row]
    for axis in flat[count:]:
        axis.set_visible(False)
    return figure, flat[:count]


def _titled(figure: Figure, book: Book, words: str, note: str) -> Figure:
    profile = book.profile
    width, height = figure.get_size_inches()
    title = f"{profile.kind.upper()}: {profile.device.name}, {profile.workload.model}. {words}"
    figure.suptitle("\n".join(wrap(title, int(12 * width))), fontsize=11)
    lines = wrap(note, int(CHARACTERS_PER_INCH * width))
    figure.text(0.01, 0.01, "\n".join(lines), fontsize=7, color="#555555")
    figure.tight_layout(rect=(0, (0.14 * len(lines) + 0.05) / height, 1, 1))
    return figure


def _waterfalls(book: Book, chosen: Sequence[Ladder]) -> Figure | None:
    if not chosen:
        return None
    figure, axes = _panels(len(chosen), 4.2, 3.6)
    for axis, ladder in zip(axes, chosen, strict=True):
        _waterfall(axis, ladder)
    return _titled(
        figure, book, f"Parts of the fused kernel, one layer, batch {chosen[0].problem.batch}",
        f"Bars: {100 * book.confidence:.0f} %. Each part stands on the ones before it; the residual is what "
        f"single stages do not add up to (negative: they overlap).",
    )  # fmt: skip


def _waterfall(axis: Axes, ladder: Ladder) -> None:
    scale, unit = (1e6, "µs per layer") if ladder.unit == "s" else (1e3, "mJ per layer")
    base = 0.0
    names: list[str] = []
    for part in PARTS:
        q = ladder.parts[part]
        if q.value is None:
            continue
        axis.bar(len(names), q.value * scale, bottom=base, color=PART_COLORS[part], width=0.7)
        _error_bar(axis, len(names), q, base, scale)
        base += q.value * scale
        names.append(_label(part, ladder))
    _bar(axis, len(names), ladder.total, scale, COLORS["fused"])
    names.append("fused")
    axis.set_xticks(range(len(names)), names, fontsize=7, rotation=30)
    axis.axhline(0, color="#333333", linewidth=0.8)
    axis.set_ylabel(unit)
    axis.set_title(ladder.problem.format, fontsize=10)
    axis.grid(True, axis="y", color="#dddddd", linewidth=0.6)
    axis.set_axisbelow(True)


def _label(part: str, ladder: Ladder) -> str:
    """The name of a part, with those that it holds because they are not known by themselves."""
    missing = {name for name, q in ladder.parts.items() if q.value is None}
    if part == "multiply" and "move" in missing:
        return "move +\nmultiply"
    if part == "residual" and {"unpack", "scale"} <= missing:
        return "dequantize\n(exposed)"
    return part


def _bar(axis: Axes, x: int, q: Quantity, scale: float, color: str) -> None:
    if q.value is not None:
        axis.bar(x, q.value * scale, color=color, width=0.7)
        _error_bar(axis, x, q, 0.0, scale)


def _error_bar(axis: Axes, x: int, q: Quantity, base: float, scale: float) -> None:
    if q.value is None or q.low is None or q.high is None:
        return
    top = base + q.value * scale
    error = [[(q.value - q.low) * scale], [(q.high - q.value) * scale]]
    axis.errorbar(x, top, yerr=error, color="#222222", capsize=3, linewidth=1)


def _phi(book: Book, answers: Answers) -> Figure | None:
    """A row of panels per path, one per batch, each with an axis of its own: phi may grow with the batch."""
    points = [p for p in answers.phi if p.bits_stored is not None]
    if not points:
        return None
    batches = some({p.batch for p in points})
    figure, axes = _panels(len(CASTING) * len(batches), 3.4, 3.0, len(batches))
    bits = [p.bits_stored for p in points if p.bits_stored is not None]
    for i, (path, batch) in enumerate((path, batch) for path in CASTING for batch in batches):
        axis, word = axes[i], "exposed" if path == "fused" else "unfused"
        known = sorted(
            (p.bits_stored, q.value, q.low, q.high)
            for p in points
            if p.batch == batch and (q := getattr(p, word)).value is not None and q.low is not None
        )
        if known:
            at, *times_s = (np.array(each) for each in zip(*known, strict=True))
            value, low, high = (1e6 * each for each in times_s)
            axis.errorbar(
                at, value, yerr=(value - low, high - value), fmt="o", markersize=4, capsize=3,
                color="#0063b2",
            )  # fmt: skip
            axis.step(at, value, where="post", color="#0063b2", linewidth=0.8)
        bottom, top = axis.get_ylim()
        axis.set_ylim(bottom, top + NAME_ROOM * (top - bottom))
        _name_formats(axis, {(p.bits_stored, p.format) for p in points})
        axis.axhline(0, color="#333333", linewidth=0.8)
        axis.set_xlim(min(bits) - 0.6, max(bits) + 0.6)
        axis.set_xlabel("p, stored bits per weight", fontsize=8)
        axis.set_ylabel("µs per layer", fontsize=8)
        axis.tick_params(labelsize=7)
        axis.set_title(f"φ {word}, B = {batch}", fontsize=9)
        axis.grid(True, color="#dddddd", linewidth=0.6)
    return _titled(
        figure, book, "φ(h, p)",
        f"Steps, not a curve: formats differ in more than their bits. Bars: "
        f"{100 * book.confidence:.0f} %. The scale differs from panel to panel.",
    )  # fmt: skip


def _name_formats(axis: Axes, formats: set[tuple[Any, str]]) -> None:
    """Names along the top, each a line below the one before it where it would run into that."""
    level, last = 0, -math.inf
    for bits, name in sorted(formats):
        level = level + 1 if bits - last < NAME_BITS else 0
        last = bits
        axis.annotate(
            name, (bits, 1.0), xycoords=("data", "axes fraction"),
            xytext=(0, -2 - 7 * level), textcoords="offset points", fontsize=5.5, va="top",
            ha="center", color="#555555",
        )  # fmt: skip


def _maps(book: Book, maps: Sequence[TrapMap]) -> Figure | None:
    shown = [m for m in maps if any(c.ratio.value is not None for c in m.cells)]
    if not shown:
        return None
    figure, axes = _panels(len(shown), 5.2, 4.6, MAPS_PER_ROW)
    for axis, each in zip(axes, shown, strict=True):
        _map(axis, each)
    known = book.profile.device.memory_bytes is not None
    return _titled(
        figure, book, "The trap map; other models are extrapolated from its operators",
        "Blue: low bits pay; red: they cost (the trap); grey with '?': undecided at "
        f"{100 * book.confidence:.0f} %. ° an operator over twice as large, or under half as small, as any "
        "of the profile's. Bold: the profile's own layer. "
        f"{'! 16-bit weights exceed the device memory.' if known else 'The device memory is not known.'} "
        "Linear operators of a step, lm_head left out.",
    )  # fmt: skip


def _map(axis: Axes, found: TrapMap) -> None:
    from matplotlib import colormaps
    from matplotlib.colors import TwoSlopeNorm

    norm = TwoSlopeNorm(0.0, -math.log2(LARGEST_RATIO), math.log2(LARGEST_RATIO))
    colors = colormaps["RdBu"]
    names = []
    for y, model in enumerate(found.models):
        fits = True
        for x, batch in enumerate(found.batches):
            cell = found.at(model.name, batch)
            if cell is None or cell.ratio.value is None or cell.ratio.value <= 0:
                continue
            fits = cell.fits16 is not False
            decided = cell.outcome != "undecided"
            color = colors(norm(math.log2(cell.ratio.value))) if decided else "#d9d9d9"
            axis.add_patch(_square(x, y, color, decided))
            text = f"{cell.ratio.value:.2f}{'' if decided else '?'}{'°' if cell.beyond else ''}"
            dark = decided and abs(math.log2(cell.ratio.value)) > DARK_BEYOND
            axis.text(
                x, y, text, ha="center", va="center", fontsize=6, color="white" if dark else "black",
                fontweight="bold" if cell.measured else "normal",
            )  # fmt: skip
        names.append(model.name + ("" if fits else " !"))
    axis.set_xlim(-0.5, len(found.batches) - 0.5)
    axis.set_ylim(-0.5, len(found.models) - 0.5)
    axis.set_xticks(range(len(found.batches)), [str(b) for b in found.batches], fontsize=7)
    axis.set_yticks(range(len(names)), names, fontsize=7)
    axis.set_xlabel("batch")
    axis.set_ylabel("model, by size")
    launch = "eager" if found.eager else "graph"
    axis.set_title(
        f"{found.format} {found.path}, {launch}: {found.by} of best16 over it\n{found.decided}",
        fontsize=8,
    )


def _square(x: int, y: int, color: Any, decided: bool) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle(
        (x - 0.5, y - 0.5), 1, 1, facecolor=color, edgecolor="white",
        hatch=None if decided else "////", linewidth=0.8,
    )  # fmt: skip

"""Draws joules per token over the batch from a profile, measured points and fitted curves.

    python -m bench.curves results/PROFILE.json            # writes results/PROFILE.energy.png

A curve is E(B) = a + b / B: what every token costs, and what a step costs however many tokens it yields.
The picture says what was measured, on what, with which sensor, and what is not in it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import typer

from profiles.reader import ProfileError, load_profile
from profiles.schema import Energy, EnergyRow, Profile

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLORS = {
    "native": "#1f1f1f",
    "vendor": "#1f1f1f",
    "fused": "#0063b2",
    "bypass": "#7fb2dd",
    "unfused": "#d1495b",
}
OTHER_COLOR = "#8a8a8a"


def draw(profile: Profile, path: Path) -> None:
    """Writes the picture.

    Args:
        profile: with energy rows.
        path: of the PNG.

    Raises:
        ValueError: the profile has no joules; the message says why.
        OSError: the file cannot be written.
    """
    if not any(row.token_j.value is not None for row in profile.energy.rows):
        raise ValueError(f"there are no joules to draw: {_why(profile.energy)}")
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    formats = list(dict.fromkeys(row.format for row in profile.energy.rows))
    figure, axes = pyplot.subplots(
        1, len(formats), figsize=(1.5 + 5.5 * len(formats), 5.2), squeeze=False, sharey=True
    )
    for axis, weight_format in zip(axes[0], formats, strict=True):
        _panel(axis, profile, weight_format)
    axes[0][0].set_ylabel("joules per token")
    figure.suptitle(
        f"{profile.kind.upper()}: {profile.device.name}, {profile.workload.model}", fontsize=12
    )
    figure.text(
        0.01, 0.01,
        f"Linear operators of {profile.workload.layers} layers, extrapolated from one; no lm_head, "
        f"attention, KV cache or host.\nGross joules of {profile.energy.scope}, sensor: "
        f"{profile.energy.sensor}. Bars: 95 %.",
        fontsize=7, color="#555555",
    )  # fmt: skip
    figure.tight_layout(rect=(0, 0.05, 1, 1))
    try:
        figure.savefig(path, dpi=150, metadata={"Software": None})
    finally:
        pyplot.close(figure)


def _why(energy: Energy) -> str:
    reasons = [energy.reason, *(row.token_j.reason for row in energy.rows)]
    return next((reason for reason in reasons if reason), "no window was measured")


def _panel(axis: Axes, profile: Profile, weight_format: str) -> None:
    """Points and curves of one format."""
    rows = [row for row in profile.energy.rows if row.format == weight_format]
    for arm in dict.fromkeys((row.kernel.arm, row.kernel.implementation) for row in rows):
        points = [r for r in rows if (r.kernel.arm, r.kernel.implementation) == arm]
        color = COLORS.get(arm[0], OTHER_COLOR)
        _points(axis, points, color, f"{arm[0]} ({arm[1]}, {points[0].kernel.weight_format})")
        for curve in profile.energy.curves:
            known = (curve.a_j.value, curve.b_j.value)
            if (curve.format, curve.arm, curve.implementation) == (weight_format, *arm):
                a, b = known
                if a is not None and b is not None:
                    batch = np.geomspace(*_ends(rows), 200)
                    style = "--" if curve.fits else ":"
                    axis.plot(batch, a + b / batch, color=color, linewidth=1, linestyle=style)
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    batches = sorted({row.batch for row in rows})
    axis.set_xticks(batches, [str(batch) for batch in batches])
    axis.set_xlabel("batch")
    axis.set_title(f"{weight_format} (dashed: a + b / batch; dotted: does not fit)", fontsize=10)
    axis.grid(True, which="major", color="#dddddd", linewidth=0.6)
    axis.legend(fontsize=8, frameon=False)


def _ends(rows: list[EnergyRow]) -> tuple[int, int]:
    return min(row.batch for row in rows), max(row.batch for row in rows)


def _points(axis: Axes, rows: list[EnergyRow], color: str, label: str) -> None:
    known = [
        (
            row.batch,
            q.value,
            q.low if q.low is not None else q.value,
            q.high if q.high is not None else q.value,
        )
        for row in rows
        if (q := row.token_j).value is not None
    ]
    if not known:
        return
    batch, value, low, high = (np.array(column) for column in zip(*known, strict=True))
    axis.errorbar(
        batch, value, yerr=(value - low, high - value),
        fmt="o", markersize=4, capsize=3, color=color, label=label,
    )  # fmt: skip


def main(
    path: Annotated[Path, typer.Argument(help="A profile, as written by bench.dequant.")],
    output: Annotated[
        Path | None, typer.Option(help="The PNG; beside the profile by default.")
    ] = None,
) -> None:
    """Draw joules per token over the batch."""
    output = output or picture_of(path)
    try:
        draw(load_profile(path, allow=("measured", "modelled", "simulated", "imported")), output)
    except (ProfileError, ValueError) as error:
        typer.echo(f"error: {str(error).rstrip('.')}.", err=True)
        raise typer.Exit(2) from None
    except OSError as error:
        typer.echo(f"error: cannot write {output}: {error.strerror}.", err=True)
        raise typer.Exit(2) from None
    typer.echo(f"Wrote {output}")


def picture_of(profile: Path) -> Path:
    """Where the picture of a profile goes."""
    return profile.with_suffix(".energy.png")


if __name__ == "__main__":
    typer.run(main)

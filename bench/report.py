"""Prints a profile: what dequantization costs at each batch, and one sentence of verdict per format.

    python -m bench.report results/PROFILE.json [--operator layer]

Needs the file only: no device, no torch.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from bench.analysis.verdict import verdicts
from profiles.reader import ProfileError, load_profile
from profiles.schema import LAYER, ArmRow, Comparison, Implementation, Profile, Quantity

CONVERGED_SHARE = 0.9  # a run is stable when this share of its comparisons met the target width


def render(profile: Profile, operator: str = LAYER) -> RenderableType:
    """Everything a run prints after its last block."""
    parts: list[RenderableType] = [_header(profile)]
    for weight_format in profile.workload.formats:
        chosen = [
            c
            for c in profile.comparisons
            if c.format == weight_format and c.operator == operator
        ]
        if chosen:
            parts += [_times(profile, chosen), _costs(chosen)]
    words = [v.sentence for v in verdicts(profile.comparisons, operator)]
    parts.append(Text("\n".join(words), style="bold"))
    parts.append(_footer(profile))
    return Group(*parts)


def converged_share(profile: Profile) -> tuple[int, int]:
    """Comparisons that met the target width, and comparisons with a phi at all."""
    known = [c.converged for c in profile.comparisons if c.converged is not None]
    return sum(known), len(known)


def failures(profile: Profile) -> list[ArmRow]:
    """Rows of kernels that crashed or gave wrong numbers."""
    return [row for row in profile.rows if row.failure is not None]


def _header(profile: Profile) -> Text:
    device, workload = profile.device, profile.workload
    cores = f", {device.cores} {'cores' if device.kind == 'cpu' else 'SMs'}" if device.cores else ""
    text = Text()
    text.append(f"{profile.kind.upper()}", style="bold green" if profile.kind == "measured" else "bold")
    text.append(f" on {device.name}{cores}: {workload.model}, one decoder layer, ")
    text.append(f"{workload.activation} activations, {workload.launch_mode} launches, ")
    text.append(f"{workload.cache_state} weights")
    return text


def _times(profile: Profile, comparisons: Iterable[Comparison]) -> Table:
    chosen = list(comparisons)
    table = _table(
        f"{chosen[0].format}: {_what(chosen[0])}, milliseconds (95 % interval)",
        ("B", "best16", "", "stream", "bypass", "fused", "unfused", "library"),
    )
    times = {
        (row.operator, row.batch, row.format, _identity(row)): row.time_s for row in profile.rows
    }

    def cell(c: Comparison, kernel: Implementation | None, arm: str | None = None) -> Text:
        if kernel is None:
            return Text("–", style="dim")
        wanted = (arm or kernel.arm, kernel.implementation, kernel.variant, kernel.weight_format)
        return _cell(times.get((c.operator, c.batch, c.format, wanted)), 1e3, 3)

    for c in chosen:
        name = Text(f"{c.best16.arm}\n{c.best16.implementation}" if c.best16 else "–", style="dim")
        table.add_row(
            str(c.batch), cell(c, c.best16), name, cell(c, c.fused, "stream"),
            cell(c, c.fused, "bypass"), cell(c, c.fused), cell(c, c.unfused), cell(c, c.library),
        )  # fmt: skip
    return table


def _costs(comparisons: Iterable[Comparison]) -> Table:
    chosen = list(comparisons)
    table = _table(
        f"{chosen[0].format}: cost of dequantization, {_what(chosen[0])} (95 % interval)",
        ("B", "φ exposed\nms", "φ unfused\nms", "COR\nexposed", "COR\nunfused", "speed-up\nfused",
         "speed-up\nunfused", "spread\nof φ exp."),
    )  # fmt: skip
    for c in chosen:
        spread = c.quality_exposed.between_process_spread_s
        mark = "" if c.converged else " *"
        flagged = " †" if c.flags else ""
        table.add_row(
            f"{c.batch}{mark}{flagged}",
            _cell(c.phi_exposed_s, 1e3, 3), _cell(c.phi_unfused_s, 1e3, 3),
            _cell(c.cor_exposed, 1, 2), _cell(c.cor_unfused, 1, 2),
            _cell(c.speedup_fused, 1, 2), _cell(c.speedup_unfused, 1, 2),
            Text("–" if spread is None else f"±{spread * 1e3:.3f}"),
        )  # fmt: skip
    return table


def _footer(profile: Profile) -> Text:
    good, known = converged_share(profile)
    protocol = profile.protocol
    lines = [
        f"{good} of {known} comparisons (layer and operators) have φ within "
        f"{protocol.target_half_width:.0%} of t(best16)."
    ]
    layers = [c for c in profile.comparisons if c.operator == LAYER]
    if any(not c.converged for c in layers):
        lines.append("* not converged: the interval of a φ is wider than that.")
    if any(c.flags for c in layers):
        lines.append("† flagged: blocks were not independent (a trend or a shift); see the profile.")
    steps = [c for c in layers if c.extrapolated is not None and c.batch == layers[0].batch]
    for c in steps:
        assert c.extrapolated is not None
        step = c.extrapolated
        lines.append(
            f"{c.format}, batch {c.batch}, one step of {step.layers} layers (extrapolated, without "
            f"lm_head and attention): best16 {_plain(step.best16_s, 1e3, 2)} ms, "
            f"fused {_plain(step.fused_s, 1e3, 2)} ms, unfused {_plain(step.unfused_s, 1e3, 2)} ms."
        )
    energies = {row.energy_j.reason for row in profile.rows if row.energy_j.value is None}
    lines += [f"Joules: {reason}." for reason in sorted(energies)]
    for row in failures(profile):
        lines.append(
            f"FAILED {row.arm} ({row.implementation}, {row.weight_format}) on {row.operator} "
            f"at batch {row.batch}: {row.failure}."
        )
    if not profile.complete:
        lines.append("The run was interrupted: what is here is valid, but not all that was planned.")
    return Text("\n".join(lines), style="dim")


def _table(title: str, columns: Iterable[str]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", padding=(0, 1), box=None)
    for index, name in enumerate(columns):
        table.add_column(name, justify="left" if index == 0 or not name else "right", no_wrap=True)
    return table


def _what(comparison: Comparison) -> str:
    return "one layer" if comparison.operator == LAYER else comparison.operator


def _identity(row: ArmRow) -> tuple[str, str, str, str]:
    return (row.arm, row.implementation, row.variant, row.weight_format)


def _cell(quantity: Quantity | None, scale: float, digits: int) -> Text:
    """The value, and below it the interval."""
    if quantity is None or quantity.value is None:
        return Text("–", style="dim")
    text = Text(f"{quantity.value * scale:.{digits}f}")
    if quantity.low is not None and quantity.high is not None:
        low, high = quantity.low * scale, quantity.high * scale
        text.append(f"\n{low:.{digits}f}…{high:.{digits}f}", style="dim")
    return text


def _plain(quantity: Quantity, scale: float, digits: int) -> str:
    if quantity.value is None:
        return "–"
    return f"{quantity.value * scale:.{digits}f}"


def main(
    path: Annotated[Path, typer.Argument(help="A profile, as written by bench.dequant.")],
    operator: Annotated[
        str, typer.Option(help="An operator of the layer, or `layer` for their sum.")
    ] = LAYER,
) -> None:
    """Print a profile again: tables, verdicts, and what to be careful about."""
    try:
        profile = load_profile(path, allow=("measured", "modelled", "simulated", "imported"))
    except ProfileError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None
    known = (LAYER, *(o.name for o in profile.workload.operators))
    if operator not in known:
        typer.echo(f"error: no operator {operator!r}; choose from {', '.join(known)}.", err=True)
        raise typer.Exit(2)
    Console().print(render(profile, operator))


if __name__ == "__main__":
    typer.run(main)

"""Prints a profile: what dequantization costs at each batch, and one sentence of verdict per format.

    python -m bench.report results/PROFILE.json [--operator layer]

Needs the file only: no device, no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from bench.analysis.doubts import flag_sentences, stale_sentences
from bench.analysis.trust import REFUSED_SHARE as REFUSED_SHARE
from bench.analysis.trust import failures as failures
from bench.analysis.trust import warm as warm
from bench.analysis.trust_phi import CONVERGED_SHARE as CONVERGED_SHARE
from bench.analysis.trust_phi import converged_share as converged_share
from bench.analysis.verdict import verdicts
from kernels.formats import LOWP_ALIASES
from profiles.reader import ProfileError, load_profile
from profiles.schema import (
    LAYER,
    NOT_HERE,
    ArmRow,
    Comparison,
    EnergyRow,
    Implementation,
    Profile,
    Quantity,
    SupplyDemand,
)

MS = 1e3
MJ = 1e3
MOST_KERNELS = 5  # beside best16 in a table: it fits into 80 columns
LONGEST_HEAD = 12


def render(profile: Profile, operator: str = LAYER) -> RenderableType:
    """Everything a run prints after its last block."""
    parts: list[RenderableType] = [*_banner(profile), _header(profile)]
    for weight_format in profile.workload.formats:
        chosen = [
            c for c in profile.comparisons if c.format == weight_format and c.operator == operator
        ]
        if chosen:
            parts += [Text(), _times(profile, chosen), _baselines(chosen), Text()]
            parts += [*_side_by_side(profile, chosen), _costs(chosen)]
            parts += _ratios(profile, weight_format)
            parts += _others(profile, chosen)
        if operator == LAYER and any(r.format == weight_format for r in profile.energy.rows):
            parts += [Text(), _energy(profile, chosen), Text(), _tokens(profile, weight_format)]
            parts += list(_curves(profile, weight_format))
    parts.append(Text())
    parts += [Text(v.sentence, style="bold") for v in verdicts(profile.comparisons, operator)]
    if operator == LAYER:
        in_joules = verdicts(profile.comparisons, by="energy")
        parts += [Text(v.sentence, style="bold") for v in in_joules]
    parts += [Text(line, style="dim") for line in _notes(profile)]
    return Group(*parts)


def _banner(profile: Profile) -> Iterator[RenderableType]:
    """Of a modelled profile: how many rows were refused, and in capitals what the others are."""
    modelled = profile.modelled
    if modelled is None:
        return
    refused, rows = modelled.refused_rows, modelled.rows
    share = refused / rows if rows else 0.0
    style = "bold red" if share > REFUSED_SHARE else "bold"
    yield Text(f"{refused} of {rows} rows refused: not modelled ({share:.0%}).", style=style)
    reasons = Table.grid(padding=(0, 1, 0, 0))  # a long one goes on under its beginning
    for reason, count in modelled.refused.items():
        reasons.add_row("", Text(str(count), justify="right"), Text(reason))
    if modelled.refused:
        yield reasons
    yield Text(
        "MODELLED, NOT MEASURED: no GPU was here, and none has run this. Times follow from compiled machine "
        "code and data sheets; the intervals say how wrong that has been elsewhere.",
        style="bold white on red",
    )


def _ratios(profile: Profile, weight_format: str) -> Iterator[RenderableType]:
    """R of the fused kernels of a modelled profile."""
    found = profile.modelled.ratios if profile.modelled else ()
    fused = [r for r in found if (r.format, r.kernel.arm) == (weight_format, "fused")]
    variants = list(dict.fromkeys(r.kernel.variant for r in fused))
    if not fused:
        return
    words = f"{weight_format}: R, weights/s the pipes allow / weights/s memory delivers"
    table = plain_table(words, variants)
    for batch in dict.fromkeys(r.batch for r in fused):
        cells = {r.kernel.variant: r for r in fused if r.batch == batch}
        table.add_row(str(batch), *(_ratio_cell(cells.get(name)) for name in variants))
    yield from (Text(), table)
    yield Text(
        "At 100 % and at 65 % of issue, of the hot loop; then the pipe that runs out first. A kernel is "
        "cast-bound where all of R's interval, which the profile holds, lies below 1.",
        style="dim",
    )


def _ratio_cell(found: SupplyDemand | None) -> Text:
    if found is None or found.ratio.value is None or found.at_reached_issue is None:
        return Text("–", style="dim")
    return Text(f"{found.ratio.value:.2f} {found.at_reached_issue:.2f} {found.limiter}")


def _header(profile: Profile) -> Text:
    device, workload = profile.device, profile.workload
    cores = f", {device.cores} {'cores' if device.kind == 'cpu' else 'SMs'}" if device.cores else ""
    text = Text()
    text.append(profile.kind.upper(), style="bold green" if profile.kind == "measured" else "bold")
    text.append(f" on {device.name}{cores}: {workload.model}, the operators of one layer, ")
    text.append(f"{workload.activation} activations, {workload.launch_mode} launches, ")
    text.append(f"{workload.cache_state} weights. ")
    text.append(
        f"Each value with its {profile.protocol.confidence:.0%} interval.".replace("%", " %")
    )
    return text


def _times(profile: Profile, chosen: list[Comparison]) -> Table:
    table = plain_table(
        f"{chosen[0].format}: time of {_what(chosen[0])}, ms",
        ("best16", "stream", "bypass", "fused", "unfused", "library"),
    )
    rows = {(row.operator, row.batch, row.format, _identity(row)): row for row in profile.rows}

    def cell(c: Comparison, kernel: Implementation | None, arm: str | None = None) -> Text:
        if kernel is None:
            return Text("–", style="dim")
        wanted = (arm or kernel.arm, kernel.implementation, kernel.variant, kernel.weight_format)
        row = rows.get((c.operator, c.batch, c.format, wanted))
        text = cell_of(row.time_s if row else None, MS)
        return text.append(f"\n{row.limiter}", style="cyan") if row and row.limiter else text

    for c in chosen:
        table.add_row(
            _batch(c), cell(c, c.best16), cell(c, c.fused, "stream"), cell(c, c.fused, "bypass"),
            cell(c, c.fused), cell(c, c.unfused), cell(c, c.library),
        )  # fmt: skip
    return table


def _side_by_side(profile: Profile, chosen: list[Comparison]) -> Iterator[RenderableType]:
    """Everybody's kernels for this format beside each other, if there are several of a sort."""
    where, stored = chosen[0].operator, chosen[0].format
    rows = [
        row
        for row in profile.rows
        if (row.operator, row.format, row.weight_format) == (where, stored, stored)
        and (
            row.arm in ("fused", "vendor", "unfused")
            or (row.arm == "lowp" and "+" in row.implementation)
        )
        and row.time_s.value is not None
    ]
    makers: dict[tuple[str, int], set[str]] = {}
    for row in rows:
        makers.setdefault((row.arm, row.batch), set()).add(_maker(row))
    several = {arm for (arm, _), those in makers.items() if len(those) > 1}
    if not several:
        return
    rows = [row for row in rows if row.arm in ("fused", "vendor", *several)]
    fastest: dict[tuple[str, str, int], Quantity] = {}
    for row in sorted(rows, key=lambda r: r.time_s.value or 0.0):
        fastest.setdefault((row.arm, _maker(row), row.batch), row.time_s)
    heads = list(dict.fromkeys((row.arm, _maker(row)) for row in rows))
    times = {(r.operator, r.batch, r.format, _identity(r)): r.time_s for r in profile.rows}
    for first in range(0, len(heads), MOST_KERNELS):
        some = heads[first : first + MOST_KERNELS]
        more = ", continued" if first else ""
        table = plain_table(
            f"{stored}: everybody's kernels for {_what(chosen[0])}, ms{more}",
            ("best16", *("\n".join((arm, _short(maker))) for arm, maker in some)),
        )
        for c in chosen:
            best = c.best16
            identity = best and (best.arm, best.implementation, best.variant, best.weight_format)
            best_s = times.get((where, c.batch, stored, identity)) if identity else None
            cells = (cell_of(fastest.get((*head, c.batch)), MS) for head in some)
            table.add_row(str(c.batch), cell_of(best_s, MS), *cells)
        yield table
    versions = {
        f"{_maker(row).partition('-')[0]} {row.variant}": 0
        for row in rows
        if row.variant[:1].isdigit()
    }
    if versions:
        yield Text(f"Versions: {', '.join(versions)}.", style="dim")
    yield Text()


def _maker(row: ArmRow) -> str:
    """Who wrote a kernel; of two launches (unfused, lowp) the one that dequantizes, or multiplies low bits."""
    first, _, last = row.implementation.partition("+")
    if row.arm != "lowp":
        return first
    special = first.partition("-")[2]
    return f"{last}-{special}" if special else last


def _short(maker: str) -> str:
    """On two lines where it is long."""
    return maker.replace("-", "\n", 1) if len(maker) > LONGEST_HEAD else maker


def _costs(chosen: list[Comparison]) -> Table:
    table = plain_table(
        f"{chosen[0].format}: cost of dequantization in {_what(chosen[0])}",
        ("φ exposed\nms", "φ unfused\nms", "COR\nexposed", "COR\nunfused", "speed-up\nfused",
         "speed-up\nunfused"),
    )  # fmt: skip
    for c in chosen:
        table.add_row(
            _batch(c), cell_of(c.phi_exposed_s, MS), cell_of(c.phi_unfused_s, MS),
            cell_of(c.cor_exposed), cell_of(c.cor_unfused),
            cell_of(c.speedup_fused), cell_of(c.speedup_unfused),
        )  # fmt: skip
    return table


def _others(profile: Profile, chosen: list[Comparison]) -> list[RenderableType]:
    """The arms beside the ladder: no dequantization at all, and casting at the other end."""
    if not any(c.lowp or c.upcast for c in chosen):
        return []
    alias = LOWP_ALIASES.get(chosen[0].format, "")
    table = plain_table(
        f"{chosen[0].format}: beside the ladder, {_what(chosen[0])}",
        (f"lowp {alias}\nms".replace(" \n", "\n"), "product\nms", "quantize x\nms", "speed-up\nlowp",
         "upcast\nms", "speed-up\nupcast"),
    )  # fmt: skip
    times = _times_of(profile)
    for c in chosen:
        lowp, product, upcast = (
            cell_of(times.get((c.operator, c.batch, c.format, _identity(i))) if i else None, MS)
            for i in (c.lowp, c.lowp_product, c.upcast)
        )
        table.add_row(
            str(c.batch), lowp, product, cell_of(c.quantization_s, MS), cell_of(c.speedup_lowp),
            upcast, cell_of(c.speedup_upcast),
        )  # fmt: skip
    named = {
        f"{i.arm}: {i.implementation}, {i.variant}" for c in chosen for i in (c.lowp, c.upcast) if i
    }
    errors = [
        row.activation_error for row in profile.rows
        if row.format == chosen[0].format and row.activation_error is not None
    ]  # fmt: skip
    line = "; ".join(sorted(named)) + "."
    if errors:
        line += (
            f" Quantizing the activations changes y by up to {max(errors):.1%} of its largest value, "
            f"which no other arm does."
        )
    return [Text(), table, Text(line, style="dim")]


def _energy(profile: Profile, chosen: list[Comparison]) -> Table:
    """Joules of a layer and of its phi, at the batches that have windows."""
    table = plain_table(
        f"{chosen[0].format}: energy of one layer, mJ",
        ("best16", "bypass", "fused", "unfused", "φ exposed", "φ unfused", "best16 /\nfused"),
    )
    rows = {(r.batch, r.kernel): r for r in profile.energy.rows if r.format == chosen[0].format}
    for c in chosen:
        kernels = (c.best16, c.fused, c.unfused)
        if not any((c.batch, kernel) in rows for kernel in kernels):
            continue
        bypass = c.fused and c.fused.model_copy(update={"arm": "bypass"})
        cells = (
            rows.get((c.batch, k)) if k else None for k in (c.best16, bypass, c.fused, c.unfused)
        )
        mark = "†" if c.energy_flags else ""
        table.add_row(
            f"{c.batch}{mark}", *(cell_of(row.energy_j if row else None, MJ) for row in cells),
            cell_of(c.phi_exposed_j, MJ), cell_of(c.phi_unfused_j, MJ), cell_of(c.energy_ratio_fused),
        )  # fmt: skip
    return table


def _tokens(profile: Profile, weight_format: str) -> Table:
    """Joules per token, by arm."""
    rows = [r for r in profile.energy.rows if r.format == weight_format]
    heads = _heads(rows)
    arms = list(dict.fromkeys(heads))
    table = plain_table(
        f"{weight_format}: linear-operator energy per token, mJ "
        f"({profile.workload.layers} layers, extrapolated)",
        arms,
    )
    cells = {(r.batch, head): r.token_j for r, head in zip(rows, heads, strict=True)}
    for batch in sorted({r.batch for r in rows}):
        table.add_row(str(batch), *(cell_of(cells.get((batch, arm)), MJ) for arm in arms))
    return table


def _heads(rows: list[EnergyRow]) -> list[str]:
    """A name for each row's arm; with who wrote it where there are several of that name."""
    several: dict[str, set[str]] = {}
    for row in rows:
        several.setdefault(row.kernel.arm, set()).add(row.kernel.implementation)
    return [
        f"{row.kernel.arm}\n{row.kernel.implementation}"
        if len(several[row.kernel.arm]) > 1
        else row.kernel.arm
        for row in rows
    ]


def _curves(profile: Profile, weight_format: str) -> Iterator[Text]:
    for c in profile.energy.curves:
        if c.format == weight_format and c.a_j.value is not None and c.b_j.value is not None:
            yield Text(
                f"{c.arm} ({c.implementation}): {c.a_j.value * MJ:.3g} + {c.b_j.value * MJ:.3g} / B mJ "
                f"per token, "
                + (
                    f"fits within {c.largest_residual or 0:.1%}."
                    if c.fits
                    else f"does not fit: {c.reason}."
                ),
                style="dim",
            )


def _baselines(chosen: list[Comparison]) -> Text:
    """Which 16-bit kernel each batch was compared with, and what the library's own kernel is."""
    named = [
        (c.batch, f"{c.best16.arm} ({c.best16.implementation}, {c.best16.weight_format})")
        for c in chosen
        if c.best16 is not None
    ]
    runs = []
    for name, group in groupby(named, key=lambda item: item[1]):
        batches = [batch for batch, _ in group]
        span = f"{batches[0]} to {batches[-1]}" if len(batches) > 1 else f"{batches[0]}"
        runs.append(f"{name} at batch {span}")
    line = f"best16: {'; '.join(runs)}." if runs else "best16: none."
    libraries = sorted({c.library.implementation for c in chosen if c.library is not None})
    if libraries:
        line += f" library: {', '.join(libraries)}'s own kernel for this format."
    return Text(line, style="dim")


def _notes(profile: Profile) -> Iterator[str]:
    """What to be careful about."""
    if profile.kind == "simulated":
        yield "SIMULATED: these times are planted. No hardware was timed, and they say nothing of any."
    if profile.modelled is not None:
        yield from _modelled_notes(profile)
        return
    good, known = converged_share(profile)
    target = profile.protocol.target_half_width
    yield (
        f"{good} of {known} values of φ (layer and operators, exposed and unfused) are known within "
        f"±{target:.0%} of t(best16)."
    )
    if warm(profile):
        yield (
            "WARNING: memory was too short to rotate weights through twice the last-level cache, so "
            "they were not cold."
        )
    layers = [c for c in profile.comparisons if c.operator == LAYER]
    if any(c.converged is False for c in layers):
        yield "* not converged: the interval of a φ is wider than that."
    yield from flag_sentences(layers)
    yield from stale_sentences(profile)
    spreads = [
        (spread / c.phi_exposed_s.value, c)
        for c in layers
        if (spread := c.quality_exposed.between_process_spread_s) and c.phi_exposed_s.value
    ]
    if spreads:
        share, c = max(spreads, key=lambda item: abs(item[0]))
        yield (
            f"Between processes φ exposed moved by up to ±{abs(share):.0%} "
            f"({c.format}, batch {c.batch})."
        )
    for c in layers:
        if c.extrapolated is not None and c.batch == layers[0].batch:
            step = c.extrapolated
            yield (
                f"{c.format}, batch {c.batch}: a step of {step.layers} layers, extrapolated "
                f"(no lm_head, no attention): best16 {_plain(step.best16_s)} ms, "
                f"fused {_plain(step.fused_s)} ms, unfused {_plain(step.unfused_s)} ms."
            )
    yield from _joules(profile)
    for row in failures(profile):
        yield (
            f"FAILED {row.arm} ({row.implementation}, {row.weight_format}) on {row.operator} "
            f"at batch {row.batch}: {row.failure}."
        )
    for lost in profile.lost_kernels:
        yield f"FAILED importing {lost.name}: {lost.reason}."
    yield from _not_here(profile)
    yield from _own_references(profile)
    untuned = sum(row.configuration.startswith("untuned") for row in profile.rows)
    if untuned:
        yield (
            f"{untuned} of {len(profile.rows)} rows ran in an untuned launch configuration; "
            f"bench.tune finds others."
        )
    if profile.resumed:
        times = len(profile.resumed)
        yield f"Resumed {times} time{'s' if times > 1 else ''} after an interruption."
        differences = dict.fromkeys(line for r in profile.resumed for line in r.differences)
        yield from (f"Not the same throughout: {line}" for line in differences)
    if not profile.complete:
        yield "Interrupted: what is here is valid, but not all that was planned."


def _own_references(profile: Profile) -> Iterator[str]:
    """Kernels that were compared with a reference of their own, and how far that is from everybody's."""
    furthest: dict[str, float] = {}
    for row in profile.rows:
        if row.reference_error is not None:
            name = f"{row.arm} ({row.implementation}, {row.weight_format})"
            furthest[name] = max(furthest.get(name, 0.0), row.reference_error)
    for name, error in furthest.items():
        yield (
            f"{name} was compared with a reference of its own: it may differ from what all others compute by "
            f"{error:.1%} of the largest value of y."
        )


def _modelled_notes(profile: Profile) -> Iterator[str]:
    """What to be careful about where nothing was measured."""
    assert profile.modelled is not None
    yield "MODELLED: below each interval the resource that would take longest alone."
    yield f"Model {profile.modelled.model}. Intervals: {profile.modelled.intervals}."
    yield from _not_here(profile)
    yield from (f"{note[0].upper()}{note[1:]}." for note in profile.modelled.notes)
    yield from _joules(profile)


def _not_here(profile: Profile) -> Iterator[str]:
    """Kernels whose instructions the device lacks, by what they are."""
    lacking: dict[str, list[str]] = {}
    for row in profile.rows:
        if row.failure is not None and row.failure.startswith(NOT_HERE):
            name = f"{row.arm} ({row.implementation}, {row.weight_format})"
            lacking.setdefault(row.failure.removeprefix(NOT_HERE), []).append(name)
    for reason, names in lacking.items():
        yield f"Not on this device: {', '.join(sorted(set(names)))}: {reason}."


def _joules(profile: Profile) -> Iterator[str]:
    """What the joules are of, or why there are none."""
    energy = profile.energy
    if energy.reason:
        yield f"Joules: absent, {energy.reason}."
    if not energy.rows:
        return
    traits = energy.characterised or energy.published
    gain = f", gain known to ±{traits.gain_uncertainty:.0%}" if traits else ""
    yield (
        f"Joules are gross, of {energy.scope}; sensor: {energy.sensor}{gain}. φ in joules includes "
        f"what other bits draw: bypass multiplies other numbers."
    )
    for reason, rows in _grouped(energy.rows, lambda row: row.energy_j.reason):
        yield f"No joules of {rows}: {reason}."
    for _, rows in _grouped(energy.rows, lambda row: " ".join(row.flags)):
        yield f"† joules throttled, clocks were held down in some windows: {rows}."
    cost = energy.sampling
    if cost is not None:
        share = "" if cost.cpu_share is None else f", {cost.cpu_share:.1%} of a core"
        yield (
            f"The sensor was read {cost.readings} times{share}; {cost.failed} readings failed, "
            f"{cost.late} were late, the longest took {cost.longest_read_s * 1e3:.2g} ms."
        )


def _grouped(
    rows: Iterable[EnergyRow], text: Callable[[EnergyRow], str]
) -> Iterator[tuple[str, str]]:
    """Each text that some rows have, and these rows as words."""
    found: dict[str, list[EnergyRow]] = {}
    for row in rows:
        found.setdefault(text(row), []).append(row)
    for said, those in found.items():
        if said:
            arms = "; ".join(
                f"{weight_format} {arm} at batch {', '.join(str(r.batch) for r in group)}"
                for (weight_format, arm), group in (
                    (key, list(items))
                    for key, items in groupby(
                        sorted(those, key=_arm_of), key=lambda r: _arm_of(r)[:2]
                    )
                )
            )
            yield said, arms


def _arm_of(row: EnergyRow) -> tuple[str, str, int]:
    return row.format, row.kernel.arm, row.batch


def plain_table(title: str, columns: Iterable[str]) -> Table:
    """A table without lines whose first column is the batch; the title may be wider than the table."""
    words = Text(title, no_wrap=True, overflow="ignore")
    table = Table(
        title=words, title_justify="left", title_style="bold", box=None, padding=(0, 1, 0, 0)
    )
    table.add_column("B", no_wrap=True)
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _batch(c: Comparison) -> str:
    missed = c.converged is False or (c.converged is None and c.kind != "modelled")
    return f"{c.batch}{'*' if missed else ''}{'†' if c.flags else ''}"


def _what(comparison: Comparison) -> str:
    return "one layer" if comparison.operator == LAYER else comparison.operator


def _times_of(profile: Profile) -> dict[tuple[str, int, str, tuple[str, str, str, str]], Quantity]:
    return {
        (row.operator, row.batch, row.format, _identity(row)): row.time_s for row in profile.rows
    }


def _identity(row: ArmRow | Implementation) -> tuple[str, str, str, str]:
    return (row.arm, row.implementation, row.variant, row.weight_format)


def cell_of(quantity: Quantity | None, scale: float = 1.0) -> Text:
    """The value, and below it the interval, to three digits of the larger end."""
    if quantity is None or quantity.value is None:
        return Text("–", style="dim")
    ends = [quantity.value, quantity.low or 0.0, quantity.high or 0.0]
    largest = max(abs(end * scale) for end in ends)
    digits = 3 if largest < 1 else 2 if largest < 10 else 1 if largest < 100 else 0
    text = Text(f"{quantity.value * scale:z.{digits}f}")
    if quantity.low is not None and quantity.high is not None:
        low, high = quantity.low * scale, quantity.high * scale
        text.append(f"\n{low:z.{digits}f}–{high:z.{digits}f}", style="dim")
    return text


def _plain(quantity: Quantity) -> str:
    return "–" if quantity.value is None else f"{quantity.value * MS:.1f}"


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
    try:
        text = render(profile, operator)
    except ValueError as error:  # two comparisons of one problem: tables would mix them up
        typer.echo(f"error: {path} cannot be printed: {error}", err=True)
        raise typer.Exit(2) from None
    Console().print(text)


if __name__ == "__main__":
    typer.run(main)

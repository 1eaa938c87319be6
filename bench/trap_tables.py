"""The tables of `python -m bench.trap`: each is one question, and fits 80 columns."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from bench.analysis.compounding import error_at, error_of
from bench.analysis.critical_scale import CriticalScale
from bench.analysis.crossing import Crossing, size_word
from bench.analysis.doubts import quality_sentence
from bench.analysis.ladder import FIXED, PARTS, Ladder
from bench.analysis.phi_curve import CASTING, Slope
from bench.analysis.replicates import Book
from bench.analysis.theories import Fit, Theories, Unfitted
from bench.analysis.trap import BYS, Answers
from bench.analysis.trap_map import Cell, TrapMap
from bench.analysis.verdict import Path
from bench.report import cell_of, plain_table
from profiles.fidelity import Fidelity
from profiles.schema import LAYER, Kind, Profile, Quantity

US, MS = 1e6, 1e3
SHOWN_BATCHES = 4  # of a table whose columns are batches
MARKS = {"wins": ("+", "green"), "loses": ("-", "red"), "undecided": ("?", "dim")}


def render(book: Book, answers: Answers, fidelity: Fidelity | None) -> RenderableType:
    """All tables, the advice last."""
    parts: list[RenderableType] = [_header(book)]
    quality = quality_sentence(book.profile, book.paired)
    if quality:
        parts.append(Text(quality, style="bold"))
    for name in dict.fromkeys(ladder.problem.format for ladder in answers.ladders):
        for unit in ("s", "j"):
            chosen = [
                x for x in answers.ladders
                if (x.problem.format, x.problem.operator, x.unit) == (name, LAYER, unit)
            ]  # fmt: skip
            if chosen:
                parts += [Text(), decomposition(chosen), *_footnotes(chosen)]
    for path in CASTING:
        table = phi_table(answers, path)
        if table.row_count:
            parts += [Text(), table]
    parts += list(_slopes(answers.slopes))
    parts += [Text(), *_cor(answers), Text(), *_theories(answers, book.kind)]
    parts += [Text(), crossings_table(answers), *_no_lowp(answers)]
    parts += [Text(answers.memory), *_at_load(answers)]
    parts += [Text(), scales_table(answers), *_scales_note(answers), *_family_scales(answers, book)]
    for each in answers.maps:
        parts += [Text(), map_table(book.profile, each), *_map_check(each)]
    if answers.maps:
        parts.append(_map_legend(book, answers.maps))
    parts += [Text(), hops_table(answers), *_hop_notes(answers)]
    if fidelity is not None:
        parts += [
            Text(),
            fidelity_table(answers, fidelity),
            *_laws(answers),
            _fidelity_note(fidelity),
        ]
    parts += [
        Text(),
        indices_table(answers),
        *_trust_note(answers, fidelity),
        *_trap_steps(answers),
    ]
    parts += [Text(), Text(answers.advice, style="bold")]
    return Group(*parts)


def _header(book: Book) -> Text:
    profile = book.profile
    text = Text()
    text.append(profile.kind.upper(), style="bold green" if profile.kind == "measured" else "bold")
    text.append(f" on {profile.device.name}: {profile.workload.model}, ")
    text.append(
        f"{profile.workload.activation} activations, {profile.workload.launch_mode} launches. "
    )
    text.append(f"Each value with its {100 * book.confidence:.0f} % interval, ")
    if book.paired:
        text.append(
            f"derived ones from {book.size} resamples of processes and of whole blocks within them."
        )
    else:
        text.append(
            "derived ones from the intervals of their parts: this profile has no samples, so pairing "
            "within blocks is absent and what is derived is wider than need be."
        )
    return text


def decomposition(chosen: Sequence[Ladder]) -> Table:
    """The rungs of one format's layer, batch by batch."""
    unit, scale = ("µs", US) if chosen[0].unit == "s" else ("mJ", MS)
    what = "parts of the fused kernel in one layer" if unit == "µs" else "its joules"
    title = f"{chosen[0].problem.format}: {what}, {unit}"
    known = [p for p in PARTS if any(x.parts[p].value is not None for x in chosen)]
    table = plain_table(
        title, (*(f"{p}{_note(p, chosen)}".replace("fixed ", "fixed\n") for p in known), "= fused")
    )
    for x in chosen:
        table.add_row(
            str(x.problem.batch),
            *(cell_of(x.parts[p], scale) for p in known),
            cell_of(x.total, scale),
        )
    return table


def _note(part: str, chosen: Sequence[Ladder]) -> str:
    """A mark on parts that hold another one, which is not known."""
    missing = {p for p in PARTS if all(x.parts[p].value is None for x in chosen)}
    holds = {
        "move": {FIXED},
        "multiply": {FIXED, "move"} if "move" in missing else set(),
        "residual": {"unpack", "scale"},
    }
    return "*" if holds.get(part, set()) & missing else ""


def _footnotes(chosen: Sequence[Ladder]) -> Iterator[Text]:
    for part in PARTS:
        reasons = {x.parts[part].reason for x in chosen if x.parts[part].value is None}
        for reason in sorted(reasons):
            yield Text(f"* no {part}: {reason}.", style="dim")


def phi_table(answers: Answers, path: Path) -> Table:
    """The step function phi over p: one row per format, by stored bits; columns are batches."""
    batches = some({p.batch for p in answers.phi})
    word = "exposed" if path == "fused" else "unfused"
    table = plain_table(f"φ(h, p), {word}, one layer, µs", (f"B = {b}" for b in batches))
    table.columns[0].header = "p, format"
    found = {(p.format, p.batch): p for p in answers.phi}
    order = sorted(
        {(p.bits_stored if p.bits_stored is not None else 99.0, p.format) for p in answers.phi}
    )
    for bits, name in order:
        values = [getattr(found[name, b], word) if (name, b) in found else None for b in batches]
        if any(q is not None and q.value is not None for q in values):
            label = f"{bits:.3f}" if bits < 99 else "?"
            table.add_row(f"{label} {name}", *(cell_of(q, US) for q in values))
    return table


def some(batches: Iterable[int]) -> list[int]:
    """A few of the batches, the first and last among them."""
    ordered = sorted(batches)
    if len(ordered) <= SHOWN_BATCHES:
        return ordered
    last = len(ordered) - 1
    return [ordered[round(i * last / (SHOWN_BATCHES - 1))] for i in range(SHOWN_BATCHES)]


def _slopes(found: Sequence[Slope]) -> Iterator[Text]:
    shown = some({s.batch for s in found})
    for s in found:
        if s.batch == shown[0] or s.batch == shown[-1]:
            yield Text(
                f"dφ/dp {'exposed' if s.path == 'fused' else 'unfused'}, {s.family}, B = {s.batch}: "
                f"{plain(s.per_bit_s, US)} µs per bit between {s.formats[0]} and {s.formats[1]}.",
                style="dim",
            )
    if not found:
        yield Text(
            "dφ/dp: absent, no two formats differ in their bits alone (symmetric integers of 4 and 8 bits, "
            "one group size).",
            style="dim",
        )


def _cor(answers: Answers) -> Iterator[Text]:
    yield Text("COR over the batch (the paper: it never rises)", style="bold")
    for curve in answers.cor:
        first, last = curve.points[0], curve.points[-1]
        yield Text(
            f"{curve.format} {curve.path}: {plain(first[1])} at B = {first[0]}, {plain(last[1])} at "
            f"B = {last[0]}; {curve.verdict}."
        )


def _theories(answers: Answers, kind: Kind) -> Iterator[Text]:
    yield Text("Both theories, fitted over the batch", style="bold")
    for (name, path, by), found in answers.theories.items():
        what = f"{name} {path}, {by}"
        if not found:
            yield Text(f"{what}: not fitted, no batch has both arms.", style="dim")
        for each in found:
            where = f"{what}, {_kernels(each)}"
            if isinstance(each, Unfitted):
                yield Text(f"{where}: not fitted, {each.reason}.", style="dim")
                continue
            yield Text(f"{where}: {each.verdict}.")
            yield Text(f"  step:  {_fit(each, each.step, kind)}", style="dim")
            yield Text(f"  paper: {_fit(each, each.paper, kind)}", style="dim")


def _kernels(found: Theories | Unfitted) -> str:
    """Which batches a fit is about, and which kernels ran there."""
    best16, arm = found.kernels
    return f"B = {', '.join(map(str, found.batches))} ({arm} against {best16})"


def _no_lowp(answers: Answers) -> Iterator[Text]:
    for sentence in answers.no_lowp:
        yield Text(sentence, style="dim")


def _fit(found: Theories, fit: Fit, kind: Kind) -> str:
    words = f"residual {fit.residual:.1%}, worst {fit.worst:.1%}; as fitted {fit.sign}"
    if not fit.describes:
        words += ", no B*: the form does not describe this hardware"
    elif fit.crosses.value is not None:
        words += f", B* = {plain(fit.crosses)}"
        if fit.crosses.value > max(found.batches):
            words += f" (beyond B = {max(found.batches)}, the largest {kind} of these kernels)"
        elif fit.crosses.value < min(found.batches):
            words += f" (below B = {min(found.batches)}, the smallest {kind} of these kernels)"
    if fit.row_tile is not None:
        whole = fit.row_tile >= max(found.batches)
        words += "; one tile at every batch" if whole else f"; tiles of {fit.row_tile} rows"
    if fit.form == "paper" and fit.sign == "wins_below":
        words += " (as printed; its text has wins_above)"
    return words + "."


def crossings_table(answers: Answers) -> Table:
    """B* with its sign, of every format and path, in time and energy."""
    table = Table(
        title=Text("B*, where best16 / arm crosses 1 (between which batches)"),
        title_justify="left", title_style="bold", box=None, padding=(0, 1, 0, 0),
    )  # fmt: skip
    for name in ("format and path", *BYS):
        table.add_column(name)
    for (name, path, by), found in answers.crossings.items():
        if by == "time" and found.outcomes:
            table.add_row(f"{name} {path}", *_both(found, answers.crossings[name, path, "energy"]))
    for (name, by), found in answers.at_load_crossings.items():
        if by == "time" and found.outcomes:
            energy = answers.at_load_crossings[name, "energy"]
            table.add_row(f"{name} at load†", *_both(found, energy))
    return table


def _both(time: Crossing, energy: Crossing) -> tuple[str, str]:
    return _words(time), _words(energy) if energy.outcomes else "no joules"


def _words(found: Crossing) -> str:
    open_at = ", ".join(f"{x:.0f}" for x in found.undecided)
    return found.words + (
        f"; undecided at {open_at}" if open_at and found.sign != "undecided" else ""
    )


def _at_load(answers: Answers) -> Iterator[Text]:
    """When dequantizing once has repaid itself."""
    for name in dict.fromkeys(a.format for a in answers.at_load):
        mine = [a for a in answers.at_load if a.format == name]
        paid = [a for a in mine if a.steps_fused.value is not None]
        text = (
            f"{name}: dequantizing once at load takes {plain(mine[0].load_s, MS)} ms for all layers"
        )
        if paid:
            text += f", repaid against fused after {plain(paid[0].steps_fused)} steps at B = {paid[0].batch}"
        other = next((a for a in mine if a.steps_unfused.value is not None), None)
        if other is not None:
            text += (
                f", repaid against unfused after {plain(other.steps_unfused)} steps at B = "
                f"{other.batch}"
            )
        yield Text(text + ".", style="dim")
    if answers.at_load_crossings:
        yield Text(
            "† dequantized once, when the model is loaded: its steps and its memory are those of 16 bits, and "
            "B* is against the fused kernel.",
            style="dim",
        )


def scales_table(answers: Answers) -> Table:
    """N* from t0 and c, at a few batches."""
    batches = some({s.batch for s in answers.scales})
    table = Table(
        title=Text("N*: from how many weights on low bits pay, of t0 and c of the profile alone"),
        title_justify="left", title_style="bold", box=None, padding=(0, 2, 0, 0),
    )  # fmt: skip
    for name in ("format, path, launch", *(f"B = {b}" for b in batches)):
        table.add_column(name)
    for key in dict.fromkeys((s.format, s.path, s.eager) for s in answers.scales):
        found = {s.batch: s for s in answers.scales if _key(s) == key}
        cells = [_scale(found[b]) if b in found else "–" for b in batches]
        table.add_row(f"{key[0]}\n{key[1]}, {'eager' if key[2] else 'graph'}", *cells)
    return table


def _scale(s: CriticalScale) -> str:
    """Its sign, N* with its interval, and which sizes are not decided, a line each."""
    lines: list[str] = [s.sign]
    if s.params.value is not None:
        lines.append(sizes_words(s.params))
    if s.sign != "undecided":
        for low, high in s.undecided:
            if low == s.reach[0]:
                lines.append(f"? below {size_word(high)}")
            elif high == s.reach[1]:
                lines.append(f"? above {size_word(low)}")
            else:
                lines.append(f"? {size_word(low)} to {size_word(high)}")
    return "\n".join(lines)


def sizes_words(q: Quantity) -> str:
    """N* and its interval."""
    low, high = (size_word(end) for end in (q.low, q.high))
    return f"{size_word(q.value)} ({low}–{high})"


def _scales_note(answers: Answers) -> Iterator[Text]:
    """What the table of N* rests on."""
    if not answers.scales:
        return
    first = answers.scales[0]
    low, high = (size_word(n) for n in first.reach)
    why = sorted({s.params.reason for s in answers.scales if s.sign == "undecided"})
    yield Text(
        f"For steps of {first.calls} operators, as here; weights of these, in millions (M) and billions (B), "
        f"looked for from {low} to {high}. ?: these sizes are not decided."
        f"{' Undecided: ' if why else ''}{'; '.join(why)}{'.' if why else ''}",
        style="dim",
    )


def _key(s: object) -> tuple[str, str, bool]:
    return (s.format, s.path, s.eager)  # type: ignore[attr-defined]


def _family_scales(answers: Answers, book: Book) -> Iterator[Text]:
    """N* on real layer tables, where a family crosses."""
    crossed = False
    for each in answers.maps:
        for family, batch, found in each.scales(book.kind):
            if found.at:
                crossed = True
                yield Text(
                    f"{each.format} {each.path}, {'eager' if each.eager else 'graph'}, {family}, "
                    f"B = {batch}, on its layer tables: {found.words} weights.",
                    style="dim",
                )
    cells = [c for each in answers.maps for c in each.cells if c.ratio.value is not None]
    if cells and not crossed:
        undecided = sum(c.outcome == "undecided" for c in cells)
        yield Text(
            f"On the layer tables of the model families there is no decided crossing within a family; "
            f"{undecided} of {len(cells)} cells undecided.",
            style="dim",
        )


def map_table(profile: Profile, found: TrapMap) -> Table:
    """Models by batches."""
    what = "time" if found.by == "time" else "energy"
    launch = "eager" if found.eager else "graph"
    table = plain_table(
        f"{found.format} {found.path}, {launch}: {what} of best16 over it, per model and batch",
        (str(b) for b in found.batches),
    )
    table.columns[0].header = "model \\ B"
    for model in found.models:
        cells = [found.at(model.name, b) for b in found.batches]
        name = model.name + ("" if cells[0] is None or cells[0].fits16 is not False else "!")
        style = "bold" if model.name == profile.workload.model else ""
        table.add_row(Text(name, style=style), *(_cell(c) for c in cells))
    return table


def _map_check(found: TrapMap) -> Iterator[Text]:
    """How much is decided; the own model, extrapolated as the others are, against its measured layer."""
    yield Text(f"{found.decided[0].upper()}{found.decided[1:]}.", style="dim")
    own = [c for c in found.cells if c.measured and c.extrapolated.value is not None]
    if own:
        each = [
            f"{c.extrapolated.value:.2f} and {c.ratio.value:.2f} at B = {c.batch}"
            for c in own
            if c.ratio.value is not None
        ]
        yield Text(
            f"{own[0].model.name}, extrapolated as the others are, and as the profile has it: "
            f"{', '.join(each)}.",
            style="dim",
        )


def _cell(cell: Cell | None) -> Text:
    if cell is None or cell.ratio.value is None:
        return Text("–", style="dim")
    mark, style = MARKS[cell.outcome]
    return Text(f"{mark}{cell.ratio.value:.2f}{'°' if cell.beyond else ''}", style=style)


def _map_legend(book: Book, maps: Sequence[TrapMap]) -> Text:
    words = (
        f"+ low bits pay, - they cost (the trap), ? undecided at {100 * book.confidence:.0f} %. Models other "
        "than the profile's are extrapolated from its operators; ° one of their operators is over twice as "
        "large, or under half as small, as any measured. lm_head stays in 16 bits and is left out."
    )
    cells = [c for m in maps for c in m.cells]
    if any(c.fits16 is False for c in cells):
        words += (
            " ! 16-bit weights do not fit this device's memory: a trap there cannot be escaped."
        )
    none = sorted({c.model.name for c in cells if c.fits_arm is False})
    if none:
        words += f" Not even the quantized weights fit for {', '.join(none)} in some format."
    if any(c.fits16 is None for c in cells):
        words += " The device's memory is not known."
    return Text(words, style="dim")


def hops_table(answers: Answers) -> Table:
    """Time and energy of a chain of hops."""
    q = answers.questions
    first = answers.chains[0] if answers.chains else None
    table = plain_table(
        f"{q.hops} hops of {q.tokens_per_hop} tokens at batch {q.batch}, extrapolated from one layer",
        ("time, s", "of it launch, s", "energy, J", f"token cost over\nbatch {first.amortised_at}"
         if first else "not amortised"),
    )  # fmt: skip
    table.columns[0].header = "arm"
    seen: set[object] = set()
    for chain in answers.chains:
        name = "best16" if chain.role == "best16" else f"{chain.format} {chain.role}"
        key = (name, chain.time_s.value)
        if key not in seen:
            seen.add(key)
            label = f"{name} ({chain.format})" if chain.role == "best16" else name
            table.add_row(
                label, cell_of(chain.time_s), cell_of(chain.launch_s), cell_of(chain.energy_j),
                cell_of(chain.not_amortised),
            )  # fmt: skip
    return table


def _hop_notes(answers: Answers) -> Iterator[Text]:
    words = {"launch_s": "launch share", "energy_j": "energy"}
    if answers.chains:
        words["not_amortised"] = f"token cost over batch {answers.chains[0].amortised_at}"
    for name, word in words.items():
        reasons = {
            getattr(c, name).reason for c in answers.chains if getattr(c, name).value is None
        }
        for reason in sorted(reasons):
            yield Text(f"No {word}: {reason}.", style="dim")


def fidelity_table(answers: Answers, fidelity: Fidelity) -> Table:
    """Errors over layers and hops, and the law."""
    layers = fidelity.shape.layers
    shown = [d for d in sorted({r.layers for r in fidelity.rows}) if d in (1, layers) or d > layers]
    table = plain_table(
        "Relative error of the chain against 16 bits, after so many layers or hops",
        (
            *(
                f"{d // layers} hop{'s' if d > layers else ''}" if d >= layers else f"{d} layer"
                for d in shown
            ),
        ),
    )
    table.columns[0].header = "format, weights"
    for name, distribution in answers.laws:
        mine = {
            r.layers: r for r in fidelity.rows if (r.format, r.distribution) == (name, distribution)
        }
        cells = [error_of(mine[d], fidelity.kind) if d in mine else None for d in shown]
        table.add_row(f"{name}\n  {distribution}", *(cell_of(q) for q in cells))
    return table


def _laws(answers: Answers) -> Iterator[Text]:
    for (name, distribution), law in answers.laws.items():
        off = "" if law.form is None else f", off by {law.residual:.0%}"
        yield Text(f"{name}, {distribution}: error after d layers {law.words}{off}.", style="dim")


def _fidelity_note(fidelity: Fidelity) -> Text:
    s = fidelity.shape
    makers = ", ".join(sorted({r.implementation for r in fidelity.rows}))
    return Text(
        f"{fidelity.kind}: {s.layers} random decoder layers of width {s.hidden} at a context of one token, "
        f"{len(fidelity.seeds)} seeds, products by {makers}; a hop passes through all of them again. "
        f"Unrelated vectors are 1.41 apart. A proxy for accuracy, no more.",
        style="dim",
    )


def indices_table(answers: Answers) -> Table:
    """The paper's indices."""
    w, q = answers.questions.weights, answers.questions
    trust = "accuracy" if q.accuracy is not None else "proxy"
    table = plain_table(
        f"Indices at batch {q.batch}, 16 bits = 1",
        (
            f"TSI\n{trust}",
            "SSI\nenergy",
            "ESI\nspeed",
            f"SI, weights\n{w.trust:.2g}, {w.environment:.2g}, {w.economy:.2g}",
        ),
    )
    table.columns[0].header = "p, format"
    for row in answers.indices:
        label = "?" if row.bits_stored is None else f"{row.bits_stored:.3f}"
        table.add_row(
            f"{label} {row.format} {row.path}", cell_of(row.trust), cell_of(row.environment),
            cell_of(row.economy), cell_of(row.si),
        )  # fmt: skip
    return table


def _trust_note(answers: Answers, fidelity: Fidelity | None) -> Iterator[Text]:
    """Of what the trust of the table is a proxy."""
    q = answers.questions
    if q.accuracy is not None or fidelity is None:
        return
    found = next((f for i in answers.indices if (f := error_at(fidelity, i.format, q.hops))), None)
    if found is not None:
        row, _ = found
        fewer = f", the most measured of the {q.hops} asked for" if row.hops < q.hops else ""
        yield Text(
            f"TSI is 1 - the chain's error after {row.hops} passes of one token through its "
            f"{fidelity.shape.layers} layers ({row.layers} layers{fewer}): numerical drift over depth, a proxy "
            f"for accuracy. The {q.tokens_per_hop} tokens of a hop are not in it, nor KV cache or sampling.",
            style="dim",
        )


def _trap_steps(answers: Answers) -> Iterator[Text]:
    for step in answers.trap_steps:
        low, high = step.formats
        if step.family:
            text = f"dSI/dp, {step.family}, {low} to {high}: {plain(step.slope)} per bit, {step.outcome}"
        else:
            text = (
                f"Step from 16 bits to {low} ({step.bits[0]:.4g}; other things change too, so no derivative): "
                f"SI(16) - SI = {plain(step.slope, step.bits[1] - step.bits[0])}, {step.outcome}"
            )
        if step.slope.kind == "imported":
            text += "; imported, it holds a table of accuracies"
        if step.slope.low is None:
            text += f"; no interval: {step.slope.reason}"
        yield Text(f"{text}.", style="dim")
    if answers.trap_steps and not any(step.family for step in answers.trap_steps):
        yield Text(
            "dSI/dp: absent, no two formats differ in their bits alone (symmetric integers of 4 and 8 bits, "
            "one group size).",
            style="dim",
        )
    for reason in sorted({row.si.reason for row in answers.indices if row.si.value is None}):
        yield Text(f"No SI: {reason}.", style="dim")


def plain(q: Quantity, scale: float = 1.0) -> str:
    """A value and its interval on one line, to three digits."""
    if q.value is None:
        return "–"
    text = f"{q.value * scale:.3g}"
    if q.low is None or q.high is None or q.low == q.high:
        return text
    return f"{text} ({q.low * scale:.3g} to {q.high * scale:.3g})"

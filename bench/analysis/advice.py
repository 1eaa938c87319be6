"""One paragraph that one can act on: which format and path, by how much, how sure, and what would change it.

Nothing here is computed: it reads what the other modules found, and says it in words. Options that beat 16
bits for certain come first, by the lower end of their interval, so that a sure saving goes before a larger
one that may be none. Every other whose interval reaches the named one's is said to be tied with it, and only
where every option loses for certain is 16 bits advised. In energy, paths that were timed but have no joules are
no options; they are named with their times. What is cheap need not be right: what is known of the
named format's accuracy is said with it, or that nothing is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bench.analysis.compounding import error_at
from bench.analysis.crossing import Crossing
from bench.analysis.doubts import cell_sentence
from bench.analysis.indices import SIXTEEN
from bench.analysis.low_precision import ratio as ratio_of
from bench.analysis.replicates import Book
from bench.analysis.verdict import PATHS, By, Path, outcome
from profiles.fidelity import Fidelity
from profiles.schema import Comparison, Profile, Quality, Quantity
from profiles.shapes import ModelShape

LOWP = " (activations quantized too)"
UNKNOWN_ACCURACY = "The accuracy of {} was not measured here."
BEFORE_ACTING = {
    "modelled": "This comes from a model, not from a clock: measure before you rely on it.",
    "simulated": "These times are planted, and say nothing of any real machine.",
    "imported": "Others measured this, on their machine.",
}


@dataclass(frozen=True)
class Option:
    """A format and path at the batch in question; lowp has no phi, and so no quality of one."""

    format: str
    path: Path
    ratio: Quantity
    quality: Quality | None


def advise(
    book: Book,
    batch: int,
    comparisons: Sequence[Comparison],
    crossings: Mapping[tuple[str, Path, By], Crossing],
    shape: ModelShape | None,
    accuracy: Mapping[tuple[str, Path], str] | None = None,
) -> str:
    """The paragraph.

    Args:
        book: of the profile.
        batch: in question.
        comparisons: of the layer at that batch, one per format.
        crossings: B* per format and path, in time and energy.
        shape: of the profile's model; None where this checkout does not know it.
        accuracy: a sentence per format and path on what is known of it (accuracy_sentence).
    """
    profile = book.profile
    by: By = "energy" if any(_known(book, c, "energy") for c in comparisons) else "time"
    options = sorted(
        (
            Option(c.format, path, q, _quality(c, path))
            for c in comparisons
            for path in PATHS
            if (q := ratio_of(book, c, path, by)).value is not None
        ),
        key=_order,
    )
    where = f"{profile.workload.model} at batch {batch} on {profile.device.name} ({profile.kind})"
    if not options:
        return f"For {where} nothing can be advised: no quantized arm was compared with 16 bits."
    measure = "energy of the linear operators" if by == "energy" else "time of the linear operators"
    unweighed = _without_joules(book, comparisons) if by == "energy" else []
    known = " with joules" if unweighed else ""
    sentences = []
    sure = f"{100 * profile.protocol.confidence:.0f} %"
    best = options[0]
    outcomes = [outcome(o.ratio) for o in options]
    right = (accuracy or {}).get((best.format, best.path), UNKNOWN_ACCURACY.format(best.format))
    change = _change(best, crossings.get((best.format, best.path, by)), batch)
    if outcomes[0] == "wins":
        sentences.append(
            f"For {where}, {best.format} with the {best.path} kernel"
            f"{LOWP if best.path == 'lowp' else ''} costs the least {measure}"
            f"{' of all paths' + known if known else ''}: "
            f"{_saving(best.ratio, sure)} less than the best 16-bit kernel{_ties(options)}."
        )
        sentences += [right, *change]
    elif set(outcomes) == {"loses"}:
        costs = f"every quantized path{known} costs more {measure}"
        least = f"({best.format}, {best.path}) by {_excess(best.ratio, sure)}"
        if _fits(profile, shape) is False:
            sentences.append(f"For {where}, {costs} than 16 bits would, the least {least}.")
        else:
            sentences.append(f"For {where}, stay with 16 bits: {costs}, the nearest {least}.")
        sentences += change
    else:
        lost = [o for o, found in zip(options, outcomes, strict=True) if found == "loses"]
        rest = f" {_names(lost)} cost{'s' if len(lost) == 1 else ''} more." if lost else ""
        more = " More blocks would narrow that." if profile.kind == "measured" else ""
        sentences.append(
            f"For {where} nothing is decided: the best quantized path{known} ({best.format}, {best.path}) "
            f"cannot be told apart from 16 bits in {measure} ({_interval(best.ratio)} of best16 over "
            f"it).{rest}{more}"
        )
        sentences += [right, *change]
    sentences += unweighed
    sentences.append(cell_sentence(best.quality) if best.quality else "")
    if by == "time":
        sentences.append(
            "There are no joules in this profile, so this is about time alone "
            f"({profile.energy.reason or 'none were measured'})."
        )
    sentences.append(BEFORE_ACTING.get(profile.kind, ""))
    sentences.append(memory_sentence(profile, shape))
    if set(outcomes) == {"loses"} and _fits(profile, shape) is False:
        sentences.append("The trap cannot be escaped by using 16 bits.")
    return " ".join(s for s in sentences if s)


def accuracy_sentence(
    name: str,
    fidelity: Fidelity | None,
    hops: int,
    accuracy: Mapping[str, Quantity] | None,
    path: Path = "fused",
    activation_error: float | None = None,
) -> str:
    """What is known of a format's accuracy: from a user's table, else from the chain of layers, or nothing.

    The chain multiplies 16-bit activations, so it says nothing of what lowp does to them; of that one product's
    error is known (`activation_error`, over the largest |y|).
    """
    if path == "lowp" and accuracy is None:
        known = (
            f"; quantizing them changes one product by up to {activation_error:.1%} of its largest value"
            if activation_error is not None
            else ""
        )
        return f"The accuracy of {name} with quantized activations was not measured here{known}."
    if accuracy is not None:
        q, base = accuracy.get(name), accuracy[SIXTEEN]
        if q is None:
            return f"The table of accuracies has no row for {name}."
        return (
            f"The accuracy of {name} is {q.value:.3g}, that of 16 bits {base.value:.3g} (imported)."
        )
    found = None if fidelity is None else error_at(fidelity, name, hops)
    if fidelity is None or found is None or found[1].value is None:
        return UNKNOWN_ACCURACY.format(name)
    row, error = found
    return (
        f"The chain of {name} is off by {error.value:.2g} after {row.hops} hop{'s' if row.hops > 1 else ''} "
        f"({fidelity.kind}; random layers, a proxy for accuracy)."
    )


def _known(book: Book, c: Comparison, by: By) -> bool:
    return any(ratio_of(book, c, path, by).value is not None for path in PATHS)


def _without_joules(book: Book, comparisons: Sequence[Comparison]) -> list[str]:
    """A sentence for each path that has a time but no joules; windows of lowp have to be asked for."""
    return [
        f"{c.format} {path} has no joules here; in time best16 over it is {time.value:.3g} "
        f"({_interval(time)}).{' Only --energy full measures them.' if path == 'lowp' else ''}"
        for c in comparisons
        for path in PATHS
        if (time := ratio_of(book, c, path, "time")).value is not None
        and ratio_of(book, c, path, "energy").value is None
    ]


def _quality(c: Comparison, path: Path) -> Quality | None:
    if path == "lowp":
        return None
    return c.quality_exposed if path == "fused" else c.quality_unfused


def _order(o: Option) -> tuple[int, float]:
    """Sure winners first, by their lower end; then undecided ones and losers, by their value."""
    found = outcome(o.ratio)
    if found == "wins":
        return 0, -(o.ratio.low or 0)
    return (1 if found == "undecided" else 2), -(o.ratio.value or 0)


def _ties(options: Sequence[Option]) -> str:
    """Others whose interval reaches into the best one's, or that have none."""
    best = options[0].ratio
    near = [
        o
        for o in options[1:]
        if o.ratio.high is None or best.low is None or o.ratio.high >= best.low
    ]
    return f"; {_names(near)} cannot be told apart from it" if near else ""


def _names(options: Sequence[Option]) -> str:
    names = [f"{o.format} {o.path}" for o in options]
    return " and ".join(part for part in (", ".join(names[:-1]), names[-1]) if part)


def _saving(q: Quantity, sure: str) -> str:
    """1 - 1 / ratio, with its interval, in per cent."""
    assert q.value is not None
    if q.low is None or q.high is None:
        return _percent(1 - 1 / q.value)
    return _percent(1 - 1 / q.value, sure, 1 - 1 / q.low, 1 - 1 / q.high)


def _excess(q: Quantity, sure: str) -> str:
    assert q.value is not None
    if q.low is None or q.high is None or q.low <= 0:
        return _percent(1 / q.value - 1)
    return _percent(1 / q.value - 1, sure, 1 / q.high - 1, 1 / q.low - 1)


def _percent(value: float, sure: str = "", low: float = 0.0, high: float = 0.0) -> str:
    interval = f" ({sure} interval {100 * low:.0f} to {100 * high:.0f} %)" if sure else ""
    return f"{100 * value:.0f} %{interval}"


def _interval(q: Quantity) -> str:
    return "no interval" if q.low is None else f"{q.low:.3g} to {q.high:.3g}"


def _change(best: Option, found: Crossing | None, batch: int) -> list[str]:
    """What would change the answer: the next crossing on either side of the batch."""
    if found is None:
        return []
    above = [q for q in found.at if (q.high or 0) > batch]
    below = [q for q in found.at if (q.low or 0) < batch]
    if outcome(best.ratio) == "undecided":
        known = [
            (word, [f"{x:.0f}" for x, each in found.outcomes if each == word])
            for word in ("wins", "loses")
        ]
        decided = [f"{word} at batch {', '.join(at)}" for word, at in known if at]
        return [f"Where it is decided it {' and '.join(decided)}."] if decided else []
    other = "16 bits win" if outcome(best.ratio) == "wins" else "it would win"
    parts = []
    if above:
        parts.append(f"from a batch between {above[0].low:.0f} and {above[0].high:.0f} on {other}")
    if below and not above:
        parts.append(f"below a batch between {below[-1].low:.0f} and {below[-1].high:.0f} {other}")
    reach = [x for x, _ in found.outcomes]
    if parts:
        text = f"What would change it: {'; '.join(parts)}."
    elif len(reach) > 1:
        text = f"No decided batch of {reach[0]:.0f} to {reach[-1]:.0f} changes that."
    else:
        text = "The profile holds this batch only; others may change that."
    open_at = ", ".join(f"{x:.0f}" for x in found.undecided)
    return [text, f"Undecided: batch {open_at}."] if open_at else [text]


def _fits(profile: Profile, shape: ModelShape | None) -> bool | None:
    """Whether 16-bit weights fit the device; None where its memory, or the model, is not known."""
    memory = profile.device.memory_bytes
    return None if shape is None or memory is None else 2 * shape.params <= memory


def memory_sentence(profile: Profile, shape: ModelShape | None) -> str:
    """Whether 16 bits are a choice at all."""
    memory = profile.device.memory_bytes
    if shape is None or memory is None:
        return "Whether 16 bits fit this device at all is not known here."
    sizes = f"{2 * shape.params / 2**30:.1f} GiB of weights, {memory / 2**30:.1f} GiB of memory"
    if _fits(profile, shape):
        return f"16 bits fit this device ({sizes}; KV cache and activations not counted)."
    return f"16 bits do not fit this device ({sizes})."

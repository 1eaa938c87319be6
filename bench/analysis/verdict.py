"""One plain sentence per format: from which batch to which the quantized kernels beat best16.

A verdict reads the speed-ups, or the ratios of joules, of a profile's comparisons over batches. A batch is
won when the whole interval of best16 / arm lies above 1, lost when it lies below, and undecided when it
holds 1 or when there is no interval. The sign of the crossing is one of METHOD's words:

    always, never        won or lost at every decided batch
    wins_below           won at small batches, lost at larger ones
    wins_above           lost at small batches, won at larger ones
    several crossings    anything else
    undecided            no batch is decided

Nothing is said about batches that were not measured.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

from profiles.schema import LAYER, Comparison, Implementation, Kind, Quantity, absent

Sign = Literal["always", "never", "wins_below", "wins_above", "several crossings", "undecided"]
Outcome = Literal["wins", "loses", "undecided"]
Path = Literal["fused", "unfused", "lowp"]
By = Literal["time", "energy"]
PATHS: tuple[Path, ...] = ("fused", "unfused", "lowp")


@dataclass(frozen=True)
class Verdict:
    """What the speed-ups of one format and path say over batches.

    Attributes:
        format: weight format.
        path: "fused" or "unfused"; `lowp` has no dequantization and no sentence here.
        sign: how winning depends on the batch, over the decided batches.
        outcomes: (batch, outcome) in order of batch.
        sentence: the same in words, naming what it is compared with.
    """

    format: str
    path: Path
    sign: Sign
    outcomes: tuple[tuple[int, Outcome], ...]
    sentence: str


def verdicts(
    comparisons: Iterable[Comparison], operator: str = LAYER, by: By = "time"
) -> tuple[Verdict, ...]:
    """A verdict per format and path, for one operator over its batches, in order of appearance.

    By energy only the batches count whose joules were measured.

    Raises:
        ValueError: two comparisons have the same format and batch (launch modes, cache states): say
            which by passing only those.
    """
    by_format: dict[str, dict[int, Comparison]] = {}
    for comparison in comparisons:
        if comparison.operator == operator and (by == "time" or _has_joules(comparison)):
            batches = by_format.setdefault(comparison.format, {})
            if comparison.batch in batches:
                raise ValueError(
                    f"{comparison.format} at batch {comparison.batch} is compared more than once; "
                    "pass the comparisons of one launch mode and one cache state."
                )
            batches[comparison.batch] = comparison
    result = []
    for weight_format, batches in by_format.items():
        ordered = [batches[batch] for batch in sorted(batches)]
        if any(c.fused is not None for c in ordered):
            result.append(_verdict(weight_format, "fused", ordered, by))
        if any(c.unfused is not None for c in ordered):
            result.append(_verdict(weight_format, "unfused", ordered, by))
    return tuple(result)


def outcome(speedup: Quantity) -> Outcome:
    """Whether an interval of best16 / arm lies above 1, below 1, or neither."""
    if speedup.low is None or speedup.high is None or speedup.low <= 1 <= speedup.high:
        return "undecided"
    return "wins" if speedup.low > 1 else "loses"


def sign(outcomes: Sequence[Outcome]) -> Sign:
    """The sign of outcomes in order of batch; undecided ones are skipped."""
    runs = [key for key, _ in groupby(o for o in outcomes if o != "undecided")]
    match runs:
        case []:
            return "undecided"
        case ["wins"]:
            return "always"
        case ["loses"]:
            return "never"
        case ["wins", "loses"]:
            return "wins_below"
        case ["loses", "wins"]:
            return "wins_above"
    return "several crossings"


def ratio_of(c: Comparison, path: Path, by: By) -> Quantity:
    """best16 / arm of a comparison, in time or energy."""
    if path == "lowp":
        joules = absent(
            "a comparison holds no joules of lowp; low_precision.ratio has them", c.kind
        )
        return c.speedup_lowp if by == "time" else joules
    if by == "time":
        return c.speedup_fused if path == "fused" else c.speedup_unfused
    return c.energy_ratio_fused if path == "fused" else c.energy_ratio_unfused


def _has_joules(c: Comparison) -> bool:
    return c.energy_ratio_fused.value is not None or c.energy_ratio_unfused.value is not None


def _verdict(weight_format: str, path: Path, comparisons: Sequence[Comparison], by: By) -> Verdict:
    outcomes = tuple((c.batch, outcome(ratio_of(c, path, by))) for c in comparisons)
    found = sign([o for _, o in outcomes])
    words = _words(found, outcomes, _baseline(comparisons), comparisons[0].kind)
    sentence = f"{'In joules ' if by == 'energy' else ''}{weight_format} {path} {words}."
    return Verdict(weight_format, path, found, outcomes, sentence)


def _words(found: Sign, outcomes: Sequence[tuple[int, Outcome]], baseline: str, kind: Kind) -> str:
    """Everything after "int4-g128 fused"."""
    runs = [
        (key, [batch for batch, _ in group])
        for key, group in groupby((o for o in outcomes if o[1] != "undecided"), key=lambda o: o[1])
    ]
    open_batches = [batch for batch, o in outcomes if o == "undecided"]
    match found:
        case "undecided":
            return f"is undecided against {baseline} at {_batches(open_batches)}"
        case "always":
            text = f"beats {baseline} at {_every(outcomes, open_batches, kind)}"
        case "never":
            text = f"loses to {baseline} at {_every(outcomes, open_batches, kind)}"
        case "wins_below" | "wins_above":
            verbs = ("beats", "loses") if found == "wins_below" else ("loses to", "wins")
            small, large = (batches for _, batches in runs)
            below = (
                f"for B ≤ {small[-1]}"
                if _clear(open_batches, 0, small[-1])
                else f"at {_batches(small)}"
            )
            above = (
                f"for B ≥ {large[0]}" if _clear(open_batches, large[0]) else f"at {_batches(large)}"
            )
            text = f"{verbs[0]} {baseline} {below} and {verbs[1]} {above}"
        case _:
            spans = ", ".join(f"{key} at {_batches(batches)}" for key, batches in runs)
            text = f"crosses {baseline} {len(runs) - 1} times: {spans}"
    return text + (f"; undecided at {_batches(open_batches)}" if open_batches else "")


def _clear(open_batches: Sequence[int], low: int, high: float = math.inf) -> bool:
    """Whether no undecided batch lies between low and high, so that one may say "all" of them."""
    return not any(low <= batch <= high for batch in open_batches)


def _every(outcomes: Sequence[tuple[int, Outcome]], open_batches: Sequence[int], kind: Kind) -> str:
    batches = [batch for batch, _ in outcomes if batch not in open_batches]
    if len(batches) == 1:
        return f"B = {batches[0]}"
    which = "every decided batch" if open_batches else f"every {kind} batch"
    return f"{which}, B = {batches[0]} to {batches[-1]}"


def _batches(batches: Sequence[int]) -> str:
    return "B = " + ", ".join(str(batch) for batch in batches)


def _baseline(comparisons: Sequence[Comparison]) -> str:
    """What best16 was, by name: one kernel, or each of those that were fastest at some batch."""
    kernels = dict.fromkeys(c.best16 for c in comparisons if c.best16 is not None)
    return " or ".join(dict.fromkeys(_name(k) for k in kernels)) or "a 16-bit arm"


def _name(kernel: Implementation) -> str:
    return f"{kernel.weight_format} ({kernel.arm}, {kernel.implementation})"

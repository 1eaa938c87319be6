"""What is held against a profile, and the words for it: how many, how large, and at which batches.

from bench.analysis.findings import Finding, share_of
Finding("failed", "serious", f"{share_of(3, 20, 'row')} failed.", "They matter.", "Mend them.")
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from profiles.files import printable

Severity = Literal["serious", "caution", "note"]
SEVERITIES: tuple[Severity, ...] = ("serious", "caution", "note")
CHOSEN_BATCHES = 3  # of those that have a problem, so many are named


@dataclass(frozen=True)
class Finding:
    """One kind of problem with a profile.

    Attributes:
        topic: a word from the module's table.
        severity: how much it weighs.
        found: what was found, with numbers; a sentence.
        why: why it matters; a sentence.
        do: what to do about it; a sentence.
        affected: how many rows, samples or φ have it; None where that is not counted.
        of: how many there are.
    """

    topic: str
    severity: Severity
    found: str
    why: str
    do: str
    affected: int | None = None
    of: int | None = None


def share_of(count: int, total: int, what: str, verb: str = "") -> str:
    """As in "3 of 20 rows (15 %) are"; φ has no plural here, and "are" becomes "is" for one."""
    share = count / total if total else 0.0
    text = f"{count} of {total} {what if what == 'φ' else what + 's'} ({percent(share)})"
    verb = {"are": "is", "were": "was", "come": "comes"}.get(verb, verb) if count == 1 else verb
    return f"{text} {verb}" if verb else text


def percent(share: float) -> str:
    """As in "15 %" or "0.3 %"."""
    if 0 < share < 0.001:
        return "< 0.1 %"
    return f"{share * 100:.2g} %" if share < 0.1 else f"{share * 100:.0f} %"


def number(count: int, what: str, plural: str | None = None) -> str:
    """As in "1 row" or "2 rows"."""
    return f"{count} {what if count == 1 else plural or what + 's'}"


def listed(words: Iterable[str], limit: int = 6) -> str:
    """The words with commas; beyond `limit` only how many more there are."""
    words = list(words)
    more = f" and {len(words) - limit} more" if len(words) > limit else ""
    return ", ".join(words[:limit]) + more


def at_batches(batches: Iterable[int] | Counter[int]) -> str:
    """Where, by batch: those with most, and how many each."""
    counts = Counter(batches).most_common()
    if len(counts) == 1:
        return f", {'all ' if counts[0][1] > 1 else ''}at batch {counts[0][0]}"
    shown = ", ".join(f"{batch} ({count})" for batch, count in counts[:CHOSEN_BATCHES])
    return f", {'most ' if len(counts) > CHOSEN_BATCHES else ''}at batch {shown}"


def size(count: int) -> str:
    """Bytes as in "1.5 MiB"."""
    return f"{count / 2**20:.3g} MiB" if count < 2**30 else f"{count / 2**30:.3g} GiB"


def shortened(text: str) -> str:
    """Words of someone else's, fit to stand within a sentence of ours."""
    return printable(text.strip().rstrip("."), 160).rstrip(".")

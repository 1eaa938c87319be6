"""What a profile gives away against itself, in sentences: flags, and stages that cannot be told apart.

A flag is a word at a row; `MEANING` says what to do about it. A stale stage, one that runs the machine code
of another, has no word of its own: its numbers are those of the other stage, so verification refuses it
wherever the two differ (and each stage has a reference of its own). What verification lets through shows
here as two arms that take the same time at every batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from statistics import median

from bench.analysis.pairs import SHORT, THROTTLED
from bench.analysis.run_gate import AUTOCORRELATED_RUN, PROCESSES_DIFFER, SHIFTED_RUN
from bench.analysis.stats import AUTOCORRELATED, SHIFTED
from profiles.schema import LAYER, Comparison, Profile, Quality, Quantity

INDISTINCT = 0.01  # phi exposed over t(bypass) that is as good as none
MEANING = {
    AUTOCORRELATED: "neighbouring blocks depend on each other, so intervals may be short",
    SHIFTED: "the blocks show a trend or a step, so intervals may be short",
    AUTOCORRELATED_RUN: "over the whole run neighbouring blocks depend on each other, so intervals "
    "may be short",
    SHIFTED_RUN: "over the whole run the halves of a process differ, so intervals may be short",
    PROCESSES_DIFFER: "over the whole run processes lie so far apart that intervals are less than half as "
    "wide as they should be: add the spread between processes",
    THROTTLED: "the clock was held down during some samples, so times mix two speeds",
    SHORT: "fewer blocks than planned",
}


def quality_sentence(profile: Profile, paired: bool) -> str:
    """How many comparisons missed their target or are flagged, and how far processes differ; "" without any.

    Args:
        profile: as it was written.
        paired: whether what is printed was resampled from its samples (resampled.py).
    """
    known = [c for c in profile.comparisons if c.converged is not None]
    if not known:
        return ""
    open_ones = sum(c.converged is False for c in known)
    flagged = sum(bool(c.flags) for c in known)
    within = "of blocks within processes, the spread between them not included"
    if paired:
        intervals = (
            "intervals of φ, COR, speed-ups, B*, the map, indices and advice in time are resampled over "
            f"processes too; those in the profile are {within}"
        )
    else:
        intervals = f"intervals of φ, speed-ups and B* are {within}"
    text = f"{open_ones} of {len(known)} comparisons not converged, {flagged} flagged; {intervals}"
    spreads = [
        spread
        for c in known
        for q, quality in (
            (c.phi_exposed_s, c.quality_exposed),
            (c.phi_unfused_s, c.quality_unfused),
        )
        if (spread := _spread(q, quality)) is not None
    ]
    if spreads:
        text += (
            f" (half the range of φ over processes is {median(spreads):.2g} times the half-width of "
            f"{'that' if paired else 'its'} interval in the middle, {max(spreads):.2g} times at most)"
        )
    return f"{text}."


def _spread(q: Quantity, quality: Quality) -> float | None:
    """Half the range of the medians of processes over half the width of the interval."""
    if quality.between_process_spread_s is None or q.low is None or q.high is None:
        return None
    half = (q.high - q.low) / 2
    return quality.between_process_spread_s / half if half > 0 else None


def cell_sentence(quality: Quality) -> str:
    """What to beware of in one comparison: not converged, or flagged; "" of one that is sound."""
    parts = []
    if quality.converged is False:
        parts.append("it is not converged, its interval of φ is wider than the target")
    parts += [
        f"it is flagged {flag}: {MEANING.get(flag, 'see the samples')}" for flag in quality.flags
    ]
    return f"Beware of this comparison: {'; '.join(parts)}." if parts else ""


def flag_sentences(comparisons: Iterable[Comparison]) -> Iterator[str]:
    """One sentence per flag that any of the comparisons carries, with the formats and batches."""
    rows: dict[str, dict[str, list[int]]] = {}
    for c in comparisons:
        for flag in c.flags:
            rows.setdefault(flag, {}).setdefault(c.format, []).append(c.batch)
    for flag, formats in rows.items():
        where = "; ".join(
            f"{name} at batch {', '.join(map(str, sorted(set(batches))))}"
            for name, batches in formats.items()
        )
        yield f"† {flag}: {MEANING.get(flag, 'see the samples')} ({where})."


def stale_sentences(profile: Profile) -> Iterator[str]:
    """One sentence per format whose bypass may run the machine code of another stage."""
    for name in profile.workload.formats:
        if indistinct(profile, name):
            yield (
                f"STALE? {name}: fused and bypass take the same time at every batch. Either "
                "dequantization is wholly hidden, or both run the same machine code."
            )
        elif wrong_everywhere(profile, name):
            yield (
                f"STALE? {name}: bypass gave wrong results on every operator and batch, as it does "
                "when it runs the machine code of another stage."
            )


def indistinct(profile: Profile, weight_format: str) -> bool:
    """Whether the fused and bypass kernels of a format cannot be told apart at any batch.

    That is so when the layer's phi exposed is within 1 % of t(bypass) at every batch, and its interval
    holds 0 at most of them (one in twenty misses 0 by chance). Dequantization that is wholly hidden looks
    the same: no clock can tell.
    """
    found = [
        c
        for c in profile.comparisons
        if (c.format, c.operator) == (weight_format, LAYER) and c.phi_exposed_s.low is not None
    ]
    small = all(abs(c.cor_exposed.value or 0.0) <= INDISTINCT for c in found)
    zeros = [(c.phi_exposed_s.low or 0.0) <= 0 <= (c.phi_exposed_s.high or 0.0) for c in found]
    return bool(found) and small and sum(zeros) > len(zeros) / 2


def wrong_everywhere(profile: Profile, weight_format: str) -> bool:
    """Whether verification refused every bypass kernel of a format for what it computed."""
    found = [
        row
        for row in profile.rows
        if (row.format, row.arm) == (weight_format, "bypass") and row.operator != LAYER
    ]
    return bool(found) and all(
        row.failure is not None and row.error_vs_reference is not None for row in found
    )

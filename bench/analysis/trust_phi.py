"""How far the values of φ can be trusted: their width, their independence, and how well processes agree.

Nothing here is judged by a bare count. Of healthy values some are flagged and some lie apart by chance, and
a reader who is warned every time stops reading; so counts are held against what a healthy run shows.

    from bench.analysis.trust_phi import examine_phis
    findings = list(examine_phis(profile))
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator

from bench.analysis.findings import Finding, at_batches, percent, share_of
from bench.analysis.run_gate import AUTOCORRELATED_RUN, PROCESSES_DIFFER, SHIFTED_RUN
from bench.analysis.stats import AUTOCORRELATED, SHIFTED
from profiles.schema import Comparison, Profile, Quality, Quantity

CONVERGED_SHARE = 0.9  # a run is stable when this share of its phis met the target width
DOUBLE_SHARE = 0.1  # of phis whose processes lie two intervals apart
DEPENDENT_SHARE = 0.2
CHANCE = 0.01  # false alarms of a test against what a healthy run shows
HEALTHY_FLAGGED = 0.06
HEALTHY_BEYOND_INTERVAL = 0.2  # three processes, 21 to 90 blocks, simulated
HEALTHY_BEYOND_TWICE = 0.004
HEALTHY_BELOW_ZERO = 0.025


def converged_share(profile: Profile) -> tuple[int, int]:
    """Values of phi that met the target width, and how many there are: two per comparison."""
    known = [q.converged for _, q, _ in phis(profile) if q.converged is not None]
    return sum(known), len(known)


def beyond_chance(count: int, of: int, share: float) -> bool:
    """Whether so many or more of so many come by chance in fewer than one healthy run of a hundred.

    Args:
        count: how many have it.
        of: how many there are, taken as independent.
        share: of a healthy run's that have it.
    """
    fewer = sum(
        math.exp(
            math.lgamma(of + 1) - math.lgamma(i + 1) - math.lgamma(of - i + 1)
            + i * math.log(share) + (of - i) * math.log1p(-share)
        )
        for i in range(count)
    )  # fmt: skip
    return count > 0 and 1 - fewer < CHANCE


def examine_phis(profile: Profile) -> Iterator[Finding]:
    """What there is to hold against the values of phi."""
    good, known = converged_share(profile)
    if good < known:
        missed = [c.batch for c, q, _ in phis(profile) if q.converged is False]
        target = profile.protocol.target_half_width
        yield Finding(
            "unconverged",
            "serious" if good < CONVERGED_SHARE * known else "caution",
            f"{share_of(known - good, known, 'φ', 'are')} not known within ±{percent(target)} of t(best16)"
            f"{at_batches(missed)}.",
            f"A run is called stable when {percent(CONVERGED_SHARE)} of its φ are."
            if good < CONVERGED_SHARE * known
            else "Enough of the others are for the run to be called stable.",
            "Read the intervals, not the values; run again on a quiet machine to narrow them.",
            known - good,
            known,
        )
    flagged = [(c, q) for c, q, _ in phis(profile) if set(q.flags) & {AUTOCORRELATED, SHIFTED}]
    if flagged and known:
        beyond = beyond_chance(len(flagged), known, HEALTHY_FLAGGED)
        serious = beyond and len(flagged) > DEPENDENT_SHARE * known
        words = Counter(word for _, q in flagged for word in q.flags)
        kinds = " and ".join(f"{words[w]} {w}" for w in (AUTOCORRELATED, SHIFTED) if words[w])
        yield Finding(
            "dependent",
            "serious" if serious else "caution" if beyond else "note",
            f"{share_of(len(flagged), known, 'φ', 'come')} from blocks that depend on each other or drift: "
            f"{kinds}{at_batches(c.batch for c, _ in flagged)}. A healthy run has about "
            f"{HEALTHY_FLAGGED * known:.0f}.",
            "Their intervals are too narrow." if beyond else "That is no more than chance gives.",
            "Distrust these intervals; look for what changed during the run (heat, a neighbour)."
            if beyond
            else "Nothing, unless one of them is the number that you came for.",
            len(flagged),
            known,
        )
    yield from _whole_run(profile)
    yield from _spread(profile)
    yield from _implausible(profile)


def _whole_run(profile: Profile) -> Iterator[Finding]:
    """What all rows together say, and every one of them carries."""
    every = phis(profile)
    for word, found, do in (
        (
            AUTOCORRELATED_RUN,
            "Over the whole run neighbouring blocks depend on each other",
            "Distrust the intervals; look for what changed during the run (heat, a neighbour).",
        ),
        (
            SHIFTED_RUN,
            "Over the whole run the later half of a process lies elsewhere than the earlier one",
            "Distrust the intervals; look for what changed during the run (heat, a neighbour).",
        ),
        (
            PROCESSES_DIFFER,
            "Over the whole run processes lie much further apart than their blocks explain",
            "Add the spread between processes to every interval, and look for what changed between them.",
        ),
    ):
        having = sum(word in q.flags for _, q, _ in every)
        if having:
            yield Finding(
                "spread" if word == PROCESSES_DIFFER else "dependent",
                "serious",
                f"{found}: {having} φ are concerned.",
                "Their intervals are too narrow, even where no row shows it alone.",
                do,
                having,
                sum(q.converged is not None for _, q, _ in every),
            )


def _spread(profile: Profile) -> Iterator[Finding]:
    ratios = []
    for c, quality, phi in phis(profile):
        half = _half_width(phi)
        if quality.between_process_spread_s is not None and half is not None:
            spread = quality.between_process_spread_s
            ratios.append((spread / half if half else math.inf if spread else 0.0, c.batch))
    wide = [batch for ratio, batch in ratios if ratio > 1]
    double = sum(ratio > 2 for ratio, _ in ratios)
    serious = double > DOUBLE_SHARE * len(ratios)
    if serious or beyond_chance(len(wide), len(ratios), HEALTHY_BEYOND_INTERVAL):
        yield Finding(
            "spread",
            "serious" if serious else "caution",
            f"{share_of(len(wide), len(ratios), 'φ')} moved between processes by more than the half-width "
            f"of the interval, {double} by more than twice that{at_batches(wide)}. "
            f"Chance gives {HEALTHY_BEYOND_INTERVAL * len(ratios):.0f} and "
            f"{HEALTHY_BEYOND_TWICE * len(ratios):.0f}.",
            "The interval describes one run; another run of the same code may land outside it.",
            "Add the spread between processes to the interval before calling a difference real.",
            len(wide),
            len(ratios),
        )


def _implausible(profile: Profile) -> Iterator[Finding]:
    known = [c for c in profile.comparisons if c.phi_exposed_s.high is not None]
    odd = [
        c
        for c in known
        if any(q.high is not None and q.high < 0 for q in (c.phi_exposed_s, c.non_stream_time_s))
    ]
    if beyond_chance(len(odd), len(known), HEALTHY_BELOW_ZERO):
        yield Finding(
            "implausible",
            "caution",
            f"In {share_of(len(odd), len(known), 'comparison')} the fused kernel is faster than its own "
            f"bypass or stream{at_batches(c.batch for c in odd)}.",
            "It does the same and more, so the two are not the same kernel, or ran under other "
            "conditions.",
            "Do not read φ exposed there; compare the machine code of the stages.",
            len(odd),
            len(known),
        )


def phis(profile: Profile) -> list[tuple[Comparison, Quality, Quantity]]:
    """Every phi of a profile, exposed and unfused, with its quality and where it stands."""
    return [
        part
        for c in profile.comparisons
        for part in ((c, c.quality_exposed, c.phi_exposed_s), (c, c.quality_unfused, c.phi_unfused_s))
    ]  # fmt: skip


def _half_width(q: Quantity) -> float | None:
    return None if q.low is None or q.high is None else (q.high - q.low) / 2

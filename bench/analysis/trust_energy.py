"""What there is to hold against the joules of a profile, from the profile itself and from its power trace.

The sensor's gain is in every interval of joules and cancels in ratios. What else makes joules worth less
than they look leaves traces: windows that were refused, throttled or scattered, a sensor that is not like
the published one, idle power that drifts. And the joules can be computed again from the power trace.

    from bench.analysis.trust_energy import examine_energy
    findings = list(examine_energy(profile, again, samples))
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from bench.analysis.findings import (
    Finding,
    at_batches,
    listed,
    number,
    percent,
    share_of,
    shortened,
)
from bench.analysis.trust_samples import CLOCK_RANGE, TOLERANCE, same
from profiles.schema import (
    ArmRow,
    Comparison,
    EnergyCurve,
    EnergyRow,
    Profile,
    Quantity,
)
from profiles.sensors import Traits

if TYPE_CHECKING:
    import pyarrow as pa

    from bench.analysis.energy import WindowEnergy
    from bench.analysis.joules import Joules

REFUSED_SHARE = 0.1  # of windows, beyond which it is no accident
SAMPLING_SHARE = 0.01  # of readings that fail or are late
OTHER_SENSOR = 0.2  # between what was published and what was found
DRIFT_SHARE = 0.1  # of idle power, between before and after; and of the windows that have it
SPREAD = 0.05  # range of the windows of an arm over their mean
WIDE_SPREAD = 0.10  # METHOD section 5 refuses what is beyond
JOULES = ("phi_exposed_j", "phi_unfused_j", "energy_ratio_fused", "energy_ratio_unfused")
WHY = "What is printed is not what the sensor said: the file was edited, or analysed by other code."
ADVICE = "Believe the trace; run bench.power --replay on it at the commit that the profile names."


def examine_energy(
    profile: Profile, again: Joules | str, samples: pa.Table | str
) -> Iterator[Finding]:
    """Everything there is to hold against the joules of a profile.

    Args:
        profile: the profile.
        again: its joules, computed again from its power trace, or why that cannot be; a profile without
            energy rows needs neither.
        samples: of its times, or why there are none.
    """
    energy = profile.energy
    if not energy.rows:
        yield from _none(profile)
        return
    if isinstance(again, str):
        yield _without_trace(profile, again)
    else:
        yield from _recomputed(profile, again)
        yield from _windows(again)
    yield from _impossible(energy.rows)
    yield from _refused(energy.rows)
    yield from _throttled(energy.rows)
    yield from _sampling(profile)
    yield from _sensor(energy.published, energy.characterised, energy.characterised_reason)
    if not isinstance(samples, str):
        yield from _clocks(energy.rows, samples)
    yield from _curves(energy.curves)


def _none(profile: Profile) -> Iterator[Finding]:
    """There are no joules, or some that nothing can have given."""
    found = [
        *(row.energy_j for row in profile.rows),
        *(getattr(c, name) for c in profile.comparisons for name in JOULES),
    ]
    orphans = sum(quantity.value is not None for quantity in found)
    if orphans:
        yield Finding(
            "replayed",
            "serious",
            f"{number(orphans, 'number')} in joules {'is' if orphans == 1 else 'are'} there, but no "
            f"energy windows that gave them.",
            WHY,
            "Do not use these joules.",
            orphans,
        )
    if profile.kind == "measured":
        yield Finding(
            "joules",
            "note",
            f"There are no joules: {shortened(profile.energy.reason)}.",
            "Which side takes less energy is not answered: the faster one need not.",
            "Measure where there is an energy sensor (see bench.power).",
        )


def _without_trace(profile: Profile, why: str) -> Finding:
    return Finding(
        "trace",
        "serious" if profile.kind == "measured" else "caution",
        f"The power trace cannot be had: {why.rstrip('.')}.",
        "No joule here can be computed again, and what the sensor said meanwhile cannot be looked at.",
        "Get the .power.parquet that was written with this profile, and put it beside it.",
    )


Numbers = dict[tuple[object, ...], list[Quantity]]


def _recomputed(profile: Profile, again: Joules) -> Iterator[Finding]:
    """Rows, curves, φ and ratios once more from the trace, held against those of the profile."""
    from bench.analysis.joules import with_joules

    energy = profile.energy
    try:
        with np.errstate(all="ignore"):
            made = with_joules(profile.rows, profile.comparisons, again)
    except (ValueError, ArithmeticError, LookupError) as error:
        found = f"The power trace contradicts itself: {shortened(str(error))}."
        yield Finding("replayed", "serious", found, WHY, ADVICE)
        return
    theirs = _numbers(energy.rows, energy.curves, profile.rows, profile.comparisons)
    ours = _numbers(again.rows, again.curves, *made)
    lone = len(theirs.keys() ^ ours.keys()) + len(energy.rows) - len({_key(r) for r in energy.rows})
    pairs = [
        (a, b)
        for key in theirs.keys() & ours.keys()
        for a, b in zip(theirs[key], ours[key], strict=True)
        if a.value is not None or b.value is not None
    ]
    differing = sum(not same(a, b) for a, b in pairs)
    counted = {_key(r): (r.windows, len(r.refused), r.flags) for r in energy.rows}
    miscounted = [
        r for r in again.rows
        if counted.get(_key(r), ()) not in ((), (r.windows, len(r.refused), r.flags))
    ]  # fmt: skip
    if lone or differing:
        extra = number(lone, "row or curve is", "rows or curves are")
        yield Finding(
            "replayed",
            "serious",
            f"Computed again from the power trace, {share_of(differing, len(pairs), 'number')} in joules, "
            f"watts and their ratios {'comes' if differing == 1 else 'come'} out otherwise"
            f"{f', and {extra} on one side only' if lone else ''}.",
            WHY,
            ADVICE,
            differing,
            len(pairs),
        )
    if miscounted:
        yield Finding(
            "replayed",
            "serious",
            f"Of {share_of(len(miscounted), len(again.rows), 'arm')}, the power trace has another number "
            f"of good, refused or throttled windows{at_batches(r.batch for r in miscounted)}.",
            WHY,
            ADVICE,
            len(miscounted),
            len(again.rows),
        )


def _key(row: EnergyRow) -> tuple[object, ...]:
    return (row.format, row.batch, row.kernel)


def _numbers(
    rows: Iterable[EnergyRow],
    curves: Iterable[EnergyCurve],
    arms: Iterable[ArmRow],
    comparisons: Iterable[Comparison],
) -> Numbers:
    """By what they are of: every quantity that follows from the power trace.

    Arms whose windows all failed have rows without numbers, and nothing in the trace.
    """
    found: Numbers = {
        _key(r): [r.energy_j, r.net_j, r.token_j, r.power_w, r.idle_w, r.layer_s]
        for r in rows
        if r.windows
    }
    found |= {
        ("curve", c.format, c.arm, c.implementation): [c.a_j, c.b_j] for c in curves if c.a_j.value
    }
    found |= {("arm", *r.key): [r.energy_j] for r in arms}
    return found | {("φ", *c.key): [getattr(c, name) for name in JOULES] for c in comparisons}


def _windows(again: Joules) -> Iterator[Finding]:
    """What the windows that count have in common besides their mean."""
    arms = [(batch, arm) for (_, batch, _), arm in again.arms.items() if arm.gross_j.value]
    wide = [(batch, arm.spread) for batch, arm in arms if (arm.spread or 0.0) > SPREAD]
    if wide:
        widest = max(spread or 0.0 for _, spread in wide)
        yield Finding(
            "scattered",
            "serious" if widest > WIDE_SPREAD else "caution",
            f"Of {share_of(len(wide), len(arms), 'arm')}, the windows range over more than "
            f"{percent(SPREAD)} of their mean, the widest over {percent(widest)}"
            f"{at_batches(batch for batch, _ in wide)}.",
            "The load, its clocks or what the sensor sees of it changed from window to window.",
            "Lock the clocks, let nothing else run, and measure again.",
            len(wide),
            len(arms),
        )
    known = [(batch, w) for batch, arm in arms for w in arm.trials if _apart(w) is not None]
    drifted = [batch for batch, w in known if (_apart(w) or 0.0) > DRIFT_SHARE]
    if len(drifted) > DRIFT_SHARE * len(known):
        largest = max(_apart(w) or 0.0 for _, w in known)
        yield Finding(
            "drift",
            "caution",
            f"In {share_of(len(drifted), len(known), 'window')}, idle power before and after differed by "
            f"more than {percent(DRIFT_SHARE)}, at most by {percent(largest)}{at_batches(drifted)}.",
            "A warming board draws more at rest, so that net joules depend on which rest is taken off; "
            "half the difference is in their intervals.",
            "Compare gross joules, or warm the board up and measure again.",
            len(drifted),
            len(known),
        )


def _apart(window: WindowEnergy) -> float | None:
    """How far idle power before and after are apart, over their mean; None where one is not known."""
    before, after = window.idle_before_w, window.idle_after_w
    if before is None or after is None or before + after <= 0:
        return None
    return abs(before - after) / ((before + after) / 2)


def _impossible(rows: Sequence[EnergyRow]) -> Iterator[Finding]:
    """Joules that no load can have drawn."""

    def wrong(row: EnergyRow) -> bool:
        gross, net = row.energy_j.value, row.net_j.value
        positive = (gross, row.token_j.value, row.power_w.value, row.layer_s.value)
        if any(value is not None and value <= 0 for value in positive):
            return True
        return gross is not None and net is not None and net > gross * (1 + TOLERANCE)

    odd = [row for row in rows if wrong(row)]
    if odd:
        yield Finding(
            "impossible",
            "serious",
            f"{share_of(len(odd), len(rows), 'arm', 'have')} joules, watts or seconds that are not above "
            f"0, or net joules above the gross ones{at_batches(r.batch for r in odd)}.",
            "No load draws that: the file was edited, or the sensor is broken.",
            "Use none of its joules.",
            len(odd),
            len(rows),
        )


def _refused(rows: Sequence[EnergyRow]) -> Iterator[Finding]:
    refused = [(row.batch, why) for row in rows for why in row.refused]
    count = sum(row.windows for row in rows) + len(refused)
    without = [row for row in rows if row.energy_j.value is None]
    if not refused and not without:
        return
    first = refused[0][1] if refused else without[0].energy_j.reason
    lost = len(without) > 0 or len(refused) > REFUSED_SHARE * count
    yield Finding(
        "refused",
        "caution" if lost else "note",
        f"{share_of(len(refused), count, 'energy window', 'were')} refused"
        f"{at_batches(batch for batch, _ in refused) if refused else ''}, and {len(without) or 'none'} of "
        f"{number(len(rows), 'arm')} {'has' if len(without) == 1 else 'have'} no joules for it. "
        f"The first says: {shortened(first)}.",
        "What is left rests on fewer windows, and whatever spoilt the others was there all along.",
        "Mend what is said, and measure again." if lost else "Nothing, if it was an accident.",
        len(refused),
        count,
    )


def _throttled(rows: Sequence[EnergyRow]) -> Iterator[Finding]:
    slowed = [row for row in rows if "throttled" in row.flags]
    if slowed:
        yield Finding(
            "throttled windows",
            "caution",
            f"{share_of(len(slowed), len(rows), 'arm')} throttled in an energy window"
            f"{at_batches(r.batch for r in slowed)}.",
            "The joules are right for what ran, but at clocks that heat or a power limit chose; an arm that "
            "draws less keeps higher ones.",
            "Lock clocks that the board can hold, and compare again.",
            len(slowed),
            len(rows),
        )


def _sampling(profile: Profile) -> Iterator[Finding]:
    cost = profile.energy.sampling
    if cost is None or max(cost.failed, cost.late) <= SAMPLING_SHARE * cost.readings:
        return
    yield Finding(
        "sampling",
        "caution",
        f"Of {number(cost.readings, 'reading')} of the sensor, {cost.failed} failed "
        f"({percent(cost.failed / max(1, cost.readings))}) and {cost.late} came late "
        f"({percent(cost.late / max(1, cost.readings))}); the slowest took {cost.longest_read_s:.2g} s.",
        "Updates may have been missed; windows with gaps that matter were refused.",
        "Leave a core to the thread that reads the sensor, and measure again.",
        max(cost.failed, cost.late),
        cost.readings,
    )


def _sensor(
    published: Traits | None, found: Traits | None, why_not_found: str
) -> Iterator[Finding]:
    """How the sensor differs from what is known of its kind."""
    if published is None:
        yield Finding(
            "gain",
            "caution",
            "Nothing is published about this sensor, so that its gain is not known; the intervals take "
            "that of other boards.",
            "Joules may all be off by one common factor; ratios are not.",
            "Compare joules within this board only, or calibrate it against a meter at the wall.",
        )
    if found is None:
        yield Finding(
            "sensor",
            "note",
            f"The sensor was not characterised ({shortened(why_not_found) or 'no reason is given'}); "
            f"published numbers were used.",
            "Another variant of the board, or another driver, may update and average otherwise.",
            "Run bench.power --characterise on an idle machine.",
        )
    elif published is not None:
        other = [
            f"{what} {1e3 * here:.3g} ms ({1e3 * there:.3g})"
            for what, here, there in _periods(found, published)
            if abs(here / there - 1) > OTHER_SENSOR
        ]
        if other:
            yield Finding(
                "sensor",
                "caution",
                f"The sensor is not like the published one (in brackets): {listed(other)}.",
                "It is another variant of the board, or another driver, so that its published gain may "
                "not hold either.",
                "Compare joules within this board only; ratios stand.",
                len(other),
            )


def _periods(found: Traits, published: Traits) -> Iterator[tuple[str, float, float]]:
    """What both know, in seconds."""
    for what, here, there in (
        ("power updates every", found.update_s, published.update_s),
        ("the counter updates every", found.counter_update_s, published.counter_update_s),
    ):
        if here is not None and there is not None:
            yield what, here, there
    for channel, averaging_s in published.averaging_s.items():
        if channel in found.averaging_s:
            yield f"{channel} averages over", found.averaging_s[channel], averaging_s


def _clocks(rows: Sequence[EnergyRow], samples: pa.Table) -> Iterator[Finding]:
    """Clocks of the energy windows against those of the timing, where both were read."""
    import pyarrow.compute as pc

    keys = ["format", "batch", "arm", "implementation"]
    fresh = samples.filter(pc.equal(samples.column("phase"), "fresh"))
    there = fresh.filter(pc.is_valid(fresh.column("sm_clock_mhz")))
    medians = there.group_by(keys).aggregate([("sm_clock_mhz", "approximate_median")])
    timed = {
        tuple(row[key] for key in keys): row["sm_clock_mhz_approximate_median"]
        for row in medians.to_pylist()
    }
    both = [
        (row.batch, row.sm_clock_mhz, clock)
        for row in rows
        if row.sm_clock_mhz is not None
        if (clock := timed.get((row.format, row.batch, row.kernel.arm, row.kernel.implementation)))
    ]
    other = [pair for pair in both if abs(pair[1] / pair[2] - 1) > CLOCK_RANGE]
    if other:
        _, window, timing = max(other, key=lambda pair: abs(pair[1] / pair[2] - 1))
        yield Finding(
            "window clocks",
            "caution",
            f"{share_of(len(other), len(both), 'arm')} ran at other clocks in the energy windows than when "
            f"they were timed, at most {window:.0f} MHz instead of {timing:.0f}"
            f"{at_batches(batch for batch, _, _ in other)}.",
            "Joules and seconds of such an arm are not of the same state of the board.",
            "Do not multiply them by each other, nor compare φ in joules with φ in seconds.",
            len(other),
            len(both),
        )


def _curves(curves: Sequence[EnergyCurve]) -> Iterator[Finding]:
    poor = [c for c in curves if c.a_j.value is not None and c.reason]
    if poor:
        names = sorted({f"{c.arm} ({c.format})" for c in poor})
        yield Finding(
            "curve",
            "note",
            f"In {share_of(len(poor), len(curves), 'curve')}, a + b / batch does not describe the points: "
            f"{listed(names)}. The first says: {shortened(poor[0].reason)}.",
            "A kernel need not keep to that form, for instance where it takes more rows at once.",
            "Read the points, and nothing between or beyond them.",
            len(poor),
            len(curves),
        )

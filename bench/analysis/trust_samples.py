"""What the samples say about their profile: whether its numbers are theirs, and what happened meanwhile.

A median of paired differences forgives a few bad samples, so what counts is how many rows have many of
them: with 10 % contaminated, a median moves by up to a third of its interval at 24 blocks.

    from bench.analysis.trust_samples import recomputed, windows
    findings = [*recomputed(profile, samples), *windows(profile, samples)]
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bench.analysis.arms import KEY_COLUMNS, ArmKey, Problem
from bench.analysis.decompose import ArmFacts, decompose
from bench.analysis.findings import (
    Finding,
    at_batches,
    listed,
    number,
    percent,
    share_of,
    shortened,
)
from bench.analysis.pairs import is_throttled
from profiles.schema import ArmRow, Comparison, Profile, Quality, Quantity, quantities

if TYPE_CHECKING:
    import pyarrow as pa

ROW_SHARE = 0.1  # of rows that may have a problem before it is serious
SAMPLE_SHARE = 0.1  # of a row's samples that may be disturbed before the row counts
OVERALL_SHARE = 0.01  # of all samples
CLOCK_RANGE = 0.05  # 5th to 95th percentile over the median
PAGE_FAULT_S = 1e-6  # what one minor fault takes, roughly, in a virtual machine
FAULT_SHARE = 0.01  # of a sample's time
TOLERANCE = 1e-6  # between a number and the same one computed again


def without_samples(profile: Profile, why: str) -> Finding:
    """What it means that there are no samples; `why` is a sentence."""
    return Finding(
        "samples",
        "serious" if profile.kind == "measured" else "caution",
        f"The samples cannot be had: {why.rstrip('.')}.",
        "No number here can be computed again, and busy, stolen, throttled or short samples cannot "
        "be counted.",
        "Get the Parquet file that was written with this profile, and put it beside it.",
    )


def recomputed(profile: Profile, samples: pa.Table) -> Iterator[Finding]:
    """Rows and comparisons once more from the samples, held against those of the profile."""
    why = (
        "What is printed is not what was measured: the file was edited, or analysed by other code."
    )
    advice = "Believe the samples; compute the profile from them again at the commit that it names."
    arms = samples.group_by(list(KEY_COLUMNS)).aggregate([]).num_rows
    if arms > len(profile.rows):
        found = f"The samples are of {arms} arms, but the profile has {len(profile.rows)} rows."
        yield Finding("recomputed", "serious", found, why, advice)
        return
    failed = {
        ArmKey(
            Problem(r.operator, r.batch, r.format, r.launch_mode, r.cache_state),
            r.arm, r.implementation, r.variant, r.weight_format,
        ): ArmFacts(failure=r.failure)
        for r in profile.rows if r.failure is not None
    }  # fmt: skip
    try:
        with np.errstate(all="ignore"):
            rows, comparisons = decompose(
                samples, profile.workload, profile.protocol, failed, profile.kind
            )
    except (ValueError, ArithmeticError, LookupError) as error:
        found = f"The samples contradict themselves: {shortened(str(error))}."
        yield Finding("recomputed", "serious", found, why, advice)
        return
    theirs = _numbers(profile.rows, profile.comparisons)
    ours = _numbers(rows, comparisons)
    lone = len(theirs.keys() ^ ours.keys())
    pairs = [
        (a, b)
        for key in theirs.keys() & ours.keys()
        for a, b in zip(theirs[key], ours[key], strict=False)
    ]
    differing = sum(not same(a, b) for a, b in pairs)
    judged, judged_here = _judgements(profile.comparisons), _judgements(comparisons)
    both = judged.keys() & judged_here.keys()
    misjudged = [key for key in both if not _same_judgement(judged[key], judged_here[key])]
    if misjudged:
        yield Finding(
            "recomputed",
            "serious",
            f"Computed again from the samples, {share_of(len(misjudged), len(both), 'φ')} are judged "
            f"otherwise: their flags, their spread or whether they converged"
            f"{at_batches(judged[key].batch for key in misjudged)}.",
            why,
            advice,
            len(misjudged),
            len(both),
        )
    if lone or differing:
        extra = number(lone, "row or comparison is", "rows or comparisons are")
        yield Finding(
            "recomputed",
            "serious",
            f"Computed again from the samples, {share_of(differing, len(pairs), 'number', 'come')} out "
            f"otherwise{f', and {extra} on one side only' if lone else ''}.",
            why,
            advice,
            differing,
            len(pairs),
        )


def windows(profile: Profile, samples: pa.Table) -> Iterator[Finding]:
    """What happened while the samples were taken."""
    import pyarrow.compute as pc

    fresh = samples.filter(pc.equal(samples.column("phase"), "fresh"))
    if fresh.num_rows == 0:
        return
    rows = _row_numbers(fresh)
    yield from _disturbed(fresh, rows)
    yield from _short(profile, fresh, rows)
    yield from _clocks(profile, fresh)


def _disturbed(fresh: pa.Table, rows: NDArray[np.int64]) -> Iterator[Finding]:
    words = fresh.column("flags").combine_chunks().dictionary_encode()
    each = [set(text.split()) for text in words.dictionary.to_pylist()]
    index = words.indices.to_numpy()

    def having(test: Callable[[str], bool]) -> NDArray[np.bool_]:
        hit: NDArray[np.bool_] = np.array([any(map(test, flags)) for flags in each], bool)[index]
        return hit

    calls, time_s, faults = (
        fresh.column(name).to_numpy().astype(np.float64)
        for name in ("calls", "time_s", "minor_faults")
    )
    with np.errstate(all="ignore"):
        faulting = np.nan_to_num(faults) * PAGE_FAULT_S > FAULT_SHARE * calls * time_s
    others = sorted({w for flags in each for w in flags if not _known(w)})
    causes = (
        ("throttled", having(is_throttled),
         "taken while the device throttled",
         "Heat or a power limit slowed some arms and not others.",
         "Cool the device or lower its clocks, and run again."),
        ("busy", having(lambda w: w == "busy"),
         "taken while another program held a core",
         "A parallel kernel waits for its slowest thread: whole scheduler slices, 8 ms, are added.",
         "Stop what else runs, or give the run fewer cores, and run again."),
        ("stolen", having(lambda w: w == "stolen"),
         "interrupted by the hypervisor",
         "A neighbour on the host ran instead; the time is counted as the kernel's.",
         "Use a machine with dedicated cores, or another hour."),
        ("faulting", faulting,
         "held up by page faults for over 1 % of their time",
         "Memory was being mapped while a kernel was timed.",
         "Run again with more free memory."),
        ("flagged", having(lambda w: not _known(w)),
         f"flagged by the device: {shortened(listed(others))}",
         "The device found something odd about them.",
         "Look the word up in the code of the device before trusting those rows."),
    )  # fmt: skip
    count = int(rows.max()) + 1
    for topic, hit, what, why, advice in causes:
        share = np.bincount(rows, hit, count) / np.bincount(rows, minlength=count)
        bad = int((share > SAMPLE_SHARE).sum())
        if bad or hit.mean() > OVERALL_SHARE:
            batches = fresh.column("batch").to_numpy()[hit]
            yield Finding(
                topic,
                "serious" if bad > ROW_SHARE * count else "caution",
                f"{share_of(int(hit.sum()), len(hit), 'fresh sample', 'were')} {what}"
                f"{at_batches(batches.tolist())}; in {bad} of {number(count, 'row')} "
                f"they are over {percent(SAMPLE_SHARE)} of the samples.",
                why,
                advice,
                int(hit.sum()),
                len(hit),
            )


def _short(profile: Profile, fresh: pa.Table, rows: NDArray[np.int64]) -> Iterator[Finding]:
    least = profile.protocol.sample_minimum_s
    with np.errstate(all="ignore"):
        length = fresh.column("time_s").to_numpy() * fresh.column("calls").to_numpy()
    order = np.lexsort((length, rows))
    ends = np.cumsum(np.bincount(rows))
    starts = ends - np.bincount(rows)
    middle = length[order][(starts + ends - 1) // 2]  # the median of each row, the lower of two
    short, half = int((middle < least).sum()), int((middle < least / 2).sum())
    if short:
        batches = fresh.column("batch").to_numpy()[order][starts][middle < least]
        yield Finding(
            "short",
            "serious" if half > ROW_SHARE * len(middle) else "caution",
            f"{share_of(short, len(middle), 'row', 'were')} timed in samples shorter than the "
            f"{least * 1e3:g} ms of the protocol, the shortest {middle.min() * 1e3:.2g} ms"
            f"{at_batches(batches.tolist())}.",
            "In short samples the start of a kernel and the grain of the clock weigh more.",
            "Run again; repeats are chosen anew from how fast the kernels are.",
            short,
            len(middle),
        )


def _clocks(profile: Profile, fresh: pa.Table) -> Iterator[Finding]:
    extra = profile.device.extra
    if profile.device.kind == "simulated":
        return
    if profile.device.kind == "cpu":
        governor = extra.get("governor")
        if governor is None:
            yield Finding(
                "clocks",
                "note",
                "Nobody knows what the processor's clock did: it is neither locked nor recorded.",
                "Between two runs it may differ, and times with it; within a block it hardly does.",
                "Compare differences within this profile rather than times across profiles.",
            )
        elif governor != "performance":
            yield Finding(
                "clocks",
                "caution",
                f'The frequency governor was "{shortened(str(governor))}", so that clocks moved '
                f"with the load.",
                "Arms that run after a pause are timed at another clock than those in full swing.",
                'Set the governor to "performance", and run again.',
            )
        return
    clock = fresh.column("sm_clock_mhz").drop_null().to_numpy()
    if len(clock) == 0:
        yield Finding(
            "clocks",
            "caution",
            "Clocks, and whether the GPU throttled, were not recorded.",
            "A GPU that slows down by 20 % during a run leaves no other trace; pairing within blocks "
            "helps φ, but not times.",
            "Lock the clocks (nvidia-smi -lgc), say so beside the profile, and compare φ, not times.",
        )
        return
    low, middle, high = np.percentile(clock, (5, 50, 95))
    if high - low > CLOCK_RANGE * middle:
        yield Finding(
            "clocks",
            "caution",
            f"Clocks were not locked, or did not hold: from {low:.0f} to {high:.0f} MHz "
            f"(5th to 95th percentile; median {middle:.0f}).",
            "Times of two arms differ by their clocks too; pairing within blocks takes out most of it.",
            "Lock the clocks (nvidia-smi -lgc) and run again if times matter, not only φ.",
        )


_WITHOUT_JOULES = dict.fromkeys(
    ("phi_exposed_j", "phi_unfused_j", "energy_ratio_fused", "energy_ratio_unfused")
)


def _numbers(
    rows: Iterable[ArmRow], comparisons: Iterable[Comparison]
) -> dict[tuple[object, ...], list[Quantity]]:
    """By key: the time of a row, and all that a comparison holds but joules, which no sample has."""
    return {r.key: [r.time_s] for r in rows} | {
        ("comparison", *c.key): list(quantities(c.model_copy(update=_WITHOUT_JOULES)))
        for c in comparisons
    }


class _Judged(NamedTuple):
    """How far a φ is said to be trusted, and at which batch."""

    batch: int
    quality: Quality


def _judgements(comparisons: Iterable[Comparison]) -> dict[tuple[object, ...], _Judged]:
    return {
        (*c.key, name): _Judged(c.batch, getattr(c, name))
        for c in comparisons
        for name in ("quality_exposed", "quality_unfused")
    }


def _same_judgement(a: _Judged, b: _Judged) -> bool:
    p, q = a.quality, b.quality
    return (
        (p.converged, set(p.flags)) == (q.converged, set(q.flags))
        and close(p.half_width_over_best16, q.half_width_over_best16)
        and close(p.between_process_spread_s, q.between_process_spread_s)
    )


def same(a: Quantity, b: Quantity) -> bool:
    """Whether two quantities are the same but for rounding."""
    ends = zip((a.value, a.low, a.high), (b.value, b.low, b.high), strict=True)
    scale = max(abs(x) for x in (a.value, a.low, a.high, b.value, 0.0) if x is not None)
    return all(close(x, y, scale) for x, y in ends)


def close(x: float | None, y: float | None, scale: float = 0.0) -> bool:
    """Whether two numbers are the same but for rounding, or neither is there."""
    if x is None or y is None:
        return x is y
    return abs(x - y) <= TOLERANCE * max(abs(x), abs(y), scale)


def _row_numbers(fresh: pa.Table) -> NDArray[np.int64]:
    """The row of each sample, counted from 0."""
    code = np.zeros(fresh.num_rows, np.int64)
    for name in KEY_COLUMNS:
        part = fresh.column(name).combine_chunks().dictionary_encode()
        code = code * len(part.dictionary) + part.indices.to_numpy()
        _, code = np.unique(code, return_inverse=True)
    return code


def _known(word: str) -> bool:
    return word in ("busy", "stolen") or is_throttled(word)

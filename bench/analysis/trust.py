"""When not to trust a profile: what is wrong with it, why that matters, and what to do about it.

A profile can be true to its samples and still mislead. This module asks of a profile, and of its
samples and power trace, what a sceptical reader would, and answers in sentences with numbers, one per kind of
problem, however many rows have it.

    serious   a number may be off by more than its interval says, or nobody can tell whether it is
    caution   the numbers stand, but some intervals or comparisons are worth less than they look
    note      what one should know before comparing with another profile

    topic        serious when                                  caution or note when
    kind         modelled or simulated                         caution: imported
    refused rows over 30 % of a modelled profile's rows        caution: fewer
    model                                                      caution: what a model takes for granted
    incomplete   the run was cut short: its number of blocks
                 is not the one that the pilot fixed
    failed       an arm that a φ or best16 needs               caution: another arm, or a kernel that
                                                               could not be imported
    stale        a bypass that may be another stage
    unverified   a timed kernel was never verified
    samples      of a measured profile: missing, not the       caution: the same of another kind
                 ones it was written with, or unreadable
    recomputed   the samples give other numbers, other
                 flags, other arms or none at all
    unconverged  under 90 % of the φ met the target width      caution: under 100 %
    few blocks   over 10 % of the rows have fewer than the     caution: some have, or the protocol
                 protocol asks for                             asks for fewer than the method
    dependent    over 20 % of the φ flagged, beyond chance,    caution: beyond chance; note: within
                 or dependence or shifts over the whole run
    spread       over 10 % of the φ moved between processes    caution: more than the interval, and
                 by more than twice their interval, or the     more often than by chance
                 whole run did
    throttled,   over 10 % of the rows had it in over 10 %     caution: any such row, or over 1 % of
    busy, stolen, of their samples                             all samples
    faulting, flagged
    short        over 10 % of the rows have samples under      caution: some are shorter than the
                 half the protocol's minimum                   minimum
    clocks                                                     caution: they moved by over 5 %, were
                                                               not recorded on a GPU, or the
                                                               governor is not "performance";
                                                               note: the governor is not known
    cold         less than twice the last-level cache was      caution: hot on purpose, or the cache
                 touched between uses of "cold" weights        size is not known
    checkout     the tree had changes, or nobody knows, and    caution: the same with the kernels
                 its kernels are not those here                that are here; note: another commit
    kernels                                                    caution: a clean commit, but other
                                                               kernels than here
    software                                                   caution: a version that matters is
                                                               not known; note: a package here is another
    baseline                                                   caution: best16 had no rival
    spilled                                                    caution: a timed kernel has local memory
    implausible                                                caution: fused beat its own bypass or
                                                               stream, beyond chance
    resumed                                                    caution: something had changed when an
                                                               interrupted run went on; note: nothing
    gaps                                                       caution: planned and not there;
                                                               note: usual batches not measured
    joules                                                     note: a measured profile has none
    trace        of joules in a measured profile: missing,     caution: the same of another kind
                 not the one they were written with, or
                 unreadable
    replayed     the power trace gives other joules, watts,
                 curves, φ or ratios, or other windows; or
                 joules are there without any windows
    impossible   joules, watts or seconds not above 0, or
                 more net joules than gross
    scattered    windows of an arm range over more than 10 %   caution: over more than 5 %
    refused                                                    caution: over 10 % of the windows, or
                                                               an arm has no joules; note: fewer
    throttled windows                                          caution: any arm
    sampling                                                   caution: over 1 % of the readings failed
                                                               or came late
    sensor                                                     caution: periods over 20 % off the
                                                               published; note: not characterised
    gain                                                       caution: nothing published of the board
    drift                                                      caution: idle power differs by over 10 %
                                                               in over 10 % of the windows
    window clocks                                              caution: over 5 % off the timing's
    curve                                                      note: a fit does not describe its points

Ten per cent of contaminated samples move a median by a third of its interval at 24 blocks, at most:
that is where the limits on samples come from. "Beyond chance" is a binomial test at 1 %, with the
share that a healthy run shows: 6 % flagged and 20 % beyond their interval between three processes
(simulated; 0.4 % are beyond twice the interval), 2.5 % below zero.

    from bench.analysis.trust import examine
    findings = examine(profile, samples, Checkout(commit, kernels_sha256), again)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from bench.analysis.arms import SIXTEEN_BIT
from bench.analysis.doubts import indistinct, wrong_everywhere
from bench.analysis.findings import (
    SEVERITIES,
    Finding,
    at_batches,
    listed,
    number,
    share_of,
    shortened,
    size,
)
from bench.analysis.stats import PILOT_MINIMUM
from bench.analysis.trust_energy import examine_energy
from bench.analysis.trust_phi import examine_phis
from bench.analysis.trust_samples import ROW_SHARE, recomputed, windows, without_samples
from profiles.schema import LAYER, NOT_HERE, ArmRow, Modelled, Profile

if TYPE_CHECKING:
    import pyarrow as pa

    from bench.analysis.joules import Joules

REFUSED_SHARE = 0.3  # of the rows of a modelled profile
CACHE_MULTIPLE = 2  # METHOD: bytes touched between two uses of a copy, in last-level caches
METHOD_FRESH, METHOD_PROCESSES = 20, 3
METHOD_TARGET = {
    "cpu": 0.05,
    "cuda": 0.02,
    "simulated": 0.02,
    "modelled": 0.02,
}  # half-width of φ over t(best16)
COMPILERS = {
    "cpu": ("numba",),
    "cuda": ("triton", "driver", "cuda"),
    "simulated": (),
    "modelled": (),
}
METHOD_CONFIDENCE = 0.95
USUAL_BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
NEEDED_ARMS = ("native", "vendor", "fused", "bypass", "dequantize", "unfused")


@dataclass(frozen=True)
class Checkout:
    """The checkout that a profile is judged from.

    Attributes:
        commit: None when unknown.
        kernels_sha256: over the source files of its kernels.
        software: versions that are installed here, None or absent where one is not known.
    """

    commit: str | None
    kernels_sha256: str
    software: Mapping[str, object] = field(default_factory=dict)


def examine(
    profile: Profile, samples: pa.Table | str, checkout: Checkout, again: Joules | str
) -> tuple[Finding, ...]:
    """Everything there is to hold against a profile, the most serious first.

    Args:
        profile: the profile.
        samples: its samples as `profiles.reader.load_samples` gives them, or why there are none.
        checkout: where the question is asked.
        again: its joules, computed again from its power trace, or why that cannot be.
    """
    if profile.modelled is not None:
        found = (*_evidence(profile), *_modelled(profile.modelled), *_origin(profile, checkout))
        return tuple(sorted(found, key=lambda f: SEVERITIES.index(f.severity)))
    findings = [
        *_evidence(profile),
        *_arms(profile),
        *_stale(profile),
        *examine_phis(profile),
        *_blocks(profile),
        *_cold(profile),
        *_origin(profile, checkout),
        *_resumed(profile),
        *_reach(profile),
        *examine_energy(profile, again, samples),
    ]
    if isinstance(samples, str):
        findings.append(without_samples(profile, samples))
    else:
        findings += [*recomputed(profile, samples), *windows(profile, samples)]
    return tuple(sorted(findings, key=lambda f: SEVERITIES.index(f.severity)))


def _modelled(modelled: Modelled) -> Iterator[Finding]:
    """What a model did not say, and where it was never held against anything."""
    refused, rows = modelled.refused_rows, modelled.rows
    if refused:
        reason, count = max(modelled.refused.items(), key=lambda item: item[1])
        yield Finding(
            "refused rows",
            "serious" if refused > REFUSED_SHARE * rows else "caution",
            f"{share_of(refused, rows, 'row')} are not modelled; {count} of them: {shortened(reason)}.",
            "What is missing may be what would have won.",
            "Read the reasons, and do not compare across the gaps.",
            refused,
            rows,
        )
    for note in modelled.notes:
        yield Finding(
            "model",
            "caution",
            f"{note[0].upper()}{note[1:]}.",
            "The intervals were calibrated elsewhere.",
            "Hold single figures against a measurement before relying on the rest.",
        )


def failures(profile: Profile) -> list[ArmRow]:
    """Rows of kernels that crashed or gave wrong numbers."""
    rows = [row for row in profile.rows if row.failure is not None]
    return [row for row in rows if not str(row.failure).startswith(NOT_HERE)]


def warm(profile: Profile) -> bool:
    """Whether too few weight copies fitted into memory for each to have left the cache before its turn."""
    cache = profile.device.last_level_cache_bytes
    return cache is not None and profile.workload.rotation_bytes < CACHE_MULTIPLE * cache


def _evidence(profile: Profile) -> Iterator[Finding]:
    if profile.kind != "measured":
        what = {
            "modelled": "computed from compiled code and data sheets; nothing was timed",
            "simulated": "made up by a simulated device to test the instrument",
            "imported": "taken from someone else's publication, not measured by this suite",
        }[profile.kind]
        yield Finding(
            "kind",
            "caution" if profile.kind == "imported" else "serious",
            f"The numbers are {profile.kind}: {what}.",
            "They say what was assumed or reported, not what this device does.",
            "Quote them by that name only, and measure before deciding anything.",
        )
    if not profile.complete:
        yield Finding(
            "incomplete",
            "serious",
            "The run was cut short.",
            "The pilot fixed a number of blocks; stopping at another one, perhaps because the "
            "numbers looked good, makes intervals lie.",
            "Run it to its end.",
        )


def _arms(profile: Profile) -> Iterator[Finding]:
    failed = failures(profile)
    if failed:
        needed = [
            r for r in failed
            if r.arm in NEEDED_ARMS and (r.arm != "vendor" or r.weight_format in SIXTEEN_BIT)
        ]  # fmt: skip
        names = sorted({f"{r.arm} ({r.implementation}, {r.weight_format})" for r in failed})
        yield Finding(
            "failed",
            "serious" if needed else "caution",
            f"{share_of(len(failed), len(profile.rows), 'row')} failed: {listed(names)}; "
            f"{len(needed) or 'none'} of them {'is' if len(needed) == 1 else 'are'} needed for a φ "
            f"or for best16. "
            f"The first says: {shortened(failed[0].failure or '')}.",
            "Without it a φ is missing, or best16 is weaker and every speed-up looks better."
            if needed
            else "No φ and no verdict rests on them.",
            "Mend the kernel, or read no verdict at those batches."
            if needed
            else "Leave these arms out of any claim.",
            len(failed),
            len(profile.rows),
        )
    if profile.lost_kernels:
        lost = profile.lost_kernels
        yield Finding(
            "failed",
            "caution",
            f"{number(len(lost), 'kernel')} named on the command line could not be imported: "
            f"{listed([k.name for k in lost])}. The first: {shortened(lost[0].reason)}.",
            "It was asked for, and nothing here says how it compares.",
            "Mend its module, and run again.",
            len(lost),
        )
    timed = _timed(profile)
    unverified = [row for row in timed if row.error_vs_reference is None]
    if unverified:
        yield Finding(
            "unverified",
            "serious",
            f"{share_of(len(unverified), len(timed), 'timed row', 'were')} never checked against "
            f"the reference{at_batches(r.batch for r in unverified)}.",
            "A fast kernel that computes something else is not data.",
            "Run again; a run verifies every kernel before it times it.",
            len(unverified),
            len(timed),
        )
    spilled = [row for row in timed if row.local_bytes]
    if spilled:
        names = sorted({f"{r.arm} ({r.variant}, {r.weight_format})" for r in spilled})
        yield Finding(
            "spilled",
            "caution",
            f"In {share_of(len(spilled), len(timed), 'timed row')} registers did not suffice, and up to "
            f"{max(r.local_bytes or 0 for r in spilled)} bytes per thread were in local memory: {listed(names)}"
            f"{at_batches(r.batch for r in spilled)}.",
            "A φ between such kernels holds the price of spilling besides that of dequantization.",
            "Tune Triton's on this board (bench.tune), or read no φ there.",
            len(spilled),
            len(timed),
        )
    layers = [c for c in profile.comparisons if c.operator == LAYER]
    rivals = Counter(
        (row.batch, row.format)
        for row in profile.rows
        if row.operator == LAYER
        and row.arm in ("native", "vendor")
        and row.weight_format in SIXTEEN_BIT
        and row.time_s.value is not None
    )
    lonely = [c for c in layers if rivals[c.batch, c.format] < 2]
    if lonely:
        yield Finding(
            "baseline",
            "caution",
            f"In {share_of(len(lonely), len(layers), 'comparison')} of the layer, fewer than two "
            f"16-bit kernels were timed{at_batches(c.batch for c in lonely)}.",
            "A weak 16-bit baseline is the commonest way to make low-bit weights look fast.",
            "Make both native and vendor run, then compare again.",
            len(lonely),
            len(layers),
        )


def _stale(profile: Profile) -> Iterator[Finding]:
    """Stages that may be one and the same kernel."""
    formats = profile.workload.formats
    for stale, found, why in (
        (
            [name for name in formats if indistinct(profile, name)],
            "fused and bypass take the same time at every batch",
            "Either dequantization is wholly hidden, or both run the same machine code and φ exposed is "
            "the difference of a kernel with itself; no clock can tell.",
        ),
        (
            [name for name in formats if wrong_everywhere(profile, name)],
            "bypass gave wrong results on every operator and batch",
            "So it does when it runs the machine code of another stage.",
        ),
    ):
        if stale:
            yield Finding(
                "stale",
                "serious",
                f"Of {listed(stale)}, {found}.",
                why,
                "Compare the machine code of the two; clear the compiler's cache, and run again.",
                len(stale),
                len(formats),
            )


def _blocks(profile: Profile) -> Iterator[Finding]:
    protocol, rows = profile.protocol, _timed(profile)
    least = protocol.fresh_blocks_minimum
    few = [row for row in rows if row.blocks < least]
    if few:
        yield Finding(
            "few blocks",
            "serious" if len(few) > ROW_SHARE * len(rows) else "caution",
            f"{share_of(len(few), len(rows), 'row')} rest on fewer fresh blocks than the {least} of the "
            f"protocol, the least {min(row.blocks for row in few)}{at_batches(r.batch for r in few)}.",
            "Few blocks cannot show that they depend on each other, and below 6 there is no interval.",
            "Run again; a run that ends by itself has enough.",
            len(few),
            len(rows),
        )
    target = METHOD_TARGET[profile.device.kind]
    lax = [
        text
        for wrong, text in (
            (least < METHOD_FRESH, f"{least} fresh blocks at least ({METHOD_FRESH})"),
            (
                protocol.pilot_blocks < PILOT_MINIMUM,
                f"{protocol.pilot_blocks} pilot blocks ({PILOT_MINIMUM})",
            ),
            (
                protocol.processes < METHOD_PROCESSES,
                f"{number(protocol.processes, 'process', 'processes')} ({METHOD_PROCESSES})",
            ),
            (
                protocol.target_half_width > target,
                f"a target of ±{protocol.target_half_width:.3g} (±{target:g})",
            ),
            (
                protocol.confidence < METHOD_CONFIDENCE,
                f"a confidence of {protocol.confidence:.3g} ({METHOD_CONFIDENCE:g})",
            ),
            (
                protocol.sample_minimum_s < 1e-3,
                f"samples of {protocol.sample_minimum_s * 1e3:.3g} ms at least (1 ms)",
            ),
        )
        if wrong
    ]
    if lax:
        yield Finding(
            "protocol",
            "caution",
            f"The protocol asks for less than the method does (in brackets): {listed(lax)}.",
            '"Converged" and "enough blocks" mean less here than in other profiles.',
            "Compare only with profiles of the same protocol.",
        )


def _cold(profile: Profile) -> Iterator[Finding]:
    cache, touched = profile.device.last_level_cache_bytes, profile.workload.rotation_bytes
    if profile.workload.cache_state == "hot":
        yield Finding(
            "cold",
            "caution",
            "Weights were hot on purpose: each use may find them in the cache.",
            "A decode step of a real model reads its weights from memory; time, φ and speed-ups "
            "differ then.",
            "Compare with hot profiles only.",
        )
    elif cache is None:
        yield Finding(
            "cold",
            "caution",
            f"The size of the last-level cache is not known, so that nobody can tell whether "
            f"{size(touched)} between two uses of a weight copy were enough.",
            "Weights still in the cache make low-bit and 16-bit kernels look too fast.",
            "Look the cache up; twice its size is enough.",
        )
    elif warm(profile):
        yield Finding(
            "cold",
            "serious",
            f"Weights were not cold: only {size(touched)} were touched between two uses of a copy, "
            f"{touched / cache:.1f} times the last-level cache of {size(cache)}.",
            "The smaller 4-bit weights stay in the cache more easily than the 16-bit ones, so that "
            "speed-ups flatter them.",
            "Free memory, or take a larger model, and run again.",
        )


def _origin(profile: Profile, checkout: Checkout) -> Iterator[Finding]:
    git, same = profile.git, profile.kernels_sha256 == checkout.kernels_sha256
    commit = (git.commit or "unknown")[:10]
    where = "the kernels are those of this checkout" if same else "its kernels are not those here"
    if git.commit is None or git.dirty is None or git.dirty:
        state = (
            "The commit that ran is not known"
            if git.commit is None
            else f"Nobody knows whether the tree at commit {commit} had changes"
            if git.dirty is None
            else f"The tree had changes on top of commit {commit}"
        )
        yield Finding(
            "checkout",
            "caution" if same else "serious",
            f"{state}; {where}.",
            "What measured may differ from any commit, though not what was measured."
            if same
            else "No one can find the code that was measured.",
            "Commit, and run again from a clean tree."
            if same or git.commit is None
            else f"Check this profile from commit {commit}: there the kernels may agree.",
        )
    elif not same:
        yield Finding(
            "kernels",
            "caution",
            f"It was made at commit {commit}, and its kernels are not those of this checkout.",
            "It says nothing about the kernels here.",
            "Measure again before comparing with anything newer.",
        )
    elif git.commit != checkout.commit and checkout.commit is not None:
        yield Finding(
            "checkout",
            "note",
            f"It was made at commit {commit} and is read at {checkout.commit[:10]}; the kernels are "
            f"the same.",
            "How they are timed may have changed in between.",
            "Look at the log between the two before comparing small differences.",
        )
    needed = ("numpy", "torch", *COMPILERS[profile.device.kind])
    unknown = [name for name in needed if getattr(profile.software, name) is None]
    if unknown and profile.kind == "measured":
        reasons = "; ".join(sorted({profile.software.missing.get(n, "") for n in unknown}))
        yield Finding(
            "software",
            "caution",
            f"Versions that matter are not known: {listed(unknown)} ({shortened(reasons)}).",
            "Compilers and drivers choose the code that runs; two versions differ by more than most φ.",
            "Note them by hand beside the profile.",
        )
    others = [
        f"{name} {there} ({here} here)"
        for name in needed
        if (there := getattr(profile.software, name)) and (here := checkout.software.get(name))
        if there.partition("+")[0] != str(here).partition("+")[0]  # "+cpu" is how it was built
    ]
    if others and profile.kind == "measured":
        yield Finding(
            "software",
            "note",
            f"It was measured with {listed(others)}.",
            "The same sources may be other machine code here.",
            "Compare small differences only with a run of the same versions.",
        )


def _resumed(profile: Profile) -> Iterator[Finding]:
    """What was not the same when an interrupted run went on."""
    if profile.resumed:
        different = tuple(d for resumption in profile.resumed for d in resumption.differences)
        yield Finding(
            "resumed",
            "caution" if different else "note",
            f"The run was interrupted and went on {number(len(profile.resumed), 'time')}; "
            + (
                f"meanwhile {shortened(' '.join(different))}."
                if different
                else "nothing had changed."
            ),
            "Blocks from before and after saw another moment of the machine"
            + (
                ", and other software." if different else "; the spread between processes shows it."
            ),
            "Measure again in one go if small differences matter." if different else "Nothing.",
            len(profile.resumed),
        )


def _reach(profile: Profile) -> Iterator[Finding]:
    """What was planned and is not there, and what was not planned."""
    workload = profile.workload
    operators = {LAYER, *(o.name for o in workload.operators)}
    formats, batches = set(workload.formats), set(workload.batches)
    there = {
        (c.operator, c.format, c.batch)
        for c in profile.comparisons
        if c.phi_exposed_s.value is not None or c.phi_unfused_s.value is not None
        if c.operator in operators and c.format in formats
    }
    found = Counter(batch for _, _, batch in there)
    each = len(operators) * len(formats)
    absent = Counter({batch: each - found[batch] for batch in batches if found[batch] < each})
    if absent:
        yield Finding(
            "gaps",
            "caution",
            f"{share_of(absent.total(), each * len(batches), 'planned comparison', 'are')} not there, "
            f"or without a φ{at_batches(absent)}.",
            "A verdict over batches or operators leaves out what is missing, and that is seldom "
            "missing by chance.",
            "Find out why (failed kernels, an interrupted run), and measure those.",
            absent.total(),
            each * len(batches),
        )
    if unusual := sorted(set(USUAL_BATCHES) - set(workload.batches)):
        yield Finding(
            "gaps",
            "note",
            f"Of the usual batches 1 to 256, {listed([str(b) for b in unusual], len(USUAL_BATCHES))} "
            f"{'was' if len(unusual) == 1 else 'were'} not measured; "
            f"activations were {workload.activation} only.",
            "Nothing here says which side wins there, and a crossing may lie between two batches.",
            "Do not interpolate a verdict.",
            len(unusual),
            len(USUAL_BATCHES),
        )


def _timed(profile: Profile) -> list[ArmRow]:
    """Rows with a time, of single operators: the layer is a sum of them."""
    return [r for r in profile.rows if r.operator != LAYER and r.time_s.value is not None]

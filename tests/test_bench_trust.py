"""Each accusation against a profile that has exactly that fault, and none against one that has none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import planted_profile as planted
import pytest

from bench.analysis.arms import ArmKey, Problem
from bench.analysis.decompose import ArmFacts
from bench.analysis.findings import at_batches, listed, number, percent, share_of, size
from bench.analysis.trust import Checkout, Finding, examine
from bench.analysis.trust_phi import beyond_chance
from profiles.schema import Git, Profile, Quality, Resumption, absent

HERE = Checkout("a" * 40, "0" * 64)
ROWS = planted.sample_rows()
CLEAN = planted.profile_of(ROWS)
Rows = list[dict[str, Any]]
USUAL = ("gaps (note)", "joules (note)")  # it lacks batches, and an energy sensor


def found(profile: Profile, rows: Rows | str = ROWS, here: Checkout = HERE) -> dict[str, Finding]:
    samples = rows if isinstance(rows, str) else planted.table_of(rows)
    findings = examine(profile, samples, here, "it has no joules")
    weights = [("serious", "caution", "note").index(f.severity) for f in findings]
    assert weights == sorted(weights), "the most serious first"
    for f in findings:
        for sentence in (f.found, f.why, f.do):
            assert sentence.endswith(".")
            assert ".." not in sentence
            assert "  " not in sentence
    return {f.topic: f for f in findings if f.severity != "note"} | {
        f"{f.topic} (note)": f for f in findings if f.severity == "note"
    }


def with_samples(change: Callable[[dict[str, Any]], object]) -> dict[str, Finding]:
    rows = [dict(row) for row in ROWS]
    for row in rows:
        change(row)
    return found(planted.profile_of(rows), rows)


def test_nothing_is_held_against_a_clean_profile_but_the_batches_it_lacks() -> None:
    assert set(found(CLEAN)) == {*USUAL}
    note = found(CLEAN)["gaps (note)"]
    assert note.found == (
        "Of the usual batches 1 to 256, 2, 4, 16, 32, 64, 128, 256 were not measured; "
        "activations were bf16 only."
    )


@pytest.mark.parametrize("seed", range(1, 21))
def test_quiet_runs_are_not_accused(seed: int) -> None:
    """Of twenty healthy runs none has anything serious; chance may give a caution in one of a hundred."""
    rows = planted.sample_rows(seed)
    assert "serious" not in {f.severity for f in found(planted.profile_of(rows), rows).values()}


def changed(**fields: Any) -> Profile:
    """The clean profile with other fields; `device__extra` stands for device.extra."""
    profile = CLEAN
    for name, value in fields.items():
        part, _, inner = name.partition("__")
        if inner:
            value = getattr(profile, part).model_copy(update={inner: value})
        profile = profile.model_copy(update={part: value})
    return profile


def short_protocol(**fields: Any) -> Profile:
    return planted.profile_of(ROWS, protocol=planted.PROTOCOL.model_copy(update=fields))


@pytest.mark.parametrize(
    ("fields", "topic", "severity", "text"),
    [
        ({"complete": False}, "incomplete", "serious", "The run was cut short."),
        (
            {"workload__rotation_bytes": 3 << 19},
            "cold",
            "serious",
            "only 1.5 MiB were touched between two uses of a copy, 1.5 times the last-level cache of 1 MiB.",
        ),
        ({"workload__cache_state": "hot"}, "cold", "caution", "hot on purpose"),
        ({"device__last_level_cache_bytes": None}, "cold", "caution", "size of the last-level cache"),
        (
            {"git": Git(commit="b" * 40, dirty=True)},
            "checkout",
            "caution",
            "changes on top of commit bbbbbbbbbb; the kernels are those of this checkout.",
        ),
        (
            {"git": Git(commit="b" * 40, dirty=True), "kernels_sha256": "1" * 64},
            "checkout",
            "serious",
            "changes on top of commit bbbbbbbbbb; its kernels are not those here.",
        ),
        (
            {"git": Git(commit=None, dirty=None, missing={"commit": "-", "dirty": "-"})},
            "checkout",
            "caution",
            "The commit that ran is not known",
        ),
        (
            {"git": Git(commit="c" * 40, dirty=None, missing={"dirty": "-"})},
            "checkout",
            "caution",
            "Nobody knows whether the tree at commit cccccccccc had changes",
        ),
        ({"kernels_sha256": "1" * 64}, "kernels", "caution", "not those of this checkout"),
        ({"git": Git(commit="d" * 40, dirty=False)}, "checkout (note)", "note", "at commit dddddddddd"),
        ({"software__numba": None}, "software", "caution", "are not known: numba"),
        ({"device__extra": {}}, "clocks (note)", "note", "neither locked nor recorded"),
        ({"device__extra": {"governor": "powersave"}}, "clocks", "caution", '"powersave"'),
        ({"workload__batches": (1, 8, 64)}, "gaps", "caution", "2 of 6 planned comparisons (33 %) are"),
    ],
)  # fmt: skip
def test_a_fault_in_the_facts(fields: dict[str, Any], topic: str, severity: str, text: str) -> None:
    """And nothing else is said."""
    findings = found(changed(**fields))
    assert set(findings) == {topic, *USUAL}
    assert findings[topic].severity == severity
    assert text in findings[topic].found


@pytest.mark.parametrize("kind", ["modelled", "simulated", "imported"])
def test_numbers_that_were_not_measured(kind: Any) -> None:
    findings = found(planted.profile_of(ROWS, kind=kind))
    assert set(findings) == {"kind", "gaps (note)"}
    assert findings["kind"].severity == ("caution" if kind == "imported" else "serious")
    assert findings["kind"].found.startswith(f"The numbers are {kind}: ")


@pytest.mark.parametrize(("kind", "severity"), [("measured", "serious"), ("modelled", "caution")])
def test_samples_that_are_not_there(kind: Any, severity: str) -> None:
    findings = found(planted.profile_of(ROWS, kind=kind), "there is no file x.parquet.")
    assert findings["samples"].severity == severity
    assert findings["samples"].found == "The samples cannot be had: there is no file x.parquet."


def failing(arm: str, weight_format: str, batch: int = 8) -> dict[ArmKey, ArmFacts]:
    problem = Problem("o_proj", batch, "int4-g128", "eager", "cold")
    return {
        ArmKey(problem, arm, "planted", "default", weight_format): ArmFacts(failure="off by 0.5")
    }


def test_a_failed_baseline_is_serious_and_a_failed_stage_is_not() -> None:
    native = found(planted.profile_of(ROWS, facts=failing("native", "bf16")))
    assert set(native) == {"failed", "baseline", *USUAL}
    assert native["failed"].severity == "serious"
    assert (
        "1 of 27 rows (3.7 %) failed: native (planted, bf16); 1 of them is needed"
        in native["failed"].found
    )
    assert "The first says: off by 0.5." in native["failed"].found
    assert native["baseline"].found == (
        "In 1 of 2 comparisons (50 %) of the layer, fewer than two 16-bit kernels were timed, "
        "at batch 8."
    )  # fmt: skip
    stream = found(planted.profile_of(ROWS, facts=failing("stream", "int4-g128")))
    assert set(stream) == {"failed", *USUAL}
    assert stream["failed"].severity == "caution"


def test_a_kernel_that_was_never_verified() -> None:
    rows = [
        row.model_copy(update={"error_vs_reference": None}) if row.arm == "fused" else row
        for row in CLEAN.rows
    ]
    findings = found(changed(rows=tuple(rows)))
    assert set(findings) == {"unverified", *USUAL}
    assert findings["unverified"].severity == "serious"
    assert "2 of 14 timed rows (14 %) were never checked" in findings["unverified"].found


def test_a_kernel_that_spills() -> None:
    """A kernel without local memory, and one of which nobody knows, are no fault."""
    local = {"fused": 16, "bypass": 0}
    rows = [row.model_copy(update={"local_bytes": local.get(row.arm)}) for row in CLEAN.rows]
    findings = found(changed(rows=tuple(rows)))
    assert set(findings) == {"spilled", *USUAL}
    assert findings["spilled"].severity == "caution"
    assert findings["spilled"].found == (
        "In 2 of 14 timed rows (14 %) registers did not suffice, and up to 16 bytes per thread were in local "
        "memory: fused (default, int4-g128), at batch 1 (1), 8 (1)."
    )


def test_versions_that_are_not_those_here() -> None:
    """What is not known on either side, or does not time this device, is no difference."""
    there = CLEAN.software
    same = {"torch": there.torch, "numba": there.numba, "triton": "0", "driver": "1"}
    assert set(found(CLEAN, here=replace(HERE, software=same))) == {*USUAL}
    here = replace(HERE, software=same | {"numba": "0.1"})
    note = found(CLEAN, here=here)["software (note)"]
    assert note.severity == "note"
    assert note.found == f"It was measured with numba {there.numba} (0.1 here)."


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"pilot_blocks": 5}, "5 pilot blocks (10)"),
        ({"processes": 1}, "1 process (3)"),
        ({"fresh_blocks_minimum": 12}, "12 fresh blocks at least (20)"),
        ({"target_half_width": 0.2}, "a target of ±0.2 (±0.05)"),
        ({"sample_minimum_s": 1e-4}, "samples of 0.1 ms at least (1 ms)"),
    ],
)
def test_a_protocol_that_asks_for_less(fields: dict[str, Any], text: str) -> None:
    findings = found(short_protocol(**fields))
    assert set(findings) == {"protocol", *USUAL}
    assert findings["protocol"].severity == "caution"
    assert text in findings["protocol"].found


def test_a_confidence_that_is_low() -> None:
    assert "a confidence of 0.8 (0.95)" in found(short_protocol(confidence=0.8))["protocol"].found


def test_rows_with_too_few_blocks() -> None:
    """All with 24 blocks where 30 were asked for; then one arm with fewer, which is a caution."""
    findings = found(short_protocol(fresh_blocks_minimum=30))
    assert set(findings) == {"few blocks", *USUAL}
    assert findings["few blocks"].severity == "serious"
    assert (
        "14 of 14 rows (100 %) rest on fewer fresh blocks than the 30"
        in findings["few blocks"].found
    )
    rows = [
        r for r in ROWS
        if not (r["arm"] == "stream" and r["batch"] == 8 and r["phase"] == "fresh" and r["block"] > 4)
    ]  # fmt: skip
    one = found(planted.profile_of(rows), rows)
    assert set(one) == {"few blocks", *USUAL}
    assert one["few blocks"].severity == "caution"
    assert "1 of 14 rows (7.1 %) rest on fewer fresh blocks than the 21 of the protocol, the least 15" in (
        one["few blocks"].found
    )  # fmt: skip


def with_quality(count: int, **fields: Any) -> Profile:
    """The clean profile ten times over, with another quality in `count` of the 40 φ."""
    comparisons = []
    for i in range(10):
        for c in CLEAN.comparisons:
            n = None if c.n is None else c.n + i
            operator = c.operator if i == 0 else f"{c.operator}{i}"
            comparisons.append(c.model_copy(update={"operator": operator, "n": n}))
    for i in range(count):
        c = comparisons[i]
        quality = c.quality_exposed.model_copy(update=fields)
        comparisons[i] = c.model_copy(update={"quality_exposed": quality})
    return changed(comparisons=tuple(comparisons))


@pytest.mark.parametrize(("count", "severity"), [(1, "caution"), (8, "caution"), (9, "serious")])
def test_values_that_missed_their_target(count: int, severity: str) -> None:
    """Of 80: ten per cent may miss it before the run is called unstable."""
    findings = found(with_quality(count, converged=False), "none")
    finding = findings["unconverged"]
    assert finding.severity == severity
    assert f"{count} of 80 φ" in finding.found
    assert "not known within ±5 % of t(best16)" in finding.found
    assert (finding.affected, finding.of) == (count, 80)


@pytest.mark.parametrize(
    ("count", "topic", "severity"),
    [(4, "dependent (note)", "note"), (12, "dependent", "caution"), (17, "dependent", "serious")],
)
def test_blocks_that_are_not_independent(count: int, topic: str, severity: str) -> None:
    findings = found(with_quality(count, flags=("autocorrelated",)), "none")
    assert findings[topic].severity == severity
    assert f"{count} autocorrelated" in findings[topic].found
    assert "A healthy run has about 5." in findings[topic].found


@pytest.mark.parametrize(
    ("word", "topic", "text"),
    [
        ("autocorrelated-run", "dependent", "neighbouring blocks depend on each other"),
        ("shifted-run", "dependent", "the later half of a process lies elsewhere"),
        ("processes-differ", "spread", "much further apart than their blocks explain"),
    ],
)
def test_what_a_whole_run_shows(word: str, topic: str, text: str) -> None:
    findings = found(with_quality(40, flags=(word,)), "none")
    assert findings[topic].severity == "serious"
    assert findings[topic].found.startswith("Over the whole run ")
    assert text in findings[topic].found
    assert findings[topic].found.endswith(": 40 φ are concerned.")
    assert (findings[topic].affected, findings[topic].of) == (40, 80)


def test_a_run_that_was_resumed() -> None:
    """Once with nothing changed: a note; then with another NumPy: a caution that says so."""
    at = CLEAN.created
    findings = found(changed(resumed=(Resumption(at=at, differences=()),)))
    assert set(findings) == {"resumed (note)", *USUAL}
    assert findings["resumed (note)"].found == (
        "The run was interrupted and went on 1 time; nothing had changed."
    )
    said = "numpy was 2.0 when the run began and is 2.1 now."
    findings = found(
        changed(resumed=(Resumption(at=at, differences=()), Resumption(at=at, differences=(said,))))
    )
    assert set(findings) == {"resumed", *USUAL}
    assert findings["resumed"].severity == "caution"
    assert findings["resumed"].found == (
        "The run was interrupted and went on 2 times; meanwhile numpy was 2.0 when the run began and "
        "is 2.1 now."
    )


def test_a_bypass_that_takes_as_long_as_fused() -> None:
    """The same machine code twice, with noise of its own each time."""
    noise = np.random.default_rng(5)
    rows = [dict(row) for row in ROWS]
    for row in rows:
        if row["arm"] in ("bypass", "fused"):
            row["time_s"] = 200e-6 * row["batch"] * (1 + 0.001 * noise.standard_normal())
    findings = found(planted.profile_of(rows), rows)
    assert set(findings) == {"stale", *USUAL}
    assert findings["stale"].severity == "serious"
    assert findings["stale"].found == (
        "Of int4-g128, fused and bypass take the same time at every batch."
    )


def test_a_bypass_that_computes_what_another_stage_does() -> None:
    """Refused everywhere for its numbers; a crash everywhere says nothing of the kind."""
    refused, crashed = (
        {
            ArmKey(
                Problem("o_proj", batch, "int4-g128", "eager", "cold"),
                "bypass", "planted", "default", "int4-g128",
            ): ArmFacts(error_vs_reference=error, failure="off by 0.7")
            for batch in (1, 8)
        }
        for error in (0.7, None)
    )  # fmt: skip
    assert set(found(planted.profile_of(ROWS, facts=refused))) >= {"failed", "stale"}
    assert "stale" not in found(planted.profile_of(ROWS, facts=crashed))
    refused.popitem()
    assert "stale" not in found(planted.profile_of(ROWS, facts=refused))


@pytest.mark.parametrize(
    "edit",
    [
        {"converged": False},
        {"flags": ("shifted",)},
        {"between_process_spread_s": 0.0},
        {"half_width_over_best16": 1e-4},
    ],
)
def test_judgements_that_are_not_those_of_the_samples(edit: dict[str, Any]) -> None:
    """A flag taken away, a spread made smaller: the numbers stand, and what is said of them does not."""
    first = CLEAN.comparisons[0]
    quality = first.quality_unfused.model_copy(update=edit)
    rest = CLEAN.comparisons[1:]
    edited = (first.model_copy(update={"quality_unfused": quality}), *rest)
    finding = found(changed(comparisons=edited))["recomputed"]
    assert finding.severity == "serious"
    assert finding.found == (
        "Computed again from the samples, 1 of 8 φ (12 %) are judged otherwise: their flags, their spread "
        "or whether they converged, at batch 1."
    )


@pytest.mark.parametrize(
    ("word", "topic"),
    [("throttled", "throttled"), ("throttled-heat", "throttled"), ("throttle", "flagged")],
)
def test_throttled_is_one_word_with_or_without_a_reason(word: str, topic: str) -> None:
    """For samples and for the φ that is made of them alike."""
    rows = [dict(row, flags=word) for row in ROWS]
    profile = planted.profile_of(rows)
    assert set(found(profile, rows)) == {topic, *USUAL}
    flagged = {flag for c in profile.comparisons for flag in c.flags}
    assert flagged == ({"throttled"} if topic == "throttled" else set())


def test_processes_that_differ() -> None:
    for count, times, severity in ((30, 1.5, "caution"), (8, 3.0, None), (9, 3.0, "serious")):
        widths = {(c.quality_exposed.half_width_over_best16) for c in CLEAN.comparisons}
        assert None not in widths
        profile = with_quality(count)
        comparisons = list(profile.comparisons)
        for i in range(len(comparisons)):
            c = comparisons[i]
            calm = c.quality_exposed.model_copy(update={"between_process_spread_s": 0.0})
            assert c.phi_exposed_s.high is not None
            assert c.phi_exposed_s.low is not None
            half = (c.phi_exposed_s.high - c.phi_exposed_s.low) / 2
            wide = calm.model_copy(update={"between_process_spread_s": times * half})
            update = {"quality_exposed": wide if i < count else calm}
            other = c.quality_unfused.model_copy(update={"between_process_spread_s": 0.0})
            comparisons[i] = c.model_copy(update=update | {"quality_unfused": other})
        findings = found(profile.model_copy(update={"comparisons": tuple(comparisons)}), "none")
        if severity is None:
            assert "spread" not in findings
        else:
            assert findings["spread"].severity == severity
            assert f"{count} of 80 φ" in findings["spread"].found
            assert (
                f"{count if times > 2 else 0} by more than twice that" in findings["spread"].found
            )


def test_a_fused_kernel_that_beats_its_own_bypass() -> None:
    rows = [dict(row) for row in ROWS]
    for row in rows:
        if row["arm"] == "bypass":
            row["time_s"] *= 2
    findings = found(planted.profile_of(rows), rows)
    assert set(findings) == {"implausible", *USUAL}
    assert findings["implausible"].severity == "caution"
    assert (
        "In 4 of 4 comparisons (100 %) the fused kernel is faster" in findings["implausible"].found
    )


@pytest.mark.parametrize("word", ["throttled", "busy", "stolen"])
@pytest.mark.parametrize(("every", "severity"), [(3, "serious"), (40, "caution"), (500, None)])
def test_disturbed_samples(word: str, every: int, severity: str | None) -> None:
    """In a third of all samples; in one of forty, so in no row often; and hardly ever."""
    fresh = iter(range(10**6))

    def disturb(row: dict[str, Any]) -> None:
        if row["phase"] == "fresh" and next(fresh) % every == 0:
            row["flags"] = word

    findings = with_samples(disturb)
    assert set(findings) == ({*USUAL} | ({word} if severity else set()))
    if severity:
        assert findings[word].severity == severity
        expected = {3: "112 of 336 fresh samples (33 %) were", 40: "9 of 336 fresh samples (2.7 %)"}
        assert findings[word].found.startswith(expected[every])


def test_one_row_that_is_disturbed_is_a_caution() -> None:
    def disturb(row: dict[str, Any]) -> None:
        if row["arm"] == "fused" and row["batch"] == 8 and row["block"] < 1:
            row["flags"] = "busy"

    findings = with_samples(disturb)
    assert findings["busy"].severity == "caution"
    assert findings["busy"].found == (
        "3 of 336 fresh samples (0.89 %) were taken while another program held a core, all at "
        "batch 8; in 1 of 14 rows they are over 10 % of the samples."
    )


def test_pilot_samples_are_not_held_against_anyone() -> None:
    findings = with_samples(lambda r: r["phase"] == "pilot" and r.update(flags="busy throttled"))
    assert set(findings) == {*USUAL}


def test_page_faults_and_words_that_a_device_made_up() -> None:
    faults = with_samples(lambda r: r.update(minor_faults=100 if r["batch"] == 8 else 10))
    assert set(faults) == {"faulting", *USUAL}
    assert faults["faulting"].severity == "serious"
    assert "168 of 336 fresh samples (50 %) were held up by page faults" in faults["faulting"].found
    words = with_samples(lambda r: r.update(flags="gremlin"))
    assert "flagged by the device: gremlin" in words["flagged"].found


@pytest.mark.parametrize(("factor", "severity"), [(0.3, "caution"), (0.1, "serious")])
def test_samples_that_are_too_short(factor: float, severity: str) -> None:
    """Planned for 3 ms, they take 0.9 ms, or 0.3 ms."""
    findings = with_samples(lambda r: r.update(time_s=r["time_s"] * factor))
    assert set(findings) == {"short", *USUAL}
    assert findings["short"].severity == severity
    assert "rows" in findings["short"].found
    assert "shorter than the 1 ms of the protocol" in findings["short"].found


@pytest.mark.parametrize(
    ("clock", "text"),
    [
        (lambda i: None, "were not recorded"),
        (lambda i: 1980.0, None),
        (lambda i: 1980.0 - 40 * (i % 2), None),
        (lambda i: 1980.0 - 480 * (i % 2), "from 1500 to 1980 MHz"),
    ],
)
def test_clocks_of_a_gpu(clock: Callable[[int], float | None], text: str | None) -> None:
    count = iter(range(10**6))
    rows = [dict(row, sm_clock_mhz=clock(next(count))) for row in ROWS]
    gpu = planted.DEVICE.model_copy(update={"kind": "cuda", "extra": {}})
    known = dict.fromkeys(("triton", "driver", "cuda"), "1")
    software = planted.SOFTWARE.model_copy(update=known)
    protocol = planted.PROTOCOL.model_copy(update={"target_half_width": 0.02})
    profile = planted.profile_of(rows, device=gpu, software=software, protocol=protocol)
    findings = found(profile, rows)
    assert set(findings) == {*USUAL} | ({"clocks"} if text else set())
    if text:
        assert findings["clocks"].severity == "caution"
        assert text in findings["clocks"].found


def test_numbers_that_are_not_those_of_the_samples() -> None:
    """One time edited by hand; a comparison taken out; samples of other arms; two in one block."""
    first = CLEAN.rows[0]
    time_s = first.time_s.model_copy(update={"value": first.time_s.low})
    edited = changed(rows=(first.model_copy(update={"time_s": time_s}), *CLEAN.rows[1:]))
    finding = found(edited)["recomputed"]
    assert finding.severity == "serious"
    assert "1 of 82 numbers (1.2 %) comes out otherwise." in finding.found
    fewer = found(changed(comparisons=CLEAN.comparisons[1:]))["recomputed"]
    assert "and 1 row or comparison is on one side only" in fewer.found
    strange = [dict(row, variant=f"v{i}") for i, row in enumerate(ROWS)]
    assert "476 arms, but the profile has 28 rows" in found(CLEAN, strange)["recomputed"].found
    twice = found(CLEAN, [*ROWS, ROWS[-1]])["recomputed"]
    assert "The samples contradict themselves" in twice.found


def test_a_phi_that_is_missing_everywhere() -> None:
    bare = [
        c.model_copy(
            update={
                "phi_exposed_s": absent("no bypass"),
                "phi_unfused_s": absent("no unfused"),
                **dict.fromkeys(("quality_exposed", "quality_unfused"), NO_QUALITY),
            }
        )
        for c in CLEAN.comparisons
    ]
    findings = found(changed(comparisons=tuple(bare)), "none")
    assert "4 of 4 planned comparisons (100 %) are not there" in findings["gaps"].found
    assert "unconverged" not in findings


NO_QUALITY = Quality(
    half_width_over_best16=None, between_process_spread_s=None, converged=None, reason="planted"
)


def test_what_chance_gives() -> None:
    """P(Binomial(100, 0.06) >= 12) = 0.0168 and >= 13: 0.0069, from a table."""
    assert not beyond_chance(12, 100, 0.06)
    assert beyond_chance(13, 100, 0.06)
    assert not beyond_chance(0, 0, 0.06)
    assert not beyond_chance(1, 2, 0.06)
    assert beyond_chance(2, 2, 0.06)


def test_words() -> None:
    assert share_of(1, 20, "row", "are") == "1 of 20 rows (5 %) is"
    assert share_of(3, 20, "φ") == "3 of 20 φ (15 %)"
    assert percent(0.0004) == "< 0.1 %"
    assert percent(0) == "0 %"
    assert number(1, "process", "processes") == "1 process"
    assert number(2, "process", "processes") == "2 processes"
    assert listed(["a", "b", "c"], 2) == "a, b and 1 more"
    assert at_batches([1, 1, 8]) == ", at batch 1 (2), 8 (1)"
    assert at_batches([4]) == ", at batch 4"
    assert at_batches([1, 2, 3, 4, 4]) == ", most at batch 4 (2), 1 (1), 2 (1)"
    assert size(3 << 20) == "3 MiB"
    assert size(5 << 30) == "5 GiB"

"""Each accusation against joules that have exactly that fault, and none against those that have none."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import planted_energy
import pyarrow as pa
import pytest

from bench import check
from bench.analysis.energy import WindowEnergy
from bench.analysis.energy_trials import combine
from bench.analysis.findings import Finding
from bench.analysis.joules import Joules
from bench.analysis.trust_energy import examine_energy
from profiles.reader import load_profile, load_samples
from profiles.schema import Energy, EnergyCurve, EnergyRow, Profile, Quantity, absent
from profiles.sensors import Traits

ANY = ("measured", "modelled", "simulated", "imported")


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return planted_energy.write(tmp_path_factory.mktemp("energy"))


@pytest.fixture
def profile(path: Path) -> Profile:
    return load_profile(path, allow=ANY)


@pytest.fixture(scope="module")
def again(path: Path) -> Joules:
    found = check.joules_again(load_profile(path, allow=ANY), path.parent)
    assert isinstance(found, Joules)
    return found


@pytest.fixture
def samples(path: Path, profile: Profile) -> pa.Table:
    return load_samples(profile, path.parent)


def found(
    profile: Profile, again: Joules | str, samples: pa.Table | str = ""
) -> dict[str, Finding]:
    """By topic, but for the planted kernels' curves, which do not keep to a + b / batch."""
    findings = list(examine_energy(profile, again, samples))
    for f in findings:
        for sentence in (f.found, f.why, f.do):
            assert sentence.endswith(".")
            assert ".." not in sentence
            assert "  " not in sentence
    return {f.topic: f for f in findings if f.topic != "curve"}


def with_energy(profile: Profile, **changes: Any) -> Profile:
    energy = profile.energy.model_copy(update=changes)
    return profile.model_copy(update={"energy": energy})


def with_row(profile: Profile, index: int = 0, **changes: Any) -> Profile:
    rows = list(profile.energy.rows)
    rows[index] = rows[index].model_copy(update=changes)
    return with_energy(profile, rows=tuple(rows))


def scaled(q: Quantity, factor: float) -> Quantity:
    ends = {
        n: None if (e := getattr(q, n)) is None else factor * e for n in ("value", "low", "high")
    }
    return q.model_copy(update=ends)


def test_nothing_is_held_against_sound_joules(
    profile: Profile, again: Joules, samples: pa.Table
) -> None:
    assert len(profile.energy.rows) == 12
    assert found(profile, again, samples) == {}


def test_a_fit_that_does_not_describe_its_points(profile: Profile, again: Joules) -> None:
    (finding,) = [f for f in examine_energy(profile, again, "") if f.topic == "curve"]
    assert finding.severity == "note"
    assert finding.found.startswith(
        "In 2 of 4 curves (50 %), a + b / batch does not describe the points: bypass (int4-g128), "
        "fused (int4-g128). The first says: a + b / batch does not describe batch 8"
    )
    straight = tuple(c.model_copy(update={"reason": ""}) for c in profile.energy.curves)
    assert not list(examine_energy(with_energy(profile, curves=straight), again, ""))


# ------------------------------------------------------------------------------------- the trace


@pytest.mark.parametrize(("kind", "severity"), [("measured", "serious"), ("simulated", "caution")])
def test_a_power_trace_that_is_not_there(profile: Profile, kind: Any, severity: str) -> None:
    findings = found(profile.model_copy(update={"kind": kind}), "there is no file x.power.parquet.")
    assert set(findings) == {"trace"}
    assert findings["trace"].severity == severity
    assert findings["trace"].found == (
        "The power trace cannot be had: there is no file x.power.parquet."
    )


def test_traces_that_were_lost_changed_or_are_none(tmp_path: Path) -> None:
    path = planted_energy.write(tmp_path, (1,))
    trace = next(tmp_path.glob("*.power.parquet"))
    content = bytearray(trace.read_bytes())

    def said() -> str:
        _, findings = check.check(path)
        return " ".join(f.found for f in findings if f.topic in ("trace", "replayed"))

    assert said() == ""
    content[1000] ^= 1
    trace.write_bytes(content)
    assert "is not the file that its profile was written with (SHA-256)." in said()
    trace.unlink()
    assert "there is no file" in said()
    data = json.loads(path.read_text())
    samples = data["samples"]
    # the samples are a sound file, but of something else
    data["energy"]["traces"] = {"int4-g128": samples}
    path.write_text(json.dumps(data))
    assert "is not a sound file of power traces: it has other columns." in said()
    data["energy"]["traces"] = {}
    path.write_text(json.dumps(data))
    assert said() == (
        "The power trace cannot be had: this profile was written without a power trace."
    )


@pytest.mark.parametrize("field", ["energy_j", "net_j", "token_j", "power_w", "idle_w", "layer_s"])
def test_a_number_of_a_row_that_the_trace_does_not_give(
    profile: Profile, again: Joules, field: str
) -> None:
    quantity = getattr(profile.energy.rows[3], field)
    findings = found(with_row(profile, 3, **{field: scaled(quantity, 0.999)}), again)
    assert set(findings) == {"replayed"}
    assert findings["replayed"].severity == "serious"
    # 12 arms of 6 numbers and their joules among all rows, 4 curves of 2, 3 layers of 4
    assert findings["replayed"].found == (
        "Computed again from the power trace, 1 of 104 numbers (0.96 %) in joules, watts and their ratios "
        "comes out otherwise."
    )


@pytest.mark.parametrize(
    "field", ["phi_exposed_j", "phi_unfused_j", "energy_ratio_fused", "energy_ratio_unfused"]
)
def test_a_phi_or_ratio_in_joules_that_the_trace_does_not_give(
    profile: Profile, again: Joules, field: str
) -> None:
    comparisons = list(profile.comparisons)
    at = next(i for i, c in enumerate(comparisons) if c.operator == "layer" and c.batch == 8)
    quantity = getattr(comparisons[at], field)
    assert quantity.value is not None
    comparisons[at] = comparisons[at].model_copy(update={field: scaled(quantity, 1.01)})
    findings = found(profile.model_copy(update={"comparisons": tuple(comparisons)}), again)
    assert set(findings) == {"replayed"}
    assert findings["replayed"].affected == 1


def test_curves_arms_and_rows_that_the_trace_does_not_give(profile: Profile, again: Joules) -> None:
    first, *others = profile.energy.curves
    moved = first.model_copy(update={"b_j": scaled(first.b_j, 2.0)})
    assert found(with_energy(profile, curves=(moved, *others)), again)["replayed"].affected == 1
    fewer = found(with_energy(profile, rows=profile.energy.rows[1:]), again)
    assert "0 of" in fewer["replayed"].found
    assert fewer["replayed"].found.endswith("and 1 row or curve is on one side only.")
    twice = with_energy(profile, rows=(*profile.energy.rows, profile.energy.rows[0]))
    assert found(twice, again)["replayed"].found.endswith("1 row or curve is on one side only.")
    rows = [
        r.model_copy(update={"energy_j": scaled(r.energy_j, 1.5)}) if r.energy_j.value else r
        for r in profile.rows
    ]
    assert found(profile.model_copy(update={"rows": tuple(rows)}), again)["replayed"].affected == 12


def test_windows_that_were_left_out_of_the_profile(profile: Profile, again: Joules) -> None:
    findings = found(with_row(profile, 2, windows=2), again)
    assert findings["replayed"].found == (
        "Of 1 of 12 arms (8.3 %), the power trace has another number of good, refused or throttled "
        "windows, at batch 1."
    )


def test_joules_that_no_window_gave(profile: Profile) -> None:
    findings = found(profile.model_copy(update={"energy": Energy(reason="no sensor")}), "")
    # 12 arms, and two φ and two ratios of three layers
    assert findings["replayed"].found == (
        "24 numbers in joules are there, but no energy windows that gave them."
    )
    assert findings["replayed"].severity == "serious"


def test_no_joules_is_a_note_where_they_could_have_been_measured(profile: Profile) -> None:
    none = profile.model_copy(
        update={
            "energy": Energy(reason="no energy sensor: NVML: none."),
            "rows": (),
            "comparisons": (),
        }
    )
    assert found(none, "") == {}
    findings = found(none.model_copy(update={"kind": "measured"}), "")
    assert set(findings) == {"joules"}
    assert findings["joules"].severity == "note"
    assert findings["joules"].found == "There are no joules: no energy sensor: NVML: none."


# ------------------------------------------------------------------------------------- the windows


def with_trials(again: Joules, change: Any) -> Joules:
    """The arms with other windows, `change(index, window)`; rows and curves stay."""
    arms = {
        key: replace(
            arm,
            trials=(trials := tuple(change(i, w) for i, w in enumerate(arm.trials))),
            spread=combine(trials, "simulated").spread,
        )
        for key, arm in again.arms.items()
    }
    return replace(again, arms=arms)


@pytest.mark.parametrize(
    ("step", "severity", "widest"),
    [(0.02, None, ""), (0.03, "caution", "5.8 %"), (0.06, "serious", "11 %")],
)  # three windows 1, 1 + step, 1 + 2 step range over 2 step / (1 + step) of their mean
def test_windows_that_scatter(
    profile: Profile, again: Joules, step: float, severity: str | None, widest: str
) -> None:
    def spread(i: int, w: WindowEnergy) -> WindowEnergy:
        return replace(w, gross_j=1 + step * i)

    findings = list(examine_energy_windows(with_trials(again, spread)))
    if severity is None:
        assert findings == []
        return
    (finding,) = findings
    assert (finding.topic, finding.severity) == ("scattered", severity)
    assert finding.found == (
        f"Of 12 of 12 arms (100 %), the windows range over more than 5 % of their mean, the widest over "
        f"{widest}, most at batch 1 (4), 8 (4), 64 (4)."
    ).replace(", most at", ", at")


def examine_energy_windows(again: Joules) -> list[Finding]:
    from bench.analysis import trust_energy

    return list(trust_energy._windows(again))


def test_idle_power_that_drifts(again: Joules) -> None:
    def warmer(i: int, w: WindowEnergy) -> WindowEnergy:
        return replace(w, idle_before_w=60.0, idle_after_w=60.0 if i else 80.0)

    (finding,) = examine_energy_windows(with_trials(again, warmer))
    assert (finding.topic, finding.severity) == ("drift", "caution")
    assert finding.found.startswith(
        "In 12 of 36 windows (33 %), idle power before and after differed by more than 10 %, at most by 29 %"
    )

    def steady(i: int, w: WindowEnergy) -> WindowEnergy:
        return replace(w, idle_before_w=60.0, idle_after_w=65.0)

    assert examine_energy_windows(with_trials(again, steady)) == []


# ------------------------------------------------------------------------------------- the profile


@pytest.mark.parametrize(
    ("field", "factor"),
    [("energy_j", -1.0), ("token_j", 0.0), ("power_w", -1.0), ("layer_s", -1.0), ("net_j", 5.0)],
)
def test_joules_that_cannot_be(profile: Profile, field: str, factor: float) -> None:
    row = profile.energy.rows[0]
    value = factor * getattr(row, field).value
    quantity = Quantity(value=value, low=value, high=value, kind="simulated")
    findings = found(with_row(profile, 0, **{field: quantity}), "gone.")
    assert set(findings) == {"trace", "impossible"}
    assert findings["impossible"].severity == "serious"
    assert findings["impossible"].found.startswith(
        "1 of 12 arms (8.3 %) have joules, watts or seconds"
    )


def test_refused_windows(profile: Profile) -> None:
    one = found(with_row(profile, 1, windows=2, refused=("it was frozen.",)), "gone.")["refused"]
    assert one.severity == "note"  # 1 of 36
    assert one.found == (
        "1 of 36 energy windows (2.8 %) was refused, at batch 1, and none of 12 arms have no joules for "
        "it. The first says: it was frozen."
    )
    lost = with_row(
        profile, 1, windows=0, refused=("a", "b", "c"),
        **dict.fromkeys(("energy_j", "net_j", "token_j"), absent("gone", "simulated")),
    )  # fmt: skip
    assert found(lost, "gone.")["refused"].severity == "caution"
    assert "3 of 36 energy windows (8.3 %) were refused" in found(lost, "gone.")["refused"].found
    many = profile
    for index in range(4):
        many = with_row(many, index, windows=2, refused=("a",))
    assert found(many, "gone.")["refused"].severity == "caution"  # 4 of 36


def test_throttled_windows(profile: Profile) -> None:
    finding = found(with_row(profile, 0, flags=("throttled",)), "gone.")["throttled windows"]
    assert finding.severity == "caution"
    assert finding.found == "1 of 12 arms (8.3 %) throttled in an energy window, at batch 1."


def test_sampling_that_failed_or_was_late(profile: Profile) -> None:
    cost = profile.energy.sampling
    assert cost is not None
    sound = cost.model_copy(update={"readings": 1000, "failed": 10, "late": 10})
    assert "sampling" not in found(with_energy(profile, sampling=sound), "gone.")
    late = sound.model_copy(update={"late": 11, "longest_read_s": 0.25})
    finding = found(with_energy(profile, sampling=late), "gone.")["sampling"]
    assert finding.severity == "caution"
    assert finding.found == (
        "Of 1000 readings of the sensor, 10 failed (1 %) and 11 came late (1.1 %); the slowest took 0.25 s."
    )


def traits(**changes: Any) -> Traits:
    fields: dict[str, Any] = {
        "model": "a", "update_s": 0.1, "averaging_s": {"power_instant_w": 0.025, "power_average_w": 1.0},
        "counter_update_s": 0.1, "lag_s": 0.0,
    }  # fmt: skip
    return Traits(**fields | changes)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"update_s": 0.119, "counter_update_s": 0.081}, ""),
        ({"update_s": 0.2}, "power updates every 200 ms (100)"),
        ({"counter_update_s": 0.02}, "the counter updates every 20 ms (100)"),
        ({"averaging_s": {"power_average_w": 0.1}}, "power_average_w averages over 100 ms (1e+03)"),
    ],
)
def test_a_sensor_unlike_the_published_one(
    profile: Profile, changes: dict[str, Any], text: str
) -> None:
    measured = with_energy(profile, published=traits(), characterised=traits(**changes))
    findings = found(measured, "gone.")
    assert set(findings) == ({"trace", "sensor"} if text else {"trace"})
    if text:
        assert findings["sensor"].severity == "caution"
        assert findings["sensor"].found == (
            f"The sensor is not like the published one (in brackets): {text}."
        )


def test_a_sensor_of_which_less_is_known(profile: Profile) -> None:
    found_only = found(with_energy(profile, published=None), "gone.")
    assert set(found_only) == {"trace", "gain"}
    assert found_only["gain"].severity == "caution"
    neither = with_energy(profile, characterised=None, characterised_reason="it changed twice")
    findings = found(neither, "gone.")
    assert findings["sensor"].severity == "note"
    assert findings["sensor"].found == (
        "The sensor was not characterised (it changed twice); published numbers were used."
    )


def test_clocks_that_differ_from_those_of_the_timing(profile: Profile, samples: pa.Table) -> None:
    index = samples.schema.get_field_index("sm_clock_mhz")
    clocks = pa.array([1000.0] * samples.num_rows)
    timed = samples.set_column(index, samples.schema.field(index), clocks)
    row: EnergyRow = profile.energy.rows[0]
    for clock, topics in ((1049.0, {"trace"}), (900.0, {"trace", "window clocks"})):
        changed = with_row(profile, 0, sm_clock_mhz=clock)
        assert set(found(changed, "gone.", timed)) == topics
        assert set(found(changed, "gone.", samples)) == {"trace"}
    finding = found(changed, "gone.", timed)["window clocks"]
    assert finding.found == (
        "1 of 1 arm (100 %) ran at other clocks in the energy windows than when they were timed, at most "
        f"900 MHz instead of 1000, at batch {row.batch}."
    ).replace("1 of 1 arm (", "1 of 1 arms (")


def test_a_curve_without_a_fit_is_not_accused(profile: Profile) -> None:
    gone = absent("2 batches have joules", "simulated")
    curve = EnergyCurve(
        format="int4-g128", arm="fused", implementation="a", a_j=gone, b_j=gone, largest_residual=None,
        fits=None, reason="2 batches have joules",
    )  # fmt: skip
    findings = examine_energy(with_energy(profile, curves=(curve,)), "gone.", "")
    assert {f.topic for f in findings} == {"trace"}

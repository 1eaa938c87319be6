"""What a report says of joules: tables with the profile's numbers, verdicts, flags and reasons."""

from __future__ import annotations

import planted_energy
import pytest
from rich.console import Console

from bench.report import render
from profiles.reader import load_profile
from profiles.schema import Energy, Profile, absent


@pytest.fixture(scope="module")
def profile(tmp_path_factory: pytest.TempPathFactory) -> Profile:
    path = planted_energy.write(tmp_path_factory.mktemp("profile"))
    return load_profile(path, allow=("simulated",))


def printed(profile: Profile, width: int = 80) -> str:
    console = Console(width=width, force_terminal=False)
    with console.capture() as captured:
        console.print(render(profile))
    return captured.get()


def test_the_tables_hold_the_joules_of_the_profile(profile: Profile) -> None:
    text = printed(profile)
    table = text[text.index("int4-g128: energy of one layer, mJ") :]
    layer = {c.batch: c for c in profile.comparisons if c.operator == "layer"}
    rows = {(r.kernel.arm, r.batch): r for r in profile.energy.rows}
    for batch in (1, 8, 64):
        line = next(ln for ln in table.splitlines() if ln.startswith(f"{batch} "))
        cells = line.split()[1:]
        for cell, arm in zip(cells, ("vendor", "bypass", "fused", "unfused"), strict=False):
            assert float(cell) == pytest.approx(
                rows[arm, batch].energy_j.value * 1e3,
                rel=0.02,  # type: ignore[operator]
            )
        assert float(cells[4]) == pytest.approx(layer[batch].phi_exposed_j.value * 1e3, rel=0.06)  # type: ignore[operator]
    assert "linear-operator energy per token" in " ".join(text.split())
    assert all(len(line) <= 80 for line in text.splitlines())


def test_a_verdict_in_joules_stands_beside_the_one_in_seconds(profile: Profile) -> None:
    flat = " ".join(printed(profile).split())
    assert "In joules int4-g128 fused beats fp16 (vendor, simulated-library)" in flat
    assert "In joules int4-g128 unfused loses to fp16" in flat
    assert "Joules are gross, of a simulated board; sensor: simulated, gain known to ±5%." in flat
    assert "0 readings failed" in flat


def test_arms_without_joules_are_named_once_with_their_reason(profile: Profile) -> None:
    rows = [
        r.model_copy(update={"energy_j": absent("the GPU is lost", "simulated")})
        if r.kernel.arm == "fused" and r.batch != 1
        else r
        for r in profile.energy.rows
    ]
    energy = profile.energy.model_copy(update={"rows": tuple(rows)})
    flat = " ".join(printed(profile.model_copy(update={"energy": energy})).split())
    assert "No joules of int4-g128 fused at batch 8, 64: the GPU is lost." in flat
    assert flat.count("the GPU is lost") == 1


def test_throttled_windows_are_marked_and_named(profile: Profile) -> None:
    rows = tuple(
        r.model_copy(update={"flags": ("throttled",)}) if r.batch == 8 else r
        for r in profile.energy.rows
    )
    comparisons = tuple(
        c.model_copy(update={"energy_flags": ("throttled",)}) if c.batch == 8 else c
        for c in profile.comparisons
    )
    changed = profile.model_copy(
        update={
            "energy": profile.energy.model_copy(update={"rows": rows}),
            "comparisons": comparisons,
        }
    )
    text = printed(changed)
    table = text[text.index("int4-g128: energy of one layer, mJ") :]
    assert any(line.startswith("8† ") for line in table.splitlines())
    assert any(line.startswith("1 ") for line in table.splitlines())
    flat = " ".join(text.split())
    assert (
        "† joules throttled, clocks were held down in some windows: int4-g128 bypass at batch 8"
        in flat
    )


def test_without_a_sensor_the_reason_is_there_and_no_table(profile: Profile) -> None:
    without = profile.model_copy(update={"energy": Energy(reason="no energy sensor: none here")})
    without = without.model_copy(
        update={
            "comparisons": tuple(
                c.model_copy(
                    update=dict.fromkeys(
                        ("energy_ratio_fused", "energy_ratio_unfused"),
                        absent("no energy", "simulated"),
                    )
                )
                for c in without.comparisons
            )
        }
    )
    text = printed(without)
    assert "Joules: absent, no energy sensor: none here." in " ".join(text.split())
    assert "energy of one layer" not in text
    assert "In joules" not in text


def test_a_simulated_profile_says_so_before_any_joule(profile: Profile) -> None:
    text = printed(profile)
    assert text.lstrip().startswith("SIMULATED on simulated H100")

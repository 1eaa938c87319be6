"""`python -m bench.trap` from a file to its words: what it answers, refuses, and leaves absent."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import typer
from rich.console import Console
from test_bench_ladder import energy_row
from trap_profiles import OPERATORS, WITH_LOWP, book, planted, simple
from typer.testing import CliRunner

import bench.trap
from bench.analysis import replicates
from bench.analysis.advice import advise
from bench.analysis.hops import chains
from bench.analysis.indices import Weights, indices, read_accuracy
from bench.analysis.low_precision import lacking_sentences, ratio
from bench.analysis.phi_curve import layers_of
from bench.analysis.replicates import Book, Draws, drawn, problem_of
from bench.analysis.trap import Questions, analyse
from bench.trap_tables import render
from profiles.fidelity import Fidelity, FidelityRow, fidelity_of
from profiles.reader import ProfileError, load_profile, write_profile
from profiles.schema import LAYER, Energy, Kind, Quality, Quantity, absent

BATCHES = (1, 16, 64, 256)
WEIGHTS = sum(o.n * o.k for o in OPERATORS)


def run(*arguments: str | Path) -> Any:
    app = typer.Typer()
    app.command()(bench.trap.main)
    return CliRunner().invoke(app, [str(a) for a in arguments], env={"COLUMNS": "80"})


def write(folder: Path, name: str = "run.json", samples: bool = True, **settings: Any) -> Path:
    profile, table = planted(settings.pop("time", simple(phi=0.1e-12)), BATCHES, **settings)
    write_profile(profile, table if samples else None, folder / name)
    return folder / name


def spoken(text: str) -> str:
    """The output without line ends."""
    return " ".join(text.split())


def test_a_profile_is_answered_in_80_columns_and_drawn(tmp_path: Path) -> None:
    path = write(tmp_path, formats=("int4-g128", "int8-g128"))
    result = run(path)
    assert result.exit_code == 0, result.output
    assert max(len(line) for line in result.stdout.splitlines()) <= 80
    text = spoken(result.stdout)
    assert "MEASURED on Planted CPU: Qwen3-8B" in text
    # t16 = 33.2 us; fused 29.3 us at 64 and 75.9 us at 256, so by straight lines of logarithms 77
    assert re.search(r"int4-g128 fused wins_below 7[678] \(64 to 256\) no joules", text)
    assert "int4-g128 unfused never" in text
    assert "16 bits fit this device (15.3 GiB of weights, 20.0 GiB of memory" in text
    assert re.search(r"int4-g128 at load† wins_above 7[678] \(64 to 256\)", text)
    assert "the step form describes this hardware better" in text
    assert "rises from B = 16 to 64, 64 to 256" in text
    assert "dφ/dp exposed, symmetric integers, groups of 128, B = 1" in text
    assert "+1.88" in text or "+1.89" in text  # 33.2 us / 17.6 us, the profile's own layer
    assert re.search(
        r"Qwen3-8B, extrapolated as the others are, and as the profile has it: 2\.\d\d and 1\.8[89] at",
        text,
    )
    assert "No launch share" in text
    assert "There are no joules in this profile, so this is about time alone" in text
    assert "16 bits fit this device" in text
    for name in ("waterfall", "phi", "trap"):
        picture = path.with_suffix(f".{name}.png")
        assert picture.read_bytes().startswith(b"\x89PNG")
        assert picture.stat().st_size > 10_000


def test_other_kinds_are_read_only_when_named(tmp_path: Path) -> None:
    path = write(tmp_path, kind="modelled", samples=False)
    refused = run(path)
    assert refused.exit_code == 2
    assert "is not measured" in refused.output
    assert "--kind modelled" in spoken(refused.output)
    assert run(path, "--kind", "simulated").exit_code == 2
    result = run(path, "--kind", "modelled", "--no-pictures")
    assert result.exit_code == 0, result.output
    text = spoken(result.stdout)
    assert text.startswith("MODELLED on")
    assert "this profile has no samples, so pairing within blocks is absent" in text
    assert re.search(r"wins_below 7[678] \(64 to 256\)", text)
    assert not list(tmp_path.glob("*.png"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--batch", "3"), "batch 3 was not measured; choose from 1, 16, 64, 256"),
        (("--format", "nf4-b64"), "has no nf4-b64; it has int4-g128"),
        (("--weights", "1,2"), "three numbers"),
        (("--weights", "1,-2,3"), "three numbers"),
        (("--weights", "0,0,0"), "three numbers"),
        (("--accuracy", "nothing.csv"), "there is no file"),
        (("--other-launch", "run.json"), "has graph launches too"),
        (("--hops", "0"), "--hops"),
        (("--hops", "1" + 320 * "0"), "--hops"),
        (("--tokens-per-hop", "1" + 320 * "0"), "--tokens-per-hop"),
        (("--weights", "1e308,1e308,1e308"), "three numbers"),
    ],
)
def test_what_cannot_be_asked_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, str], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path)
    result = run("run.json", *arguments)
    assert result.exit_code == 2
    assert words in spoken(result.output.replace("│", " "))
    assert "Traceback" not in result.output


def test_files_that_cannot_be_read_are_one_sentence(tmp_path: Path) -> None:
    assert run(tmp_path / "nothing.json").exit_code == 2
    path = write(tmp_path)
    next(tmp_path.glob("*.parquet")).unlink()
    gone = run(path)
    assert gone.exit_code == 2
    assert "there is no file" in gone.output
    path = write(tmp_path, "again.json")
    fidelity_of(path).write_text("{}")
    bad = run(path)
    assert bad.exit_code == 2
    assert "no fidelity file" in spoken(bad.output)


def test_two_launch_modes_of_different_devices_do_not_mix(tmp_path: Path) -> None:
    path = write(tmp_path)
    other = write(tmp_path, "other.json", mode="eager", model="Qwen3-4B")
    result = run(path, "--other-launch", other)
    assert result.exit_code == 2
    assert "another device, model or activation" in spoken(result.output)


# Hops. ---------------------------------------------------------------------------------------------


def test_a_chain_is_its_layers_times_steps_and_its_launch_part_is_eager_less_graph() -> None:
    time = simple(phi=0.0)

    def slower(arm: str, o: Any, batch: int, weight_format: str) -> float:
        return float(time(arm, o, batch, weight_format) or 0) + (6e-6 if arm == "fused" else 0)

    graph = book(time, (1, 64))
    eager = book(slower, (1, 64), mode="eager", seed=9)
    for here, there in ((graph, eager), (eager, graph)):
        found = {c.role: c for c in chains(here, 4, 256, 1, there)}
        fused = found["fused"]
        layer_s = 3 * (2e-6 if here is graph else 8e-6) + 0.2e-12 * WEIGHTS
        assert fused.time_s.value == pytest.approx(4 * 256 * 36 * layer_s, rel=0.01)
        assert fused.launch_s.value == pytest.approx(4 * 256 * 36 * 3 * 6e-6, rel=0.02)
        assert found["best16"].launch_s.low < 0 < found["best16"].launch_s.high
    (fused,) = (c for c in chains(graph, 4, 256, 1) if c.role == "fused")
    assert fused.launch_s.value is None
    assert fused.not_amortised.value == pytest.approx(
        64, rel=0.01
    )  # nothing here grows with the batch
    assert fused.amortised_at == 64


def test_a_format_that_lacks_the_largest_batch_has_no_cost_over_it() -> None:
    b = book(simple(phi=0.0), (1, 64), formats=("int4-g128", "int8-g128"))
    kept = tuple(c for c in b.profile.comparisons if (c.format, c.batch) != ("int8-g128", 64))
    b.profile = b.profile.model_copy(update={"comparisons": kept})
    found = {(c.format, c.role): c.not_amortised for c in chains(b, 4, 256, 1)}
    assert found["int4-g128", "fused"].value == pytest.approx(64, rel=0.01)
    assert found["int8-g128", "fused"].value is None
    assert found["int8-g128", "fused"].reason == "int8-g128 fused was not measured there"


def test_joules_of_a_chain_need_windows() -> None:
    b = book(simple(), (1,))
    (c,) = layers_of(b)
    assert c.fused
    rows = (energy_row("fused", 2e-3, c.fused),)
    b.profile = b.profile.model_copy(update={"energy": Energy(rows=rows, sensor="planted")})
    found = {x.role: x for x in chains(b, 2, 10, 1)}
    assert found["fused"].energy_j.value == pytest.approx(2 * 10 * 36 * 2e-3)
    assert found["best16"].energy_j.value is None
    assert "no energy windows" in found["best16"].energy_j.reason


# lowp. ---------------------------------------------------------------------------------------------


def w8a8(arm: str, o: Any, batch: int, weight_format: str) -> float | None:
    """lowp: 12 us and 0.5 ps a weight against 2 us and 0.7 ps, and half the time of each row."""
    if arm == "lowp":
        return float(12e-6 + o.n * o.k * (0.5e-12 + 0.005e-12 * batch))
    return simple(phi=0.5e-12, row_s=0.01e-12)(arm, o, batch, weight_format)


def test_lowp_has_crossings_a_scale_a_map_chains_and_advice_of_its_own() -> None:
    b = book(w8a8, BATCHES, formats=("int8-ch",), arms=WITH_LOWP)
    found = analyse(b, Questions(batch=256, path="lowp"))
    # of a layer: 3 x 10 us = WEIGHTS x (0.2 + 0.005 B) ps
    turn = (30e-6 / WEIGHTS - 0.2e-12) / 0.005e-12
    crossing = found.crossings["int8-ch", "lowp", "time"]
    assert 64 < turn < 256
    assert (crossing.sign, crossing.at[0].low, crossing.at[0].high) == ("wins_above", 64, 256)
    assert crossing.at[0].value == pytest.approx(turn, rel=0.1)
    scale = next(s for s in found.scales if (s.path, s.batch) == ("lowp", 256))
    assert scale.sign == "wins_above"
    expected = 36 * 3 * 10e-6 / (0.2e-12 + 256 * 0.005e-12)
    assert scale.params.value == pytest.approx(expected, rel=0.02)
    (own,) = (c for m in found.maps for c in m.cells if c.measured and c.batch == 256)
    assert [m.path for m in found.maps] == ["lowp"]
    sixteen_s, lowp_s = (
        sum(float(w8a8(arm, o, 256, "int8-ch") or 0) for o in OPERATORS)
        for arm in ("native", "lowp")
    )
    assert own.ratio.value == pytest.approx(sixteen_s / lowp_s, rel=0.01)
    chain = next(c for c in found.chains if c.role == "lowp")
    assert chain.time_s.value == pytest.approx(4 * 256 * 36 * lowp_s, rel=0.01)
    assert (
        "int8-ch with the lowp kernel (activations quantized too) costs the least" in found.advice
    )
    assert "with quantized activations was not measured here" in found.advice
    assert found.no_lowp == ()
    assert not any(path == "lowp" for _, path, _ in found.theories)  # nothing is cast
    text = spoken(rendered(b, Questions(batch=256, path="lowp")))
    assert re.search(r"int8-ch lowp wins_above \d+ \(64 to 256\)", text)
    assert "int8-ch lowp, graph: time of best16 over it" in text
    assert "No lowp path" not in text


def test_what_quantizing_activations_changes_is_said_with_the_advice() -> None:
    b = book(w8a8, BATCHES, formats=("int8-ch",), arms=WITH_LOWP)
    errors = {"small": 0.004, "middle": 0.021, "large": 0.013}
    rows = tuple(
        r.model_copy(update={"activation_error": errors[r.operator]})
        if r.arm == "lowp" and r.operator in errors
        else r
        for r in b.profile.rows
    )
    b.profile = b.profile.model_copy(update={"rows": rows})
    found = analyse(b, Questions(batch=256), fidelity({"int8-ch": 0.01}))
    assert "quantizing them changes one product by up to 2.1% of its largest value" in found.advice
    assert "The chain of int8-ch" not in found.advice  # which multiplies 16-bit activations
    table = {
        name: Quantity(value=v, low=v, high=v) for name, v in (("16-bit", 60), ("int8-ch", 59))
    }
    told = analyse(b, Questions(batch=256, accuracy=table)).advice
    assert "The accuracy of int8-ch is 59" in told


def test_joules_of_lowp_are_those_of_its_windows() -> None:
    b = book(w8a8, (1, 256), formats=("int8-ch",), arms=WITH_LOWP)
    c = layers_of(b)[1]
    assert c.lowp
    assert c.best16
    rows = tuple(
        energy_row(kernel.arm, joules, kernel).model_copy(
            update={"format": "int8-ch", "batch": 256}
        )
        for kernel, joules in ((c.best16, 3e-3), (c.lowp, 2e-3))
    )
    b.profile = b.profile.model_copy(update={"energy": Energy(rows=rows, sensor="planted")})
    assert ratio(b, c, "lowp", "energy").value == pytest.approx(1.5)
    assert ratio(b, layers_of(b)[0], "lowp", "energy").reason.startswith("best16 and lowp had no")
    found = analyse(b, Questions(batch=256))
    assert found.crossings["int8-ch", "lowp", "energy"].sign == "always"
    assert "costs the least energy" in found.advice


def test_joules_are_drawn_once_however_many_cells_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    b = book(w8a8, BATCHES, formats=("int8-ch",), arms=WITH_LOWP)
    c = layers_of(b)[0]
    assert c.best16
    assert c.lowp
    rows = tuple(energy_row(kernel.arm, 3e-3, kernel) for kernel in (c.best16, c.lowp))
    b.profile = b.profile.model_copy(update={"energy": Energy(rows=rows, sensor="planted")})
    asked: list[object] = []

    def counted(q: Quantity, key: tuple[object, ...], *settings: Any) -> Draws | None:
        asked.append(key[0])
        return drawn(q, key, *settings)

    monkeypatch.setattr(replicates, "drawn", counted)
    analyse(b, Questions(batch=1))
    assert asked.count("joules") == len(rows)


def test_paths_with_a_time_but_no_joules_are_named_where_advice_is_about_joules() -> None:
    b = book(w8a8, (256,), formats=("int8-ch",), arms=WITH_LOWP)
    (c,) = layers_of(b)

    def advised(fused: float) -> str:
        planted = Quantity(value=fused, low=0.95 * fused, high=1.05 * fused)
        measured = c.model_copy(
            update={"energy_ratio_fused": planted, "energy_ratio_unfused": planted}
        )
        return advise(b, 256, [measured], {}, None)

    sixteen_s, lowp_s = (
        sum(float(w8a8(arm, o, 256, "int8-ch") or 0) for o in OPERATORS)
        for arm in ("native", "lowp")
    )
    said = f"int8-ch lowp has no joules here; in time best16 over it is {sixteen_s / lowp_s:.3g} ("
    lost, even, won = (advised(ratio) for ratio in (0.5, 1.0, 2.0))
    for text in (lost, even, won):
        assert said in text
        assert "Only --energy full measures them." in text
    assert "every quantized path with joules costs more energy" in lost
    assert "the best quantized path with joules (int8-ch, fused)" in even
    assert "costs the least energy of the linear operators of all paths with joules: 50 %" in won
    assert "no joules here" not in advise(b, 256, [c], {}, None)  # all of it is about time


def test_formats_without_a_lowp_path_are_named_with_the_reason(tmp_path: Path) -> None:
    text = spoken(run(write(tmp_path), "--no-pictures").stdout)
    assert "No lowp path for int4-g128: the profile has no kernel whose tensor cores" in text
    b = book(w8a8, (1,), formats=("int8-ch",), arms=WITH_LOWP)
    why = "not modelled: quantizing x is one program for each of its rows"
    comparisons = tuple(
        c.model_copy(update={"lowp_product": c.lowp, "lowp": None, "speedup_lowp": absent(why)})
        for c in b.profile.comparisons
    )
    b.profile = b.profile.model_copy(update={"comparisons": comparisons})
    assert list(lacking_sentences(b)) == [f"No lowp path for int8-ch: {why}."]
    failed = tuple(
        r.model_copy(update={"failure": "not on this device: FP8", "time_s": absent("failed")})
        if r.arm == "lowp"
        else r
        for r in b.profile.rows
    )
    none = tuple(c.model_copy(update={"lowp_product": None}) for c in comparisons)
    b.profile = b.profile.model_copy(update={"comparisons": none, "rows": failed})
    assert list(lacking_sentences(b)) == ["No lowp path for int8-ch: not on this device: FP8."]


# Indices. ------------------------------------------------------------------------------------------


def fidelity(errors: dict[str, float]) -> Fidelity:
    from bench.measure.fidelity import SHAPE

    rows = tuple(
        FidelityRow(format=name, distribution="gaussian", implementation="numba", layers=8 * hops,
                    hops=hops, errors=(e * hops,) * 6)
        for name, e in errors.items() for hops in (1, 2, 4)
    )  # fmt: skip
    return Fidelity(
        created=datetime(2026, 1, 31, tzinfo=UTC), kind="measured", shape=SHAPE,
        seeds=(1, 2, 3, 4, 5, 6), kernels_sha256="0" * 64, rows=rows,
    )  # fmt: skip


def faster_with_fewer_bits(arm: str, o: Any, batch: int, weight_format: str) -> float | None:
    c_q = 0.2e-12 if weight_format.startswith("int4") else 0.35e-12
    return simple(t0_q=1e-9, t0_16=1e-9, phi=0.0, c_q=c_q)(arm, o, batch, weight_format)


def test_si_is_the_weighted_sum_and_the_trap_is_a_rise_with_bits() -> None:
    b = book(faster_with_fewer_bits, (1,), formats=("int4-g128", "int8-g128"))
    errors = fidelity({"int4-g128": 0.2, "int8-g128": 0.01})
    weights = Weights(trust=0.75, environment=0.0, economy=0.25)
    rows, steps = indices(b, 1, weights, errors, 4, None)
    four, eight = rows
    assert (four.trust.value, eight.trust.value) == pytest.approx((0.2, 0.96))
    assert four.economy.value == pytest.approx(3.5, rel=0.01)
    assert four.si.value == pytest.approx(0.75 * 0.2 + 0.25 * 3.5, rel=0.01)
    assert eight.si.value == pytest.approx(0.75 * 0.96 + 0.25 * 2.0, rel=0.01)
    assert [s.formats for s in steps] == [
        ("int4-g128", "int8-g128"), ("int4-g128", "16-bit"), ("int8-g128", "16-bit"),
    ]  # fmt: skip
    assert [s.family for s in steps] == ["symmetric integers, groups of 128", "", ""]
    assert [s.outcome for s in steps] == ["trap", "no trap", "no trap"]  # 1.025, 1.22, 1
    assert steps[0].slope.value == pytest.approx((1.22 - 1.025) / 4, rel=0.03)
    assert steps[2].slope.value == pytest.approx((1 - 1.22) / (16 - 8.125), rel=0.03)


def test_no_derivative_is_taken_between_families() -> None:
    """Per bit, from int4 in groups to int8 per row or to NF4: scales, codes and kernels change too."""
    b = book(faster_with_fewer_bits, (1,), formats=("int4-g128", "nf4-b64", "int8-ch"))
    _, steps = indices(b, 1, Weights(0.0, 0.0, 1.0), None, 4, None)
    assert [(s.formats, s.family) for s in steps] == [
        (("int4-g128", "16-bit"), ""), (("nf4-b64", "16-bit"), ""), (("int8-ch", "16-bit"), ""),
    ]  # fmt: skip
    text = spoken(rendered(b, Questions(batch=1, weights=Weights(0.0, 0.0, 1.0))))
    assert "dSI/dp: absent, no two formats differ in their bits alone" in text
    # t16 / t4 = 0.7 / 0.2, so SI(16) - SI = 1 - 3.5
    assert re.search(r"Step from 16 bits to int4-g128 \(4\.1.*?SI\(16\) - SI = -2\.[45]", text)


def rendered(b: Book, questions: Questions) -> str:
    console = Console(width=80, file=StringIO())
    console.print(render(b, analyse(b, questions), None))
    return console.file.getvalue()


def test_a_missing_term_makes_si_absent_unless_it_does_not_count() -> None:
    b = book(simple(), (1,))
    (row,), steps = indices(b, 1, Weights(), None, 4, None)
    assert row.si.value is None
    assert "trust is absent" in row.si.reason
    assert not steps
    (row,), _ = indices(b, 1, Weights(0.0, 0.0, 1.0), None, 4, None)
    assert row.si.value == pytest.approx(row.economy.value)
    (row,), _ = indices(b, 1, Weights(0.0, 0.5, 0.5), None, 4, None)
    assert "environment is absent" in row.si.reason


def test_a_table_of_accuracies_replaces_the_proxy(tmp_path: Path) -> None:
    table = tmp_path / "accuracy.csv"
    table.write_text("format,accuracy,low,high\n16-bit,0.8,0.78,0.82\nint4-g128,0.6,0.58,0.62\n")
    found = read_accuracy(table)
    b = book(simple(), (1,))
    (row,), _ = indices(b, 1, Weights(1.0, 0.0, 0.0), fidelity({"int4-g128": 0.9}), 4, found)
    assert row.trust.value == pytest.approx(0.75)
    # 2.5 % of 0.8 and 3.3 % of 0.6, apart from each other: 4.17 % of 0.75
    assert (row.trust.low, row.trust.high) == pytest.approx((0.719, 0.781), abs=0.006)
    assert {row.trust.kind, row.si.kind} == {"imported"}


def test_si_from_a_table_without_intervals_has_none_and_decides_no_trap(tmp_path: Path) -> None:
    table = tmp_path / "accuracy.csv"
    table.write_text("format,accuracy\n16-bit,0.8\nint4-g128,0.2\n")
    b = book(simple(), (1,))
    half = Weights(0.5, 0.0, 0.5)
    (row,), (step,) = indices(b, 1, half, None, 4, read_accuracy(table))
    assert row.si.value == pytest.approx(0.5 * 0.25 + 0.5 * (row.economy.value or 0))
    assert (row.si.low, row.si.high, row.si.kind) == (None, None, "imported")
    assert "the table gives no interval" in row.si.reason
    assert (step.outcome, step.slope.kind, step.slope.low) == ("undecided", "imported", None)
    # with intervals it is decided, still imported
    table.write_text("format,accuracy,low,high\n16-bit,0.8,0.7,0.9\nint4-g128,0.2,0.19,0.21\n")
    only = Weights(1.0, 0.0, 0.0)
    (row,), (step,) = indices(b, 1, only, None, 4, read_accuracy(table))
    assert (step.outcome, step.slope.kind) == ("trap", "imported")
    assert (row.si.high or 0) - (row.si.low or 0) > 0.05  # the 16-bit row's interval counts
    # a table that counts for nothing leaves what was measured
    (row,), (step,) = indices(b, 1, Weights(0.0, 0.0, 1.0), None, 4, read_accuracy(table))
    assert (row.si.kind, step.slope.kind, step.outcome) == ("measured", "measured", "no trap")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("format,score\na,1\n", "columns format and accuracy"),
        ("format,accuracy\nint4-g128,0.5\n", 'row named "16-bit"'),
        ("format,accuracy\n16-bit,high\n", "line 2 needs an accuracy"),
        ("format,accuracy,low,high\n16-bit,0.5,0.6,0.7\n", "line 2 needs"),
        ("format,accuracy\n16-bit,0\n", "above 0"),
        ("", "first line"),
        (f"format,accuracy\n16-bit,{'1' * 131_073}\n", "no CSV table: field larger"),
        ("format,accuracy\n16-bit,1e-320\nint4-g128,0.5\n", "int4-g128, .* is out of range"),
        ("format,accuracy\n16-bit,1e308\n", "16-bit, .* is out of range"),
        ("format,accuracy,low,high\n16-bit,0.5,0.4,1e308\n", "16-bit, .* is out of range"),
        ("format,accuracy\n16-bit,61.5\nint4-g128,0.7\n", r"\(int4-g128\) beside .* \(16-bit\)"),
    ],
)
def test_bad_tables_of_accuracies_are_one_sentence(tmp_path: Path, text: str, words: str) -> None:
    table = tmp_path / "accuracy.csv"
    table.write_text(text)
    with pytest.raises(ProfileError, match=words):
        read_accuracy(table)


def test_a_table_may_begin_with_excels_byte_order_mark(tmp_path: Path) -> None:
    table = tmp_path / "accuracy.csv"
    table.write_bytes(b"\xef\xbb\xbfformat,accuracy\r\n16-bit,80\r\nint4-g128,60\r\nint2-g64,0\r\n")
    assert {name: q.value for name, q in read_accuracy(table).items()} == {
        "16-bit": 80, "int4-g128": 60, "int2-g64": 0,
    }  # fmt: skip


# Advice. -------------------------------------------------------------------------------------------


def advice(batch: int, **settings: Any) -> str:
    time = settings.pop("time", simple(phi=0.1e-12))
    return analyse(book(time, BATCHES, **settings), Questions(batch=batch)).advice


def test_advice_names_the_winner_how_sure_and_what_would_change_it() -> None:
    text = advice(1)
    assert "int4-g128 with the fused kernel costs the least time" in text
    assert "47 % (95 % interval 47 to 47 %) less" in text  # 1 - 17.6 / 33.2
    assert "from a batch between 64 and 256 on 16 bits win" in text
    lost = advice(256)
    assert "stay with 16 bits" in lost
    assert "below a batch between 64 and 256 it would win" in lost


def test_advice_says_what_is_known_of_the_accuracy_of_what_it_names() -> None:
    b = book(simple(phi=0.0), (1,))
    measured = fidelity({"int4-g128": 0.2})
    sixteen = {"16-bit": Quantity(value=61.5, low=60, high=63)}
    table = {**sixteen, "int4-g128": Quantity(value=58, low=57, high=59)}
    three = Questions(batch=1, hops=3)  # two were measured
    assert (
        "The chain of int4-g128 is off by 0.4 after 2 hops (measured;"
        in analyse(b, three, measured).advice
    )
    with_table = analyse(b, Questions(batch=1, accuracy=table), measured).advice
    assert "The accuracy of int4-g128 is 58, that of 16 bits 61.5 (imported)." in with_table
    assert "is off by" not in with_table
    lone = analyse(b, Questions(batch=1, accuracy=sixteen), measured).advice
    assert "The table of accuracies has no row for int4-g128." in lone
    for text in (advice(1), advice(1, time=simple(phi=0.0, c_q=0.7e-12), noise=0.05)):
        assert "The accuracy of int4-g128 was not measured here." in text
    assert "accuracy" not in advice(256)  # 16 bits are advised


def test_advice_says_when_nothing_is_decided_or_tied() -> None:
    even = simple(phi=0.0, c_q=0.7e-12)
    assert "nothing is decided" in advice(1, time=even, noise=0.05)
    assert "cannot be told apart from it" in advice(1, formats=("int4-g128", "nf4-b64"), noise=0.02)


def advised(*planted: tuple[float, float, float], kind: Kind = "measured") -> str:
    """Advice on one comparison per planted speed-up (value, low, high), fused only."""
    b = book(simple(), (1,))
    (c,) = layers_of(b)
    names = ("int4-g128", "int8-g128", "nf4-b64", "mxfp4", "nvfp4", "int4-g32")
    comparisons = [
        c.model_copy(
            update={"format": name, "speedup_fused": Quantity(value=v, low=low, high=high),
                    "speedup_unfused": absent("not planted")}
        )
        for name, (v, low, high) in zip(names, planted, strict=False)
    ]  # fmt: skip
    b.profile = b.profile.model_copy(update={"kind": kind})
    return advise(b, 1, comparisons, {}, None)


def test_a_sure_winner_goes_before_a_larger_ratio_that_may_be_none() -> None:
    text = advised((1.5, 0.9, 2.2), (1.4, 1.35, 1.45))
    assert "int8-g128 with the fused kernel costs the least time" in text
    assert "29 % (95 % interval 26 to 31 %) less" in text  # 1 - 1 / 1.4, 1.35, 1.45
    assert "int4-g128 fused cannot be told apart from it" in text


def test_not_every_path_costs_more_where_one_is_undecided() -> None:
    text = advised((0.9, 0.85, 0.95), (0.8, 0.5, 1.1))
    assert "every quantized path" not in text
    assert "nothing is decided: the best quantized path (int8-g128, fused)" in text
    assert "int4-g128 fused costs more." in text
    assert "every quantized path costs more" in advised((0.9, 0.85, 0.95), (0.8, 0.5, 0.95))


def test_rows_that_are_not_converged_or_flagged_are_said_above_and_in_the_advice(
    tmp_path: Path,
) -> None:
    profile, table = planted(simple(), (1, 16))
    quality = Quality(
        half_width_over_best16=0.1, between_process_spread_s=3e-6, converged=False,
        flags=("autocorrelated",),
    )  # fmt: skip
    sound = Quality(half_width_over_best16=0.01, between_process_spread_s=1e-6, converged=True)
    phi = Quantity(value=5e-6, low=4e-6, high=6e-6)
    doubted = [
        c.model_copy(
            update={"quality_exposed": quality if (c.operator, c.batch) == (LAYER, 1) else sound,
                    "quality_unfused": sound, "phi_exposed_s": phi, "phi_unfused_s": phi}
        )
        for c in profile.comparisons
    ]  # fmt: skip
    profile = profile.model_copy(update={"comparisons": tuple(doubted)})
    write_profile(profile, table, tmp_path / "run.json")
    text = spoken(run(tmp_path / "run.json", "--no-pictures").stdout)
    assert (
        "1 of 8 comparisons not converged, 1 flagged; intervals of φ, COR, speed-ups, B*, the map, indices "
        "and advice in time are resampled over processes too; those in the profile are of blocks within "
        "processes, the spread between them not included" in text
    )
    assert (
        "is 1 times the half-width of that interval in the middle, 3 times at most" in text
    )  # 3 us over (6 us - 4 us) / 2
    assert "Beware of this comparison: it is not converged" in text
    assert "flagged autocorrelated: neighbouring blocks depend on each other" in text
    other = spoken(run(tmp_path / "run.json", "--no-pictures", "--batch", "16").stdout)
    assert "Beware" not in other
    write_profile(profile.model_copy(update={"samples": None}), None, tmp_path / "bare.json")
    bare = spoken(run(tmp_path / "bare.json", "--no-pictures").stdout)
    assert "intervals of φ, speed-ups and B* are of blocks within processes, the spread" in bare
    assert "half-width of its interval in the middle" in bare


def test_processes_that_differ_are_in_every_interval_of_one_printout() -> None:
    """One of three has a fused kernel slower by half, of which the intervals in the profile know nothing."""
    profile, table = planted(simple(phi=0.0, c_q=0.58e-12), (1,))
    slow = [
        t * 1.5 if (arm, process) == ("fused", 2) else t
        for t, arm, process in zip(*(table[n].to_pylist() for n in ("time_s", "arm", "process")), strict=True)
    ]  # fmt: skip
    table = table.set_column(table.schema.get_field_index("time_s"), "time_s", [slow])
    paired = Book.open(profile, table, 400)
    (own,) = layers_of(paired)
    assert (own.speedup_fused.low or 0) > 1  # as the profile was written
    found = analyse(paired, Questions(batch=1, weights=Weights(0.0, 0.0, 1.0)))
    expected = paired.quantity(paired.ratio(problem_of(own), own.best16, own.fused))  # type: ignore[arg-type]
    assert (expected.low or 0) < 1 < (expected.value or 0)
    assert found.crossings["int4-g128", "fused", "time"].sign == "undecided"
    cell = next(c for c in found.maps[0].cells if c.measured)
    (row,) = found.indices
    for q in (cell.ratio, row.economy):
        assert q.value == own.speedup_fused.value
        assert (q.low, q.high) == pytest.approx((expected.low, expected.high), rel=0.01)
    assert (found.phi[0].exposed.high or 0) > 10 * (own.phi_exposed_s.high or 0)
    assert "nothing is decided" in found.advice


def test_every_tie_is_named_and_only_what_was_measured_has_more_blocks() -> None:
    text = advised(*[(1.4, 1.3, 1.5)] * 6)
    assert all(f"{name} fused" in text for name in ("nf4-b64", "mxfp4", "nvfp4", "int4-g32"))
    assert "More blocks" in advised((1.0, 0.9, 1.1))
    modelled = advised((1.0, 0.9, 1.1), kind="modelled")
    assert "More blocks" not in modelled
    assert "measure before you rely on it" in modelled


def test_a_trap_that_16_bits_cannot_escape_is_said() -> None:
    text = advice(256, model="Qwen3-32B")
    assert "16 bits do not fit this device (61.0 GiB of weights, 20.0 GiB of memory)" in text
    assert text.endswith("The trap cannot be escaped by using 16 bits.")
    assert "stay with 16 bits" not in text  # no advice to use what does not fit
    assert "every quantized path costs more time" in text
    assert "cannot be escaped" not in advice(1, model="Qwen3-32B")


def test_with_joules_the_answer_is_about_joules() -> None:
    b = book(simple(phi=0.1e-12), (1, 256))
    comparisons = tuple(
        c.model_copy(update={"energy_ratio_fused": Quantity(value=0.8, low=0.7, high=0.9)})
        if c.operator == LAYER
        else c
        for c in b.profile.comparisons
    )
    b.profile = b.profile.model_copy(update={"comparisons": comparisons})
    found = analyse(b, Questions(batch=1))
    assert "every quantized path with joules costs more energy" in found.advice
    assert "int4-g128 unfused has no joules here; in time" in found.advice
    assert "--energy full" not in found.advice  # which the default measures too
    assert "25 % (95 % interval 11 to 43 %)" in found.advice
    assert found.crossings["int4-g128", "fused", "energy"].sign == "never"
    assert found.crossings["int4-g128", "fused", "time"].sign == "wins_below"
    assert found.at_load_crossings["int4-g128", "energy"].sign == "always"  # 16 bits, once there


@pytest.mark.parametrize("kind", ["modelled", "imported"])
def test_every_answer_is_of_the_profiles_kind(tmp_path: Path, kind: Kind) -> None:
    path = write(tmp_path, kind=kind, samples=False)
    answers = analyse(Book.open(load_profile(path, allow=(kind,)), None, 100), Questions(batch=1))
    kinds = {q.kind for x in answers.ladders for q in (*x.parts.values(), x.total, x.exposed)}
    kinds |= {c.ratio.kind for m in answers.maps for c in m.cells}
    kinds |= {s.params.kind for s in answers.scales} | {c.time_s.kind for c in answers.chains}
    kinds |= {q.kind for c in answers.crossings.values() for q in c.at}
    assert kinds == {kind}

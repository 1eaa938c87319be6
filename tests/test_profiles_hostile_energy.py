"""Energy parts and power traces made by accident or in malice: findings or one sentence, within bounds."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hostile_files as hostile
import planted_energy
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console
from typer.testing import CliRunner

from bench import check, power, report
from bench.measure import replay as replay_module
from bench.measure.power.files import TraceFileError
from bench.measure.replay import replay
from profiles.files import ProfileError
from profiles.reader import load_profile

FAST_FILES, ALL_FILES = 60, 600


@dataclass(frozen=True)
class Small:
    """A sound profile with joules: its JSON, its power trace, and where both lie."""

    text: bytes
    trace: bytes
    path: Path
    trace_path: Path


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Small:
    path = planted_energy.write(tmp_path_factory.mktemp("energy"), (1,))
    (trace_path,) = path.parent.glob("*.power.parquet")
    return Small(path.read_bytes(), trace_path.read_bytes(), path, trace_path)


@pytest.fixture
def files(small: Small) -> Small:
    """The same, as they were."""
    small.path.write_bytes(small.text)
    small.trace_path.write_bytes(small.trace)
    return small


def survive(files: Small) -> str:
    """What became of the files as they lie there: "refused", "read", and whether the trace was."""
    try:
        profile, findings = check.check(files.path)
    except ProfileError as error:
        message = str(error)
        assert message.isprintable()
        assert message.endswith(".")
        return "refused"
    check.to_json(files.path, profile, findings)
    console = Console(width=120, file=(files.path.parent / "out").open("w"))
    with console.file:
        console.print(report.render(profile))
        console.print(check.render(profile, findings))
    return "read without its trace" if any(f.topic == "trace" for f in findings) else "read"


def replayed(files: Small) -> str:
    """ "joules", "none" or "refused", of the trace alone."""
    try:
        found = replay(files.trace_path)
    except TraceFileError as error:
        message = str(error)
        assert message.isprintable()
        assert message.endswith(".")
        return "refused"
    if found.joules is None:
        return "none"
    return "joules" if any(r.energy_j.value for r in found.joules.rows) else "none"


def fuzz(files: Small, seeds: range) -> Counter[str]:
    """Changed files, one per seed: a third changed JSON, two thirds changed traces with their true hash."""
    outcomes: Counter[str] = Counter()
    for seed in seeds:
        rng = random.Random(seed)
        if seed % 3 == 0:
            files.path.write_bytes(hostile.mutate_part(files.text, "energy", rng))
            files.trace_path.write_bytes(files.trace)
        else:
            trace = hostile.mutate_trace(files.trace, rng)
            files.trace_path.write_bytes(trace)
            files.path.write_bytes(hostile.with_trace(files.text, files.trace_path.name, trace))
        try:
            outcomes[survive(files)] += 1
            if seed % 3:
                outcomes[f"trace: {replayed(files)}"] += 1
        except Exception as error:
            raise AssertionError(f"seed {seed}: {error!r}") from error
    return outcomes


def test_mutated_joules_and_traces_end_in_findings_or_a_sentence(files: Small) -> None:
    assert survive(files) == "read"
    assert replayed(files) == "joules"
    outcomes = fuzz(files, range(FAST_FILES))
    assert outcomes["read"] + outcomes["read without its trace"] + outcomes["refused"] == FAST_FILES
    assert outcomes["trace: refused"] > 0.3 * FAST_FILES


@pytest.mark.proof
def test_many_more_mutated_joules_and_traces(
    files: Small, record_property: Callable[[str, object], None]
) -> None:
    outcomes = fuzz(files, range(FAST_FILES, FAST_FILES + ALL_FILES))
    record_property("counted", f"{ALL_FILES} mutated files: {dict(outcomes)}")
    assert min(outcomes[f"trace: {what}"] for what in ("joules", "none", "refused")) > 0


def relabelled(files: Small, change: Callable[[dict[str, Any]], object]) -> bytes:
    """The trace with other words about its windows."""
    table = pq.read_table(pa.BufferReader(files.trace))
    about = json.loads(table.schema.metadata[b"power_trace"])
    change(about)
    return hostile._parquet(table.replace_schema_metadata({"power_trace": json.dumps(about)}))


def rules(**changes: float) -> Callable[[dict[str, Any]], object]:
    def change(about: dict[str, Any]) -> None:
        label = about["windows"][0]["label"]
        label["rules"] = json.dumps(json.loads(label["rules"]) | changes)

    return change


def label(index: int, **changes: object) -> Callable[[dict[str, Any]], object]:
    return lambda about: about["windows"][index]["label"].update(changes)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (
            rules(trials=10**12),
            "does not say what its windows are of.",
        ),  # a list of them would be made
        (rules(window_s=-1.0), "does not say what its windows are of."),
        (rules(settle_s=float("nan")), "does not say what its windows are of."),
        (label(0, layers=0), "does not say what its windows are of."),
        (label(0, switched_s="[" * 100_000), "does not say what its windows are of."),
        (label(0, switched_s="[1e999]"), "has readings that no sensor says: "),
        (label(0, switched_s="[3, 2, 1]"), "has readings that no sensor says: switched_s needs"),
        (label(0, switched_s=json.dumps([1] * 20_001)), "square wave of more than 20000 readings."),
        (label(0, kind="made up"), "does not say what its windows are of."),
        (label(1, batch=0), "does not say what its windows are of."),
        (label(1, arm="other"), "does not say what its windows are of."),
        (label(1, trial="9" * 5000), "does not say what its windows are of."),
    ],
)
def test_labels_that_no_run_writes(
    files: Small, change: Callable[[dict[str, Any]], object], complaint: str
) -> None:
    files.trace_path.write_bytes(relabelled(files, change))
    with pytest.raises(TraceFileError) as error:
        replay(files.trace_path)
    assert complaint in str(error.value)
    app = power.typer.Typer(add_completion=False)
    app.command()(power.main)
    done = CliRunner().invoke(app, ["--replay", str(files.trace_path)])
    assert done.exit_code == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


def test_a_square_wave_of_too_many_changes_is_not_searched(
    files: Small, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A long trace with a few changes close together would be searched for days."""
    table = pq.read_table(pa.BufferReader(files.trace))
    window = table.column("window").to_pylist()
    layers = table.column("layers").to_pylist()
    last = max(i for i, w in enumerate(window) if w == 0 and layers[i] is None)
    # The counter changes once more, in the middle between the reading before and this one.
    for name, value in (("time_s", 2e15), ("energy_j", 1e5)):
        index = table.schema.get_field_index(name)
        values = table.column(name).to_pylist()
        values[last] = value
        table = table.set_column(index, table.schema.field(index), pa.array(values))
    files.trace_path.write_bytes(hostile._parquet(table))
    found = replay(files.trace_path)
    assert {c.reason.partition(" apart")[2] for c in found.characterised.channels} == {
        "", " and for 1e+15 s: too many to search"
    }  # fmt: skip
    monkeypatch.setattr(replay_module, "MOST_SQUARE", 100)
    with pytest.raises(TraceFileError, match="more than 100 readings"):
        replay(files.trace_path)


@pytest.mark.parametrize("value", [1e300, -1e250])
def test_readings_beyond_all_reason_print_nothing(
    files: Small, value: float, capfd: pytest.CaptureFixture[str]
) -> None:
    """LAPACK would say on the terminal what it thinks of them."""
    table = pq.read_table(pa.BufferReader(files.trace))
    for name in ("energy_j", "power_instant_w", "power_average_w"):
        index = table.schema.get_field_index(name)
        values = [
            value * (i % 7) if w == 0 and v is not None else v
            for i, (w, v) in enumerate(
                zip(table.column("window").to_pylist(), table.column(name).to_pylist(), strict=True)
            )
        ]
        table = table.set_column(index, table.schema.field(index), pa.array(values))
    files.trace_path.write_bytes(hostile._parquet(table))
    found = replay(files.trace_path)
    assert found.traits is not None
    assert found.traits.source == "published"
    assert all(c.reason for c in found.characterised.channels)
    assert capfd.readouterr() == ("", "")


def test_a_profile_of_thousands_of_energy_rows(files: Small) -> None:
    """All that the limits on lists let through, each of them alike or each another."""
    data = json.loads(files.text)
    row = data["energy"]["rows"][0]
    data["energy"]["rows"] = [row | {"batch": i + 1} for i in range(3000)]
    files.path.write_text(json.dumps(data))
    profile, findings = check.check(files.path)
    (finding,) = [f for f in findings if f.topic == "replayed"]
    assert "rows or curves are on one side only" in finding.found
    assert len(json.dumps(finding.found)) < 400
    report.render(profile)
    data["energy"]["rows"] = [row] * 10_001
    files.path.write_text(json.dumps(data))
    with pytest.raises(ProfileError, match="more than 10000 members"):
        load_profile(files.path, allow=("simulated",))

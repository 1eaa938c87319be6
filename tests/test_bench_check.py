"""The command: exit codes, eighty columns, JSON, and one sentence about a file that is none."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import planted_profile as planted
import pytest
import typer
from typer.testing import CliRunner, Result

from bench import check, report
from bench.analysis import trust, trust_phi
from bench.measure import environment
from profiles.reader import load_profile, write_profile
from profiles.schema import Git, Profile

ROOT = Path(__file__).resolve().parent.parent
ROWS = planted.sample_rows()


def command(main: object, *arguments: str, columns: int = 80) -> Result:
    app = typer.Typer(add_completion=False)
    app.command()(main)  # type: ignore[type-var]
    return CliRunner(env={"COLUMNS": str(columns)}).invoke(app, list(arguments))


@pytest.fixture
def clean(tmp_path: Path) -> Path:
    """A profile with nothing wrong, made by the kernels of this checkout."""
    return write(tmp_path / "clean.json", planted.profile_of(ROWS))


def write(path: Path, profile: Profile) -> Path:
    commit, versions = environment.git(ROOT).facts["commit"], environment.software().facts
    here = {
        "kernels_sha256": environment.source_hash(ROOT / "kernels"),
        "git": Git(commit=str(commit), dirty=False),
        "software": planted.SOFTWARE.model_copy(
            update={name: versions[name] for name in ("numpy", "torch", "numba")}
        ),
    }
    write_profile(profile.model_copy(update=here), planted.table_of(ROWS), path)
    return path


def test_a_clean_profile(clean: Path) -> None:
    result = command(check.main, str(clean))
    assert result.exit_code == 0, result.output
    assert result.stdout.split("\n")[0] == (
        "measured on Planted CPU, 2026-01-31 12:00 UTC: tiny, int4-g128, 28 rows, 4 "
    )
    assert result.stdout.endswith("Nothing serious: 2 notes.\n")
    assert result.stderr == ""


def test_a_serious_profile(tmp_path: Path) -> None:
    path = write(tmp_path / "cut.json", planted.profile_of(ROWS, complete=False))
    result = command(check.main, str(path))
    assert result.exit_code == 1
    assert "\nserious The run was cut short. The pilot fixed a number of blocks;" in result.stdout
    assert result.stdout.endswith("Do not rely on this profile as it is: 1 serious, 2 notes.\n")


def test_samples_that_were_changed_or_lost(clean: Path) -> None:
    samples = next(clean.parent.glob("*.parquet"))
    content = bytearray(samples.read_bytes())
    content[100] ^= 1
    samples.write_bytes(content)
    changed = command(check.main, str(clean), "--json")
    assert changed.exit_code == 1
    (finding,) = [f for f in json.loads(changed.stdout)["findings"] if f["severity"] == "serious"]
    assert finding["topic"] == "samples"
    assert "is not the file that its profile was written with (SHA-256)." in finding["found"]
    samples.unlink()
    lost = command(check.main, str(clean), "--json")
    assert lost.exit_code == 1
    assert "there is no file" in json.loads(lost.stdout)["findings"][0]["found"]


def test_json(clean: Path) -> None:
    result = command(check.main, str(clean), "--json")
    data = json.loads(result.stdout)
    assert result.exit_code == 0
    assert (data["serious"], data["caution"], data["note"]) == (0, 0, 2)
    assert data["kind"] == "measured"
    assert data["findings"][0] == {
        "topic": "gaps",
        "severity": "note",
        "found": "Of the usual batches 1 to 256, 2, 4, 16, 32, 64, 128, 256 were not measured; "
        "activations were bf16 only.",
        "why": "Nothing here says which side wins there, and a crossing may lie between two batches.",
        "do": "Do not interpolate a verdict.",
        "affected": 7,
        "of": 9,
    }


@pytest.mark.parametrize("columns", [80, 60])
def test_it_fits_the_terminal(tmp_path: Path, columns: int) -> None:
    rows = [dict(row, flags="busy throttled", minor_faults=999) for row in ROWS]
    device = planted.DEVICE.model_copy(update={"name": "A processor with a very long name " * 3})
    profile = planted.profile_of(rows, complete=False, kind="simulated", device=device)
    write_profile(profile, planted.table_of(rows), tmp_path / "odd.json")
    result = command(check.main, str(tmp_path / "odd.json"), columns=columns)
    assert result.exit_code == 1
    assert max(len(line) for line in result.stdout.splitlines()) <= columns
    assert "The numbers are simulated" in " ".join(result.stdout.split())


@pytest.mark.parametrize("main", [check.main, report.main], ids=["check", "report"])
@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "there is no file"),
        (b"", "is not valid JSON for a profile: it is empty."),
        (b"\x1f\x8b\x08\x00", "it is compressed with gzip; unpack it first."),
        (b'{"schema_version": 1, "kind": [[[]]]}', "is a profile of kind a list"),
        (b'{"schema_version": NaN}', "it holds NaN, which JSON does not have."),
    ],
)
def test_one_sentence_and_exit_code_2(
    tmp_path: Path, main: object, content: bytes | None, sentence: str
) -> None:
    path = tmp_path / "bad.json"
    if content is not None:
        path.write_bytes(content)
    result = command(main, str(path))
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert sentence in result.stderr


def test_words_of_a_profile_are_neither_obeyed_nor_taken_for_markup(tmp_path: Path) -> None:
    """Escape sequences for the terminal, and rich's own [markup]."""
    device = planted.DEVICE.model_copy(update={"name": "\x1b[2Jgone\x07[/bold]\u202e"})
    write_profile(planted.profile_of(ROWS, device=device), None, tmp_path / "odd.json")
    data = json.loads((tmp_path / "odd.json").read_text())
    text = json.dumps(data).replace("int4-g128", "int4[/bold][link=x]")
    (tmp_path / "odd.json").write_text(text)
    for main in (check.main, report.main):
        result = command(main, str(tmp_path / "odd.json"))
        assert result.exit_code in (0, 1), result.output
        assert "\x1b" not in result.stdout
        assert "\\x1b[2Jgone\\x07[/bold]\\u202e" in result.stdout
        assert "int4[/bold][link=x]" in result.stdout


def test_a_report_of_two_launch_modes_is_refused(tmp_path: Path) -> None:
    profile = planted.profile_of(ROWS)
    again = [c.model_copy(update={"launch_mode": "graph"}) for c in profile.comparisons]
    both = profile.model_copy(update={"comparisons": (*profile.comparisons, *again)})
    write_profile(both, None, tmp_path / "both.json")
    result = command(report.main, str(tmp_path / "both.json"))
    assert result.exit_code == 2
    assert "is compared more than once" in result.stderr
    assert result.stderr.count("\n") == 1


def test_it_needs_no_torch_and_runs_as_a_module(clean: Path) -> None:
    code = (
        "import sys; from pathlib import Path; import bench.check as c; c.check(Path(sys.argv[1]))\n"
        "heavy = {'torch', 'numba', 'triton', 'scipy'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code, str(clean)], cwd=ROOT, check=True)
    done = subprocess.run(
        [sys.executable, "-m", "bench.check", str(clean)],
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0


def test_report_and_check_agree_on_what_is_stable(clean: Path) -> None:
    profile = load_profile(clean)
    assert report.converged_share(profile) == trust_phi.converged_share(profile) == (8, 8)
    assert report.CONVERGED_SHARE == trust_phi.CONVERGED_SHARE
    assert not trust.warm(profile)

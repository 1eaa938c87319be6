"""Real processes, really killed: the run goes on to the same profile, and nothing is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from processes import alive, runs

from profiles.reader import load_profile, load_samples
from profiles.schema import Kind, Profile

PROGRAM = Path(__file__).with_name("resumable.py")
WORKER = b"spawn_main"  # in the command of one
KINDS: tuple[Kind, ...] = ("measured", "simulated")
QUICK = ("--gpu", "cpu", "--batches", "1,2", "--format", "int4-g128", "--seed", "5")


@pytest.fixture
def workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "workers"
    path.touch()
    monkeypatch.setenv("WORKERS", str(path))
    return path


def start(opener: str, slowness_s: float, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, str(PROGRAM), opener, str(slowness_s), *arguments]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    _, errors = process.communicate(timeout=120)
    assert "Traceback" not in errors, errors
    return process.returncode, errors


def wait_for(path: Path, text: str, process: subprocess.Popen[str]) -> None:
    """Until a file has the text twice: once could be half of a line that is being written."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        if path.exists() and path.read_text().count(text) > 1:
            return
        time.sleep(0.01)
    raise AssertionError(f"no {text} in {path}: {finish(process)}")


def working(workers: Path) -> list[int]:
    """The workers that still run, after they have had a moment to end."""
    return alive([int(line) for line in workers.read_text().split()], WORKER)


def same(profile: Profile) -> dict[str, object]:
    """All but when and how it was run; the hash of the samples file is among it."""
    return profile.model_dump(exclude={"created", "argv", "resumed", "samples"}) | {
        "sha256": profile.samples.sha256 if profile.samples else None
    }


def killed_again_and_again(tmp_path: Path, workers: Path, kills: int, opener: str) -> Profile:
    """A run that is killed at random moments, of its blocks and of its start, and now and then cut."""
    rng = np.random.default_rng(kills)
    output = tmp_path / "killed.json"
    journal = tmp_path / "killed.journal.jsonl"
    done = 0
    arguments = [*QUICK, "--output", str(output)]
    while done < kills:
        process = start(opener, 0.002, *arguments)
        size = journal.stat().st_size if journal.exists() else 0
        if rng.random() < 0.85:  # somewhere in its work, else somewhere in its start
            blocks = int(rng.integers(0, max(2, 200 // kills)))
            while process.poll() is None and (
                not journal.exists() or journal.stat().st_size <= size + 2000 * blocks
            ):
                time.sleep(0.002)
            time.sleep(float(rng.uniform(0, 0.04)))
        else:
            time.sleep(float(rng.uniform(0.05, 1.5)))
        assert process.poll() is None, f"finished after {done} kills: {finish(process)}"
        process.kill()
        process.communicate()
        done += 1
        if journal.exists() and b"\n" in journal.read_bytes():
            arguments = ["--resume", str(journal)]
            if rng.random() < 0.3:
                _cut(journal, rng)
    assert working(workers) == []
    code, errors = finish(start(opener, 0, *arguments))
    assert code in (0, 1), errors
    assert not journal.exists()
    return load_profile(output, allow=KINDS)


def _cut(journal: Path, rng: np.random.Generator) -> None:
    """A power cut: the last record loses its end."""
    content = journal.read_bytes()
    last = content.rstrip(b"\n").rfind(b"\n") + 1
    if last:
        os.truncate(journal, int(rng.integers(last, len(content))))


@pytest.mark.parametrize(
    ("kills", "opener"),
    [
        pytest.param(5, "noisy"),
        pytest.param(60, "noisy", marks=pytest.mark.proof),
        pytest.param(25, "noisy_with_deadly_fused", marks=pytest.mark.proof),
        pytest.param(20, "throttling", marks=pytest.mark.proof),
    ],
)
def test_a_killed_run_ends_like_an_undisturbed_one(
    tmp_path: Path,
    workers: Path,
    kills: int,
    opener: str,
    monkeypatch: pytest.MonkeyPatch,
    record_property: Callable[[str, object], None],
) -> None:
    if kills == 5:  # the quick one
        monkeypatch.setenv("IN_PROCESS", "yes")
    output = tmp_path / "undisturbed.json"
    undisturbed = start(opener, 0, *QUICK, "--output", str(output))
    code, errors = finish(undisturbed)
    assert code in (0, 1), errors
    whole = load_profile(output, allow=KINDS)
    killed = killed_again_and_again(tmp_path, workers, kills, opener)
    assert same(killed) == same(whole)
    assert load_samples(killed, tmp_path).equals(load_samples(whole, tmp_path))
    assert whole.resumed == ()
    assert len(killed.resumed) >= kills // 3
    assert killed.complete
    record_property(
        "counted", f"{kills} kills, {len(killed.resumed)} times resumed, the same profile"
    )


def test_sigterm_finishes_like_ctrl_c(
    tmp_path: Path, workers: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, journal = tmp_path / "run.json", tmp_path / "run.journal.jsonl"
    process = start("noisy", 0.005, *QUICK, "--output", str(output))
    wait_for(journal, '"phase":"fresh"', process)
    os.killpg(process.pid, signal.SIGTERM)  # the workers as well, as a batch system does
    code, errors = finish(process)
    assert code == 143, errors
    assert f"--resume {journal}" in errors
    part = load_profile(output.with_suffix(".incomplete.json"))
    assert not part.complete
    assert not [row for row in part.rows if row.failure], "no worker was lost by it"
    assert working(workers) == []
    monkeypatch.setenv("IN_PROCESS", "yes")
    code, errors = finish(start("noisy", 0, *QUICK, "--output", str(output)))
    assert code == 2
    assert f"--resume {journal}" in errors
    assert finish(start("noisy", 0, "--resume", str(journal)))[0] in (0, 1)
    assert load_profile(output).complete


@pytest.mark.usefixtures("workers")
def test_two_runs_on_one_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IN_PROCESS", "yes")
    journal = tmp_path / "a.journal.jsonl"
    first = start("noisy", 0.01, *QUICK, "--output", str(tmp_path / "a.json"))
    wait_for(journal, '"record":"block"', first)
    code, errors = finish(start("noisy", 0, *QUICK, "--output", str(tmp_path / "b.json")))
    assert code == 2
    assert errors.strip().startswith(
        f"error: the CPU of this machine is in use by process {first.pid} (bench.dequant --gpu cpu"
    )
    assert errors.rstrip().endswith("UTC; wait for it to end, or stop it.")
    assert errors.strip().count("\n") == 0
    assert {path.name for path in tmp_path.iterdir()} == {"workers", journal.name}
    code, errors = finish(start("noisy", 0, "--resume", str(journal)))
    assert code == 2
    assert "is being written by a run right now" in errors
    first.kill()
    first.communicate()
    code, errors = finish(start("noisy", 0, "--resume", str(journal)))
    assert code in (0, 1), errors


def test_a_stuck_worker_does_not_outlive_its_parent(tmp_path: Path, workers: Path) -> None:
    """It hangs in a kernel and looks at no pipe."""
    output = tmp_path / "run.json"
    process = start("with_stuck_stream", 0, *QUICK, "--output", str(output))
    wait_for(tmp_path / "run.journal.jsonl", '"record":"block"', process)
    time.sleep(0.3)
    assert [n for n in map(int, workers.read_text().split()) if runs(n, WORKER)]
    process.kill()
    process.communicate()
    assert working(workers) == []

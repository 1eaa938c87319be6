"""The committed modelled profiles: there, readable, and what the model says of the counts beside them."""

from __future__ import annotations

import errno
import gzip
import json
import os
import random
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from bench import modelled as command
from bench.analysis.phi_curve import slopes
from bench.analysis.replicates import Book
from bench.analysis.trust import REFUSED_SHARE
from bench.static import audit_all, audit_cache
from bench.static.audit import Audit, Job
from bench.static.audit_cache import Cache, committed_text, read_committed
from bench.static.device import jobs_of_layer
from bench.static.freeze import frozen
from kernels.formats import find_format
from profiles.files import ProfileError
from profiles.reader import load_profile
from profiles.shapes import load_model
from profiles.specs import load_gpu, load_gpus

ROOT = Path(__file__).resolve().parent.parent
BOARDS = load_gpus()
SHAPE = load_model(command.MODEL)
LAYER = command.layer_of(command.FORMATS, SHAPE)
MOST_BYTES = 3_500_000
FUSED = Job("fused", "gemv-ptx", "int4-g128", "fp16", 1, 90)
APP = typer.Typer()
APP.command()(command.main)


def audit(job: Job, total: int = 256) -> Audit:
    return Audit(job.name, job.capability, {"other": total}, 0, {128: 8}, True, weights=128,
                 registers=56, shared_bytes=0, num_warps=4, resident_warps=32)  # fmt: skip


# --- those of the checkout


@pytest.mark.parametrize("key", BOARDS)
def test_every_board_has_a_profile_that_says_most(key: str) -> None:
    """Without the schema, which the proofs hold every one of them against."""
    data = json.loads(gzip.decompress(command.path_of(BOARDS[key]).read_bytes()))
    modelled, board = data["modelled"], BOARDS[key]
    assert (data["kind"], data["complete"], modelled["board"]) == ("modelled", True, key)
    assert (data["device"]["name"], data["device"]["capability"]) == (board.name, board.capability)
    assert data["workload"]["formats"] == [f.name for f in LAYER.formats]
    lacking = [row for row in data["rows"] if row["time_s"]["value"] is None]
    refused = [
        row for row in lacking if row["failure"] is None
    ]  # the others are not on this device
    assert len(refused) == sum(modelled["refused"].values())
    assert len(refused) <= REFUSED_SHARE * modelled["rows"]


def test_readers_refuse_them_unless_asked_for_the_kind() -> None:
    with pytest.raises(ProfileError, match="kind 'modelled'"):
        load_profile(command.path_of(BOARDS["h100-sxm"]))
    for board in BOARDS.values():
        assert load_profile(command.path_of(board), allow=("modelled",)).kind == "modelled"


def test_they_hold_a_derivative_within_one_family() -> None:
    """Symmetric integers in groups of one size: 4 and 8 bits, both with 0.125 bits of scale."""
    profile = load_profile(command.path_of(BOARDS["h100-sxm"]), allow=("modelled",))
    found = [s for s in slopes(Book.open(profile, None, 100)) if s.path == "fused"]
    assert {s.formats for s in found} == {("int4-g128", "int8-g128")}
    assert {s.batch for s in found} == set(command.BATCHES)
    assert all(s.bits == (4.125, 8.125) for s in found)


def test_they_name_the_frozen_model() -> None:
    profile = load_profile(command.path_of(BOARDS["h100-sxm"]), allow=("modelled",))
    assert profile.modelled is not None
    assert profile.modelled.model == f"{frozen().version.version} ({frozen().digest[:12]})"


def test_they_are_small() -> None:
    assert sum(path.stat().st_size for path in command.FOLDER.iterdir()) < MOST_BYTES


def test_the_counts_are_those_of_the_kernels_here() -> None:
    """Of every kernel and architecture; whoever changed a kernel runs `python -m bench.modelled`."""
    cache, known = recorded()
    jobs = jobs_of_layer(LAYER, BOARDS.values())
    lacking = {job.name for job in jobs if cache.key(job) not in known}
    assert not lacking, "out of date: run python -m bench.modelled"
    assert set(known) == {cache.key(job) for job in jobs}


def test_no_kernel_that_is_counted_spills() -> None:
    """But on sm_75: there such rows are refused."""
    _, known = recorded()
    spilling = [audit for audit in known.values() if audit.stack_bytes or audit.spill_instructions]
    assert {audit.capability for audit in spilling} <= {75}


@pytest.mark.parametrize("key", ["h100-sxm"])
def test_a_profile_is_what_the_model_says_of_the_counts(key: str) -> None:
    assert derived(key) == []


@pytest.mark.proof
@pytest.mark.parametrize("key", sorted(set(BOARDS) - {"h100-sxm"}))
def test_every_profile_is_what_the_model_says_of_the_counts(key: str) -> None:
    assert derived(key) == []


@pytest.mark.proof
def test_the_counts_are_what_the_compiler_gives() -> None:
    """Kernels drawn at random, compiled again; all of them take half an hour."""
    cache, known = recorded()
    if cache.compiler != audit_cache.compiler():
        pytest.skip("another Triton than the counts were made with")
    jobs = jobs_of_layer(LAYER, BOARDS.values())
    drawn = random.Random(0).sample(jobs, 24)
    for job, answer in audit_all.compiled(drawn):
        assert not isinstance(answer, str), answer
        assert replace(answer, name="") == known[cache.key(job)], job


def recorded() -> tuple[Cache, dict[str, Audit]]:
    """The committed counts, and the cache that knows their keys, whatever Triton is installed here."""
    profile = load_profile(command.path_of(BOARDS["h100-sxm"]), allow=("modelled",))
    assert profile.modelled is not None
    version = profile.modelled.compiler.removeprefix("Triton ")
    cache = replace(audit_cache.open_cache(), compiler=version)
    return cache, read_committed(audit_cache.COMMITTED)


def derived(key: str) -> list[str]:
    """What of a board's profile differs when it is computed again."""
    cache, known = recorded()
    board = BOARDS[key]
    jobs = jobs_of_layer(LAYER, [board])
    audits = {job: known[cache.key(job)] for job in jobs}
    ((_, profile),) = command.profiles([board], LAYER, SHAPE, audits, {})
    there = command.committed(board)
    assert there is not None
    assert profile.modelled is not None
    named = profile.modelled.model_copy(update={"compiler": f"Triton {cache.compiler}"})
    profile = profile.model_copy(update={"modelled": named})
    return [n for n in command.CONTENT if getattr(profile, n) != getattr(there, n)]


# --- the command, on planted counts


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of profiles, two boards, and counts in place of a compiler."""
    folder = tmp_path / "modelled"
    boards = {key: load_gpu(key) for key in ("h100-sxm", "l4")}
    counts = folder / "counts.jsonl.gz"
    cache = Cache(tmp_path / "cache", "programs", "3.9.0")

    def audited(jobs: Sequence[Job], *_: object) -> tuple[dict[Job, Audit], dict[Job, str]]:
        return {job: audit(job) for job in jobs}, {}

    monkeypatch.setattr(command, "FOLDER", folder)
    monkeypatch.setattr(command, "BATCHES", (1,))
    monkeypatch.setattr("profiles.specs.load_gpus", lambda: boards)
    monkeypatch.setattr(audit_cache, "COMMITTED", counts)
    monkeypatch.setattr(audit_cache, "open_cache", lambda: cache)
    monkeypatch.setattr(audit_all, "audited", audited)
    return folder


def run(*arguments: str):
    return CliRunner().invoke(APP, [*arguments, "--format", "int4-g128"])


def test_one_command_writes_all_and_a_second_run_changes_nothing(elsewhere: Path) -> None:
    done = run()
    assert done.exit_code == 0, done.output
    names = sorted(path.name for path in elsewhere.iterdir())
    assert names == ["counts.jsonl.gz", "h100-sxm.json.gz", "l4.json.gz"]
    assert done.stdout.count("4 of 68 rows refused (6%); written") == 2
    before = {path.name: path.read_bytes() for path in elsewhere.iterdir()}
    again = run()
    assert again.stdout.count("unchanged") == 2
    assert before == {path.name: path.read_bytes() for path in elsewhere.iterdir()}
    assert run("--check").exit_code == 0


def test_check_sees_a_profile_a_count_and_a_kernel_that_changed(elsewhere: Path) -> None:
    assert run("--check").exit_code == 1  # nothing there
    run()
    path = elsewhere / "l4.json.gz"
    data = json.loads(gzip.decompress(path.read_bytes()))
    data["rows"][0]["time_s"]["value"] *= 1.0001
    path.write_bytes(gzip.compress(json.dumps(data).encode()))
    done = run("--check")
    assert done.exit_code == 1
    assert "l4.json.gz is not what the model says now" in done.stderr
    assert "h100-sxm.json.gz" not in done.stderr
    run()
    assert run("--check").exit_code == 0
    counts = elsewhere / "counts.jsonl.gz"
    lines = gzip.decompress(counts.read_bytes()).decode().splitlines()
    counts.write_bytes(gzip.compress("\n".join(lines[1:]).encode()))
    done = run("--check")
    assert done.exit_code == 1
    assert "kernels have changed since they were counted" in done.stderr
    counts.write_bytes(
        gzip.compress("\n".join(lines).replace('"other":256', '"other":2560').encode())
    )
    done = run("--check")
    assert "h100-sxm.json.gz is not what the model says now" in done.stderr


def test_some_boards_leave_the_others_as_they_are(elsewhere: Path) -> None:
    assert run("--gpu", "l4").exit_code == 0
    assert [path.name for path in elsewhere.glob("*.json.gz")] == ["l4.json.gz"]
    assert run("--gpu", "h100").exit_code == 0
    assert run("--check").exit_code == 0  # the counts of both are there
    assert run("--gpu", "h9000").exit_code == 2


def test_a_full_disk_is_a_sentence_and_leaves_what_was_there(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run()
    before = {path.name: path.read_bytes() for path in elsewhere.iterdir()}
    (elsewhere / "l4.json.gz").unlink()

    def full(path: Path, content: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr("profiles.reader.replace_file", full)
    done = run()
    path = elsewhere / "l4.json.gz"
    assert (done.exit_code, done.exception.__class__) == (2, SystemExit)
    assert done.stderr.endswith(f"error: {path} cannot be used: No space left on device.\n")
    del before["l4.json.gz"]
    assert before == {path.name: path.read_bytes() for path in elsewhere.iterdir()}


def test_a_folder_that_cannot_be_made_is_a_sentence(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (elsewhere.parent / "file").write_text("")
    monkeypatch.setattr(command, "FOLDER", elsewhere.parent / "file" / "modelled")
    done = run()
    assert done.exit_code == 2
    assert done.stderr.endswith("/file/modelled cannot be used: Not a directory.\n")


def test_a_format_that_does_not_exist_is_one_sentence() -> None:
    done = CliRunner().invoke(APP, ["--check", "--format", "int3"])
    assert done.exit_code == 2
    assert "there is no weight format named 'int3'" in done.stderr


# --- counts that come with the checkout


def test_committed_counts_stand_in_for_the_folder_and_are_named_after_the_job(
    tmp_path: Path,
) -> None:
    cache = Cache(tmp_path / "cache", "programs", "3.9.0", committed=tmp_path / "counts.gz")
    path = tmp_path / "counts.gz"
    path.write_bytes(committed_text(cache, {FUSED: audit(FUSED)}))
    assert path.read_bytes() == committed_text(cache, {FUSED: audit(FUSED)})  # no date in it
    assert cache.load(FUSED) == audit(FUSED)
    assert replace(cache, compiler="3.9.1").load(FUSED) is None
    assert replace(cache, programs="others").load(FUSED) is None
    assert cache.load(replace(FUSED, capability=80)) is None
    cache.store(FUSED, audit(FUSED, total=300))
    assert cache.load(FUSED) == audit(FUSED, total=300)  # the folder comes first
    absent = replace(cache, folder=tmp_path / "other", committed=tmp_path / "absent.gz")
    assert absent.load(FUSED) is None


def test_kernels_have_the_same_identity_whether_or_not_they_are_interpreted() -> None:
    """Tests interpret Triton; the command does not."""
    code = (
        "from bench.static.audit import Job\n"
        "from bench.static.audit_cache import Cache\n"
        "from pathlib import Path\n"
        "print(Cache(Path(), 'p', 'c').key(Job('fused', 'gemv-ptx', 'int4-g128', 'fp16', 1, 90)))"
    )
    environment = {"PATH": "/usr/bin:/bin", "HOME": "/tmp"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.stdout.strip() == Cache(Path(), "p", "c").key(FUSED), done.stderr


def test_identity_changes_with_what_is_called_and_not_with_comments(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import inspect

    from bench.static import identity
    from bench.static.audit import plan_for

    plan, read = plan_for(FUSED), inspect.getsource

    def changed(old: str, new: str) -> str:
        def source(function: object) -> str:
            return read(function).replace(old, new)  # type: ignore[arg-type]

        monkeypatch.setattr(identity.inspect, "getsource", source)
        identity.source.cache_clear()
        return identity.identity(plan)

    before = changed("", "")
    assert changed("# ", "# indeed ") == before
    assert changed("lop3", "lop4") != before  # in a tile function that the kernel calls
    assert changed("no such text", "x") == before
    identity.source.cache_clear()
    assert find_format("int4-g128").name in FUSED.name

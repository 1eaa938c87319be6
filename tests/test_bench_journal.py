"""The journal, cut and broken at every place: what was on disk is kept, and a run goes on to the same end."""

from __future__ import annotations

import errno
import os
import resource as limits
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import fake_device
import numpy as np
import pytest

import bench.measure.journal
import bench.measure.run
from bench.measure import resume
from bench.measure.assemble import assemble
from bench.measure.devices import Sample
from bench.measure.journal import Journal, JournalError, never_began, parse, read_journal
from bench.measure.ledger import Ledger
from bench.measure.records import BlockRecord, DeathRecord, Plan, dump, load
from bench.measure.resume import ResumeError
from bench.measure.run import Run
from bench.measure.session import ArmName, Timed
from kernels.formats import find_format
from profiles.schema import Operator, Profile, Protocol

OPERATORS = (Operator(name="up", n=64, k=128), Operator(name="down", n=128, k=128, count=2))
PROTOCOL = Protocol(
    pilot_blocks=10, fresh_blocks_minimum=21, fresh_blocks_maximum=90, processes=3,
    target_half_width=0.05, confidence=0.95, sample_minimum_s=1e-3,
)  # fmt: skip
PLAN = Plan(
    "fake", "tiny", 2, OPERATORS, (find_format("int4-g128"),), (1, 2), None, None, PROTOCOL, seed=3
)
Opener = Callable[[str], fake_device.FakeDevice]


@pytest.fixture(autouse=True)
def _in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers without processes, and sources that are read once: hundreds of runs take seconds."""
    monkeypatch.setattr(bench.measure.run, "Worker", fake_device.InProcess)
    monkeypatch.setattr(bench.measure.journal.os, "fsync", lambda file: None)
    found = resume.sources()
    monkeypatch.setattr(resume, "sources", lambda: found)


def go_on(path: Path, opener: Opener = fake_device.noisy) -> list[str]:
    """Runs what is left, as the command does; returns the warnings."""
    warnings: list[str] = []
    with Journal.reopen(path) if path.exists() else Journal(path) as journal:
        Run(PLAN, journal, lambda state: None, opener, warnings.append).measure()
    return warnings


def same(profile: Profile) -> dict[str, object]:
    """What a resumed run must have in common with an undisturbed one: all but when and how it was run."""
    return profile.model_dump(exclude={"created", "argv", "resumed"})


@pytest.fixture(scope="module", params=["noisy", "noisy_with_deadly_fused"])
def undisturbed(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Opener, bytes, Ledger]:
    opener: Opener = getattr(fake_device, request.param)
    path = tmp_path_factory.mktemp("undisturbed") / "run.jsonl"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench.measure.run, "Worker", fake_device.InProcess)
        patch.setenv("DEQUANT_BENCH_LOCKS", str(path.parent))
        go_on(path, opener)
    return opener, path.read_bytes(), read_journal(path)


def profile_of(whole: Ledger) -> dict[str, object]:
    if id(whole) not in _profiles:
        _profiles[id(whole)] = (whole, same(assemble(whole)))
    return _profiles[id(whole)][1]


_profiles: dict[int, tuple[Ledger, dict[str, object]]] = {}


def check(path: Path, whole: Ledger) -> Ledger:
    """The journal at `path` ended like the undisturbed one."""
    ledger = read_journal(path)
    assert ledger.finished
    assert ledger.rows == whole.rows
    assert ledger.facts == whole.facts
    assert ledger.skip == whole.skip
    assert same(assemble(ledger)) == profile_of(whole)
    return ledger


def test_the_noise_is_noise_and_is_the_same_again(
    tmp_path: Path, undisturbed: tuple[Opener, bytes, Ledger]
) -> None:
    opener, _, whole = undisturbed
    assert len({row["time_s"] for row in whole.rows}) > 0.99 * len(whole.rows)
    assert whole.elapsed_s == pytest.approx(sum(r["time_s"] * r["calls"] for r in whole.rows))
    assert len(whole.planned) == 2
    assert any(p.fresh_blocks > 21 for p in whole.planned.values()), "lean blocks are among them"
    go_on(tmp_path / "again.jsonl", opener)
    check(tmp_path / "again.jsonl", whole)


def test_a_crash_costs_its_rows_and_then_its_kernel(
    undisturbed: tuple[Opener, bytes, Ledger],
) -> None:
    """After two crashes of one kernel its other problems are not tried, and say so."""
    opener, content, whole = undisturbed
    deaths = [r for r in parse(content, "x").records if isinstance(r, DeathRecord)]
    if opener is fake_device.noisy:
        assert not deaths
        return
    assert {(r.suspect.operator, r.suspect.batch) for r in deaths if r.suspect} == {
        ("up", 1),
        ("down", 1),
    }
    failures = {
        (row.operator, row.batch): row.failure for row in assemble(whole).rows if row.failure
    }
    assert failures["up", 1] == failures["down", 1] == "it crashed with SIGSEGV"
    first, second = (f"on {r.suspect.operator} at batch 1" for r in deaths if r.suspect)
    assert (
        failures["up", 2]
        == failures["down", 2]
        == (f"not tried: {first} it crashed with SIGSEGV and {second} it crashed with SIGSEGV")
    )
    assert {row["arm"] for row in whole.rows} == set(fake_device.TIMES_S) - {"fused"}


def test_cut_after_every_record_the_run_ends_the_same(
    tmp_path: Path, undisturbed: tuple[Opener, bytes, Ledger]
) -> None:
    opener, content, whole = undisturbed
    lines = content.splitlines(keepends=True)
    for count in range(1, len(lines) - 1, 5):
        path = tmp_path / f"{count}.jsonl"
        path.write_bytes(b"".join(lines[:count]))
        go_on(path, opener)
        ledger = check(path, whole)
        assert len(ledger.resumed) == 1


@pytest.mark.parametrize("undisturbed", ["noisy"], indirect=True)
def test_cut_at_every_byte_of_the_last_record(
    tmp_path: Path, undisturbed: tuple[Opener, bytes, Ledger]
) -> None:
    _, content, _ = undisturbed
    lines = content.splitlines(keepends=True)
    blocks = [i for i, line in enumerate(lines) if b'"record":"block"' in line]
    kept = b"".join(lines[: blocks[0]])
    last = lines[blocks[0]]
    before = parse(kept, "x").records
    path = tmp_path / "run.jsonl"
    for cut in range(len(last)):
        path.write_bytes(kept + last[:cut])
        with Journal.reopen(path) as journal:
            assert journal.torn == cut
            assert journal.ledger == Ledger.of(before)
        assert path.read_bytes() == kept
    path.write_bytes(kept + last)
    with Journal.reopen(path) as journal:
        assert journal.torn == 0
        assert len(journal.ledger.blocks) == len(Ledger.of(before).blocks) + 1


@pytest.mark.parametrize("tail", [b"\0" * 300, b"\0" * 299 + b"\n", b"{}\n", b'{"crc32":"'])
def test_what_a_power_cut_leaves_is_cut_off(
    tmp_path: Path, undisturbed: tuple[Opener, bytes, Ledger], tail: bytes
) -> None:
    opener, content, whole = undisturbed
    path = tmp_path / "run.jsonl"
    path.write_bytes(b"".join(content.splitlines(keepends=True)[:20]) + tail)
    with Journal.reopen(path) as journal:
        assert journal.torn == len(tail)
    go_on(path, opener)
    check(path, whole)


@pytest.mark.parametrize("harm", ["flip", "lose", "swap", "double"])
def test_damage_in_the_middle_is_an_error_that_names_the_line(
    tmp_path: Path, undisturbed: tuple[Opener, bytes, Ledger], harm: str
) -> None:
    lines = undisturbed[1].splitlines(keepends=True)
    if harm == "flip":
        lines[6] = lines[6].replace(b"1", b"2", 1)
    elif harm == "lose":
        del lines[6]
    elif harm == "swap":
        lines[6], lines[7] = lines[7], lines[6]
    else:
        lines.insert(6, lines[5])
    path = tmp_path / "run.jsonl"
    path.write_bytes(b"".join(lines))
    with pytest.raises(JournalError, match=r"line 7 of .*run\.jsonl is damaged"):
        Journal.reopen(path)
    assert path.read_bytes() == b"".join(lines), "a damaged journal is left as it is"


def test_every_flipped_byte_is_noticed(undisturbed: tuple[Opener, bytes, Ledger]) -> None:
    content = b"".join(undisturbed[1].splitlines(keepends=True)[:4])
    second = content.index(b"\n") + 1
    end = content.index(b"\n", second) + 1
    for position in range(second, end - 1):
        broken = bytearray(content)
        broken[position] ^= 1
        with pytest.raises(JournalError, match=r"line [23] of x is damaged"):
            parse(bytes(broken), "x")


class Disk:
    """A disk that fails at one write or sync, after some bytes of it, and from then on if it is full."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls, self.fail_at, self.part, self.code = 0, -1, 0.0, errno.ENOSPC
        self.write, self.fsync = os.write, os.fsync
        monkeypatch.setattr(bench.measure.journal.os, "write", self._write)
        monkeypatch.setattr(bench.measure.journal.os, "fsync", self._fsync)

    def _write(self, file: int, data: bytes) -> int:
        self._count()
        if self.calls == self.fail_at + 1 and self.part < 1:
            self.write(file, data[: int(len(data) * self.part)])
            raise OSError(self.code, os.strerror(self.code))
        return self.write(file, data)

    def _fsync(self, file: int) -> None:
        if self.calls == self.fail_at + 1 and self.part >= 1:
            raise OSError(self.code, os.strerror(self.code))
        self.fsync(file)

    def _count(self) -> None:
        self.calls += 1


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


@pytest.mark.parametrize("undisturbed", ["noisy"], indirect=True)
@pytest.mark.parametrize("can_cut", [True, False])
def test_a_full_disk_at_every_write(
    tmp_path: Path,
    undisturbed: tuple[Opener, bytes, Ledger],
    disk: Disk,
    can_cut: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Fails before, within and after the bytes of each record; the torn line may or may not be cut off."""
    opener, content, whole = undisturbed
    writes = content.count(b"\n")
    for fail_at in range(int(can_cut), writes, 2):
        part = (0.0, 0.5, 1.0)[fail_at // 2 % 3]
        path = tmp_path / f"{fail_at}.jsonl"
        disk.calls, disk.fail_at, disk.part = 0, fail_at, part
        disk.code = (errno.ENOSPC, errno.EIO)[fail_at // 2 % 2]
        with monkeypatch.context() as patch:
            if not can_cut:
                patch.setattr(bench.measure.journal.os, "ftruncate", _broken)
            with pytest.raises(OSError, match=str(path)) as failure:
                go_on(path, opener)
        assert failure.value.errno == disk.code
        had_samples = path.exists()
        disk.fail_at = -2
        go_on(path, opener)
        ledger = check(path, whole)
        assert len(ledger.resumed) <= int(had_samples)


def _broken(file: int, length: int) -> None:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


def test_a_file_that_may_not_grow(
    tmp_path: Path, undisturbed: tuple[Opener, bytes, Ledger]
) -> None:
    """The system itself writes the part of a record that fits, and refuses the rest."""
    opener, content, whole = undisturbed
    path = tmp_path / "run.jsonl"
    before = limits.getrlimit(limits.RLIMIT_FSIZE)
    limits.setrlimit(limits.RLIMIT_FSIZE, (len(content) // 2, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            go_on(path, opener)
    finally:
        limits.setrlimit(limits.RLIMIT_FSIZE, before)
    assert len(parse(path.read_bytes(), "x").records) > 10
    go_on(path, opener)
    check(path, whole)


def test_stopped_again_and_again_at_random(
    tmp_path: Path, undisturbed: tuple[Opener, bytes, Ledger]
) -> None:
    """Ctrl-C within blocks, many times over in one run."""
    opener, _, whole = undisturbed
    rng = np.random.default_rng(7)
    path = tmp_path / "run.jsonl"
    stops = 0

    def impatient(name: str) -> fake_device.FakeDevice:
        device = opener(name)
        left, sample = int(rng.integers(1, 120)), device.sample

        def count(*arguments: object) -> Sample:
            nonlocal left
            left -= 1
            if left < 0:
                raise KeyboardInterrupt
            return sample(*arguments)  # type: ignore[arg-type]

        device.sample = count  # type: ignore[method-assign, assignment]
        return device

    while stops < 500:
        try:
            go_on(path, impatient)
            break
        except KeyboardInterrupt:
            stops += 1
    ledger = check(path, whole)
    assert len(ledger.resumed) > 3


def test_nothing_is_measured_again_when_all_was(
    tmp_path: Path, undisturbed: tuple[Opener, bytes, Ledger]
) -> None:
    """A full disk when the profile is written: the resumed run needs no device."""

    def nowhere(name: str) -> fake_device.FakeDevice:
        raise AssertionError("no device is opened")

    path = tmp_path / "run.jsonl"
    path.write_bytes(undisturbed[1])
    go_on(path, nowhere)
    assert path.read_bytes() == undisturbed[1]


def test_another_device_is_refused(
    tmp_path: Path, undisturbed: tuple[Opener, bytes, Ledger], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run.jsonl"
    content = b"".join(undisturbed[1].splitlines(keepends=True)[:20])
    path.write_bytes(content)
    describe = fake_device.FakeDevice.describe
    other = {"uuid_hash": "1" * 16}
    monkeypatch.setattr(
        fake_device.FakeDevice,
        "describe",
        lambda self: describe(self).model_copy(update=other),
    )
    with pytest.raises(ResumeError) as refusal:
        go_on(path)
    assert str(refusal.value) == (
        f"{path} was measured on fake (uuid_hash {'0' * 16}), but this is fake (uuid_hash "
        f"{'1' * 16}); resume it there, or start a new run."
    )
    assert path.read_bytes() == content
    other = {"memory_bytes": 2}
    assert go_on(path) == ["device memory_bytes was 1 when the run began and is 2 now."]
    assert read_journal(path).resumed[0].differences == (
        "device memory_bytes was 1 when the run began and is 2 now.",
    )


@pytest.mark.parametrize("records", [1, 20])
def test_changed_kernels_are_refused_and_other_changes_are_said(
    tmp_path: Path,
    undisturbed: tuple[Opener, bytes, Ledger],
    monkeypatch: pytest.MonkeyPatch,
    records: int,
) -> None:
    path = tmp_path / "run.jsonl"
    content = b"".join(undisturbed[1].splitlines(keepends=True)[:records])
    path.write_bytes(content)
    true = resume.sources()
    changed = true.model_copy(update={"kernels_sha256": "f" * 64})
    monkeypatch.setattr(resume, "sources", lambda: changed)
    with pytest.raises(
        ResumeError, match=r"^the kernels have changed since .*, now ffffffffffff\)"
    ):
        go_on(path)
    assert path.read_bytes() == content
    numpy = true.software.model_copy(update={"numpy": "0.1"})
    changed = true.model_copy(update={"software": numpy})
    (said,) = go_on(path)
    assert said == f"numpy was {true.software.numpy} when the run began and is 0.1 now."
    profile = assemble(read_journal(path))
    assert [r.differences for r in profile.resumed] == [(said,)]
    assert profile.software.numpy == true.software.numpy


def test_what_is_no_journal(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    with pytest.raises(JournalError, match=r"there is no journal .*run\.jsonl"):
        Journal.reopen(path)
    with pytest.raises(JournalError, match="is a folder"):
        Journal.reopen(tmp_path)
    for content in (b"", b'{"crc32":"0123'):
        path.write_bytes(content)
        with pytest.raises(JournalError, match="holds no whole header"):
            Journal.reopen(path)
        assert path.read_bytes() == content
    with Journal(tmp_path / "other.jsonl") as journal:
        death = DeathRecord(suspect=None, reason="")
        journal.add(death)
        line = journal.path.read_bytes()
    path.write_bytes(line)
    with pytest.raises(JournalError, match=r"line 1 of .* is a death record"):
        Journal.reopen(path)
    assert not journal.path.exists(), "a new journal without samples is removed"


@pytest.mark.parametrize("undisturbed", ["noisy"], indirect=True)
@pytest.mark.parametrize("left", [b"", b"\0" * 4096, b'{"crc32":"0123', "cut"])
def test_a_journal_that_never_began_is_begun_anew(
    tmp_path: Path, undisturbed: tuple[Opener, bytes, Ledger], left: bytes | str
) -> None:
    """Power went right after the file was made, or within its header."""
    opener, content, whole = undisturbed
    header = content.splitlines(keepends=True)[0]
    path = tmp_path / "run.jsonl"
    path.write_bytes(header[:-2] if isinstance(left, str) else left)
    assert never_began(path)
    with Journal(path) as journal:
        Run(PLAN, journal, lambda state: None, opener).measure()
        assert not never_began(path)
    check(path, whole)


@pytest.mark.parametrize("count", [1, 20])
def test_a_journal_that_began_is_not_overwritten(
    tmp_path: Path, undisturbed: tuple[Opener, bytes, Ledger], count: int
) -> None:
    path = tmp_path / "run.jsonl"
    for content in (
        b"".join(undisturbed[1].splitlines(keepends=True)[:count]),
        b"some notes of mine",
        b"\n",
        undisturbed[1].replace(b"1", b"2", 1),
    ):
        path.write_bytes(content)
        assert not never_began(path)
        with pytest.raises(FileExistsError):
            Journal(path)
        assert path.read_bytes() == content
    assert not never_began(tmp_path)
    assert not never_began(tmp_path / "nothing")


def test_an_empty_journal_that_is_being_written_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    with Journal(path):
        with pytest.raises(JournalError, match="is being written by a run right now"):
            Journal(path)
        assert path.exists()


@pytest.mark.parametrize("fails", ["sync_folder", "_lock"])
def test_a_journal_that_cannot_be_made_leaves_no_file_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    where = Journal if fails == "_lock" else bench.measure.journal
    monkeypatch.setattr(where, fails, full)
    before = sorted(os.listdir("/proc/self/fd"))
    with pytest.raises(OSError, match="Input/output error"):
        Journal(tmp_path / "run.jsonl")
    assert sorted(os.listdir("/proc/self/fd")) == before


def test_a_command_line_that_is_not_utf8_is_kept_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["x", "--output", os.fsdecode(b"r\xff\xc3\xa9.json")])
    go_on(tmp_path / "run.jsonl")
    ledger = read_journal(tmp_path / "run.jsonl")
    assert ledger.header is not None
    assert ledger.header.argv == ("bench.dequant", "--output", "r\\xffé.json")
    assert assemble(ledger).argv == ledger.header.argv


def test_another_versions_journal_is_not_damage(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    text = b'{"record":"header","version":2}'
    path.write_bytes(bench.measure.journal._line(text, 0))
    with pytest.raises(JournalError, match="is whole, but this version cannot read it"):
        Journal.reopen(path)


def test_a_journal_has_one_writer(
    tmp_path: Path, undisturbed: tuple[Opener, bytes, Ledger]
) -> None:
    path = tmp_path / "run.jsonl"
    path.write_bytes(undisturbed[1] + b"half a li")
    with Journal.reopen(path):
        path.write_bytes(undisturbed[1] + b"half a li")
        with pytest.raises(JournalError, match="is being written by a run right now"):
            Journal.reopen(path)
        assert path.read_bytes().endswith(b"half a li"), "a line being written is not cut off"
    with pytest.raises(FileExistsError):
        Journal(path)


@pytest.mark.parametrize("undisturbed", ["noisy"], indirect=True)
@pytest.mark.parametrize("during", ["write", "fsync"])
def test_ctrl_c_while_a_record_is_written(
    tmp_path: Path,
    undisturbed: tuple[Opener, bytes, Ledger],
    monkeypatch: pytest.MonkeyPatch,
    during: str,
) -> None:
    """What is wholly written counts, what is not is gone; memory and file agree."""
    path = tmp_path / "run.jsonl"
    kept = b"".join(undisturbed[1].splitlines(keepends=True)[:20])
    path.write_bytes(kept)
    with Journal.reopen(path) as journal:

        def stop(file: int, data: bytes = b"") -> int:
            raise KeyboardInterrupt

        name = ArmName("up", 1, "int4-g128", "fused", "fake", "default", "int4-g128")
        with monkeypatch.context() as patch:
            patch.setattr(bench.measure.journal.os, during, stop)
            with pytest.raises(KeyboardInterrupt):
                journal.add(DeathRecord(suspect=name, reason="x"))
        assert (name in journal.ledger.crashed) == (during == "fsync")
        assert read_journal(path) == journal.ledger
        journal.add(DeathRecord(suspect=name, reason="y"))
    assert read_journal(path).crashed[name] == "y"


def test_numbers_come_back_exactly() -> None:
    name = ArmName("up", 1, "int4-g128", "fused", "fake", "default", "int4-g128")
    rng = np.random.default_rng(1)
    floats = np.exp(rng.uniform(-40, 40, 2000)) * rng.uniform(0.5, 1, 2000)
    timed = tuple(
        Timed(name, i, Sample(float(x), 3, float(-x), 1, 0, 0.01, float(x / 3), ("busy", "stolen")))
        for i, x in enumerate(floats)
    )
    block = BlockRecord(process=0, format="int4-g128", batch=1, phase="fresh", block=4, timed=timed)
    assert load(dump(block)) == block
    assert b"\n" not in dump(block)


def test_the_name_is_on_disk_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []

    def note(file: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{file}"))

    monkeypatch.setattr(bench.measure.journal.os, "fsync", note)
    with Journal(tmp_path / "a" / "b" / "run.jsonl") as journal:
        with suppress(AssertionError):
            journal.add(DeathRecord(suspect=None, reason="x"))
        assert synced == [
            str(tmp_path),
            str(tmp_path / "a"),
            str(tmp_path / "a" / "b"),
            str(tmp_path / "a" / "b" / "run.jsonl"),
        ]

"""The journal: an append-only file that is the truth while a run lasts.

A run may end at any moment (kill -9, power, a full disk). Whatever was on disk by then is kept, the run goes
on from it with `python -m bench.dequant --resume`, and the profile is made of this file alone.

    {"crc32":"5e0f1c2a","record":{"record":"header", ...}}
    {"crc32":"b1946ac9","record":{"record":"block", ...}}

One record per line, on disk before the run goes on. Each checksum covers its record and the checksum before
it, so a line that was changed, moved or lost is noticed. Only the last line can be torn by a power cut: it is
cut off, and what it said is measured again. Damage anywhere else is an error that names the line.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import zlib
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from bench.measure.ledger import Ledger
from bench.measure.records import AnyRecord, HeaderRecord, dump, load

_BEFORE, _BETWEEN, _AFTER = b'{"crc32":"', b'","record":', b"}\n"
_OPEN = os.O_RDWR | os.O_APPEND | os.O_CLOEXEC
_RECORD_AT = len(_BEFORE) + 8 + len(_BETWEEN)


class JournalError(ValueError):
    """A journal that cannot be used; the message is one sentence for the user."""


@dataclass(frozen=True)
class Contents:
    """What a journal's file holds.

    Attributes:
        records: every whole record, in order.
        length: bytes of the whole records; whatever lies behind them is a torn line.
        torn: bytes of the torn last line; 0 without one.
        checksum: of the last whole record.
    """

    records: tuple[AnyRecord, ...]
    length: int
    torn: int
    checksum: int


def parse(content: bytes, name: str) -> Contents:
    """Reads the content of a journal's file.

    Args:
        content: the whole file.
        name: what messages call it.

    Raises:
        JournalError: a line that is not the last is damaged, or the first is no header.
    """
    records: list[AnyRecord] = []
    position, checksum = 0, 0
    while position < len(content):
        end = content.find(b"\n", position) + 1 or len(content)
        line = content[position:end]
        text = line[_RECORD_AT : -len(_AFTER)]
        if line != _line(text, checksum):
            if end < len(content):
                raise JournalError(
                    f"line {len(records) + 1} of {name} is damaged, and as it is not the last line "
                    f"this is no interrupted write; restore the file or measure again."
                )
            break
        checksum = zlib.crc32(text, checksum)
        records.append(_record(text, len(records) + 1, name))
        position = end
    return Contents(tuple(records), position, len(content) - position, checksum)


def read_journal(path: Path) -> Ledger:
    """What a journal says; a torn last line is left out and left alone.

    Raises:
        JournalError: it is damaged.
        OSError: it cannot be read.
    """
    return Ledger.of(parse(path.read_bytes(), str(path)).records)


def never_began(path: Path) -> bool:
    """Whether a file is a journal that was cut within its first record: nothing, zeros, or a torn header."""
    try:
        content = path.read_bytes()
        if content.strip(b"\0") and not content.startswith(_BEFORE):
            return False
        return not parse(content, str(path)).records
    except (OSError, JournalError):
        return False


class Journal:
    """The journal of one run, open for appending; no other process can open it meanwhile.

    Attributes:
        path: its file.
        ledger: what its records add up to.
        torn: bytes of a torn last line that were cut off when it was opened.

    Raises:
        OSError: from the constructor and from `add`: the place cannot be written, or is full.
    """

    def __init__(self, path: Path) -> None:
        """A new journal, also in place of one that `never_began`.

        Raises:
            FileExistsError: there is one already.
            JournalError: there is one already, and a run is writing it.
        """
        self.path = path
        self.ledger = Ledger()
        self.torn = 0
        self._length = 0
        self._checksum = 0
        self._new = True
        _make_folder(path.parent)
        try:
            self._file = os.open(path, _OPEN | os.O_CREAT | os.O_EXCL, 0o644)
        except FileExistsError:
            if not never_began(path):
                raise
            self._file = os.open(path, _OPEN)
        try:
            self._lock()
            if os.fstat(self._file).st_size:
                if not never_began(path):  # a run has begun it since, and ended
                    raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
                os.ftruncate(self._file, 0)
            sync_folder(path.parent)
        except BaseException:
            os.close(self._file)
            raise

    @classmethod
    def reopen(cls, path: Path) -> Journal:
        """The journal of a run that was interrupted; a torn last line is cut off.

        Raises:
            JournalError: it is not there, damaged, without a whole header, or in use.
        """
        journal = cls.__new__(cls)
        journal.path = path
        try:
            journal._file = os.open(path, _OPEN)
        except FileNotFoundError:
            raise JournalError(f"there is no journal {path}; has its run been finished?") from None
        except IsADirectoryError:
            raise JournalError(f"{path} is a folder, not a journal.") from None
        try:
            journal._lock()
            found = parse(path.read_bytes(), str(path))
            if not found.records:
                raise JournalError(
                    f"{path} holds no whole header, so nothing was measured; start the run again."
                )
            journal.ledger = Ledger.of(found.records)
            journal.torn, journal._length = found.torn, found.length
            journal._checksum = found.checksum
            journal._new = False
            if found.torn:
                os.ftruncate(journal._file, found.length)
                os.fsync(journal._file)
        except BaseException:
            os.close(journal._file)
            raise
        return journal

    @property
    def rows(self) -> list[dict[str, Any]]:
        """Every sample so far, as columns by name (profiles.schema.SAMPLE_COLUMNS)."""
        return self.ledger.rows

    @property
    def elapsed_s(self) -> float:
        """Seconds of all samples so far."""
        return self.ledger.elapsed_s

    def add(self, record: AnyRecord) -> None:
        """Appends a record and waits until it is on disk: wholly, or not at all."""
        text = dump(record)
        line = _line(text, self._checksum)
        written = 0
        try:
            while written < len(line):
                written += os.write(self._file, line[written:])
            os.fsync(self._file)
        except OSError as error:
            self._cut()
            raise OSError(error.errno, error.strerror, str(self.path)) from None
        except BaseException:  # Ctrl-C
            if written < len(line):
                self._cut()
            else:
                self._take(record, text, written)
            raise
        self._take(record, text, written)

    def _take(self, record: AnyRecord, text: bytes, length: int) -> None:
        self._length += length
        self._checksum = zlib.crc32(text, self._checksum)
        self.ledger.add(record)

    def _cut(self) -> None:
        """Cuts off a record that is not wholly there; where that fails too, reading will notice it."""
        with contextlib.suppress(OSError):
            os.ftruncate(self._file, self._length)

    def remove(self) -> None:
        """Deletes the file: what it says is in a profile now, or it says nothing."""
        self.path.unlink(missing_ok=True)
        self.close()

    def close(self) -> None:
        """Closes the file; one that was new and has no sample is removed."""
        if self._file < 0:
            return
        if self._new and not self.rows:
            with contextlib.suppress(OSError):
                self.path.unlink(missing_ok=True)
        os.close(self._file)
        self._file = -1

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _lock(self) -> None:
        """Keeps every other process from opening it; where files cannot be locked, does nothing."""
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise JournalError(f"{self.path} is being written by a run right now.") from None


def sync_folder(folder: Path) -> None:
    """Waits until the names in a folder are on disk: a file is safe only when its name is too."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a file system that cannot
            raise
    finally:
        os.close(descriptor)


def _make_folder(folder: Path) -> None:
    """Makes a folder and those above it, with their names on disk."""
    if not folder.is_dir():
        _make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        sync_folder(folder.parent)


def _line(text: bytes, before: int) -> bytes:
    """A record's line, given the checksum of the record before it."""
    return b"%s%08x%s%s%s" % (_BEFORE, zlib.crc32(text, before), _BETWEEN, text, _AFTER)


def _record(text: bytes, number: int, name: str) -> AnyRecord:
    """The record of an undamaged line.

    Raises:
        JournalError: another version of the suite wrote it, or it is not where it belongs.
    """
    try:
        record = load(text)
    except ValueError as problem:
        raise JournalError(
            f"line {number} of {name} is whole, but this version cannot read it ({problem}); "
            f"use the version that wrote it."
        ) from None
    if (number == 1) != isinstance(record, HeaderRecord):
        raise JournalError(
            f"line {number} of {name} is a {record.record} record, but a journal begins with its "
            f"one header."
        )
    return record

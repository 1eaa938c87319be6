"""One run at a time on a device: two would time each other.

    /tmp/dequant-bench-<kind>-<device>.lock

The lock is the operating system's (flock): it ends with the process that holds it, however that ends, so
there is no stale lock and no number of a dead process to mistake for a living one. The file's text only says
who holds it; it is believed when that process still lives and began when the text says. The folder is one
that all users of a machine share, as they share its devices, whatever their TMPDIR. Containers that share a
device see each other's runs when they share a folder and $DEQUANT_BENCH_LOCKS names it.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import shlex
import stat
import sys
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType

from bench.measure.devices import DeviceError
from profiles.schema import DeviceInfo

FOLDER = "/tmp"
REAL = ("cpu", "cuda")  # a simulated device can be had as often as one likes
_MAXIMUM_TEXT = 4096


class DeviceBusyError(DeviceError):
    """Another run has the device; the message is one sentence that says which."""


class DeviceLock:
    """Holds a device while the block is run.

    Raises:
        DeviceBusyError: another run holds it.
        DeviceError: the lock's file cannot be opened.
    """

    def __init__(self, device: DeviceInfo) -> None:
        self._device = device
        self._file = -1

    def __enter__(self) -> DeviceLock:
        if self._device.kind not in REAL:
            return self
        path = lock_path(self._device)
        self._file = _open(path)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = _holder(_text(self._file))
            self._close()
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise DeviceError(f"{path} cannot be locked: {error.strerror}.") from None
            what = "the CPU of this machine" if self._device.kind == "cpu" else self._device.name
            raise DeviceBusyError(
                f"{what} is in use by {holder}; wait for it to end, or stop it."
            ) from None
        _write(self._file, _about_us())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._file >= 0:
            _write(self._file, b"")
            self._close()

    def _close(self) -> None:
        """Releases the lock. The file stays: removing it would let two runs lock two files."""
        os.close(self._file)
        self._file = -1


def lock_path(device: DeviceInfo) -> Path:
    """The file of a device: the machine's CPU, or a board by its hashed id."""
    identity = "" if device.kind == "cpu" else f"-{device.uuid_hash or device.name}"
    name = re.sub(r"[^A-Za-z0-9]+", "-", f"dequant-bench-{device.kind}{identity}")
    return Path(os.environ.get("DEQUANT_BENCH_LOCKS") or FOLDER) / f"{name}.lock"


def start_ticks(pid: int) -> int | None:
    """When a process began, in clock ticks since boot; None when there is none, or no /proc.

    A number is given to another process sooner or later, but not with the same beginning.
    """
    try:
        text = Path(f"/proc/{pid}/stat").read_text("ascii", errors="replace")
        return int(text.rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return None


def _open(path: Path) -> int:
    """Opens a lock's file for every user of the machine.

    A file that is there is opened without O_CREAT: in a shared folder Linux refuses to "create" what
    another user has created. A link or anything but a plain file is not followed or written to.
    """
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        try:
            file = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o666)
            os.fchmod(file, 0o666)  # whatever the umask says
        except FileExistsError:
            file = os.open(path, flags)
    except OSError as error:
        raise DeviceError(f"the lock {path} cannot be opened: {error.strerror}.") from None
    about = os.fstat(file)
    if not stat.S_ISREG(about.st_mode) or about.st_nlink != 1:
        os.close(file)
        raise DeviceError(f"{path} is not the plain file that a lock is; remove it.")
    return file


def _about_us() -> bytes:
    pid = os.getpid()
    facts = {
        "pid": pid,
        "start_ticks": start_ticks(pid),
        "command": shlex.join(["bench.dequant", *sys.argv[1:]]),
        "since": f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC",
    }
    return json.dumps(facts).encode()


def _holder(text: bytes) -> str:
    """Who a lock's text says holds it, if that can be."""
    try:
        facts = json.loads(text)
        pid, ticks = int(facts["pid"]), facts["start_ticks"]
        if start_ticks(pid) == ticks:
            return f"process {pid} ({facts['command']}) since {facts['since']}"
    except (ValueError, KeyError, TypeError):
        pass
    return "another run that does not say who it is"


def _text(file: int) -> bytes:
    return os.pread(file, _MAXIMUM_TEXT, 0)


def _write(file: int, text: bytes) -> None:
    """Replaces the text; a full disk costs the text, not the lock."""
    try:
        os.ftruncate(file, 0)
        os.pwrite(file, text, 0)
    except OSError:
        pass

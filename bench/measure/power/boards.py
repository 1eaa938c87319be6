"""Which NVIDIA board is meant, and what has to be known about it before its watts are believed.

NVML numbers boards by PCI bus and does not know CUDA_VISIBLE_DEVICES; CUDA does both otherwise. So a board is
found by its UUID (or that UUID's hash, which is what a profile holds) or its PCI id. On a MIG slice or a
virtual GPU the watts are the whole board's, others' included: refused.

Only this package loads pynvml (nvidia-ml-py), and only when a board is asked for.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.measure.power import SensorError
from profiles.files import printable

Fact = str | int | float | bool | None

# Return codes, modes and architectures: nvml.h of nvidia-ml 13.0, as nvidia-ml-py 13.615 has them.
NOT_SUPPORTED, FUNCTION_NOT_FOUND = 3, 13
CLAUSES = {
    1: "NVML is not initialized any more, as after a reload of the driver",
    2: "NVML does not know it",
    NOT_SUPPORTED: "not supported by this board and driver",
    4: "permission denied by the driver",
    9: "no NVIDIA driver is loaded",
    10: "the driver did not answer in time",
    12: "the driver's library libnvidia-ml.so.1 is not here",
    FUNCTION_NOT_FOUND: "the driver's library is too old for it",
    15: "the GPU is lost: it has fallen off the bus",
    16: "the GPU needs a reset",
    18: "driver and library are of different versions, as after an update without a restart",
    28: "the GPU is not there any more",
    999: "the driver reports an unknown error",
}
FATAL = (1, 2, 9, 15, 16, 18, 28)  # of a reading that has worked before: the next will not either
_VIRTUALIZATIONS = ("none", "passthrough", "vgpu", "host_vgpu", "host_vsga")
_COMPUTE_MODES = ("default", "exclusive_thread", "prohibited", "exclusive_process")
_ARCHITECTURES = {
    2: "Kepler",
    3: "Maxwell",
    4: "Pascal",
    5: "Volta",
    6: "Turing",
    7: "Ampere",
    8: "Ada",
    9: "Hopper",
    10: "Blackwell",
}


@dataclass(frozen=True)
class Board:
    """One board that NVML lists.

    Attributes:
        index: NVML's number, which nvidia-smi shows and CUDA need not share.
        uuid: "GPU-" and the board's id.
        pci: domain, bus and device, such as 00000000:3B:00.0; empty where not known.
        name: its name.
        handle: NVML's.
    """

    index: int
    uuid: str
    pci: str
    name: str
    handle: Any

    def is_meant(self, which: str) -> bool:
        """Whether `which` is its UUID, the hash of it (with or without "GPU-"), or its PCI id."""
        asked = which.strip().lower()
        ids = {self.uuid, self.uuid.removeprefix("GPU-")}
        known_as = {i.lower() for i in ids} | {uuid_hash(i) for i in ids}
        return asked in known_as or (":" in asked and _pci(asked) == _pci(self.pci))


def uuid_hash(uuid: str) -> str:
    """The first 16 hex digits of a UUID's SHA-256: what a profile says instead of it."""
    return hashlib.sha256(uuid.encode()).hexdigest()[:16]


def start() -> Any:
    """NVML's binding, initialized; `nvmlShutdown` ends it.

    Raises:
        SensorError: there is no binding, no library, no driver, or no permission.
    """
    try:
        import pynvml
    except ImportError:
        raise SensorError("the package nvidia-ml-py is not installed") from None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        raise SensorError(clause(error)) from None
    return pynvml


def clause(error: Any) -> str:
    """An NVMLError in words, without a full stop."""
    return CLAUSES.get(error.value) or printable(f"NVML error {error.value}: {error}", 120)


def ask(nv: Any, name: str, *arguments: object) -> Any:
    """What an NVML function returns; None when it fails, or the binding does not have it."""
    try:
        return getattr(nv, name)(*arguments)
    except (nv.NVMLError, nv.NVMLLibraryMismatchError, AttributeError, UnicodeError):
        return None


def boards(nv: Any) -> list[Board]:
    """Every board that NVML lists and can open, in its order.

    Raises:
        SensorError: there is none; the message says why.
    """
    found, why = [], "NVML lists no GPU"
    try:
        count = nv.nvmlDeviceGetCount()
    except nv.NVMLError as error:
        raise SensorError(clause(error)) from None
    for index in range(count):
        try:
            handle = nv.nvmlDeviceGetHandleByIndex(index)
            uuid = nv.nvmlDeviceGetUUID(handle)
        except nv.NVMLError as error:
            why = clause(error)
            continue
        pci = ask(nv, "nvmlDeviceGetPciInfo", handle)
        name = ask(nv, "nvmlDeviceGetName", handle)
        where = "" if pci is None else _text(pci.busId)
        found.append(Board(index, _text(uuid), where, _text(name or "a GPU"), handle))
    if not found:
        raise SensorError(why)
    return found


def find(nv: Any, which: str) -> Board:
    """The one board that is meant.

    Args:
        nv: the binding, initialized.
        which: a UUID, its hash, a PCI id, or NVML's index (the one that nvidia-smi shows).

    Raises:
        SensorError: no board is meant, or it is not clear which, or a MIG slice is.
    """
    listed = boards(nv)
    if which.isdecimal() and len(which) < 4:
        if len(listed) > 1 and os.environ.get("CUDA_VISIBLE_DEVICES"):
            raise SensorError(
                f"with CUDA_VISIBLE_DEVICES set it is not clear which GPU {which} is; "
                f"give a UUID or a PCI id"
            )
        found = [board for board in listed if board.index == int(which)]
    else:
        found = [board for board in listed if board.is_meant(which)]
    if found:
        return found[0]
    for board in listed:
        for uuid in _slices(nv, board):
            if which in (uuid, uuid_hash(uuid), uuid_hash(uuid.removeprefix("MIG-"))):
                raise SensorError(_mig(board))
    count = f"{len(listed)} GPUs" if len(listed) > 1 else f"only {listed[0].name}"
    raise SensorError(f"NVML lists {count}, and none is {printable(which, 60)}")


def refuse_shared_watts(nv: Any, board: Board) -> None:
    """Says no to boards whose watts are not the measured program's alone.

    Raises:
        SensorError: MIG is on, the GPU is virtual, the board serves virtual machines, or another
            process uses it now.
    """
    if mode(ask(nv, "nvmlDeviceGetMigMode", board.handle)):
        raise SensorError(_mig(board))
    virtual = ask(nv, "nvmlDeviceGetVirtualizationMode", board.handle)
    if virtual == 2:
        raise SensorError(f"{board.name} is a virtual GPU: its power, if any, is not its own")
    if virtual in (3, 4):
        raise SensorError(f"{board.name} serves virtual machines: its power is that of all of them")
    others, _ = strangers(nv, board)
    if others:
        who = "another process uses" if others == 1 else f"{others} other processes use"
        raise SensorError(f"{who} {board.name} (see nvidia-smi): its power is theirs too")


def facts(nv: Any, board: Board) -> dict[str, Fact]:
    """What is to be recorded about a board; None where NVML does not say.

    Watts are as of now: limits can be changed while the sensor is open.
    """
    h = board.handle
    capability = ask(nv, "nvmlDeviceGetCudaComputeCapability", h)
    others, unknown = strangers(nv, board)
    return {
        "driver": ask(nv, "nvmlSystemGetDriverVersion"),
        "nvml": ask(nv, "nvmlSystemGetNVMLVersion"),
        "uuid_hash": uuid_hash(board.uuid.removeprefix("GPU-")),
        "pci": board.pci or None,
        "architecture": _ARCHITECTURES.get(ask(nv, "nvmlDeviceGetArchitecture", h)),
        "capability": None if capability is None else "{}.{}".format(*capability),
        "power_limit_w": _watts(ask(nv, "nvmlDeviceGetPowerManagementLimit", h)),
        "power_limit_default_w": _watts(ask(nv, "nvmlDeviceGetPowerManagementDefaultLimit", h)),
        "persistence_mode": mode(ask(nv, "nvmlDeviceGetPersistenceMode", h)),
        "ecc_mode": mode(ask(nv, "nvmlDeviceGetEccMode", h)),
        "mig_mode": mode(ask(nv, "nvmlDeviceGetMigMode", h)),
        "virtualization": _word(_VIRTUALIZATIONS, ask(nv, "nvmlDeviceGetVirtualizationMode", h)),
        "compute_mode": _word(_COMPUTE_MODES, ask(nv, "nvmlDeviceGetComputeMode", h)),
        "other_processes": others,
        "unknown_processes": unknown,
        "graphics_processes": _count(ask(nv, "nvmlDeviceGetGraphicsRunningProcesses", h)),
    }


def strangers(nv: Any, board: Board) -> tuple[int | None, int | None]:
    """How many processes use the board now that are neither ours nor our relatives, and how many are unknown.

    In a container NVML may list numbers of processes that the container cannot see, our own among them:
    these are unknown, not strangers. None where NVML does not say.
    """
    processes = ask(nv, "nvmlDeviceGetComputeRunningProcesses", board.handle)
    if processes is None:
        return None, None
    pids = {int(process.pid) for process in processes}
    known = {pid for pid in pids if Path(f"/proc/{pid}").exists()}
    ours = _ancestors(os.getpid())
    others = {pid for pid in known if pid not in ours and os.getpid() not in _ancestors(pid)}
    return len(others), len(pids - known)


def _count(processes: list[object] | None) -> int | None:
    """Desktops and games; they are not refused, for an idle one draws little, but said."""
    return None if processes is None else len(processes)


def mode(value: object) -> bool | None:
    """On or off from what NVML says, which may be a pair: now, and after a restart."""
    now = value[0] if isinstance(value, list | tuple) else value
    return None if now is None else bool(now)


def _ancestors(pid: int) -> set[int]:
    """A process, its parent, and so on, as far as /proc shows them."""
    found: set[int] = set()
    while pid > 0 and pid not in found:
        found.add(pid)
        try:
            stat = Path(f"/proc/{pid}/stat").read_text("ascii", errors="replace")
            pid = int(stat.rpartition(")")[2].split()[1])
        except (OSError, ValueError, IndexError):
            break
    return found


def _slices(nv: Any, board: Board) -> list[str]:
    """UUIDs of a board's MIG devices."""
    if not mode(ask(nv, "nvmlDeviceGetMigMode", board.handle)):
        return []
    found = []
    for index in range(ask(nv, "nvmlDeviceGetMaxMigDeviceCount", board.handle) or 0):
        handle = ask(nv, "nvmlDeviceGetMigDeviceHandleByIndex", board.handle, index)
        uuid = None if handle is None else ask(nv, "nvmlDeviceGetUUID", handle)
        found += [] if uuid is None else [_text(uuid)]
    return found


def _mig(board: Board) -> str:
    return f"MIG is on at {board.name}: the power is the whole board's, not the slice's"


def _pci(text: str) -> str:
    """A PCI id in one spelling: tools write the domain with four digits or eight, or leave it out."""
    parts = text.strip().upper().split(":")
    return ":".join([(parts[0] if len(parts) > 2 else "").zfill(8), *parts[-2:]])


def _text(value: str | bytes) -> str:
    return printable(value.decode("utf-8", "replace") if isinstance(value, bytes) else value, 120)


def _watts(milliwatts: int | None) -> float | None:
    return None if milliwatts is None else milliwatts / 1000


def _word(words: tuple[str, ...], number: int | None) -> str | None:
    return words[number] if number is not None and 0 <= number < len(words) else None

"""What the profile says about the machine, the software and the checkout.

Everything is read from files, the standard library and package metadata: importing this module, and
calling it, loads no heavy package and touches no GPU or driver. Whatever cannot be found out is
None with a reason; nothing is guessed.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

PACKAGES = ("numpy", "torch", "triton", "numba")
CUDA_PACKAGES = {  # where they are installed, and under any of the names that they come by
    "cupy": ("cupy-cuda13x", "cupy-cuda12x", "cupy"),
    "nvrtc": ("nvidia-cuda-nvrtc",),
}
CPU_FLAGS = ("avx2", "fma", "f16c", "avx512f", "avx512_bf16", "avx512_fp16", "amx_bf16", "amx_int8")
GIT_TIMEOUT_S = 10.0


@dataclass
class Findings:
    """Facts by name, and for every fact that is None the reason.

    Attributes:
        facts: name to value.
        missing: name to reason, for the facts that are None.
    """

    facts: dict[str, str | int | float | bool | None] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, value: str | float | bool | None, reason: str) -> None:
        """Record a fact; `reason` counts only when the value is None."""
        self.facts[name] = value
        if value is None:
            self.missing[name] = reason


def machine(root: Path = Path("/")) -> Findings:
    """The CPU, its caches and its memory.

    Facts: name, uuid_hash, cores (usable by this process), last_level_cache_bytes, memory_bytes,
    capability (vector instruction sets), architecture, governor, load_average_1min.

    Args:
        root: where proc, sys and etc are found; another folder in tests.
    """
    found = Findings()
    cpuinfo = _text(root / "proc/cpuinfo") or ""
    model = re.search(r"^model name\s*:\s*(.+)$", cpuinfo, re.M)
    name = model[1].strip() if model else platform.processor() or None
    found.add("name", name, "no model name in /proc/cpuinfo")
    found.add("uuid_hash", machine_hash(root), "/etc/machine-id is missing or empty")
    found.add("cores", _usable_cores(), "the platform does not say")
    cache = last_level_cache_bytes(root)
    found.add("last_level_cache_bytes", cache, "no cache sizes in /sys/devices/system/cpu")
    memory = re.search(r"^MemTotal:\s*(\d+) kB", _text(root / "proc/meminfo") or "", re.M)
    found.add("memory_bytes", int(memory[1]) * 1024 if memory else None, "no MemTotal")
    flags = re.search(r"^flags\s*:\s*(.+)$", cpuinfo, re.M)
    sets = [flag for flag in CPU_FLAGS if flags and flag in flags[1].split()]
    found.add("capability", " ".join(sets) if flags else None, "no flags in /proc/cpuinfo")
    found.add("architecture", platform.machine() or None, "the platform does not say")
    governor = _text(root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
    found.add("governor", governor, "no cpufreq: fixed by firmware or hidden by a hypervisor")
    load = (_text(root / "proc/loadavg") or "").split()
    found.add("load_average_1min", float(load[0]) if load else None, "no /proc/loadavg")
    return found


def software() -> Findings:
    """Versions of Python, the operating system and the numerical packages, without importing them.

    Facts: python, os, numpy, torch, triton, numba.
    """
    found = Findings()
    found.add("python", platform.python_version(), "")
    found.add("os", f"{platform.system()} {platform.release()}", "")
    for package in PACKAGES:
        try:
            found.add(package, metadata.version(package), "")
        except metadata.PackageNotFoundError:
            found.add(package, None, "not installed")
    return found


def cuda_compilers() -> dict[str, str | int | float | bool | None]:
    """Versions of what compiles and loads the CUDA C++ kernels; None where it is not installed."""
    return {name: first_version(packages) for name, packages in CUDA_PACKAGES.items()}


def first_version(packages: Sequence[str]) -> str | None:
    """The version of the first of these packages that is installed; None if none is."""
    for package in packages:
        with contextlib.suppress(metadata.PackageNotFoundError):
            return metadata.version(package)
    return None


def git(folder: Path) -> Findings:
    """The commit of the checkout and whether tracked or new files differ from it.

    Facts: commit, dirty.

    Args:
        folder: any folder of the checkout.
    """
    found = Findings()
    commit, reason = _git(folder, "rev-parse", "--verify", "HEAD")
    found.add("commit", commit, reason)
    status, reason = _git(folder, "status", "--porcelain")
    found.add("dirty", None if status is None else bool(status), reason)
    return found


def source_hash(folder: Path) -> str:
    """SHA-256 over the source files below a folder: their relative names and contents, sorted.

    Compiled files and caches are left out, so the same sources give the same hash everywhere.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}.")
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        hidden = any(part.startswith(".") or part == "__pycache__" for part in relative.parts)
        if path.is_file() and not hidden:
            content = path.read_bytes()
            digest.update(f"{relative.as_posix()}\0{len(content)}\0".encode())
            digest.update(content)
    return digest.hexdigest()


def machine_hash(root: Path = Path("/")) -> str | None:
    """The first 16 hex digits of the SHA-256 of /etc/machine-id; None without one.

    The id itself stays on the machine.
    """
    identity = _text(root / "etc/machine-id")
    return hashlib.sha256(identity.encode()).hexdigest()[:16] if identity else None


def last_level_cache_bytes(root: Path = Path("/")) -> int | None:
    """Bytes of last-level cache over all sockets, each shared cache counted once; None if unknown.

    Linux lists a cache below every core that shares it, so caches are told apart by that list.
    """
    caches: dict[tuple[int, str], int] = {}
    for index in (root / "sys/devices/system/cpu").glob("cpu[0-9]*/cache/index*"):
        level, size = _text(index / "level"), re.match(r"(\d+)K$", _text(index / "size") or "")
        if level and size and _text(index / "type") != "Instruction":
            shared = _text(index / "shared_cpu_list") or index.parent.parent.name
            caches[int(level), shared] = int(size[1]) * 1024
    if not caches:
        return None
    last = max(level for level, _ in caches)
    return sum(size for (level, _), size in caches.items() if level == last)


def steal_s(root: Path = Path("/")) -> float | None:
    """Seconds that a hypervisor has taken from all cores since boot; None where unknown.

    Take it before and after: only the difference means something.
    """
    fields = (_text(root / "proc/stat") or "").split("\n")[0].split()
    if len(fields) < 9 or fields[0] != "cpu":
        return None
    return int(fields[8]) / os.sysconf("SC_CLK_TCK")


def _usable_cores() -> int | None:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count()


def _text(path: Path) -> str | None:
    """A small file's text without surrounding space; None if unreadable or empty."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip() or None
    except OSError:
        return None


def _git(folder: Path, *arguments: str) -> tuple[str | None, str]:
    """What git prints, and why there is nothing where that is None."""
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            text=True,
            timeout=GIT_TIMEOUT_S,
            check=True,
        )
    except FileNotFoundError:
        return None, "git is not installed"
    except subprocess.TimeoutExpired:
        return None, f"git took more than {GIT_TIMEOUT_S:.0f} seconds"
    except subprocess.CalledProcessError as error:
        lines = error.stderr.strip().splitlines() or ["git failed"]
        return None, lines[0]
    return done.stdout.strip(), ""

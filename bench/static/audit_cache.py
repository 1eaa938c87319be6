"""Keeps audits in build/sass/, so that nothing is compiled twice. Deleting that folder is always safe.

An entry is found by what it depends on: the text of the kernel and of all it calls, its configuration
(`identity.py`), the text of the programs that count, the version of Triton (which brings its assembler) and
the architecture. It holds a checksum; an entry that is damaged counts as missing. Kernels of other people's
files are not kept: what they import is unknown.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from bench.static.audit import Audit, Job, from_data, plan_for, to_data
from bench.static.identity import identity

ROOT = Path(__file__).resolve().parent.parent.parent
FOLDER = ROOT / "build" / "sass"
PROGRAMS = ("audit", "compile", "occupancy", "sass")
DAMAGE = (OSError, ValueError, TypeError, KeyError, AttributeError)  # of an entry


def compiler() -> str:
    """The version of Triton, which stands for the assembler in its wheel as well."""
    try:
        return version("triton")
    except PackageNotFoundError:  # a build under another name
        import triton

        return str(triton.__version__)


@cache
def programs_digest(root: Path = ROOT) -> str:
    """SHA-256 of the programs that compile and count."""
    digest = hashlib.sha256()
    for path in sorted(root / "bench" / "static" / f"{name}.py" for name in PROGRAMS):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(root)} {len(content)}\n".encode() + content)
    return digest.hexdigest()


@dataclass(frozen=True)
class Cache:
    """Audits by job.

    Attributes:
        folder: where they are; made when the first is stored.
        programs: digest of the programs that compile and count.
        compiler: its version.
    """

    folder: Path
    programs: str
    compiler: str

    def key(self, job: Job) -> str:
        """What all jobs have in common that compile to the same machine code."""
        text = json.dumps([self.programs, self.compiler, job.name, job.capability])
        return hashlib.sha256((text + identity(plan_for(job))).encode()).hexdigest()[:32]

    def path(self, job: Job) -> Path:
        """The file of a job."""
        return self.folder / f"{self.key(job)}.json"

    def load(self, job: Job) -> Audit | None:
        """The audit of a job, or None where there is none that is whole."""
        try:
            entry = json.loads(self.path(job).read_text(encoding="utf-8"))
            whole = entry["sha256"] == checksum(entry["audit"])
            audit = from_data(entry["audit"])
        except DAMAGE:
            return None
        return audit if whole and audit.name == job.name else None

    def store(self, job: Job, audit: Audit) -> None:
        """Keeps an audit. A folder that cannot be written costs time later, and nothing else."""
        data = json.loads(json.dumps(to_data(audit)))
        entry = json.dumps({"job": asdict(job), "sha256": checksum(data), "audit": data})
        with contextlib.suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=self.folder, suffix=".part")
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(entry)
            os.replace(name, self.path(job))


def checksum(data: Any) -> str:
    """SHA-256 of plain data."""
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


def open_cache(folder: Path = FOLDER) -> Cache:
    """The cache of this checkout, its kernels and its compiler."""
    return Cache(folder, programs_digest(), compiler())

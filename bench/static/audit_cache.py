"""Keeps audits in build/sass/, so that nothing is compiled twice. Deleting that folder is always safe.

The tests keep the PTX that they emulate in the same way, in a folder beside it: what is found of a job may be
any plain data.

An entry is found by what it depends on: the text of our kernels and of the programs that count, the version
of Triton (which brings its assembler), the architecture and the configuration. It holds a checksum; an entry
that is damaged counts as missing. Kernels of other people's files are not kept: what they import is
unknown.
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
from typing import TYPE_CHECKING, Any

from bench.static.audit import Audit, Job, from_data, to_data

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

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
def sources_digest(root: Path = ROOT) -> str:
    """SHA-256 of every file that decides what an audit says."""
    files = [*(root / "kernels").glob("*.py"), *(root / "kernels" / "triton").glob("*.py")]
    files += [root / "bench" / "static" / f"{name}.py" for name in PROGRAMS]
    digest = hashlib.sha256()
    for path in sorted(files):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(root)} {len(content)}\n".encode() + content)
    return digest.hexdigest()


@dataclass(frozen=True)
class Cache:
    """Audits by job.

    Attributes:
        folder: where they are; made when the first is stored.
        sources: digest of the files that decide what an audit says.
        compiler: its version.
    """

    folder: Path
    sources: str
    compiler: str

    def path(self, job: DataclassInstance) -> Path:
        """The file of a job."""
        key = json.dumps([self.sources, self.compiler, asdict(job)], sort_keys=True)
        return self.folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"

    def read(self, job: DataclassInstance) -> Any:
        """What is kept of a job, or None where there is nothing that is whole."""
        try:
            entry = json.loads(self.path(job).read_text(encoding="utf-8"))
            return entry["found"] if entry["sha256"] == checksum(entry["found"]) else None
        except DAMAGE:
            return None

    def write(self, job: DataclassInstance, found: Any) -> None:
        """Keeps plain data. A folder that cannot be written costs time later, and nothing else."""
        data = json.loads(json.dumps(found))
        entry = json.dumps({"job": asdict(job), "sha256": checksum(data), "found": data})
        with contextlib.suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=self.folder, suffix=".part")
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(entry)
            os.replace(name, self.path(job))

    def load(self, job: Job) -> Audit | None:
        """The audit of a job, or None where there is none that is whole."""
        try:
            audit = from_data(self.read(job))
        except DAMAGE:
            return None
        return audit if audit.name == job.name else None

    def store(self, job: Job, audit: Audit) -> None:
        """Keeps an audit."""
        self.write(job, to_data(audit))


def checksum(data: Any) -> str:
    """SHA-256 of plain data."""
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


def open_cache(folder: Path = FOLDER) -> Cache:
    """The cache of this checkout, its kernels and its compiler."""
    return Cache(folder, sources_digest(), compiler())

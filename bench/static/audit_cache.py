"""Keeps audits in build/sass/, so that nothing is compiled twice. Deleting that folder is always safe.

Some audits come with the checkout (`profiles/modelled/counts.jsonl.gz`): those that the committed modelled
profiles are made of. They count as long as kernels, programs and compiler are the same.

An entry is found by what it depends on: the text of the kernel and of all it calls, its configuration
(`identity.py`), the text of the programs that count, the version of Triton (which brings its assembler) and
the architecture. It holds a checksum; an entry that is damaged counts as missing. Kernels of other people's
files are not kept: what they import is unknown.

The tests keep the PTX that they emulate in the same way, in a folder beside it: what is kept under a key may
be any plain data.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.static.audit import Audit, Job, from_data, plan_for, to_data
from bench.static.identity import identity

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

ROOT = Path(__file__).resolve().parent.parent.parent
FOLDER = ROOT / "build" / "sass"
COMMITTED = ROOT / "profiles" / "modelled" / "counts.jsonl.gz"
PROGRAMS = ("audit", "compile", "nesting", "occupancy", "sass")
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
        committed: audits that came with the checkout, for when the folder has none.
    """

    folder: Path
    programs: str
    compiler: str
    committed: Path | None = None

    def key(self, job: Job) -> str:
        """What all jobs have in common that compile to the same machine code."""
        text = json.dumps([self.programs, self.compiler, job.name, job.capability])
        return hashlib.sha256((text + identity(plan_for(job))).encode()).hexdigest()[:32]

    def path(self, key: str) -> Path:
        """The file of an entry."""
        return self.folder / f"{key}.json"

    def read(self, key: str) -> Any:
        """What is kept under a key, or None where there is nothing that is whole."""
        try:
            entry = json.loads(self.path(key).read_text(encoding="utf-8"))
            return entry["found"] if entry["sha256"] == checksum(entry["found"]) else None
        except DAMAGE:
            return None

    def write(self, key: str, job: DataclassInstance, found: Any) -> None:
        """Keeps plain data. A folder that cannot be written costs time later, and nothing else."""
        data = json.loads(json.dumps(found))
        entry = json.dumps({"job": asdict(job), "sha256": checksum(data), "found": data})
        with contextlib.suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=self.folder, suffix=".part")
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(entry)
            os.replace(name, self.path(key))

    def load(self, job: Job) -> Audit | None:
        """The audit of a job, or None where there is none that is whole."""
        try:
            key = self.key(job)
            if self.committed is not None and not self.path(key).exists():
                audit = read_committed(self.committed).get(key)
                return None if audit is None else replace(audit, name=job.name)
            audit = from_data(self.read(key))
        except DAMAGE:
            return None
        return audit if audit.name == job.name else None

    def store(self, job: Job, audit: Audit) -> None:
        """Keeps an audit."""
        self.write(self.key(job), job, to_data(audit))


def read_committed(path: Path) -> dict[str, Audit]:
    """The audits in a file of the checkout, by key; none where there is no such file.

    Raises:
        ValueError, TypeError, AttributeError: it holds something else.
    """
    try:
        found = path.stat()
    except FileNotFoundError:
        return {}
    return _read(path, found.st_mtime_ns, found.st_size)


@cache
def _read(path: Path, changed_ns: int, length: int) -> dict[str, Audit]:
    """The file as it was at that time."""
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return {key: from_data(data) for key, data in map(json.loads, lines)}


def committed_text(cache: Cache, audits: Mapping[Job, Audit]) -> bytes:
    """What `read_committed` reads: one line per distinct build, sorted, the same bytes every time."""
    found = {cache.key(job): to_data(replace(audit, name="")) for job, audit in audits.items()}
    lines = [
        json.dumps([key, found[key]], sort_keys=True, separators=(",", ":"))
        for key in sorted(found)
    ]
    return gzip.compress("".join(f"{line}\n" for line in lines).encode(), 9, mtime=0)


def checksum(data: Any) -> str:
    """SHA-256 of plain data."""
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


def open_cache(folder: Path = FOLDER) -> Cache:
    """The cache of this checkout, its kernels and its compiler."""
    return Cache(folder, programs_digest(), compiler(), COMMITTED)

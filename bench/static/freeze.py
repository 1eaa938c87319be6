"""Which model a modelled number comes from: a version, and a digest of all that decides the number.

    frozen().name       "1", or "1, changed since" where the checkout's model is not the one of that version

A model that is tuned until it agrees with a table says nothing about that table. So it is frozen: the file
frozen.toml beside this one holds its version, its digest, and the published tables that were in view when it
was made. Whoever changes the model raises the version there and lists what was in view by then; a test
compares. Tables that are not listed are then an independent check.

The digest is of the statements of these programs, without comments and documentation, of the numbers in
profiles/specs/ (measured ones too), and of what is said of other people's kernels (peers.toml), without names
and sources. What is counted in machine code has digests of its own (`audit_cache.py`).
"""

from __future__ import annotations

import ast
import hashlib
import json
import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from functools import cache
from pathlib import Path
from typing import Any

from profiles.record import Record

FOLDER = Path(__file__).parent
FILE = FOLDER / "frozen.toml"
SPECS = FOLDER.parent.parent / "profiles" / "specs"
PROGRAMS = (
    *("conformal", "cost", "device", "estimate", "limits", "model", "ours", "parameters"),
    *("peers", "published", "score"),
)
COMMENT = re.compile(r"\s*#[^'\"]*$")  # a # that may be within quotes stays
WORDS = ("name", "source", "sources", "text", "read_on", "others", "unit", "aliases")
BODIES = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


class Table(Record):
    """A published table in tests/data/published that the model was made in view of."""

    file: str
    sha256: str


class Version(Record):
    """What frozen.toml holds."""

    version: str
    frozen_on: date
    digest: str
    tables: tuple[Table, ...]


@dataclass(frozen=True)
class Frozen:
    """The model of this checkout beside the one that was frozen.

    Attributes:
        version: the frozen one.
        digest: of this checkout.
    """

    version: Version
    digest: str

    @property
    def name(self) -> str:
        """The version, and whether it is still that one."""
        same = self.digest == self.version.digest
        return self.version.version if same else f"{self.version.version}, changed since"


@cache
def frozen() -> Frozen:
    """The model of this checkout, and the one that was frozen."""
    return Frozen(Version(**tomllib.loads(FILE.read_text(encoding="utf-8"))), digest())


def digest(folder: Path = FOLDER, specs: Path = SPECS) -> str:
    """SHA-256 of all that decides a modelled number."""
    found = hashlib.sha256()
    for name in PROGRAMS:
        text = statements((folder / f"{name}.py").read_text(encoding="utf-8"))
        found.update(f"{name} {len(text)}\n{text}".encode())
    for path in (folder / "peers.toml", *sorted(specs.glob("*.toml"))):
        data = tomllib.loads(path.read_text(encoding="utf-8"))
        found.update(f"{path.name} {json.dumps(wordless(data), sort_keys=True)}\n".encode())
    for path in sorted((specs / "measured").glob("*.json")):
        found.update(f"{path.name} ".encode() + path.read_bytes())
    return found.hexdigest()


def statements(text: str) -> str:
    """A program without comments, documentation and empty lines."""
    lines = text.splitlines()
    for first, last in documentation(ast.parse(text)):
        lines[first - 1 : last] = [""] * (last - first + 1)
    kept = (COMMENT.sub("", line).rstrip() for line in lines)
    return "\n".join(line for line in kept if line)


def documentation(tree: ast.Module) -> Iterator[tuple[int, int]]:
    """First and last line of every docstring."""
    for node in ast.walk(tree):
        if isinstance(node, BODIES) and ast.get_docstring(node) is not None:
            yield node.body[0].lineno, node.body[0].end_lineno or node.body[0].lineno


def wordless(data: Any) -> Any:
    """Tables without what is said about them: names, sources, units."""
    if isinstance(data, dict):
        return {key: wordless(value) for key, value in data.items() if key not in WORDS}
    return data

"""Which model a modelled number comes from: a version, and a digest of all that decides the number.

    frozen().name       "1", or "1, changed since" where the checkout's model is not the one of that version

A model that is tuned until it agrees with a table says nothing about that table. So it is frozen: the file
frozen.toml beside this one holds its version, its digest, and the published tables that were in view when it
was made. Whoever changes the model raises the version there and lists what was in view by then; a test
compares. Tables that are not listed are then an independent check.

The digest is of the statements of these programs, without comments and documentation: of some files all, of
others what decides a number, such as the tiles of our kernels. It is also of the numbers in profiles/specs/
(measured ones too), and of what is said of other people's kernels (peers.toml), without names and sources; of
those that frozen.toml lists, so that another kernel can be added without another model.

The text of our kernels, and the compiler, are left out: they enter by what was counted in their machine code,
which modelled profiles are kept with, under digests of its own (`audit_cache.py`).
"""

from __future__ import annotations

import ast
import hashlib
import json
import re
import tomllib
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from datetime import date
from functools import cache
from pathlib import Path
from typing import Any

from profiles.record import Record

ROOT = Path(__file__).resolve().parent.parent.parent
STATIC = Path("bench", "static")
TRITON = Path("kernels", "triton")
SPECS = Path("profiles", "specs")
FILE = ROOT / STATIC / "frozen.toml"
PROGRAMS = (
    *("conformal", "cost", "device", "estimate", "limits", "model", "nesting", "occupancy", "ours"),
    *("parameters", "peer_code", "peers", "published", "sass", "score"),
)
DEFINITIONS = {  # of other files: these names alone
    STATIC / "audit.py": (
        *("N", "K", "FAST_CONVERSIONS", "FAST_CAPABILITY", "ACTIVATION_BITS", "weights_per_pass"),
        *("audit_code", "audit_kernel", "plan_for", "bytes_moved", "counts_of", "cost_of"),
    ),
    STATIC / "modelled.py": (
        *("CONFIDENCE", "DIGITS", "CACHE_MULTIPLE", "_sum", "_quantity", "_bandwidth"),
        *("difference", "ratio", "_ratio_ends", "_beyond", "_compare"),
    ),
    Path("profiles", "specs.py"): ("SCHEDULERS",),
    Path("kernels", "kernel.py"): ("traffic_of", "output_shape", "traffic"),
    TRITON / "__init__.py": ("plan_of",),
    TRITON / "gemv.py": ("STEP", "Config", "loads_per_segment", "default_config"),
    TRITON / "gemm.py": ("Config", "cut_for", "default_config"),
    TRITON / "native.py": ("default_gemv_config", "default_gemm_config"),
    TRITON / "upcast.py": ("default_gemm_config",),
    TRITON / "lowp.py": ("least_rows", "default_config"),
    TRITON / "dequantize.py": ("Config", "default_config"),
    TRITON / "configs.py": ("default_for",),
}
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
    peers: tuple[str, ...]
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
    version = Version(**tomllib.loads(FILE.read_text(encoding="utf-8")))
    return Frozen(version, digest(version.peers))


def digest(peers: Collection[str], root: Path = ROOT) -> str:
    """SHA-256 of all that decides a modelled number.

    Args:
        peers: other people's kernels that belong to the model.
        root: of the checkout.

    Raises:
        KeyError: a definition or one of these kernels is not there.
    """
    found = hashlib.sha256()
    whole = {STATIC / f"{name}.py": None for name in PROGRAMS}
    for path, names in {**whole, **DEFINITIONS}.items():
        text = statements((root / path).read_text(encoding="utf-8"), names)
        found.update(f"{path.as_posix()} {len(text)}\n{text}".encode())
    others = tomllib.loads((root / STATIC / "peers.toml").read_text(encoding="utf-8"))
    data = {"peers.toml": {name: others[name] for name in sorted(peers)}}
    for path in sorted((root / SPECS).glob("*.toml")):
        data[path.name] = tomllib.loads(path.read_text(encoding="utf-8"))
    for name, table in data.items():
        found.update(f"{name} {json.dumps(wordless(table), sort_keys=True)}\n".encode())
    for path in sorted((root / SPECS / "measured").glob("*.json")):
        found.update(f"{path.name} ".encode() + path.read_bytes())
    return found.hexdigest()


def statements(text: str, names: Collection[str] | None = None) -> str:
    """A program without comments, documentation and empty lines.

    Args:
        text: the program.
        names: what is kept of it, each a definition or a constant; None: everything.

    Raises:
        KeyError: a name is not defined in it.
    """
    tree, lines = ast.parse(text), text.splitlines()
    for first, last in documentation(tree):
        lines[first - 1 : last] = [""] * (last - first + 1)
    lines = [COMMENT.sub("", line).rstrip() for line in lines]
    if names is not None:
        places = dict(definitions(tree))
        lines = [line for name in names for line in lines[slice(*places[name])]]
    return "\n".join(line for line in lines if line)


def definitions(tree: ast.Module) -> Iterator[tuple[str, tuple[int, int]]]:
    """Every name that a module defines, with the slice of lines that does."""
    for node in tree.body:
        last = node.end_lineno or node.lineno
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            first = min(item.lineno for item in (node, *node.decorator_list))
            yield node.name, (first - 1, last)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for target in targets:
                for name in ast.walk(target):
                    if isinstance(name, ast.Name):
                        yield name.id, (node.lineno - 1, last)


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

"""Limits on what kernels may need, for a gate that keeps a change from making them slower unseen.

    [[limit]]
    kernel = "gemv-ptx/fused/int4-*"   # variant/arm/format/activation; * and ? stand for any text
    arch = "sm_90"                     # a pattern too; by default every architecture
    total = 2.4                        # thread-instructions per weight
    cvt = 0
    registers = 64                     # per thread
    shared_bytes = 0                   # per program
    spills = 0

TOML, or JSON with a list under "limit". `variant/fused-bypass/...` limits what dequantization adds. A limit
that applies to no kernel that was counted is an error: such a gate would guard nothing.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from bench.static.audit import MEASURES, RESOURCES, Row

ROUNDING = 1e-9  # of a quotient that should equal its limit


class GateError(ValueError):
    """A file of limits that cannot be used; one sentence says why."""


@dataclass(frozen=True)
class Limit:
    """What the kernels of a pattern may need at most.

    Attributes:
        kernel: pattern of their names.
        arch: pattern of the architecture, such as "sm_90".
        most: by measure, from `audit.MEASURES`.
    """

    kernel: str
    arch: str
    most: Mapping[str, float]

    def matches(self, row: Row) -> bool:
        """Whether it is about this row."""
        return fnmatchcase(row.name, self.kernel) and fnmatchcase(f"sm_{row.capability}", self.arch)


@dataclass(frozen=True)
class Breach:
    """A row that needs more than it may."""

    kernel: str
    arch: str
    measure: str
    found: float
    most: float

    @property
    def sentence(self) -> str:
        """In words."""
        return (
            f"{self.kernel} on {self.arch}: {self.measure} is {self.found:.4g}, "
            f"limit {self.most:.4g}."
        )


def load_limits(path: Path) -> tuple[Limit, ...]:
    """The limits of a file.

    Raises:
        GateError: it is missing, or holds something else.
    """
    try:
        text = path.read_text(encoding="utf-8")
        data = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except OSError as error:
        raise GateError(f"cannot read {path}: {error.strerror or error}.") from None
    except ValueError as error:
        raise GateError(
            f"{path} is neither TOML nor JSON (by its ending .json): {error}."
        ) from None
    entries = data.get("limit") if isinstance(data, dict) else None
    if not isinstance(entries, list) or not entries:
        raise GateError(f"{path} should hold at least one [[limit]] with a kernel and a number.")
    return tuple(_limit(f"limit {i} of {path}", entry) for i, entry in enumerate(entries, 1))


def _limit(where: str, entry: Any) -> Limit:
    most = dict(entry) if isinstance(entry, dict) else {}
    kernel, arch = most.pop("kernel", None), most.pop("arch", "*")
    if not isinstance(kernel, str) or not isinstance(arch, str):
        raise GateError(f"{where} should name a kernel, and an arch such as sm_90, as text.")
    for measure, number in most.items():
        if measure not in MEASURES:
            raise GateError(f"{where} limits {measure!r}; choose from {', '.join(MEASURES)}.")
        if isinstance(number, bool) or not isinstance(number, int | float) or not number >= 0:
            raise GateError(f"{where} should limit {measure} to a number from 0 up, not {number}.")
    if not most:
        raise GateError(f"{where} limits nothing; give one of {', '.join(MEASURES)}.")
    return Limit(kernel, arch, most)


def breaches(limits: Sequence[Limit], rows: Sequence[Row]) -> list[Breach]:
    """Every row beyond a limit.

    Raises:
        GateError: a limit applies to nothing.
    """
    found = []
    for limit in limits:
        chosen = [row for row in rows if limit.matches(row)]
        for measure, most in limit.most.items():
            known = [(row, value) for row in chosen if (value := row.value(measure)) is not None]
            if not known:
                raise GateError(_applies_to_nothing(limit, measure, bool(chosen)))
            if measure not in RESOURCES and any(row.lower_bound for row, _ in known):
                raise GateError(
                    f"the limit on {measure} of {limit.kernel!r} on {limit.arch!r} cannot be held against a "
                    "lower bound: a loop within the hot loop runs as often as a value at run time says."
                )
            found += [
                Breach(row.name, f"sm_{row.capability}", measure, value, most)
                for row, value in known
                if value > most + ROUNDING
            ]
    return found


def _applies_to_nothing(limit: Limit, measure: str, matched: bool) -> str:
    what = f"the limit on {measure} of {limit.kernel!r} on {limit.arch!r} applies to nothing"
    if matched:
        return f"{what}: it is not known of what that names (weights per pass: give --weights)."
    return f"{what}: no kernel that was counted has such a name."

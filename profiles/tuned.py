"""Launch configurations that `bench.tune` found to be fastest on a board: `specs/tuned/<board>.toml`.

A file is of one board, one version of Triton and one state of the kernels' sources. A choice says what was
tuned, which configuration won and how much faster than the default it was, measured in blocks that did not
choose it. Kernels read it when they are bound; one that was found with another compiler or with other sources
is stale, and is not used.
"""

from __future__ import annotations

import re
import tomllib
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from profiles.record import Kind, Record

TUNED_FOLDER = Path(__file__).with_name("specs") / "tuned"
Setting = dict[str, int]


class Tuned(Record):
    """One kernel on one problem.

    Attributes:
        arm: "fused" stands for the whole ladder, which has one configuration.
        variant: of the kernel, such as "gemv-ptx".
        format: name of the weights' format.
        activation: dtype of x.
        n: rows of W.
        k: columns of W.
        batch: rows of x.
        config: fields of the kernel's configuration.
        speedup: t(default) / t(config), paired within blocks; 1 where the default was the best.
        low: lower end of its 95 % interval.
        high: upper end.
        blocks: behind that interval.
        candidates: configurations that were tried.
    """

    arm: str
    variant: str
    format: str
    activation: str
    n: int
    k: int
    batch: int
    config: Setting
    speedup: float
    low: float
    high: float
    blocks: int
    candidates: int

    @property
    def key(self) -> tuple[object, ...]:
        """What it was found for."""
        return (
            *(self.arm, self.variant, self.format, self.activation),
            *(self.n, self.k, self.batch),
        )


class TunedBoard(Record):
    """Every choice for one board."""

    board: str
    kind: Kind
    created: datetime
    triton: str
    sources: str
    choices: tuple[Tuned, ...] = ()


def path_of(board: str, folder: Path = TUNED_FOLDER) -> Path:
    """The file of a board, by the name its driver gives it."""
    return folder / f"{re.sub(r'[^a-z0-9]+', '-', board.lower()).strip('-')}.toml"


@cache
def load_tuned(board: str, folder: Path = TUNED_FOLDER) -> TunedBoard | None:
    """What was tuned on a board; None where nothing was.

    Raises:
        ValueError: the file is damaged; the message names it.
    """
    path = path_of(board, folder)
    if not path.exists():
        return None
    try:
        return TunedBoard.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except (tomllib.TOMLDecodeError, ValidationError) as error:
        first = str(error).splitlines()[0]
        raise ValueError(
            f"{path} is damaged ({first}); delete it, or run bench.tune again."
        ) from None


def save_tuned(found: TunedBoard, folder: Path = TUNED_FOLDER) -> Path:
    """Writes the file of a board, whole, and returns its path.

    Raises:
        OSError: it cannot be written.
    """
    lines = [f"# Written by bench.tune on {found.board}; kernels read it, see profiles/tuned.py."]
    head = found.model_dump(exclude={"choices"}, mode="json")
    lines += [f"{name} = {_value(value)}" for name, value in head.items()]
    for choice in found.choices:
        lines += ["", "[[choices]]"]
        lines += [f"{name} = {_value(value)}" for name, value in choice.model_dump().items()]
    path = path_of(found.board, folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text("\n".join(lines) + "\n", encoding="utf-8")
    part.replace(path)
    load_tuned.cache_clear()
    return path


def _value(value: Any) -> str:
    """One value in TOML: text, a number, or a table of numbers in one line."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{k} = {_value(v)}" for k, v in value.items()) + " }"
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"')
        return f'"{escaped}"'
    return repr(value)

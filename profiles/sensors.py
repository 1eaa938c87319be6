"""What power sensors are like: how often they speak, and of how much time each word is the mean.

    reading at an update u  =  mean power over [u - lag - averaging, u - lag]

           |<- averaging ->|<- lag ->|
    -------[###############]---------u--------------------u + update

A sensor whose averaging window is shorter than its update period sees only a part of the time: the duty
cycle. The published numbers are in `sensors.toml`, with their source; `python -m bench.power` finds those
of the board at hand, which are worth more.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from profiles.record import Facts

SENSORS_FILE = Path(__file__).with_name("sensors.toml")
OTHER_BOARDS = {"laptop", "mobile", "max", "super"}  # "max" is the Max of Max-Q
NO_LAG = "no lag has been published in numbers; `python -m bench.power` finds it"
NO_COUNTER = "NVML counts energy on Volta and later boards only"

OFFSET_W = 5.0  # three of the four published offsets are smaller

Seconds = Annotated[float, Field(gt=0)]


class Traits(Facts):
    """What must be known about a sensor before its readings can be turned into joules.

    Attributes:
        missing: field to why it is null.
        model: the board or processor, as it was asked for.
        update_s: how often a power reading changes; null for a sensor that only counts energy.
        averaging_s: seconds that a reading is the mean of, for each power channel that there is.
        counter_update_s: how often the energy counter changes; null without one.
        lag_s: from the end of what a reading is the mean of to the update that shows it.
        gain_uncertainty: half-width, 95 %, of reading over truth; it is common to all readings of a board.
        offset_uncertainty_w: half-width, 95 %, of what a power reading is off by whatever is drawn. Published
            for single boards: -1.2, 4.6, -4.2 and -22.6 W; boards without a number get 5 W, and those with one
            no less than that.
        source: "published", or "characterised" on the board itself.
        origin: whose numbers these are, of which board, read when.
    """

    model: str
    update_s: Seconds | None
    averaging_s: dict[str, Seconds]
    counter_update_s: Seconds | None
    lag_s: Annotated[float, Field(ge=0)] | None
    gain_uncertainty: Annotated[float, Field(ge=0, lt=1)] = 0.05
    offset_uncertainty_w: Annotated[float, Field(ge=0)] = OFFSET_W
    source: Literal["published", "characterised"] = "published"
    origin: str = ""

    def duty_cycle(self, channel: str) -> float:
        """The share of the time that a power channel sees, 1 at most.

        Raises:
            KeyError: the sensor has no such channel.
        """
        averaging_s = self.averaging_s[channel]
        return 1.0 if self.update_s is None else min(1.0, averaging_s / self.update_s)


def completed(found: Traits, published: Traits | None) -> Traits:
    """What was found on a board, with published numbers where nothing was found."""
    if published is None:
        return found
    missing = {n: why for n, why in found.missing.items() if getattr(published, n, None) is None}
    update = {
        name: getattr(published, name)
        for name in ("update_s", "counter_update_s", "lag_s")
        if getattr(found, name) is None
    }
    averaging_s = {**published.averaging_s, **found.averaging_s}
    errors = {
        name: getattr(published, name) for name in ("gain_uncertainty", "offset_uncertainty_w")
    }
    return found.model_copy(
        update={**update, **errors, "averaging_s": averaging_s, "missing": missing}
    )


@dataclass(frozen=True)
class Board:
    """One board of `sensors.toml`; see there."""

    name: str
    words: tuple[str, ...]
    measured_on: str
    update_s: float
    averaging_s: dict[str, float]
    not_words: tuple[str, ...] = ()
    counter_update_s: float | None = None
    gain: float | None = None
    offset_w: float | None = None
    source: str = field(default="", repr=False)
    gain_uncertainty: float = 0.05


def load_boards() -> dict[str, Board]:
    """Every board in `sensors.toml`, by name."""
    tables: dict[str, Any] = tomllib.loads(SENSORS_FILE.read_text(encoding="utf-8"))
    source = tables["source"]
    read_on: date = source["read_on"]
    boards = {}
    for name, fields in tables["boards"].items():
        for words in ("words", "not_words"):
            fields[words] = tuple(fields.get(words, ()))
        said = source["sensors"]
        if "counter_update_s" in fields:
            said += f"; counter: {source['counter']}"
        boards[name] = Board(
            name=name,
            source=f"{said}; read on {read_on}",
            gain_uncertainty=source["gain_uncertainty"],
            **fields,
        )
    return boards


def published_traits(model: str) -> Traits | None:
    """What has been published about the sensor of a board, found by whole words of its name.

    "NVIDIA H100 80GB HBM3" holds the word h100 and gets the numbers of the H100 PCIe, which was the one that
    was measured; `origin` then says that this is another variant. A laptop's, Super or Ti board is another
    chip or another regulator under a similar name: it gets nothing, unless that very board was measured.

    Args:
        model: the name, as NVML says it.

    Returns:
        None for a board of which nothing is published.
    """
    name = set(re.findall(r"[a-z0-9]+", model.lower()))
    if name & OTHER_BOARDS:
        return None
    for board in load_boards().values():
        if name.issuperset(board.words) and name.isdisjoint(board.not_words):
            return _traits(board, model, name)
    return None


def _traits(board: Board, model: str, name: set[str]) -> Traits:
    measured = set(re.findall(r"[a-z0-9]+", board.measured_on.lower()))
    origin = f"measured on {board.measured_on}"
    if not measured <= name:
        origin += ", which may be another variant than this one"
    missing = {"lag_s": NO_LAG}
    if board.counter_update_s is None:
        missing["counter_update_s"] = NO_COUNTER
    return Traits(
        missing=missing,
        model=model,
        update_s=board.update_s,
        averaging_s=board.averaging_s,
        counter_update_s=board.counter_update_s,
        lag_s=None,
        gain_uncertainty=board.gain_uncertainty,
        offset_uncertainty_w=max(OFFSET_W, abs(board.offset_w or 0.0)),
        origin=f"{origin}: {board.source}",
    )

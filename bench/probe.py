"""Measures what this GPU's pipes, memory and launches do, beside what models assume (none reads it yet).

    python -m bench.probe                                      the table
    python -m bench.probe --profile results/PROFILE.json       and into the profile of the same board

Rates and latencies of single instructions, the dequant work per weight with operands in registers, bandwidth of
main memory and L2, and an empty launch. That each probe still has its instruction is shown, without a GPU, by
`python -m bench.sass --cuda`. Exit codes: 0 good, 2 no usable GPU, or a profile that is not of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bench.usage import UsageError, exit_codes

if TYPE_CHECKING:
    from profiles.schema import ProbeRow, Profile


def table(rows: Sequence[ProbeRow]) -> None:
    """Prints every probe: median and its interval."""
    from rich.console import Console
    from rich.table import Table

    printed = Table("probe", "median", "from", "to", "unit", box=None)
    for row in rows:
        v = row.value
        numbers = ("-" if x is None else f"{x:.4g}" for x in (v.value, v.low, v.high))
        printed.add_row(row.name, *numbers, row.unit)
    Console(highlight=False).print(printed)


def add(path: Path, board: str, rows: Sequence[ProbeRow]) -> None:
    """Puts the probes into a profile of this board, in place of those that it has.

    Raises:
        UsageError: it is the profile of another device.
        ProfileError: it cannot be read.
        OSError: it cannot be written.
    """
    from profiles.reader import replace_file

    profile = of_board(path, board).model_copy(update={"probes": tuple(rows)})
    type(profile).model_validate_json(text := profile.model_dump_json(indent=1))
    replace_file(path, text.encode() + b"\n")


def of_board(path: Path, board: str) -> Profile:
    """The profile, which has to be of this board; raises like `add`."""
    from profiles.reader import load_profile

    profile = load_profile(path)
    if profile.device.name != board:
        raise UsageError(f"{path} is of {profile.device.name}, but this is {board}.")
    return profile


def main(
    profile: Annotated[
        Path | None, typer.Option(help="A profile of this board, which gets the probes.")
    ] = None,
) -> None:
    """Measure instruction rates, dequant work, bandwidth and launch times of the GPU that is here."""
    from bench.measure.devices import DeviceError
    from bench.measure.devices.probes import board_name, measure
    from profiles.reader import ProfileError

    with exit_codes(DeviceError, ProfileError, OSError):
        board = board_name()
        if profile is not None:
            of_board(profile, board)  # before minutes of measuring
        rows = measure()
        table(rows)
        if profile is not None:
            add(profile, board, rows)


if __name__ == "__main__":
    typer.run(main)

"""Measures what this GPU's pipes, memory and launches do, for its profile and in place of what models assume.

    python -m bench.probe                                      the table
    python -m bench.probe --profile results/PROFILE.json       and into the profile of the same board
    python -m bench.probe --spec h100                          and to where models read it

Rates and latencies of single instructions, the dequant work per weight with operands in registers, bandwidth of
main memory and L2, and an empty launch. That each probe still has its instruction is shown, without a GPU, by
`python -m bench.sass --cuda`. With --spec the rates of pipes, the bandwidth of reading and the empty launch
take the place of what is published for that board: `with_measured` in profiles/specs.py. Exit codes: 0 good, 2
no usable GPU, or a profile or a board that is not it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bench.usage import UsageError, exit_codes

if TYPE_CHECKING:
    from profiles.schema import ProbeReport, ProbeRow, Profile
    from profiles.specs import Gpu


def table(rows: Sequence[ProbeRow]) -> None:
    """Prints every probe: median and its interval; what has none says why."""
    from rich.console import Console
    from rich.table import Table

    printed = Table("probe", "median", "from", "to", "unit", box=None)
    for row in rows:
        v = row.value
        numbers = ("-" if x is None else f"{x:.4g}" for x in (v.value, v.low, v.high))
        printed.add_row(row.name, *numbers, row.unit)
    console = Console(highlight=False)
    console.print(printed)
    for row in rows:
        if row.value.reason:
            console.print(f"{row.name}: {row.value.reason}.", soft_wrap=True)


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


def board_of(name: str, report: ProbeReport) -> Gpu:
    """The board that models know by this name, which the report has to be of.

    Raises:
        UsageError: nothing is known of it, or it is another one.
    """
    from profiles.specs import load_gpu, with_measured

    try:
        gpu = load_gpu(name)
        with_measured(gpu, report)
    except ValueError as error:
        raise UsageError(str(error)) from None
    return gpu


def keep(gpu: Gpu, report: ProbeReport) -> Path:
    """Writes the report to where models read it, in place of one that is there; returns where.

    Raises:
        OSError: it cannot be written.
    """
    from profiles.reader import replace_file
    from profiles.specs import measured_file

    path = measured_file(gpu)
    path.parent.mkdir(exist_ok=True)
    replace_file(path, report.model_dump_json(indent=1).encode() + b"\n")
    return path


def main(
    profile: Annotated[
        Path | None, typer.Option(help="A profile of this board, which gets the probes.")
    ] = None,
    spec: Annotated[
        str | None,
        typer.Option(help="What models call this board (h100): they use what is measured."),
    ] = None,
) -> None:
    """Measure instruction rates, dequant work, bandwidth and launch times of the GPU that is here."""
    from bench.measure.devices import DeviceError
    from bench.measure.devices.probes import here, measure
    from kernels.nvrtc import CudaError
    from profiles.reader import ProfileError

    with exit_codes(DeviceError, ProfileError, OSError, CudaError, ImportError):
        report = here()
        if profile is not None:
            of_board(profile, report.board)  # before minutes of measuring
        gpu = None if spec is None else board_of(spec, report)
        report = measure(report)
        table(report.rows)
        if profile is not None:
            add(profile, report.board, report.rows)
        if gpu is not None:
            typer.echo(f"Wrote {keep(gpu, report)}", err=True)


if __name__ == "__main__":
    typer.run(main)

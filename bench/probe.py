"""Measures what this GPU's pipes, memory and launches do, so that nothing about them has to be assumed.

    python -m bench.probe                    the table
    python -m bench.probe --json > probes.json

Rates and latencies of single instructions, the dequant work per weight with operands in registers, bandwidth of
main memory and L2, and an empty launch. That each probe still has its instruction is shown, without a GPU, by
`python -m bench.sass --cuda`. Exit codes: 0 good, 2 no usable GPU.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from bench.usage import exit_codes

if TYPE_CHECKING:
    from bench.measure.devices.probes import Result


def table(results: list[Result]) -> None:
    """Prints results, median and range."""
    from rich.console import Console
    from rich.table import Table

    rows = Table("probe", "median", "from", "to", "unit", box=None)
    for r in results:
        rows.add_row(r.name, *(f"{value:.4g}" for value in (r.value, r.low, r.high)), r.unit)
    Console(highlight=False).print(rows)


def main(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Measure instruction rates, dequant work, bandwidth and launch times of the GPU that is here."""
    from bench.measure.devices import DeviceError
    from bench.measure.devices.probes import measure, to_data

    with exit_codes(DeviceError):
        results = measure()
    if as_json:
        typer.echo(json.dumps(to_data(results), indent=1))
    else:
        table(results)


if __name__ == "__main__":
    typer.run(main)

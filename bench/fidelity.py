"""Measures how far low-bit layers drift from 16 bits when they are chained, for the formats of a profile.

    python -m bench.fidelity results/PROFILE.json        # writes results/PROFILE.fidelity.json

Chains random decoder layers on the CPU, with the fused kernel of each format where the CPU has one; see
`bench/measure/fidelity.py`. Only the names of the profile's formats matter, so that any kind of profile will
do. `python -m bench.trap` reads what is written here. Exit codes: 0 good, 2 usage or no place to write.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from bench.measure.environment import source_hash
from bench.measure.fidelity import SEEDS, SHAPE, measure
from bench.usage import UsageError, exit_codes
from kernels.formats import FORMATS, WeightFormat
from profiles.fidelity import Fidelity, fidelity_of
from profiles.reader import ProfileError, load_profile, replace_file

ROOT = Path(__file__).resolve().parent.parent


def formats_of(path: Path) -> tuple[WeightFormat, ...]:
    """The quantized formats of a profile that this checkout has and that the chain's widths divide into.

    Raises:
        ProfileError: it cannot be read.
        UsageError: it has none of them.
    """
    profile = load_profile(path, allow=("measured", "modelled", "simulated", "imported"))
    known = {f.name: f for f in FORMATS if f.quantized}
    found = []
    for name in profile.workload.formats:
        if name not in known:
            typer.echo(f"warning: this checkout has no format {name}; it is left out.", err=True)
            continue
        try:
            for k in (SHAPE.hidden, SHAPE.intermediate):
                known[name].groups(k)
        except ValueError as error:
            typer.echo(f"warning: {error}", err=True)
            continue
        found.append(known[name])
    if not found:
        raise UsageError(f"{path} has no format that this checkout can chain.")
    return tuple(found)


def main(
    path: Annotated[Path, typer.Argument(help="A profile; its formats are chained.")],
) -> None:
    """Measure the error of chained layers of every format of a profile."""
    with exit_codes(ProfileError):
        formats = formats_of(path)
        found = Fidelity(
            created=datetime.now(UTC), kind="measured", shape=SHAPE, seeds=SEEDS,
            kernels_sha256=source_hash(ROOT / "kernels"),
            rows=tuple(measure(formats, report=lambda what: typer.echo(f"{what} ...", err=True))),
        )  # fmt: skip
        output = fidelity_of(path)
        try:
            replace_file(output, found.model_dump_json(indent=1).encode() + b"\n")
        except OSError as error:
            raise UsageError(f"cannot write {output}: {error.strerror}.") from None
        typer.echo(f"Wrote {output}")


if __name__ == "__main__":
    typer.run(main)

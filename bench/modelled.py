"""Regenerates the modelled profiles in profiles/modelled/, one per board, and says whether they are up to date.

    python -m bench.modelled              compile what has changed, model every board, write what differs
    python -m bench.modelled --gpu h100,l4    the same for some boards; the others stay as they are
    python -m bench.modelled --check      compile nothing and write nothing: exit 1 if anything is out of date

A board's profile is what `python -m bench.dequant --gpu BOARD --format FORMATS` prints on a machine without a
GPU. What was counted in machine code is committed beside the profiles, so that the second command takes
seconds, and so that the first compiles only kernels that have changed, once per architecture. Exit codes: 0
good, 1 out of date, or a profile of which more than 30 % is not modelled, 2 usage, 130 interrupted.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bench.usage import UsageError, exit_codes
from kernels.formats import find_format

if TYPE_CHECKING:
    from bench.static.audit import Audit, Job
    from bench.static.device import Layer
    from profiles.schema import Profile
    from profiles.shapes import ModelShape
    from profiles.specs import Gpu

FOLDER = Path(__file__).resolve().parent.parent / "profiles" / "modelled"
FORMATS = (  # one of each encoding and width, as in bench.sass, and two integers in groups of one size, for
    "int4-g128,int8-g128,nf4-b64,int8-ch,fp8_e4m3-ch"  # which dphi/dp exists
)
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
MODEL = "Llama-3.1-8B"
CONTENT = ("workload", "device", "protocol", "rows", "comparisons", "energy", "modelled")


def layer_of(formats: str, shape: ModelShape) -> Layer:
    """What every committed profile runs.

    Raises:
        UsageError: there is no such format.
    """
    from bench.static.device import Layer

    try:
        found = tuple(find_format(name.strip()) for name in formats.split(","))
    except ValueError as error:
        raise UsageError(str(error)) from None
    return Layer(shape.operators, found, BATCHES, "fp16")


def chosen(names: str | None) -> tuple[Gpu, ...]:
    """The boards of an option.

    Raises:
        UsageError: nothing is known of one.
    """
    from profiles.specs import load_gpu, load_gpus

    try:
        known = load_gpus().values() if names is None else map(load_gpu, names.split(","))
        return tuple({gpu.key: gpu for gpu in known}.values())
    except ValueError as error:
        raise UsageError(str(error)) from None


def path_of(board: Gpu) -> Path:
    """Where the profile of a board is."""
    return FOLDER / f"{board.key}.json.gz"


def committed(board: Gpu) -> Profile | None:
    """The profile that is there; None where there is none that can be read."""
    from profiles.reader import ProfileError, load_profile

    try:
        return load_profile(path_of(board), allow=("modelled",))
    except ProfileError:
        return None


def same(a: Profile, b: Profile | None) -> bool:
    """Whether two profiles say the same, whoever computed them and when."""
    return b is not None and all(getattr(a, name) == getattr(b, name) for name in CONTENT)


def profiles(
    boards: Sequence[Gpu], layer: Layer, shape: ModelShape, audits: dict[Job, Audit],
    failures: dict[Job, str],
) -> list[tuple[Gpu, Profile]]:  # fmt: skip
    """The profile of every board."""
    from bench.measure.resume import sources
    from bench.static.device import Model
    from bench.static.modelled import modelled_profile

    now, found = datetime.now(UTC), sources()
    return [
        (
            board,
            modelled_profile(
                Model(layer, board, audits, failures), shape, found, ("bench.modelled",), now
            ),
        )
        for board in boards
    ]


def check(boards: Sequence[Gpu], layer: Layer, shape: ModelShape) -> list[str]:
    """What is out of date, one line each; from the committed counts alone."""
    from bench.static.audit_cache import COMMITTED, open_cache, read_committed
    from bench.static.device import jobs_of_layer

    cache, known = open_cache(), read_committed(COMMITTED)
    jobs = jobs_of_layer(layer, boards)
    audits = {job: known[key] for job in jobs if (key := cache.key(job)) in known}
    if len(audits) < len(jobs):
        lacking = next(job for job in jobs if job not in audits)
        return [
            f"{len(jobs) - len(audits)} of {len(jobs)} kernels have changed since they were counted, or were "
            f"counted with another Triton than {cache.compiler}: {lacking.name} on sm_{lacking.capability}, "
            f"for one."
        ]
    return [
        f"{path_of(board)} is not what the model says now."
        for board, profile in profiles(boards, layer, shape, audits, {})
        if not same(profile, committed(board))
    ]


def regenerate(boards: Sequence[Gpu], layer: Layer, shape: ModelShape) -> int:
    """Compiles what has changed, and writes counts and profiles that differ; returns the exit code.

    Raises:
        OSError: they cannot be written.
    """
    from rich.console import Console

    from bench.analysis.trust import REFUSED_SHARE
    from bench.measure.run import Progress
    from bench.progress import progress
    from bench.static.audit_all import audited
    from bench.static.audit_cache import COMMITTED, committed_text, open_cache, read_committed
    from bench.static.device import jobs_of_layer
    from profiles.reader import replace_file, write_profile
    from profiles.specs import load_gpus

    cache, known = open_cache(), read_committed(COMMITTED)
    jobs = jobs_of_layer(layer, boards)
    with progress(Console(stderr=True)) as show:
        audits, failures = audited(jobs, cache, lambda *state: show(Progress(*state)))
    FOLDER.mkdir(parents=True, exist_ok=True)
    others = jobs_of_layer(layer, load_gpus().values())
    kept = {job: known[key] for job in others if (key := cache.key(job)) in known}
    text = committed_text(cache, kept | audits)
    if not COMMITTED.exists() or COMMITTED.read_bytes() != text:
        replace_file(COMMITTED, text)
    typer.echo(f"{len(text) / 1e3:8.0f} kB  {COMMITTED.name}: {len(kept | audits)} kernels")
    bad = len(failures)
    for job, why in failures.items():
        typer.echo(f"FAILED {job.name} on sm_{job.capability}: {why}")
    for board, profile in profiles(boards, layer, shape, audits, failures):
        path, changed = path_of(board), not same(profile, committed(board))
        if changed:
            write_profile(profile, None, path)
        modelled = profile.modelled
        assert modelled is not None
        share = modelled.refused_rows / modelled.rows
        bad += share > REFUSED_SHARE
        typer.echo(
            f"{path.stat().st_size / 1e3:8.0f} kB  {path.name}: {modelled.refused_rows} of {modelled.rows} "
            f"rows refused ({share:.0%}); {'written' if changed else 'unchanged'}"
        )
    return int(bool(bad))


def main(
    check_only: Annotated[
        bool, typer.Option("--check", help="Write nothing; exit code 1 if anything is out of date.")
    ] = False,
    formats: Annotated[
        str, typer.Option("--format", help="Formats of the profiles, comma-separated.")
    ] = FORMATS,
    gpu: Annotated[
        str | None, typer.Option(help="Boards, comma-separated; every one by default.")
    ] = None,
) -> None:
    """Regenerate the committed modelled profiles, or check that they are up to date."""
    from profiles.shapes import load_model

    with exit_codes(OSError):
        boards, shape = chosen(gpu), load_model(MODEL)
        layer = layer_of(formats, shape)
        if not check_only:
            raise typer.Exit(regenerate(boards, layer, shape))
        found = check(boards, layer, shape)
        for line in found:
            typer.echo(line, err=True)
        if found:
            typer.echo("Run python -m bench.modelled.", err=True)
            raise typer.Exit(1)
        typer.echo(f"The profiles of {len(boards)} boards are up to date.")


if __name__ == "__main__":
    typer.run(main)

"""From a profile to answers: what dequantization costs part by part, from which batch and model size it pays.

    python -m bench.trap results/PROFILE.json
    python -m bench.trap results/PROFILE.json --batch 8 --hops 4 --tokens-per-hop 256 --weights 0.5,0,0.5
    python -m bench.trap MODELLED.json --kind modelled

Needs the profile, and the samples beside it where it has some: no device, no torch. Prints tables and writes
pictures next to the profile. Profiles of other kinds than measured are read only when --kind names theirs.
Exit codes: 0 good, 2 the file cannot be read or is asked something that it does not hold.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from bench.analysis.indices import Weights, read_accuracy
from bench.analysis.replicates import Book
from bench.analysis.trap import Questions, analyse
from bench.analysis.verdict import By
from bench.analysis.verdict import Path as KernelPath
from bench.trap_pictures import draw
from bench.trap_tables import render
from bench.usage import UsageError, exit_codes
from profiles.fidelity import Fidelity, fidelity_of, load_fidelity
from profiles.reader import ProfileError, load_profile, load_samples
from profiles.schema import LAYER, Kind, Profile

MAXIMUM_HOPS = 1_000_000
MAXIMUM_TOKENS = 1_000_000_000  # of each; together with the hops still far below what a float holds


def open_book(path: Path, kind: Kind, formats: str | None) -> Book:
    """A profile and its samples, restricted to some formats.

    Raises:
        ProfileError: it cannot be read, is of another kind, or its samples are not those it names.
        UsageError: it has no such format, or no comparison of a layer.
    """
    try:
        profile = load_profile(path, allow=(kind,))
    except ProfileError as error:
        if "was asked for" in str(error):
            raise ProfileError(
                f"{path} is not {kind}: kinds of evidence are never mixed silently, so name its own, as in "
                f"--kind modelled."
            ) from None
        raise
    samples = None if profile.samples is None else load_samples(profile, path.parent)
    return Book.open(_restricted(profile, formats), samples)


def _restricted(profile: Profile, formats: str | None) -> Profile:
    known = tuple(dict.fromkeys(c.format for c in profile.comparisons if c.operator == LAYER))
    if not known:
        raise UsageError(
            "this profile compares no whole layer, so there is nothing to answer from."
        )
    if formats is None:
        return profile
    chosen = {name.strip() for name in formats.split(",")}
    missing = sorted(chosen - set(known))
    if missing:
        raise UsageError(f"this profile has no {', '.join(missing)}; it has {', '.join(known)}.")
    return profile.model_copy(
        update={
            "rows": tuple(r for r in profile.rows if r.format in chosen),
            "comparisons": tuple(c for c in profile.comparisons if c.format in chosen),
        }
    )


def _batch(profile: Profile, batch: int | None) -> int:
    known = sorted({c.batch for c in profile.comparisons if c.operator == LAYER})
    if batch is None:
        return known[0]
    if batch not in known:
        raise UsageError(
            f"batch {batch} was not measured; choose from {', '.join(map(str, known))}."
        )
    return batch


def _weights(text: str) -> Weights:
    try:
        parts = [float(part) for part in text.split(",")]
    except ValueError:
        parts = []
    if len(parts) != 3 or any(not p >= 0 for p in parts) or not 0 < sum(parts) < math.inf:
        raise UsageError(
            f"--weights takes three numbers for trust, environment and economy, such as 0.4,0.3,0.3, not "
            f"{text!r}."
        )
    return Weights(*(p / sum(parts) for p in parts))


def _fidelity(path: Path) -> Fidelity | None:
    """What bench.fidelity wrote beside a profile, if it did."""
    beside = fidelity_of(path)
    return load_fidelity(beside) if beside.exists() else None


def _other(path: Path | None, kind: Kind, book: Book, formats: str | None) -> Book | None:
    """The profile of the other launch mode.

    Raises:
        UsageError: it is not of the same device, model and formats, or of the same launch mode.
    """
    if path is None:
        return None
    other = open_book(path, kind, formats)
    a, b = book.profile, other.profile
    if a.workload.launch_mode == b.workload.launch_mode:
        raise UsageError(
            f"{path} has {b.workload.launch_mode} launches too; give the other mode's."
        )
    same = (a.device.name, a.device.uuid_hash, a.workload.model, a.workload.activation)
    if same != (b.device.name, b.device.uuid_hash, b.workload.model, b.workload.activation):
        raise UsageError(f"{path} is of another device, model or activation dtype.")
    return other


def main(
    path: Annotated[Path, typer.Argument(help="A profile, as written by bench.dequant.")],
    kind: Annotated[Kind, typer.Option(help="The kind of evidence it may be.")] = "measured",
    formats: Annotated[
        str | None, typer.Option("--format", help="Only these formats, comma-separated.")
    ] = None,
    batch: Annotated[
        int | None,
        typer.Option(help="That hops, indices and advice are about; the smallest by default."),
    ] = None,
    hops: Annotated[int, typer.Option(min=1, max=MAXIMUM_HOPS, help="Hops of the chain.")] = 4,
    tokens_per_hop: Annotated[
        int, typer.Option(min=1, max=MAXIMUM_TOKENS, help="Tokens of each hop.")
    ] = 256,
    kernel_path: Annotated[
        KernelPath, typer.Option("--path", help="The path of the trap map.")
    ] = "fused",
    by: Annotated[By, typer.Option(help="What the trap map compares.")] = "time",
    weights: Annotated[
        str, typer.Option(help="Of trust, environment and economy in SI.")
    ] = "1,1,1",
    accuracy: Annotated[
        Path | None,
        typer.Option(help="CSV with columns format, accuracy (low, high), and a row named 16-bit."),
    ] = None,
    other_launch: Annotated[
        Path | None, typer.Option(help="A profile of the same device in the other launch mode.")
    ] = None,
    pictures: Annotated[bool, typer.Option(help="Write the pictures.")] = True,
    output: Annotated[
        Path | None, typer.Option(help="The folder of the pictures; the profile's by default.")
    ] = None,
) -> None:
    """Say what dequantization costs, part by part, and from which batch and model size it pays."""
    with exit_codes(ProfileError):
        book = open_book(path, kind, formats)
        questions = Questions(
            batch=_batch(book.profile, batch), hops=hops, tokens_per_hop=tokens_per_hop,
            path=kernel_path, by=by, weights=_weights(weights),
            accuracy=None if accuracy is None else read_accuracy(accuracy),
        )  # fmt: skip
        fidelity = _fidelity(path)
        answers = analyse(book, questions, fidelity, _other(other_launch, kind, book, formats))
        Console().print(render(book, answers, fidelity))
        if pictures:
            folder = output or path.parent
            try:
                folder.mkdir(parents=True, exist_ok=True)
                for drawn in draw(book, answers, path, folder):
                    typer.echo(f"Drew {drawn}", err=True)
            except OSError as error:
                raise UsageError(f"cannot write the pictures: {error.strerror}.") from None


if __name__ == "__main__":
    typer.run(main)

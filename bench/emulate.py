"""Checks a kernel without a GPU: compiles it, runs its PTX on the CPU, compares with its reference.

    python -m bench.emulate bench/examples/dequant_gemv.py:gemv --target sm_90 --target sm_80
    python -m bench.emulate bench/examples/dequant_gemv.cu:gemv --problem bench/examples/dequant_gemv.py

The Python file says, in `problem(draw)`, what to launch and what to expect; see bench.static.ptx.problem. It
is called for every kind of input: random, extreme, cancelling, subnormal. Tables (or --json) go to stdout.
Exit codes: 0 all right, 1 a wrong result or a fault, 2 usage, or a file that cannot be used, compiled or
emulated, 130 interrupted.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bench.usage import UsageError, exit_codes

TARGETS = ("sm_80", "sm_90")  # two generations whose compiled code differs


def parse_kernel(text: str) -> tuple[Path, str]:
    """File and kernel from "FILE.py:kernel".

    Raises:
        UsageError: it has another form.
    """
    path, _, name = text.rpartition(":")
    if not path or not name.isidentifier():
        raise UsageError(f"name a file and a kernel in it, such as gemv.py:gemv, not {text!r}.")
    return Path(path), name


def parse_targets(texts: list[str]) -> tuple[int, ...]:
    """Compute capabilities times ten from "sm_90", each once, in the order given.

    Raises:
        UsageError: the compilers know no such target.
    """
    from bench.static.compile import CAPABILITIES

    known = {f"sm_{capability}": capability for capability in CAPABILITIES}
    for text in texts:
        if text not in known:
            raise UsageError(
                f"there is no target {text!r}; choose --target from {', '.join(known)}."
            )
    return tuple(known[text] for text in dict.fromkeys(texts))


def check(
    kernel: str,
    targets: list[str],
    problem: Path | None,
    seed: int,
    race: bool,
    strict: bool,
    machine: bool,
) -> int:
    """Runs everything and prints it; returns the exit code.

    Raises:
        UsageError: the command line names something that does not exist.
        SourceError: a file cannot be used, compiled or emulated.
    """
    path, name = parse_kernel(kernel)
    capabilities = parse_targets(targets)
    if seed < 0:
        raise UsageError(f"--seed takes a number from 0 up, not {seed}.")
    from rich.console import Console

    from bench.static.source import open_kernel
    from bench.static.trial import trials
    from bench.static.trial_report import as_json, render

    done = list(trials(open_kernel(path, name, problem), capabilities, seed, race, strict))
    title = f"{name} of {path.name}"
    if machine:
        typer.echo(as_json(title, done, seed, race))
    else:
        Console(highlight=False).print(render(title, done, seed, race))
    verdicts = {trial.verdict for trial in done}
    return 1 if verdicts - {"right", "not emulated"} else 2 if "not emulated" in verdicts else 0


def main(
    kernel: Annotated[
        str, typer.Argument(metavar="FILE:KERNEL", help="A kernel in a .py (Triton) or .cu file.")
    ],
    target: Annotated[
        list[str] | None,
        typer.Option(
            help=f"A GPU architecture; may be given several times. By default {' and '.join(TARGETS)}."
        ),
    ] = None,
    problem: Annotated[
        Path | None,
        typer.Option(help="The Python file with problem(); by default FILE with the ending .py."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the random inputs.")] = 0,
    race: Annotated[bool, typer.Option(help="Look for shared-memory races.")] = True,
    strict: Annotated[
        bool, typer.Option(help="A barrier must be reached by whole warps and at one place.")
    ] = True,
    machine: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Check a kernel without a GPU: compile it, run its PTX in an emulator, compare with a reference."""
    from bench.static.build import SourceError

    with exit_codes(SourceError):
        code = check(kernel, target or list(TARGETS), problem, seed, race, strict, machine)
    raise typer.Exit(code)


if __name__ == "__main__":
    typer.run(main)

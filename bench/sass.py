"""Counts what every kernel's machine code spends on a weight, and which pipe of a GPU it exhausts first.

    python -m bench.sass --gpu a100,h100,b200,rtx4090      our kernels, compiled here for these boards
    python -m bench.sass --format nf4-b64 --arm fused      some of them; --all: every one, every board
    python -m bench.sass --source bench/examples/dequant_gemv.py:gemv --weights 8     your own Triton kernel
    python -m bench.sass --cubin k.cubin --regex gemm --weights 64 --format int4-g128   other people's code
    python -m bench.sass --format int4-g128 --gate limits.toml                   fail where a limit is passed
    python -m bench.sass --pipes                    how fast ptxas and others believe each pipe to be
    python -m bench.sass --limits --plot r.png      R: which boards hide dequantization, for which kernels
    python -m bench.sass --targets                  our tuned Triton kernels beside what they should need
    python -m bench.sass --cuda                     our CUDA C++ kernels beside theirs, and the probes
    python -m bench.sass --peers --gpu h100         the field's shipped kernels and ours, at batch 1

No GPU is needed and nothing is run. Tables (or --json) go to stdout, progress and warnings to stderr. Audits
are kept in build/sass/, so that only what changed is compiled again; kernels given by --source, --cubin and
--so are counted anew each time. Limits: see bench.static.audit_gate. Exit codes: 0 good, 1 a limit was
passed, a target missed or a kernel does not compile, 2 usage or a file that cannot be used, 130 interrupted.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from bench.usage import UsageError, exit_codes

if TYPE_CHECKING:
    from bench.static.audit import Audit, Job
    from bench.static.audit_cache import Cache
    from bench.static.audit_gate import Limit
    from bench.static.audit_report import Report
    from kernels.packing import Float16
    from profiles.specs import Gpu

GPUS = (
    "t4,a100,rtx4090,h100,b200,rtx5090"  # one of each architecture that data centres and desks have
)
FORMATS = "int4-g128,int8-ch,nf4-b64,fp8_e4m3-ch,fp16"  # one of each encoding and width
ARMS = "bypass,fused,dequantize,native"
EVERY_ARM = (
    "stream",
    "unpack",
    "scale",
    "bypass",
    "fused",
    "dequantize",
    "native",
    "lowp",
    "upcast",
)
ACTIVATIONS = ("fp16", "bf16")


@dataclass(frozen=True)
class Ask:
    """The command line, as given; None for what was not."""

    gpu: str | None
    format: str | None
    arm: str | None
    activation: str | None
    everything: bool
    source: str | None
    cubin: Path | None
    so: Path | None
    regex: str | None
    weights: int | None


def parts(text: str) -> list[str]:
    """The items of a list with commas, each once."""
    return list(dict.fromkeys(item.strip() for item in text.split(",") if item.strip()))


def chosen(option: str, text: str, known: Sequence[str]) -> list[str]:
    """The items of an option.

    Raises:
        UsageError: one is not among those known, or there is none.
    """
    items = parts(text)
    for item in items or [text]:
        if item not in known:
            raise UsageError(f"there is no {item!r}; choose --{option} from {', '.join(known)}.")
    return items


def chosen_gpus(text: str) -> list[Gpu]:
    """The boards of an option.

    Raises:
        UsageError: nothing is known of one, or nothing can be compiled for it.
    """
    from bench.static.audit_report import capability_of
    from bench.static.compile import CAPABILITIES
    from profiles.specs import load_gpu

    gpus = []
    for name in parts(text) or [text]:
        try:
            gpu = load_gpu(name)
        except ValueError as error:
            raise UsageError(str(error)) from None
        if capability_of(gpu) not in CAPABILITIES:
            raise UsageError(
                f"nothing can be compiled for compute capability {gpu.capability} of the {gpu.name}; "
                f"it can be for {', '.join(f'sm_{c}' for c in CAPABILITIES)}."
            )
        gpus.append(gpu)
    return list({gpu.key: gpu for gpu in gpus}.values())


def ours(ask: Ask) -> Report:
    """The audit of our own kernels.

    Raises:
        UsageError: a name is unknown, or no kernel has these names.
    """
    from bench.static.audit import jobs_of, rows_of
    from bench.static.audit_cache import compiler, open_cache
    from bench.static.audit_report import Report, capability_of
    from kernels.formats import FORMATS as EVERY_FORMAT

    if ask.weights is not None or ask.regex is not None:
        raise UsageError("--weights and --regex are for --source, --cubin and --so.")
    readable = [f.name for f in EVERY_FORMAT if f.name != "fp32"]
    formats, arms = ",".join(readable), ",".join(EVERY_ARM)
    activations = ",".join(ACTIVATIONS)
    if not ask.everything:
        formats, arms, activations = FORMATS, ARMS, ACTIVATIONS[0]
    gpus = chosen_gpus(ask.gpu or GPUS)
    names = (
        chosen("arm", ask.arm or arms, EVERY_ARM),
        chosen("format", ask.format or formats, readable),
        chosen("activation", ask.activation or activations, ACTIVATIONS),
    )
    jobs = jobs_of(*names, dict.fromkeys(map(capability_of, gpus)))
    if not jobs:
        raise UsageError(
            f"no Triton kernel has arm {ask.arm or arms}, format {ask.format or formats} and "
            f"activations {ask.activation or activations}: native reads fp16 or bf16, the others do not."
        )
    audits, failures = audited(jobs, open_cache())
    return Report(tuple(rows_of(audits)), gpus, f"Triton {compiler()}", failures=failures)


def audited(jobs: Sequence[Job], cache: Cache) -> tuple[dict[Job, Audit], dict[str, str]]:
    """The audit of every job, with a bar on stderr while some are compiled; and why there is none."""
    from rich.console import Console

    from bench.measure.run import Progress
    from bench.progress import progress
    from bench.static import audit_all

    with progress(Console(stderr=True)) as show:
        audits, failures = audit_all.audited(jobs, cache, lambda *state: show(Progress(*state)))
    return audits, {f"{job.name} on sm_{job.capability}": why for job, why in failures.items()}


def one_format(ask: Ask) -> str | None:
    """What the weights of a foreign kernel are stored as, which gives their bytes; None: not said.

    Raises:
        UsageError: there is no such format, or several were named.
    """
    from kernels.formats import find_format

    if ask.everything or ask.arm is not None or ask.activation is not None:
        raise UsageError("--all, --arm and --activation choose among our own kernels.")
    if ask.format is None:
        return None
    try:
        return find_format(ask.format).name
    except ValueError as error:
        raise UsageError(str(error)) from None


def source(ask: Ask) -> Report:
    """The audit of a Triton kernel in somebody's file.

    Raises:
        UsageError: the file or the kernel cannot be used.
    """
    from bench.static.audit import row_of
    from bench.static.audit_cache import compiler
    from bench.static.audit_pool import Pool
    from bench.static.audit_report import Report, capability_of

    stored = one_format(ask)
    path, _, name = (ask.source or "").rpartition(":")
    if not path or not name.isidentifier():
        raise UsageError(
            f"name a file and a kernel in it, such as gemv.py:gemv, not {ask.source!r}."
        )
    if ask.regex is not None:
        raise UsageError("--regex is for --cubin and --so; --source names its kernel.")
    if not Path(path).is_file():
        raise UsageError(f"there is no kernel file {path}.")
    if Path(path).suffix != ".py":
        raise UsageError(
            f"--source takes a Triton file (.py), not {path}; compile CUDA C++ with nvcc "
            f"and pass --cubin."
        )
    gpus = chosen_gpus(ask.gpu or GPUS)
    file = str(Path(path).resolve())
    requests = [
        {"file": file, "kernel": name, "capability": capability, "weights": ask.weights}
        for capability in dict.fromkeys(map(capability_of, gpus))
    ]
    rows = {}
    with Pool() as pool:
        for index, answer in pool.answers(requests):
            if isinstance(answer, str):
                raise UsageError(f"{name} for sm_{requests[index]['capability']}: {answer}")
            rows[index] = row_of(answer)
    found = tuple(rows[index] for index in sorted(rows))
    return Report(found, gpus, f"Triton {compiler()}", stored)


def foreign(ask: Ask) -> Report:
    """The audit of functions in a binary.

    Raises:
        UsageError: the binary cannot be used.
    """
    from bench.static.audit import row_of
    from bench.static.audit_report import Report, capability_of
    from bench.static.foreign import ForeignError, audit_binary

    stored = one_format(ask)
    gpus = chosen_gpus(ask.gpu) if ask.gpu else []
    path = ask.cubin or ask.so
    assert path is not None
    capabilities = [capability_of(gpu) for gpu in gpus]
    try:
        audits = audit_binary(path, ask.so is not None, ask.regex or "", capabilities, ask.weights)
    except ForeignError as error:
        raise UsageError(str(error)) from None
    boards = gpus or chosen_gpus(GPUS)
    present = {audit.capability for audit in audits}
    boards = [gpu for gpu in boards if capability_of(gpu) in present]
    return Report(tuple(map(row_of, audits)), boards, f"Machine code of {path.name}", stored)


def run(ask: Ask, as_json: bool, gate: Path | None) -> int:
    """Counts, prints and judges; returns the exit code.

    Raises:
        UsageError: the command line names something that does not exist.
        GateError: the limits cannot be used.
    """
    from bench.static.audit_gate import load_limits

    limits = load_limits(gate) if gate is not None else ()
    binaries = [x for x in (ask.source, ask.cubin, ask.so) if x is not None]
    if len(binaries) > 1:
        raise UsageError("give one of --source, --cubin and --so, not several.")
    make: Callable[[Ask], Report] = ours
    if binaries:
        make = source if ask.source is not None else foreign
    report = make(ask)
    lines = gate_lines(limits, report)
    show(report, as_json, [] if gate is None else lines)
    for line in lines:
        typer.echo(line, err=True)
    if gate is not None and not lines:
        typer.echo(f"gate: all {len(limits)} limits of {gate} are kept.", err=True)
    return int(bool(lines or report.failures))


def gate_lines(limits: Sequence[Limit], report: Report) -> list[str]:
    """A line for everything beyond a limit."""
    from bench.static.audit_gate import breaches

    return [f"gate: {breach.sentence}" for breach in breaches(limits, report.rows)]


def limits(ask: Ask, batch: int, as_json: bool, plot: Path | None) -> int:
    """R of our fused kernels and of other people's on every board; returns the exit code.

    Raises:
        UsageError: a name is unknown, or the picture cannot be written.
    """
    from bench.static import limits_plot, limits_table
    from bench.static.audit_cache import open_cache
    from bench.static.peers import listed_peers
    from kernels.formats import FORMATS as EVERY_FORMAT
    from kernels.formats import find_format
    from profiles.specs import load_gpus

    names = [f.name for f in EVERY_FORMAT if f.quantized]
    formats = [find_format(n) for n in chosen("format", ask.format or ",".join(names), names)]
    try:
        every = load_gpus()
    except ValueError as error:  # measured rates that cannot be read
        raise UsageError(str(error)) from None
    gpus = chosen_gpus(ask.gpu or ",".join(every))
    audits, failures = audited(limits_table.our_jobs(gpus, formats, batch), open_cache())
    lines = limits_table.our_lines(gpus, formats, batch, audits)
    lines += limits_table.peer_lines(gpus, listed_peers(), batch)
    if plot is not None:
        try:
            limits_plot.draw(gpus, lines, batch, plot)
        except (OSError, ValueError) as error:
            raise UsageError(f"cannot write {plot}: {error}") from None
        typer.echo(f"Wrote {plot}", err=True)
    if as_json:
        data = limits_table.to_data(gpus, lines, batch)
        sys.stdout.write(json.dumps(data, indent=1, ensure_ascii=False) + "\n")
    else:
        from rich.console import Console

        Console(highlight=False).print(limits_table.render(gpus, lines, batch))
    for name, why in failures.items():
        typer.echo(f"warning: {name}: {why}", err=True)
    return 0


def pipes(gpu: str | None, as_json: bool) -> int:
    """How fast the pipes of each architecture are; returns the exit code.

    Raises:
        UsageError: nothing is known of a board.
    """
    from rich.console import Console

    from bench.static import pipes_table

    known = (g.multiprocessor for g in chosen_gpus(gpu or f"{GPUS},a10,orin"))
    each = {m.capability: m for m in known if m is not None}
    found = [each[name] for name in sorted(each, key=float)]
    if as_json:
        data = pipes_table.to_data(found)
        sys.stdout.write(json.dumps(data, indent=1, ensure_ascii=False) + "\n")
    else:
        Console(highlight=False).print(pipes_table.render(found))
    return 0


def peers(gpu: str | None, activation: str | None, as_json: bool) -> int:
    """The field's machine code beside ours, a table for each board and dtype; returns the exit code.

    Raises:
        UsageError: a name is unknown.
    """
    from bench.static import peer_audit
    from bench.static.audit_cache import open_cache

    gpus = chosen_gpus(gpu or "h100")
    dtypes = chosen("activation", activation or ACTIVATIONS[0], ACTIVATIONS)
    found, cache = [], open_cache()
    for board in gpus:
        for name in dtypes:
            dtype = cast("Float16", name)
            ours, failures = audited(peer_audit.our_jobs(board, dtype), cache)
            found.append(peer_audit.audit_peers(board, dtype, ours))
            for kernel, why in failures.items():
                typer.echo(f"warning: {kernel}: {why}", err=True)
    if as_json:
        data = [peer_audit.to_data(one) for one in found]
        sys.stdout.write(json.dumps(data, indent=1, ensure_ascii=False) + "\n")
        return 0
    from rich.console import Console

    for one in found:
        Console(highlight=False).print(peer_audit.render(one))
    return 0


def show(report: Report, as_json: bool, lines: list[str]) -> None:
    """Prints a report."""
    from bench.static.audit_report import render, to_data

    if as_json:
        data: dict[str, Any] = {**to_data(report), "gate": lines}
        sys.stdout.write(json.dumps(data, indent=1, ensure_ascii=False) + "\n")
        return
    from rich.console import Console

    Console(highlight=False).print(render(report))


def show_targets(ask: Ask, as_json: bool) -> int:
    """Our tuned Triton kernels beside their targets; returns the exit code.

    Raises:
        UsageError: no kernel of a format has a target, or another choice was made.
    """
    from rich.console import Console

    from bench.static import targets
    from bench.static.audit_cache import open_cache

    if any(value for name, value in vars(ask).items() if name != "format"):
        raise UsageError("--targets takes --format and --json, and nothing else.")
    known = list(dict.fromkeys(name for _, name, _ in targets.TARGETS))
    formats = chosen("format", ask.format, known) if ask.format is not None else []
    audits, failures = audited(targets.jobs(formats), open_cache())
    found = targets.lines(audits, formats)
    if as_json:
        sys.stdout.write(json.dumps(targets.to_data(found), indent=1) + "\n")
    else:
        Console(highlight=False).print(targets.render(found))
    said = {**failures, **{line.name: line.failure for line in found if line.failure}}
    for name, why in said.items():
        typer.echo(f"{name}: {why}", err=True)
    return int(bool(said))


def show_cuda(as_json: bool) -> int:
    """Compiles and prints the CUDA C++ kernels and the probes, with a bar on stderr; returns the exit code."""
    from rich.console import Console

    from bench.measure.run import Progress
    from bench.progress import progress
    from bench.static import cuda_audit

    with progress(Console(stderr=True)) as report:
        return cuda_audit.show(
            as_json, lambda doing, share: report(Progress(f"compiled {doing}", None, share))
        )


def main(
    gpu: Annotated[
        str | None, typer.Option(help=f"Boards, with commas. By default {GPUS}.")
    ] = None,
    format: Annotated[
        str | None,
        typer.Option(help=f"Weight formats, with commas. By default {FORMATS}."),
    ] = None,
    arm: Annotated[
        str | None,
        typer.Option(help=f"Arms, with commas, of {', '.join(EVERY_ARM)}. By default {ARMS}."),
    ] = None,
    activation: Annotated[
        str | None, typer.Option(help="fp16 (by default), bf16, or both with a comma.")
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Every format, arm and activation: may take an hour.")
    ] = False,
    source: Annotated[
        str | None,
        typer.Option(metavar="FILE:KERNEL", help="A Triton kernel whose file has a problem()."),
    ] = None,
    cubin: Annotated[Path | None, typer.Option(help="A cubin file.")] = None,
    so: Annotated[Path | None, typer.Option(help="A library with cubins inside.")] = None,
    regex: Annotated[
        str | None, typer.Option(help="For --cubin and --so: functions with such a name.")
    ] = None,
    weights: Annotated[
        int | None,
        typer.Option(
            help="Weights per lane and pass of a foreign kernel's loop; without a loop, in all."
        ),
    ] = None,
    gate: Annotated[
        Path | None, typer.Option(help="Limits (TOML or JSON); exit code 1 where one is passed.")
    ] = None,
    show_limits: Annotated[
        bool, typer.Option("--limits", help="R of our kernels and other people's on every board.")
    ] = False,
    batch: Annotated[int, typer.Option(min=1, max=256, help="For --limits: rows of x.")] = 1,
    plot: Annotated[Path | None, typer.Option(help="For --limits: draw a picture too.")] = None,
    show_pipes: Annotated[
        bool, typer.Option("--pipes", help="Rates of the pipes, as ptxas and others have them.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
    show_target: Annotated[
        bool, typer.Option("--targets", help="Our tuned Triton kernels against their targets.")
    ] = False,
    cuda: Annotated[
        bool,
        typer.Option("--cuda", help="Our CUDA C++ kernels against their targets, and the probes."),
    ] = False,
    show_peers: Annotated[
        bool,
        typer.Option("--peers", help="The field's machine code beside ours. By default on h100."),
    ] = False,
) -> None:
    """Count the machine code of kernels: instructions per weight, occupancy, and what a GPU allows."""
    from bench.static.audit_gate import GateError
    from kernels.nvrtc import CudaError

    ask = Ask(gpu, format, arm, activation, everything, source, cubin, so, regex, weights)
    with exit_codes(GateError, FileNotFoundError, CudaError):
        if cuda:
            raise typer.Exit(show_cuda(as_json))
        if show_target:
            raise typer.Exit(show_targets(ask, as_json))
        if weights is not None and weights < 1:
            raise UsageError(f"--weights takes a number from 1 up, not {weights}.")
        if plot is not None and not show_limits:
            raise UsageError("--plot draws the table of --limits; give both.")
        if show_pipes:
            code = pipes(gpu, as_json)
        elif show_limits:
            code = limits(ask, batch, as_json, plot)
        elif show_peers:
            code = peers(gpu, activation, as_json)
        else:
            code = run(ask, as_json, gate)
    raise typer.Exit(code)


if __name__ == "__main__":
    typer.run(main)

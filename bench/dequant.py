"""The main command: times every arm of the ladder on this machine and writes a hardware profile.

    python -m bench.dequant --gpu auto --bits 4

prints, per format and batch, the time of the best 16-bit kernel, of the fused and unfused quantized ones
and of the stages between, with φ, the cost of dequantization, and its interval. Tables go to stdout,
progress and warnings to stderr. Exit codes: 0 good, 1 the result is not (README.md says when), 2 usage,
wrong hardware or no place to write, 130 interrupted (143 by SIGTERM).

The name of a GPU that is not here, on a machine without any, gives a model of it instead: the same tables from
compiled kernels and data sheets, every number with an interval, and a banner that says so.

    python -m bench.dequant --gpu h100 --bits 4

Every block is on disk before the next one begins. A run that ended too early, however it ended, goes on with

    python -m bench.dequant --resume results/PROFILE.journal.jsonl
"""

from __future__ import annotations

import contextlib
import math
import re
import shlex
import signal
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from itertools import chain, groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, cast, get_args

import typer

from bench.usage import UsageError, exit_codes
from kernels.formats import (
    FORMATS,
    LOWP_ALIASES,
    WeightFormat,
    formats_called,
    formats_with_bits,
)
from kernels.user import UserKernelError, check_name

if TYPE_CHECKING:
    from bench.measure.devices import Float16, Mode
    from bench.measure.journal import Journal
    from bench.measure.records import EnergyPlan, Plan
    from bench.measure.run import Result
    from kernels.kernel import Kernel
    from profiles.schema import Profile
    from profiles.shapes import ModelShape
    from profiles.specs import Gpu

BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
LARGEST_BATCH = 256
CPU_MODEL = "Qwen3-0.6B"
GPU_MODEL = "Llama-3.1-8B"
Energy = Literal["default", "full", "smoke", "off"]
JOURNAL_SUFFIX = ".journal.jsonl"
NAMED = 4  # formats in the name of a profile; it must fit into 255 bytes


def parse_batches(text: str) -> tuple[int, ...]:
    """Batches from "1,2,4", in rising order.

    Raises:
        UsageError: not whole numbers, or not from 1 to 256.
    """
    try:
        batches = sorted({int(part) for part in text.split(",")})
    except ValueError:
        raise UsageError(f"--batches takes whole numbers such as 1,4,16, not {text!r}.") from None
    for batch in batches:
        if not 1 <= batch <= LARGEST_BATCH:
            raise UsageError(f"--batches takes numbers from 1 to {LARGEST_BATCH}, not {batch}.")
    return tuple(batches)


def choose_formats(bits: int | None, names: str | None) -> tuple[WeightFormat, ...]:
    """The formats of --format, else all of --bits, else all 4-bit ones.

    Raises:
        UsageError: there is no such format or width, or the two disagree.
    """
    try:
        if names is None:
            return formats_with_bits(4 if bits is None else bits)
        called = [formats_called(name.strip()) for name in names.split(",")]
    except ValueError as error:
        raise UsageError(str(error)) from None
    formats = tuple(dict.fromkeys(chain.from_iterable(called)))
    for weight_format in formats:
        if not weight_format.quantized:
            raise UsageError(
                f"{weight_format.name} has nothing to dequantize: 16-bit kernels are part of every "
                f"run; name a quantized format."
            )
        if bits is not None and weight_format.bits != bits:
            raise UsageError(
                f"--format {weight_format.name} has {weight_format.bits} bits, "
                f"but --bits {bits} was given; leave out one of the two."
            )
    return formats


def list_formats() -> None:
    """Prints every format by width, with the bits it moves per weight and what they are."""
    from rich.console import Console
    from rich.table import Table

    table = Table("format", "alias", "bits", "stored per weight (of rows of 4096)", box=None)
    for index, (_, alike) in enumerate(groupby(sorted(FORMATS, key=_width), key=_width)):
        if index:
            table.add_row()
        for weight_format in alike:
            stored = f"{weight_format.bits_stored(4096):.4g}"
            aliases = (weight_format.alias, LOWP_ALIASES.get(weight_format.name))
            alias = "/".join(filter(None, aliases))
            table.add_row(weight_format.name, alias, stored, weight_format.meaning)
    Console().print(table)


def _width(weight_format: WeightFormat) -> int:
    return -weight_format.bits


def choose_shape(model: str, formats: tuple[WeightFormat, ...]) -> ModelShape:
    """The model whose layer is run.

    Raises:
        UsageError: it is unknown, or its widths do not divide into a format's groups.
    """
    from profiles.shapes import load_model

    try:
        shape = load_model(model)
        for weight_format in formats:
            for operator in shape.operators:
                weight_format.groups(operator.k)
    except ValueError as error:
        raise UsageError(str(error)) from None
    return shape


def make_plan(
    gpu: str,
    formats: tuple[WeightFormat, ...],
    model: str | None,
    batches: tuple[int, ...],
    activation: Literal["fp16", "bf16"] | None,
    mode: Mode | None,
    seed: int,
    energy: Energy = "default",
) -> Plan:
    """The plan of a run, checked before anything is compiled.

    Raises:
        UsageError: the model is unknown, or its widths do not divide into a format's groups.
        DeviceError: the device is not there.
    """
    from bench.analysis.trust import METHOD_TARGET
    from bench.measure.devices import find_device
    from bench.measure.records import Plan
    from profiles.schema import Protocol

    kind = find_device(gpu)
    if kind == "cpu" and mode == "graph":
        raise UsageError("a CPU has no graphs to launch; leave out --launch graph.")
    shape = choose_shape(model or (CPU_MODEL if kind == "cpu" else GPU_MODEL), formats)
    protocol = Protocol(
        pilot_blocks=10,
        fresh_blocks_minimum=21,
        fresh_blocks_maximum=90,
        processes=3,
        target_half_width=METHOD_TARGET[kind],
        confidence=0.95,
        sample_minimum_s=1e-3,
    )
    return Plan(
        gpu, shape.name, shape.layers, shape.operators, formats, batches,
        activation, mode, protocol, seed, plan_energy(energy, batches),
    )  # fmt: skip


def say_left_out(gpu: str) -> None:
    """Says on stderr why our CUDA C++ kernels are not part of a run on a GPU, if they are not."""
    from bench.measure.devices import find_device

    if find_device(gpu) == "cuda":
        from kernels.cuda import missing

        if why := missing():
            typer.echo(f"CUDA C++ kernels are left out: {why}.", err=True)


def find_peers(
    gpu: str, formats: tuple[WeightFormat, ...], activation: Float16 | None
) -> list[str]:
    """Names of the peers that have a row on a device; on stderr, those that have none, and who has which."""
    from bench.measure.devices import DEFAULT_ACTIVATION, find_device
    from kernels.peers import left_out, names, rows_for

    device = find_device(gpu)
    dtype = activation or DEFAULT_ACTIVATION[device]
    for clause in left_out(device):
        typer.echo(f"peer left out: {clause}.", err=True)
    refusing: list[Kernel] = []
    for weight_format in formats:
        rows = rows_for(device, weight_format.name)
        found = _named(k for k in rows if dtype in k.activations) or "none"
        typer.echo(f"peers for {weight_format.name}: {found}.", err=True)
        refusing += [k for k in rows if dtype not in k.activations]
    if refusing:
        typer.echo(f"peers that do not take activations in {dtype}: {_named(refusing)}.", err=True)
    return names(device)


def _named(kernels: Iterable[Kernel]) -> str:
    """Whose they are, each with its version."""
    return ", ".join(dict.fromkeys(f"{k.implementation} {k.variant}" for k in kernels))


def plan_energy(energy: Energy, batches: tuple[int, ...]) -> EnergyPlan | None:
    """The energy windows that --energy asks for: at METHOD's batches, or at all where a curve needs more."""
    from bench.analysis.energy import SMOKE, Rules
    from bench.analysis.energy_curve import FEWEST
    from bench.measure.energy import BATCHES as METHOD_BATCHES
    from bench.measure.records import EnergyPlan

    if energy == "off":
        return None
    chosen = tuple(b for b in batches if b in METHOD_BATCHES)
    chosen = chosen if len(chosen) >= FEWEST else batches
    if energy == "full":
        return EnergyPlan("full", batches, Rules())
    return EnergyPlan("default", chosen, SMOKE if energy == "smoke" else Rules())


def how_long(plan: Plan) -> str:
    """What a run of several formats may take at most, and how to take less."""
    from bench.measure.run import longest_s

    minutes = math.ceil(longest_s(plan) / 60)
    fewer = f", or --batches {plan.batches[0]},{plan.batches[-1]}" if len(plan.batches) > 2 else ""
    return (
        f"{len(plan.formats)} formats x {len(plan.batches)} batches: up to {minutes} min of timing; what is "
        f"measured for the first time is compiled before that. For less: --format "
        f"{plan.formats[0].name}{fewer}."
    )


def default_output(gpu: str, model: str, formats: tuple[WeightFormat, ...]) -> Path:
    """results/<device>-<model>-<formats>-<UTC time>.json below the current folder; of many, their aliases."""
    now = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    named = [f.name for f in formats] if len(formats) <= NAMED else {f.alias: 0 for f in formats}
    words = "-".join((gpu, model, *named))
    return Path("results") / f"{re.sub(r'[^A-Za-z0-9.]+', '-', words).lower()}-{now}.json"


def journal_of(output: Path) -> Path:
    """Where the samples of a run are kept until its profile is written."""
    return output.with_suffix(JOURNAL_SUFFIX)


def output_of(journal: Path) -> Path:
    """Where the profile of a journal goes unless asked otherwise.

    Raises:
        UsageError: the name is not that of a journal.
    """
    if not journal.name.endswith(JOURNAL_SUFFIX):
        raise UsageError(f"--resume takes a file that ends in {JOURNAL_SUFFIX}, not {journal}.")
    return journal.with_name(journal.name.removesuffix(JOURNAL_SUFFIX) + ".json")


def how_to_resume(journal: Path) -> str:
    """The command that goes on with a run."""
    return f"python -m bench.dequant --resume {shlex.quote(str(journal))}"


def nothing_measured(result: Result | None, lost: Mapping[str, str]) -> int:
    """Says why there is no profile, and returns the exit code."""
    facts = result.facts if result is not None else {}
    for name, reason in lost.items():
        typer.echo(f"importing {name}: {reason}", err=True)
    for key, fact in facts.items():
        typer.echo(f"{key.arm} on {key.problem.operator}: {fact.failure}", err=True)
    typer.echo("error: no kernel could be timed; nothing was written.", err=True)
    return 1


class Terminated(KeyboardInterrupt):
    """SIGTERM: the run ends like after Ctrl-C, with another exit code."""


@contextlib.contextmanager
def sigterm_like_ctrl_c() -> Iterator[None]:
    """SIGTERM, as from a batch system or a machine that is taken away, raises Terminated."""

    def terminate(number: int, frame: object) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def measure(plan: Plan, journal: Journal, output: Path) -> int:
    """Runs what is left of a plan, writes its profile, prints it; returns the exit code.

    Raises:
        OSError: the output cannot be written.
    """
    from rich.console import Console

    from bench.curves import draw, picture_of
    from bench.measure.assemble import write
    from bench.measure.journal import read_journal, sync_folder
    from bench.measure.run import Run
    from bench.progress import progress
    from bench.report import CONVERGED_SHARE, converged_share, failures, render, warm

    errors = Console(stderr=True)
    interrupted: KeyboardInterrupt | None = None

    def say(sentence: str) -> None:
        errors.print(sentence, highlight=False, markup=False, soft_wrap=True)

    def warn(sentence: str) -> None:
        say(f"warning: {sentence}")

    if journal.torn:
        warn(
            f"the last line of {journal.path} was torn ({journal.torn} bytes); "
            f"it was cut off, and what it said is measured again."
        )
    with progress(errors) as report:
        run = Run(plan, journal, report, warn=warn, say=say)
        try:
            run.measure()
        except KeyboardInterrupt as error:
            interrupted = error
    for name in journal.ledger.without_rows:
        warn(f"{name} has no row: it takes none of these formats and batches.")
    code = 143 if isinstance(interrupted, Terminated) else 130
    if not any(row["phase"] == "fresh" for row in journal.rows):
        if not interrupted:
            journal.remove()
            return nothing_measured(run.result, journal.ledger.unimportable)
        typer.echo("Interrupted before the first finished block: no profile was written.", err=True)
        say_what_is_safe(journal.path if journal.rows else None)
        return code
    if interrupted:
        output = output.with_suffix(".incomplete.json")
    ledger = read_journal(journal.path)
    profile = write(ledger, output)
    sync_folder(output.parent)
    if not interrupted:
        journal.remove()
        for left in {output, output_of(journal.path)}:
            remove_part(left.with_suffix(".incomplete.json"), profile)
    Console().print(render(profile))
    say(f"Wrote {output}")
    picture = picture_of(output)
    try:
        if any(row.token_j.value is not None for row in profile.energy.rows):
            draw(profile, picture)
            say(f"Drew {picture}")
    except OSError as error:
        warn(f"cannot write {picture}: {error.strerror}; python -m bench.curves draws it again.")
    if interrupted:
        typer.echo(
            "Interrupted: the profile holds the finished blocks and says it is incomplete.",
            err=True,
        )
        say_what_is_safe(journal.path)
        return code
    good, known = converged_share(profile)
    if failures(profile) or good < CONVERGED_SHARE * known or warm(profile):
        return 1
    return int(bool(ledger.failed_windows or profile.lost_kernels))


def remove_part(path: Path, whole: Profile) -> None:
    """Removes the profile that an interruption of the same run left behind, if there is one."""
    from profiles.reader import ProfileError, load_profile, remove_profile

    with contextlib.suppress(ProfileError, OSError):
        part = load_profile(path, allow=(whole.kind,))
        if not part.complete and part.created == whole.created:
            remove_profile(path)
            for trace in part.energy.traces.values():
                path.with_name(trace.file).unlink(missing_ok=True)


def say_what_is_safe(journal: Path | None) -> None:
    """Names the journal that a run leaves behind, if it does, and the command that goes on with it."""
    if journal is not None and journal.exists():
        typer.echo(
            f"The samples so far are safe in {journal}; go on with\n    {how_to_resume(journal)}",
            err=True,
        )


def check_measured(gpu: str, board: Gpu | None) -> None:
    """Refuses what --require-measured does not want.

    Raises:
        UsageError: the GPU could only be modelled or simulated here.
    """
    simulated = gpu.strip().lower().startswith("simulated")
    if board is not None or simulated:
        raise UsageError(
            f"--require-measured was given, and --gpu {gpu} can only be "
            f"{'simulated' if simulated else 'modelled'} here; run it where that GPU is."
        )


def check_modelled(gpu: str, launch: str | None, energy: str, others: bool) -> None:
    """Refuses options that a model cannot follow.

    Raises:
        UsageError: one was given.
    """
    if others:
        raise UsageError(
            f"--gpu {gpu} is modelled here, and only our own kernels are; leave out --kernel and --peers."
        )
    if launch == "eager" or energy not in ("default", "off"):
        given = "--launch eager" if launch == "eager" else f"--energy {energy}"
        raise UsageError(
            f"--gpu {gpu} is modelled here, launched from a graph and without joules; leave out {given}."
        )


def model_command(
    board: Gpu,
    name: str,
    formats: tuple[WeightFormat, ...],
    shape: ModelShape,
    batches: tuple[int, ...],
    activation: Float16,
    path: Path,
) -> int:
    """Models a layer on a board that is not here, writes its profile, prints it; returns the exit code.

    Raises:
        OSError: the output cannot be written.
    """
    from rich.console import Console

    from bench.measure.resume import sources
    from bench.measure.run import Progress, command_line
    from bench.progress import progress
    from bench.report import REFUSED_SHARE, render
    from bench.static.audit_all import audited
    from bench.static.audit_cache import open_cache
    from bench.static.device import Layer, Model, jobs_of_layer
    from bench.static.modelled import modelled_profile
    from profiles.reader import write_profile

    errors = Console(stderr=True)
    errors.print(
        f"No NVIDIA GPU is here: --gpu {name} is modelled as the {board.name}, not measured.",
        highlight=False, markup=False, soft_wrap=True,
    )  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    layer = Layer(shape.operators, formats, batches, activation)
    with progress(errors) as show:
        jobs = jobs_of_layer(layer, [board])
        audits, failures = audited(jobs, open_cache(), lambda *state: show(Progress(*state)))
    model = Model(layer, board, audits, failures)
    profile = modelled_profile(model, shape, sources(), command_line(), datetime.now(UTC))
    write_profile(profile, None, path)
    Console().print(render(profile))
    errors.print(f"Wrote {path}", highlight=False, markup=False, soft_wrap=True)
    modelled = profile.modelled
    assert modelled is not None
    if modelled.refused_rows > REFUSED_SHARE * modelled.rows:
        errors.print(f"error: more than {REFUSED_SHARE:.0%} of the rows are not modelled.")
        return 1
    return 0


def main(
    context: typer.Context,
    gpu: Annotated[
        str,
        typer.Option(
            help="auto, cpu, the name of a GPU (modelled where there is none), or simulated:h100."
        ),
    ] = "auto",
    bits: Annotated[
        int | None, typer.Option(help="Measure all formats of this width; 4 by default.")
    ] = None,
    formats: Annotated[
        str | None,
        typer.Option(
            "--format", help="Formats by name or alias (W4A16), comma-separated; see --list."
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help=f"Whose layer; {CPU_MODEL} on a CPU, {GPU_MODEL} on a GPU."),
    ] = None,
    batches: Annotated[str, typer.Option(help="Batches, comma-separated.")] = ",".join(
        map(str, BATCHES)
    ),
    activation: Annotated[
        str | None, typer.Option(help="fp16 or bf16; by default fp16 on a GPU, bf16 on a CPU.")
    ] = None,
    launch: Annotated[
        str | None, typer.Option(help="graph or eager; graph on a GPU, eager on a CPU.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="Where the profile goes; below results/ by default.")
    ] = None,
    seed: Annotated[
        int, typer.Option(min=0, max=2**32 - 1, help="Seed of the order of arms within blocks.")
    ] = 0,
    resume: Annotated[
        Path | None,
        typer.Option(help="Go on with the run of this journal; takes no option but --output."),
    ] = None,
    energy: Annotated[
        str,
        typer.Option(
            help="Joules of best16, bypass, fused and unfused at batch 1, 8, 64, 256 (default), of every "
            "arm at every batch (full), in short windows (smoke), or none (off)."
        ),
    ] = "default",
    require_measured: Annotated[
        bool, typer.Option("--require-measured", help="End with 2 rather than model or simulate.")
    ] = False,
    kernel: Annotated[
        list[str] | None,
        typer.Option(
            help="A kernel of yours in the same run, such as my_module:my_kernel or the name of an entry "
            "point; may be given several times. See bench/examples/."
        ),
    ] = None,
    deadline: Annotated[
        float | None,
        typer.Option(
            min=1,
            help="Seconds that a kernel may take to compile and be verified on one operator; 600 by default.",
        ),
    ] = None,
    peers: Annotated[
        bool,
        typer.Option(
            "--peers",
            help="The field's kernels too, where installed; see kernels/peers/.",
        ),
    ] = False,
    show_formats: Annotated[
        bool, typer.Option("--list", help="List the formats and stop.")
    ] = False,
) -> None:
    """Measure what dequantization costs here, and write a hardware profile."""
    if show_formats:
        list_formats()
        return
    with exit_codes():
        if resume is not None:
            given = [
                option.opts[0]
                for option in context.command.params
                if option.name not in ("resume", "output") and was_given(context, option.name)
            ]
            raise typer.Exit(resume_command(resume, output, given))
        raise typer.Exit(
            run_command(
                gpu, bits, formats, model, batches, activation, launch, output, seed, energy,
                require_measured, tuple(dict.fromkeys(kernel or ())), peers, deadline,
            )
        )  # fmt: skip


def was_given(context: typer.Context, option: str | None) -> bool:
    """Whether an option stands on the command line."""
    source = context.get_parameter_source(option or "")
    return source is not None and source.name == "COMMANDLINE"


def run_command(
    gpu: str,
    bits: int | None,
    format_names: str | None,
    model: str | None,
    batch_text: str,
    activation: str | None,
    launch: str | None,
    output: Path | None,
    seed: int,
    energy: str,
    require_measured: bool = False,
    kernels: tuple[str, ...] = (),
    peers: bool = False,
    deadline_s: float | None = None,
) -> int:
    """Checks the arguments, measures or models, and turns what can go wrong into one sentence and a code.

    Raises:
        UsageError: an argument asks for something that does not exist.
    """
    formats = choose_formats(bits, format_names)
    batches = parse_batches(batch_text)
    if activation not in (None, "fp16", "bf16"):
        raise UsageError(f"--activation takes fp16 or bf16, not {activation!r}.")
    if launch not in (None, "graph", "eager"):
        raise UsageError(f"--launch takes graph or eager, not {launch!r}.")
    if energy not in get_args(Energy):
        raise UsageError(f"--energy takes {', '.join(get_args(Energy))}, not {energy!r}.")

    from bench.measure.devices import DeviceError, modelled_board
    from bench.measure.journal import Journal, never_began

    try:
        board = modelled_board(gpu)
        if require_measured:
            check_measured(gpu, board)
        if board is not None:
            check_modelled(gpu, launch, energy, bool(kernels) or peers)
            shape = choose_shape(model or GPU_MODEL, formats)
            path = output or default_output(board.key, shape.name, formats)
            path = check_output(path, "modelled")
            dtype = cast("Float16", activation or "fp16")
            with guarded(path, journal_of(path)):
                return model_command(board, gpu, formats, shape, batches, dtype, path)
        plan = make_plan(gpu, formats, model, batches, activation, launch, seed, energy)  # type: ignore[arg-type]
        others = (
            *map(check_name, kernels),
            *(find_peers(gpu, formats, plan.activation) if peers else ()),
        )
        plan = replace(plan, kernels=others, deadline_s=deadline_s)
    except (DeviceError, UserKernelError) as error:
        raise UsageError(str(error)) from None
    say_left_out(gpu)
    path = check_output(output or default_output(gpu, plan.model, formats), gpu)
    kept = journal_of(path)
    if kept.exists() and never_began(kept):
        typer.echo(
            f"warning: {kept} was left by a run that ended before it measured anything; it is begun anew.",
            err=True,
        )
    elif kept.exists():
        raise UsageError(
            f"{kept} holds the samples of a run that was not finished; go on with it by "
            f"{how_to_resume(kept)}, or choose another --output."
        )
    if len(formats) > 1:
        typer.echo(how_long(plan), err=True)
    with guarded(path, journal_of(path)), Journal(journal_of(path)) as journal:
        return measure(plan, journal, path)


def resume_command(path: Path, output: Path | None, given: list[str]) -> int:
    """Goes on with the run of a journal; the same errors and codes as `run_command`.

    Raises:
        UsageError: there is no such journal, or it cannot be resumed here.
    """
    if given:
        raise UsageError(
            f"--resume takes what to measure from the journal; leave out {', '.join(given)}."
        )
    output = check_output(output or output_of(path))

    from bench.measure.journal import Journal

    with guarded(output, path), Journal.reopen(path) as journal:
        check_output(output, journal.ledger.plan.gpu)
        return measure(journal.ledger.plan, journal, output)


def check_output(path: Path, gpu: str = "auto") -> Path:
    """The path, if a profile of that device can be called so.

    Raises:
        UsageError: it cannot.
    """
    if path.suffix != ".json" or path.is_dir():
        raise UsageError(f"--output must be a file that ends in .json, but is {path}.")
    if not path.name.isprintable():
        raise UsageError(f"--output must have a name of printable UTF-8, not {path.name!r}.")
    kind = next((k for k in ("simulated", "modelled") if gpu.strip().lower().startswith(k)), None)
    if kind is not None and "measured" in path.absolute().parts:
        raise UsageError(f"a {kind} profile has no place among measured ones; change --output.")
    return path


@contextlib.contextmanager
def guarded(output: Path, journal: Path) -> Iterator[None]:
    """Turns what can go wrong while measuring into a sentence and an exit code.

    Raises:
        UsageError: the device is not there or in use, or the journal is not that of this machine.
    """
    from bench.measure.devices import DeviceError
    from bench.measure.journal import JournalError
    from bench.measure.resume import ResumeError
    from bench.measure.worker import WorkerLostError
    from profiles.reader import ProfileError

    try:
        with sigterm_like_ctrl_c():
            yield
    except (DeviceError, JournalError, ResumeError, UserKernelError) as error:
        raise UsageError(str(error)) from None
    except ProfileError as error:
        typer.echo(f"error: no profile was written, for nobody could read it: {error}", err=True)
        code = 1
    except WorkerLostError as error:
        typer.echo(f"error: the measuring process was lost: {error}.", err=True)
        code = 1
    except OSError as error:
        where = error.filename or output
        advice = "" if journal.exists() else " Choose another --output."
        typer.echo(f"error: cannot write {where}: {error.strerror}.{advice}", err=True)
        code = 2
    except KeyboardInterrupt as error:
        typer.echo("Interrupted: no profile was written.", err=True)
        code = 143 if isinstance(error, Terminated) else 130
    else:
        return
    say_what_is_safe(journal)
    raise typer.Exit(code)


if __name__ == "__main__":
    typer.run(main)

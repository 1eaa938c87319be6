"""Finds the fastest launch configuration of every Triton kernel on the GPU that is here, and keeps it as data.

    python -m bench.tune --format int4-g128 --batches 1,16           times a small grid on this GPU
    python -m bench.tune --static --gpu h100 --format int4-g128      ranks the same grid by a model, no GPU

Configurations are timed as the suite times arms: interleaved in blocks, on cold weights, verified first. A
pilot chooses, fresh blocks judge, and a winner replaces the default only where it is faster beyond its
interval. The choices go to profiles/specs/tuned/<board>.toml; kernels read them, and rows say "tuned" or
"untuned". They are stale, and not used, once Triton or the sources of the kernels have changed.

With --static nothing is timed and nothing is written: the table shows where the default stands, with modelled
times that say which configuration wastes a board, not by how many per cent.

Exit codes: 0 good, 1 a kernel failed in its default configuration, 2 usage or no such GPU, 130 interrupted.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from bench.usage import UsageError, exit_codes
from kernels.formats import WeightFormat, find_format

if TYPE_CHECKING:
    from bench.measure.devices import Device, Problem
    from bench.static.tuning import Ranked
    from kernels.kernel import Kernel
    from profiles.shapes import ModelShape
    from profiles.tuned import Tuned, TunedBoard

GPU_MODEL = "Llama-3.1-8B"
BATCHES = "1,2,4,8,16,32,64,128,256"
LARGEST_BATCH = 256
ARMS = ("fused", "native", "lowp", "upcast", "dequantize")
US = 1e6


def parse_batches(text: str) -> list[int]:
    """Batches from "1,2,4".

    Raises:
        UsageError: not whole numbers from 1 to 256.
    """
    try:
        batches = sorted({int(part) for part in text.split(",")})
    except ValueError:
        raise UsageError(f"--batches takes whole numbers such as 1,4,16, not {text!r}.") from None
    if not 1 <= batches[0] <= batches[-1] <= LARGEST_BATCH:
        raise UsageError(f"--batches takes numbers from 1 to {LARGEST_BATCH}, not {text!r}.")
    return batches


def parse_formats(text: str) -> list[WeightFormat]:
    """Formats by name.

    Raises:
        UsageError: there is no such format.
    """
    try:
        return [find_format(name.strip()) for name in text.split(",")]
    except ValueError as error:
        raise UsageError(str(error)) from None


def parse_model(name: str) -> ModelShape:
    """The model of that name.

    Raises:
        UsageError: it is unknown.
    """
    from profiles.shapes import load_model

    try:
        return load_model(name)
    except ValueError as error:
        raise UsageError(str(error)) from None


def tunable(device: Device, problem: Problem, arms: list[str]) -> list[Kernel]:
    """The kernels with a grid that have a row for a problem; a product alone stands for both rows of `lowp`."""
    return [
        kernel
        for kernel in device.kernels(problem)
        if kernel.arm in arms and kernel.implementation == "triton"
    ]


def measured(
    gpu: str,
    formats: list[WeightFormat],
    model: ModelShape,
    batches: list[int],
    activation: Literal["fp16", "bf16"],
    arms: list[str],
    seed: int,
) -> int:
    """Tunes every kernel, writes the choices, prints them; returns the exit code.

    Raises:
        DeviceError: there is no such GPU.
        OSError: the choices cannot be written.
    """
    from bench.measure.devices import DeviceError, Problem, find_device, open_device
    from profiles.tuned import save_tuned

    if find_device(gpu) != "cuda":
        raise DeviceError(
            f"bench.tune times kernels on an NVIDIA GPU, and --gpu {gpu} is none here; "
            f"use --static to rank configurations without one."
        )
    from kernels.triton import configs

    device = open_device(gpu)
    board, capability = configs.board()
    found = start_of(board)
    failed, done, path = 0, set(), None
    for weight_format in formats:
        for batch in batches:
            for o in model.operators:
                problem = Problem(o.name, o.n, o.k, batch, weight_format, activation)
                for kernel in tunable(device, problem, arms):
                    reads = kernel.reads(weight_format, activation)
                    tuned_for = configs.batch_of(kernel.arm, batch)
                    key = (kernel.arm, kernel.variant, reads.name, activation, o.n, o.k, tuned_for)
                    if key in done:
                        continue
                    done.add(key)
                    choice = tuned(device, problem, kernel, key, capability, seed)
                    if choice is None:
                        failed += 1
                        continue
                    others = tuple(c for c in found.choices if c.key != choice.key)
                    found = found.model_copy(update={"choices": (*others, choice)})
                    path = save_tuned(found)  # after each: what was found survives Ctrl-C
    if path is None:
        typer.echo("error: no kernel could be tuned; nothing was written.", err=True)
        return 1
    typer.echo(f"Wrote {path}", err=True)
    return int(failed > 0)


def start_of(board: str) -> TunedBoard:
    """What is known of a board, or nothing yet where that was found with other code.

    Raises:
        UsageError: the board's file is damaged.
    """
    from kernels.triton import configs
    from profiles.tuned import TunedBoard, load_tuned

    try:
        known = load_tuned(board)
    except ValueError as error:
        raise UsageError(str(error)) from None
    if known is not None and not configs.why_stale(known):
        return known
    return TunedBoard(
        board=board,
        kind="measured",
        created=datetime.now(UTC),
        triton=configs.compiler(),
        sources=configs.sources(),
    )


def tuned(
    device: Device,
    problem: Problem,
    kernel: Kernel,
    key: tuple[str, str, str, str, int, int, int],
    capability: int,
    seed: int,
) -> Tuned | None:
    """The choice for one kernel, printed; None where it does not run by default."""
    from bench.measure.tuning import tune
    from kernels.triton.configs import config_data, grid
    from profiles.tuned import Tuned

    arm, variant, format_name, activation, n, k, batch = key
    title = f"{arm} {variant}, {format_name}, {n} x {k}, batch {batch}"
    candidates = grid(arm, variant, find_format(format_name), batch, capability)
    try:
        outcome = tune(device, problem, kernel, candidates, device.default_mode, seed)
    except Exception as error:  # a kernel that does not run here costs its own choice only
        device.check()
        typer.echo(f"{title}: {error}", err=True)
        return None
    config = {} if outcome.config is None else config_data(outcome.config)  # type: ignore[arg-type]
    said = "the default is best" if outcome.config is None else f"{config}"
    typer.echo(
        f"{title}: {said}, {outcome.speedup:.3f} times the default's speed "
        f"({outcome.low:.3f}–{outcome.high:.3f}), of {len(outcome.median_s)} configurations"
    )
    return Tuned(
        arm=arm, variant=variant, format=format_name, activation=activation, n=n, k=k, batch=batch,
        config=config, speedup=outcome.speedup, low=outcome.low, high=outcome.high,
        blocks=outcome.blocks, candidates=len(outcome.median_s),
    )  # fmt: skip


def modelled(
    gpu: str,
    formats: list[WeightFormat],
    model: ModelShape,
    batches: list[int],
    activation: Literal["fp16", "bf16"],
    arms: list[str],
) -> None:
    """Prints the ranking of every kernel's grid for the widest operator of a model.

    Raises:
        UsageError: nothing is known of the board.
    """
    from bench.static.cost import Problem
    from bench.static.tuning import rank
    from kernels.triton import KERNELS
    from kernels.triton.configs import batch_of
    from profiles.specs import load_gpu

    try:
        board = load_gpu(gpu)
    except ValueError as error:
        raise UsageError(str(error)) from None
    widest = max(model.operators, key=lambda o: o.n * o.k)
    typer.echo(
        f"MODELLED for {board.name}, nothing was timed: compiled, counted, and put through the model "
        f"of the board; W[{widest.n}, {widest.k}], {activation} activations."
    )
    shown = set()
    for weight_format in formats:
        for batch in batches:
            for kernel in KERNELS:
                accepted = kernel.accepts(weight_format, activation, batch)
                if kernel.arm not in arms or kernel.implementation != "triton" or not accepted:
                    continue
                if float(board.capability) * 10 < kernel.least_capability:
                    typer.echo(f"\n{kernel.arm} {kernel.variant}: the {board.name} cannot run it.")
                    continue
                reads = kernel.reads(weight_format, activation)
                problem = Problem(widest.n, widest.k, batch_of(kernel.arm, batch))
                title = f"{kernel.arm} {kernel.variant}, {reads.name}, batch {problem.batch}"
                if title in shown:
                    continue
                shown.add(title)
                typer.echo(f"\n{title}")
                ranked = rank(board, kernel.arm, kernel.variant, reads, activation, problem)
                print_ranking(ranked)


def print_ranking(ranked: list[Ranked]) -> None:
    """One line per configuration, the default marked, and how far it is from the first."""
    typer.echo("   us  uneven  instr/weight  regs  warps  configuration")
    for r in ranked:
        mark = "  <- default" if r.config is None else ""
        if r.time_s is None or r.audit is None or r.unevenness is None:
            typer.echo(f"    –       –             –     –      –  {r.text}: {r.reason}{mark}")
            continue
        per_weight = r.audit.instructions / (r.audit.weights or 1)
        typer.echo(
            f"{r.time_s * US:5.1f}  {r.unevenness:6.2f}  {per_weight:12.2f}  {r.audit.registers:4}  "
            f"{r.audit.resident_warps:5}  {r.text}{mark}"
        )
    default = next(r for r in ranked if r.config is None)
    if default.time_s is not None and ranked[0].time_s:
        typer.echo(
            f"default: {default.time_s / ranked[0].time_s - 1:.0%} above the best, modelled; untuned."
        )


def main(
    gpu: Annotated[
        str, typer.Option(help="The GPU that must be here; with --static any board.")
    ] = "auto",
    formats: Annotated[str, typer.Option("--format", help="Formats by name.")] = "int4-g128",
    batches: Annotated[str, typer.Option(help="Rows of x.")] = BATCHES,
    model: Annotated[str, typer.Option(help="Whose operators.")] = GPU_MODEL,
    activation: Annotated[Literal["fp16", "bf16"], typer.Option(help="Dtype of x.")] = "fp16",
    arm: Annotated[str, typer.Option(help="Arms with a grid; all by default.")] = ",".join(ARMS),
    seed: Annotated[int, typer.Option(help="Of the order within blocks.")] = 1,
    static: Annotated[
        bool, typer.Option("--static", help="Rank by the model, without a GPU.")
    ] = False,
) -> None:
    """Tune launch configurations on the GPU that is here, or rank them without one."""
    from bench.measure.devices import DeviceError

    with exit_codes(DeviceError, OSError):
        arms = [a.strip() for a in arm.split(",")]
        if not set(arms) <= set(ARMS):
            raise UsageError(f"--arm takes {', '.join(ARMS)}, not {arm!r}.")
        ask = (parse_formats(formats), parse_model(model), parse_batches(batches))
        if static:
            modelled("h100" if gpu == "auto" else gpu, *ask, activation, arms)
            return
        code = measured(gpu, *ask, activation, arms, seed)
    if code:
        raise typer.Exit(code)


if __name__ == "__main__":
    typer.run(main)

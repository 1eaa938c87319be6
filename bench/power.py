"""Shows which energy sensors this machine has, what they are like, and why the others are not there.

    python -m bench.power                 every GPU that the driver lists, and the CPU
    python -m bench.power --gpu h100      the GPUs of that name; a UUID, a PCI id or nvidia-smi's number do too
    python -m bench.power --gpu cpu

Every sensor is watched for three seconds: current values, what a reading costs, how often values change. No
load is run.

    python -m bench.power --characterise --gpu auto     runs a square wave, and says what the sensor is like
    python -m bench.power --replay RUN.power.parquet    computes the joules of a run once more, from its trace

Exit codes: 0 a usable sensor (or joules), 1 none (of a GPU, where the driver lists one), 2 usage, or no such
GPU, 130 interrupted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from bench.analysis.traces import CHANNELS
from bench.measure import environment
from bench.measure.devices import names_gpu
from bench.measure.power import HostClock, Sensor, SensorError, SensorInfo
from bench.measure.power import boards as nvml_boards
from bench.measure.power.discover import JOULES, Found, open_usable
from bench.measure.power.look import SECONDS, Look, look
from bench.measure.power.nvml import NvmlSensor
from bench.measure.power.rapl import RaplSensor
from bench.report import cell_of, plain_table
from bench.usage import UsageError, exit_codes
from profiles.files import printable
from profiles.schema import EnergyRow, Kind, Quantity
from profiles.sensors import Traits, published_traits

if TYPE_CHECKING:
    from bench.analysis.characterise import Characterisation

SLOW_S = 0.1  # a reading that takes longer misses updates of most boards
UNITS = {"j": "J", "w": "W", "mhz": "MHz", "c": "°C"}


@dataclass(frozen=True)
class Candidate:
    """A sensor that there might be.

    Attributes:
        name: "NVML" or "RAPL".
        of: the board or processor; empty where there is none.
        open: opens it.
    """

    name: str
    of: str
    open: Callable[[], Sensor]


@dataclass(frozen=True)
class View:
    """A candidate, and what came of it.

    Attributes:
        candidate: the candidate.
        found: its channels, and why others are missing.
        info: None when it could not be opened.
        look: what it was like; None when it could not be opened.
    """

    candidate: Candidate
    found: tuple[Found, ...]
    info: SensorInfo | None = None
    look: Look | None = None

    @property
    def reason(self) -> str:
        """Why it cannot be used, as a clause; empty when it can."""
        if self.look is None:
            return "; ".join(dict.fromkeys(f.reason for f in self.found if f.reason))
        if self.look.gone:
            return self.look.gone
        if not self.look.alive:
            return f"what it says did not change in {self.look.sampling.wall_s:.1f} s: it is frozen"
        return ""

    def cautions(self) -> Iterator[str]:
        """What to mind when it is used, as sentences."""
        if self.info is None or self.look is None or self.reason:
            return
        for channel in JOULES:
            if channel in self.info.missing and self.info.name == "NVML":
                yield f"No {channel}: {self.info.missing[channel]}."
            elif channel in self.info.channels and channel not in self.look.alive:
                yield f"{channel} did not change in {self.look.sampling.wall_s:.1f} s."
        if self.look.fell_j:
            yield f"energy_j fell by {self.look.fell_j:g} J: the counter was reset or went round."
        cost = self.look.sampling
        if cost.longest_read_s > SLOW_S:
            yield f"A reading took {1e3 * cost.longest_read_s:.0f} ms."
        if self.look.errors:
            yield f"{cost.failed} of {cost.readings} readings failed: {self.look.errors[0]}."


def candidates(gpu: str) -> tuple[Candidate, ...]:
    """The sensors that a device's name stands for.

    Args:
        gpu: "auto" for all, "cpu", or part of a GPU's name, its UUID, PCI id or number.

    Raises:
        UsageError: there are GPUs, but none that is meant.
    """
    asked = gpu.strip().lower()
    if not asked or asked.startswith("simulated"):
        raise UsageError("--gpu takes auto, cpu, or a GPU of this machine.")
    model = str(environment.machine().facts["name"] or "this CPU")
    cpu = Candidate("RAPL", model, lambda: RaplSensor.open(model))
    if asked == "cpu":
        return (cpu,)
    try:
        listed = _boards()
    except SensorError as problem:
        reason = problem  # bound here, for Python forgets `problem` when the block ends

        def fail() -> Sensor:
            raise reason

        return (Candidate("NVML", "", fail), *([cpu] if asked == "auto" else []))
    meant = [b for b in listed if asked == "auto" or _is_meant(b, gpu.strip())]
    if not meant:
        names = ", ".join(dict.fromkeys(b.name for b in listed))
        raise UsageError(f"there is no GPU {printable(gpu, 60)} here; the driver lists {names}.")
    gpus = [
        Candidate("NVML", f"{b.name} at {b.pci or b.uuid}", lambda b=b: NvmlSensor.open(b.uuid))  # type: ignore[misc]
        for b in meant
    ]
    return (*gpus, *([cpu] if asked == "auto" else []))


def view(candidate: Candidate, seconds: float) -> View:
    """Opens a sensor and watches it."""
    sensor, found = open_usable(candidate.name, candidate.open)
    if sensor is None:
        return View(candidate, found)
    try:
        seen = look(sensor, HostClock(), seconds)
        return View(candidate, found, sensor.info, seen)
    finally:
        sensor.close()


def render(one: View) -> RenderableType:
    """A sensor: what it is, its channels, what they cost."""
    title = Text.assemble(
        (one.candidate.name, "bold"), f": {one.candidate.of}" * bool(one.candidate.of)
    )
    if one.info is None or one.look is None:
        title.append(f"  not usable: {one.reason}", style="yellow")
        return title
    facts = ", ".join(_fact(n, value) for n, value in one.info.facts.items() if value is not None)
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for header in ("channel", "now", "one call", "calls/s", "changes", ""):
        table.add_column(
            header, justify="right" if header in ("now", "one call", "calls/s") else "left"
        )
    for channel in CHANNELS:
        if channel in one.info.channels:
            cost_s = one.look.channel_s.get(channel)
            table.add_row(
                channel,
                _value(channel, one.look.now.get(channel)),
                "" if cost_s is None else f"{1e3 * cost_s:.3g} ms",
                "" if not cost_s else f"{1 / cost_s:.0f}",
                _changes(channel, one.look),
                "",
            )
        elif channel in one.info.missing:
            table.add_row(channel, *[""] * 4, Text(one.info.missing[channel], style="yellow"))
    cost = one.look.sampling
    summary = Text(
        f"A reading of all takes {1e3 * one.look.read_s:.3g} ms (longest "
        f"{1e3 * cost.longest_read_s:.3g}): {cost.readings} in {cost.wall_s:.1f} s, "
        f"{cost.failed} failed, {cost.late} late."
    )
    said = Text(_said(published_traits(one.info.model)), style="dim")
    return Group(
        title.append(f", {one.info.scope}"), Text(facts, style="dim"), table, summary, said
    )


def _said(published: Traits | None) -> str:
    """What is published of a sensor, in one line."""
    if published is None:
        return "Nothing is published about this sensor; --characterise finds out what it is like."
    means = [f"{c} is a mean of {1e3 * s:g} ms" for c, s in published.averaging_s.items()]
    if published.update_s is not None:
        means.insert(0, f"power changes every {1e3 * published.update_s:g} ms")
    if published.counter_update_s is not None:
        means.append(f"energy_j changes every {1e3 * published.counter_update_s:g} ms")
    return f"Published: {'; '.join(means)} ({published.origin.split(':')[0]})."


def verdict(views: list[View]) -> tuple[int, str]:
    """Exit code, and the one line that says what it stands for.

    Where the driver lists GPUs, a sensor of the CPU alone is not enough: it would be a GPU that is measured.
    """
    gpus = [one for one in views if one.candidate.name == "NVML" and one.candidate.of]
    counted = gpus or views
    usable = [one for one in counted if not one.reason]
    if not usable:
        why = "; ".join(f"{one.candidate.name}: {one.reason}" for one in views if one.reason)
        return 1, f"No energy sensor. {why}."
    names = ", ".join(f"{one.candidate.name} of {one.candidate.of}" for one in usable)
    not_usable = [f"Not usable: {one.candidate.of}: {one.reason}." for one in gpus if one.reason]
    several = len(usable) > 1
    cautions = [f"{one.candidate.of}: " * several + s for one in usable for s in one.cautions()]
    return 0, " ".join([f"Usable: {names}.", *not_usable, *cautions])


def show(gpu: str, seconds: float) -> int:
    """Prints every sensor and the verdict; returns the exit code.

    Raises:
        UsageError: the command line asks for what is not there.
    """
    console = Console(highlight=False)
    views = []
    for candidate in candidates(gpu):
        views.append(view(candidate, seconds))
        console.print(render(views[-1]), Text())
    code, sentence = verdict(views)
    console.print(f"[bold]{escape(sentence)}[/bold]", soft_wrap=True)
    return code


def characterised(found: Characterisation, published: Traits | None) -> RenderableType:
    """What was found of a sensor, beside what is published."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for header in ("channel", "", "found, ms", "published, ms"):
        table.add_column(header, justify="right" if "ms" in header else "left")
    for c in found.channels:
        counter = c.channel == "energy_j"
        update_s = lag_s = averaging_s = None
        if published is not None:
            update_s = published.counter_update_s if counter else published.update_s
            lag_s, averaging_s = published.lag_s, published.averaging_s.get(c.channel)
        table.add_row(c.channel, "updates every", _ms(c.update_s), _plain_ms(update_s))
        table.add_row("", "lag", _ms(c.lag_s), _plain_ms(lag_s))
        if counter:
            continue
        table.add_row("", "mean over", _ms(c.averaging_s), _plain_ms(averaging_s))
        seen = c.duty_cycle.value
        table.add_row("", "sees of the time", "–" if seen is None else f"{seen:.0%}", "")
    notes = [f"{c.channel}: {c.reason}." for c in found.channels if c.reason]
    if published is not None:
        notes.append(f"Published: {published.origin}.")
    return Group(table, *(Text(note, style="dim") for note in notes))


def show_characterisation(gpu: str, model: str) -> int:
    """Runs the square wave on the device and prints what it shows; returns the exit code.

    Raises:
        UsageError: the device is not there or in use, or there is no such model.
    """
    from bench.measure.devices import DeviceError
    from bench.measure.square import SquareError, characterise_here
    from bench.measure.worker import WorkerLostError
    from kernels.formats import find_format
    from profiles.shapes import load_model

    try:
        operators = load_model(model).operators
        found = characterise_here(gpu, operators, find_format("int4-g128"))
    except (DeviceError, ValueError) as problem:
        raise UsageError(str(problem)) from None
    except (SquareError, WorkerLostError) as problem:
        typer.echo(f"error: the sensor cannot be characterised: {problem}.", err=True)
        return 1
    console, result = Console(highlight=False), found.characterisation
    console.print(
        Text.assemble((found.info.name, "bold"), f": {found.device.name}, {found.info.scope}")
    )
    console.print(characterised(result, published_traits(found.info.model)))
    if result.reason:
        console.print(Text(f"Nothing was found. {result.reason}.", style="bold"), soft_wrap=True)
    return 1 if result.reason else 0


def show_replay(path: Path) -> int:
    """Computes and prints the joules in a trace; returns the exit code.

    Raises:
        UsageError: it is not a trace.
    """
    from bench.measure.power.files import TraceFileError
    from bench.measure.replay import replay

    try:
        found = replay(path)
    except TraceFileError as problem:
        raise UsageError(str(problem)) from None
    console = Console(highlight=False)
    console.print(characterised(found.characterised, published_traits(found.info.model)), Text())
    if found.joules is None:
        console.print(Text(f"No joules: {found.characterised.reason}.", style="bold"))
        return 1
    rows = found.joules.rows
    for weight_format in dict.fromkeys(row.format for row in rows):
        console.print(
            _joules([row for row in rows if row.format == weight_format], found.joules.kind)
        )
    for row in found.joules.rows:
        if row.energy_j.value is None:
            name = f"{row.format}, batch {row.batch}, {row.kernel.arm}"
            console.print(Text(f"No joules of {name}: {row.energy_j.reason}."), soft_wrap=True)
    return 0 if any(row.energy_j.value is not None for row in found.joules.rows) else 1


def _joules(rows: list[EnergyRow], kind: Kind) -> Table:
    """Energy rows of one format."""
    table = plain_table(
        f"{kind.upper()}: {rows[0].format}, energy of one layer",
        ("arm", "mJ", "net mJ", "W", "idle W", "ms", "windows"),
    )
    for row in rows:
        numbers = (row.energy_j, row.net_j, row.power_w, row.idle_w, row.layer_s)
        cells = [cell_of(q, s) for q, s in zip(numbers, (1e3, 1e3, 1.0, 1.0, 1e3), strict=True)]
        table.add_row(str(row.batch), row.kernel.arm, *cells, str(row.windows))
    return table


def _interval(quantity: Quantity, scale: float = 1.0) -> str:
    """A value with half the width of its interval."""
    if quantity.value is None:
        return "–"
    if quantity.low is None or quantity.high is None:
        return f"{quantity.value * scale:.4g}"
    half = (quantity.high - quantity.low) / 2 * scale
    least = abs(quantity.value) * scale * 1e-4
    return f"{quantity.value * scale:.4g} ± {f'{half:.2g}' if half > least else f'<{least:.1g}'}"


def _ms(quantity: Quantity) -> str:
    return _interval(quantity, 1e3)


def _plain_ms(seconds: float | None) -> str:
    return "–" if seconds is None else f"{seconds * 1e3:.4g}"


def _boards() -> list[nvml_boards.Board]:
    """Boards that NVML lists; handles do not outlive the call.

    Raises:
        SensorError: NVML cannot be used.
    """
    nv = nvml_boards.start()
    try:
        return nvml_boards.boards(nv)
    finally:
        nv.nvmlShutdown()


def _is_meant(board: nvml_boards.Board, asked: str) -> bool:
    if asked.isdecimal() and len(asked) < 4:
        return board.index == int(asked) or names_gpu(asked, board.name)
    return board.is_meant(asked) or names_gpu(asked, board.name)


def _value(channel: str, value: float | None) -> str:
    if value is None:
        return "no value"
    if channel == "event_reasons":
        return f"{int(value):#x}"
    return f"{value:.10g} {UNITS[channel.rpartition('_')[2]]}"


def _changes(channel: str, seen: Look) -> str:
    """How often a channel changes, as far as readings can see."""
    if channel not in seen.changes:
        return ""
    if channel not in seen.update_s:
        return f"{seen.changes[channel]} times" if seen.changes[channel] else "never: frozen?"
    period_s = seen.update_s[channel]
    least = "≤ " if period_s < 1.5 * seen.step_s else ""
    return f"every {least}{1e3 * period_s:.3g} ms"


def _fact(name: str, value: str | float | bool) -> str:
    """A recorded fact as words: "power limit 350 W", "ecc mode on"."""
    if isinstance(value, bool):
        return f"{name.replace('_', ' ')} {'on' if value else 'off'}"
    stem, _, unit = name.rpartition("_")
    if stem and unit in UNITS:
        return f"{stem.replace('_', ' ')} {value:g} {UNITS[unit]}"
    return f"{name.replace('_', ' ')} {value}"


def main(
    gpu: Annotated[
        str,
        typer.Option(metavar="auto|cpu|NAME", help="Whose sensors: a GPU's name, UUID or PCI id."),
    ] = "auto",
    seconds: Annotated[
        float, typer.Option(min=0.1, max=600, help="How long to watch each sensor.")
    ] = SECONDS,
    characterise: Annotated[
        bool,
        typer.Option(
            "--characterise", help="Run a square wave, and find out what the sensor is like."
        ),
    ] = False,
    model: Annotated[
        str, typer.Option(help="Whose layer is the load of the square wave.")
    ] = "Llama-3.1-8B",
    replay: Annotated[
        Path | None,
        typer.Option(metavar="TRACE", help="Compute the joules in a run's .power.parquet again."),
    ] = None,
) -> None:
    """Show which energy sensors there are, and why others are not. Exit code 1 if none is usable."""
    with exit_codes():
        if replay is not None:
            code = show_replay(replay)
        elif characterise:
            code = show_characterisation(gpu, model)
        else:
            code = show(gpu, seconds)
    raise typer.Exit(code)


if __name__ == "__main__":
    typer.run(main)

"""An audit as text of 80 columns, and as plain data.

Per format: the budget of each board (how many instructions of each pipe fit into the time in which the bytes
of a weight arrive), R of each kernel on each board, then per architecture what the kernels need.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from bench.static.audit import LOWER_BOUND, K, N, Row, bytes_moved, cost_of
from bench.static.limits import STYLES, Ratio, supply_demand
from bench.static.model import rate
from bench.static.occupancy import MULTIPROCESSORS
from kernels.formats import find_format
from profiles.specs import Gpu, measured_notes

LIMITS_NOTE = (
    "MODELLED. Budget: thread-instructions per weight that fit into the time in which memory delivers its "
    "bytes. R = budget / need of the pipe that runs out first, at 100 % and at 65 % of issue; red, below 1 "
    "with its interval: the instructions, not the bytes, set the time (cast-bound). dequantize also writes "
    "16 bits. Clocks are the highest boost."
)
COUNTS_NOTE = (
    "COMPILED AND COUNTED, not run. shfl: shuffles and shared memory. Warps: that fit on one multiprocessor, "
    "of its limit; a dash: the limits are not known here. Loads: width in bits x number in one pass of a lane."
)
WHOLE_NOTE = "* without a loop: the whole kernel was counted, its prologue and end included."
PER_PASS_NOTE = (
    "Nobody said how many weights a lane handles in one pass of the loop, so instructions are per pass, and "
    "there is no R. Give --weights N."
)
LOWER_NOTE = (
    "≥ a lower bound, or made of one: a loop within the hot loop runs as often as a value at run time says; it "
    "is counted once, and there is no R."
)
PIPES = {"issue": "issue", "integer": "int", "imad": "imad", "half2": "half2", "fp32": "fp32",
         "conversion": "XU", "shared": "shfl"}  # fmt: skip
HEADS = {"total": "total", "int": "int", "imad": "imad", "half2": "half2", "fp32": "fp32", "cvt": "cvt",
         "mma": "mma", "exchange": "shfl", "load": "load", "other": "other"}  # fmt: skip
BOARDS_PER_TABLE = 5


@dataclass(frozen=True)
class Report:
    """Everything that was found.

    Attributes:
        rows: kernels and differences.
        gpus: boards asked for.
        compiler: its version, or where a foreign binary comes from.
        format: what the weights of a foreign kernel are stored as; None: not said.
        failures: kernels that have no counts, each with a sentence.
    """

    rows: Sequence[Row]
    gpus: Sequence[Gpu]
    compiler: str
    format: str | None = None
    failures: Mapping[str, str] = field(default_factory=dict)

    def ratio(self, row: Row, gpu: Gpu) -> Ratio | None:
        """R of a kernel on a board; None where its code is for another one, or nothing is known."""
        if row.capability != capability_of(gpu):
            return None
        stored = row.job.format if row.job else self.format
        if stored is None:
            return None
        moved = bytes_moved(row.job.arm if row.job else "fused", find_format(stored))
        batch = row.job.batch if row.job else 1
        cost = cost_of(row, moved, batch)
        return supply_demand(gpu, cost, batch) if cost else None


def capability_of(gpu: Gpu) -> int:
    """Compute capability times ten."""
    return round(float(gpu.capability) * 10)


def budget(gpu: Gpu, bytes_per_weight: float) -> dict[str, float]:
    """Thread-instructions per weight of each pipe, at the published clock and bandwidth."""
    if gpu.multiprocessor is None:
        return {}
    clocks_hz = rate(gpu.sms, "value") * rate(gpu.sm_clock_mhz, "value") * 1e6
    weights_per_clock = gpu.memory_gb_per_s.value * 1e9 / bytes_per_weight / clocks_hz
    return {
        pipe: getattr(gpu.multiprocessor, f"{pipe}_lanes").value / weights_per_clock
        for pipe in PIPES
    }


def render(report: Report) -> RenderableType:
    """Everything, for people."""
    parts: list[RenderableType] = []
    groups = _by_format(report)
    for stored, title, rows in groups:
        if stored is not None and report.gpus:
            bits = find_format(stored).bits_stored(K)
            parts += [
                _title(f"{stored}: budget in instructions per weight of {bits:.4g} bits"),
                _budgets(stored, report.gpus),
                Text(),
                *_ratios(title, rows, report),
            ]
        for capability in dict.fromkeys(row.capability for row in rows):
            of_arch = [row for row in rows if row.capability == capability]
            on = f"{title} on sm_{capability}"
            unit = "weight" if all(row.weights for row in of_arch) else "pass of the loop"
            parts += [
                _title(f"{on}: instructions per {unit}"),
                _instructions(of_arch),
                Text(),
                _title(f"{on}: what a program occupies"),
                _resources(of_arch),
                Text(),
            ]
    audits = [row.audit for row in report.rows if row.audit]
    if report.gpus and any(stored for stored, _, _ in groups):
        parts.append(Text(LIMITS_NOTE, style="dim"))
        parts += [Text(note, style="bold") for note in measured_notes(report.gpus)]
    parts.append(Text(f"{COUNTS_NOTE} {report.compiler}.", style="dim"))
    if any(not audit.looped for audit in audits):
        parts.append(Text(WHOLE_NOTE, style="dim"))
    if any(row.lower_bound for row in report.rows):
        parts.append(Text(LOWER_NOTE, style="bold"))
    if any(audit.weights is None for audit in audits):
        parts.append(Text(PER_PASS_NOTE, style="bold"))
    parts += [
        Text(f"FAILED {name}: {why}", style="bold red") for name, why in report.failures.items()
    ]
    return Group(*parts)


def to_data(report: Report) -> dict[str, Any]:
    """The same for programs."""
    formats = dict.fromkeys(stored for stored, _, _ in _by_format(report) if stored is not None)
    return {
        "kind": "modelled",
        "compiler": report.compiler,
        "n": N,
        "k": K,
        "budgets": [
            {"gpu": gpu.key, "format": name, "arch": f"sm_{capability_of(gpu)}",
             "per_weight": {PIPES[p]: v for p, v in _budget(gpu, name).items()}}
            for name in formats for gpu in report.gpus
        ],
        "kernels": [_row_data(row, report) for row in report.rows],
        "failures": dict(report.failures),
    }  # fmt: skip


def _row_data(row: Row, report: Report) -> dict[str, Any]:
    ratios = {gpu.key: report.ratio(row, gpu) for gpu in report.gpus}
    return {
        "kernel": row.name,
        "arch": f"sm_{row.capability}",
        **({} if row.job is None else asdict(row.job)),
        "instructions_per": "pass" if row.weights is None else "weight",
        "instructions": dict(row.per_weight),
        "weights_per_pass": row.weights,
        "lower_bound": row.lower_bound,
        "audit": None if row.audit is None else {**asdict(row.audit), "spills": row.audit.spills},
        "ratios": {
            key: {**asdict(ratio), "verdict": ratio.verdict} for key, ratio in ratios.items() if ratio
        },
    }  # fmt: skip


def _by_format(report: Report) -> list[tuple[str | None, str, list[Row]]]:
    """Rows by what their weights are stored as and what they are multiplied with: format, title, rows."""
    groups: dict[tuple[str | None, str], list[Row]] = {}
    for row in report.rows:
        job = row.job
        key = (report.format, report.format or "Foreign code")
        if job is not None:
            key = (job.format, ", ".join(dict.fromkeys((job.format, job.activation))))
        groups.setdefault(key, []).append(row)
    return [(stored, title, rows) for (stored, title), rows in groups.items()]


def _name(row: Row) -> str:
    if row.job is None:
        return row.name
    return f"{row.job.variant} {row.job.arm}".replace("fused-bypass", "fused - bypass")


def _label(row: Row) -> str:
    bound = "≥ " if row.lower_bound else ""
    whole = " *" if row.audit is not None and not row.audit.looped else ""
    return bound + _name(row) + whole


def _budget(gpu: Gpu, stored: str) -> dict[str, float]:
    return budget(gpu, bytes_moved("fused", find_format(stored)))


def _budgets(stored: str, gpus: Iterable[Gpu]) -> Table:
    table = _table(("arch", *PIPES.values()))
    for gpu in gpus:
        cells = _budget(gpu, stored)
        numbers = [f"{cells[pipe]:.2f}" if cells else "–" for pipe in PIPES]
        table.add_row(gpu.key, f"sm_{capability_of(gpu)}", *numbers)
    return table


def _ratios(title: str, rows: Sequence[Row], report: Report) -> Iterator[RenderableType]:
    """R by kernel and board, as many boards at a time as fit."""
    names = dict.fromkeys(_name(row) for row in rows if row.audit is not None)
    for start in range(0, len(report.gpus), BOARDS_PER_TABLE):
        gpus = report.gpus[start : start + BOARDS_PER_TABLE]
        table = _table([gpu.key for gpu in gpus])
        for name in names:
            own = [row for row in rows if _name(row) == name]
            found = [
                next((r for row in own if (r := report.ratio(row, gpu)) is not None), None)
                for gpu in gpus
            ]
            if any(found):
                table.add_row(name, *map(_ratio_cell, found))
        if table.row_count:
            yield from (_title(f"{title}: R, and the first pipe to run out"), table, Text())


def _ratio_cell(ratio: Ratio | None) -> Text:
    if ratio is None:
        return Text("–", style="dim")
    if ratio.value is None or ratio.at_reached_issue is None:
        return Text(ratio.reason if ratio.reason in ("spills", LOWER_BOUND) else "–", style="dim")
    values = (ratio.value, ratio.at_reached_issue)
    digits = 1 if max(values) >= 10 else 2
    text = f"{' '.join(f'{value:.{digits}f}' for value in values)}\n{ratio.limiter}"
    return Text(text, style=STYLES[ratio.verdict])


def _instructions(rows: Iterable[Row]) -> Table:
    table = _table(HEADS.values())
    for row in rows:
        values = [row.per_weight[name] for name in HEADS]
        cells = [f"{value:.2f}" if row.weights else f"{value:.0f}" for value in values]
        table.add_row(_label(row), *cells, style="bold" if row.audit is None else None)
    return table


def _resources(rows: Iterable[Row]) -> Table:
    table = _table(("regs", "spills", "shared\nbytes", "warps", "weights\na pass", "loads"))
    for row in rows:
        audit = row.audit
        if audit is None:
            continue
        most = MULTIPROCESSORS.get(audit.capability)
        known = audit.resident_warps is not None and most is not None
        warps = f"{audit.resident_warps}/{most.warps}" if known and most else "–"
        loads = " ".join(f"{w}x{n}" for w, n in sorted(audit.loads.items(), reverse=True))
        table.add_row(
            *(_label(row), _known(audit.registers)),
            Text(str(audit.spills), style="bold red" if audit.spills else ""),
            *(_known(audit.shared_bytes), warps, _known(audit.weights), loads or "none"),
        )
    return table


def _known(value: int | None) -> str:
    return "–" if value is None else str(value)


def _table(columns: Iterable[str]) -> Table:
    """A table without lines, as a profile's are. Its title is a line before it, which may be wider."""
    table = Table(box=None, padding=(0, 1, 0, 0))
    table.add_column("", overflow="fold")
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _title(text: str) -> Text:
    return Text(text, style="bold")

"""Power traces in a file: every reading of every window, so that the joules can be computed again by anyone.

One Parquet file holds the windows of a run. A row is a reading, or a mark of what the load had done by then:

    window | time_s | read_s | layers | energy_j | power_instant_w | ... | error
         0   10.003   0.0004     null     1000.0             298.1         ""       a reading
         0   10.500     null      160       null              null         ""       a mark: 160 layers done

Its schema's metadata says, as JSON, which sensor it was and what each window is of. A file may come from
anyone: what does not hold together ends in one sentence.

    save_windows(path, sensor.info, [Recorded({"arm": "fused", "batch": 8}, window)])
    info, windows = load_windows(path)
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.analysis.traces import CHANNELS, Load, Trace, Window
from bench.measure.power import SensorInfo
from profiles.files import ProfileError, parse_json, printable, read_file
from profiles.reader import replace_file

if TYPE_CHECKING:
    import pyarrow as pa

VERSION = 1
MAXIMUM_BYTES = 128 << 20
MAXIMUM_ERROR = 900  # characters of one reading; a longer one is cut when it is written
MAXIMUM_ERROR_BYTES = 4 * MAXIMUM_ERROR
MAXIMUM_ERRORS_BYTES = 64 << 20  # of all of them
_METADATA = b"power_trace"


class TraceFileError(ProfileError):
    """A file of power traces that cannot be used; the message is one sentence for the user."""


@dataclass(frozen=True)
class Recorded:
    """A window and what it is of.

    Attributes:
        label: arm, format, batch, trial and the like.
        window: load and trace.
    """

    label: dict[str, str | int]
    window: Window


def save_windows(path: Path, info: SensorInfo, windows: Sequence[Recorded]) -> None:
    """Writes windows; an existing file is replaced in one step.

    Raises:
        TraceFileError: as `trace_content`.
        OSError: the file cannot be written.
    """
    replace_file(path, trace_content(path, info, windows)[0])


def trace_content(path: Path, info: SensorInfo, windows: Sequence[Recorded]) -> tuple[bytes, int]:
    """What a file of windows holds, and how many rows that is.

    Args:
        path: for messages.
        info: of the sensor.
        windows: in any order.

    Raises:
        TraceFileError: there are none, they do not hold together, or are more than would be read.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not windows:
        raise TraceFileError(f"there are no windows to write to {path}")
    about = {
        "version": VERSION,
        "sensor": asdict(info) | {"channels": list(info.channels)},
        "windows": [
            {
                "label": recorded.label,
                "idle_before_s": recorded.window.idle_before_s,
                "idle_after_s": recorded.window.idle_after_s,
            }
            for recorded in windows
        ],
    }
    columns = [_columns(index, recorded.window) for index, recorded in enumerate(windows)]
    table = pa.table(
        {
            field.name: pa.array(
                [value for window in columns for value in window[field.name]],
                field.type,
                from_pandas=field.nullable,  # NaN is null
            )
            for field in _schema()
        },
        schema=_schema().with_metadata({_METADATA: json.dumps(about, allow_nan=False)}),
    )
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    content = bytes(sink.getvalue())
    parse_windows(path, content)
    return content, table.num_rows


def load_windows(path: Path) -> tuple[SensorInfo, tuple[Recorded, ...]]:
    """The sensor and the windows in a file.

    Raises:
        TraceFileError: it cannot be read, or is not such a file.
    """
    try:
        content = read_file(path, MAXIMUM_BYTES)
    except ProfileError as error:
        raise TraceFileError(str(error)) from None
    return parse_windows(path, content)


def _schema() -> pa.Schema:
    import pyarrow as pa

    return pa.schema(
        [
            pa.field("window", pa.int32(), nullable=False),
            pa.field("time_s", pa.float64(), nullable=False),
            pa.field("read_s", pa.float64()),
            pa.field("layers", pa.int64()),
            *(pa.field(channel, pa.float64()) for channel in CHANNELS),
            pa.field("error", pa.string(), nullable=False),
        ]
    )


def _columns(index: int, window: Window) -> dict[str, list[Any]]:
    """A window's readings, then its marks, as columns."""
    trace, marks = window.trace, window.load.marks
    readings = len(trace.time_s)
    return {
        "window": [index] * (readings + len(marks)),
        "time_s": [*trace.time_s.tolist(), *(time_s for time_s, _ in marks)],
        "read_s": [*trace.read_s.tolist(), *[None] * len(marks)],
        "layers": [*[None] * readings, *(layers for _, layers in marks)],
        **{c: [*trace.values[c].tolist(), *[None] * len(marks)] for c in CHANNELS},
        "error": [*(printable(e, MAXIMUM_ERROR) for e in trace.errors), *[""] * len(marks)],
    }


def parse_windows(path: Path, content: bytes) -> tuple[SensorInfo, tuple[Recorded, ...]]:
    """The sensor and the windows in the bytes of a file.

    Args:
        path: for messages.
        content: the bytes.

    Raises:
        TraceFileError: they do not hold together.
    """
    try:
        table = _table(path, content)
        about = parse_json(path, table.schema.metadata[_METADATA])
        info = _info(about)
        windows = _windows(about, table)
    except ProfileError as error:
        raise TraceFileError(str(error)) from None
    except _WrongError as error:
        raise TraceFileError(f"{path} is not a sound file of power traces: {error}.") from None
    return info, windows


class _WrongError(ValueError):
    """What is wrong, as a clause."""


def _table(path: Path, content: bytes) -> pa.Table:
    """The table in the file, when it has the columns of such a file and is modest."""
    from profiles.pages import WordLimits, checked_parquet, unpacked

    found = checked_parquet(path, content)
    if not found.schema_arrow.remove_metadata().equals(_schema()):
        raise _WrongError("it has other columns")
    if _METADATA not in (found.schema_arrow.metadata or {}):
        raise _WrongError("it does not say which sensor and windows it holds")
    too_long = f"an error has more than {MAXIMUM_ERROR_BYTES} bytes"
    limits = WordLimits("errors", MAXIMUM_ERROR_BYTES, MAXIMUM_ERRORS_BYTES, too_long)
    try:
        return unpacked(found, content, _schema(), ["error"], limits)
    except ValueError as error:
        raise _WrongError(str(error)) from None


def _info(about: dict[str, Any]) -> SensorInfo:
    """The sensor of the metadata."""
    if about.get("version") != VERSION:
        raise _WrongError(f"it is of version {str(about.get('version'))[:20]}, not {VERSION}")
    sensor = about.get("sensor")
    if not isinstance(sensor, dict) or set(sensor) != set(SensorInfo.__dataclass_fields__):
        raise _WrongError("it does not describe its sensor")
    texts = [sensor["name"], sensor["scope"], sensor["model"]]
    channels, missing, facts = sensor["channels"], sensor["missing"], sensor["facts"]
    if not (
        all(isinstance(text, str) for text in texts)
        and isinstance(channels, list)
        and all(isinstance(c, str) and c in CHANNELS for c in channels)
        and isinstance(missing, dict)
        and all(isinstance(reason, str) for reason in missing.values())
        and isinstance(facts, dict)
        and all(f is None or isinstance(f, str | int | float) for f in facts.values())
    ):
        raise _WrongError("what it says about its sensor is of the wrong kind")
    return SensorInfo(
        texts[0], texts[1], texts[2], channels=tuple(channels), missing=missing, facts=facts
    )


def _windows(about: dict[str, Any], table: pa.Table) -> tuple[Recorded, ...]:
    """The windows, each from its rows."""
    described = about.get("windows")
    if not isinstance(described, list):
        raise _WrongError("it does not describe its windows")
    number = table.column("window").to_numpy()
    edges = np.searchsorted(number, np.arange(len(described) + 1))
    if np.any(np.diff(number) < 0) or edges[0] != 0 or edges[-1] != len(number):
        raise _WrongError("its rows are not those of its windows in order")
    return tuple(
        _recorded(index, one, table.slice(int(begin), int(end - begin)))
        for index, (one, begin, end) in enumerate(
            zip(described, edges[:-1], edges[1:], strict=True)
        )
    )


def _recorded(index: int, described: Any, rows: pa.Table) -> Recorded:
    """One window."""
    keys = {"label", "idle_before_s", "idle_after_s"}
    if not isinstance(described, dict) or set(described) != keys:
        raise _WrongError(f"it does not describe window {index}")
    label, idles = described["label"], (described["idle_before_s"], described["idle_after_s"])
    if not isinstance(label, dict) or not all(
        isinstance(v, str | int) and not isinstance(v, bool) for v in label.values()
    ):
        raise _WrongError(f"the label of window {index} is not of texts and whole numbers")
    if not all(isinstance(i, int | float) and not isinstance(i, bool) and i >= 0 for i in idles):
        raise _WrongError(f"the idle times of window {index} are not seconds")
    is_mark = rows.column("layers").is_valid().to_numpy()
    first_mark = len(is_mark) - int(is_mark.sum())
    if np.any(is_mark[:first_mark]):
        raise _WrongError(f"a mark of window {index} stands among its readings")
    trace = _trace(index, rows.slice(0, first_mark))
    load = _load(index, rows.slice(first_mark))
    return Recorded(label, Window(load, trace, float(idles[0]), float(idles[1])))


def _trace(index: int, rows: pa.Table) -> Trace:
    columns = {
        name: rows.column(name).to_numpy().astype(float) for name in ("time_s", "read_s", *CHANNELS)
    }
    for name, values in columns.items():
        if np.any(np.isinf(values)) or (name == "read_s" and not np.all(values >= 0)):
            raise _WrongError(f"window {index} has a {name} that cannot be")
    if np.any(np.isnan(columns["time_s"])) or np.any(np.diff(columns["time_s"]) < 0):
        raise _WrongError(f"the readings of window {index} are not in the order of time")
    return Trace(
        columns.pop("time_s"),
        columns.pop("read_s"),
        columns,
        tuple(printable(error) for error in rows.column("error").to_pylist()),
    )


def _load(index: int, rows: pa.Table) -> Load:
    times = rows.column("time_s").to_numpy()
    layers = rows.column("layers").to_pylist()
    if (
        len(layers) < 2
        or layers[0] != 0
        or layers[-1] < 1
        or sorted(layers) != layers
        or not np.all(np.isfinite(times))
        or not np.all(np.diff(times) > 0)
    ):
        raise _WrongError(f"the marks of window {index} do not rise from 0 layers")
    return Load(tuple(zip(times.tolist(), layers, strict=True)))

"""Recorded traces: the file gives back every bit, bad files one sentence, and a replay the same poll."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hostile_files import mutate_parquet
from hypothesis import given, settings

from bench.analysis.traces import CHANNELS, Load, Reading, Trace, Window
from bench.measure.power import SensorError, SensorInfo, poll
from bench.measure.power.files import Recorded, TraceFileError, load_windows, save_windows
from bench.measure.power.replay import ReplaySensor

INFO = SensorInfo(
    name="NVML",
    scope="the whole board",
    model="NVIDIA H100 PCIe",
    channels=("energy_j", "power_instant_w"),
    missing={"power_average_w": "not supported by this board and driver"},
    facts={"driver": "550", "power_limit_w": 350.5, "ecc_mode": True, "mig_mode": None, "n": 2},
)
READINGS = (
    Reading(100.0000001, 0.0004, {"energy_j": 1000.1, "power_instant_w": 299.9999}, ""),
    Reading(100.01, 0.2, {"energy_j": 0.1 + 0.2, "event_reasons": 4.0}, "power_instant_w: it reads 0"),
    Reading(100.3, 5e-324, {}, "the GPU is lost: it has fallen off the bus"),
)  # fmt: skip
WINDOW = Window(
    Load(((100.0, 0), (100.1, 7), (100.30000000000001, 16))), Trace.of(READINGS), 0.5, 1.25
)
LABEL: dict[str, str | int] = {"arm": "fused", "format": "int4-g128", "batch": 8, "trial": 3}


def bits(trace: Trace) -> tuple[object, ...]:
    """All of a trace, such that equal means equal in every bit (NaN included)."""
    columns = [trace.time_s, trace.read_s, *(trace.values[c] for c in CHANNELS)]
    return (*(c.tobytes() for c in columns), trace.errors)


def saved(path: Path, *windows: Window) -> Path:
    save_windows(path, INFO, [Recorded({**LABEL, "trial": i}, w) for i, w in enumerate(windows)])
    return path


def test_a_file_gives_back_every_bit(tmp_path: Path) -> None:
    other = replace(WINDOW, load=Load(((5.0, 0), (6.0, 1))), idle_after_s=0.0)
    silent = replace(WINDOW, trace=Trace.of([]))
    info, found = load_windows(saved(tmp_path / "t.parquet", WINDOW, silent, other))
    assert info == INFO
    assert [r.label for r in found] == [{**LABEL, "trial": i} for i in range(3)]
    for recorded, window in zip(found, (WINDOW, silent, other), strict=True):
        assert recorded.window.load == window.load
        assert bits(recorded.window.trace) == bits(window.trace)
        assert recorded.window.idle_before_s == window.idle_before_s
        assert recorded.window.idle_after_s == window.idle_after_s
    assert list(tmp_path.iterdir()) == [tmp_path / "t.parquet"]


def test_a_file_without_windows_is_none(tmp_path: Path) -> None:
    with pytest.raises(TraceFileError, match="there are no windows to write"):
        saved(tmp_path / "t.parquet")


def test_others_can_read_it(tmp_path: Path) -> None:
    """What a notebook sees: a row per reading, null where there is nothing; then the marks."""
    table = pq.read_table(saved(tmp_path / "t.parquet", WINDOW))
    assert table.column("power_instant_w").to_pylist() == [299.9999, None, None, None, None, None]
    assert table.column("layers").to_pylist() == [None, None, None, 0, 7, 16]
    assert table.column("time_s").to_pylist()[3:] == [100.0, 100.1, 100.30000000000001]


def test_control_characters_do_not_reach_a_terminal(tmp_path: Path) -> None:
    trace = Trace.of([Reading(1.0, 0.1, {}, "bad \x1b[2J" + "x" * 2000)])
    _, (found,) = load_windows(saved(tmp_path / "t.parquet", replace(WINDOW, trace=trace)))
    (error,) = found.window.trace.errors
    assert error.startswith("bad \\x1b[2Jxxx")
    assert len(error) < 1000


def test_a_file_from_elsewhere_does_not_speak_to_a_terminal(tmp_path: Path) -> None:
    path = saved(tmp_path / "t.parquet", WINDOW)
    rewritten(path, with_column("error", ["\x1b[2J", *[""] * 5]))
    _, (found,) = load_windows(path)
    assert found.window.trace.errors == ("\\x1b[2J", "", "")


def rewritten(path: Path, change: object) -> Path:
    """The file with its table, or its metadata, changed and written as Parquet again."""
    table = pq.read_table(path)
    pq.write_table(change(table), path)  # type: ignore[operator]
    return path


def with_column(name: str, values: list[object]):  # type: ignore[no-untyped-def]
    def change(table: pa.Table) -> pa.Table:
        index = table.schema.get_field_index(name)
        field = table.schema.field(name)
        column = pa.array(values, field.type)
        return table.set_column(index, field, column)

    return change


def with_metadata(old: str, new: str):  # type: ignore[no-untyped-def]
    def change(table: pa.Table) -> pa.Table:
        text = table.schema.metadata[b"power_trace"].decode()
        assert old in text
        return table.replace_schema_metadata({"power_trace": text.replace(old, new)})

    return change


T = [100.0, 100.01, 100.3, 100.0, 100.1, 100.3]
R = [0.1, 0.1, 0.1, None, None, None]
SCRAMBLED = [
    (with_column("time_s", [101.0, *T[1:]]), "not in the order of time"),
    (with_column("time_s", [float("nan"), *T[1:]]), "not in the order of time"),
    (with_column("time_s", [-np.inf, *T[1:]]), "a time_s that cannot be"),
    (with_column("read_s", [-0.1, *R[1:]]), "a read_s that cannot be"),
    (with_column("read_s", [None, *R[1:]]), "a read_s that cannot be"),
    (with_column("energy_j", [np.inf, *[None] * 5]), "an? energy_j that cannot be"),
    (with_column("time_s", [*T[:3], 100.2, 100.1, 100.3]), "do not rise from 0 layers"),
    (with_column("time_s", [*T[:5], np.inf]), "do not rise from 0 layers"),
    (with_column("layers", [None, None, None, 1, 7, 16]), "do not rise from 0 layers"),
    (with_column("layers", [None, None, None, 0, 7, 6]), "do not rise from 0 layers"),
    (with_column("layers", [None, None, None, None, None, 0]), "a read_s|do not rise"),
    (with_column("layers", [None, 5, None, 0, 7, 16]), "a mark of window 0 stands among"),
    (with_column("window", [0, 0, 0, 0, 0, 1]), "not those of its windows"),
    (with_column("window", [0, 0, 0, 0, 0, -1]), "not those of its windows"),
    (with_column("window", [-1, 0, 0, 0, 0, 0]), "not those of its windows"),
    (with_column("error", ["x" * 5000, *[""] * 5]), "an error has more than"),
    (lambda t: t.drop_columns(["error"]), "it has other columns"),
    (lambda t: t.replace_schema_metadata({}), "does not say which sensor"),
    (lambda t: t.replace_schema_metadata({"power_trace": "{"}), "not valid JSON"),
    (lambda t: t.replace_schema_metadata({"power_trace": "{}"}), "version None, not 1"),
    (with_metadata('"version": 1', '"version": 2'), "version 2, not 1"),
    (with_metadata('"name": "NVML", ', ""), "does not describe its sensor"),
    (with_metadata('"name": "NVML"', '"name": 5'), "of the wrong kind"),
    (with_metadata('"energy_j"', '"joules"'), "of the wrong kind"),
    (with_metadata('"ecc_mode": true', '"ecc_mode": []'), "of the wrong kind"),
    (with_metadata('"idle_before_s": 0.5', '"idle_before_s": -1'), "not seconds"),
    (with_metadata('"idle_before_s": 0.5', '"idle_before_s": NaN'), "which JSON does not have"),
    (with_metadata('"idle_before_s": 0.5, ', ""), "does not describe window 0"),
    (with_metadata('"batch": 8', '"batch": null'), "the label of window 0"),
    (with_metadata('"windows": [{', '"windows": [{}, {'), "does not describe window 0|rows are not"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "sentence"), SCRAMBLED, ids=[s for _, s in SCRAMBLED])
def test_a_file_that_does_not_hold_together_is_refused(
    tmp_path: Path, change: object, sentence: str
) -> None:
    path = rewritten(saved(tmp_path / "t.parquet", WINDOW), change)
    with pytest.raises(TraceFileError, match=sentence) as caught:
        load_windows(path)
    assert str(caught.value).endswith(".")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content", [b"", b"PAR1", b"PAR1" + b"\0" * 30 + b"PAR1", b'{"version": 1}']
)
def test_what_is_no_parquet_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "t.parquet"
    path.write_bytes(content)
    with pytest.raises(TraceFileError, match="Parquet"):
        load_windows(path)


def test_a_missing_file_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(TraceFileError, match="there is no file"):
        load_windows(tmp_path / "t.parquet")


def test_mutated_files_end_in_a_sentence_or_in_windows(tmp_path: Path) -> None:
    path = saved(tmp_path / "t.parquet", WINDOW, WINDOW)
    content, rng, sentences = path.read_bytes(), random.Random(5), []
    for _ in range(600):
        path.write_bytes(mutate_parquet(content, rng))
        try:
            load_windows(path)
        except TraceFileError as error:
            sentences.append(str(error))
    assert len(sentences) > 300
    assert all(s.isprintable() and s.endswith(".") for s in sentences)


def test_what_would_not_be_read_again_is_not_written(tmp_path: Path) -> None:
    backwards = replace(WINDOW, trace=Trace.of(READINGS[::-1]))
    with pytest.raises(TraceFileError, match="order of time"):
        saved(tmp_path / "t.parquet", backwards)
    assert list(tmp_path.iterdir()) == []


class Ticking:
    """A clock and sensor with odd durations, to record polls of."""

    info = INFO

    def __init__(self, start_s: float, steps_s: list[float], fails_at: int) -> None:
        self.at_s, self.steps_s, self.fails_at, self.reads = start_s, steps_s, fails_at, 0

    def now_s(self) -> float:
        return self.at_s

    def sleep(self, seconds: float) -> None:
        self.at_s += seconds

    def read(self) -> tuple[dict[str, float], str]:
        self.at_s += self.steps_s[self.reads]
        self.reads += 1
        if self.reads == self.fails_at:
            raise SensorError("the GPU is lost")
        return {"energy_j": self.at_s * 300}, "" if self.reads % 3 else "temperature_c: timeout"

    def is_over(self) -> bool:
        return self.reads >= len(self.steps_s)

    def close(self) -> None:
        pass


@settings(max_examples=300, deadline=None)
@given(
    st.floats(0, 1e7),
    st.lists(st.floats(1e-7, 0.5), min_size=1, max_size=30),
    st.integers(0, 30),
    st.floats(1e-3, 0.1),
)
def test_a_replay_gives_the_poll_that_was_recorded(
    start_s: float, steps_s: list[float], fails_at: int, period_s: float
) -> None:
    recorder = Ticking(start_s, steps_s, fails_at)
    recorded, sampling = poll(recorder, recorder, recorder.is_over, period_s)
    player = ReplaySensor(recorder.info, recorded)
    again, sampling_again = poll(player, player, player.is_over, period_s)
    assert bits(again) == bits(recorded)
    assert sampling_again.readings == sampling.readings
    assert sampling_again.failed == sampling.failed
    assert sampling_again.wall_s == sampling.wall_s
    assert sampling_again.longest_read_s == sampling.longest_read_s


def test_a_replay_says_what_it_is_and_where_it_ends() -> None:
    player = ReplaySensor(INFO, Trace.of(READINGS))
    assert player.info.name == "replay"
    assert player.info.facts["recorded_with"] == "NVML"
    assert player.info.channels == INFO.channels
    assert [player.read() for _ in READINGS] == [(r.values, r.error) for r in READINGS]
    with pytest.raises(SensorError, match="the recorded trace ends here"):
        player.read()
    player.close()
    player.close()
    empty = ReplaySensor(INFO, Trace.of([]))
    assert poll(empty, empty, empty.is_over)[0].errors == ()

"""Energy windows of whole runs: planted joules are found again, and nothing is lost on the way."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import fake_device
import numpy as np
import planted_truth
import pytest
from simulated_meters import update_phase_s

import bench.measure.run as run_module
from bench.analysis.energy import Rules, window_joules
from bench.analysis.traces import Load
from bench.measure.assemble import assemble
from bench.measure.devices import Problem
from bench.measure.devices.simulated import (
    BOARDS,
    COSTS,
    SCENARIOS,
    Scenario,
    SimulatedDevice,
    open_simulated,
    true_time_s,
)
from bench.measure.energy import in_order, loads
from bench.measure.journal import Journal
from bench.measure.ledger import Ledger
from bench.measure.meters import HostMeter, NoMeter, Recording, find_meter
from bench.measure.power import SensorInfo
from bench.measure.power.files import TraceFileError, load_windows, save_windows
from bench.measure.records import EnergyPlan, Plan, Readings, WindowRecord, dump
from bench.measure.records import load as load_record
from bench.measure.replay import recorded, replay
from bench.measure.run import Run
from bench.measure.session import Session
from bench.measure.worker import Begun, Worker, WorkerLostError
from kernels.formats import find_format
from profiles.schema import Implementation, Operator, Profile, Protocol
from profiles.sensors import Traits

OPERATORS = (Operator(name="qkv", n=6144, k=4096), Operator(name="down", n=4096, k=14336, count=2))
BATCHES = (1, 8, 64)
SHORT = Rules(window_s=1.0, updates=9, idle_s=2.0, settle_s=0.2, trials=3)
LAYERS = 32


def plan(gpu: str = "simulated:h100", **changes: Any) -> Plan:
    protocol = Protocol(
        pilot_blocks=10,
        fresh_blocks_minimum=6,
        fresh_blocks_maximum=6,
        processes=2,
        target_half_width=0.02,
        confidence=0.95,
        sample_minimum_s=1e-3,
    )
    asked = Plan(
        gpu, "made-up", LAYERS, OPERATORS, (find_format("int4-g128"),), BATCHES,
        None, None, protocol, 0, EnergyPlan("default", BATCHES, SHORT),
    )  # fmt: skip
    return replace(asked, **changes)


@pytest.fixture(autouse=True)
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_module, "Worker", InProcess)


class InProcess(planted_truth.InProcess):
    """A worker without a process; an (arm, batch) in `deadly_windows` crashes in its energy windows."""

    deadly_windows: tuple[tuple[str, int], ...] = ()
    no_energy = ""

    def begin(self, weight_format: str, *others: Any) -> Begun:
        if self.no_energy and len(others) == 3:
            raise WorkerLostError(self.no_energy, None)
        return super().begin(weight_format, *others)

    def ready(self, layer: Any) -> None:
        super().ready(layer)
        self.layer = layer

    def steady(self, *arguments: Any) -> Any:
        if (self.layer[0].arm, self.layer[0].batch) in self.deadly_windows:
            raise WorkerLostError("it crashed with SIGSEGV", self.layer[0])
        return super().steady(*arguments)


def run(path: Path, asked: Plan, opener: Any = open_simulated, **others: Any) -> Ledger:
    with Journal(path) as journal:
        Run(asked, journal, lambda progress: None, opener, **others).measure()
        return journal.ledger


def profile(path: Path, asked: Plan | None = None, **others: Any) -> Profile:
    return assemble(run(path, asked or plan(), **others))


def planted_j(arm: str, batch: int) -> float:
    """Joules of a layer, from the planted parts alone."""
    board = BOARDS["h100"]
    device = SimulatedDevice(board)
    weight_format = find_format("int4-g128")
    total_s = 0.0
    for operator in OPERATORS:
        problem = Problem(operator.name, operator.n, operator.k, batch, weight_format, "fp16")
        kernels = {k.arm: k for k in device.kernels(problem)}
        if arm == "unfused":
            total_s += operator.count * sum(
                true_time_s(board, problem, kernels[a], a, "graph")  # type: ignore[index, arg-type]
                for a in ("dequantize", "vendor")
            )
        else:
            kernel = kernels[arm]  # type: ignore[index]
            total_s += operator.count * true_time_s(board, problem, kernel, kernel.arm, "graph")
    watts = board.idle_w + COSTS[arm].power * (board.busy_w - board.idle_w)  # type: ignore[index]
    return watts * total_s


def test_planted_joules_are_found_again(tmp_path: Path) -> None:
    found = profile(tmp_path / "a.jsonl")
    rows = {(r.kernel.arm, r.batch): r for r in found.energy.rows}
    assert set(rows) == {(a, b) for a in ("vendor", "bypass", "fused", "unfused") for b in BATCHES}
    for (arm, batch), row in rows.items():
        if arm == "unfused":  # its time is not the sum of two kernels in the simulated device
            continue
        true_j = planted_j(arm, batch)
        value, low, high = row.energy_j.value, row.energy_j.low, row.energy_j.high
        assert value is not None
        assert low is not None
        assert high is not None
        assert value == pytest.approx(true_j, rel=0.01), (arm, batch)
        assert low <= true_j <= high
        assert high / value == pytest.approx(1.05, abs=0.01)  # the gain rules
        assert row.token_j.value == pytest.approx(LAYERS * value / batch)
        assert row.idle_w.value == pytest.approx(70, rel=0.01)
        assert row.net_j.value == pytest.approx(true_j * (1 - 70 / row.power_w.value), rel=0.02)
        assert row.windows == SHORT.trials
        assert row.flags == ()
        assert row.throttle_share == 0
        assert row.source == "energy_j"
        assert row.disagreement is not None
        assert row.disagreement < 0.02
        assert row.energy_j.kind == "simulated"
    for c in found.comparisons:
        if c.operator != "layer":
            assert c.phi_exposed_j.value is None
            continue
        exposed_j = planted_j("fused", c.batch) - planted_j("bypass", c.batch)
        assert c.phi_exposed_j.value == pytest.approx(exposed_j, rel=0.03)
        assert c.phi_exposed_j.low <= exposed_j <= c.phi_exposed_j.high  # type: ignore[operator]
        ratio = planted_j("vendor", c.batch) / planted_j("fused", c.batch)
        assert c.energy_ratio_fused.value == pytest.approx(ratio, rel=0.01)
        assert c.energy_ratio_fused.high / c.energy_ratio_fused.low < 1.03  # type: ignore[operator]
        assert c.energy_flags == ()
    layers = {(r.arm, r.batch): r for r in found.rows if r.operator == "layer"}
    assert layers["fused", 8].energy_j == rows["fused", 8].energy_j
    assert "no energy windows" in layers["stream", 8].energy_j.reason
    curve = next(c for c in found.energy.curves if c.arm == "vendor")
    at_8 = curve.a_j.value + curve.b_j.value / 8  # type: ignore[operator]
    assert at_8 == pytest.approx(LAYERS * planted_j("vendor", 8) / 8, rel=0.02)


def test_the_sensor_is_characterised_in_the_run(tmp_path: Path) -> None:
    energy = profile(tmp_path / "a.jsonl").energy
    assert energy.published is not None
    assert energy.characterised is not None
    assert energy.published.update_s == 0.1
    assert energy.characterised.source == "characterised"
    assert energy.characterised.update_s == pytest.approx(0.1, rel=0.01)
    assert energy.characterised.averaging_s["power_instant_w"] == pytest.approx(0.025, abs=0.005)
    assert energy.characterised.averaging_s["power_average_w"] == pytest.approx(1.0, rel=0.03)


def test_throttled_windows_carry_a_flag_and_still_count(tmp_path: Path) -> None:
    scenario = Scenario(noise=0.002, throttle=0.3, throttle_s=0.15, throttle_every_s=0.6)
    found = profile(
        tmp_path / "a.jsonl", opener=lambda name: SimulatedDevice(BOARDS["h100"], scenario)
    )
    assert all(row.flags == ("throttled",) for row in found.energy.rows)
    # 0.15 s of every 0.6 s
    assert all(0.1 < (row.throttle_share or 0) < 0.45 for row in found.energy.rows)
    layers = [c for c in found.comparisons if c.operator == "layer"]
    assert all(c.energy_flags == ("throttled",) for c in layers)


def test_full_measures_every_arm_and_off_none(tmp_path: Path) -> None:
    ledger = run(tmp_path / "a.jsonl", plan(energy=EnergyPlan("full", (8,), SHORT)))
    measured = {kernel.arm for _, _, kernel, _ in ledger.windows}
    assert measured == {*COSTS} - {"lowp"}  # int4 has none
    said: list[str] = []
    ledger = run(tmp_path / "b.jsonl", plan(energy=None), say=said.append)
    assert not ledger.windows
    assert not said
    assert assemble(ledger).energy.reason == "it was not asked for"


def test_without_a_sensor_the_reason_is_said_and_nothing_is_zero(tmp_path: Path) -> None:
    said: list[str] = []
    found = profile(
        tmp_path / "a.jsonl", open_meter=lambda device: NoMeter("no energy sensor: none"),
        say=said.append,
    )  # fmt: skip
    assert said == ["Joules: none will be measured: no energy sensor: none."]
    assert found.energy.reason == "no energy sensor: none"
    assert not found.energy.rows
    assert not found.energy.curves
    assert all(row.energy_j.value is None for row in found.rows)
    assert all(c.phi_exposed_j.value is None for c in found.comparisons)


def test_the_planned_time_is_said_before_the_first_sample(tmp_path: Path) -> None:
    events: list[str] = []
    with Journal(tmp_path / "a.jsonl") as journal:
        Run(
            plan(), journal, lambda progress: events.append(progress.doing), open_simulated,
            say=events.append,
        ).measure()  # fmt: skip
    said = next(i for i, event in enumerate(events) if event.startswith("Joules"))
    assert said < next(i for i, event in enumerate(events) if "pilot" in event)
    # 0.2 s settling, 1 s of averaging, a window of 1 s, two updates of 0.1 s, and 2 x 2 s idle: 6.4 s,
    # 3 batches x 4 arms x 3 trials times, and a square wave of 40 s
    assert "3 trials of 6 s each: about 5 min after the times" in events[said]


def test_an_interrupted_run_goes_on_with_the_windows_that_are_left(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole.jsonl", plan())

    def interrupt(after: int) -> Callable[[Any], None]:
        left = [after]

        def report(progress: Any) -> None:
            left[0] -= progress.doing.startswith("energy: int4")
            if left[0] < 0:
                raise KeyboardInterrupt

        return report

    path = tmp_path / "cut.jsonl"
    with Journal(path) as journal, pytest.raises(KeyboardInterrupt):
        Run(plan(), journal, interrupt(5), open_simulated).measure()
    with Journal.reopen(path) as journal:
        assert len(journal.ledger.windows) == 5
        cut = assemble(journal.ledger)
        assert not cut.complete
        assert cut.energy.rows  # what was measured counts
        Run(plan(), journal, interrupt(10**6), open_simulated).measure()
        again = journal.ledger
    assert again.windows == whole.windows
    before, after = assemble(whole), assemble(again)
    assert before.energy == after.energy
    assert before.comparisons == after.comparisons


def test_a_crash_in_a_window_costs_that_arm_its_joules_and_no_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calm = profile(tmp_path / "calm.jsonl")
    monkeypatch.setattr(InProcess, "deadly_windows", (("vendor", 1),))
    found = profile(tmp_path / "a.jsonl")
    assert found.complete
    rows = {(row.kernel.arm, row.batch): row for row in found.energy.rows}
    lost = rows.pop(("vendor", 1))
    assert lost.energy_j.value is None
    assert lost.energy_j.reason == "it crashed with SIGSEGV"
    assert all(row.energy_j.value is not None for row in rows.values())
    assert {(arm, batch) for arm, batch in rows if arm == "vendor"} == {
        ("vendor", 8),
        ("vendor", 64),
    }
    # the times were taken before: no baseline is swapped, no row fails
    assert [row.time_s for row in found.rows] == [row.time_s for row in calm.rows]
    assert [c.best16 for c in found.comparisons] == [c.best16 for c in calm.comparisons]
    assert not any(row.failure for row in found.rows)
    layer = next(c for c in found.comparisons if c.operator == "layer" and c.batch == 1)
    assert layer.phi_unfused_j.value is None
    assert layer.phi_exposed_j.value is not None


def test_when_no_window_can_be_measured_the_times_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(InProcess, "no_energy", "it was killed for want of memory")
    found = profile(tmp_path / "a.jsonl")
    assert found.complete
    assert all(row.time_s.value is not None for row in found.rows)
    assert found.energy.reason == "it was killed for want of memory"
    assert not found.energy.rows


def test_too_little_memory_for_cold_layers_is_a_reason(tmp_path: Path) -> None:
    scenario = replace(SCENARIOS["quiet"], free_bytes=200 << 20)
    found = profile(
        tmp_path / "a.jsonl", opener=lambda name: SimulatedDevice(BOARDS["h100"], scenario)
    )
    assert found.energy.reason.startswith("cold weights for whole layers need")
    assert found.energy.reason.endswith("0.2 GB are free")
    assert not found.energy.rows


def test_trials_begin_at_other_phases_of_the_sensor(tmp_path: Path) -> None:
    ledger = run(tmp_path / "a.jsonl", plan())
    traits = ledger.traits
    assert traits is not None
    begun: dict[int, list[float]] = {}
    for (_, _, _, trial), record in ledger.windows.items():
        phase_s = update_phase_s(record.window.trace, traits)
        assert phase_s is not None
        begun.setdefault(trial, []).append((record.load.began_s - phase_s) % 0.1)
    # an update is noticed 3.7 ms after it; then come 0, 1/3 and 2/3 of 100 ms
    for trial, phases in begun.items():
        assert phases == pytest.approx([0.0037 + trial * 0.1 / 3] * len(phases), abs=0.006)


def test_layers_rotate_over_more_than_twice_the_cache() -> None:
    device = SimulatedDevice(BOARDS["h100"], Scenario())
    session = Session(device, OPERATORS, "fp16", "graph")
    weight_format = find_format("int4-g128")
    states = session.begin(weight_format, [1], {})
    layer = tuple(s.name for s in states if s.name.arm == "fused")
    assert len(layer) == 2
    session.begin(weight_format, [1], {}, [layer])
    # 4.125 bits per weight of one qkv and two down projections
    layer_bytes = (6144 * 4096 + 2 * 4096 * 14336) * 4.125 / 8
    layers = int(np.ceil(2 * (50 << 20) / layer_bytes)) + 1
    copies = {pool[0]: count for pool, count in device._copies.items()}
    assert copies == {"qkv": layers, "down": 2 * layers}  # a layer has two down projections
    assert session.rotation_bytes == pytest.approx((layers - 1) * layer_bytes)
    assert session.rotation_bytes >= 2 * device.cache_bytes
    session.ready(layer)
    (load,) = session.steady(((0.5, 0.0),), (0, 0, 1, 0, 1), 3.0)
    assert load.began_s == 3.0
    assert 0.5 <= load.ended_s - load.began_s <= 0.6
    assert load.layer_s == pytest.approx(
        sum(
            o.count
            * true_time_s(
                device.board, Problem(o.name, o.n, o.k, 1, weight_format, "fp16"),
                next(k for k in device.kernels(Problem(o.name, o.n, o.k, 1, weight_format, "fp16"))
                     if k.arm == "fused"),
                "fused", "graph",
            )
            for o in OPERATORS
        )
    )  # fmt: skip


def test_arms_of_a_batch_are_neighbours_in_every_trial(tmp_path: Path) -> None:
    ledger = run(tmp_path / "a.jsonl", plan())
    found = loads(ledger, "int4-g128", BATCHES, "default")
    order = list(in_order(found, seed=0, trials=4))
    assert len(order) == 4 * len(found) == 4 * 4 * len(BATCHES)
    assert [trial for trial, _ in order] == sorted(trial for trial, _ in order)
    for i in range(0, len(order), 4):
        four = order[i : i + 4]
        assert len({load.batch for _, load in four}) == 1
        assert len({load.kernel.arm for _, load in four}) == 4
    assert order != list(in_order(found, seed=1, trials=4))


class Ticking:
    """A sensor whose power changes every 50 ms of the host's clock."""

    info = SensorInfo("ticking", "nothing", "none", ("power_instant_w",))

    def __init__(self) -> None:
        self.closed = False

    def read(self) -> tuple[dict[str, float], str]:
        return {"power_instant_w": float(time.monotonic() // 0.05)}, ""

    def close(self) -> None:
        self.closed = True


@pytest.mark.parametrize("delay_s", [0.0, 0.02])
def test_a_load_begins_at_its_phase_of_the_sensor(delay_s: float) -> None:
    phases = []
    for _ in range(5):

        def load() -> tuple[Load, ...]:
            began_s = time.monotonic()
            time.sleep(0.03)
            return (Load(((began_s, 0), (time.monotonic(), 1))),)

        recording = HostMeter(Ticking()).record(load, 0.06, delay_s)
        (ran,) = recording.loads
        phases.append(ran.began_s % 0.05)
        trace = recording.trace
        assert trace.time_s[0] <= ran.began_s - 0.06
        assert trace.time_s[-1] >= ran.ended_s + 0.03
        assert recording.sampling.readings == len(trace.time_s)
        assert recording.sampling.cpu_s is not None
    # an update is seen within a poll of 10 ms; a busy machine may lose one of five
    assert float(np.median(phases)) == pytest.approx(delay_s + 0.006, abs=0.0085)


class Busy(Ticking):
    """A board that says in turn who uses it: processes of others, and those that cannot be told."""

    def __init__(self, *users: tuple[int | None, int | None]) -> None:
        super().__init__()
        self.users = list(users)

    def strangers(self) -> tuple[int | None, int | None]:
        return self.users.pop(0)


def record(meter: HostMeter, seconds: float = 0.1) -> Recording:
    def load() -> tuple[Load, ...]:
        began_s = time.monotonic()
        time.sleep(seconds)
        return (Load(((began_s, 0), (time.monotonic(), 10))),)

    return meter.record(load, 0.02, 0.0)


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ((0, 0), (0, 0), None),
        ((None, None), (None, None), None),
        ((0, 1), (0, 1), None),  # our own, in a container
        ((0, 2), (0, 1), None),  # one that ended: it drew nothing to speak of, or was there before
        ((1, 0), (0, 0), "before the window the driver listed 1 process of others"),
        ((0, 0), (2, 0), "after the window the driver listed 2 processes of others"),
        ((0, 1), (0, 2), "after the window the driver listed 1 process of others"),
    ],
)
def test_a_window_on_a_shared_board_is_refused(
    before: tuple[int | None, int | None], after: tuple[int | None, int | None], said: str | None
) -> None:
    sensor = Busy(before, after)
    found = record(HostMeter(sensor))
    assert not sensor.users  # asked twice
    trace = found.trace
    assert (np.diff(trace.time_s) >= 0).all()
    assert found.sampling.readings == len(trace.time_s)
    traits = Traits(
        model="ticking", update_s=0.05, averaging_s={"power_instant_w": 0.05},
        counter_update_s=None, lag_s=0.0, missing={"counter_update_s": "it has none"},
    )  # fmt: skip
    kept = WindowRecord(
        format="int4", batch=1, trial=0, load=found.loads[0], idle_s=0.02,
        kernel=Implementation(arm="fused", implementation="a", variant="b", weight_format="int4"),
        rotation_bytes=1, readings=Readings.of(trace), sampling=found.sampling,
    )  # fmt: skip
    window = load_record(dump(kept)).window  # type: ignore[union-attr]
    energy = window_joules(window, traits, Rules(window_s=0.05, updates=1, settle_s=0.0))
    if said is None:
        assert found.sampling.failed == 0
        assert not any(trace.errors)
        assert "another process" not in energy.reason
    else:
        assert found.sampling.failed == 1
        assert energy.gross_j is None
        assert energy.reason == f"another process used the board (see nvidia-smi): {said}"
        assert [e for e in trace.errors if e] == [energy.reason]


def test_the_reading_after_a_pause_is_thrown_away() -> None:
    """RAPL's first one after minutes has no value, since the counter may have gone round meanwhile."""

    class Paused(Ticking):
        calls = 0

        def read(self) -> tuple[dict[str, float], str]:
            self.calls += 1
            return ({}, "energy_j: not read for 99 s") if self.calls == 1 else super().read()

    found = record(HostMeter(Paused()))
    assert not any(found.trace.errors)
    assert np.isfinite(found.trace.values["power_instant_w"]).all()
    assert found.sampling.failed == 0


def test_a_device_without_sensor_has_no_meter(tmp_path: Path) -> None:
    device = fake_device.FakeDevice().describe()
    found = find_meter(device.model_copy(update={"kind": "cuda"}))
    assert isinstance(found, NoMeter)
    assert "no energy sensor" in found.reason
    assert "NVML" in found.reason


def test_the_cpu_runs_whole_layers_with_marks() -> None:
    torch = pytest.importorskip("torch")
    from bench.measure.devices.cpu import CpuDevice

    calls: list[str] = []

    class Counting(CpuDevice):
        def _bound(self, prepared: Any) -> list[Callable[[], None]]:
            def launch(copy: int) -> Callable[[], None]:
                return lambda: (calls.append(f"{prepared}{copy}"), time.sleep(0.001))[0]

            return [launch(copy) for copy in range(6)]

    assert torch.__version__
    bursts: Sequence[tuple[float, float]] = ((0.12, 0.05), (0.06, 0.0))
    device = Counting()
    device.ready([("a", 1), ("b", 2)], 3, "eager")  # type: ignore[list-item]
    first, second = device.steady(bursts)
    assert calls[:9] == ["a0", "b0", "b1", "a1", "b2", "b3", "a2", "b4", "b5"]
    assert len(calls) == 3 * (first.layers + second.layers)
    assert first.layers % 3 == 0
    assert first.ended_s - first.began_s >= 0.12
    assert len(first.marks) >= 3
    assert second.began_s >= first.ended_s + 0.05


def test_a_recorded_trace_gives_the_same_joules_without_the_run(tmp_path: Path) -> None:
    ledger = run(tmp_path / "a.jsonl", plan())
    path = tmp_path / "a.power.parquet"
    assert ledger.sensor is not None
    assert ledger.sensor.info is not None
    save_windows(path, ledger.sensor.info, recorded(ledger, "int4-g128"))
    again = replay(path)
    whole = assemble(ledger)
    assert again.joules is not None
    assert again.joules.rows == whole.energy.rows
    assert again.joules.curves == whole.energy.curves
    assert again.traits == ledger.traits
    info, windows = load_windows(path)
    save_windows(path, info, windows[1:])  # without the square wave
    with pytest.raises(TraceFileError, match="does not say what its windows are of"):
        replay(path)


class Steady50W:
    """A counter of 50 W, updated every millisecond of the host's clock."""

    info = SensorInfo("made up", "the machine", "made up", ("energy_j",))

    def read(self) -> tuple[dict[str, float], str]:
        return {"energy_j": 50 * 1e-3 * (time.monotonic() // 1e-3)}, ""

    def close(self) -> None:
        pass


def test_joules_of_real_kernels_read_by_a_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker's process runs CPU kernels while this one reads a sensor that always says 50 W."""
    monkeypatch.setattr(run_module, "Worker", Worker)
    traits = Traits(
        model="made up", update_s=None, averaging_s={}, counter_update_s=1e-3, lag_s=0.0,
        missing={"update_s": "it only counts"},
    )  # fmt: skip
    monkeypatch.setattr(run_module, "published_traits", lambda model: traits)
    monkeypatch.setattr(run_module, "bursts", lambda: ((0.1, 0.1),) * 3)
    # the kernels of a busy machine may take any time: the sensor is what is tested
    rules = Rules(window_s=0.4, updates=20, idle_s=0.2, settle_s=0.05, trials=2, trial_range=10.0)
    small = (Operator(name="a", n=256, k=512), Operator(name="b", n=512, k=256, count=2))
    asked = plan(
        "cpu", operators=small, batches=(1,), energy=EnergyPlan("default", (1,), rules),
        layers=3,
    )  # fmt: skip
    found = profile(
        tmp_path / "a.jsonl", asked, opener=fake_device.cpu_with_a_small_cache,
        open_meter=lambda device: HostMeter(Steady50W()),
    )  # fmt: skip
    assert {row.kernel.arm for row in found.energy.rows} >= {"fused", "bypass", "unfused"}
    assert "too few" not in found.energy.characterised_reason
    for row in found.energy.rows:
        assert row.power_w.value == pytest.approx(50, rel=0.01), row
        net = row.net_j  # idle draws as much
        assert net.value is None or net.low <= 0 <= net.high  # type: ignore[operator]
        assert row.energy_j.value == pytest.approx(50 * row.layer_s.value, rel=0.01)  # type: ignore[operator]
        assert row.token_j.value == pytest.approx(3 * row.energy_j.value)  # type: ignore[operator]
    cost = found.energy.sampling
    assert cost is not None
    assert cost.failed == 0
    assert cost.cpu_share is not None
    assert 0 < cost.cpu_share < 0.2


class FakeEvent:
    """Of a device that takes 1 ms for each cycle that was queued before it."""

    clock_s = 0.0  # the host's
    busy_until_s = 0.0  # the device's

    def __init__(self, **options: bool) -> None:
        self.at_s = 0.0

    def record(self) -> None:
        self.at_s = FakeEvent.busy_until_s

    def synchronize(self) -> None:
        FakeEvent.clock_s = max(FakeEvent.clock_s, self.at_s)


@pytest.mark.parametrize("mode", ["graph", "eager"])
def test_a_gpu_always_has_the_next_chunk_queued(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop of the CUDA device, with its driver replaced."""
    from bench.measure.devices import cuda

    FakeEvent.clock_s = FakeEvent.busy_until_s = 5.0
    idle_s: list[float] = []
    ran: list[str] = []

    def cycle(launches: Sequence[Callable[[], None]]) -> None:
        idle_s.append(max(0.0, FakeEvent.clock_s - FakeEvent.busy_until_s))
        begin_s = max(FakeEvent.clock_s, FakeEvent.busy_until_s)
        FakeEvent.busy_until_s = begin_s + 1e-3
        for launch in launches:
            launch()

    class Graph:
        def __init__(self, launches: Sequence[Callable[[], None]]) -> None:
            self.replay = lambda: cycle(launches)

    monkeypatch.setattr(cuda, "_capture", Graph)
    monkeypatch.setattr(cuda, "_launch", cycle)
    monkeypatch.setattr(cuda.torch.cuda, "Event", FakeEvent)
    monkeypatch.setattr(cuda.time, "monotonic", lambda: FakeEvent.clock_s)
    device = cuda.CudaDevice.__new__(cuda.CudaDevice)
    monkeypatch.setattr(device, "_time", lambda work: 1e-3)
    monkeypatch.setattr(
        device, "_bound", lambda p: [lambda i=i: ran.append(f"{p}{i}") for i in range(4)]
    )
    device.ready([("a", 1), ("b", 2)], 2, mode)  # type: ignore[list-item, arg-type]
    ran.clear()
    idle_s.clear()
    FakeEvent.clock_s = FakeEvent.busy_until_s  # what made it ready is over
    (load,) = device.steady(((0.5, 0.0),))
    assert ran[:6] == ["a0", "b0", "b1", "a1", "b2", "b3"]
    assert load.layers == 2 * len(idle_s)  # every cycle is two layers
    assert sum(idle_s) == 0
    assert load.layer_s == pytest.approx(0.5e-3)
    assert 0.5 <= load.ended_s - load.began_s <= 0.6  # a chunk of 50 ms is still queued then
    assert len(load.marks) == 1 + round((load.ended_s - load.began_s) / 0.05)
    (short,) = device.steady(((0.06, 0.0),))
    assert 0.06 <= short.ended_s - short.began_s <= 0.09  # chunks of 15 ms

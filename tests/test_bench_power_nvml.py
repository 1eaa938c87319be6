"""NVML as a sensor, through the real binding and a stub of the library: right values, or a reason."""

from __future__ import annotations

import contextlib
import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pynvml
import pytest
from nvml_stub import (
    DRIVER_NOT_LOADED,
    FIRST,
    FIRST_PCI,
    FUNCTION_NOT_FOUND,
    GPU_IS_LOST,
    NO_PERMISSION,
    NOT_SUPPORTED,
    SECOND,
    SECOND_PCI,
    UNINITIALIZED,
    VERSION_MISMATCH,
    board,
    build,
    loaded,
)

from bench.measure.power import HostClock, SensorError, poll
from bench.measure.power.boards import uuid_hash
from bench.measure.power.discover import absence, find_sensor
from bench.measure.power.look import look
from bench.measure.power.nvml import NvmlSensor
from profiles.schema import DeviceInfo

POWERS = ("energy_j", "power_instant_w", "power_average_w")
Stub = Callable[..., None]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("nvml"))


@pytest.fixture
def stub(library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stub]:
    """Says what boards there are: lists of lines, of which the library reads one script at its start."""
    script = tmp_path / "boards"
    monkeypatch.setenv("NVML_STUB", str(script))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr("bench.measure.power.channels.ZERO_WAIT_S", 0.02)

    def write(*parts: list[str]) -> None:
        with contextlib.suppress(pynvml.NVMLError):
            while True:  # sensors that the test left open: a script is read when NVML starts
                pynvml.nvmlShutdown()
        script.write_text("\n".join(line for part in parts for line in part) + "\n")

    with loaded(library):
        yield write
        write([])


def gpu(uuid_hash: str | None) -> DeviceInfo:
    return DeviceInfo(
        name="NVIDIA H100 PCIe", kind="cuda", uuid_hash=uuid_hash, cores=114, memory_bytes=1,
        last_level_cache_bytes=1, capability="9.0",
        missing={} if uuid_hash else {"uuid_hash": "unknown"},
    )  # fmt: skip


def refusal(which: str = FIRST) -> str:
    with pytest.raises(SensorError) as caught:
        NvmlSensor.open(which)
    return str(caught.value)


def readings(sensor: NvmlSensor, count: int = 3) -> dict[str, float]:
    """What several readings say; slow channels come in turn."""
    values: dict[str, float] = {}
    for _ in range(count):
        found, error = sensor.read()
        assert error == ""
        values |= found
    sensor.close()
    return values


HEALTHY = [
    f"board {FIRST} {FIRST_PCI} NVIDIA H100 PCIe", "capability 9 0", "power 0 300",
    "counter 0.1 5000", "clocks 1410 1593", "temperature 61", "reasons 4", "limit 310 350",
    "ecc 1", "persistence 1", "virtualization 1",
]  # fmt: skip


def test_values_are_in_the_units_of_their_channels(stub: Stub) -> None:
    stub(HEALTHY, ["counter 1000 5000"])  # a counter that stands while this test runs
    assert readings(NvmlSensor.open(FIRST)) == {
        "energy_j": 5000.0,
        "power_instant_w": 300.0,
        "power_average_w": 300.0,
        "sm_clock_mhz": 1410.0,
        "memory_clock_mhz": 1593.0,
        "temperature_c": 61.0,
        "event_reasons": 4.0,
    }


def test_facts_are_recorded(stub: Stub) -> None:
    stub(["driver 580.65.06", "nvml 13.580.65.06"], HEALTHY)
    info = NvmlSensor.open(FIRST).info
    assert (info.name, info.scope, info.model) == ("NVML", "the whole board", "NVIDIA H100 PCIe")
    assert info.missing == {}
    assert info.facts == {
        "driver": "580.65.06",
        "nvml": "13.580.65.06",
        "uuid_hash": hashlib.sha256(FIRST.removeprefix("GPU-").encode()).hexdigest()[:16],
        "pci": FIRST_PCI,
        "architecture": "Hopper",
        "capability": "9.0",
        "power_limit_w": 310.0,
        "power_limit_default_w": 350.0,
        "persistence_mode": True,
        "ecc_mode": True,
        "mig_mode": False,
        "virtualization": "passthrough",
        "compute_mode": "default",
        "other_processes": 0,
        "unknown_processes": 0,
        "graphics_processes": None,  # the stub is older than that function
    }


def test_what_nvml_does_not_say_is_an_unknown_fact(stub: Stub) -> None:
    functions = ("EccMode", "MigMode", "VirtualizationMode", "PersistenceMode", "ComputeMode",
                 "Architecture", "PowerManagementLimit", "ComputeRunningProcesses")  # fmt: skip
    stub(HEALTHY, [f"fault nvmlDeviceGet{name} {NOT_SUPPORTED}" for name in functions])
    facts = NvmlSensor.open(FIRST).info.facts
    unknown = {name for name, value in facts.items() if value is None}
    assert unknown == {
        "ecc_mode", "mig_mode", "virtualization", "persistence_mode", "compute_mode",
        "architecture", "power_limit_w", "other_processes", "unknown_processes",
        "graphics_processes",
    }  # fmt: skip


def test_a_step_of_power_is_seen_by_each_sensor_as_it_sees(stub: Stub) -> None:
    """100 W, then 400 W: instant power rises within its update, the 1-s average on a slope; the
    counter holds the integral. The truth is computed here, not by the stub."""
    start_s = time.monotonic() - 0.95
    stub([f"start {start_s!r}"], board(watts=100), ["power 1.0 400", "ripple 0"])
    sensor = NvmlSensor.open(FIRST)
    clock = HostClock()
    trace, _ = poll(sensor, clock, lambda: clock.now_s() > start_s + 1.75, 0.01)
    sensor.close()
    ticks = [int((t - start_s) / 0.1 + 1e-6) for t in trace.time_s]
    clear = [i for i, t in enumerate(trace.time_s) if 0.02 < (t - start_s) % 0.1 < 0.08]
    assert len(clear) > 20
    for i in clear:
        tick = ticks[i]
        assert trace.values["power_instant_w"][i] == pytest.approx(
            400 if tick > 10 else 100, abs=0.01
        )
        average = 100 + 30 * max(0, tick - 10)
        assert trace.values["power_average_w"][i] == pytest.approx(average, abs=0.01)
        counted = 1000 + 10 * tick + 30 * max(0, tick - 10)
        assert trace.values["energy_j"][i] == pytest.approx(counted, abs=0.01)


# Which board


@pytest.mark.parametrize("order", [None, "0,1", "1,0", "1", SECOND])
@pytest.mark.parametrize("prefix", ["GPU-", ""])
def test_the_board_is_found_by_the_hash_of_its_uuid(
    stub: Stub, monkeypatch: pytest.MonkeyPatch, order: str | None, prefix: str
) -> None:
    """Whatever CUDA calls it: torch writes the UUID without "GPU-", other tools with it."""
    stub(board(FIRST, FIRST_PCI, watts=100), board(SECOND, SECOND_PCI, watts=400))
    if order is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", order)
    for uuid, watts in ((FIRST, 100), (SECOND, 400)):
        known_as = uuid.replace("GPU-", prefix)
        sensor, found = find_sensor(gpu(hashlib.sha256(known_as.encode()).hexdigest()[:16]))
        assert isinstance(sensor, NvmlSensor)
        assert all(f.usable for f in found)
        assert readings(sensor)["power_instant_w"] == pytest.approx(watts, abs=2)


@pytest.mark.parametrize(
    "which",
    [SECOND, SECOND.lower(), SECOND.removeprefix("GPU-").upper(), SECOND_PCI, "0000:ca:00.0",
     "CA:00.0", "1"],
)  # fmt: skip
def test_a_board_can_be_named_in_other_ways(stub: Stub, which: str) -> None:
    stub(board(FIRST, FIRST_PCI, watts=100), board(SECOND, SECOND_PCI, watts=400))
    assert readings(NvmlSensor.open(which))["power_instant_w"] == pytest.approx(400, abs=2)


def test_a_number_is_refused_where_cuda_may_number_otherwise(
    stub: Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub(board(FIRST, FIRST_PCI), board(SECOND, SECOND_PCI))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,0")
    assert "give a UUID or a PCI id" in refusal("0")


def test_the_hash_is_that_of_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the measured device says of itself is what boards are looked up by."""
    import torch

    from bench.measure.devices.cuda import CudaDevice

    properties = SimpleNamespace(
        name="NVIDIA H100 PCIe", uuid=SECOND.removeprefix("GPU-"), multi_processor_count=114,
        L2_cache_size=50 << 20, total_memory=80 << 30, major=9, minor=0,
    )  # fmt: skip
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
    assert CudaDevice().describe().uuid_hash == uuid_hash(SECOND.removeprefix("GPU-"))


@pytest.mark.parametrize("which", ["0123456789abcdef", "GPU-0", "5", "0000:99:00.0", ""])
def test_a_board_that_is_not_there_is_not_replaced_by_another(stub: Stub, which: str) -> None:
    stub(board(FIRST, FIRST_PCI), board(SECOND, SECOND_PCI))
    assert "NVML lists 2 GPUs, and none is" in refusal(which)


def test_a_device_without_uuid_has_no_sensor(stub: Stub) -> None:
    stub(board())
    sensor, found = find_sensor(gpu(None))
    assert sensor is None
    assert "does not say its UUID" in absence(found)


# Refusals

WHOLE = {
    "no driver": (["fault nvmlInit 9"], "no NVIDIA driver is loaded"),
    "no permission": ([f"fault nvmlInit {NO_PERMISSION}"], "permission denied by the driver"),
    "mismatch": ([f"fault nvmlInit {VERSION_MISMATCH}"], "different versions"),
    "odd error": (["fault nvmlInit 77"], "NVML error 77: an error of the stub"),
    "no board": ([], "NVML lists no GPU"),
    "count fails": (["fault nvmlDeviceGetCount_v2 999", *board()], "an unknown error"),
    "not ours": (
        [*board(), f"fault nvmlDeviceGetHandleByIndex_v2 {NO_PERMISSION}"],
        "permission denied by the driver",
    ),
    "lost before": (
        [*board(), f"fault nvmlDeviceGetHandleByIndex_v2 {GPU_IS_LOST}"],
        "the GPU is lost",
    ),
    "MIG": ([*board(), "mig 1"], "MIG is on at NVIDIA H100 PCIe: the power is the whole board's"),
    "virtual GPU": ([*board(), "virtualization 2"], "is a virtual GPU"),
    "host of virtual GPUs": ([*board(), "virtualization 3"], "serves virtual machines"),
}


@pytest.mark.parametrize(("script", "reason"), WHOLE.values(), ids=WHOLE)
def test_a_board_without_power_of_its_own_is_refused(
    stub: Stub, script: list[str], reason: str
) -> None:
    stub(script)
    assert reason in refusal()
    sensor, found = find_sensor(gpu(uuid_hash(FIRST)))
    assert sensor is None
    assert [f.channels for f in found] == [POWERS]
    assert reason in absence(found)


def test_the_slice_of_a_mig_board_is_said_to_be_one(stub: Stub) -> None:
    mig = "MIG-aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee"
    stub(board(), ["mig 1", f"mig_uuid {mig}"])
    for known_as in (mig, mig.removeprefix("MIG-")):
        assert "MIG is on at NVIDIA H100 PCIe" in refusal(uuid_hash(known_as))


def test_a_board_that_others_use_is_refused_and_our_own_processes_are_not_others(
    stub: Stub,
) -> None:
    nap = [sys.executable, "-c", "import time; time.sleep(60)"]
    detached = f"import os; os.fork() or (os.setsid(), os.execv({nap[0]!r}, {nap!r}))"
    child = subprocess.Popen(nap)
    try:
        stub(board(), [f"process {os.getpid()}", f"process {child.pid}", f"process {os.getppid()}"])
        sensor = NvmlSensor.open(FIRST)
        assert sensor.strangers() == (0, 0)
        sensor.close()
    finally:
        child.kill()
        child.wait()
    other = subprocess.Popen([sys.executable, "-c", detached]).wait()
    assert other == 0
    deadline_s = time.monotonic() + 10
    while not (found := _running(nap)) and time.monotonic() < deadline_s:
        time.sleep(0.01)  # it has been forked, and becomes a sleeper in a moment
    (stranger,) = found
    try:
        stub(board(), [f"process {stranger}"])
        assert "another process uses NVIDIA H100 PCIe" in refusal()
        stub(board(), [f"process {stranger}", "process 4194305"])  # above the kernel's limit
        assert "another process uses" in refusal()
    finally:
        os.kill(stranger, 9)
    stub(board(), ["process 4194305"])
    sensor = NvmlSensor.open(FIRST)
    assert sensor.info.facts["unknown_processes"] == 1
    sensor.close()


def _running(command: list[str]) -> list[int]:
    """Processes of that command line."""
    numbers = (p for p in Path("/proc").iterdir() if p.name.isdecimal())
    return [int(p.name) for p in numbers if _command(p) == command]


def _command(process: Path) -> list[str]:
    try:
        return (process / "cmdline").read_bytes().decode().split("\0")[:-1]
    except OSError:
        return []


# Channels

NO_FIELDS = [f"fault nvmlDeviceGetFieldValues {FUNCTION_NOT_FOUND}"]
USAGE = {
    "GA100": ("8 0", "power_instant_w"),
    "Volta": ("7 0", "power_instant_w"),
    "Turing": ("7 5", "power_instant_w"),
    "GA102": ("8 6", "power_average_w"),
    "Orin": ("8 7", "power_average_w"),
    "Ada": ("8 9", "power_average_w"),
    "Hopper": ("9 0", "power_average_w"),
    "Blackwell": ("12 0", "power_average_w"),
}


@pytest.mark.parametrize(("capability", "channel"), USAGE.values(), ids=USAGE)
def test_power_usage_goes_into_the_channel_that_it_is(
    stub: Stub, capability: str, channel: str
) -> None:
    stub(board(), [f"capability {capability}", *NO_FIELDS])
    info = NvmlSensor.open(FIRST).info
    (other,) = {"power_instant_w", "power_average_w"} - {channel}
    assert channel in info.channels
    assert info.missing == {other: "the driver's library is too old for it"}


def test_power_usage_of_an_unknown_board_goes_nowhere(stub: Stub) -> None:
    stub(board(), NO_FIELDS, [f"fault nvmlDeviceGetCudaComputeCapability {NOT_SUPPORTED}"])
    info = NvmlSensor.open(FIRST).info
    assert not {"power_instant_w", "power_average_w"} & set(info.channels)
    assert "energy_j" in info.channels


def test_an_older_name_serves_where_the_new_one_is_missing(stub: Stub) -> None:
    stub(HEALTHY, [f"fault nvmlDeviceGetCurrentClocksEventReasons {FUNCTION_NOT_FOUND}"])
    assert readings(NvmlSensor.open(FIRST))["event_reasons"] == 4.0


BAD = {
    "not supported": (f"fault field:{{}} {NOT_SUPPORTED}", "not supported by this board and driver"),
    "not permitted": (f"fault field:{{}} {NO_PERMISSION}", "permission denied by the driver"),
    "unknown field": ("fault field:{} 2", "NVML does not know it"),
    "zero for ever": ("value field:{} 0", "it reads 0"),
    "NaN": ("value field:{} nan", "it reads NaN"),
    "sentinel": ("value field:{} 4294967295", "stands for not available"),
    "too much": ("value field:{} 4294967294", "which cannot be"),
}  # fmt: skip
BAD_COUNTER = {name: (line, why) for name, (line, why) in BAD.items() if name != "too much"}


@pytest.mark.parametrize(("line", "reason"), BAD.values(), ids=BAD)
def test_a_field_that_says_nothing_is_no_channel(stub: Stub, line: str, reason: str) -> None:
    stub(board(), [line.format(186)])
    sensor, found = find_sensor(gpu(uuid_hash(FIRST)))
    assert sensor is not None
    (missing,) = [f for f in found if not f.usable]
    assert missing.channels == ("power_instant_w",)
    assert reason in missing.reason
    assert "power_instant_w" not in sensor.read()[0]
    sensor.close()


@pytest.mark.parametrize(("line", "reason"), BAD_COUNTER.values(), ids=BAD_COUNTER)
def test_a_counter_that_says_nothing_in_either_way_is_no_channel(
    stub: Stub, line: str, reason: str
) -> None:
    function = line.replace("field:{}", "nvmlDeviceGetTotalEnergyConsumption")
    stub(board(), [line.format(83), function.replace("nan", "0")])
    info = NvmlSensor.open(FIRST).info
    assert "energy_j" not in info.channels
    assert reason in info.missing["energy_j"]


def test_a_counter_without_field_is_called(stub: Stub) -> None:
    stub(HEALTHY, ["counter 1000 5000", f"fault field:83 {NOT_SUPPORTED}"])
    assert readings(NvmlSensor.open(FIRST))["energy_j"] == 5000.0


def test_a_sensor_that_starts_with_zero_is_given_time(stub: Stub) -> None:
    stub(board(), ["value field:186 0 0 0.03"])
    assert "power_instant_w" in NvmlSensor.open(FIRST).info.channels


def test_a_board_without_joules_and_watts_has_no_sensor(stub: Stub) -> None:
    stub(board(), [*NO_FIELDS, f"fault nvmlDeviceGetPowerUsage {NOT_SUPPORTED}",
                   f"fault nvmlDeviceGetTotalEnergyConsumption {NOT_SUPPORTED}"])  # fmt: skip
    sensor, found = find_sensor(gpu(uuid_hash(FIRST)))
    assert sensor is None
    assert {f.channels for f in found} == {(c,) for c in POWERS}
    assert absence(found) == "no energy sensor: NVML: the driver's library is too old for it"


# Readings that go wrong later

LATER = {
    "zero": ("value field:186 0 0", "power_instant_w: it reads 0"),
    "NaN": ("value field:186 nan 0", "power_instant_w: it reads NaN"),
    "sentinel": ("value field:186 4294967295 0", "power_instant_w: it reads 4294967295"),
    "not permitted": ("fault field:186 4 0", "power_instant_w: permission denied by the driver"),
    "clock": ("value nvmlDeviceGetCurrentClocksEventReasons 1e19 0", "event_reasons: it reads"),
    "timeout": (
        "fault nvmlDeviceGetFieldValues 10 0",
        "energy_j, power_instant_w, power_average_w: the driver did not answer in time",
    ),
}


def later(stub: Stub, line: str) -> NvmlSensor:
    """A sensor that was opened in good health, half a second before the fault of the line."""
    start_s = time.monotonic() + 0.25
    stub([f"start {start_s!r}"], board(), [line])
    sensor = NvmlSensor.open(FIRST)
    assert set(POWERS) <= set(sensor.info.channels)
    assert time.monotonic() < start_s
    time.sleep(start_s - time.monotonic() + 0.001)
    return sensor


@pytest.mark.parametrize(("line", "error"), LATER.values(), ids=LATER)
def test_a_channel_that_fails_later_is_left_out_with_a_word(
    stub: Stub, line: str, error: str
) -> None:
    sensor = later(stub, line)
    values, found = sensor.read()
    assert found.startswith(error)
    assert set(values) & set(POWERS) == {c for c in POWERS if c not in found}
    sensor.close()


GONE = {
    "lost": (f"fault * {GPU_IS_LOST} 0", "the GPU is lost: it has fallen off the bus"),
    "field lost": (f"fault field:83 {GPU_IS_LOST} 0", "the GPU is lost"),
    "driver reloaded": (f"fault * {UNINITIALIZED} 0", "after a reload of the driver"),
    "driver unloaded": (f"fault * {DRIVER_NOT_LOADED} 0", "no NVIDIA driver is loaded"),
    "bad handle": ("fault * 2 0", "NVML does not know it"),
}


@pytest.mark.parametrize(("line", "reason"), GONE.values(), ids=GONE)
def test_a_board_that_is_gone_ends_the_sensor(stub: Stub, line: str, reason: str) -> None:
    sensor = later(stub, line)
    with pytest.raises(SensorError, match=reason):
        sensor.read()
    sensor.close()
    sensor.close()
    with pytest.raises(SensorError, match="closed"):
        sensor.read()


def test_another_who_shuts_nvml_down_ends_the_sensor(stub: Stub) -> None:
    stub(board())
    sensor = NvmlSensor.open(FIRST)
    pynvml.nvmlShutdown()
    with pytest.raises(SensorError, match="not initialized any more"):
        sensor.read()
    sensor.close()


def test_throttling_shows_in_the_very_reading(stub: Stub) -> None:
    sensor = later(stub, "value nvmlDeviceGetCurrentClocksEventReasons 32 0 0.06")
    assert sensor.read()[0]["event_reasons"] == 32.0
    time.sleep(0.07)
    assert sensor.read()[0]["event_reasons"] == 0.0
    sensor.close()


# What a look shows


def test_a_look_finds_cost_and_periods(stub: Stub) -> None:
    stub(board(), ["sensor 0.02 0.01", "delay nvmlDeviceGetTemperature 0.004"])
    sensor = NvmlSensor.open(FIRST)
    seen = look(sensor, HostClock(), 1.0)
    assert seen.update_s["power_instant_w"] == pytest.approx(0.02, abs=0.004)
    assert seen.update_s["energy_j"] == pytest.approx(0.1, abs=0.01)
    assert 0.004 <= seen.channel_s["temperature_c"] < 0.02
    assert seen.channel_s["sm_clock_mhz"] < 0.002
    assert seen.alive == POWERS
    assert (seen.errors, seen.gone) == ((), "")
    sensor.close()


def test_a_look_sees_what_stands_still(stub: Stub) -> None:
    stub(board(), ["freeze 0"])
    sensor = NvmlSensor.open(FIRST)
    seen = look(sensor, HostClock(), 0.4)
    assert seen.alive == ()
    assert seen.update_s == {}
    sensor.close()

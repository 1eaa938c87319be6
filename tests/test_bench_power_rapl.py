"""RAPL on a made-up /sys: joules since opening, whatever the counters do, or a reason."""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bench.measure.power import SensorError
from bench.measure.power.discover import absence, find_sensor
from bench.measure.power.rapl import RaplSensor
from profiles.schema import DeviceInfo

RANGE_UJ = 262_143_328_850  # of a real machine
CPU = DeviceInfo(
    name="Intel Xeon", kind="cpu", uuid_hash="0" * 16, cores=8, last_level_cache_bytes=1,
    memory_bytes=1, capability="avx2",
)  # fmt: skip


class Machine:
    """A folder with powercap files, and a clock."""

    def __init__(self, root: Path) -> None:
        self.root, self.at_s = root, 1000.0
        self.folder = root / "sys/class/powercap"

    def now_s(self) -> float:
        return self.at_s

    def zone(self, zone: str, name: str, uj: int, range_uj: int | None = RANGE_UJ) -> None:
        folder = self.folder / zone
        folder.mkdir(parents=True)
        (folder / "name").write_text(f"{name}\n")
        if range_uj is not None:
            (folder / "max_energy_range_uj").write_text(f"{range_uj}\n")
        self.set(zone, uj)

    def set(self, zone: str, uj: int | str) -> None:
        """In one step, as the kernel does."""
        path = self.folder / zone / "energy_uj"
        new = path.with_name(".new")
        new.write_text(f"{uj}\n")
        new.replace(path)

    @contextmanager
    def counting(self, **zones: int) -> Iterator[None]:
        """Lets counters move on while a sensor is opened, to the value given."""
        timer = threading.Timer(0.05, lambda: [self.set(_zone(z), uj) for z, uj in zones.items()])
        timer.start()
        yield
        timer.join()

    def open(self) -> RaplSensor:
        return RaplSensor.open("Intel Xeon", self.root, self.now_s)


def _zone(key: str) -> str:
    return "intel-rapl" + key.replace("_", ":")


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


@pytest.fixture
def two(machine: Machine) -> Machine:
    """Two packages, of which the first has cores and memory; and the platform."""
    machine.zone("intel-rapl:0", "package-0", 1_000_000)
    machine.zone("intel-rapl:0:0", "core", 500_000)
    machine.zone("intel-rapl:0:1", "dram", 200_000)
    machine.zone("intel-rapl:1", "package-1", 7_000_000)
    machine.zone("intel-rapl:2", "psys", 9_000_000)
    machine.zone("intel-rapl-mmio:0", "package-0", 1_000_000)  # the same package again
    (machine.folder / "intel-rapl").mkdir()
    return machine


def opened(two: Machine) -> RaplSensor:
    with two.counting(_0=1_000_001, _0_1=200_001, _1=7_000_001):
        sensor = two.open()
    two.set("intel-rapl:0", 1_000_000)
    two.set("intel-rapl:0:1", 200_000)
    two.set("intel-rapl:1", 7_000_000)
    return sensor


def test_packages_and_memory_are_summed_and_their_parts_are_not(two: Machine) -> None:
    sensor = opened(two)
    assert sensor.info.scope == "CPU packages and their memory"
    assert sensor.info.channels == ("energy_j",)
    assert sensor.info.facts == {
        "packages": 2,
        "memory_domains": 1,
        "domains": "package-0, dram of package-0, package-1",
        "counter_range_j": RANGE_UJ / 1e6,
    }
    two.set("intel-rapl:0", 3_500_000)  # 2.5 J
    two.set("intel-rapl:0:0", 99_000_000)
    two.set("intel-rapl:0:1", 450_000)  # 0.25 J
    two.set("intel-rapl:1", 7_125_000)  # 0.125 J
    two.set("intel-rapl:2", 99_000_000)
    two.set("intel-rapl-mmio:0", 99_000_000)
    two.at_s += 0.1
    assert sensor.read() == ({"energy_j": 2.875}, "")


def test_an_amd_machine_has_packages_alone(machine: Machine) -> None:
    machine.zone("intel-rapl:0", "package-0", 5)
    machine.zone("intel-rapl:0:0", "core", 5)
    with machine.counting(_0=6):
        sensor = machine.open()
    assert sensor.info.scope == "CPU packages"
    assert sensor.info.facts["memory_domains"] == 0
    assert set(sensor.info.missing) == {"power_instant_w", "power_average_w"}


def test_a_counter_that_goes_round_counts_on(machine: Machine) -> None:
    """20 W for 100 s: the counter goes round twice, the joules never fall."""
    range_uj = 1_000_000_000
    start_uj = 990_000_000
    machine.zone("intel-rapl:0", "package-0", start_uj, range_uj)
    with machine.counting(_0=start_uj + 1):
        sensor = machine.open()
    before, rounds = 0.0, 0
    for i in range(1, 1001):
        machine.at_s = 1000.0 + i * 0.1
        machine.set("intel-rapl:0", (start_uj + i * 2_000_000) % range_uj)
        values, error = sensor.read()
        assert error == ""
        assert values["energy_j"] == pytest.approx(i * 2.0, abs=1e-9)
        assert values["energy_j"] > before
        before = values["energy_j"]
        rounds += (start_uj + i * 2_000_000) % range_uj < 2_000_000
    assert rounds == 2


@pytest.mark.parametrize("range_uj", [RANGE_UJ, None])
def test_a_counter_that_was_reset_ends_the_sensor(machine: Machine, range_uj: int | None) -> None:
    """Taken as a round it would be 262 kJ in a tenth of a second."""
    machine.zone("intel-rapl:0", "package-0", 100_000_000, range_uj)
    with machine.counting(_0=100_000_001):
        sensor = machine.open()
    machine.at_s += 0.1
    machine.set("intel-rapl:0", 50)
    with pytest.raises(SensorError, match=r"package-0 fell from 100 to 5e-05 J: it was reset"):
        sensor.read()


def test_a_pause_in_which_it_may_have_gone_round_has_no_joules(machine: Machine) -> None:
    machine.zone("intel-rapl:0", "package-0", 1_000_000)
    with machine.counting(_0=1_000_001):
        sensor = machine.open()
    machine.at_s += 53.0  # 262 kJ at 5 kW are 52 s
    machine.set("intel-rapl:0", 900_000)
    values, error = sensor.read()
    assert values == {}
    assert "not read for 53 s" in error
    machine.at_s += 1.0
    machine.set("intel-rapl:0", 1_900_000)
    assert sensor.read() == ({"energy_j": 1.0}, "")


def reason(machine: Machine) -> str:
    with pytest.raises(SensorError) as caught:
        machine.open()
    return str(caught.value)


def test_no_powercap_is_said(machine: Machine) -> None:
    assert "no RAPL counters in /sys/class/powercap" in reason(machine)
    machine.folder.mkdir(parents=True)
    assert "no RAPL counters in /sys/class/powercap" in reason(machine)
    sensor, found = find_sensor(CPU, machine.root)
    assert sensor is None
    assert "no energy sensor: RAPL: no RAPL counters" in absence(found)


def test_zero_means_absent(machine: Machine) -> None:
    machine.zone("intel-rapl:0", "package-0", 0)
    assert reason(machine) == ("the counter of package-0 reads 0 for ever, as behind a hypervisor")


def test_a_counter_that_stands_still_is_none(two: Machine) -> None:
    with two.counting(_0=1_000_001, _0_1=200_001):
        assert reason(two) == "the counter of package-1 stands still"


def test_a_missing_permission_comes_with_its_remedy(
    two: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As for anyone but root; root may read everything, so reading is made to fail."""
    read = Path.read_bytes

    def refuse(path: Path) -> bytes:
        if path.name == "energy_uj" and "intel-rapl:1" in str(path):
            raise PermissionError(13, "Permission denied")
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", refuse)
    assert reason(two) == (
        "permission denied for the RAPL counters; as root: "
        "chmod a+r /sys/class/powercap/intel-rapl:*/energy_uj (until the next start)"
    )


def test_a_missing_permission_is_seen_in_the_files() -> None:
    """As the kernel has them since 2020, seen by someone who is not root."""
    with tempfile.TemporaryDirectory() as folder:
        machine = Machine(Path(folder))
        machine.zone("intel-rapl:0", "package-0", 5)
        Path(folder).chmod(0o755)
        (machine.folder / "intel-rapl:0/energy_uj").chmod(0o400 if os.geteuid() == 0 else 0)
        with nobody():
            assert "permission denied for the RAPL counters; as root: chmod" in reason(machine)


@contextmanager
def nobody() -> Iterator[None]:
    """Root has to become someone else to be refused anything."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


BROKEN: dict[str, tuple[Callable[[Machine], object], str]] = {
    "text": (lambda m: m.set("intel-rapl:0", "x"), "intel-rapl:0/energy_uj does not hold a number"),
    "gone": (
        lambda m: (m.folder / "intel-rapl:0/energy_uj").unlink(),
        "intel-rapl:0/energy_uj cannot be read: No such file or directory",
    ),
}


@pytest.mark.parametrize(("harm", "expected"), BROKEN.values(), ids=BROKEN)
def test_a_broken_counter_is_a_reason_before_and_during(
    two: Machine, harm: Callable[[Machine], object], expected: str
) -> None:
    sensor = opened(two)
    harm(two)
    with pytest.raises(SensorError, match=expected):
        sensor.read()
    assert reason(two) == expected


def test_a_machine_with_only_a_platform_counter_has_no_package(machine: Machine) -> None:
    machine.zone("intel-rapl:0", "psys", 5)
    assert reason(machine) == "none of the RAPL counters is a package's"


def test_a_closed_sensor_says_so(two: Machine) -> None:
    sensor = opened(two)
    sensor.close()
    sensor.close()
    with pytest.raises(SensorError, match="closed"):
        sensor.read()


def test_a_cpu_is_found_by_its_counters(two: Machine) -> None:
    with two.counting(_0=1_000_001, _0_1=200_001, _1=7_000_001):
        sensor, found = find_sensor(CPU, two.root)
    assert sensor is not None
    assert sensor.info.model == "Intel Xeon"
    assert [(f.channels, f.reason) for f in found] == [
        (("energy_j",), ""),
        (("power_instant_w",), "RAPL counts joules only"),
        (("power_average_w",), "RAPL counts joules only"),
    ]
    assert find_sensor(CPU.model_copy(update={"kind": "simulated"})) == (None, ())

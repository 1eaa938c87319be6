"""Joules of CPU packages from the counters of Intel and AMD processors, through the kernel's powercap files.

    /sys/class/powercap/intel-rapl:0/    name package-0   energy_uj   max_energy_range_uj
    /sys/class/powercap/intel-rapl:0:0/  name core        part of the package: not counted again
    /sys/class/powercap/intel-rapl:0:1/  name dram        not part of the package: added, and said so

A counter goes round at max_energy_range_uj, after minutes; that is undone here, so that energy_j never falls. A
fall that cannot be a round (it would mean more watts than any package draws) is a counter that was reset, and
the sensor ends there. Inside virtual machines the files may exist and hold zeros: zero means absent.
https://docs.kernel.org/power/powercap/powercap.html
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bench.measure.power import SensorError, SensorInfo

ROOT = Path("/")
FOLDER = Path("sys/class/powercap")
MOST_W = 5000.0  # of one domain; what is more than any package or its memory draws
STANDS_STILL_CALLS, STANDS_STILL_WAIT_S = 100, 0.005  # counters are renewed every millisecond
REMEDY = "as root: chmod a+r /sys/class/powercap/intel-rapl:*/energy_uj (until the next start)"


@dataclass
class _Domain:
    """One counter: where it is, what it said last, and how far it has counted.

    Attributes:
        name: of the kernel, with its package for memory: "package-0", "dram of package-0".
        path: its folder.
        range_uj: where it goes round; None where the kernel does not say.
        last_uj: the last reading.
        counted_uj: since the sensor was opened.
    """

    name: str
    path: Path
    range_uj: int | None
    last_uj: int
    counted_uj: int = 0

    def advance(self, elapsed_s: float) -> None:
        """Reads the counter and adds what has been counted since.

        Raises:
            SensorError: it cannot be read, or was reset.
        """
        now_uj = _count(self.path)
        step_uj = now_uj - self.last_uj
        if step_uj < 0:
            step_uj += self.range_uj or 0
            if not 0 <= step_uj <= 1e6 * MOST_W * max(elapsed_s, 0.001):
                raise SensorError(
                    f"the counter of {self.name} fell from {self.last_uj / 1e6:g} to "
                    f"{now_uj / 1e6:g} J: it was reset"
                )
        self.last_uj = now_uj
        self.counted_uj += step_uj


class RaplSensor:
    """The packages of this machine. Made by `open`."""

    def __init__(self, domains: list[_Domain], model: str, now_s: Callable[[], float]) -> None:
        self._domains, self._now_s, self._open = domains, now_s, True
        self._read_s = now_s()
        ranges_j = [d.range_uj / 1e6 for d in domains if d.range_uj]
        self._round_s = min(ranges_j) / MOST_W if len(ranges_j) == len(domains) else 0.0
        memory = [d.name for d in domains if d.name.startswith("dram")]
        self._info = SensorInfo(
            name="RAPL",
            scope="CPU packages and their memory" if memory else "CPU packages",
            model=model,
            channels=("energy_j",),
            missing=dict.fromkeys(
                ("power_instant_w", "power_average_w"), "RAPL counts joules only"
            ),
            facts={
                "packages": len(domains) - len(memory),
                "memory_domains": len(memory),
                "domains": ", ".join(d.name for d in domains),
                "counter_range_j": min(ranges_j) if ranges_j else None,
            },
        )

    @classmethod
    def open(
        cls, model: str = "", root: Path = ROOT, now_s: Callable[[], float] = time.monotonic
    ) -> RaplSensor:
        """The counters of all packages, when every one of them can be read and counts.

        Args:
            model: the processor's name, whose published traits apply.
            root: where sys is found; another folder in tests.
            now_s: a clock; another one in tests.

        Raises:
            SensorError: there are none, or reading one is not permitted, or they stand still.
        """
        folder = root / FOLDER
        zones = sorted(folder.glob("intel-rapl:*")) if folder.is_dir() else []
        if not zones:
            raise SensorError(
                "no RAPL counters in /sys/class/powercap: no such processor, no kernel module "
                "intel_rapl_msr, or hidden by a hypervisor"
            )
        domains = [domain for zone in zones if (domain := _domain(zone)) is not None]
        if not any(d.name.startswith("package") for d in domains):
            raise SensorError("none of the RAPL counters is a package's")
        _must_count(domains)
        return cls(domains, model, now_s)

    @property
    def info(self) -> SensorInfo:
        """See the protocol."""
        return self._info

    def read(self) -> tuple[dict[str, float], str]:
        """See the protocol; joules since the sensor was opened.

        After a pause in which a counter may have gone round more than once, what it counted meanwhile is not
        known: that reading has no value, and the next go on from there.
        """
        if not self._open:
            raise SensorError("the sensor has been closed")
        now_s = self._now_s()
        elapsed_s, self._read_s = now_s - self._read_s, now_s
        if self._round_s and elapsed_s > self._round_s:
            for domain in self._domains:
                domain.last_uj = _count(domain.path)
            return {}, f"energy_j: not read for {elapsed_s:.0f} s, in which it may have gone round"
        for domain in self._domains:
            domain.advance(elapsed_s)
        return {"energy_j": sum(d.counted_uj for d in self._domains) / 1e6}, ""

    def read_channel(self, channel: str) -> tuple[dict[str, float], str]:
        """The same, for there is only one channel."""
        if channel != "energy_j":
            raise KeyError(channel)
        return self.read()

    def close(self) -> None:
        """See the protocol."""
        self._open = False


def _domain(zone: Path) -> _Domain | None:
    """The counter of a package, or of the memory beside one; None for the parts of a package.

    Raises:
        SensorError: it cannot be read.
    """
    name = _text(zone / "name")
    if name == "dram":
        package = _text(zone.parent / zone.name.rpartition(":")[0] / "name")
        name = f"dram of {package}" if package else "dram"
    elif not name.startswith("package"):  # core, uncore, and psys: the whole platform
        return None
    limit = _text(zone / "max_energy_range_uj")
    return _Domain(name, zone, int(limit) if limit.isdecimal() else None, _count(zone))


def _must_count(domains: list[_Domain]) -> None:
    """Waits until every counter has moved.

    Raises:
        SensorError: one does not.
    """
    waiting = domains
    for _ in range(STANDS_STILL_CALLS):
        waiting = [d for d in waiting if _count(d.path) == d.last_uj]
        if not waiting:
            return
        time.sleep(STANDS_STILL_WAIT_S)
    zero = all(d.last_uj == 0 for d in waiting)
    why = "reads 0 for ever, as behind a hypervisor" if zero else "stands still"
    raise SensorError(f"the counter of {', '.join(d.name for d in waiting)} {why}")


def _count(zone: Path) -> int:
    """Microjoules, as the file says.

    Raises:
        SensorError: it does not.
    """
    path = zone / "energy_uj"
    try:
        return int(path.read_bytes())
    except PermissionError:
        raise SensorError(f"permission denied for the RAPL counters; {REMEDY}") from None
    except OSError as error:
        raise SensorError(f"{zone.name}/energy_uj cannot be read: {error.strerror}") from None
    except ValueError:
        raise SensorError(f"{zone.name}/energy_uj does not hold a number") from None


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8", errors="replace").strip()
    except OSError:
        return ""

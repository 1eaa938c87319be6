"""`bench.dequant` on a device without hardware, for tests that kill it.

    python resumable.py OPENER SLOWNESS_S [options of bench.dequant]

Each worker writes its number into $WORKERS. With $IN_PROCESS there are none, and it starts in half the time.
"""

from __future__ import annotations

import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import fake_device  # noqa: E402


def opened(opener: str, slowness_s: float, name: str) -> Any:
    with Path(os.environ["WORKERS"]).open("a") as file:
        file.write(f"{os.getpid()}\n")
    device = getattr(fake_device, opener)(name)
    device.slowness_s = slowness_s
    return device


if __name__ == "__main__":
    import typer

    import bench.measure.run
    from bench import dequant

    _, opener, slowness_s, *sys.argv[1:] = sys.argv
    opening = partial(opened, opener, float(slowness_s))
    run = bench.measure.run.Run.__init__

    def patched(self: Any, plan: Any, journal: Any, report: Any, **others: Any) -> None:
        run(self, plan, journal, report, opening, open_meter=fake_device.no_meter, **others)

    if "IN_PROCESS" in os.environ:
        bench.measure.run.Worker = fake_device.InProcess  # type: ignore[misc, assignment]
    bench.measure.run.Run.__init__ = patched  # type: ignore[method-assign, assignment]
    typer.run(dequant.main)

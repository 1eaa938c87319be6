"""A progress bar on stderr: what is being timed, how much is done, and the time left.

It is drawn between blocks only. A bar that refreshes by itself would take a core from the kernels it watches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

if TYPE_CHECKING:
    from bench.measure.run import Progress


@contextmanager
def progress(console: Console) -> Iterator[Callable[[Progress], None]]:
    """Shows reports of a run until the block is left; nothing where there are none."""
    bar = Bar(
        BarColumn(bar_width=20),
        TimeElapsedColumn(),
        TextColumn("{task.fields[left]}"),
        TextColumn("{task.description}"),
        console=console,
        transient=True,
        auto_refresh=False,
    )
    task = bar.add_task("starting", total=1.0, left="")

    def report(state: Progress) -> None:
        bar.start()
        left = ""
        if state.left_s is not None:
            left = f"about {timedelta(seconds=round(state.left_s))} left"
        bar.update(task, completed=state.done, description=state.doing, left=left, refresh=True)

    try:
        yield report
    finally:
        if bar.live.is_started:
            bar.stop()

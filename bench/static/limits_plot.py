"""The picture of R: which boards hide dequantization, and which do not, for which kernels.

Blue cells have pipes to spare, red ones are cast-bound, white is R = 1. Boards are in the order of the
instructions that they can spend on a byte from memory, so that the border between the colours is a line.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bench.static.limits_table import ratios
from bench.static.peers import Peer
from profiles.specs import Gpu

SPAN = 3.0  # powers of two around R = 1 that the colours tell apart


def instructions_per_byte(gpu: Gpu) -> float:
    """Thread-instructions that can be issued while one byte arrives, at the highest clock."""
    if gpu.multiprocessor is None:
        return float("inf")
    lanes = gpu.multiprocessor.issue_lanes.value * gpu.sms.value
    return lanes * gpu.sm_clock_mhz.value * 1e6 / (gpu.memory_gb_per_s.value * 1e9)


def draw(gpus: Sequence[Gpu], peers: Sequence[Peer], batch: int, path: Path) -> None:
    """Writes the picture; its format follows from the name.

    Raises:
        OSError: the file cannot be written.
        ValueError: no picture can be written under such a name.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    gpus = sorted(gpus, key=instructions_per_byte)
    found = ratios(gpus, peers, batch)
    values = np.array(
        [[line[row][1].value or np.nan for _, line in found] for row in range(len(peers))]
    )
    figure, axis = pyplot.subplots(figsize=(3 + 0.75 * len(gpus), 1.8 + 0.42 * len(peers)))
    try:
        axis.set_facecolor("#e6e6e6")
        image = axis.imshow(np.log2(values), cmap="RdBu", vmin=-SPAN, vmax=SPAN, aspect="auto")
        for row, column in np.ndindex(values.shape):
            value = values[row, column]
            text = "–" if np.isnan(value) else f"{value:.{2 if value < 2 else 1}f}"
            color = "white" if abs(np.log2(value)) > 2 else "#111111"
            axis.text(column, row, text, ha="center", va="center", fontsize=8, color=color)
        axis.set_xticks(range(len(gpus)), [gpu.key for gpu in gpus], rotation=40, ha="right")
        names = [f"{peer.cost.name} ({peer.format})" for peer in peers]
        axis.set_yticks(range(len(peers)), names, fontsize=8)
        axis.set_title(f"MODELLED: R, supply over demand, at batch {batch} and 100 % of issue")
        bar = figure.colorbar(image, ax=axis, ticks=range(-int(SPAN), int(SPAN) + 1))
        bar.ax.set_yticklabels([f"{2.0**i:g}" for i in range(-int(SPAN), int(SPAN) + 1)])
        figure.text(
            *(0.01, 0.01),
            "Instructions of machine code against datasheets at the highest clock; below 1 a kernel is "
            "cast-bound. Grey: no such path, or not known. Nothing here was measured.",
            fontsize=7,
            color="#555555",
        )
        figure.tight_layout(rect=(0, 0.03, 1, 1))
        figure.savefig(path, dpi=150, metadata={"Software": None} if path.suffix == ".png" else {})
    finally:
        pyplot.close(figure)

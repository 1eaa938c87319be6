"""The constants of the model that belong to no board, each with its interval and its source.

No optimiser has seen the rows of `bench.validate`. Yet they are not blind: the issue efficiency was read off
two of those rows (GemLite at batch 1 on an A100), and that pipes overlap by a p-norm rather than by their
maximum, and which launch time goes with which source, was decided with the rows in view. The two widths
at the end are what the rows gave.
"""

from __future__ import annotations

from datetime import date

from profiles.specs import Number, Sort

READ_ON = date(2026, 11, 22)


def _number(value: float, low: float, high: float, unit: str, sort: Sort, source: str) -> Number:
    return Number(
        value=value, low=low, high=high, unit=unit, sort=sort, source=source, read_on=READ_ON
    )


ISSUE_EFFICIENCY = _number(
    *(0.65, 0.60, 0.87, "fraction of issue slots", "fitted"),
    "GemLite at batch 1, issue-bound, reaches 60 to 70 % of the issue budget; high: 3.49 of 4 "
    "instructions per clock in a compute-bound kernel, onnxruntime pull request 31350",
)
PIPE_EFFICIENCY = _number(
    *(0.82, 0.65, 0.95, "fraction of a pipe", "assumed"),
    "one pipe is easier to keep busy than all issue slots; the same pull request gives 0.87",
)
TENSOR_EFFICIENCY = _number(
    *(0.75, 0.55, 0.90, "fraction of peak", "assumed"),
    "bf16 GEMM on several boards; small tiles reach less",
)
INT8_RATE = _number(
    *(2.0, 2.0, 2.0, "times the rate at which 16-bit operands are fed", "assumed"),
    "recalled from datasheets: T4 130 over 65 TOPS, A10 250 over 125, A100 624 over 312, H100 1979 over 989",
)
WARP_TENSOR_SHARE = _number(
    *(0.63, 0.40, 1.0, "fraction of the tensor rate", "assumed"),
    "mma.sync on compute capability 9.0 and 10.0, whose rate is that of instructions of four warps or none",
)
OUTSIDE_SHARE = _number(
    *(0.70, 0.40, 1.0, "fraction of the instructions around a loop", "assumed"),
    "what a warp runs of a kernel's prologue and end: some of it belongs to cases that do not occur",
)
DRAM_EFFICIENCY = _number(
    *(0.87, 0.75, 0.93, "fraction of peak", "fitted"),
    "bf16 GEMM on A100, H100, B200, RTX PRO 6000 (0.75 to 0.90), gpt-fast on an A100 (0.83), a read "
    "of an RTX 3090 (0.91); for boards without a value of their own",
)
L2_BYTES_PER_CLOCK = _number(
    *(24, 14, 48, "bytes per clock of a multiprocessor", "assumed"),
    "recalled: some 5.5 TB/s on an H100 are 21 to 24, 5 TB/s on an RTX 4090 are 15; high: 5120 bytes per "
    "clock that NVIDIA says of the A100's cache, over 108 multiprocessors",
)
GRAPH_LAUNCH_S = _number(
    *(2.0e-6, 1.3e-6, 3.0e-6, "s", "assumed"),
    "low: an empty kernel in a graph on an H100 (Hazy Research); the rest is ramp and drain",
)
EAGER_LAUNCH_S = _number(
    *(5.0e-6, 3.0e-6, 6.6e-6, "s", "assumed"),
    "4 to 6 us per launch (pegainfer, RTX 5070 Ti); low: aiconfigurator's constant; high: intercept of "
    "bf16 GEMM times; also used where it is not said how kernels were launched",
)
SERIAL_STEP = _number(
    *(1.5, 1.0, 2.0, "latencies of memory", "assumed"),
    "one step of a reduction through a lock: wait for the flag, read, add, write, set the flag",
)
NORM = _number(
    *(4.0, 2.0, 64.0, "exponent", "assumed"),
    "how well resources overlap: 64 is nearly the largest alone, 2 the root of the sum of squares",
)

CACHE_FACTOR = 2.0  # weights up to this many last-level caches may be read from it when not rotated
SHORTEST_S = 20e-6  # a single operator below this is not modelled: launch and ramp decide

GUARDED_SHARE = (
    0.5  # of a hot path that branches may skip: beyond it, counts are off by a factor of two
)

# Half-width of the 90 % interval, as a natural logarithm of predicted over true time: from the residuals
# of every published source, by batch. `python -m bench.validate` prints them; a test compares.
SMALL_BATCH = 64
WIDTH_SMALL_BATCH = 0.367
WIDTH_LARGE_BATCH = 0.617
# The same of a ratio of two times on one board, from residuals of weight-only over 16-bit kernels at one shape
# and batch: what both have in common (clocks, bandwidth, launches) is not in it.
RATIO_WIDTH_SMALL_BATCH = 0.356
RATIO_WIDTH_LARGE_BATCH = 0.488
CHECKED_BOARDS = ("a10", "a100-80", "l40s", "rtx3090")
UNCHECKED = "no published time of this board was compared: the interval is that of other boards"


def interval_width(batch: int) -> float:
    """Half-width of the 90 % interval of a time, as a logarithm: exp(-w) to exp(w) times the value."""
    return WIDTH_SMALL_BATCH if batch <= SMALL_BATCH else WIDTH_LARGE_BATCH


def ratio_width(batch: int) -> float:
    """Half-width of the 90 % interval of a ratio of two times on one board, as a logarithm."""
    return RATIO_WIDTH_SMALL_BATCH if batch <= SMALL_BATCH else RATIO_WIDTH_LARGE_BATCH

"""R: how many times faster a GPU's pipes can dequantize than its memory delivers weights.

    R(h, kernel, B) = weights/s that the pipes allow / weights/s that memory delivers

All instructions of the hot loop count, those of the product too; the tensor rate does not, since it would
limit 16-bit weights as well. Below 1 the kernel is cast-bound: its instructions, not its bytes, set the time.
At 65 % of issue the schedulers fill 65 of 100 slots, which is what real kernels reach; other pipes stay at
100 %. Memory delivers at its peak rate in both, so R is a bound and not a forecast.

The interval holds R at every value of clocks, lanes and bandwidth that has been published for the board: its
upper end takes the better of each. Modelled from counts and datasheets; nothing here was measured.
"""

from __future__ import annotations

from dataclasses import dataclass

from bench.static.cost import KernelCost
from bench.static.model import ENDS, LIMITERS, End, Limiter, pipe_cycles, rate, unsupported
from bench.static.parameters import ISSUE_EFFICIENCY
from profiles.specs import Gpu

STYLES = {"hidden": "green", "undecided": "yellow", "cast-bound": "bold red", "unknown": "dim"}


@dataclass(frozen=True)
class Ratio:
    """R of one kernel on one board at one batch, or why there is none.

    Attributes:
        value: at 100 % of issue; None where it cannot be said.
        low: with every published rate at its worse end.
        high: with every published rate at its better end.
        at_reached_issue: at 65 % of issue.
        limiter: the pipe that runs out first, at 100 %.
        reason: why there is no value.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    at_reached_issue: float | None = None
    limiter: Limiter | None = None
    reason: str = ""

    @property
    def verdict(self) -> str:
        """In a word; "undecided" where the interval holds 1, or R is below 1 at 65 % of issue alone."""
        if self.low is None or self.high is None or self.at_reached_issue is None:
            return "unknown"
        if self.high < 1:
            return "cast-bound"
        return "hidden" if min(self.low, self.at_reached_issue) >= 1 else "undecided"


def supply_demand(gpu: Gpu, kernel: KernelCost, batch: int = 1) -> Ratio:
    """R of a kernel on a board.

    Args:
        gpu: the board.
        kernel: its instructions and stored bytes per weight.
        batch: rows of x; every pass dequantizes again, and its bytes may come from the cache.
    """
    reason = unsupported(gpu, kernel, batch)
    if reason:
        return Ratio(None, reason=reason)
    values = {end: _ratio(gpu, kernel, batch, end) for end in ENDS}
    reached, _ = _ratio(gpu, kernel, batch, "value", ISSUE_EFFICIENCY.value)
    value, pipe = values["value"]
    return Ratio(
        value=value,
        low=values["worse"][0],
        high=values["better"][0],
        at_reached_issue=reached,
        limiter=LIMITERS[pipe],
    )


def _ratio(
    gpu: Gpu, kernel: KernelCost, batch: int, end: End, issue: float = 1.0
) -> tuple[float, str]:
    """R, and the pipe that runs out first. The better end of a demand is the lower bandwidth."""
    assert gpu.multiprocessor is not None
    cycles = pipe_cycles(kernel, gpu.multiprocessor, batch, end)
    cycles["issue"] /= issue
    pipe = max(cycles, key=lambda name: cycles[name])
    clocks = rate(gpu.sms, end) * rate(gpu.sm_clock_mhz, end) * 1e6
    opposite: dict[End, End] = {"value": "value", "better": "worse", "worse": "better"}
    bandwidth = rate(gpu.memory_gb_per_s, opposite[end]) * 1e9
    return clocks / cycles[pipe] / (bandwidth / kernel.counts.bytes), pipe

"""Which launch configuration is fastest on the device that is here: a pilot chooses, fresh blocks judge.

    every candidate   verified, then 10 blocks of the pilot; the fastest by median is the winner
    winner, default   21 fresh blocks: by how much it is faster, with its interval

A block times every candidate once, in random order, on cold weights: the suite's own samples. The blocks that
chose the winner say nothing of its lead, which would be that of the luckiest. It replaces the default only
where the whole interval of t(default) / t(winner) is above 1.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from bench.analysis.stats import paired_ratio
from bench.measure.devices import Device, Mode, Prepared, Problem
from bench.measure.session import CACHE_MULTIPLE, SAMPLE_S
from kernels.kernel import Configuration, Kernel

PILOT_BLOCKS, FRESH_BLOCKS = 10, 21
DEFAULT = None  # the configuration that a kernel takes by itself


@dataclass(frozen=True)
class Outcome:
    """What was found for one kernel on one problem.

    Attributes:
        config: the winner; None where nothing is faster than the default.
        speedup: t(default) / t(config), median within the fresh blocks; 1 for the default.
        low: lower end of its 95 % interval.
        high: upper end.
        blocks: fresh ones.
        median_s: of every candidate that ran, seconds of one launch in the pilot.
        refused: why the others did not.
    """

    config: Hashable | None
    speedup: float
    low: float
    high: float
    blocks: int
    median_s: Mapping[Hashable | None, float]
    refused: Mapping[Hashable, str] = field(default_factory=dict)


def tune(
    device: Device,
    problem: Problem,
    kernel: Kernel,
    candidates: Sequence[Hashable],
    mode: Mode,
    seed: int,
) -> Outcome:
    """Times a kernel in every configuration, its default among them.

    Raises:
        ValueError: the kernel does not run in its default configuration, or is wrong there.
    """
    device.release()
    base = device.prepare(problem, kernel)
    ready, refused = _verified(device, base, candidates, kernel.tolerance)
    if DEFAULT not in ready:
        raise ValueError(f"the default configuration failed: {refused[DEFAULT]}")
    copies = math.ceil(CACHE_MULTIPLE * device.cache_bytes / base.copy_bytes) + 1
    most = device.free_bytes() // base.copy_bytes
    device.rotate({base.pool: max(2, min(copies, most))})
    repeats = {
        config: max(1, math.ceil(SAMPLE_S / device.estimate_s(prepared)))
        for config, prepared in ready.items()
    }
    rng = np.random.default_rng((seed, problem.n, problem.k, problem.batch))

    def blocks(
        configs: Sequence[Hashable | None], count: int, fresh: bool
    ) -> dict[Hashable | None, list[float]]:
        times: dict[Hashable | None, list[float]] = {config: [] for config in configs}
        for block in range(count):
            device.start_block((seed, 0, problem.batch, block, int(fresh)), device.now_s())
            for index in rng.permutation(len(configs)):
                config = configs[index]
                sample = device.sample(ready[config], repeats[config], mode)
                times[config].append(sample.time_s)
        return times

    pilot = blocks(list(ready), PILOT_BLOCKS, False)
    median_s = {config: float(np.median(times)) for config, times in pilot.items()}
    winner = min(median_s, key=lambda config: median_s[config])
    if winner is DEFAULT:
        return Outcome(DEFAULT, 1.0, 1.0, 1.0, 0, median_s, refused)
    fresh = blocks([DEFAULT, winner], FRESH_BLOCKS, True)
    lead = paired_ratio(fresh[DEFAULT], fresh[winner])
    if lead.value is None or lead.low is None or lead.high is None or not lead.low > 1:
        return Outcome(DEFAULT, 1.0, 1.0, 1.0, FRESH_BLOCKS, median_s, refused)
    return Outcome(winner, lead.value, lead.low, lead.high, FRESH_BLOCKS, median_s, refused)


def _verified(
    device: Device, base: Prepared, candidates: Sequence[Hashable], tolerance: float
) -> tuple[dict[Hashable | None, Prepared], dict[Hashable | None, str]]:
    """The candidates that run and are right, and why the others are left out."""
    ready: dict[Hashable | None, Prepared] = {}
    refused: dict[Hashable | None, str] = {}
    for config in (DEFAULT, *candidates):
        prepared = replace(base, configuration=Configuration(config))
        try:
            error = device.verify(prepared)
        except Exception as reason:  # whatever a compiler or a driver may raise
            device.check()
            refused[config] = (str(reason).strip().splitlines() or [repr(reason)])[0]
            continue
        if error <= tolerance:
            ready[config] = prepared
        else:
            refused[config] = f"off by {error:.2g} of the largest value"
    return ready, refused

"""Two arms side by side: differences, ratios and how far to trust them, paired within blocks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bench.analysis import stats
from bench.analysis.arms import Arms, Floats, align
from profiles.schema import Implementation, Kind, Protocol, Quality, Quantity, absent

SHORT = "short"  # flag: fewer fresh blocks than the protocol asks for
THROTTLED = "throttled"  # flag of samples, and of a phi that is made of such


def is_throttled(word: str) -> bool:
    """Whether a flag of a sample says that the clock was held down: the word, or the word and a reason."""
    return word == THROTTLED or word.startswith(f"{THROTTLED}-")


@dataclass(frozen=True)
class Pair:
    """Times of arms a and b in the blocks that have both.

    Attributes:
        a: [blocks], seconds.
        b: [blocks], seconds.
        block: [blocks], process * 2^32 + block.
        reason: why there is nothing to compare; empty otherwise.
        protocol: confidence, target half-width, least number of blocks.
        kind: the kind of evidence, for every quantity made here.
        flags: words that samples of either arm carry.
    """

    a: Floats
    b: Floats
    block: NDArray[np.int64]
    reason: str
    protocol: Protocol
    kind: Kind
    flags: tuple[str, ...] = ()

    @property
    def process(self) -> NDArray[np.int64]:
        """[blocks], the process of each block."""
        return self.block >> 32

    def difference(self) -> Quantity:
        """The median of a - b, in seconds."""
        return self._median(self.a - self.b)

    def ratio(self, factor: float = 1.0) -> Quantity:
        """The median of a / b, times a constant."""
        return self._median(factor * self.a / self.b)

    def overhead(self) -> Quantity:
        """The median of (a - b) / b."""
        return self._median((self.a - self.b) / self.b)

    def quality(self, best16_s: float | None) -> Quality:
        """How far a - b can be trusted.

        Args:
            best16_s: t(best16), which the half-width is measured against; None without such an arm.
        """
        if self.reason:
            return Quality(
                half_width_over_best16=None,
                between_process_spread_s=None,
                converged=None,
                reason=self.reason,
            )
        phi = self.a - self.b
        half_width = stats.median_interval(phi, self.protocol.confidence).half_width
        spread = stats.between_groups(phi, self.process)
        flags = stats.gates(phi, self.process).flags
        if len(phi) < self.protocol.fresh_blocks_minimum:
            flags = (*flags, SHORT)
        if any(map(is_throttled, self.flags)):
            flags = (*flags, THROTTLED)
        relative, converged, reasons = None, None, [spread.reason] if spread.reason else []
        if best16_s is None:
            reasons.append("no 16-bit arm to measure the half-width against")
        elif half_width is None:
            converged = False
            reasons.append(f"{len(phi)} blocks are too few for an interval")
        else:
            relative = half_width / best16_s
            converged = relative <= self.protocol.target_half_width
        return Quality(
            half_width_over_best16=relative,
            between_process_spread_s=spread.half_range,
            converged=converged,
            flags=flags,
            reason="; ".join(reasons),
        )

    def _median(self, values: Floats) -> Quantity:
        if self.reason:
            return absent(self.reason, self.kind)
        return median_quantity(values, self.protocol.confidence, self.kind)


def pair_up(
    arms: Arms,
    a: Implementation | None,
    b: Implementation | None,
    names: str,
    protocol: Protocol,
    kind: Kind,
) -> Pair:
    """Arms a and b of one problem side by side; `names` is what to call them if one is missing."""
    if a not in arms or b not in arms or a is None or b is None:
        nothing, nowhere = np.empty(0), np.empty(0, np.int64)
        return Pair(nothing, nothing, nowhere, f"no samples of {names}", protocol, kind)
    x, y, block = align(arms[a], arms[b])
    reason = "" if len(x) else f"no block has both {names}"
    return Pair(x, y, block, reason, protocol, kind, arms[a].flags + arms[b].flags)


def median_quantity(values: Floats, confidence: float, kind: Kind) -> Quantity:
    """The median of [blocks] values and its interval, as a profile holds it."""
    i = stats.median_interval(values, confidence)
    return Quantity(value=i.value, low=i.low, high=i.high, n=i.n, kind=kind, reason=i.reason)

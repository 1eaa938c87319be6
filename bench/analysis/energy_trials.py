"""Joules of an arm from several windows, and how far they can be trusted.

Four errors, four widths, all half-widths at 95 %, added in quadrature:

    spread   t(m - 1) s / sqrt(m) over m trials: whatever differs from window to window
    tick     the mean tick of the trials: what edges and scatter leave open. The m ticks are not taken to
             cancel, since windows that keep step with the sensor share them
    gain     gain_uncertainty times the value: the sensor's, the same in every window of a board
    offset   offset_uncertainty_w times the time of a layer: the sensor's too

The gain is read as normal, with 5 % as its 95 % half-width: the published examples (0.944, 0.954, 1.001,
1.044) do not say more. A uniform gain within 5 % is covered no less often.

An offset adds watts to whatever is drawn. In a difference it counts with the difference of the times; in a
ratio r = a / b with |t_a - r t_b|; in net joules it cancels, as idle has it too.

Trials whose errors are normal are covered in 95 % of runs where either the spread or the gain rules, and
in some more where both count alike, since a t quantile and a normal one are then added in quadrature
(simulated in tests/test_bench_energy_trials.py). Of a difference the gain takes 5 % of the difference, not
of its terms, so it never moves its sign. In a ratio on one board it cancels.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
from scipy.special import stdtrit

from bench.analysis.energy import Rules, WindowEnergy
from bench.analysis.sensor_edges import NAMES
from profiles.schema import Kind, Quantity, absent

CONFIDENCE = 0.95
FEWEST = 2  # trials without which there is no spread

Which = Literal["gross_j", "net_j"]


@dataclass(frozen=True)
class ArmEnergy:
    """Joules of one arm on one problem.

    Attributes:
        gross_j: joules per layer; n is the number of trials.
        net_j: the same less idle power times time.
        power_w: mean watts under load.
        idle_w: mean watts without load, before and after.
        layer_s: seconds per layer at the clocks of the energy windows, which are not those of the timing.
        source: the channel of all trials that count; empty without joules.
        trials: by round, refused ones in their place.
        usable: trials that count.
        spread: range of their gross joules over the mean; None with fewer than two.
        throttled: whether any of them throttled; None where that is not read.
    """

    gross_j: Quantity
    net_j: Quantity
    power_w: Quantity
    idle_w: Quantity
    layer_s: Quantity
    source: str
    trials: tuple[WindowEnergy, ...]
    usable: int
    spread: float | None
    throttled: bool | None

    @property
    def reason(self) -> str:
        """Why there are no joules; empty otherwise."""
        return self.gross_j.reason if self.gross_j.value is None else ""


def combine(
    trials: Sequence[WindowEnergy], kind: Kind = "measured", rules: Rules | None = None
) -> ArmEnergy:
    """One arm from its trials.

    Only trials of one channel count: the one that most trials have.

    Args:
        trials: by round, refused ones included.
        kind: of evidence.
        rules: for the largest range of the trials.
    """
    rules = rules or Rules()
    source, kept = _kept(trials)
    gross = np.array([x.gross_j for x in kept], float)
    spread = float(np.ptp(gross) / gross.mean()) if len(kept) >= FEWEST else None
    reason = ""
    if len(kept) < FEWEST:
        reason = f"{len(kept)} of {len(trials)} trials can be used; {FEWEST} are needed"
        refused = [(i, x.reason) for i, x in enumerate(trials, 1) if x.reason]
        if len(refused) == len(trials) and len({why for _, why in refused}) == 1:
            reason = refused[0][1]
        elif refused:
            reason += f"; trial {refused[0][0]}: {refused[0][1]}"
    elif spread is not None and spread > rules.trial_range:
        reason = (
            f"{len(kept)} trials range over {spread:.0%} of their mean, "
            f"more than {rules.trial_range:.0%}: the load, or what the sensor sees of it, is not steady"
        )
    read = [x.conditions.throttled for x in kept if x.conditions.throttled is not None]
    return ArmEnergy(
        gross_j=_mean(kept, "gross_j", reason, kind),
        net_j=_mean(kept, "net_j", reason, kind),
        power_w=_mean(kept, "power_w", reason, kind),
        idle_w=_mean(kept, "idle_w", reason, kind),
        layer_s=_mean(kept, "layer_s", reason, kind),
        source="" if reason else source,
        trials=tuple(trials),
        usable=len(kept),
        spread=spread,
        throttled=any(read) if read else None,
    )


def difference(
    a: ArmEnergy, b: ArmEnergy, kind: Kind = "measured", which: Which = "gross_j"
) -> Quantity:
    """Joules per layer of a less those of b, trial by trial of the same round.

    Whatever moves a whole round (temperature, a neighbour's air) cancels. Half-width: spread of the paired
    differences, ticks of both, and the gain's share of the difference itself.

    Args:
        a: an arm.
        b: another, of the same board and run.
        kind: of evidence.
        which: "gross_j" or "net_j".
    """
    pairs, reason = _pairs(a, b, which)
    if reason or pairs is None:
        return absent(reason, kind)
    x, y, p = pairs.x, pairs.y, pairs
    value = float((x - y).mean())
    offset = p.offset_w * abs(p.times_s[0] - p.times_s[1])
    widths = (_spread(x - y), *p.ticks, p.gain * value, offset)
    return _quantity(value, *widths, n=len(x), kind=kind)


def ratio(
    a: ArmEnergy, b: ArmEnergy, kind: Kind = "measured", which: Which = "gross_j"
) -> Quantity:
    """Joules of a over those of b, trial by trial of the same round; the sensor's gain cancels.

    The value is the ratio of the means. Its spread is that of x - value y over the mean of y, the
    linearised ratio (Fieller, J. R. Statist. Soc. B 16 (1954) 175-185, for a y that is far from zero).

    Args:
        a: an arm.
        b: another, of the same board and run.
        kind: of evidence.
        which: "gross_j" or "net_j".
    """
    pairs, reason = _pairs(a, b, which)
    if reason or pairs is None:
        return absent(reason, kind)
    x, y, p = pairs.x, pairs.y, pairs
    value, scale = float(x.mean() / y.mean()), float(y.mean())
    offset = p.offset_w * abs(p.times_s[0] - value * p.times_s[1])
    widths = (_spread(x - value * y), p.ticks[0], value * p.ticks[1], offset)
    return _quantity(value, *(width / scale for width in widths), n=len(x), kind=kind)


def _kept(trials: Sequence[WindowEnergy]) -> tuple[str, list[WindowEnergy]]:
    """The channel that most usable trials have, and those trials."""
    usable = [x for x in trials if x.gross_j is not None]
    if not usable:
        return "", []
    source = Counter(x.source for x in usable).most_common(1)[0][0]
    return source, [x for x in usable if x.source == source]


def _mean(kept: Sequence[WindowEnergy], name: str, reason: str, kind: Kind) -> Quantity:
    """Mean of one attribute over trials, with all that widens it."""
    if reason:
        return absent(reason, kind)
    there = [x for x in kept if getattr(x, name) is not None]
    if len(there) < FEWEST:
        why = "; ".join(dict.fromkeys(x.idle_reason for x in kept if x.idle_reason))
        return absent(f"{len(there)} of {len(kept)} trials have it: {why}", kind)
    values = np.array([getattr(x, name) for x in there], float)
    value, gain = float(values.mean()), max(x.gain_uncertainty for x in there)
    tick = float(np.mean([_tick(x, name) for x in there]))
    gain_part = 0.0 if name == "layer_s" else gain * value
    offset = _offset(there, name)
    return _quantity(value, _spread(values), tick, gain_part, offset, n=len(there), kind=kind)


def _offset(trials: Sequence[WindowEnergy], name: str) -> float:
    """Half-width, 95 %, of what the sensor's offset leaves open, in the unit of an attribute."""
    offset_w = max(x.offset_uncertainty_w for x in trials)
    if name == "gross_j":
        return offset_w * float(np.mean([x.layer_s or 0.0 for x in trials]))
    return offset_w if name in ("power_w", "idle_w") else 0.0


def _tick(trial: WindowEnergy, name: str) -> float:
    """Half-width, 95 %, of what one trial leaves open, in the unit of an attribute."""
    joules, layer_s = trial.tick_j or 0.0, trial.layer_s or 0.0
    apart_w = abs((trial.idle_before_w or 0.0) - (trial.idle_after_w or 0.0)) / 2
    match name:
        case "gross_j":
            return joules
        case "net_j":
            return math.hypot(joules, apart_w * layer_s)
        case "power_w":
            return joules / layer_s if layer_s else 0.0
        case "idle_w":
            return apart_w
    return 0.0


def _spread(values: np.ndarray) -> float:
    """Half-width of the interval of a mean: Student's t over the trials."""
    n = len(values)
    return _quantile(n) * float(values.std(ddof=1)) / math.sqrt(n)


@cache
def _quantile(n: int) -> float:
    """Student's t of n trials."""
    return float(stdtrit(n - 1, (1 + CONFIDENCE) / 2))


def _quantity(value: float, *widths: float, n: int, kind: Kind) -> Quantity:
    half = math.hypot(*widths)
    return Quantity(value=value, low=value - half, high=value + half, n=n, kind=kind)


@dataclass(frozen=True)
class _Pairs:
    """Joules of two arms by round, and what is common to all rounds.

    Attributes:
        x: [rounds], joules per layer of the first.
        y: [rounds], of the second.
        ticks: mean tick of each.
        times_s: mean seconds per layer of each.
        gain: of the sensor.
        offset_w: of the sensor; 0 where it cancels.
    """

    x: np.ndarray
    y: np.ndarray
    ticks: tuple[float, float]
    times_s: tuple[float, float]
    gain: float
    offset_w: float


def _pairs(a: ArmEnergy, b: ArmEnergy, which: Which) -> tuple[_Pairs | None, str]:
    """Both arms by round, or why they cannot be paired."""
    for arm in (a, b):
        quantity = getattr(arm, which)
        if quantity.value is None:
            return None, quantity.reason
    if a.source != b.source:
        return None, f"one arm was read from {NAMES[a.source]}, the other from {NAMES[b.source]}"
    both = [
        (x, y)
        for x, y in zip(a.trials, b.trials, strict=False)
        if x.source == y.source == a.source
        and getattr(x, which) is not None
        and getattr(y, which) is not None
    ]
    if len(both) < FEWEST:
        return None, f"{len(both)} rounds have both arms; {FEWEST} are needed"
    first, second = ([pair[i] for pair in both] for i in (0, 1))
    each = [*first, *second]

    def mean(of: Callable[[WindowEnergy], float]) -> tuple[float, float]:
        return float(np.mean([of(w) for w in first])), float(np.mean([of(w) for w in second]))

    return _Pairs(
        x=np.array([getattr(w, which) for w in first], float),
        y=np.array([getattr(w, which) for w in second], float),
        ticks=mean(lambda w: _tick(w, which)),
        times_s=mean(lambda w: w.layer_s or 0.0),
        gain=max(w.gain_uncertainty for w in each),
        offset_w=max(w.offset_uncertainty_w for w in each) if which == "gross_j" else 0.0,
    ), ""

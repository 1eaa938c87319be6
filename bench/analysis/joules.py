"""From energy windows to the energy part of a profile: rows, curves, and phi in joules.

    windows of one arm, one per trial  ->  joules of a layer, gross and net     EnergyRow
    arms of one batch, trial by trial  ->  phi in joules, best16 / arm          Comparison
    rows of one arm over batches       ->  a + b / batch                        EnergyCurve

A trial holds one window of every arm, so differences are taken within trials, as those of times are within
blocks.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from bench.analysis.decompose import ARM_ORDER
from bench.analysis.energy import Rules, WindowEnergy, window_joules
from bench.analysis.energy_curve import curve
from bench.analysis.energy_trials import ArmEnergy, combine, difference, ratio
from bench.analysis.pairs import THROTTLED
from bench.analysis.traces import Window
from profiles.schema import (
    LAYER,
    Arm,
    ArmRow,
    Comparison,
    EnergyCurve,
    EnergyRow,
    Implementation,
    Kind,
    Quantity,
    absent,
    scaled,
)
from profiles.sensors import Traits


@dataclass(frozen=True)
class Trial:
    """One energy window of a run.

    Attributes:
        format: of the problem.
        batch: of the problem.
        kernel: the arm of the layer.
        trial: which of its windows, from 0.
        window: what ran, and what the sensor said.
    """

    format: str
    batch: int
    kernel: Implementation
    trial: int
    window: Window


Key = tuple[str, int, Implementation]  # format, batch, arm of the layer


@dataclass(frozen=True)
class Joules:
    """What the windows of a run say.

    Attributes:
        rows: one per arm, batch and format.
        curves: one per arm and format.
        arms: what the rows are made of.
        kind: the kind of evidence.
    """

    rows: tuple[EnergyRow, ...]
    curves: tuple[EnergyCurve, ...]
    arms: Mapping[Key, ArmEnergy]
    kind: Kind

    def pair(
        self,
        paired: Callable[[ArmEnergy, ArmEnergy, Kind], Quantity],
        format: str,
        batch: int,
        a: Implementation | None,
        b: Implementation | None,
    ) -> Quantity:
        """The difference or ratio of two arms on a layer, trial by trial."""
        first = None if a is None else self.arms.get((format, batch, a))
        second = None if b is None else self.arms.get((format, batch, b))
        if first is None or second is None:
            return absent("there are no energy windows of both arms", self.kind)
        return paired(first, second, self.kind)


def joules(
    trials: Iterable[Trial],
    traits: Traits,
    rules: Rules,
    layers: int,
    kind: Kind,
    failed: Mapping[Key, str] | None = None,
) -> Joules:
    """Rows and curves from every window of a run.

    Args:
        trials: the windows, in any order.
        traits: of the sensor.
        rules: when a window is good enough.
        layers: of the model, for joules per token.
        kind: the kind of evidence, written into every quantity.
        failed: arms without further windows, and why.
    """
    failed = failed or {}
    windows: defaultdict[Key, dict[int, WindowEnergy]] = defaultdict(dict)
    for t in sorted(trials, key=lambda t: (t.format, t.batch, ARM_ORDER.index(t.kernel.arm))):
        windows[t.format, t.batch, t.kernel][t.trial] = window_joules(t.window, traits, rules)
    arms = {}
    for key in dict.fromkeys((*windows, *failed)):
        nothing = WindowEnergy(reason=failed.get(key, "it was not measured"))
        each = [windows[key].get(trial, nothing) for trial in range(rules.trials)]
        arms[key] = combine(each, kind, rules)
    rows = tuple(_row(*key, arm, layers) for key, arm in arms.items())
    return Joules(rows, _curves(rows, traits, kind), arms, kind)


def merged(parts: Sequence[Joules]) -> Joules:
    """The joules of several formats of one run as one; there is one part at least."""
    return Joules(
        rows=tuple(row for part in parts for row in part.rows),
        curves=tuple(curve for part in parts for curve in part.curves),
        arms={key: arm for part in parts for key, arm in part.arms.items()},
        kind=parts[0].kind,
    )


def with_joules(
    rows: Iterable[ArmRow], comparisons: Iterable[Comparison], found: Joules
) -> tuple[tuple[ArmRow, ...], tuple[Comparison, ...]]:
    """Rows and comparisons of a run with the joules of its layers."""
    known = {(r.format, r.batch, r.kernel): r.energy_j for r in found.rows}
    bypasses = {
        (f, b, k.model_copy(update={"arm": "fused"})): k for f, b, k in known if k.arm == "bypass"
    }
    return (
        tuple(_with_energy(row, known) for row in rows),
        tuple(_with_phi(c, found, bypasses) for c in comparisons),
    )


def _with_energy(row: ArmRow, known: Mapping[Key, Quantity]) -> ArmRow:
    if row.operator != LAYER:
        return row
    kernel = Implementation(
        arm=row.arm,
        implementation=row.implementation,
        variant=row.variant,
        weight_format=row.weight_format,
    )
    energy_j = known.get((row.format, row.batch, kernel))
    if energy_j is None:
        energy_j = absent("this arm or batch has no energy windows", row.kind)
    return row.model_copy(update={"energy_j": energy_j})


def _with_phi(
    c: Comparison,
    found: Joules,
    bypasses: Mapping[Key, Implementation],
) -> Comparison:
    if c.operator != LAYER:
        return c
    bypass = None if c.fused is None else bypasses.get((c.format, c.batch, c.fused))
    where = (c.format, c.batch)
    parts = [found.arms.get((*where, k)) for k in (c.best16, c.fused, bypass, c.unfused) if k]
    return c.model_copy(
        update={
            "phi_exposed_j": found.pair(difference, *where, c.fused, bypass),
            "phi_unfused_j": found.pair(difference, *where, c.unfused, c.best16),
            "energy_ratio_fused": found.pair(ratio, *where, c.best16, c.fused),
            "energy_ratio_unfused": found.pair(ratio, *where, c.best16, c.unfused),
            "energy_flags": (THROTTLED,) if any(arm and arm.throttled for arm in parts) else (),
        }
    )


def _row(
    weight_format: str, batch: int, kernel: Implementation, arm: ArmEnergy, layers: int
) -> EnergyRow:
    used = [w for w in arm.trials if w.gross_j is not None]
    read = [w.conditions for w in used]
    sources: defaultdict[str, list[float]] = defaultdict(list)
    for source in (source for w in used for source in w.sources):
        if source.gross_j is not None:
            sources[source.channel].append(source.gross_j)
    return EnergyRow(
        batch=batch,
        format=weight_format,
        kernel=kernel,
        energy_j=arm.gross_j,
        net_j=arm.net_j,
        token_j=scaled(arm.gross_j, layers / batch),
        power_w=arm.power_w,
        idle_w=arm.idle_w,
        layer_s=arm.layer_s,
        source=arm.source or None,
        sources={channel: sum(values) / len(values) for channel, values in sources.items()},
        disagreement=_over(max, (w.disagreement for w in used)),
        sm_clock_mhz=_over(fmean, (c.sm_clock_mhz for c in read)),
        memory_clock_mhz=_over(fmean, (c.memory_clock_mhz for c in read)),
        temperature_begin_c=_over(min, (c.temperature_begin_c for c in read)),
        temperature_end_c=_over(max, (c.temperature_end_c for c in read)),
        throttle_share=_over(fmean, (c.throttle_share for c in read)),
        windows=arm.usable,
        refused=tuple(w.reason for w in arm.trials if w.reason),
        flags=(THROTTLED,) if arm.throttled else (),
    )


def _over(of: Callable[[list[float]], float], values: Iterable[float | None]) -> float | None:
    """The mean or an extreme of the values that are there."""
    known = [value for value in values if value is not None]
    return of(known) if known else None


def _curves(rows: Sequence[EnergyRow], traits: Traits, kind: Kind) -> tuple[EnergyCurve, ...]:
    """One per format, arm and implementation; the fastest 16-bit arm may change with the batch."""
    by_arm: defaultdict[tuple[str, Arm, str], list[tuple[int, Quantity]]] = defaultdict(list)
    for row in rows:
        by_arm[row.format, row.kernel.arm, row.kernel.implementation].append(
            (row.batch, row.token_j)
        )
    found = []
    for (weight_format, arm, implementation), points in by_arm.items():
        fitted = curve(sorted(points, key=lambda p: p[0]), kind, traits.gain_uncertainty)
        found.append(
            EnergyCurve(
                format=weight_format,
                arm=arm,
                implementation=implementation,
                a_j=fitted.per_token_j,
                b_j=fitted.shared_j,
                largest_residual=fitted.largest_residual,
                fits=fitted.fits,
                reason=fitted.reason,
            )
        )
    return tuple(found)

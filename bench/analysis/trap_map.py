"""The trap map: model sizes by batches, each cell the ratio of best16 to a quantized arm on a real layer table.

The profile's own layer is what was measured. Other models are extrapolated from its operators: calls t0 + N c
of each arm (critical_scale.py). How far that form is off is known from the operators themselves, as the
log(measured ratio / fitted ratio) of critical_scale.py, and every such cell carries it in its interval. The
own model is extrapolated too, as a check on the form. A cell whose interval holds 1 is undecided. Beside each
stands whether 16-bit weights fit the device at all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bench.analysis.critical_scale import Costs, measured_layers
from bench.analysis.crossing import Crossing, crossing
from bench.analysis.low_precision import ratio as ratio_of
from bench.analysis.replicates import Book, Draws, drawn
from bench.analysis.verdict import By, Path, outcome
from profiles.schema import Comparison, Kind, Quantity, absent
from profiles.shapes import ModelShape


def model_ratio(book: Book, costs: Costs, shape: ModelShape, eager: bool) -> Draws:
    """Draws of t(best16) / t(arm) of a step of a model, misfit included; lm_head left out."""
    calls = shape.layers * sum(o.count for o in shape.operators)
    weights = shape.layers * shape.layer_params
    ratio = costs.best16.step_s(calls, weights, eager) / costs.arm.step_s(calls, weights, eager)
    off = costs.off(len(ratio) - 1)
    if off is None:
        return np.concatenate([ratio[:1], np.full(len(ratio) - 1, np.nan)])
    found: Draws = ratio * off
    return found


@dataclass(frozen=True)
class Cell:
    """One model at one batch.

    Attributes:
        model: its shape.
        batch: rows of x.
        ratio: best16 / arm, in time or energy; above 1 low bits pay.
        measured: whether the layer itself was measured; otherwise it is extrapolated from its operators.
        extrapolated: of a measured one, what the operators say of it; of others, the ratio itself.
        beyond: whether an operator is larger or smaller than any that was measured, by a factor of two.
        fits16: whether 16-bit weights fit the device's memory; None: its memory is not known.
        fits_arm: the same of the quantized weights.
    """

    model: ModelShape
    batch: int
    ratio: Quantity
    measured: bool
    extrapolated: Quantity
    beyond: bool
    fits16: bool | None
    fits_arm: bool | None

    @property
    def outcome(self) -> str:
        """wins, loses or undecided."""
        return outcome(self.ratio)


@dataclass(frozen=True)
class TrapMap:
    """Model sizes by batches, of one format and path."""

    format: str
    path: Path
    by: By
    eager: bool
    cells: tuple[Cell, ...]

    @property
    def models(self) -> tuple[ModelShape, ...]:
        """Rising in size."""
        found = {c.model.name: c.model for c in self.cells}
        return tuple(sorted(found.values(), key=lambda m: m.params))

    @property
    def batches(self) -> tuple[int, ...]:
        """Rising."""
        return tuple(sorted({c.batch for c in self.cells}))

    @property
    def decided(self) -> str:
        """How much of the map says anything."""
        known = [c.outcome for c in self.cells if c.ratio.value is not None]
        wins, loses = (known.count(each) for each in ("wins", "loses"))
        mostly = "mostly undecided: " if 2 * (wins + loses) < len(known) else ""
        rest = len(known) - wins - loses
        return f"{mostly}of {len(known)} cells + {wins}, - {loses}, ? {rest}"

    def at(self, model: str, batch: int) -> Cell | None:
        """The cell of a model and batch."""
        return next((c for c in self.cells if (c.model.name, c.batch) == (model, batch)), None)

    def scales(self, kind: Kind) -> tuple[tuple[str, int, Crossing], ...]:
        """N* per family and batch, between the models of that family."""
        found = []
        for name in dict.fromkeys(family(m.name) for m in self.models):
            for batch in self.batches:
                points = [
                    (float(c.model.params), c.ratio)
                    for c in self.cells
                    if family(c.model.name) == name and c.batch == batch
                ]
                if len(points) > 1:
                    found.append((name, batch, crossing(points, kind)))
        return tuple(found)


def family(model: str) -> str:
    """The family of a model: its name without the size."""
    return model.rsplit("-", 1)[0]


def trap_map(
    book: Book,
    weight_format: str,
    path: Path,
    costs: Mapping[int, Costs],
    shapes: Sequence[ModelShape],
    bits: float | None,
    eager: bool,
    by: By = "time",
    host: Book | None = None,
) -> TrapMap:
    """Every model at every batch that has costs.

    In joules the ratio is that of time, times the ratio of energy over time of the profile's own layer at
    that batch: the watts of an arm are taken to be the same whatever the model.

    Args:
        book: of the profile whose operators gave the costs.
        weight_format: of the arm.
        path: which arm.
        costs: per batch.
        shapes: of the models.
        bits: stored per weight.
        eager: the launch mode of the map; own layers are taken only from a profile of that mode.
        by: time or energy.
        host: of the profile with eager launches, where `book` has graph ones.
    """
    source = host if eager and host is not None else book
    layers = measured_layers(source, weight_format, eager)
    memory = book.profile.device.memory_bytes
    cells = []
    for shape in shapes:
        for batch, cost in sorted(costs.items()):
            layer = layers.get(batch)
            own = shape.name == book.profile.workload.model and layer is not None
            draws = model_ratio(book, cost, shape, eager)
            if by == "time":
                extrapolated = book.quantity(draws, "operators of too few sizes")
            else:
                extrapolated = _in_joules(source, draws, layer, path)
            ratio = ratio_of(source, layer, path, by) if own and layer is not None else extrapolated
            sizes = [o.n * o.k for o in shape.operators]
            known = cost.arm.fit.sizes
            cells.append(
                Cell(
                    shape, batch, ratio, own, extrapolated,
                    max(sizes) > 2 * max(known) or min(sizes) < min(known) / 2,
                    None if memory is None else 2 * shape.params <= memory,
                    None if memory is None or bits is None
                    else quantized_bytes(shape, bits) <= memory,
                )
            )  # fmt: skip
    return TrapMap(weight_format, path, by, eager, tuple(cells))


def quantized_bytes(shape: ModelShape, bits: float) -> float:
    """Bytes of a model whose layers are quantized; embeddings and lm_head stay in 16 bits."""
    layers = shape.layers * shape.layer_params
    return layers * bits / 8 + 2 * (shape.params - layers)


def _in_joules(book: Book, ratio: Draws, layer: Comparison | None, path: Path) -> Quantity:
    """A ratio of time as one of energy, by the watts of the arms on a layer of the same launch mode."""
    if layer is None:
        return absent("no layer was measured at this batch", book.kind)
    size = len(ratio) - 1
    energy = ratio_of(book, layer, path, "energy")
    joules = drawn(energy, ("watts", layer.key, path), book.confidence, size)
    seconds = drawn(
        ratio_of(book, layer, path, "time"), ("speed", layer.key, path), book.confidence, size
    )
    if joules is None or seconds is None:
        return absent(energy.reason or "the layer has no joules at this batch", book.kind)
    return book.quantity(ratio * joules / seconds, "operators of too few sizes")

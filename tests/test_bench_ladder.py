"""The parts of a fused kernel against planted ones, and what is said of those that are missing."""

from __future__ import annotations

import pytest
from trap_profiles import OPERATORS, book, planted, simple

from bench.analysis.at_load import at_load
from bench.analysis.ladder import PARTS, ladders
from bench.analysis.replicates import Book
from profiles.schema import (
    LAYER,
    Energy,
    EnergyRow,
    Implementation,
    Quantity,
    absent,
)
from profiles.sensors import published_traits

WEIGHTS = sum(o.n * o.k for o in OPERATORS)


def layer_of(b: Book, unit: str = "s"):  # type: ignore[no-untyped-def]
    (found,) = (x for x in ladders(b) if x.problem.operator == LAYER and x.unit == unit)
    return found


def test_parts_are_those_planted_and_sum_to_the_fused_kernel() -> None:
    found = layer_of(book(simple(), (1,)))
    expected = {
        "fixed per call": 3 * 2e-6, "move": 0.16e-12 * WEIGHTS, "unpack": 0.01e-12 * WEIGHTS,
        "scale": 0.02e-12 * WEIGHTS, "multiply": 0.04e-12 * WEIGHTS,
        "residual": (0.05e-12 - 0.03e-12) * WEIGHTS,
    }  # fmt: skip
    for name, value in expected.items():
        q = found.parts[name]
        assert q.value == pytest.approx(value, abs=0.002 * found.total.value), name
        assert q.low < q.value < q.high
    assert sum(found.parts[p].value for p in PARTS) == pytest.approx(found.total.value, rel=1e-12)
    assert found.exposed.value == pytest.approx(0.05e-12 * WEIGHTS, rel=0.05)
    assert found.paired


def test_every_operator_is_taken_apart_too() -> None:
    found = list(ladders(book(simple(), (1, 8))))
    assert [(x.problem.operator, x.problem.batch) for x in found] == [
        (name, batch) for name in ("small", "middle", "large", LAYER) for batch in (1, 8)
    ]


def test_stages_that_overlap_leave_a_negative_residual() -> None:
    base = simple()

    def overlapping(arm, o, batch, weight_format):  # type: ignore[no-untyped-def]
        return base("bypass" if arm == "fused" else arm, o, batch, weight_format)

    found = layer_of(book(overlapping, (1,)))
    assert found.parts["residual"].high < 0
    assert found.parts["residual"].value == pytest.approx(-0.03e-12 * WEIGHTS, rel=0.1)


def test_missing_stages_are_named_and_left_to_the_residual() -> None:
    base = simple()

    def folded(arm, o, batch, weight_format):  # type: ignore[no-untyped-def]
        return None if arm == "scale" else base(arm, o, batch, weight_format)

    found = layer_of(book(folded, (1,)))
    assert found.parts["scale"].value is None
    assert "no such stage" in found.parts["scale"].reason
    assert found.parts["residual"].value == pytest.approx(0.04e-12 * WEIGHTS, rel=0.1)


def test_one_operator_has_no_fixed_part_of_its_own() -> None:
    found = layer_of(book(simple(), (1,), operators=OPERATORS[:1]))
    assert found.parts["fixed per call"].value is None
    assert "one size" in found.parts["fixed per call"].reason
    assert found.parts["move"].value == pytest.approx(2e-6 + 0.16e-12 * 2**20, rel=0.02)


def test_a_t0_that_would_be_below_0_is_absent_and_not_a_certain_0() -> None:
    base = simple()

    def bent(arm, o, batch, weight_format):  # type: ignore[no-untyped-def]
        return base(arm, o, batch, weight_format) * (o.n * o.k / 2**20)  # bends upwards

    found = layer_of(book(bent, (1,)))
    assert found.parts["fixed per call"].value is None
    assert "below 0" in found.parts["fixed per call"].reason
    assert sum(found.parts[p].value or 0 for p in PARTS) == pytest.approx(found.total.value)


def test_without_samples_parts_are_still_there_and_wider() -> None:
    profile, samples = planted(simple(), (1,), block_noise=0.1)
    with_samples, without = (layer_of(Book.open(profile, s, 300)) for s in (samples, None))
    assert not without.paired
    widths = [x.parts["scale"].high - x.parts["scale"].low for x in (with_samples, without)]
    assert widths[1] > 3 * widths[0]


def energy_row(arm: str, joules: float, kernel: Implementation, batch: int = 1) -> EnergyRow:
    q = Quantity(value=joules, low=joules * 0.948, high=joules * 1.052)
    nothing = absent("not looked at")
    return EnergyRow(
        batch=batch, format="int4-g128", kernel=kernel.model_copy(update={"arm": arm}), energy_j=q,
        net_j=nothing, token_j=nothing, power_w=nothing, idle_w=nothing, layer_s=nothing,
        source="counter", sources={}, disagreement=None, sm_clock_mhz=None, memory_clock_mhz=None,
        temperature_begin_c=None, temperature_end_c=None, throttle_share=None, windows=4,
    )  # fmt: skip


def test_joules_have_the_rungs_that_had_windows_and_the_gain_cancels() -> None:
    profile, samples = planted(simple(), (1,))
    fused = next(c.fused for c in profile.comparisons if c.operator == LAYER)
    assert fused
    rows = tuple(energy_row(arm, j, fused) for arm, j in (("bypass", 2.0), ("fused", 3.0)))
    traits = published_traits("NVIDIA A100-SXM4-80GB")
    assert traits
    energy = Energy(
        rows=rows, sensor="planted", published=traits.model_copy(update={"gain_uncertainty": 0.05})
    )
    found = layer_of(Book.open(profile.model_copy(update={"energy": energy}), samples, 2000), "j")
    assert found.parts["multiply"].value == 2.0
    assert found.parts["residual"].value == 1.0
    # 5 % of gain on the difference, and what is left of 5.2 % apart: 1.43 % of 2 and of 3
    expected = (0.05**2 + (0.0143 * 2) ** 2 + (0.0143 * 3) ** 2) ** 0.5
    q = found.parts["residual"]
    assert (q.high - q.low) / 2 == pytest.approx(expected, rel=0.1)
    assert "stream had no energy windows" in found.parts["move"].reason


def test_at_load_is_repaid_by_what_fused_loses_per_step() -> None:
    slow = simple(phi=2e-12)
    (found,) = at_load(book(slow, (1,)))
    layers, loading = 36, 3 * 2e-6 + 1e-12 * WEIGHTS
    assert found.load_s.value == pytest.approx(layers * loading, rel=0.01)
    lost = (0.2e-12 + 2e-12 - 0.7e-12) * WEIGHTS
    assert found.steps_fused.value == pytest.approx(loading / lost, rel=0.02)
    (won,) = at_load(book(simple(), (1,)))
    assert won.steps_fused.value is None
    assert "nothing repays" in won.steps_fused.reason

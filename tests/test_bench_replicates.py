"""Resampled blocks against NumPy's own resampling, and against the intervals of a profile."""

from __future__ import annotations

import numpy as np
import pytest
from trap_profiles import book, planted, simple

from bench.analysis.phi_curve import layers_of
from bench.analysis.replicates import Blocks, Book, drawn, kernel_of, problem_of, quantity
from profiles.schema import Quantity


def test_medians_of_drawn_blocks_are_those_of_values_repeated_as_often() -> None:
    rng = np.random.default_rng(1)
    block = np.array([(p << 32) + b for p in range(3) for b in range(7)])
    blocks = Blocks.draw(block, "key", size=50)
    some = block[2:18]
    values = rng.standard_normal(len(some))
    found = blocks.median(values, some)
    for i in range(51):
        repeated = np.repeat(values, blocks.counts[i, 2:18])
        assert found[i] == pytest.approx(np.median(repeated), abs=1e-15)
    assert (blocks.counts[0] == 1).all()
    of_process = np.array([blocks.counts[:, block >> 32 == p].sum(axis=1) for p in range(3)])
    assert (of_process.sum(axis=0) == 21).all()
    assert set(of_process[0]) == {0, 7, 14, 21}  # a process is drawn whole, or not, or more often


def test_processes_that_differ_are_in_the_interval() -> None:
    """Each process half a standard deviation of a block off: blocks drawn alone would hold 77 % of truths."""
    rng = np.random.default_rng(2)
    block = np.array([(p << 32) + b for p in range(3) for b in range(7)])
    held = 0
    for run in range(200):
        values = np.repeat(0.5 * rng.standard_normal(3), 7) + rng.standard_normal(21)
        q = quantity(Blocks.draw(block, run, size=200).median(values, block), "measured")
        held += q.low is not None and q.high is not None and q.low <= 0 <= q.high
    assert 0.88 < held / 200 < 0.98


def test_a_replicate_without_any_of_its_blocks_has_no_value() -> None:
    blocks = Blocks.draw(np.arange(6), "few", size=300)
    found = blocks.median(np.array([5.0]), np.array([2]))
    none = blocks.counts[:, 2] == 0
    assert none.any()
    assert np.isnan(found[none]).all()
    assert (found[~none] == 5.0).all()


def test_draws_have_the_interval_that_they_come_from() -> None:
    q = Quantity(value=3.0, low=2.0, high=5.0)
    draws = drawn(q, "key", size=20_000)
    assert draws is not None
    assert draws[0] == 3.0
    back = quantity(draws, "measured")
    assert (back.low, back.high) == pytest.approx((2.0, 5.0), abs=0.05)
    again, other = drawn(q, "key", size=20_000), drawn(q, "another", size=20_000)
    assert again is not None
    assert other is not None
    assert (again == draws).all()
    assert abs(np.corrcoef(draws[1:], other[1:])[0, 1]) < 0.03


def test_a_quantity_whose_replicates_mostly_fail_has_no_interval() -> None:
    draws = np.concatenate([[1.0], np.full(60, np.nan), np.linspace(0.9, 1.1, 40)])
    q = quantity(draws, "measured")
    assert (q.value, q.low) == (1.0, None)
    assert "40%" in q.reason


def test_estimates_are_those_of_the_profile_and_intervals_nearly_so() -> None:
    b = book(simple(), (1, 64), noise=0.02)
    for c in layers_of(b):
        assert c.best16
        assert c.fused
        q = b.quantity(b.ratio(problem_of(c), c.best16, c.fused))
        ours, theirs = q, c.speedup_fused
        assert ours.value == pytest.approx(theirs.value, rel=1e-12)
        assert ours.low is not None
        assert ours.high is not None
        width = theirs.high - theirs.low  # type: ignore[operator]
        assert ours.high - ours.low == pytest.approx(width, rel=0.5)


def test_pairing_cancels_what_a_block_does_to_both_arms() -> None:
    profile, samples = planted(simple(), (1,), noise=0.002, block_noise=0.2)
    paired, unpaired = Book.open(profile, samples, 400), Book(profile, None, 400)
    (c,) = layers_of(paired)
    assert c.best16
    assert c.fused
    widths = []
    for each in (paired, unpaired):
        q = each.quantity(each.ratio(problem_of(c), c.best16, c.fused))
        assert q.low is not None
        assert q.high is not None
        widths.append(q.high - q.low)
    assert widths[1] > 10 * widths[0]


def test_without_samples_errors_of_an_arm_do_not_average_out_over_operators() -> None:
    profile, _ = planted(simple(), (1,))
    wide = tuple(
        r.model_copy(update={"time_s": Quantity(value=v, low=0.8 * v, high=1.2 * v)})
        if (v := r.time_s.value)
        else r
        for r in profile.rows
    )
    b = Book(profile.model_copy(update={"rows": wide}), None, 4000)
    for arm in ("fused", "native"):
        rows = [r for r in wide if r.arm == arm and r.operator != "layer"]
        total = sum(b.time_s(problem_of(r), kernel_of(r)) for r in rows)
        q = b.quantity(total)
        assert q.value
        assert q.low == pytest.approx(0.8 * q.value, rel=0.02)
        assert q.high == pytest.approx(1.2 * q.value, rel=0.02)
    (c,) = layers_of(b)
    assert c.fused
    assert c.best16
    fused, native = (b.time_s(problem_of(c), k) for k in (c.fused, c.best16))
    assert fused is not None
    assert native is not None
    assert abs(np.corrcoef(fused[1:], native[1:])[0, 1]) < 0.06


def test_arms_that_failed_are_left_out() -> None:
    profile, samples = planted(simple(), (1,))
    rows = tuple(
        r.model_copy(
            update={"failure": "wrong", "time_s": Quantity(value=None, reason="failed: wrong")}
        )
        if (r.arm, r.operator) == ("stream", "small")
        else r
        for r in profile.rows
    )
    b = Book.open(profile.model_copy(update={"rows": rows}), samples, 50)
    (small,) = (c for c in profile.comparisons if c.operator == "small")
    assert b.stage(problem_of(small), small.fused, "stream") is None
    assert b.stage(problem_of(small), small.fused, "bypass") is not None

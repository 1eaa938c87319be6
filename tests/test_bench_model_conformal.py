"""Interval widths from residuals that come in cells: by hand, and on cells that were drawn."""

from math import inf

import numpy as np
import pytest

from bench.static.conformal import width


def test_nineteen_cells_of_one_residual_give_the_eighteenth() -> None:
    cells = {i: [(-1) ** i * i / 100] for i in range(1, 20)}  # a cell weighs 1/20; 18 of them, 0.9
    assert width(cells) == pytest.approx(0.18)
    assert width(cells, coverage=0.5) == pytest.approx(0.10)


def test_a_cell_counts_once_however_many_rows_it_has() -> None:
    few = {i: [0.1] for i in range(10)}
    many = {**few, 0: [0.5] * 1000}
    assert width(few) == pytest.approx(0.1)
    assert width(many) == pytest.approx(0.5)  # 10 of 11 cells are needed: 9 are not enough
    assert width({**many, 10: [0.1], 11: [0.1]}, coverage=0.8) == pytest.approx(0.1)


def test_too_few_cells_give_no_finite_interval() -> None:
    assert width({i: [0.1] * 50 for i in range(8)}) == inf
    assert width({i: [0.1] * 50 for i in range(9)}) == pytest.approx(0.1)
    assert width({}) == inf


def test_empty_cells_count_for_nothing() -> None:
    assert width({**{i: [0.1] for i in range(9)}, 9: []}) == pytest.approx(0.1)


def test_it_covers_an_unseen_cell_where_a_pool_of_all_rows_does_not() -> None:
    """Cells share an offset: spread 0.3 between, 0.05 within, and their sizes differ much."""
    random = np.random.default_rng(20261122)
    by_cells, by_pool = [], []
    for _ in range(400):
        sizes = random.choice([3, 200], size=16)
        cells = {
            i: list(random.normal(random.normal(0, 0.3), 0.05, size))
            for i, size in enumerate(sizes)
        }
        unseen = np.abs(cells.pop(15))
        pool = np.sort(np.abs(np.concatenate(list(cells.values()))))
        by_cells.append(float(np.mean(unseen <= width(cells))))
        by_pool.append(float(np.mean(unseen <= pool[int(0.9 * len(pool))])))
    assert 0.90 <= np.mean(by_cells) <= 0.97
    assert np.mean(by_pool) < np.mean(by_cells) - 0.03

"""Dependence over a whole run, against enumeration, SciPy and small simulations."""

import itertools
import math

import numpy as np
import pytest
import scipy.stats

from bench.analysis import run_gate

WEIGHTS = np.add.outer(np.arange(5.0) ** 2, np.arange(5.0) ** 2)  # symmetric, and nothing special


def ar1(rng: np.random.Generator, rows: int, n: int, rho: float) -> np.ndarray:
    noise = rng.normal(size=(rows, n + 50))
    values = np.zeros_like(noise)
    for t in range(1, n + 50):
        values[:, t] = rho * values[:, t - 1] + noise[:, t]
    return values[:, 50:]


def blocks_of(rng: np.random.Generator, rho: float, series: int, shared: float = 0.0) -> list:
    """Cells of a run: (series, processes), three processes of 7 blocks, `shared` of the noise common."""
    cells = []
    for _ in range(5):
        own, common = ar1(rng, series, 21 + 60, rho), ar1(rng, 1, 21 + 60, rho)
        values = math.sqrt(1 - shared) * own + math.sqrt(shared) * common
        apart = np.concatenate([values[:, i * 27 : i * 27 + 7] for i in range(3)], axis=1)
        cells.append((list(apart), np.repeat([0, 1, 2], 7)))
    return cells


@pytest.mark.parametrize("kernel", [run_gate._neighbours(6), run_gate._halves(5), WEIGHTS])
def test_moments_agree_with_all_permutations(kernel: np.ndarray) -> None:
    m = len(kernel)
    z = np.random.default_rng(4).normal(size=(3, m))
    gram = z.T @ z  # not centred, so that no sum happens to vanish
    np.fill_diagonal(gram, 0)
    sums = [
        float((kernel * gram[np.ix_(p, p)]).sum())
        for p in map(list, itertools.permutations(range(m)))
    ]
    mean, variance = run_gate._under_permutation(kernel, gram)
    assert mean == pytest.approx(np.mean(sums))
    assert variance == pytest.approx(np.var(sums))


def test_run_gate_of_a_known_sequence() -> None:
    # Ranks 1 to 5: scores -2 -1 0 1 2, products of neighbours 2 + 0 + 0 + 2 = 4 of 10, and 2 of 10 for
    # the bias; 1 - 3/5 of a correlation is left of it in five blocks.
    gate = run_gate.run_gate([([[10, 20, 30, 40, 50]], np.zeros(5))])
    assert gate.lag1_autocorrelation == pytest.approx((0.4 + 0.2) / 0.4)
    scores = np.arange(5.0) - 2
    sums = [
        float(s[1:] @ s[:-1]) for s in (scores[list(p)] for p in itertools.permutations(range(5)))
    ]
    assert gate.z == pytest.approx((4 - np.mean(sums)) / np.std(sums))


def test_run_gate_finds_what_one_row_cannot() -> None:
    rng = np.random.default_rng(12)

    def flagged(rho: float, shared: float = 0.0) -> float:
        gates = [run_gate.run_gate(blocks_of(rng, rho, 8, shared)) for _ in range(150)]
        return np.mean([run_gate.AUTOCORRELATED_RUN in g.flags for g in gates])

    assert flagged(0.3) > 0.95
    assert flagged(0.0) < 0.03
    assert flagged(0.0, shared=0.8) < 0.05


def test_run_gate_keeps_its_level_when_series_share_their_noise() -> None:
    rng = np.random.default_rng(14)
    z = [run_gate.run_gate(blocks_of(rng, 0.0, 6, 0.9)).z for _ in range(400)]
    assert abs(np.mean(z)) < 0.15
    assert np.std(z) == pytest.approx(1, abs=0.12)


def test_run_gate_undoes_the_shrinking_of_short_stretches() -> None:
    rng = np.random.default_rng(15)
    found = [run_gate.run_gate(blocks_of(rng, 0.3, 8)).lag1_autocorrelation for _ in range(100)]
    assert np.mean(found) == pytest.approx(0.29, abs=0.03)  # of ranks; 0.165 as it stands


def test_run_gate_of_nothing() -> None:
    nothing = run_gate.RunGate()
    assert run_gate.run_gate([]) == nothing
    assert run_gate.run_gate([([[1.0, 2, 3]], [0, 0, 0])]) == nothing
    assert run_gate.run_gate([([[5.0] * 9], [0] * 9)]) == nothing


def test_spread_of_one_series_is_the_f_ratio_of_its_ranks() -> None:
    rng = np.random.default_rng(16)
    values = rng.normal(size=21) + np.repeat([0.0, 0.5, 1.0], 7)
    groups = np.repeat(["a", "b", "c"], 7)
    f = scipy.stats.f_oneway(*np.split(scipy.stats.rankdata(values), 3)).statistic
    gate = run_gate.run_gate([([values], groups)])
    assert gate.spread == pytest.approx(f)
    twice = run_gate.run_gate([([values, values], groups)])  # the same once more says nothing more
    assert (twice.spread, twice.spread_z) == pytest.approx((gate.spread, gate.spread_z))


def test_spread_of_processes_without_scatter_is_infinite() -> None:
    gate = run_gate.run_gate([([np.repeat([1.0, 2.0, 3.0], 7)], np.repeat([0, 1, 2], 7))])
    assert gate.spread == math.inf
    assert run_gate.PROCESSES_DIFFER in gate.flags


def test_shift_of_a_known_sequence() -> None:
    # Scores -2.5 to 2.5: the halves differ by 4.5 + 4.5 = 9, squared 81; over all orders, by chance:
    gate = run_gate.run_gate([([[1, 2, 3, 4, 5, 6]], np.zeros(6))])
    orders = itertools.permutations(np.arange(6) - 2.5)
    squares = [(sum(p[3:]) - sum(p[:3])) ** 2 for p in orders]
    assert gate.shift == pytest.approx(81 / np.mean(squares))


def shifted(
    rng: np.random.Generator, size: float, first: int, last: int, series: int = 8
) -> tuple[str, ...]:
    """Flags of a run of which half of the series shift by `size` in blocks `first` to `last` of 21."""
    cells = blocks_of(rng, 0.0, series)
    for values, _ in cells:
        for one in values[::2]:
            one[first:last] += size
    return run_gate.run_gate(cells).flags


@pytest.mark.parametrize(
    ("first", "last", "word"),
    [
        (11, 14, run_gate.SHIFTED_RUN),  # in the middle of the second process, until it ends
        (11, 21, run_gate.SHIFTED_RUN),  # and for good
        (7, 21, run_gate.PROCESSES_DIFFER),  # between two processes
        (7, 14, run_gate.PROCESSES_DIFFER),
    ],
)
def test_one_level_shift_shows(first: int, last: int, word: str) -> None:
    rng = np.random.default_rng(17)
    assert np.mean([word in shifted(rng, 3.5, first, last) for _ in range(100)]) > 0.95
    assert np.mean([word in shifted(rng, 0.0, first, last) for _ in range(100)]) < 0.04


def test_processes_that_land_a_little_apart_are_no_flag() -> None:
    """Variances of twice what the blocks explain: found beyond doubt, and left to the spread."""
    rng = np.random.default_rng(18)
    gates = []
    for _ in range(50):
        cells = blocks_of(rng, 0.0, 8)
        for values, groups in cells:
            for one in values:
                one += 0.38 * rng.normal(size=3)[groups]
        gates.append(run_gate.run_gate(cells))
    assert np.mean([g.spread for g in gates]) == pytest.approx(2, abs=0.2)
    assert np.mean([g.spread_z > 2.33 for g in gates]) > 0.95
    assert not any(run_gate.PROCESSES_DIFFER in g.flags for g in gates)


@pytest.mark.parametrize("shared", [0.0, 0.9])
def test_square_statistics_keep_their_level(shared: float) -> None:
    rng = np.random.default_rng(19)
    gates = [run_gate.run_gate(blocks_of(rng, 0.0, 6, shared)) for _ in range(400)]
    for z in ([g.shift_z for g in gates], [g.spread_z for g in gates]):
        assert abs(np.mean(z)) < 0.15
        assert np.std(z) == pytest.approx(1, abs=0.12)
        assert np.mean(np.array(z) > 2.33) < 0.03

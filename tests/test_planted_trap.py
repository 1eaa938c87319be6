"""B* and N* against planted ones; `planted_trap.py` says what the table is.

python -m pytest -m proof -s tests/test_planted_trap.py
"""

from __future__ import annotations

import os

import pytest

from bench.measure import resume
from bench.measure import run as run_module
from bench.measure.devices import Problem
from bench.measure.devices.simulated import BOARDS, Scenario, SimulatedDevice, true_time_s
from profiles.schema import Operator
from tests.planted_trap import (
    CALLS,
    CASES,
    FORMAT,
    OPERATORS,
    RUNS,
    TO_FIND,
    Case,
    Found,
    Planted,
    lines,
    one_run,
    share,
    table,
    truth,
    width,
)
from tests.planted_truth import InProcess

SIGNS = {"wins_below", "wins_above", "never", "always"}
BY_NAME = {case.name: case for case in CASES}


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_module, "Worker", InProcess)
    monkeypatch.setattr(os, "fsync", lambda file: None)
    known = resume.sources()
    monkeypatch.setattr(resume, "sources", lambda *_: known)


def test_the_cases_are_those_that_a_theory_must_tell_apart() -> None:
    """Every sign of B* and N*, large batches too; N* and steps until loading is repaid by hand."""
    planted = {case.name: truth(case) for case in CASES}

    def signs(what: str) -> set[str]:
        return {t.sign for found in planted.values() for key, t in found.items() if what in key}

    assert signs("B* fused") == SIGNS
    assert signs("B* unfused") == {"wins_below", "never"}
    assert signs("joules") == {"wins_below", "never"}
    assert signs("B* at load") == {"wins_above", "always"}
    assert signs("N* fused") == SIGNS
    assert signs("N* fused, B = 256") == SIGNS
    assert signs("N* unfused") == {"wins_above", "never"}
    ((params, _),) = planted["launches of fused cost more"]["N* fused, B = 1"].at
    c_16 = 2 / (3350e9 * 0.85) + 2 / 800e12 + 0.01e-12
    c_q = 4.125 / 8 / (3350e9 * 0.90) + 2 / 800e12 + 0.09e-12
    assert params == pytest.approx(CALLS * 2 * 2e-6 / (c_16 - c_q), rel=1e-3)  # x and y left out
    weights = 1024**2 + 2048**2 + 6144 * 2048 + 4096 * 8192
    load_s = 4 * 2e-6 + weights * ((4.125 / 8 + 2) / (3350e9 * 0.90) + 0.06e-12)
    lost_s = weights * (c_q + 1.91e-12 - c_16)  # both have one launch an operator
    ((steps, _),) = planted["dequantization beyond memory"]["at load, repaid"].at
    assert steps == pytest.approx(load_s / lost_s, rel=1e-3)
    draws = planted["fused is faster, and draws far more"]
    assert (draws["B* fused"].sign, draws["B* fused, joules"].sign) == ("always", "never")


def test_a_turn_outside_its_interval_is_not_found() -> None:
    from profiles.schema import Quantity

    planted = Planted("wins_below", ((96, 97),))
    holds = Quantity(value=100, low=64, high=128, kind="simulated")
    beside = Quantity(value=100, low=97, high=128, kind="simulated")
    assert planted.found("wins_below", [holds])
    assert not planted.found("wins_below", [beside])
    assert not planted.found("wins_above", [holds])
    assert not planted.found("wins_below", [])


def test_the_width_of_the_table_is_of_the_intervals_that_were_given() -> None:
    found = [Found({}, {}, {"N*": ratio}) for ratio in (2.0, 4.0, 3.0)] + [Found({}, {}, {})]
    assert width(found, "N*") == "x 3 (9 of 10 up to x 4)"
    assert width(found, "B*") == "–"


def test_factors_of_processes_and_operators_are_kept_for_as_long_as_they_are_said_to_be() -> None:
    """Two processes, blocks, batches: an arm's factors on top of its true time, with nothing else planted."""
    scenario = Scenario(process_noise=0.05, operator_noise=0.05)

    def factor(operator: Operator, batch: int, seed: tuple[int, ...], arm: str = "fused") -> float:
        device = SimulatedDevice(BOARDS["h100"], scenario, arms=("native", "fused"))
        problem = Problem(operator.name, operator.n, operator.k, batch, FORMAT, "fp16")
        kernel = next(k for k in device.kernels(problem) if k.arm == arm)
        device.start_block(seed, 0.0)
        sample = device.sample(device.prepare(problem, kernel), 1, "graph")
        return sample.time_s / true_time_s(BOARDS["h100"], problem, kernel, kernel.arm, "graph")

    small, large = OPERATORS[0], OPERATORS[-1]
    here = factor(small, 1, (7, 0, 0, 0, 1))
    assert here != pytest.approx(1, abs=1e-6)
    assert factor(small, 1, (7, 0, 0, 5, 1)) == pytest.approx(here)  # another block
    assert factor(small, 64, (7, 0, 1, 5, 1)) == pytest.approx(here)  # another batch
    assert factor(small, 1, (7, 0, 0, 0, 1), "native") != pytest.approx(here, rel=1e-3)
    assert factor(small, 1, (8, 0, 0, 0, 1)) != pytest.approx(here, rel=1e-3)  # another run
    there = factor(small, 1, (7, 1, 0, 0, 1))  # another process
    assert there != pytest.approx(here, rel=1e-3)
    # in log, a process adds the same to every operator
    assert factor(large, 1, (7, 1, 0, 0, 1)) / factor(large, 1, (7, 0, 0, 0, 1)) == pytest.approx(
        there / here
    )


@pytest.mark.parametrize(
    "case",
    [
        BY_NAME["slow multiplication of native"],
        BY_NAME["dequantization beyond memory"],
        BY_NAME["scratch that stays in the cache"],
        BY_NAME["fused draws more"],
        BY_NAME["neither processes nor operators alike"],
    ],
    ids=lambda case: str(case.name),
)
@pytest.mark.usefixtures("in_process")
def test_one_run_of_a_case_finds_what_is_planted(case: Case) -> None:
    planted = truth(case)
    found = one_run(case, planted, seed=3)
    assert found.right.keys() == planted.keys()
    assert all(found.right.values()), found.said


@pytest.mark.proof
def test_planted_crossings_are_found_in_500_runs(request: pytest.FixtureRequest) -> None:
    rows = list(table(RUNS))
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print("\n" + "\n".join(line for row in rows for line in lines(*row)))
    for case, planted, found in rows:
        assert len(found) == RUNS
        for what in planted:
            assert share(found, what) >= TO_FIND, (case.name, what)

"""B* and N* against planted ones; `planted_trap.py` says what the table is.

python -m pytest -m proof -s tests/test_planted_trap.py
"""

from __future__ import annotations

import os

import pytest

from bench.measure import resume
from bench.measure import run as run_module
from tests.planted_trap import (
    CALLS,
    CASES,
    JOULE_RUNS,
    RUNS,
    TO_FIND,
    Case,
    Planted,
    lines,
    one_run,
    share,
    table,
    truth,
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


@pytest.mark.parametrize(
    "case",
    [
        BY_NAME["slow multiplication of native"],
        BY_NAME["dequantization beyond memory"],
        BY_NAME["scratch that stays in the cache"],
        BY_NAME["fused draws more"],
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
        assert len(found) == (JOULE_RUNS if case.joules else RUNS)
        for what in planted:
            assert share(found, what) >= TO_FIND, (case.name, what)

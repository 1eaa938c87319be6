"""B* and N* against planted ones; `planted_trap.py` says what the table is.

python -m pytest -m proof -s tests/test_planted_trap.py
"""

from __future__ import annotations

import math
import os

import pytest

from bench.measure import resume
from bench.measure import run as run_module
from tests.planted_trap import CASES, TO_FIND, Case, line, one_run, table, truth
from tests.planted_truth import InProcess


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_module, "Worker", InProcess)
    monkeypatch.setattr(os, "fsync", lambda file: None)
    known = resume.sources()
    monkeypatch.setattr(resume, "sources", lambda *_: known)


def test_the_cases_are_those_that_a_theory_must_tell_apart() -> None:
    """Every sign of B* and N*, the crossings by hand."""
    planted = {case.name: truth(case) for case in CASES}
    assert {t.batch_sign for t in planted.values()} == {
        "wins_below",
        "wins_above",
        "never",
        "always",
    }
    assert {t.scale_sign for t in planted.values()} == {
        "wins_below",
        "wins_above",
        "never",
        "always",
    }
    launches = planted["launches of fused cost more"]
    c_16 = 2 / (3350e9 * 0.85) + 2 / 800e12 + 0.01e-12
    c_q = 4.125 / 8 / (3350e9 * 0.90) + 2 / 800e12 + 0.09e-12
    assert launches.params == pytest.approx(36 * 4 * 2 * 2e-6 / (c_16 - c_q), rel=1e-6)
    assert math.isnan(planted["dequantization beyond memory"].params)


@pytest.mark.parametrize(
    "case", [c for c in CASES if not c.eager][:4], ids=lambda case: str(case.name)
)
@pytest.mark.usefixtures("in_process")
def test_one_run_of_a_case_finds_what_is_planted(case: Case) -> None:
    found = one_run(case, truth(case), seed=3)
    assert found.batch, found.said
    assert found.scale, found.said


@pytest.mark.proof
def test_planted_crossings_are_found_in_500_runs(request: pytest.FixtureRequest) -> None:
    rows = list(table(500))
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print("\n" + "\n".join(line(*row) for row in rows))
    for case, _, found in rows:
        assert len(found) == 500
        assert sum(f.batch for f in found) >= TO_FIND * 500, case.name
        assert sum(f.scale for f in found) >= TO_FIND * 500, case.name

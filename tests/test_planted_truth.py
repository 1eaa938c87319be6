"""The instrument against planted truth, in full; `planted_truth.py` says what each table is.

python -m pytest -m proof -s tests/test_planted_truth.py
"""

from __future__ import annotations

import planted_truth
import pytest
from planted_truth import (
    COVERED,
    DEPENDENT,
    HEALTHY,
    TO_COVER,
    TO_FLAG,
    TO_LEAVE,
    TO_SAVE,
    Tables,
)

pytestmark = pytest.mark.proof


@pytest.fixture(scope="module")
def tables(request: pytest.FixtureRequest) -> Tables:
    """Everything once, printed whether or not pytest captures."""
    found = planted_truth.tables()
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print("\n" + planted_truth.text(found))
    return found


def test_intervals_cover_what_is_planted(tables: Tables) -> None:
    ours = [row for row in tables.coverage if row.estimator == "ours"]
    assert {(row.scenario, row.phi) for row in ours} == {
        (scenario, phi) for scenario in COVERED for phi in planted_truth.PHIS
    }
    for row in ours:
        assert row.covered.runs >= 2000
        assert TO_COVER[0] <= row.covered.value <= TO_COVER[1], row
        assert abs(row.bias) <= planted_truth.LARGEST_BIAS, row


@pytest.mark.parametrize("scenario", ["drift", "boost", "throttling"])
def test_the_unpaired_estimator_fails_where_the_clock_moves(tables: Tables, scenario: str) -> None:
    (row,) = (r for r in tables.coverage if (r.scenario, r.estimator) == (scenario, "unpaired"))
    assert row.covered.value < TO_COVER[0] - 0.05


def test_the_unpaired_estimator_is_calibrated_where_nothing_moves(tables: Tables) -> None:
    """It fails above because of what it is, and not because it was written badly."""
    (row,) = (r for r in tables.coverage if (r.scenario, r.estimator) == ("noise", "unpaired"))
    assert row.covered.value >= TO_COVER[0] - 0.03


def test_stopping_on_width_fails(tables: Tables) -> None:
    (row,) = (r for r in tables.coverage if r.estimator == "stop on width")
    assert row.covered.value < TO_COVER[0]


@pytest.mark.parametrize("scenario", DEPENDENT)
def test_dependence_and_level_shifts_are_flagged(tables: Tables, scenario: str) -> None:
    (row,) = (f for f in tables.flags if (f.scenario, f.where) == (scenario, "whole run"))
    assert row.wanted
    assert row.flagged.value >= TO_FLAG, row


@pytest.mark.parametrize("scenario", HEALTHY)
def test_healthy_runs_are_not_flagged(tables: Tables, scenario: str) -> None:
    (row,) = (f for f in tables.flags if (f.scenario, f.where) == (scenario, "whole run"))
    assert row.flagged.value <= TO_LEAVE, row
    assert max(tables.curve["noise"]) <= 0.12


def test_a_single_row_shows_dependence_only_with_more_blocks_than_it_has(tables: Tables) -> None:
    """Why there are gates of runs: the gates of one row need about this many blocks."""
    power = {
        name: dict(zip(planted_truth.CURVE, shares, strict=True))
        for name, shares in tables.curve.items()
    }
    rows = {f.scenario: f.flagged.value for f in tables.flags if f.where == "single row"}
    assert rows["ar03"] < rows["ar06"] < TO_FLAG
    assert power["ar06"][24] < TO_FLAG <= power["ar06"][60]
    assert power["ar03"][90] < TO_FLAG <= power["ar03"][150]
    assert rows["shift-between"] < rows["shift-once"] < TO_FLAG < rows["shift"]


@pytest.mark.parametrize("scenario", ["drift", "throttling"])
def test_pairing_saves_samples_where_the_clock_moves(tables: Tables, scenario: str) -> None:
    (row,) = (
        s for s in tables.savings if (s.scenario, s.reference) == (scenario, "repeats_of_each")
    )
    assert row.samples >= TO_SAVE


def test_pairing_saves_samples_over_a_harness_that_is_run_again_and_again(tables: Tables) -> None:
    """Where it jumps; a slow drift such a harness follows as well as we do, and that goal is missed."""
    rows = {s.scenario: s.samples for s in tables.savings if s.reference == "until_steady"}
    assert rows["throttling"] >= TO_SAVE
    assert rows["moments"] >= TO_SAVE
    assert rows["drift"] < TO_SAVE

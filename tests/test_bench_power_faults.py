"""Each fault of a power sensor ends in a reason: the table of tests/power_faults.py holds."""

from __future__ import annotations

import re
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.nvml_stub import build
from tests.power_faults import (
    CASES,
    LAYER_J,
    MID_WINDOW,
    Answer,
    Case,
    MidWindow,
    Outcome,
    answers,
    carried,
    run,
)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("nvml"))


@pytest.fixture(scope="module")
def outcomes(library: Path) -> dict[str, Future[Outcome]]:
    """All commands, two at a time, for most of their time is waiting."""
    pool = ThreadPoolExecutor(2)
    return {case.fault: pool.submit(run, case, library, library) for case in CASES}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.fault)
def test_the_user_sees_a_reason_and_the_exit_code(
    case: Case, outcomes: dict[str, Future[Outcome]]
) -> None:
    found = outcomes[case.fault].result()
    assert "Traceback" not in found.output
    assert case.sees in found.sentence, found.output
    assert re.search(case.shows, found.output), found.output
    assert found.code == case.code, found.output
    if case.code == 1:
        assert found.sentence.startswith("No energy sensor.")
        assert " 0 J" not in found.output


@pytest.fixture(scope="module")
def during(library: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Answer]:
    return answers(library, tmp_path_factory.mktemp("windows"))


@pytest.mark.parametrize("case", MID_WINDOW, ids=lambda case: case.fault)
def test_a_fault_during_a_window_ends_in_a_reason_or_the_right_joules(
    case: MidWindow, during: dict[str, Answer]
) -> None:
    found = during[case.fault]
    for recording in found.recordings:
        assert re.search(case.carries, carried(recording)), carried(recording)
        assert recording.sampling.readings == len(recording.trace.time_s)
    assert "Traceback" not in found.output
    joules = found.arm.gross_j
    if case.refused:
        assert [window.gross_j for window in found.windows] == [None, None]
        for window in found.windows:
            assert re.search(case.refused, window.reason), window.reason
        assert joules.value is None
        assert found.windows[0].reason in joules.reason
        assert found.code == 1
        assert f"No joules of int4-g128, batch 1, fused: {joules.reason}." in found.output
        return
    for window in found.windows:
        assert window.gross_j == pytest.approx(LAYER_J, rel=0.05)
        assert window.source == case.source
    assert joules.value == pytest.approx(LAYER_J, rel=0.05)
    assert joules.low is not None
    assert joules.high is not None
    assert joules.low <= LAYER_J <= joules.high
    assert found.arm.throttled == (case.fault == "throttling")
    assert found.code == 0
    assert f"{1e3 * joules.value:.0f}" in found.output

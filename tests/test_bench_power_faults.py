"""Each fault of a power sensor ends in a reason: the table of tests/power_faults.py holds."""

from __future__ import annotations

import re
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.nvml_stub import build
from tests.power_faults import CASES, MID_WINDOW, Case, MidWindow, Outcome, carried, run, sample


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


@pytest.mark.parametrize("case", MID_WINDOW, ids=lambda case: case.fault)
def test_the_trace_carries_what_happened(case: MidWindow, library: Path, tmp_path: Path) -> None:
    trace, sampling = sample(case, library, tmp_path)
    assert re.search(case.carries, carried(trace, sampling)), carried(trace, sampling)
    assert sampling.readings == len(trace.time_s)
    if case.fault == "slow call":
        assert trace.read_s.max() >= 0.2

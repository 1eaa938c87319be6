"""The accuracy table of tests/simulated_meters.py: right within 5 % or refused, and where nobody may refuse."""

from __future__ import annotations

import pytest
from simulated_meters import BOARDS, LOADS, STEADY, cell, table

PART_TIME = ("V100", "A100", "H100")
# A counter that counts all hides what a part-time sensor misses; these boards are scored without its help.
BLIND = [("seen", b) for b in (*PART_TIME, "A10")] + [("none", b) for b in (*PART_TIME, "4090")]


@pytest.mark.parametrize(("counter", "board"), [*(("all", b) for b in BOARDS), *BLIND])
def test_ours_is_within_5_percent_or_refuses(counter: str, board: str) -> None:
    for load in LOADS:
        c = cell(board, load, counter)
        if c.ours is None:
            assert load not in STEADY, c.arm.reason
            assert c.arm.reason
        else:
            assert abs(c.ours) <= 0.05, load
            assert load != "too short"
        if load == "throttling":
            assert c.arm.throttled
        if load == "gaps in step":
            assert (c.ours is None) == (board in (*PART_TIME, "4090"))


@pytest.mark.parametrize("board", BOARDS)
def test_a_short_run_is_refused_by_ours_and_wrong_by_a_quarter_or_more_otherwise(
    board: str,
) -> None:
    short = cell(board, "too short")
    assert short.ours is None
    assert "0.30 s, less than the 5 s needed" in short.arm.reason
    assert abs(short.naive) > 0.25
    assert cell(board, "constant").naive_short == pytest.approx(short.naive, abs=0.02)


def test_one_load_that_ours_refuses_and_naive_answers_wrongly_and_one_where_both_agree() -> None:
    for board in ("A100", "V100"):
        gaps, steady = cell(board, "gaps in step"), cell(board, "constant")
        assert gaps.ours is None
        assert abs(gaps.naive) > 0.4
        assert steady.ours == pytest.approx(0, abs=0.005)
        assert steady.naive == pytest.approx(0, abs=0.02)


def test_the_table_has_a_line_for_every_board_and_load() -> None:
    lines = table("all").splitlines()
    assert len(lines) == 1 + len(BOARDS) * len(LOADS)
    assert sum("refused" in line for line in lines) >= len(BOARDS)

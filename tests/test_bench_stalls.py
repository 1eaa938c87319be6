"""Rates of pipes as ptxas has them: control words by hand, and the stored rates against the compiler."""

from __future__ import annotations

import json

import pytest
import typer
from typer.testing import CliRunner

from bench import sass as command
from bench.static import stalls
from bench.static.stalls import Read, least_clocks, parse, probe, read
from profiles.specs import load_gpus

MULTIPROCESSORS = {
    g.multiprocessor.capability: g.multiprocessor for g in load_gpus().values() if g.multiprocessor
}
VERSIONS = {True: "13.4.59", False: "12.9.86"}  # that the data was read from
LISTING = """
        /*0080*/                   I2F.S8 R9, R4 ;                           /* 0x0000000400097306 */
                                                                             /* 0x008e220000001400 */
        /*0090*/              @!P0 LOP3.LUT R7, R0, R5, R4, 0x5a, !PT ;      /* 0x0000000500077212 */
                                                                             /* 0x004fc400078e5a04 */
"""


def word(stall: int, barrier: int = 7) -> int:
    return stall << 41 | barrier << 46


def code(*instructions: tuple[str, int] | tuple[str, int, int]) -> list[tuple[str, int]]:
    return [(name, word(*rest)) for name, *rest in instructions]


def test_the_listing_of_the_disassembler_by_hand() -> None:
    """0x008e22: from bit 41 up, stall 1 and write barrier 0. 0x004fc4: stall 2 and no barrier."""
    found = parse(LISTING)
    assert [name for name, _ in found] == ["I2F.S8", "LOP3.LUT"]
    (_, i2f), (_, lop3) = found
    assert (i2f >> 41 & 15, i2f >> 46 & 7) == (1, 0)
    assert (lop3 >> 41 & 15, lop3 >> 46 & 7) == (2, 7)


def test_a_stall_of_two_is_half_of_the_lanes() -> None:
    assert read(code(*[("LOP3", 2)] * 12)) == {"LOP3": Read(64.0, False)}
    assert read(code(*[("FFMA", 1)] * 12)) == {"FFMA": Read(128.0, False)}


def test_longer_waits_for_something_else_do_not_count() -> None:
    late = [("LOP3", 2), ("LOP3", 6), ("LOP3", 3)] * 4
    assert read(code(*late)) == {"LOP3": Read(64.0, False)}


def test_neighbours_have_nothing_between_them() -> None:
    """A stall of 1 before a store says nothing of the pipe; stores are not what is probed."""
    mixed = [("I2F", 1, 0), ("STG", 1)] * 10 + [("I2F", 8, 0)] * 4
    assert read(code(*mixed)) == {"I2F": Read(16.0, True)}


def test_a_barrier_and_no_wait_say_nothing() -> None:
    assert read(code(*[("MUFU", 1, 0)] * 12)) == {"MUFU": Read(None, True)}


def test_two_pipes_that_take_turns_are_as_far_apart_as_both_waits() -> None:
    turns = [("HFMA2", 1), ("HFMA2.MMA", 1)] * 10
    assert read(code(*turns)) == {"HFMA2": Read(64.0, False), "HFMA2.MMA": Read(64.0, False)}


@pytest.mark.parametrize("capability", MULTIPROCESSORS)
def test_what_is_stored_as_read_from_ptxas_is_what_it_says(capability: str) -> None:
    """Every number of the sort "toolchain"; another version of ptxas may say something else."""
    tenfold = round(float(capability) * 10)
    version = stalls.assembler_version(tenfold)
    if version != VERSIONS[tenfold >= stalls.BLACKWELL]:
        pytest.skip(f"the data is not of ptxas {version}")
    found, multiprocessor = probe(tenfold), MULTIPROCESSORS[capability]
    compared = 0
    for pipe, reads in found.items():
        number = getattr(multiprocessor, f"{pipe}_lanes")
        said = [number, *number.others]
        stored = {x.value for x in said if x.sort == "toolchain"}
        lanes = {r.lanes for r in reads.values() if r.lanes is not None}
        turns = [r.lanes or 0.0 for name, r in reads.items() if name in ("HFMA2", "HFMA2.MMA")]
        lanes |= {sum(turns)} if turns else set()
        if stored and lanes:
            assert stored <= lanes, (pipe, stored, reads)
            compared += 1
    assert compared >= 2
    integer = {r.lanes for r in found["integer"].values()}
    assert integer == {64.0}
    assert len(found["integer"]) == 3
    assert {r.lanes for r in found["imad"].values()} == {64.0}
    assert len(found["imad"]) == 2


def test_operations_that_take_turns_by_hand() -> None:
    """Two on one pipe of half rate wait 2 clocks each; on two pipes 1 each, so each still comes every 2."""
    one, two = [("IMAD", 2), ("FFMA", 2)] * 4, [("IMAD", 1), ("LOP3.LUT", 1)] * 4
    assert (least_clocks(code(*one)), least_clocks(code(*two))) == (4.0, 2.0)
    three = [("HFMA2", 2), ("FFMA", 1), ("HFMA2.MMA", 1), ("FFMA", 1)] * 3
    assert least_clocks(code(*three)) == 2.5
    late = [
        ("IMAD", 5),
        ("FFMA", 4),
        ("IMAD", 2),
        ("FFMA", 1),
        ("IMAD", 6),
        ("STG", 1),
        ("FFMA", 1),
    ]
    assert least_clocks(code(*late)) == 3.0
    waiting = code(*one)
    waiting[4:4] = [("IMAD", word(1)), ("FFMA", word(1) | 1 << 52), ("IMAD", word(1) | 1 << 52)]
    assert least_clocks(waiting) == 4.0  # how long it waits for an operand, the stall does not say
    with pytest.raises(ValueError, match="should take turns"):
        least_clocks(code(*[("IMAD", 2)] * 8))


@pytest.mark.parametrize("capability", MULTIPROCESSORS)
def test_products_of_integers_share_a_pipe_with_fp32_and_none_with_logic(capability: str) -> None:
    """What ptxas says of a pair with FFMA is stored as the lanes of fp32 that the other one takes.

    LOP3 every other clock leaves as many for IMAD, and for FFMA where that has half of the lanes.
    """
    tenfold = round(float(capability) * 10)
    if stalls.assembler_version(tenfold) != VERSIONS[tenfold >= stalls.BLACKWELL]:
        pytest.skip("the data is not of this ptxas")
    clocks, multiprocessor = stalls.turns(tenfold), MULTIPROCESSORS[capability]
    assert clocks["imad and integer"] == clocks["integer"] == 2.0
    for pipe in ("imad", "half2"):
        number = getattr(multiprocessor, f"{pipe}_slots")
        stored = {x.value for x in (number, *number.others) if x.sort == "toolchain"}
        said = clocks[pipe] / 4 * multiprocessor.fp32_lanes.value / 32 - 1
        assert stored <= {said}, (pipe, clocks)
        assert number.low <= said <= number.high


def test_the_table_shows_where_sources_differ() -> None:
    app = typer.Typer()
    app.command()(command.main)
    done = CliRunner().invoke(app, ["--pipes", "--gpu", "h100,rtx5090", "--json"])
    assert done.exit_code == 0
    rows = {(r["arch"], r["pipe"]): r for r in json.loads(done.stdout)}
    fast = rows["sm_90", "fast_conversion"]
    assert (fast["value"], fast["low"], fast["differ"]) == (64, 16, True)
    assert fast["published"][0]["value"] == 16
    assert fast["ptxas"]["I2FP.F32.S32"]["lanes"] == 64
    assert not rows["sm_90", "fp32"]["differ"]
    assert rows["sm_120", "conversion"]["ptxas"]["I2F.S8"] == {"lanes": None, "variable": True}
    text = CliRunner().invoke(app, ["--pipes", "--gpu", "h100,rtx5090"]).stdout
    assert "fast_conversion !" in text
    assert "ptxas 13.4.59" in text or rows["sm_120", "fp32"]["assembler"] != "13.4.59"
    assert max(map(len, text.splitlines())) <= 80

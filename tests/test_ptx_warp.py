"""Exchanges between lanes, against scalar code written from the PTX ISA's own pseudo-code."""

from __future__ import annotations

import numpy as np
import pytest

from bench.static.ptx import Fault, FaultError
from tests.ptx_text import at, run

WARPS = 640  # 20,480 lanes
BLOCK = 256
GRID = WARPS * 32 // BLOCK


def words(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 1 << 32, WARPS * 32, dtype=np.uint32)


def shuffled(mode: str, lane: int, values: list[int], b: int, c: int) -> tuple[int, bool]:
    """The pseudo-code of shfl.sync for one lane of a warp."""
    bval, cval, mask = b & 31, c & 31, (c >> 8) & 31
    max_lane = (lane & mask) | (cval & ~mask)
    min_lane = lane & mask
    if mode == "up":
        j = lane - bval
        inside = j >= max_lane
    elif mode == "down":
        j = lane + bval
        inside = j <= max_lane
    elif mode == "bfly":
        j = lane ^ bval
        inside = j <= max_lane
    else:
        j = min_lane | (bval & ~mask)
        inside = j <= max_lane
    return values[j if inside else lane], inside


@pytest.mark.parametrize("mode", ["up", "down", "bfly", "idx"])
def test_shuffle(mode: str) -> None:
    """Any amount and segment width, both destinations."""
    rng = np.random.default_rng(1)
    value, b = words(2), words(3)
    segment = rng.choice([0, 16, 24, 28, 30, 31], WARPS)
    clamp = 0 if mode == "up" else 31
    c = np.repeat(segment << 8 | clamp, 32).astype(np.uint32)
    out, inside = np.zeros_like(value), np.zeros_like(value)
    body = "\n".join(
        [
            *(at(i, 4, i) for i in range(5)),
            "ld.global.b32 %r0, [%q0]; ld.global.b32 %r1, [%q1]; ld.global.b32 %r2, [%q2];",
            f"shfl.sync.{mode}.b32 %r3|%p0, %r0, %r1, %r2, -1;",
            "selp.b32 %r4, 1, 0, %p0;",
            "st.global.b32 [%q3], %r3; st.global.b32 [%q4], %r4;",
        ]
    )
    run(body, [value, b, c, out, inside], BLOCK, GRID)
    for warp in range(WARPS):
        lanes = slice(32 * warp, 32 * warp + 32)
        values = value[lanes].tolist()
        expected = [
            shuffled(mode, lane, values, int(b[lanes][lane]), int(c[lanes][lane]))
            for lane in range(32)
        ]
        assert out[lanes].tolist() == [v for v, _ in expected]
        assert inside[lanes].tolist() == [int(p) for _, p in expected]


def reduced(name: str, values: list[int]) -> int:
    """A reduction over one warp, in Python's integers."""
    functions = {"add": sum, "min": min, "max": max}
    if name in functions:
        return functions[name](values)
    total = values[0]
    for value in values[1:]:
        total = {"and": total & value, "or": total | value, "xor": total ^ value}[name]
    return total


@pytest.mark.parametrize(
    ("name", "kind"),
    [(n, k) for n in ("add", "min", "max") for k in ("u32", "s32")]
    + [(n, "b32") for n in ("and", "or", "xor")],
)
@pytest.mark.parametrize("members", [0xFFFFFFFF, 0x0F0F00F3])
def test_reduction(name: str, kind: str, members: int) -> None:
    """Over the lanes that run, here those of the mask; the others keep what they had."""
    value, out = words(4), np.full(WARPS * 32, 77, np.uint32)
    value[: 32 * 50] |= np.uint32(0xFFFF0000)  # so that and, min and max see all-ones
    body = f"""
    {at(0, 4, 0)} {at(1, 4, 1)}
    ld.global.b32 %r0, [%q0];
    mov.u32 %r1, %laneid;
    mov.b32 %r2, {members};
    shr.b32 %r3, %r2, %r1;
    and.b32 %r3, %r3, 1;
    setp.eq.b32 %p0, %r3, 0;
    @%p0 bra OUT;
    redux.sync.{name}.{kind} %r4, %r0, {members};
    st.global.b32 [%q1], %r4;
    OUT:
    """
    run(body, [value, out], BLOCK, GRID)
    signed = value.view(np.int32) if kind == "s32" else value
    named = [lane for lane in range(32) if members >> lane & 1]
    for warp in range(WARPS):
        numbers = signed[32 * warp : 32 * warp + 32].tolist()
        result = reduced(name, [numbers[lane] for lane in named]) & 0xFFFFFFFF
        expected = [result if lane in named else 77 for lane in range(32)]
        assert out[32 * warp : 32 * warp + 32].tolist() == expected


@pytest.mark.parametrize("density", [0.0, 0.03, 0.5, 1.0])
def test_vote_and_active_mask(density: float) -> None:
    """all, any, uni and ballot of a predicate; activemask in a branch."""
    asked = (np.random.default_rng(5).random(WARPS * 32) < density).astype(np.uint32)
    outs = [np.zeros(WARPS * 32, np.uint32) for _ in range(5)]
    votes = " ".join(
        f"vote.sync.{name}.pred %p{i + 1}, %p0, -1; selp.b32 %r{i + 1}, 1, 0, %p{i + 1};"
        for i, name in enumerate(("all", "any", "uni"))
    )
    stores = " ".join(f"st.global.b32 [%q{i}], %r{i};" for i in range(1, 5))
    body = f"""
    {" ".join(at(i, 4, i) for i in range(6))}
    ld.global.b32 %r0, [%q0];
    setp.ne.b32 %p0, %r0, 0;
    {votes}
    vote.sync.ballot.b32 %r4, %p0, -1;
    {stores}
    @!%p0 bra OUT;
    activemask.b32 %r5;
    st.global.b32 [%q5], %r5;
    OUT:
    """
    run(body, [asked, *outs], BLOCK, GRID)
    for warp in range(WARPS):
        lanes = slice(32 * warp, 32 * warp + 32)
        true = asked[lanes].tolist()
        ballot = sum(bit << lane for lane, bit in enumerate(true))
        every, some, same = all(true), any(true), len(set(true)) == 1
        for out, expected in zip(outs, (every, some, same, ballot), strict=False):
            assert out[lanes].tolist() == [int(expected)] * 32
        assert outs[4][lanes].tolist() == [ballot if bit else 0 for bit in true]


GROUPS = """
    setp.lt.u32 %p0, %t, 16;
    selp.b32 %r1, 0xFFFF, 0xFFFF0000, %p0;
"""


def test_groups_with_masks_of_their_own() -> None:
    """One instruction, two masks: each half of the warp has its own sum, ballot and vote."""
    outs = [np.zeros(32, np.uint32) for _ in range(3)]
    body = f"""
    {" ".join(at(i, 4, i) for i in range(3))} {GROUPS}
    redux.sync.add.u32 %r2, %t, %r1;
    vote.sync.ballot.b32 %r3, %p0, %r1;
    vote.sync.any.pred %p1, %p0, %r1; selp.b32 %r4, 1, 0, %p1;
    st.global.b32 [%q0], %r2; st.global.b32 [%q1], %r3; st.global.b32 [%q2], %r4;
    """
    run(body, outs, 32)
    assert outs[0].tolist() == [120] * 16 + [376] * 16
    assert outs[1].tolist() == [0xFFFF] * 16 + [0] * 16
    assert outs[2].tolist() == [1] * 16 + [0] * 16


def test_lanes_of_one_group_must_agree_on_their_mask() -> None:
    body = (
        "setp.lt.u32 %p0, %t, 16; selp.b32 %r1, 0xFFFF, -1, %p0; redux.sync.add.u32 %r2, %t, %r1;"
    )
    with pytest.raises(FaultError, match="a lane named in its mask has another mask") as caught:
        run(body, [np.zeros(1, np.uint32)], 32)
    assert (caught.value.kind, caught.value.thread) == (Fault.MISSING_LANES, 16)


def test_a_shuffle_from_outside_the_mask_is_undefined() -> None:
    body = (
        f"{at(0, 4, 0)} {GROUPS} shfl.sync.bfly.b32 %r2, %t, 16, 31, %r1; st.global.b32 [%q0], %r2;"
    )
    with pytest.raises(FaultError, match="comes from a lane that did not run a shuffle"):
        run(body, [np.zeros(32, np.uint32)], 32)


def test_a_uniform_branch_must_be_uniform() -> None:
    body = "setp.lt.u32 %p0, %t, {}; @%p0 bra.uni OUT; OUT:"
    run(body.format(32), [np.zeros(1, np.uint32)], 64)
    with pytest.raises(FaultError, match="other threads of the warp take another way"):
        run(body.format(40), [np.zeros(1, np.uint32)], 64)


def test_lanes_of_a_branch_may_shuffle_among_themselves() -> None:
    out = np.zeros(32, np.uint32)
    body = f"""
    {at(0, 4, 0)}
    setp.lt.u32 %p0, %t, 16;
    @!%p0 bra OUT;
    shfl.sync.bfly.b32 %r0, %t, 8, 31, 0xFFFF;
    st.global.b32 [%q0], %r0;
    OUT:
    """
    run(body, [out], 32)
    assert out.tolist() == [lane ^ 8 for lane in range(16)] + [0] * 16


@pytest.mark.parametrize(
    ("instruction", "message"),
    [
        ("shfl.sync.bfly.b32 %r0, %t, 8, 31, -1;", "lanes named in its mask are elsewhere"),
        ("shfl.sync.bfly.b32 %r0, %t, 8, 31, 0x7FFF;", "its own mask does not name"),
        ("vote.sync.ballot.b32 %r0, %p0, -1;", "lanes named in its mask are elsewhere"),
        ("redux.sync.add.u32 %r0, %t, -1;", "lanes named in its mask are elsewhere"),
        ("bar.warp.sync -1;", "lanes named in its mask are elsewhere"),
    ],
)
def test_missing_lanes(instruction: str, message: str) -> None:
    """Half a warp runs it."""
    body = f"setp.lt.u32 %p0, %t, 16; @!%p0 bra OUT; {instruction} OUT: mov.b32 %r9, 0;"
    with pytest.raises(FaultError, match=message) as caught:
        run(body, [np.zeros(1, np.uint32)], 32)
    assert caught.value.kind == Fault.MISSING_LANES
    assert (caught.value.cta, caught.value.thread) == (0, 15 if "0x7FFF" in instruction else 0)


def test_the_value_of_an_absent_lane_is_undefined() -> None:
    """As in __shfl_down_sync(0xffff, v, 8): only lanes 8 to 15 take from lanes that are not there."""
    out = np.zeros(32, np.uint32)
    body = f"""
    {at(0, 4, 0)}
    setp.ge.u32 %p0, %t, 16; @%p0 bra OUT;
    shfl.sync.down.b32 %r0, %t, 8, 31, 0xFFFF;
    setp.lt.u32 %p0, %t, STORED;
    @%p0 st.global.b32 [%q0], %r0;
    OUT:
    """
    run(body.replace("STORED", "8"), [out], 32)
    assert out.tolist() == [*range(8, 16), *[0] * 24]
    with pytest.raises(FaultError, match="comes from a lane that did not run a shuffle") as caught:
        run(body.replace("STORED", "9"), [out], 32)
    assert (caught.value.kind, caught.value.thread) == (Fault.UNINITIALISED_REGISTER, 8)


def test_whole_warps_may_stay_away() -> None:
    """.aligned speaks of the lanes of one warp."""
    out = np.zeros(64, np.uint32)
    body = f"{at(0, 4, 0)} setp.lt.u32 %p0, %t, 32; @!%p0 bra OUT; " + (
        "shfl.sync.idx.b32 %r0, %t, 3, 31, -1; st.global.b32 [%q0], %r0; OUT:"
    )
    run(body, [out], 64)
    assert out.tolist() == [3] * 32 + [0] * 32

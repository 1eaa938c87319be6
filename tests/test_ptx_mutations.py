"""The emulator catches planted bugs, names each for what it is, and accuses no clean kernel."""

from __future__ import annotations

import pytest

from bench.static.ptx import Fault
from tests.aot_ptx import Ptx, compile_ptx
from tests.aot_triton import Job
from tests.ptx_by_hand import TRANSPOSE
from tests.ptx_mutations import CLEAN_JOBS, CLEAN_SUBJECTS, MISSED, MUTATIONS, jobs
from tests.ptx_planting import (
    CLEAN,
    WRONG_RESULT,
    Mutation,
    Subject,
    describe,
    edit,
    judge,
    prepare,
)

FEWEST_BUGS, FEWEST_CLEAN = 25, 20
NOT_PLANTED = {Fault.TRAP}  # the kernel accuses itself


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[Job, Ptx]:
    return compile_ptx(jobs(), tmp_path_factory.mktemp("triton"))


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.bug)
def test_planted_bug_is_caught(mutation: Mutation, compiled: dict[Job, Ptx]) -> None:
    ptx = prepare(compiled, mutation.subject)
    verdict = judge(mutation.subject, ptx, mutation.edit(ptx.text))
    assert verdict.caught == mutation.caught, verdict.message
    if verdict.caught != WRONG_RESULT:
        assert f"{verdict.caught} in {ptx.entry}" in verdict.message
        assert "PTX line" in verdict.message


@pytest.mark.parametrize("subject", CLEAN_SUBJECTS, ids=lambda subject: "-".join(describe(subject)))
def test_clean_kernel_is_not_accused(subject: Subject, compiled: dict[Job, Ptx]) -> None:
    ptx = prepare(compiled, subject)
    verdict = judge(subject, ptx, ptx.text)
    assert verdict.caught == CLEAN, verdict.message


@pytest.mark.parametrize("mutation", MISSED, ids=lambda mutation: mutation.bug)
def test_what_is_known_to_be_missed(mutation: Mutation, compiled: dict[Job, Ptx]) -> None:
    ptx = prepare(compiled, mutation.subject)
    assert judge(mutation.subject, ptx, mutation.edit(ptx.text)).caught == CLEAN


def test_the_table_is_long_enough_and_its_kernels_are_clean_without_their_bugs() -> None:
    assert len({mutation.bug for mutation in MUTATIONS}) == len(MUTATIONS) >= FEWEST_BUGS
    assert len(set(CLEAN_JOBS)) >= FEWEST_CLEAN
    assert {mutation.subject for mutation in (*MUTATIONS, *MISSED)} <= set(CLEAN_SUBJECTS)


def test_every_kind_of_fault_is_planted() -> None:
    assert {m.caught for m in MUTATIONS} == {*Fault, WRONG_RESULT} - NOT_PLANTED


def test_an_edit_changes_what_it_should_and_nothing_else() -> None:
    edited = edit(r"bar\.sync 0;", "trap;")(TRANSPOSE.text)
    before, after = TRANSPOSE.text.splitlines(), edited.splitlines()
    changed = [pair for pair in zip(before, after, strict=True) if pair[0] != pair[1]]
    assert changed == [("bar.sync 0;", "trap;")]


@pytest.mark.parametrize(
    ("pattern", "new"),
    [("bar.sync 1;", ""), ("shl.b32", "shr.b32"), ("bar.sync 0;", "bar.sync 0;")],
    ids=["no match", "two matches", "no change"],
)
def test_an_edit_that_is_not_the_one_intended_fails(pattern: str, new: str) -> None:
    with pytest.raises(AssertionError):
        edit(pattern, new)(TRANSPOSE.text)

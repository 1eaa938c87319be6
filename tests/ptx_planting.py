"""Plant a bug in a kernel's PTX, run it in the emulator and say what happened.

A bug is an edit of text: of the suite's own kernels as Triton compiles them, or of a small kernel
written by hand where the suite's have no such instruction. Edits look for opcodes, not for register
numbers, and fail where they find something else than they expect. The bugs are in ptx_mutations.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from bench.static.ptx import Fault, FaultError, launch
from kernels.kernel import output_shape
from tests.aot_ptx import SCRATCH_POINTERS, Ptx, from_bits, job_arguments
from tests.aot_triton import Job
from tests.ptx_by_hand import ByHand
from tests.triton_cases import TOLERANCES

Edit = Callable[[str], str]
Subject = Job | ByHand

WRONG_RESULT = "wrong result"
CLEAN = "nothing"
UNWRITTEN = 0xFF  # in every byte of an output before the launch: NaN, or -1
MOST_BLOCKS = 2_000  # these kernels need fewer than 100; the emulator's own limit takes long


@dataclass(frozen=True)
class Mutation:
    """A planted bug.

    Attributes:
        bug: what is wrong.
        subject: the kernel it is planted in.
        edit: its PTX to the wrong one.
        caught: kind of fault that must be raised, or WRONG_RESULT.
    """

    bug: str
    subject: Subject
    edit: Edit
    caught: Fault | str


# Editing


def edit(pattern: str, new: str, which: Literal["only", "first", "last", "every"] = "only") -> Edit:
    r"""Replace matches of a pattern, in which a space stands for any white space.

    Args:
        pattern: regular expression.
        new: what takes their place; \1 is the first group, \g<0> the whole match.
        which: of the matches to replace; "only" asserts that there is no second.
    """
    expression = re.compile(pattern.replace(" ", r"\s+"))

    def apply(text: str) -> str:
        matches = list(expression.finditer(text))
        assert matches, f"the PTX has no {pattern}"
        assert which != "only" or len(matches) == 1, f"the PTX has {len(matches)} {pattern}"
        chosen = {"first": matches[:1], "last": matches[-1:]}.get(which, matches)
        for match in reversed(chosen):
            replacement = match.expand(new)
            assert replacement != match[0], f"{match[0]} would stay as it is"
            text = text[: match.start()] + replacement + text[match.end() :]
        return text

    return apply


R = r"(%r\d+)"
P = r"(%p\d+)"
GAP = r"\s*(?:(?:\.loc|\$|//)[^\n]*\s*)*"  # debug lines, labels and comments between instructions
BARRIER = r"bar\.sync 0;"
FIRST_HALF = "and.b32 %x, %x, 16; setp.eq.u32 %q, %x, 0;"  # of each warp
FIRST_WARP = "shr.u32 %x, %x, 5; setp.eq.u32 %q, %x, 0;"


def only_for(threads: str, statements: str) -> str:
    """Statements that may use %q, true for these threads."""
    return f"{{ .reg .pred %q; .reg .b32 %x; mov.u32 %x, %tid.x; {threads} {statements} }}"


# Running


@dataclass(frozen=True)
class Verdict:
    """What happened to a kernel.

    Attributes:
        caught: kind of fault, WRONG_RESULT, or CLEAN.
        message: of the fault, or the error of the result.
    """

    caught: Fault | str
    message: str


def prepare(compiled: Mapping[Job, Ptx], subject: Subject) -> Ptx:
    """A kernel and how to launch it."""
    if isinstance(subject, Job):
        return compiled[subject]
    return Ptx(subject.text, subject.name, (subject.grid,), subject.block, 0)


def judge(subject: Subject, ptx: Ptx, text: str) -> Verdict:
    """Launch a kernel whose text may have been edited."""
    arguments, out, expected = (
        job_arguments(subject) if isinstance(subject, Job) else subject.make()
    )
    scratch = SCRATCH_POINTERS if isinstance(subject, Job) else ()
    out.view(np.uint8)[...] = UNWRITTEN
    try:
        given = [*arguments, *scratch]
        shape = (ptx.entry, ptx.grid, ptx.block, given, ptx.shared_bytes)
        launch(text, *shape, most_blocks=MOST_BLOCKS)
    except FaultError as fault:
        return Verdict(fault.kind, str(fault))
    if isinstance(subject, ByHand):
        wrong = int((out != expected).sum())
        return Verdict(WRONG_RESULT if wrong else CLEAN, f"{wrong} of {out.size} elements differ")
    _, written = output_shape(subject.arm, subject.n, subject.k, subject.batch)
    with np.errstate(invalid="ignore"):
        error = np.abs(from_bits(out, written) - expected).max() / np.abs(expected).max()
    tolerance = 0 if written == "int32" else TOLERANCES[subject.activation]
    return Verdict(
        CLEAN if error <= tolerance else WRONG_RESULT,
        f"error {error:.1e} of the largest value; {tolerance:g} is allowed",
    )


def describe(subject: Subject) -> tuple[str, str]:
    """Kernel and target, in words."""
    if isinstance(subject, ByHand):
        return f"`{subject.name}` (by hand)", "sm_80"
    kernel = f"{subject.arm} {subject.regime} {subject.format_name} {subject.activation}"
    return f"{kernel} B={subject.batch}", f"sm_{subject.capability}"

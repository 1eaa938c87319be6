"""What an emulated kernel can be accused of, and by which words.

Every fault names the kernel, the instruction, where it came from, and the first thread it happened
to: enough to find it in the source.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bench.static.ptx.program import Instruction


class Fault(StrEnum):
    """Kinds of wrong behaviour that a run detects."""

    OUT_OF_BOUNDS = "out of bounds"
    MISALIGNED = "misaligned access"
    UNINITIALISED_REGISTER = "uninitialised register"
    UNINITIALISED_SHARED = "uninitialised shared memory"
    RACE = "shared-memory race"
    ASYNC_COPY = "asynchronous copy before its wait"
    ASYNC_PRODUCT = "asynchronous product out of order"
    MISSING_LANES = "missing lanes"
    DIVERGENT_BARRIER = "divergent barrier"
    TRAP = "trap"
    UNFINISHED = "not finished"


class PtxError(Exception):
    """The emulator cannot run, or will not go on running, this PTX."""


class UnsupportedError(PtxError):
    """An opcode, directive or operand that is not on the whitelist. It is never guessed at.

    Attributes:
        opcode: with all its modifiers.
        line: in the PTX text, counted from 1.
    """

    def __init__(self, opcode: str, line: int, advice: str) -> None:
        super().__init__(f"PTX line {line}: `{opcode}` is not emulated; {advice}")
        self.opcode = opcode
        self.line = line


@dataclass
class FaultError(PtxError):
    """A fault of the kernel, at the first instruction and thread that shows it.

    Attributes:
        kind: what kind of fault.
        kernel: entry point.
        instruction: its text and line in the PTX, and its place in the source.
        cta: linear index of the thread block.
        thread: linear index within the block.
        threads: how many threads the same execution of the instruction concerns.
        detail: what was expected and what was found.
    """

    kind: Fault
    kernel: str
    instruction: Instruction
    cta: int
    thread: int
    threads: int
    detail: str

    @property
    def source(self) -> str | None:
        """Place in the kernel's source, "gemv.py:108", or None without debug lines."""
        return self.instruction.source

    def __str__(self) -> str:
        at = f" at {self.source}" if self.source else ""
        others = f" and {self.threads - 1} more" if self.threads > 1 else ""
        return (
            f"{self.kind} in {self.kernel}{at}: {self.detail} "
            f"(CTA {self.cta}, thread {self.thread}{others}; "
            f"PTX line {self.instruction.line}: {self.instruction.text})"
        )

"""Processes that should have ended."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path


def runs(number: int, program: bytes) -> bool:
    """Whether a process runs, and is the program: it may be a zombie, or its number another's by now."""
    try:
        return program in Path(f"/proc/{number}/cmdline").read_bytes()
    except OSError:
        return False


def alive(numbers: Sequence[int], program: bytes) -> list[int]:
    """Those that still run, after they have had a moment to end."""
    deadline = time.monotonic() + 5
    while True:
        left = [number for number in numbers if runs(number, program)]
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.02)

"""The hot path of kernels that others compiled, which takes more care than that of ours (`sass.hot_path`).

Compilers of CUDA C++ move blocks of a loop behind it, from where a branch leads back into its middle, and
authors write a second way round for the end of a row, which loads by the byte. So a loop is what lies between a
branch and an earlier instruction that *every* way to that branch passes (a natural loop), wherever it was put.
Left out are blocks that load only bytes and 16-bit words where the loop also has 128-bit loads, and those with
the calls by which sm_80 lets lanes exchange that have parted.

The rules are those of the counts that were typed into `peers.toml`, which were taken by hand.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from bench.static import nesting, sass

NARROW_BITS = 16  # loads up to here are those of a row's end, ...
WIDE_BITS = 128  # ... where the loop has such loads too
PARTED = (
    "BRA.CONV",
    "CALL.ABS",
)  # of blocks that let parted lanes exchange (sm_80), past the end of a row


@dataclass(frozen=True)
class Counted:
    """One function.

    Attributes:
        classes: instructions of one pass of the hot path, by class of `sass.CLASS_NAMES`.
        looped: whether that is a loop; otherwise the whole function.
        left_out: instructions of the loop that only the end of a row takes.
        weights: that one lane handles in one pass.
        lower_bound: whether a loop within it counts once because nobody knows how often it runs.
    """

    classes: Mapping[str, int]
    looped: bool
    left_out: int
    weights: int
    lower_bound: bool = False

    @property
    def per_weight(self) -> dict[str, float]:
        """Instructions per weight, "total" and by class."""
        values = {name: self.classes.get(name, 0) / self.weights for name in sass.CLASS_NAMES}
        return {"total": sum(values.values()), **values}

    @property
    def instructions(self) -> int:
        """Of one pass."""
        return sum(self.classes.values())


def count_code(code: sass.Code, weights: int) -> Counted:
    """Count one function.

    Args:
        code: the whole of it.
        weights: that one lane handles in one pass of the loop; without a loop, in all.
    """
    body = hot_loop(code)
    kept = without_ends(code, body) if body else sass.reached(code, 0, set())
    hot = [code[index] for index in kept]
    inner = nesting.inner_loops(code, hot)
    classes = dict(sass.per_class(nesting.executed(hot, inner)))
    bound = any(loop.passes is None for loop in inner)
    return Counted(classes, bool(body), len(body - kept), weights, bound)


def hot_loop(code: sass.Code) -> set[int]:
    """Indices of the natural loop that does the work; empty without a loop.

    Of several it is the one with tensor-core instructions, and of these the longest.
    """
    found = [
        loop for first, last in sass.loops(code) if (loop := sass.natural_loop(code, first, last))
    ]

    def weight(loop: set[int]) -> tuple[bool, int]:
        return bool(sass.count((code[i] for i in loop), sass.TENSOR_CORE)), len(loop)

    return max(found, key=weight, default=set())


def without_ends(code: sass.Code, loop: set[int]) -> set[int]:
    """A loop without the blocks for parted lanes, and without narrow loads where it also has wide ones."""
    wide = WIDE_BITS in sass.load_widths(code[i] for i in loop)
    ends: set[int] = set()
    for block in blocks(code, loop):
        held = [code[i] for i in block]
        widths = sass.load_widths(held)
        if sass.count(held, PARTED) or (wide and widths and max(widths) <= NARROW_BITS):
            ends |= set(block)
    return sass.reached(code, min(loop), set(range(len(code))) - loop | ends)


def blocks(code: sass.Code, loop: set[int]) -> list[list[int]]:
    """The loop in pieces that are entered at the top and left at the end only."""
    branches = [i for i in loop if sass.successors(code[i]) != [i + 1]]
    heads = {following for i in branches for following in (*sass.successors(code[i]), i + 1)}
    found: list[list[int]] = []
    for index in sorted(loop):
        if not found or index in heads or found[-1][-1] != index - 1:
            found.append([])
        found[-1].append(index)
    return found

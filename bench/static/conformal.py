"""How wide an interval must be so that it holds nine of ten residuals of a kernel or board not seen before.

Residuals of one kernel on one board resemble each other, so 80 rows of one kernel are not 80 pieces of
evidence. Each such cell therefore counts once, however many rows it has, and one further cell, the unseen
one, counts as infinitely wrong (conformal prediction for groups that are exchangeable, not their members:
Lee, Barber and Willett 2023, "Distribution-free inference with hierarchical data"). Fewer than nine cells
allow no finite interval of 90 %.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping
from math import inf

COVERAGE = 0.90


def width(cells: Mapping[Hashable, Collection[float]], coverage: float = COVERAGE) -> float:
    """The smallest w such that -w to w holds that share of the residuals, each cell counting once.

    Args:
        cells: residuals by cell; empty cells count for nothing.
        coverage: the share, of one cell more than there are.

    Returns:
        Infinity where the cells are too few.
    """
    filled = [cell for cell in cells.values() if cell]
    weighted = sorted(
        (abs(residual), 1 / len(cell) / (len(filled) + 1)) for cell in filled for residual in cell
    )
    reached = 0.0
    for size, weight in weighted:
        reached += weight
        if reached >= coverage - 1e-12:
            return size
    return inf

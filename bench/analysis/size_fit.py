"""What a call costs whatever its size, and what each weight adds: t = t0 + c n k.

The operators of a layer have different sizes, so a profile itself holds both. With them go

    what a call costs whatever its weights  t0 of the arm `stream`: launch, and rows of x and y
    the layers of models that were not run  a step is the sum over their operators
    the critical scale N*                   where t0 and c of two arms weigh the same (critical_scale.py)

Sizes count weights only. Rows of x and y are a few per cent of what is moved at small batches, but not at
large ones (at B = 256 they may outweigh 4-bit weights); they are the same for every arm, and go into t0 and c.
How far the form is off is known from the operators themselves, and goes into every interval that is made
with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bench.analysis.replicates import Draws

FEWEST_SIZES = 2  # for two unknowns


@dataclass(frozen=True)
class SizeFit:
    """t = t0 + c n k of one arm at one batch.

    Attributes:
        t0_s: [1 + R], seconds of a call without weights, all its launches together; not below 0.
        per_weight_s: [1 + R], seconds of each weight; not below 0.
        sizes: n k of the operators.
        residuals: log(measured / fitted) of each operator.
    """

    t0_s: Draws
    per_weight_s: Draws
    sizes: tuple[int, ...]
    residuals: tuple[float, ...]

    def at(self, weights: float) -> Draws:
        """Seconds of a call on so many weights."""
        return self.t0_s + self.per_weight_s * weights


def fit_sizes(points: Sequence[tuple[int, Draws]]) -> SizeFit | None:
    """Least squares of the relative residuals, of every replicate; neither part below 0.

    Args:
        points: (n k, draws of seconds of a call) of each operator.

    Returns:
        None with fewer than two different sizes.
    """
    if len({size for size, _ in points}) < FEWEST_SIZES:
        return None
    size = np.array([s for s, _ in points], float)
    times = np.array([t for _, t in points])  # [operators, 1 + R]
    weight = 1 / times[:, 0]
    x = np.column_stack([np.ones(len(size)), size]) * weight[:, None]
    t0, c = np.linalg.lstsq(x, times * weight[:, None], rcond=None)[0]
    alone = (weight**2 * size) @ times / float(weight**2 @ size**2)  # c where t0 is 0
    constant = weight**2 @ times / float(weight @ weight)  # t0 where c is 0
    t0, c = np.where(t0 < 0, 0, t0), np.where(t0 < 0, alone, c)
    t0, c = np.where(c < 0, constant, t0), np.where(c < 0, 0, c)
    fitted = t0[0] + c[0] * size
    return SizeFit(t0, c, tuple(int(s) for s in size), tuple(np.log(times[:, 0] / fitted)))

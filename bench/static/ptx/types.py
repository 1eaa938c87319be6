"""PTX types as NumPy sees them ("Fundamental Types", "Packed Data Types")."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

UNSIGNED: dict[int, np.dtype[Any]] = {
    1: np.dtype(bool),
    8: np.dtype(np.uint8),
    16: np.dtype(np.uint16),
    32: np.dtype(np.uint32),
    64: np.dtype(np.uint64),
}


@dataclass(frozen=True)
class Kind:
    """A type.

    Attributes:
        bits: of the whole register.
        dtype: of an element. Floats are unsigned here: `numerics` gives bits their meaning.
        elements: in one register.
    """

    bits: int
    dtype: np.dtype[Any]
    elements: int = 1

    def shape(self, raw: Array) -> Array:
        """Unsigned registers [lanes] as elements: [lanes], or [lanes, elements]."""
        typed = raw.view(self.dtype)
        return typed if self.elements == 1 else typed.reshape(-1, self.elements)

    def flatten(self, typed: Array) -> Array:
        """The inverse of `shape`."""
        assert typed.nbytes * 8 == len(typed) * max(self.bits, 8), (typed.dtype, typed.shape)
        return np.ascontiguousarray(typed).reshape(-1).view(UNSIGNED[self.bits])


KINDS = {
    "pred": Kind(1, np.dtype(bool)),
    **{f"{sign}{bits}": Kind(bits, UNSIGNED[bits]) for sign in "ub" for bits in (8, 16, 32, 64)},
    **{f"s{bits}": Kind(bits, np.dtype(f"i{bits // 8}")) for bits in (8, 16, 32, 64)},
    "f16": Kind(16, UNSIGNED[16]),
    "bf16": Kind(16, UNSIGNED[16]),
    "f32": Kind(32, UNSIGNED[32]),
    "f64": Kind(64, UNSIGNED[64]),
    "f16x2": Kind(32, UNSIGNED[16], 2),
    "bf16x2": Kind(32, UNSIGNED[16], 2),
    "f32x2": Kind(64, UNSIGNED[32], 2),
    "e4m3x2": Kind(16, UNSIGNED[8], 2),
    "e5m2x2": Kind(16, UNSIGNED[8], 2),
    "u8x4": Kind(32, UNSIGNED[8], 4),
    "s8x4": Kind(32, np.dtype(np.int8), 4),
}

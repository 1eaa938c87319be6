"""What a kernel author states: arguments, launch and expected result, for any kind of input.

A kernel that is right on random numbers may still be wrong on all-zero codes, on values that cancel,
or on subnormals. So the author writes one function, and it is called once for every kind below:

    def problem(draw: Draw) -> Problem:
        codes = draw.integers(0, 16, (32, 256))
        x = draw.floats((1, 256), "fp16")
        ...
        return Problem(args={...}, grid=(8,), expected={"y_ptr": y}, tolerance=1e-4)

Nothing here knows the emulator: it is NumPy alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from kernels.packing import round_to

FloatType = Literal["fp16", "bf16", "fp32"]
Shape = int | tuple[int, ...]

KINDS = {
    "random": "uniform codes, normal values",
    "random 2": "the same with another seed",
    "zeros": "every value 0, every code 0 (or as near as the range goes)",
    "lowest": "every code the lowest, normal values",
    "highest": "every code the highest, normal values",
    "alternating": "codes lowest and highest like a chessboard, normal values",
    "large": "values of the largest safe size with random signs",
    "cancelling": "along the last axis, pairs of equal codes and nearly opposite values",
    "subnormal 1": "the first values drawn are subnormal, the others normal",
    "subnormal 2+": "the first values drawn are normal, the others subnormal",
}
LARGEST = {"fp16": 2.0**7, "bf16": 2.0**30, "fp32": 2.0**30}  # times 8 bits stays finite
SUBNORMAL_STEP = {"fp16": 2.0**-24, "bf16": 2.0**-133, "fp32": 2.0**-149}
SUBNORMAL_STEPS = {"fp16": 2**10, "bf16": 2**7, "fp32": 2**23}  # so many make a normal number
MOST_THREADS = 1024
INTEGER = (int, np.integer)


@dataclass(frozen=True)
class Bfloat16:
    """An array of bf16 numbers, which NumPy does not have.

    Attributes:
        bits: uint16, the upper halves of the fp32 numbers.
    """

    bits: NDArray[np.uint16]


def bf16(values: NDArray[Any]) -> Bfloat16:
    """Values as a bf16 argument, rounded to nearest even."""
    rounded = round_to(values, "bf16").view(np.uint32) >> np.uint32(16)
    return Bfloat16(rounded.astype(np.uint16))


@dataclass
class Draw:
    """A source of inputs of one kind.

    Attributes:
        kind: a name from KINDS. A problem may look at it, for instance to widen its tolerance.
        seed: the same seed gives the same inputs.
    """

    kind: str
    seed: int = 0
    _random: np.random.Generator = field(init=False, repr=False)
    _floats_drawn: int = field(init=False, repr=False, default=0)

    def __post_init__(self) -> None:
        self._random = np.random.default_rng([self.seed, list(KINDS).index(self.kind)])

    def integers(self, low: int, high: int, shape: Shape) -> NDArray[np.int64]:
        """Whole numbers from `low` up to, not including, `high`."""
        if self.kind == "zeros":
            return np.full(shape, min(max(low, 0), high - 1), np.int64)
        if self.kind == "lowest":
            return np.full(shape, low, np.int64)
        if self.kind == "highest":
            return np.full(shape, high - 1, np.int64)
        if self.kind == "alternating":
            return np.where(_chessboard(shape), high - 1, low).astype(np.int64)
        values = self._random.integers(low, high, shape)
        if self.kind == "cancelling" and values.ndim:
            odd = values[..., 1::2]
            odd[...] = values[..., 0::2][..., : odd.shape[-1]]
        return values

    def floats(
        self,
        shape: Shape,
        dtype: FloatType = "fp16",
        *,
        positive: bool = False,
        largest: float | None = None,
    ) -> NDArray[Any]:
        """Values that `dtype` holds exactly.

        Args:
            shape: of the array.
            dtype: fp16 gives float16, fp32 float32; bf16 gives float32, to be passed as `bf16(x)`.
            positive: no negative ones, as for scales.
            largest: the magnitude that "large" gives; 128 for fp16, 2^30 for bf16 and fp32.
        """
        self._floats_drawn += 1
        values = self._values(shape, dtype, LARGEST[dtype] if largest is None else largest)
        rounded = round_to(np.abs(values) if positive else values, dtype)
        return rounded.astype(np.float16) if dtype == "fp16" else rounded

    def _values(self, shape: Shape, dtype: FloatType, largest: float) -> NDArray[np.float64]:
        if self.kind == "zeros":
            return np.zeros(shape)
        if self.kind == "large":
            return largest * self._random.choice([-1.0, 1.0], shape)
        if self.kind == f"subnormal {'1' if self._floats_drawn == 1 else '2+'}":
            steps = self._random.integers(1, SUBNORMAL_STEPS[dtype], shape)
            signs = self._random.choice([-1.0, 1.0], shape)
            return np.asarray(steps * signs * SUBNORMAL_STEP[dtype])
        values = np.asarray(self._random.standard_normal(shape))
        if self.kind == "cancelling" and values.ndim:
            even, odd = values[..., 0::2], values[..., 1::2]
            even *= 16
            odd -= even[..., : odd.shape[-1]]
        return values


def _chessboard(shape: Shape) -> NDArray[np.bool_]:
    whole = (shape,) if isinstance(shape, int) else shape
    return np.asarray(sum(np.indices(whole)) % 2, bool)


@dataclass(frozen=True)
class Problem:
    """One launch of a kernel and what it should write.

    Attributes:
        args: run-time arguments by name, outputs among them, in the order of the signature. An array
            is a pointer of its dtype (`bf16(x)` for bf16), an int an i32 (or i64 where it has to
            be), a float an fp32, None an absent pointer.
        expected: for every argument that the kernel may write, what it should hold afterwards.
        tolerance: largest allowed |result - expected| over the largest |expected| of the array: an
            element far smaller than the largest is judged by the largest.
        grid: programs or thread blocks, one number or up to three.
        constexprs: compile-time arguments of Triton; macros (-D) of CUDA C++.
        num_warps: of Triton.
        num_stages: of Triton.
        block: threads per block of CUDA C++, one number or up to three.
        shared_bytes: dynamic shared memory of CUDA C++.
        weights: how many weights the launch uses, for counts per weight; None if it has none.
    """

    args: Mapping[str, object]
    expected: Mapping[str, NDArray[Any]]
    tolerance: float
    grid: int | tuple[int, ...] = 1
    constexprs: Mapping[str, object] = field(default_factory=dict)
    num_warps: int = 4
    num_stages: int = 3
    block: int | tuple[int, ...] | None = None
    shared_bytes: int = 0
    weights: int | None = None

    def __post_init__(self) -> None:
        """Raises ValueError, in one sentence, for what no launch could make sense of."""
        for name, value in self.args.items():
            if not isinstance(value, np.ndarray | Bfloat16 | int | float | np.number | None):
                raise ValueError(
                    f"argument {name} should be a NumPy array or a number, "
                    f"not {type(value).__name__}."
                )
        if not self.expected:
            raise ValueError("`expected` is empty: name at least one argument that is written.")
        for name, values in self.expected.items():
            self._check_expected(name, np.shape(values))
        if not self.tolerance > 0:
            raise ValueError(f"`tolerance` should be above 0, not {self.tolerance}.")
        if self.num_warps not in (1, 2, 4, 8, 16, 32):
            raise ValueError(
                f"`num_warps` should be a power of two up to 32, not {self.num_warps}."
            )
        if self.weights is not None and self.weights <= 0:
            raise ValueError(f"`weights` should be above 0, not {self.weights}.")
        _check_sizes("grid", self.grid)
        if self.block is not None and _check_sizes("block", self.block) > MOST_THREADS:
            raise ValueError(f"a block has at most {MOST_THREADS} threads, not {self.block}.")

    def _check_expected(self, name: str, shape: tuple[int, ...]) -> None:
        value = self.args.get(name)
        if isinstance(value, Bfloat16):
            value = value.bits
        if not isinstance(value, np.ndarray):
            raise ValueError(f"`expected` names {name}, which is not an array in `args`.")
        if value.shape != shape:
            raise ValueError(f"{name} has shape {value.shape}, but `expected` has {shape}.")


def _check_sizes(name: str, sizes: int | tuple[int, ...]) -> int:
    """The product of a grid's or block's sizes."""
    whole = sizes if isinstance(sizes, tuple) else (sizes,)
    if not 1 <= len(whole) <= 3 or not all(isinstance(s, INTEGER) and s >= 1 for s in whole):
        raise ValueError(f"`{name}` should be one to three numbers from 1 up, not {sizes}.")
    return int(np.prod(whole))

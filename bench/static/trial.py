"""Run a kernel in the PTX emulator on every kind of input, and judge what it wrote.

    for trial in trials(kernel, capabilities=(80, 90), seed=0, race=True):
        print(trial.target, trial.kind, trial.verdict, trial.error)

An error is the largest |result - expected| of an argument over its largest |expected|, in float64; a
value beyond the argument's type counts as infinite, and nothing is divided by less than the smallest
normal number of that type (1 for integers).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from bench.static.build import Built, SourceError
from bench.static.ptx import FaultError, PtxError, Report, UnsupportedError, launch, numerics
from bench.static.ptx.problem import KINDS, Bfloat16, Draw, Problem
from bench.static.source import Kernel

Verdict = Literal["right", "wrong", "fault", "input changed", "not emulated"]
Value = NDArray[Any] | int | float
BF16_LARGEST = float(np.array(0x7F7F0000, np.uint32).view(np.float32))


@dataclass(frozen=True)
class Worst:
    """The element of an argument that is furthest from what was expected.

    Attributes:
        argument: its name.
        index: of the element.
        got: what the kernel wrote.
        expected: what the problem says.
        error: their difference over the argument's largest |expected|; infinite where one is no
            number or infinite and the other is not.
    """

    argument: str
    index: tuple[int, ...]
    got: float
    expected: float
    error: float


@dataclass(frozen=True)
class Trial:
    """One launch and the verdict on it.

    Attributes:
        target: "sm_90".
        kind: of the input, a name from `problem.KINDS`.
        verdict: right, wrong (beyond the tolerance), fault, input changed (an argument that is not
            in `expected` was written), or not emulated (the target's code has an opcode that is not
            on the whitelist).
        tolerance: what the problem allows.
        worst: the furthest element; None if the launch did not run to its end.
        sentence: what is wrong, in one sentence; empty if nothing is.
        report: the emulator's counts; None if the launch did not run to its end.
        weights: of the launch, for counts per weight; None if the problem states none.
    """

    target: str
    kind: str
    verdict: Verdict
    tolerance: float
    worst: Worst | None
    sentence: str
    report: Report | None
    weights: int | None


def trials(
    kernel: Kernel,
    capabilities: Sequence[int],
    seed: int = 0,
    race: bool = True,
    strict: bool = True,
) -> Iterator[Trial]:
    """Every kind of input on every target; one trial of a target whose code is not emulated.

    Args:
        kernel: from `open_kernel`.
        capabilities: targets, as compute capability times ten. Compiled once each, and again only
            for a problem whose compile-time part differs.
        seed: of the inputs.
        race: whether to look for shared-memory races.
        strict: whether a barrier must be reached by whole warps and at one place.

    Raises:
        SourceError: the problem or the kernel cannot be built, or the arguments do not fit.
    """
    for capability in capabilities:
        built: dict[str, Built] = {}
        for kind in KINDS:
            problem = kernel.problem(Draw(kind, seed))
            if (key := compile_time(problem)) not in built:
                built[key] = kernel.build(problem, capability)
            trial = attempt(built[key], problem, kind, capability, race, strict)
            yield trial
            if trial.verdict == "not emulated":
                break


def compile_time(problem: Problem) -> str:
    """Everything of a problem that the compiled code depends on."""
    types = [(name, compile_time_value(value)) for name, value in problem.args.items()]
    return repr((types, sorted(problem.constexprs.items()), problem.num_warps, problem.num_stages))


def compile_time_value(value: object) -> str:
    """What the compiled code may depend on: a type, and of an integer what Triton specializes."""
    if isinstance(value, np.ndarray):
        return str(value.dtype)
    if isinstance(value, int | np.integer):
        return f"{type(value).__name__} {value == 1} {value % 16 == 0} {value >> 31}"
    return type(value).__name__


def attempt(
    built: Built, problem: Problem, kind: str, capability: int, race: bool, strict: bool
) -> Trial:
    """One launch on copies of the problem's arrays."""
    target = f"sm_{capability}"
    values = {name: to_device(problem.args[name]) for name in built.names}
    before = {n: v.copy() for n, v in values.items() if isinstance(v, np.ndarray)}
    arguments = [*values.values(), *([0] * built.scratch)]
    try:
        report = launch(
            built.ptx, built.entry, whole(problem.grid), whole(built.block), arguments,
            shared_bytes=built.shared_bytes, race=race, strict=strict,
        )  # fmt: skip
    except (FaultError, UnsupportedError) as error:
        ended: Verdict = "fault" if isinstance(error, FaultError) else "not emulated"
        return Trial(
            target, kind, ended, problem.tolerance, None, str(error), None, problem.weights
        )
    except PtxError as error:
        why = str(error).rstrip(".")
        raise SourceError(f"{built.entry} for {target} cannot be emulated: {why}.") from None
    worst = max(
        (furthest(name, from_device(values[name], problem.args[name]), problem)
         for name in problem.expected),
        key=lambda w: w.error,
    )  # fmt: skip
    changed = changed_inputs(before, values, problem)
    verdict: Verdict = "right"
    sentence = ""
    if changed:
        verdict = "input changed"
        sentence = f"the kernel wrote to {', '.join(changed)}, which `expected` does not name."
    elif not worst.error <= problem.tolerance:
        verdict = "wrong"
        place = ", ".join(map(str, worst.index))
        sentence = (
            f"{worst.argument}[{place}] is {worst.got:.6g}, expected {worst.expected:.6g}: "
            f"error {worst.error:.2g}, tolerance {problem.tolerance:.2g}."
        )
    return Trial(target, kind, verdict, problem.tolerance, worst, sentence, report, problem.weights)


def whole(sizes: int | tuple[int, ...]) -> tuple[int, ...]:
    """A grid or block as Python's own integers."""
    return tuple(int(size) for size in np.atleast_1d(sizes))


def to_device(value: object) -> Value:
    """An argument as the emulator takes it: arrays are copied, bf16 becomes its bits."""
    if isinstance(value, Bfloat16):
        return value.bits.copy()
    if isinstance(value, np.ndarray):
        copy = np.array(value, order="C")
        return copy.view(np.uint8) if copy.dtype == np.bool_ else copy
    if value is None:
        return 0
    if isinstance(value, float | np.floating):
        return float(value)
    assert isinstance(value, int | np.integer)
    return int(value)


def from_device(written: Value, argument: object) -> NDArray[np.float64]:
    """What an array holds after a launch."""
    assert isinstance(written, np.ndarray)
    if isinstance(argument, Bfloat16):
        return numerics.decode(written, "bf16")
    return written.astype(np.float64)


def furthest(name: str, got: NDArray[np.float64], problem: Problem) -> Worst:
    """The worst element of one argument."""
    largest, smallest = limits(problem.args[name])
    expected = np.asarray(problem.expected[name], np.float64)
    expected = np.where(np.abs(expected) > largest, np.copysign(np.inf, expected), expected)
    sizes = np.abs(expected[np.isfinite(expected)])
    scale = max(smallest, float(sizes.max(initial=0)))
    with np.errstate(invalid="ignore", over="ignore"):
        errors = np.abs(got - expected) / scale
    same = (got == expected) | (np.isnan(got) & np.isnan(expected))
    errors = np.where(same, 0.0, np.where(np.isnan(errors), np.inf, errors))
    if errors.size == 0:
        return Worst(name, (), 0.0, 0.0, 0.0)
    index = np.unravel_index(int(errors.argmax()), errors.shape)
    place = tuple(int(i) for i in index)
    return Worst(name, place, float(got[place]), float(expected[place]), float(errors[place]))


def limits(argument: object) -> tuple[float, float]:
    """Largest finite and smallest normal number of an array's type; 1 for integers."""
    if isinstance(argument, Bfloat16):
        return BF16_LARGEST, float(np.finfo(np.float32).smallest_normal)
    assert isinstance(argument, np.ndarray)
    if argument.dtype.kind != "f":
        return np.inf, 1.0
    info = np.finfo(argument.dtype)
    return float(info.max), float(info.smallest_normal)


def changed_inputs(
    before: Mapping[str, NDArray[Any]], values: Mapping[str, Value], problem: Problem
) -> list[str]:
    """Arguments that were written, bit for bit, and that the problem does not expect to be."""
    return [
        name
        for name, array in before.items()
        if name not in problem.expected and array.tobytes() != np.asarray(values[name]).tobytes()
    ]

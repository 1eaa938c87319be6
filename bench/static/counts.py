"""How many machine instructions each fused kernel spends on a weight, beside what it should.

A low-bit kernel at batch 1 is limited by memory only if the instructions of a weight fit into the time
in which its bits arrive. They can be counted without a GPU: compile, disassemble, find the loop, leave
out what only divergent warps run, divide by the weights that a lane handles in one pass.

    python -m bench.static.counts                      the table: batch 1, five architectures
    python -m bench.static.counts --format nf4-b64     some formats only
    python -m bench.static.counts --arm dequantize     another arm

One thread-instruction serves one lane, so kernels with and without tensor cores compare directly. A
kernel without a loop is counted whole. Nothing here is a time.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from bench.static import sass
from bench.static.compile import WARP_LANES, CompiledKernel, compile_kernel
from bench.static.occupancy import resident_warps
from kernels.formats import FORMATS, WeightFormat, find_format

if TYPE_CHECKING:
    from kernels.kernel import Arm
    from kernels.packing import Float16
    from kernels.triton.plan import Plan

CAPABILITIES = (80, 89, 90, 100, 120)
N, K = 4096, 14336  # the wide side of an 8-billion-parameter model
TARGET_CAPABILITY = 90  # what the targets are stated for; others are reported beside it

# Most instructions per weight that a kernel should need at batch 1: (arm, format, activation).
# Half of them are the best that was counted in other people's kernels, or a little less.
TARGETS = {
    ("fused", "int4-g128", "fp16"): 2.4,
    ("fused", "int4-g128-zp", "fp16"): 2.8,
    ("fused", "int4-g128", "bf16"): 4.0,
    ("fused", "int8-ch", "fp16"): 2.2,
    ("fused", "int8-g128", "fp16"): 2.2,
    ("fused", "nf4-b64", "fp16"): 4.0,
    ("fused", "fp8_e4m3-ch", "fp16"): 2.4,
    ("fused", "fp8_e4m3-b128", "fp16"): 2.4,
    ("dequantize", "nf4-b64", "fp16"): 6.0,
}


@dataclass(frozen=True)
class Case:
    """One kernel, problem and target to count.

    Attributes:
        arm: "fused", "bypass", "dequantize", ...
        regime: the tile variant, such as "gemv".
        format: of the weights.
        activation: "fp16" or "bf16".
        batch: rows of x.
        capability: compute capability times ten.
    """

    arm: Arm
    regime: str
    format: WeightFormat
    activation: Float16
    batch: int
    capability: int


@dataclass(frozen=True)
class Count:
    """What one pass of the hot path does.

    Attributes:
        case: what was compiled.
        weights: weights that one lane handles.
        instructions: on the hot path.
        classes: the same by class, in the order of `sass.CLASS_NAMES`.
        integer_to_float: conversions on the slow unit.
        registers: per thread.
        warps: that fit on one multiprocessor.
        spills: whether any value lives in local memory.
        widths: global loads as "128 x 8, 16 x 4".
    """

    case: Case
    weights: int
    instructions: int
    classes: tuple[int, ...]
    integer_to_float: int
    registers: int
    warps: int
    spills: bool
    widths: str

    @property
    def per_weight(self) -> float:
        """Instructions per weight."""
        return self.instructions / self.weights

    @property
    def target(self) -> float | None:
        """The most that the variant in PTX should need, where there is such a number."""
        case = self.case
        targets = TARGETS if case.regime.endswith("ptx") else {}
        return targets.get((case.arm, case.format.name, case.activation))


def weights_per_pass(plan: Plan, weight_format: WeightFormat, num_warps: int) -> int:
    """Weights that one lane handles in one pass of the loop (dequantize: in all)."""
    block_k = cast("int | None", plan.constexprs.get("BLOCK_K"))
    if block_k is None:
        block_k = cast("int", plan.constexprs["BLOCK_W"]) * weight_format.weights_per_word
    return cast("int", plan.constexprs["BLOCK_N"]) * block_k // (WARP_LANES * num_warps)


def count_code(case: Case, compiled: CompiledKernel, weights: int) -> Count:
    """Count the hot path of a compiled kernel."""
    hot = sass.hot_path(compiled.sass)
    classes = sass.per_class(hot)
    widths = sorted(sass.load_widths(hot).items(), reverse=True)
    return Count(
        case=case,
        weights=weights,
        instructions=len(hot),
        classes=tuple(classes[name] for name in sass.CLASS_NAMES),
        integer_to_float=sass.count(
            (i for i in hot if not i.opcode.startswith("I2FP")), sass.INTEGER_TO_FLOAT
        ),
        registers=compiled.registers,
        warps=resident_warps(compiled),
        spills=compiled.spills,
        widths=", ".join(f"{width} x {number}" for width, number in widths),
    )


def count_case(case: Case) -> Count:
    """Compile one kernel and count; only in a process that does not interpret Triton."""
    from kernels import triton

    problem = (case.activation, N, K, case.batch, case.capability)
    plan = triton.plan_of(case.arm, case.regime, case.format, *problem)
    compiled = compile_kernel(
        plan.fn, plan.signature, plan.constexprs, case.capability, **plan.options
    )
    return count_code(case, compiled, weights_per_pass(plan, case.format, compiled.num_warps))


def cases(arm: Arm, formats: Iterable[WeightFormat], batch: int) -> Iterator[Case]:
    """Every variant of an arm for every format, activation and architecture."""
    from kernels.triton import KERNELS
    from kernels.triton.plan import ACTIVATIONS

    for weight_format in formats:
        for activation in ACTIVATIONS:
            for kernel in KERNELS:
                if kernel.arm == arm and kernel.accepts(weight_format, activation, batch):
                    for capability in CAPABILITIES:
                        yield Case(
                            arm, kernel.variant, weight_format, activation, batch, capability
                        )


def print_table(counts: Iterable[Count]) -> None:
    """One Markdown row per kernel and architecture."""
    names = " | ".join(sass.CLASS_NAMES)
    print(f"Compiled for W[{N}, {K}] and counted, not run. Thread-instructions per weight.\n")
    print(
        f"| kernel | format | act. | sm | total | target | {names} | I2F | regs | warps | loads |"
    )
    print("|---" * (11 + len(sass.CLASS_NAMES)) + "|")
    for c in counts:
        target = "" if c.target is None else f"{c.target:.1f}"
        if c.target is not None and c.case.capability == TARGET_CAPABILITY:
            target += " met" if c.per_weight <= c.target else " MISSED"
        classes = " | ".join(f"{number / c.weights:.2f}" for number in c.classes)
        registers = f"{c.registers} SPILLS" if c.spills else f"{c.registers}"
        print(
            f"| {c.case.arm} {c.case.regime} | {c.case.format.name} | {c.case.activation} "
            f"| {c.case.capability} | {c.per_weight:.2f} | {target} | {classes} "
            f"| {c.integer_to_float / c.weights:.2f} | {registers} | {c.warps} | {c.widths} |",
            flush=True,
        )


def main() -> None:
    """Parse the arguments and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--arm", default="fused", choices=("fused", "bypass", "dequantize"))
    parser.add_argument("--format", help="names of formats with commas; all by default")
    parser.add_argument("--batch", type=int, default=1)
    arguments = parser.parse_args()
    quantized = tuple(f for f in FORMATS if f.quantized)
    formats = (
        tuple(map(find_format, arguments.format.split(","))) if arguments.format else quantized
    )
    print_table(map(count_case, cases(arguments.arm, formats, arguments.batch)))


if __name__ == "__main__":
    os.environ.pop(
        "TRITON_INTERPRET", None
    )  # read when Triton is imported: such kernels cannot compile
    main()

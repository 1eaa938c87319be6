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
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from bench.static import sass
from bench.static.audit import Audit, Job, K, N, row_of
from bench.static.audit_all import audited
from bench.static.audit_cache import open_cache
from kernels.formats import FORMATS, WeightFormat, find_format

if TYPE_CHECKING:
    from kernels.kernel import Arm

CAPABILITIES = (80, 89, 90, 100, 120)
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


def target_of(job: Job) -> float | None:
    """The most that the variant in PTX should need, where there is such a number."""
    targets = TARGETS if job.variant.endswith("ptx") else {}
    return targets.get((job.arm, job.format, job.activation))


def jobs(arm: Arm, formats: Iterable[WeightFormat], batch: int) -> Iterator[Job]:
    """Every variant of an arm for every format, activation and architecture."""
    from kernels.triton import KERNELS
    from kernels.triton.plan import ACTIVATIONS

    for weight_format in formats:
        for activation in ACTIVATIONS:
            for kernel in KERNELS:
                if kernel.arm == arm and kernel.accepts(weight_format, activation, batch):
                    for capability in CAPABILITIES:
                        yield Job(
                            arm, kernel.variant, weight_format.name, activation, batch, capability
                        )


def widths(audit: Audit) -> str:
    """Global loads as "128 x 8, 16 x 4"."""
    ordered = sorted(audit.loads.items(), reverse=True)
    return ", ".join(f"{width} x {number}" for width, number in ordered)


def print_table(audits: Mapping[Job, Audit | str]) -> None:
    """One Markdown row per kernel and architecture."""
    names = " | ".join(sass.CLASS_NAMES)
    print(f"Compiled for W[{N}, {K}] and counted, not run. Thread-instructions per weight.\n")
    print(
        f"| kernel | format | act. | sm | total | target | {names} | I2F | regs | warps | loads |"
    )
    print("|---" * (11 + len(sass.CLASS_NAMES)) + "|")
    for job, audit in audits.items():
        kernel = f"| {job.arm} {job.variant} | {job.format} | {job.activation} | {job.capability} "
        if isinstance(audit, str):
            print(f"{kernel}| {audit} |")
            continue
        row, aim = row_of(audit).per_weight, target_of(job)
        target = "" if aim is None else f"{aim:.1f}"
        if aim is not None and job.capability == TARGET_CAPABILITY:
            target += " met" if row["total"] <= aim else " MISSED"
        classes = " | ".join(f"{row[name]:.2f}" for name in sass.CLASS_NAMES)
        slow = audit.slow_conversions / (audit.weights or 1)
        registers = f"{audit.registers} SPILLS" if audit.spills else f"{audit.registers}"
        print(
            f"{kernel}| {row['total']:.2f} | {target} | {classes} "
            f"| {slow:.2f} | {registers} | {audit.resident_warps} | {widths(audit)} |"
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
    asked = list(jobs(arguments.arm, formats, arguments.batch))
    audits, failures = audited(asked, open_cache())
    print_table({job: audits[job] if job in audits else failures[job] for job in asked})


if __name__ == "__main__":
    main()

"""How much of the product of formats, kernels, batches and targets a run of pytest has executed.

Tests record what they ran; the lines come last in pytest's output, for `make test` and `make proof` alike.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kernels.kernel import Kernel
    from tests.aot_triton import Job
    from tests.ptx_cells import Outcome

EXECUTED, PROGRAMS, INTERPRETED = "executed", "programs", "interpreted"

Properties = Iterable[tuple[str, Any]]


def emulated_properties(found: dict[Job, Outcome]) -> dict[str, list[str]]:
    """What a test that emulated these jobs records."""
    ran = [job for job, outcome in found.items() if outcome.error is not None]
    return {
        EXECUTED: sorted({emulated_cell(job) for job in ran}),
        PROGRAMS: sorted({found[job].program for job in ran}),
    }


def emulated_cell(job: Job) -> str:
    """A cell's name; the target is its last word."""
    return (
        f"{interpreted_cell(job.arm, job.regime, job.format_name, job.batch)} sm_{job.capability}"
    )


def interpreted_cell(arm: str, variant: str, format_name: str, batch: int) -> str:
    """The name of a cell that has no target."""
    return f"{arm} {variant} {format_name} B={batch}"


def lines(recorded: Iterable[Properties]) -> list[str]:
    """The table, or nothing where no test recorded a cell.

    Args:
        recorded: the properties of every test that passed or failed.
    """
    found: dict[str, set[str]] = {EXECUTED: set(), PROGRAMS: set(), INTERPRETED: set()}
    for properties in recorded:
        for name, value in properties:
            if name in found:
                found[name].update([value] if isinstance(value, str) else value)
    if not any(found.values()):
        return []
    return [*emulated_lines(found), interpreted_line(found[INTERPRETED])]


def emulated_lines(found: dict[str, set[str]]) -> list[str]:
    """A line per target, and one for all."""
    from kernels.formats import FORMATS
    from tests.ptx_kernels import BATCHES, TARGETS, WIDE, product_jobs

    product = {emulated_cell(job) for job in product_jobs()}
    executed = found[EXECUTED] & product
    formats = sum(f.quantized for f in FORMATS)
    batches = ", ".join(map(str, (*BATCHES, WIDE)))
    text = [
        f"Triton kernels x {formats} formats x B {batches} x targets, in our PTX emulator, not on "
        "hardware.",
        "In turn: one of the two activations per cell, one batch for stages that read no x, one target for "
        f"B {WIDE}.",
        f"{'':9}{'cells':>7}{'executed':>10}{'not run':>9}",
    ]
    for name in (*(f"sm_{target}" for target in TARGETS), "all"):
        some, ran = (
            sum(name in ("all", cell.split()[-1]) for cell in cells)
            for cells in (product, executed)
        )
        text.append(f"{name:9}{some:7}{ran:10}{some - ran:9}")
    text.append(
        f"{len(executed)} of {len(product)} cells ran ({len(executed) / len(product):.0%}); "
        f"{len(found[PROGRAMS])} different programs, all shapes together."
    )
    return text


def interpreted_line(ran: set[str]) -> str:
    """Cells that Triton's interpreter ran."""
    product = interpreted_product()
    both = ran & product
    return f"Triton's interpreter ran {len(both)} of {len(product)} cells ({len(both) / len(product):.0%})."


def interpreted_product() -> set[str]:
    """Every plain kernel, format and batch; inline PTX cannot be interpreted."""
    from tests.ptx_kernels import product_jobs

    jobs = [job for job in product_jobs() if not job.regime.endswith("ptx")]
    return {interpreted_cell(j.arm, j.regime, j.format_name, j.batch) for j in jobs}


def kernel_cell(kernel: Kernel, format_name: str, activation: str, batch: int) -> str:
    """The cell of a kernel that is interpreted: 16-bit kernels have a format of their own."""
    name = activation if kernel.weight_bits == 16 else format_name
    return interpreted_cell(
        kernel.arm, kernel.variant, name, 1 if kernel.arm == "dequantize" else batch
    )

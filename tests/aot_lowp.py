"""Compile the low-precision kernels in a process that does not interpret: PTX for the emulator."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.aot_ptx import Ptx
from tests.aot_triton import in_workers


@dataclass(frozen=True)
class LowpJob:
    """One launch, "product" or "quantize", for one problem and target."""

    what: str
    format_name: str
    activation: str
    n: int
    k: int
    batch: int
    capability: int


def compile_lowp(jobs: list[LowpJob], cache: Path) -> dict[LowpJob, Ptx]:
    """The PTX of every job."""
    answers = in_workers("tests.aot_lowp", jobs, cache)  # type: ignore[arg-type, type-var]
    return {job: Ptx(**a | {"grid": tuple(a["grid"])}) for job, a in answers.items()}  # type: ignore[misc]


def emit(job: LowpJob) -> Ptx:
    """Compile one job."""
    from bench.static.compile import build_kernel
    from kernels.formats import find_format
    from kernels.triton import lowp

    weight_format = find_format(job.format_name)
    if job.what == "quantize":
        plan = lowp.plan_quantize(weight_format, job.activation, job.k, job.batch)
    else:
        shape = (job.activation, job.n, job.k, job.batch)
        plan = lowp.plan(weight_format, *shape, None, job.capability)
    built = build_kernel(plan.fn, plan.signature, plan.constexprs, job.capability, **plan.options)
    return Ptx.of(built, plan.grid)


if __name__ == "__main__":
    for fields in json.load(sys.stdin):
        print(json.dumps(asdict(emit(LowpJob(*fields)))), flush=True)

"""Which launch configuration should be fastest, without a GPU: every one is compiled, counted and modelled.

The model (`bench.static.ours`, `model`) knows instructions per weight, the pipes they occupy, bytes,
how many of these are in flight with the registers and shared memory that the compiler took, and what the
busiest multiprocessor does over the mean of all: on a board that is not full, or in its last wave, some have
nothing to do.

It ranks configurations of one kernel on one board. It is no measurement, and a lead of a few per cent says
nothing: what it is for is to find a default that wastes half a board.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from bench.static import model
from bench.static.audit import Audit, Job, audit_kernel, plan_for, weights_per_pass
from bench.static.audit_report import capability_of
from bench.static.compile import compile_kernel
from bench.static.cost import Problem
from bench.static.ours import plan_on

if TYPE_CHECKING:
    from kernels.formats import WeightFormat
    from kernels.kernel import Arm
    from kernels.triton.configs import Config
    from kernels.triton.plan import Plan
    from profiles.specs import Gpu


@dataclass(frozen=True)
class Ranked:
    """One configuration.

    Attributes:
        config: None for the kernel's default on the board.
        text: in words.
        audit: what was counted; None where it does not compile.
        unevenness: work of the busiest multiprocessor over the mean of all.
        time_s: modelled; None where the model has none, and `reason` says why.
        reason: see there.
    """

    config: object | None
    text: str
    audit: Audit | None
    unevenness: float | None
    time_s: float | None
    reason: str = ""


def rank(
    gpu: Gpu,
    arm: Arm,
    variant: str,
    weight_format: WeightFormat,
    activation: str,
    problem: Problem,
) -> list[Ranked]:
    """The default and every configuration of a kernel's grid, the fastest first; last those without a time."""
    from kernels.triton.configs import default_for, grid

    capability = capability_of(gpu)
    job = Job(arm, variant, weight_format.name, activation, problem.batch, capability)
    shape = (problem.n, problem.batch, int(gpu.sms.value))
    default = replace(job, config=default_for(arm, variant, weight_format, *shape))
    candidates = grid(arm, variant, weight_format, problem.batch, capability)
    found = [_ranked(gpu, default, problem, None)]
    found += [_ranked(gpu, replace(job, config=c), problem, c) for c in candidates]
    return sorted(found, key=lambda r: (r.time_s is None, r.time_s or 0.0))


def _ranked(gpu: Gpu, job: Job, problem: Problem, config: Config | None) -> Ranked:
    from bench.static.build import complaint
    from kernels.triton.configs import words

    try:
        plan = plan_for(job, problem.n, problem.k)
        compiled = compile_kernel(
            plan.fn, plan.signature, plan.constexprs, job.capability, **plan.options
        )
    except Exception as error:  # whatever a compiler may raise
        return Ranked(config, str(job.config), None, None, None, complaint(error))
    weights = weights_per_pass(plan, compiled.num_warps)
    audit = audit_kernel(words(plan), compiled, weights)
    time_s, unevenness, reason = modelled(gpu, job, plan, audit, problem)
    return Ranked(config, words(plan), audit, unevenness, time_s, reason)


def modelled(
    gpu: Gpu, job: Job, plan: Plan, audit: Audit, problem: Problem
) -> tuple[float | None, float | None, str]:
    """The modelled seconds, the unevenness, and why there is no time.

    Args:
        gpu: the board.
        job: whose plan it is.
        plan: for the problem.
        audit: of the compiled plan.
        problem: what is multiplied.
    """
    if audit.resident_warps is None or audit.num_warps is None:
        return None, None, "what fits on a multiprocessor is not known"
    if audit.resident_warps < audit.num_warps:
        return None, None, "no program fits on a multiprocessor"
    cost, problem = plan_on(plan, job, audit, gpu, problem)
    try:
        return model.predict(gpu, cost, problem).time_s, cost.unevenness, ""
    except model.NotModelledError as reason:
        return None, cost.unevenness, str(reason)

"""Which launch configuration should be fastest, without a GPU: every one is compiled, counted and modelled.

    modelled time = launch + (the model's parts, `bench.static.model`) x waves

The parts know instructions per weight, the pipes they occupy, bytes, and how many of these are in flight with
the registers and shared memory that the compiler took. `waves` is what whole waves cost: programs run on
multiprocessors in turns, and in the last turn, or on a board that is not full, some have nothing to do.

    waves = ceil(w) / w              w = programs / (multiprocessors x resident programs), above 1
            ceil(p) / p              p = programs / multiprocessors, where all are resident at once

It ranks configurations of one kernel on one board. It is no measurement, and a lead of a few per cent says
nothing: what it is for is to find a default that wastes half a board.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil, prod
from typing import TYPE_CHECKING, Any, cast

from bench.static import model
from bench.static.audit import Audit, audit_kernel, bytes_moved, cost_of, row_of, weights_per_pass
from bench.static.compile import WARP_LANES, compile_kernel
from bench.static.cost import Problem

if TYPE_CHECKING:
    from kernels.formats import WeightFormat
    from kernels.kernel import Arm
    from kernels.packing import Float16
    from profiles.specs import Gpu


@dataclass(frozen=True)
class Ranked:
    """One configuration.

    Attributes:
        config: None for the kernel's default.
        text: in words.
        audit: what was counted; None where it does not compile.
        waves: the factor of the module.
        time_s: modelled; None where the model has none, and `reason` says why.
        reason: see there.
    """

    config: object | None
    text: str
    audit: Audit | None
    waves: float | None
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
    from kernels.triton.configs import grid

    capability = round(float(gpu.capability) * 10)
    configs = [None, *grid(arm, variant, weight_format, problem.batch, capability)]
    found = [
        _ranked(gpu, capability, arm, variant, weight_format, activation, problem, config)
        for config in configs
    ]
    return sorted(found, key=lambda r: (r.time_s is None, r.time_s or 0.0))


def _ranked(
    gpu: Gpu,
    capability: int,
    arm: Arm,
    variant: str,
    weight_format: WeightFormat,
    activation: str,
    problem: Problem,
    config: Any,
) -> Ranked:
    from bench.static.build import complaint
    from kernels.triton import plan_of
    from kernels.triton.configs import words

    shape = (problem.n, problem.k, problem.batch)
    try:
        plan = plan_of(
            arm, variant, weight_format, cast("Float16", activation), *shape, capability, config
        )
        compiled = compile_kernel(
            plan.fn, plan.signature, plan.constexprs, capability, **plan.options
        )
    except Exception as error:  # whatever a compiler may raise
        return Ranked(config, str(config), None, None, None, complaint(error))
    weights = weights_per_pass(plan, weight_format, compiled.num_warps)
    audit = audit_kernel(words(plan), compiled, weights)
    stages = cast("int", plan.constexprs.get("NUM_STAGES", 2)) - 1
    programs = (plan.grid[0], prod(plan.grid[1:]))
    time_s, waves, reason = modelled(
        gpu, audit, bytes_moved(arm, weight_format), problem, programs, stages
    )
    return Ranked(config, words(plan), audit, waves, time_s, reason)


def modelled(
    gpu: Gpu,
    audit: Audit,
    bytes_per_weight: float,
    problem: Problem,
    programs: tuple[int, int],
    stages: int,
) -> tuple[float | None, float | None, str]:
    """The modelled seconds, the factor of whole waves, and why there is no time.

    Args:
        gpu: the board.
        audit: of the compiled kernel.
        bytes_per_weight: stored.
        problem: what is multiplied.
        programs: along the rows of W, and along the batch.
        stages: steps along k whose loads are under way at a time.
    """
    cost = cost_of(row_of(audit), bytes_per_weight, ceil(problem.batch / programs[1]))
    if cost is None or audit.resident_warps is None or audit.num_warps is None:
        return None, None, "what fits on a multiprocessor is not known"
    resident = audit.resident_warps // audit.num_warps
    if resident == 0:
        return None, None, "no program fits on a multiprocessor"
    everything, sms = prod(programs), gpu.sms.value
    waves = whole_waves(everything, sms, resident)
    step_bytes = (audit.weights or 0) * WARP_LANES * audit.num_warps * bytes_per_weight
    at_once = min(resident, everything / sms)
    cost = replace(cost, bytes_in_flight=step_bytes * stages * at_once)
    try:
        prediction = model.predict(gpu, cost, problem)
    except model.NotModelledError as reason:
        return None, waves, str(reason)
    return prediction.fixed_s + waves * (prediction.time_s - prediction.fixed_s), waves, ""


def whole_waves(programs: int, multiprocessors: float, resident: int) -> float:
    """What programs cost that come in whole waves, over the same work spread evenly: 1 or more."""
    share = programs / multiprocessors
    if share > resident:
        share /= resident
    return ceil(share) / share

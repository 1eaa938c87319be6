"""Our own kernels as the model sees them: what was counted in their machine code, for one operator.

    counts per weight = loop x padding + instructions around the loop x lanes / weights of a program

The loop is counted once, on W[4096, 14336] (`audit.py`); how an operator is cut into programs, what the last
step along k wastes and how many passes a batch takes come from the plan that would be launched on it. Bytes
are those of `kernels.kernel.traffic`, each once; every further pass reads the weights again. What tiles
request from the L2 cache is more: x once for every tile along n, weights once for every tile of the batch. The
product of `lowp` reads x in the format of the weights.
Kernels without tiles read x through the L1 cache, and how much of it that holds is not modelled.

Bytes in flight, for Little's law: one pass of the loop of every warp that runs, and of a pipelined loop as many
passes as it has stages less one. It is what the code may request, so a bound. Programs run in waves, of as many
as are resident at a time; where they do not fill the board, or its last wave, fewer warps run. What the pipes
do then waits for the busiest multiprocessor, and a warp has one of its four schedulers:

    unevenness = ceil(share) / share x 4 / min(4, warps at a time)      share = programs / multiprocessors
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil, prod
from typing import TYPE_CHECKING, cast

from bench.static import parameters
from bench.static.audit import (
    UNKNOWN_LOOP,
    Audit,
    Job,
    K,
    N,
    bytes_moved,
    cost_of,
    counts_of,
    plan_for,
    row_of,
)
from bench.static.compile import WARP_LANES
from bench.static.cost import (
    InstructionCounts,
    KernelCost,
    Operands,
    Problem,
    counts_of_classes,
)
from bench.static.limits import Ratio, supply_demand
from bench.static.peers import load_peers
from kernels.formats import find_format
from kernels.kernel import PRODUCTS, Kernel, traffic
from profiles.specs import SCHEDULERS, Gpu

if TYPE_CHECKING:
    from kernels.kernel import Arm
    from kernels.triton.plan import Plan

COMPILED = "triton"  # the implementation whose kernels are compiled and counted
LIBRARY = "torch"
TENSOR_CAPABILITY = 80  # from here on Triton multiplies tiles with tensor cores
NO_TENSOR_CORES = "Triton multiplies tiles without tensor cores on compute capability 7.5"
OPERANDS: dict[str, Operands] = {
    "int": "int8",
    "e4m3": "fp8",
    "e2m1": "fp4",
}  # of lowp, by encoding
LIBRARY_SIXTEEN = "vendor16"  # cuBLAS and its like in peers.toml: bytes and tensor rate only


@dataclass(frozen=True)
class Cut:
    """How a kernel cuts one operator into programs.

    Attributes:
        rows_per_pass: rows of x of one program.
        padding: work done over work needed: last steps along n and k that are not whole.
        weights: of one program.
        lanes: of one program.
        stages: passes of the loop that are under way at a time.
        tiled: whether it cuts the batch into tiles, to multiply them with tensor cores.
        programs: of the whole operator.
        along_n: of them those that read the same rows of x.
    """

    rows_per_pass: int
    padding: float
    weights: int
    lanes: int
    stages: int
    tiled: bool
    programs: int
    along_n: int

    @property
    def warps(self) -> int:
        """Of one program."""
        return self.lanes // WARP_LANES

    @classmethod
    def of(cls, plan: Plan, problem: Problem) -> Cut:
        """Read off a plan, whose constants are those of `kernels/triton`."""
        constants = cast("dict[str, int]", plan.constexprs)
        block_n, tiled = constants["BLOCK_N"], len(plan.grid) > 1 and "BLOCK_B" in constants
        looped = "k_end" in plan.signature  # along k, by one program
        block_k = constants["BLOCK_K"]
        return cls(
            rows_per_pass=constants["BLOCK_B"] if tiled else problem.batch,
            padding=_whole(problem.k, block_k) * _whole(problem.n, block_n) / problem.weights,
            weights=block_n * (problem.k if looped else block_k),
            lanes=WARP_LANES * cast("int", plan.options["num_warps"]),
            stages=constants.get("NUM_STAGES", 2),
            tiled=tiled,
            programs=prod(plan.grid),
            along_n=ceil(problem.n / block_n),
        )


@dataclass(frozen=True)
class Spread:
    """How the programs of an operator lie on the multiprocessors of a board; see the module.

    Attributes:
        unevenness: work of the busiest multiprocessor over the mean, its idle schedulers included.
        at_once: programs of a multiprocessor that run at a time, on average over board and waves.
        together: whether all programs run at a time, so that tiles of the batch read the weights together.
    """

    unevenness: float
    at_once: float
    together: bool

    @classmethod
    def of(cls, programs: int, warps: int, multiprocessors: float, resident: int) -> Spread:
        """The spread of programs of so many warps, of which so many fit on a multiprocessor."""
        share = programs / multiprocessors
        schedulers = min(SCHEDULERS, warps * min(resident, ceil(share)))
        return cls(
            unevenness=ceil(share) / share * SCHEDULERS / schedulers,
            at_once=share / ceil(share / resident),
            together=share <= resident,
        )


def launch_on(
    kernel: Kernel, job: Job, audit: Audit, gpu: Gpu, problem: Problem
) -> tuple[KernelCost, Problem]:
    """One of our kernels on one operator, and the operator with the bytes that this arm moves.

    Args:
        kernel: the kernel.
        job: what was compiled; of the batch of the problem.
        audit: what was found in its machine code.
        gpu: the board.
        problem: the operator.
    """
    plan = plan_for(job, problem.n, problem.k)
    cost, problem = plan_on(plan, job, audit, gpu, problem)
    return replace(cost, batches=kernel.batches), problem


def plan_on(
    plan: Plan, job: Job, audit: Audit, gpu: Gpu, problem: Problem
) -> tuple[KernelCost, Problem]:
    """The same for any plan of a kernel of the job, and the audit of that plan."""
    weight_format = find_format(job.format)
    cut = Cut.of(plan, problem)
    shape = (weight_format, problem.n, problem.k, problem.batch)
    moved, words = traffic(cast("Arm", job.arm), *shape), traffic("stream", *shape).bytes_read
    stored, x = words / problem.weights, moved.bytes_read - words
    if job.arm == "lowp":  # its product takes x as it takes the weights, from another kernel
        x = traffic("stream", weight_format, problem.batch, problem.k, problem.batch).bytes_read
    problem = replace(problem, other_bytes=x + moved.bytes_written)
    reason = unmodelled(audit)
    if cut.tiled and job.arm in PRODUCTS and job.capability < TENSOR_CAPABILITY:
        reason = reason or NO_TENSOR_CORES
    if reason or audit.weights is None:
        bare = InstructionCounts(bytes=stored)
        return KernelCost(job.name, job.arm, bare, unmodelled=reason), problem
    passes = ceil(problem.batch / cut.rows_per_pass)
    loop = counts_of(audit, stored)
    cost = KernelCost(
        name=job.name,
        family=job.arm,
        counts=scaled(loop, cut.padding, stored) + around(audit, cut),
        source="compiled and counted, not run",
        tensor_cores=audit.classes.get("mma", 0) > 0,
        rows_per_pass=cut.rows_per_pass,
        rereads=True,
        requested_bytes=words * passes + x * cut.along_n if cut.tiled else None,
        operands=OPERANDS[weight_format.encoding] if job.arm == "lowp" else "16-bit",
        warp_mma=audit.warp_mma > 0,
    )
    if not audit.resident_warps:
        return cost, problem
    resident = max(1, audit.resident_warps // cut.warps)
    spread = Spread.of(cut.programs, cut.warps, gpu.sms.value, resident)
    known = gpu.multiprocessor is not None and gpu.multiprocessor.dram_latency_s is not None
    each = audit.weights * WARP_LANES * weight_format.bits_stored(problem.k) / 8
    in_flight = each * cut.warps * spread.at_once * max(1, cut.stages - 1)
    return replace(
        cost,
        rereads=not spread.together,
        unevenness=spread.unevenness,
        bytes_in_flight=in_flight if known else None,
    ), problem


def ratio_of(gpu: Gpu, job: Job, audit: Audit) -> Ratio:
    """R of one of our kernels at the batch it was compiled for; every pass dequantizes again."""
    weight_format = find_format(job.format)
    cost = cost_of(row_of(audit, job), bytes_moved(job.arm, weight_format), job.batch)
    if cost is None:
        return Ratio(None, reason="nobody knows how many weights one pass of the loop handles")
    cut = Cut.of(plan_for(job), Problem(N, K, job.batch))
    return supply_demand(gpu, replace(cost, rows_per_pass=cut.rows_per_pass), job.batch)


def library_cost(kernel: Kernel) -> KernelCost | None:
    """A library's 16-bit kernel, of which bytes and tensor rate are known; None for any other."""
    if kernel.arm != "vendor" or kernel.weight_bits != 16:
        return None
    return load_peers()[LIBRARY_SIXTEEN].cost


def unmodelled(audit: Audit) -> str:
    """Why counting says nothing about a kernel's time; empty where it does."""
    if audit.spills:
        return "spills: values go through local memory, which is not counted"
    if audit.guarded > parameters.GUARDED_SHARE * audit.instructions:
        return "guarded loop: most of it may be skipped, and how often is not known"
    if audit.unknown_loops:
        return UNKNOWN_LOOP
    if audit.weights is None:
        return "nobody knows how many weights one pass of the loop handles"
    return ""


def around(audit: Audit, cut: Cut) -> InstructionCounts:
    """What runs once in a program, per weight; slow conversions and wide products are taken for others."""
    once = counts_of_classes(audit.outside, 0, 0, {}, 1, 0.0)
    return once * (parameters.OUTSIDE_SHARE.value * cut.lanes / cut.weights)


def scaled(counts: InstructionCounts, padding: float, stored: float) -> InstructionCounts:
    """Counts with the work on padding, which moves no bytes."""
    more = counts * padding
    return InstructionCounts(**{**more.__dict__, "bytes": stored})


def _whole(size: int, block: int) -> int:
    """The size, rounded up to whole blocks."""
    return ceil(size / block) * block

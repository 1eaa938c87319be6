"""Runs a kernel: every thread of many CTAs is one lane of NumPy vectors.

Each lane has the index of its basic block. Of a warp the lowest index among its lanes runs next, for
the lanes that are there; the others wait. So lanes that took different branches meet again at the
first block that both reach (min-PC reconvergence). Of all warps those run whose index is the lowest,
so that they stay together; now and then the one that has waited longest. A barrier is passed when
all living lanes of the CTA have come.

    block   lanes of one warp (x runs, . waits)
      0     xxxxxxxx        setp; @p bra 2
      1     xx..xx..        where not p
      2     xxxxxxxx        together again

Before the run every instruction is *bound*: looked up in the whitelist, its operands resolved, and
made a function without arguments, `step`. Running is then calling steps in a row.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from bench.static.ptx import opcodes
from bench.static.ptx.errors import Fault, UnsupportedError
from bench.static.ptx.memory import GlobalMemory, LocalMemory, SharedMemory
from bench.static.ptx.program import Instruction, Kernel, Negated, Operand
from bench.static.ptx.registers import WARP_LANES, Registers
from bench.static.ptx.warpgroup import Products

if TYPE_CHECKING:
    from bench.static.ptx.counters import Counters
    from bench.static.ptx.tensor_core import Rounding

Array = npt.NDArray[Any]
Step = Callable[[], None]

BLOCKS_RUN_PER_TURN = 64  # after which the warp that has waited longest gets one, for spin locks


class Launch(NamedTuple):
    """What all CTAs share.

    Attributes:
        kernel: the program.
        grid: CTAs along x, y, z.
        block: threads of a CTA along x, y, z.
        parameters: the bytes of each.
        addresses: of the module's own arrays.
        memory: the buffers.
        shared_bytes: dynamic shared memory per CTA.
        race: whether to look for shared-memory races.
        strict: whether a barrier must be reached by whole warps and at one place.
        most_blocks: basic blocks that may run, one after the other.
        rounding: how tensor cores round.
        counters: where accesses are counted.
    """

    kernel: Kernel
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    parameters: dict[str, bytes]
    addresses: dict[str, int]
    memory: GlobalMemory
    shared_bytes: int
    race: bool
    strict: bool
    most_blocks: int
    rounding: Rounding | None
    counters: Counters


class Machine(Registers):
    """Some CTAs of a launch, run together."""

    def __init__(self, launch: Launch, ctas: Array) -> None:
        super().__init__(launch.kernel, ctas, launch.grid, launch.block)
        self.launch = launch
        self.place_variables()
        self.end = len(self.kernel.blocks)
        self.active = np.ones(self.size, bool)  # lanes that run the current block
        self.block = np.where(self.thread < self.threads, 0, self.end)
        self.next_block = self.block.copy()
        self.waiting = np.zeros(self.size, bool)
        self.waits_at = np.full(self.size, -1)
        self.copies: list[tuple[Array, Array, Array, Array]] = []  # lanes, groups, positions, data
        self.groups = np.zeros(self.size, np.int64)  # of asynchronous copies, committed
        self.products = Products(self.warps)
        self.blocks_run = np.zeros(self.end, np.int64)  # by warps
        self.last_blocks = {
            index
            for index, (first, _) in enumerate(self.kernel.blocks)
            if is_exit(self.kernel.instructions[first])
        }
        self.program = [
            [self.bind(self.kernel.instructions[i]) for i in range(first, end)]
            for first, end in self.kernel.blocks
        ]

    def place_variables(self) -> None:
        """Shared and local memory, and the address of each variable in them."""
        kernel, launch = self.kernel, self.launch
        dynamic = -(-kernel.shared_bytes // 128) * 128
        size = dynamic + launch.shared_bytes if launch.shared_bytes else kernel.shared_bytes
        self.symbols = kernel.shared | kernel.local | dict.fromkeys(kernel.dynamic, dynamic)
        self.symbols |= launch.addresses
        self.shared = SharedMemory(len(self.ctas), size, launch.race)
        self.local = LocalMemory(self.size, kernel.local_bytes)

    def bind(self, instruction: Instruction) -> tuple[Callable[[], Array] | None, Step]:
        """An instruction's guard and its step.

        Raises:
            UnsupportedError: the opcode is not on the whitelist, or an operand not of its form.
        """
        operation = opcodes.find(instruction)
        try:
            return self.guard(instruction), operation.bind(self, instruction)
        except (AssertionError, LookupError, TypeError, ValueError) as error:
            raise UnsupportedError(
                instruction.text, instruction.line, f"its operands are of another form: {error}."
            ) from error

    def guard(self, instruction: Instruction) -> Callable[[], Array] | None:
        """A reader of the predicate that an instruction runs under."""
        if instruction.guard is None:
            return None
        operand: Operand = instruction.guard
        if instruction.guard_negated:
            operand = Negated(instruction.guard)
        return self.reader(operand, "pred", instruction, used=True)

    def run(self) -> None:
        """Run all lanes to their end.

        Raises:
            FaultError: the kernel did something wrong.
        """
        turns = 0
        waited = np.zeros(self.warps, np.int64)  # turn of each warp's last block
        while True:
            ready = np.where(self.waiting, self.end, self.block)
            earliest = ready.reshape(-1, WARP_LANES).min(axis=1)
            current = int(earliest.min())
            if current == self.end:
                break
            turns += 1
            if turns % BLOCKS_RUN_PER_TURN == 0:
                hungry = np.where(earliest < self.end, waited, turns)
                current = int(earliest[hungry.argmin()])
            waited[earliest == current] = turns
            turn = np.repeat(earliest == current, WARP_LANES)
            self.run_block(current, (ready == current) & turn)
            if turns > self.launch.most_blocks:
                instruction = self.kernel.instructions[self.kernel.blocks[current][0]]
                detail = f"still running after {turns} basic blocks; most_blocks allows more"
                self.fault(Fault.UNFINISHED, instruction, np.flatnonzero(self.alive()), detail)

    def run_block(self, index: int, active: Array) -> None:
        """Run one basic block for the lanes that stand before it."""
        everyone = bool(active.all())
        self.active = active
        self.next_block[active] = index + 1
        self.mask = None if everyone else active
        self.lanes = self.all_lanes if everyone else np.flatnonzero(active)
        self.blocks_run[index] += active.reshape(-1, WARP_LANES).any(axis=1).sum()
        for guard, step in self.program[index]:
            self.taint = None
            if guard is None:
                step()
            else:
                self.run_guarded(guard, step)
        self.block[active] = self.next_block[active]
        if self.waiting.any():
            self.release()

    def run_guarded(self, guard: Callable[[], Array], step: Step) -> None:
        """Run a step for the lanes whose guard is true."""
        outer = self.mask, self.lanes
        allowed = guard()
        mask = allowed if self.mask is None else allowed & self.mask
        if not mask.all():
            self.mask, self.lanes = mask, np.flatnonzero(mask)
        if len(self.lanes):
            step()
        self.mask, self.lanes = outer

    def jump(self, block: int) -> None:
        """Lanes that run now go on at this block; they have ended if it does nothing but that."""
        self.next_block[self.lanes] = self.end if block in self.last_blocks else block

    def alive(self) -> Array:
        """Lanes that have not exited."""
        return self.block < self.end

    def wait(self, instruction: Instruction) -> None:
        """Lanes that run now wait at the CTA's barrier.

        Raises:
            FaultError: in a strict launch, if other lanes of a warp are elsewhere.
        """
        self.waiting[self.lanes] = True
        self.waits_at[self.lanes] = instruction.index
        if self.launch.strict:
            detail = "do not come to this barrier"
            self.check_together(instruction, Fault.DIVERGENT_BARRIER, self.alive(), detail)

    def check_together(
        self, instruction: Instruction, kind: Fault, among: Array, detail: str
    ) -> None:
        """Fault if a warp is here without some of its lanes among these."""
        here = self.running()
        by_warp = here.reshape(-1, WARP_LANES)
        absent = among.reshape(-1, WARP_LANES) & ~by_warp
        partly = np.any(by_warp, axis=1) & np.any(absent, axis=1)
        if partly.any():
            lanes = np.flatnonzero(here & np.repeat(partly, WARP_LANES))
            self.fault(kind, instruction, lanes, f"other threads of the warp {detail}")

    def release(self) -> None:
        """Let the CTAs go on whose living lanes all wait.

        Raises:
            FaultError: in a strict launch, if they wait at different barriers.
        """
        shape = (len(self.ctas), -1)
        waiting = self.waiting.reshape(shape)
        arrived = waiting | ~self.alive().reshape(shape)
        complete = np.all(arrived, axis=1) & np.any(waiting, axis=1)
        if not complete.any():
            return
        if self.launch.strict:
            at = np.where(waiting, self.waits_at.reshape(shape), -1)
            latest = at.max(axis=1)
            apart = waiting & (at != latest[:, None]) & complete[:, None]
            if apart.any():
                lanes = np.flatnonzero(apart.ravel())
                instruction = self.kernel.instructions[self.waits_at[lanes[0]]]
                detail = "other threads of the CTA wait at another barrier"
                self.fault(Fault.DIVERGENT_BARRIER, instruction, lanes, detail)
        self.shared.barrier(complete)
        self.waiting &= ~np.repeat(complete, self.size // len(self.ctas))


def is_exit(instruction: Instruction) -> bool:
    """Whether it ends every thread that comes to it."""
    return instruction.opcode in ("ret", "exit") and instruction.guard is None


def run(launch: Launch, most_lanes: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Run all CTAs, as many together as fit into `most_lanes`.

    Returns:
        how many warps ran each basic block.

    Raises:
        PtxError: as `Machine.bind` and `Machine.run` do.
    """
    kernel = launch.kernel
    threads = int(np.prod(launch.block))
    together = max(1, most_lanes // (-(-threads // WARP_LANES) * WARP_LANES))
    count = int(np.prod(launch.grid))
    blocks_run = np.zeros(len(kernel.blocks), np.int64)
    with np.errstate(all="ignore"):
        for first, end in pairwise([*range(0, count, together), count]):
            machine = Machine(launch, np.arange(first, end))
            machine.run()
            blocks_run += machine.blocks_run
            machine.program.clear()  # steps refer to the machine: nothing else would free it
    return blocks_run

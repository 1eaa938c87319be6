"""The memories of a launch: global buffers, each CTA's shared memory, each thread's local memory.

Global buffers live 4 GiB apart in the address space, so that no pointer arithmetic gone wrong
reaches another buffer unnoticed. Shared memory keeps, for every byte, what the checks need: whether
it was written, whether an asynchronous copy into it is in flight, and which warps touched it since
the last barrier.

    epoch 0                     | barrier | epoch 1
    warp 0 writes byte 4                    warp 1 reads byte 4: fine
    warp 0 writes byte 8, warp 1 reads it: a race, in whatever order they happen to run here

Races are sought between warps, not between lanes of one. Two warps that write the same value to
the same place are let through, as compute-sanitizer's racecheck does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from bench.static.ptx.errors import Fault, PtxError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench.static.ptx.machine import Machine
    from bench.static.ptx.program import Instruction

Array = npt.NDArray[Any]

FIRST_ADDRESS = 1 << 40
REGION_BITS = 32  # each buffer has 4 GiB of addresses to itself
GUARD_BYTES = 256
UNWRITTEN, WRITTEN, IN_FLIGHT = 0, 1, 2
POISON = 0xFF  # in bytes that nobody may read
CHUNK_BYTES = 16  # wgmma reads shared memory by these
NEVER_WRITTEN = "shared memory that nothing has written"


class GlobalMemory:
    """Buffers at addresses, in one array of bytes."""

    def __init__(self, buffers: Sequence[Array]) -> None:
        sizes = [buffer.nbytes for buffer in buffers]
        if max(sizes, default=0) >= 1 << REGION_BITS:
            raise ValueError("a buffer should be smaller than 4 GiB; emulate a smaller problem.")
        steps = [(-(-size // GUARD_BYTES) + 1) * GUARD_BYTES for size in sizes]
        self.starts = np.cumsum([GUARD_BYTES, *steps]).astype(np.int64)
        self.sizes = np.array([*sizes, 0], np.int64)
        self.bytes = np.zeros(self.starts[-1], np.uint8)
        self.buffers = list(buffers)
        self.views = {n: self.bytes.view(f"u{n}") for n in (1, 2, 4, 8)}
        for start, buffer in zip(self.starts, buffers, strict=False):
            flat = np.ascontiguousarray(buffer).view(np.uint8).ravel()
            self.bytes[start : start + buffer.nbytes] = flat

    @staticmethod
    def address(index: int) -> int:
        """Where a buffer starts for the kernel."""
        return FIRST_ADDRESS + (index << REGION_BITS)

    def copy_back(self) -> None:
        """Put what the kernel wrote into the buffers it was given.

        Raises:
            PtxError: it wrote into a read-only one.
        """
        for start, buffer in zip(self.starts, self.buffers, strict=False):
            written = self.bytes[start : start + buffer.nbytes]
            after = written.view(buffer.dtype).reshape(buffer.shape)
            if buffer.flags.writeable:
                buffer[...] = after
            elif after.tobytes() != buffer.tobytes():
                raise PtxError("the kernel wrote into an array that is read-only.")

    def locate(
        self,
        machine: Machine,
        instruction: Instruction,
        addresses: Array,
        lanes: Array,
        size: int,
        alignment: int | None = None,
    ) -> Array:
        """Positions in `bytes` of an access of `size` bytes by each lane, checked.

        Args:
            machine: for faults.
            instruction: that accesses.
            addresses: of the lanes.
            lanes: that run.
            size: bytes per lane.
            alignment: that is demanded; None for the size.

        Raises:
            FaultError: out of bounds or misaligned.
        """
        relative = addresses.astype(np.int64) - FIRST_ADDRESS
        index = relative >> REGION_BITS
        known = (index >= 0) & (index < len(self.buffers))
        index = np.where(known, index, len(self.buffers))
        offset = np.where(known, relative & (1 << REGION_BITS) - 1, 0)
        outside = offset + size > self.sizes[index]
        if outside.any():
            self.report_outside(machine, instruction, lanes, outside, addresses, size)
        machine.check_alignment(instruction, addresses, lanes, alignment or size)
        located: Array = self.starts[index] + offset
        return located

    def report_outside(
        self,
        machine: Machine,
        instruction: Instruction,
        lanes: Array,
        outside: Array,
        addresses: Array,
        size: int,
    ) -> None:
        """Fault, with the buffer that the address is nearest to."""
        relative = int(addresses[outside][0]) - FIRST_ADDRESS
        index, offset = relative >> REGION_BITS, relative & (1 << REGION_BITS) - 1
        if offset >= 1 << REGION_BITS - 1:
            index, offset = index + 1, offset - (1 << REGION_BITS)  # just before the next buffer
        if 0 <= index < len(self.buffers):
            where = f"bytes {offset} to {offset + size} of buffer {index}, which has {self.sizes[index]}"
        else:
            where = f"{size} bytes at address {relative + FIRST_ADDRESS:#x}, in no buffer"
        machine.fault(Fault.OUT_OF_BOUNDS, instruction, lanes[outside], f"global access to {where}")


def within(
    machine: Machine,
    instruction: Instruction,
    addresses: Array,
    lanes: Array,
    size: int,
    limit: int,
    space: str,
) -> Array:
    """Addresses in a space that begins at 0 and has `limit` bytes, checked; int64.

    Raises:
        FaultError: out of bounds or misaligned.
    """
    offset = addresses.astype(np.int64)
    outside = (offset < 0) | (offset + size > limit)
    if outside.any():
        first = int(offset[outside][0])
        first -= (first >= 1 << 31) << 32  # addresses of 32 bits wrap below 0
        detail = f"{space} access to bytes {first} to {first + size} of {limit}"
        machine.fault(Fault.OUT_OF_BOUNDS, instruction, lanes[outside], detail)
    machine.check_alignment(instruction, addresses, lanes, size)
    return offset


class SharedMemory:
    """Every CTA's shared memory, one after the other, with its shadow."""

    def __init__(self, ctas: int, size: int, race: bool) -> None:
        self.size = size
        self.stride = max(-(-size // 16) * 16, 16)
        total = ctas * self.stride
        self.race = race
        self.bytes = np.full(total, POISON, np.uint8)
        self.views = {n: self.bytes.view(f"u{n}") for n in (1, 2, 4, 8)}
        self.state = np.zeros(total, np.uint8)
        # Who touched a byte last, as epoch * (warps + 1) + warp: older epochs compare as smaller.
        self.epoch = np.ones(ctas, np.int64)
        self.writer = np.zeros(total if race else 0, np.int64)
        self.reader = np.zeros(total if race else 0, np.int64)
        self.changer = np.zeros(total if race else 0, np.int64)  # by an atomic operation
        self.product_reads = np.zeros(total // CHUNK_BYTES, np.int64)  # by wgmma in flight
        self.hidden = np.zeros(total // CHUNK_BYTES, bool)  # from wgmma: no fence since a write

    def locate(
        self, machine: Machine, instruction: Instruction, addresses: Array, lanes: Array, size: int
    ) -> Array:
        """Positions in `bytes` of an access of `size` bytes by each lane, checked.

        Raises:
            FaultError: out of bounds or misaligned.
        """
        offset = within(machine, instruction, addresses, lanes, size, self.size, "shared")
        located: Array = offset + machine.cta[lanes] * self.stride
        return located

    def barrier(self, ctas: Array) -> None:
        """These CTAs passed a barrier: what was touched before is settled."""
        self.epoch[ctas] += 1

    def check_read(
        self, machine: Machine, instruction: Instruction, positions: Array, lanes: Array, size: int
    ) -> Array | None:
        """Note a read of `size` bytes at each position.

        Returns:
            which bytes nothing has written, bool [lanes, size]; None if there are none.

        Raises:
            FaultError: a byte is in flight, or was written by another warp since the last barrier.
        """
        rows = positions // size
        unwritten = self.unwritten(machine, instruction, rows, lanes, size)
        if self.race:
            self.check_other(machine, instruction, self.writer, rows, lanes, size, "wrote")
            self.check_other(machine, instruction, self.changer, rows, lanes, size, "changed")
            self.stamp(machine, self.reader, rows, lanes, size)
        return unwritten

    def unwritten(
        self, machine: Machine, instruction: Instruction, rows: Array, lanes: Array, size: int
    ) -> Array | None:
        """Which bytes of these rows nothing has written; a fault if a copy into them is in flight."""
        state = self.state.reshape(-1, size)[rows]
        if (state == IN_FLIGHT).any():
            bad = (state == IN_FLIGHT).any(axis=1)
            detail = "reads shared memory whose asynchronous copy has not been waited for"
            machine.fault(Fault.ASYNC_COPY, instruction, lanes[bad], detail)
        missing = state == UNWRITTEN
        return missing if missing.any() else None

    def check_written(
        self, machine: Machine, instruction: Instruction, unwritten: Array | None, lanes: Array
    ) -> None:
        """Fault for a use, not only a load, of bytes that nothing has written."""
        if unwritten is not None:
            detail = f"uses {NEVER_WRITTEN}"
            bad = unwritten.any(axis=1)
            machine.fault(Fault.UNINITIALISED_SHARED, instruction, lanes[bad], detail)

    def touch_atomically(
        self, machine: Machine, instruction: Instruction, positions: Array, lanes: Array, size: int
    ) -> None:
        """Note an atomic operation: it may meet others of its kind, but no plain read or write.

        Raises:
            FaultError: a byte is unwritten or in flight, or another warp read or wrote it plainly
                since the last barrier.
        """
        rows = positions // size
        unwritten = self.unwritten(machine, instruction, rows, lanes, size)
        self.check_written(machine, instruction, unwritten, lanes)
        if self.race:
            self.check_other(machine, instruction, self.reader, rows, lanes, size, "read")
            self.check_other(machine, instruction, self.writer, rows, lanes, size, "wrote")
            self.stamp(machine, self.changer, rows, lanes, size)

    def stamp(self, machine: Machine, stamps: Array, rows: Array, lanes: Array, size: int) -> None:
        """Leave each lane's stamp, or that of several warps where another one's already is."""
        oldest, own = self.stamps(machine, lanes)
        several, by_row = oldest + machine.warps, stamps.reshape(-1, size)
        before = by_row[rows]
        now = np.where((before >= oldest) & (before != own), several, own)
        by_row[rows] = now
        lane, byte = np.nonzero(by_row[rows] != now)  # several warps in this very instruction
        by_row[rows[lane], byte] = several[lane, 0]

    def stamps(self, machine: Machine, lanes: Array) -> tuple[Array, Array]:
        """The oldest stamp of this epoch, and each lane's own; [lanes, 1]."""
        oldest = self.epoch[machine.cta[lanes]] * (machine.warps + 1)
        own = oldest + lanes // 32
        return oldest[:, None], own[:, None]

    def check_other(
        self,
        machine: Machine,
        instruction: Instruction,
        stamps: Array,
        rows: Array,
        lanes: Array,
        size: int,
        did: str,
        harmless: Array | None = None,
    ) -> None:
        """Fault if another warp left its stamp on these bytes since the last barrier."""
        oldest, own = self.stamps(machine, lanes)
        last = stamps.reshape(-1, size)[rows]
        race = (last >= oldest) & (last != own)
        if harmless is not None:
            race &= ~harmless
        if race.any():
            bad = race.any(axis=1)
            detail = f"another warp {did} the same shared memory since the last barrier"
            machine.fault(Fault.RACE, instruction, lanes[bad], detail)

    def write(
        self,
        machine: Machine,
        instruction: Instruction,
        positions: Array,
        lanes: Array,
        data: Array,
        state: int = WRITTEN,
    ) -> None:
        """Write each lane's bytes, or announce them if they are in flight, and check.

        Args:
            machine: for faults.
            instruction: that writes.
            positions: aligned to the number of bytes.
            lanes: that write.
            data: uint8 [lanes, bytes].
            state: of the bytes afterwards; those in flight are poisoned until they land.

        Raises:
            FaultError: a copy into these bytes is in flight, another lane of this instruction writes
                something else there, or another warp touched them since the last barrier.
        """
        size = data.shape[1]
        rows = positions // size
        states, memory = self.state.reshape(-1, size), self.bytes.reshape(-1, size)
        if (states[rows] == IN_FLIGHT).any():
            bad = (states[rows] == IN_FLIGHT).any(axis=1)
            detail = "writes shared memory into which an asynchronous copy is in flight"
            machine.fault(Fault.ASYNC_COPY, instruction, lanes[bad], detail)
        chunks = positions // CHUNK_BYTES
        if self.product_reads[chunks].any():
            bad = self.product_reads[chunks] > 0
            detail = "writes shared memory that a wgmma reads which nothing has waited for"
            machine.fault(Fault.ASYNC_PRODUCT, instruction, lanes[bad], detail)
        self.hidden[chunks] = True
        same = memory[rows] == data if state == WRITTEN else np.zeros(data.shape, bool)
        if self.race:
            check = self.check_other
            check(machine, instruction, self.reader, rows, lanes, size, "read")
            check(machine, instruction, self.changer, rows, lanes, size, "changed")
            check(machine, instruction, self.writer, rows, lanes, size, "wrote", harmless=same)
            self.writer.reshape(-1, size)[rows] = self.stamps(machine, lanes)[1]
        memory[rows] = data
        differs = (memory[rows] != data).any(axis=1)
        if self.race and differs.any():
            detail = "another thread writes another value to the same place at the same time"
            machine.fault(Fault.RACE, instruction, lanes[differs], detail)
        if state == IN_FLIGHT:
            memory[rows] = POISON
        states[rows] = state

    def land(self, machine: Machine, positions: Array, lanes: Array, data: Array) -> None:
        """An asynchronous copy is there: its thread has waited for it."""
        rows, size = positions // data.shape[1], data.shape[1]
        self.bytes.reshape(-1, size)[rows] = data
        self.state.reshape(-1, size)[rows] = WRITTEN
        self.hidden[positions // CHUNK_BYTES] = True
        if self.race:
            self.writer.reshape(-1, size)[rows] = self.stamps(machine, lanes)[1]

    # wgmma, which reads through a proxy of its own (warpgroup.py)

    def show(self, ctas: Array) -> None:
        """A fence: what was written in these CTAs is there for wgmma."""
        self.hidden.reshape(-1, self.stride // CHUNK_BYTES)[ctas] = False

    def check_shown(
        self, machine: Machine, instruction: Instruction, positions: Array, lanes: Array
    ) -> None:
        """Fault for a wgmma that reads what was written since the last fence."""
        bad = self.hidden[positions // CHUNK_BYTES]
        if bad.any():
            detail = "no fence.proxy.async since the shared memory that it reads was written"
            machine.fault(Fault.ASYNC_PRODUCT, instruction, lanes[bad], detail)

    def begin_product(self, chunks: Array) -> None:
        """These 16 bytes each are being read from now on."""
        np.add.at(self.product_reads, chunks, 1)

    def end_product(self, chunks: Array) -> None:
        """They have been read."""
        np.subtract.at(self.product_reads, chunks, 1)


class LocalMemory:
    """Every thread's own arrays. Not checked for reads of what was never written."""

    def __init__(self, threads: int, size: int) -> None:
        self.size = size
        self.stride = max(-(-size // 16) * 16, 16)
        self.bytes = np.zeros(threads * self.stride if size else 16, np.uint8)
        self.views = {n: self.bytes.view(f"u{n}") for n in (1, 2, 4, 8)}

    def locate(
        self, machine: Machine, instruction: Instruction, addresses: Array, lanes: Array, size: int
    ) -> Array:
        """Positions in `bytes`, checked.

        Raises:
            FaultError: out of bounds or misaligned.
        """
        offset = within(machine, instruction, addresses, lanes, size, self.size, "local")
        located: Array = offset + lanes * self.stride
        return located

"""What ptxas believes of a pipe's throughput: the stall counts that it puts between instructions.

    volatile loads of every operand | bar.sync | 24 independent copies of one operation | volatile stores

The assembler knows how long a pipe is busy and writes into each instruction how many clocks its warp waits
before the next. Between two neighbours of one opcode that is the time the pipe needs for a warp: a stall of s
means 128 / s results per clock and multiprocessor (four quarters of 32 lanes). An operation that sets a write
barrier runs on a unit of variable latency (the slow unit, XU); where the stall before the next is 1, nothing is
said about its rate.

Where copies of two operations take turns, the clocks from a pair to the next say whether they share a pipe:
those of both where they do, those of the slower one where they do not.

No GPU is needed. It is the belief of a compiler, not a measurement; published rates differ in places.

    probe(90)["integer"]      {"LOP3.LUT": Read(64.0, False), ...}
    turns(80)["imad"]         4.0: IMAD and FFMA are on one pipe

Layout of the control bits: bits 41 to 44 of an instruction's second 64-bit word are the stall, bits 46 to 48
the write barrier (7: none), bits 52 to 57 the barriers it waits for.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from statistics import fmean

from bench.static.compile import WARP_LANES, tool
from profiles.specs import SCHEDULERS

COPIES = 24
LANES = SCHEDULERS * WARP_LANES  # of a multiprocessor
NO_BARRIER = 7
ENOUGH = 2  # neighbours of one opcode
OTHERS = ("LD", "ST", "ULD", "NOP", "BAR", "BMOV", "MOV", "BRA", "EXIT")  # not what is probed
BLACKWELL = 100  # from here on Triton's wheel has another assembler
FIRST_LINE = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\S+\s+)?(\S+).*;\s*/\* 0x[0-9a-f]{16} \*/")
SECOND_LINE = re.compile(r"^\s*/\* 0x([0-9a-f]{16}) \*/")

# Operations by the pipe whose rate they show (fields of profiles.specs.Multiprocessor), with the compute
# capability that they need. {d} is the result, {a} {b} {c} operands, all registers of 32 bits.
OPERATIONS: dict[str, tuple[tuple[str, int], ...]] = {
    "integer": (
        ("lop3.b32 {d}, {a}, {b}, {c}, 0x5a", 75),
        ("shf.l.wrap.b32 {d}, {a}, {b}, {c}", 75),
        ("prmt.b32 {d}, {a}, {b}, {c}", 75),
    ),
    "imad": (("mad.lo.s32 {d}, {a}, {b}, {c}", 75), ("dp4a.u32.u32 {d}, {a}, {b}, {c}", 75)),
    "half2": (
        ("fma.rn.f16x2 {d}, {a}, {b}, {c}", 75),
        ("fma.rn.bf16x2 {d}, {a}, {b}, {c}", 80),
    ),
    "fp32": (("fma.rn.f32 {d}, {a}, {b}, {c}", 75), ("add.rn.f32 {d}, {a}, {b}", 75)),
    "conversion": (("cvt.rn.f32.s8 {d}, {a}", 75), ("ex2.approx.ftz.f32 {d}, {a}", 75)),
    "fast_conversion": (
        ("cvt.rn.f32.s32 {d}, {a}", 75),
        ("cvt.rn.f16x2.f32 {d}, {a}, {b}", 80),
    ),
}
FP32 = OPERATIONS["fp32"][0]  # a fused multiply-add
# Operations that take turns: with FFMA, to see whether they share its pipe; IMAD also with LOP3.
TURNS = {
    "imad": (OPERATIONS["imad"][0], FP32),
    "half2": (OPERATIONS["half2"][0], FP32),
    "integer": (OPERATIONS["integer"][0], FP32),
    "imad and integer": (OPERATIONS["imad"][0], OPERATIONS["integer"][0]),
}
RING = 8  # values from which operations that take turns draw their operands: no two have the same


@dataclass(frozen=True)
class Read:
    """What was read of one opcode.

    Attributes:
        lanes: results per clock and multiprocessor; None where the assembler does not say.
        variable: whether it sets a barrier, being of variable latency.
    """

    lanes: float | None
    variable: bool


@cache
def probe(capability: int) -> dict[str, dict[str, Read]]:
    """Lanes of every opcode that the operations of a pipe became.

    Args:
        capability: compute capability times ten.

    Raises:
        subprocess.CalledProcessError: the assembler refused the probe.
    """
    found: dict[str, dict[str, Read]] = {}
    code = disassembly(capability)
    for pipe, operations in OPERATIONS.items():
        found[pipe] = {}
        for index, (_, least) in enumerate(operations):
            if capability >= least:
                found[pipe] |= read(code[_place(pipe, index)])
    return found


@cache
def turns(capability: int) -> dict[str, float]:
    """Clocks of a quarter of a multiprocessor from a pair of operations to the next, by the name in TURNS.

    Args:
        capability: compute capability times ten.

    Raises:
        subprocess.CalledProcessError: the assembler refused the probe.
        ValueError: it nowhere put the operations side by side.
    """
    code = disassembly(capability)
    return {name: least_clocks(code[_place("turn", i)]) for i, name in enumerate(TURNS)}


def least_clocks(code: list[tuple[str, int]]) -> float:
    """The least clocks from one operation to the other and back, where the next waits for no operand.

    Where an operation alternates between two opcodes the mean of both counts.

    Raises:
        ValueError: they are nowhere neighbours in both orders.
    """
    least: dict[str, dict[tuple[str, str], int]] = {}
    for (name, word), (following, after) in pairwise(code):
        one, other = name.partition(".")[0], following.partition(".")[0]
        if one == other or name.startswith(OTHERS) or following.startswith(OTHERS):
            continue
        if not after >> 52 & 63:
            ways, stall = least.setdefault(one, {}), word >> 41 & 15
            ways[name, following] = min(stall, ways.get((name, following), stall))
    if len(least) != 2:
        raise ValueError("two operations should take turns")
    return sum(fmean(ways.values()) for ways in least.values())


def assembler(capability: int) -> Path:
    """The assembler that knows an architecture."""
    return tool("ptxas-blackwell" if capability >= BLACKWELL else "ptxas")


@cache
def assembler_version(capability: int) -> str:
    """Its version, such as "12.9.86"."""
    text = subprocess.run(
        [assembler(capability), "--version"], capture_output=True, text=True, check=True
    ).stdout
    found = re.search(r"V(\d+\.\d+\.\d+)", text)
    return found[1] if found else "of unknown version"


@cache
def disassembly(capability: int) -> dict[str, list[tuple[str, int]]]:
    """Opcode and control word of every instruction, by the name of the probe."""
    arch = f"sm_{capability}"
    version = "8.6" if capability == BLACKWELL else "8.7" if capability > BLACKWELL else "8.0"
    probes = [
        kernel(_place(pipe, index), (operation,))
        for pipe, operations in OPERATIONS.items()
        for index, (operation, least) in enumerate(operations)
        if capability >= least
    ]
    probes += [
        kernel(_place("turn", index), [operation for operation, _ in pair])
        for index, pair in enumerate(TURNS.values())
    ]
    text = f".version {version}\n.target {arch}\n.address_size 64\n" + "\n".join(probes)
    with tempfile.TemporaryDirectory(prefix="stalls-") as folder:
        source, cubin = Path(folder) / "probe.ptx", Path(folder) / "probe.cubin"
        source.write_text(text, encoding="ascii")
        command = [
            str(x) for x in (assembler(capability), "-O3", "-arch", arch, source, "-o", cubin)
        ]
        subprocess.run(command, capture_output=True, check=True)
        output = subprocess.run(
            [tool("nvdisasm"), "-hex", "-c", cubin], capture_output=True, text=True, check=True
        ).stdout
    parts = re.split(r"^\.text\.(\w+):$", output, flags=re.MULTILINE)[1:]
    return {name: parse(body) for name, body in zip(parts[::2], parts[1::2], strict=True)}


def _place(pipe: str, index: int) -> str:
    """The name of the probe of an operation."""
    return f"{pipe}_{index}"


def kernel(name: str, operations: Sequence[str]) -> str:
    """PTX with copies of operations, in turn, that neither go away nor mix with anything else.

    One operation has its own operands in each copy. Several share few, so that loads do not come between them.
    """
    operands = [(3 * i, 3 * i + 1, 3 * i + 2) for i in range(COPIES)]
    if len(operations) > 1:
        operands = [(i % RING, (i + 4) % RING, (i + 1 + i // RING) % RING) for i in range(COPIES)]
    loaded = 1 + max(map(max, operands))
    lines = [f".visible .entry {name}(.param .u64 p) {{", ".reg .b64 q;"]
    lines += [f".reg .b32 v<{loaded}>;", f".reg .b32 d<{COPIES}>;", "ld.param.u64 q, [p];"]
    lines += [f"ld.volatile.global.b32 v{i}, [q+{4 * i}];" for i in range(loaded)]
    lines.append("bar.sync 0;")
    lines += [
        operations[i % len(operations)].format(a=f"v{a}", b=f"v{b}", c=f"v{c}", d=f"d{i}") + ";"
        for i, (a, b, c) in enumerate(operands)
    ]
    lines += [f"st.volatile.global.b32 [q+{4 * i}], d{i};" for i in range(COPIES)]
    return "\n".join([*lines, "ret;", "}"])


def parse(body: str) -> list[tuple[str, int]]:
    """Opcode and second word of every instruction of one function."""
    found: list[tuple[str, int]] = []
    opcode = ""
    for line in body.splitlines():
        first, second = FIRST_LINE.search(line), SECOND_LINE.match(line)
        if first:
            opcode = first[1]
        elif second and opcode:
            found.append((opcode, int(second[1], 16)))
            opcode = ""
    return found


def read(code: list[tuple[str, int]]) -> dict[str, Read]:
    """The least clocks from one instruction to the next of its opcode, where only probed ones lie between.

    The assembler never waits for less than a pipe needs, and for more only where something else is late. Two
    pipes that take turns (HFMA2 and HFMA2.MMA) are each as far apart as both waits together.
    """
    counts = Counter(opcode for opcode, _ in code if not opcode.startswith(OTHERS))
    probed = {opcode for opcode, number in counts.items() if number >= COPIES // 3}
    result = {}
    for opcode in sorted(probed):
        places = [i for i, (name, _) in enumerate(code) if name == opcode]
        apart = [
            sum(word >> 41 & 15 for _, word in code[i:j])
            for i, j in pairwise(places)
            if all(name in probed for name, _ in code[i:j])
        ]
        if len(apart) >= ENOUGH:
            variable = any(code[i][1] >> 46 & 7 != NO_BARRIER for i in places)
            lanes = None if variable and min(apart) <= 1 else LANES / max(1, min(apart))
            result[opcode] = Read(lanes, variable)
    return result

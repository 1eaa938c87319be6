"""Probes: what a multiprocessor does in a clock, what turning codes into numbers takes, what memory delivers.

Each is a kernel compiled with macros of its own, and the opcode that has to be left in its machine code: a
probe from which the compiler has removed the instruction would measure an empty loop. Who runs them:
bench/measure/devices/probes.py; who looks into the machine code: bench/static/cuda_audit.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product

UNROLL = 16  # of throughput.cu
CHAINS = {"dependent": 1, "independent": 8}
CAST_WORDS = 8  # of cast.cu
FP8_ARCH = 89


@dataclass(frozen=True)
class Probe:
    """One kernel `probe` of throughput.cu or cast.cu.

    Attributes:
        name: the instruction, or the way of dequantizing.
        role: "dependent" or "independent" chains; of cast.cu the "fused" or "bypass" arm.
        file: the .cu file.
        defines: macros.
        opcodes: prefixes, of which one opens the opcode that is probed.
        count: how many of it one pass of the loop has.
        units: what one thread does in one pass: instructions, or weights.
        first_arch: compute capability times ten from which on it exists.
    """

    name: str
    role: str
    file: str
    defines: Mapping[str, int]
    opcodes: tuple[str, ...]
    count: int
    units: int
    first_arch: int = 80

    def exists(self, arch: str) -> bool:
        """Whether an architecture ("90a") has the instruction."""
        return int(arch.rstrip("a")) >= self.first_arch


OPERATIONS = (  # in the order of OPERATION in throughput.cu
    ("I2F", ("I2F.F16",), 80),
    ("I2FP", ("I2FP", "I2F"), 80),  # sm_80 has no I2FP and takes I2F
    ("F2F", ("F2F.",), 80),
    ("F2FP", ("F2FP",), 80),
    ("LOP3", ("LOP3",), 80),
    ("PRMT", ("PRMT",), 80),
    ("HFMA2", ("HFMA2",), 80),
    ("SHFL", ("SHFL",), 80),
    ("LDS", ("LDS",), 80),
    ("F2FP.E4M3", ("F2FP.F16.E4M3",), FP8_ARCH),
    ("IMAD", ("IMAD",), 80),
    ("FFMA", ("FFMA",), 80),
)
THROUGHPUT = tuple(
    Probe(
        name, role, "throughput.cu", {"OPERATION": number, "CHAINS": chains},
        opcodes, UNROLL * chains, UNROLL * chains, first_arch,
    )
    for (number, (name, opcodes, first_arch)), (role, chains) in product(
        enumerate(OPERATIONS), CHAINS.items()
    )
)  # fmt: skip

CASTS = (  # in the order of FORMAT in cast.cu: name, pairs per word, opcodes, how many per pair
    ("int4", 4, ("LOP3",)),
    ("int4 folded", 4, ("LOP3",)),
    ("int8 folded", 2, ("PRMT",)),
    ("fp8_e4m3", 2, ("F2FP.F16.E4M3", "LOP3")),  # before sm_89 bits are moved
    ("nf4", 4, ("LDS",)),
)
CAST = tuple(
    Probe(
        name, role, "cast.cu", {"FORMAT": number, "BYPASS": int(role == "bypass")},
        opcodes if role == "fused" else ("HFMA2",), CAST_WORDS * pairs, CAST_WORDS * pairs * 2,
    )
    for (number, (name, pairs, opcodes)), role in product(enumerate(CASTS), ("bypass", "fused"))
)  # fmt: skip
PROBES = THROUGHPUT + CAST

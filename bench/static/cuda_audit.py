"""Our CUDA C++ kernels compiled by NVRTC for every architecture, and counted like any other machine code.

    python -m bench.sass --cuda

A target is what a study kernel of the same kind needed on sm_90 when it was compiled, thread-instructions per
weight in the hot loop (research of 2026-11: counted, never run). A kernel may need a tenth more.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from bench.static import foreign, sass
from bench.static.audit import UNKNOWN_LOOP, Audit, row_of
from bench.static.occupancy import RESERVED_SHARED_BYTES, resident_programs
from bench.static.peers import load_peers
from kernels.cuda.plan import (
    ARMS,
    FOLDER,
    GEMV_VARIANTS,
    SOURCES,
    Plan,
    dequantize_plan,
    gemv_plan,
    stream_plan,
)
from kernels.cuda.probes import PROBES, THROUGHPUT, Probe
from kernels.formats import find_format
from kernels.nvrtc import compile_module

Found = TypeVar("Found")

ARCHITECTURES = ("80", "86", "89", "90a", "100a", "120a")
N, K = 4096, 4096  # no kernel depends on them: shapes are arguments
TARGETS = {  # of the formats that had a study kernel
    ("int4_simt.cu", "int4-g128"): 2.07,
    ("int4_mma.cu", "int4-g128"): 1.09,
    ("nf4_pairs.cu", "nf4-b64"): 2.31,
    ("nf4_pairs.cu", "nf4-b64-s16"): 2.31,
    ("int8_mma.cu", "int8-ch"): 0.95,
    ("fp8_mma.cu", "fp8_e4m3-ch"): 0.89,
}
PEER_FORMATS = {"int4-g128": "int4", "nf4-b64": "nf4", "int8-ch": "int8", "fp8_e4m3-ch": "fp8"}
STORED = (
    "int4",
    "q4_0",
    "nf4",
    "int8",
    "fp8",
)  # in the order of the table; q4_0 is llama.cpp's int4
PEERS_NOTE = (
    "Instructions per weight for sm_90, batch 1, fp16. Peers: counted in the machine code that they ship, or "
    "compiled from their source (bench/static/peers.toml has versions and ranges). They differ in what they do "
    "besides: zero points, rows served, scales per group, sums in fp16."
)
SLACK = 1.1
BITS_ONLY = ("80", "86")  # have no conversion from fp8, which the target of fp8_mma.cu rests on
NOTE = (
    "COMPILED by NVRTC AND COUNTED, not run. Instructions per weight in the hot loop (dequantize: in the whole "
    "kernel); target: what a study kernel needed on sm_90, of which up to 1.1 times is allowed; a "
    "dash: there was none."
)


@dataclass(frozen=True)
class Compiled:
    """One kernel for one architecture.

    Attributes:
        source: the .cu file.
        format: of the weights.
        arm: "fused", "bypass" or "dequantize".
        arch: "90a" for sm_90a.
        audit: what was found.
    """

    source: str
    format: str
    arm: str
    arch: str
    audit: Audit

    @property
    def target(self) -> float | None:
        """Instructions per weight that it should not exceed by more than a tenth; None: there is none."""
        slow = self.source == "fp8_mma.cu" and self.arch in BITS_ONLY
        return None if slow or self.arm != "fused" else TARGETS.get((self.source, self.format))

    @property
    def instructions_per_weight(self) -> float:
        """Of the hot path."""
        return row_of(self.audit).per_weight["total"]

    @property
    def failure(self) -> str | None:
        """What is wrong with it, in words; None: nothing."""
        if self.audit.spills:
            return f"spills ({self.audit.spills})"
        if self.audit.unknown_loops:
            return UNKNOWN_LOOP
        if self.target is not None and self.instructions_per_weight > SLACK * self.target:
            return f"needs {self.instructions_per_weight / self.target:.2f} times its target"
        return None


def plans(batch: int = 1) -> Iterator[tuple[str, str, Plan]]:
    """Every kernel: its format, its arm, and what is launched."""
    for variant in GEMV_VARIANTS:
        for name in SOURCES[variant]:
            for arm in reversed(ARMS):
                yield name, arm, gemv_plan(variant, arm, find_format(name), N, K, batch)
    for name in SOURCES["mma"]:
        yield name, "stream", stream_plan(find_format(name), N, K)
    for name in SOURCES["dequantize"]:
        yield name, "dequantize", dequantize_plan(find_format(name), N, K)


def compiled(arches: Sequence[str] = ARCHITECTURES) -> Iterator[Compiled]:
    """Compiles and counts them all, on every core; a kernel's architectures come one after the other.

    Raises:
        CudaError: NVRTC is not there, or refuses a source.
    """

    def one(name: str, arm: str, plan: Plan, arch: str) -> Compiled:
        return Compiled(plan.path.name, name, arm, arch, audit_plan(plan, arch))

    yield from on_every_core(one, [(*kernel, arch) for kernel in plans() for arch in arches])


def on_every_core(work: Callable[..., Found], jobs: Iterable[tuple[Any, ...]]) -> Iterator[Found]:
    """The results of the jobs in their order. Threads will do: NVRTC and disassemblers run beside Python."""
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        yield from pool.map(lambda job: work(*job), jobs)  # ended early, it cancels what waits


def audit_plan(plan: Plan, arch: str) -> Audit:
    """The counts of one kernel; raises like `compiled`."""
    [found] = audit_module(plan.path, arch, plan.defines, [plan.source.entry])
    warps, capability = plan.block // 32, int(arch.rstrip("a"))
    assert found.registers is not None
    assert found.shared_bytes is not None
    reserved = (
        RESERVED_SHARED_BYTES if capability >= 90 else 0
    )  # cuobjdump counts it in from there on
    shared = max(0, found.shared_bytes - reserved) + plan.shared_bytes
    resident = resident_programs(capability, found.registers, shared, warps) * warps
    return replace(
        found,
        weights=plan.weights_per_pass,
        num_warps=warps,
        shared_bytes=shared,
        resident_warps=resident,
    )


def audit_module(
    path: Path, arch: str, defines: Mapping[str, int], entries: Iterable[str] = ()
) -> list[Audit]:
    """The counts of kernels of a file, all of them by default; raises like `compiled`."""
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(compile_module(path, arch, defines).cubin)
        usage = foreign.resource_usage(cubin)
        return list(foreign.functions(cubin, list(entries) or list(usage), usage, None))


@dataclass(frozen=True)
class Proof:
    """Whether a probe still has what it probes.

    Attributes:
        probe: the probe.
        arch: "90a" for sm_90a.
        opcode: the commonest one with a prefix of the probe's; "" if there is none.
        count: of opcodes with such a prefix, in one pass of the loop.
        others: all other instructions of the pass.
    """

    probe: Probe
    arch: str
    opcode: str
    count: int
    others: int

    @property
    def failure(self) -> str | None:
        """What is wrong, in words; None: nothing."""
        if self.count < self.probe.count:
            return f"{self.probe.count} x {self.probe.opcodes[0]} expected, {self.count} left"
        if self.probe in THROUGHPUT and self.others > self.count:
            return f"{self.others} other instructions beside {self.count} x {self.opcode}"
        return None


def proofs(arches: Sequence[str] = ARCHITECTURES) -> Iterator[Proof]:
    """What is left of every probe; raises like `compiled`."""
    jobs = [(probe, arch) for probe in PROBES for arch in arches if probe.exists(arch)]
    yield from on_every_core(prove, jobs)


def prove(probe: Probe, arch: str) -> Proof:
    """Looks into the loop of one probe; raises like `compiled`."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compile_module(FOLDER / probe.file, arch, probe.defines).cubin)
        file.flush()
        _, functions = foreign.disassemble(Path(file.name))
    [code] = functions.values()
    hot = sass.hot_path(code)
    wanted = Counter(i.opcode for i in hot if i.is_any(probe.opcodes))
    opcode = wanted.most_common(1)[0][0] if wanted else ""
    return Proof(probe, arch, opcode, wanted.total(), len(hot) - wanted.total())


def render_proofs(found: Sequence[Proof]) -> RenderableType:
    """A row per probe: how often its opcode is left, and what else the loop has, by architecture."""
    arches = list(dict.fromkeys(one.arch for one in found))
    rows: dict[tuple[str, str], dict[str, Proof]] = {}
    for one in found:
        rows.setdefault((one.probe.name, one.probe.role), {})[one.arch] = one
    table = arch_table("probe", arches)
    for (name, role), by_arch in rows.items():
        cells = (by_arch.get(arch) for arch in arches)
        table.add_row(
            f"{name} {role}",
            *(Text(f"{c.count}+{c.others}", style="bold red" if c.failure else "") if c else "-"
              for c in cells),
        )  # fmt: skip
    note = (
        "Probes: how often one pass of the loop has the instruction, + all its other instructions. sm_80 has "
        "I2F for I2FP. dependent: one chain; independent: eight."
    )
    return Group(table, Text(), Text(note))


def render(found: Sequence[Compiled]) -> RenderableType:
    """The table of them all: a row per kernel, instructions per weight and registers per architecture."""
    arches = list(dict.fromkeys(one.arch for one in found))
    rows: dict[tuple[str, str, str], dict[str, Compiled]] = {}
    for one in found:
        rows.setdefault((one.source, one.format, one.arm), {})[one.arch] = one
    table = arch_table("kernel, format", arches, "target", "regs", "spills")
    for (source, name, arm), by_arch in rows.items():
        registers = sorted({one.audit.registers or 0 for one in by_arch.values()})
        targets = {one.target for one in by_arch.values()} - {None}
        table.add_row(
            f"{source.removesuffix('.cu')} {name}{' bypass' if arm == 'bypass' else ''}",
            *(cell(by_arch[arch]) if arch in by_arch else "" for arch in arches),
            f"{targets.pop():.2f}" if targets else "-",
            "-".join(map(str, dict.fromkeys((registers[0], registers[-1])))),
            str(sum(one.audit.spills for one in by_arch.values())),
        )
    return Group(table, Text(), Text(NOTE))


def arch_table(first: str, arches: Sequence[str], *others: str) -> Table:
    """An empty table of 80 columns with one per architecture."""
    table = Table(box=None, padding=(0, 1, 0, 0))
    table.add_column(f"{first} | sm_", no_wrap=True)
    for head in (*arches, *others):
        table.add_column(head, justify="right", no_wrap=True)
    return table


def beside_peers(found: Sequence[Compiled]) -> list[tuple[str, str, float, str]]:
    """Ours and the field's for sm_90: what is stored, the kernel, instructions per weight, and where from.

    Only peers whose machine code somebody counted; by what is stored, the fewest instructions first.
    """
    ours = [
        (PEER_FORMATS[one.format], f"ours: {one.source}", one.instructions_per_weight, "here, now")
        for one in found
        if one.arch == "90a" and one.arm == "fused" and one.format in PEER_FORMATS
    ]
    theirs = [
        (peer.format, peer.cost.name, peer.cost.counts.total, peer.cost.source.split(";")[0])
        for peer in load_peers().values()
        if peer.format in STORED
        and peer.listed
        and peer.cost.origin == "seen"
        and peer.cost.source.startswith("sm_90")
    ]
    return sorted(ours + theirs, key=lambda r: (STORED.index(r[0]), r[2]))


def render_peers(rows: Sequence[tuple[str, str, float, str]]) -> RenderableType:
    """The table of ours and the field's."""
    table = Table("stored", "kernel", box=None, padding=(0, 1, 0, 0))
    table.add_column("per weight", justify="right")
    table.add_column("counted")
    for stored, name, total, where in rows:
        style = "bold" if name.startswith("ours") else ""
        table.add_row(Text(stored), Text(name, style=style), f"{total:.2f}", Text(where))
    return Group(table, Text(), Text(PEERS_NOTE))


def cell(one: Compiled) -> Text:
    """Instructions per weight; red where something is wrong with the kernel."""
    return Text(f"{one.instructions_per_weight:.2f}", style="bold red" if one.failure else "")


def to_data(one: Compiled) -> dict[str, Any]:
    """One kernel as JSON holds it."""
    return {
        "source": one.source,
        "format": one.format,
        "arm": one.arm,
        "architecture": f"sm_{one.arch}",
        "instructions_per_weight": one.instructions_per_weight,
        "target": one.target,
        "registers": one.audit.registers,
        "spills": one.audit.spills,
        "classes": dict(one.audit.classes),
        "kind": "modelled",
        "failure": one.failure,
    }


def proof_data(one: Proof) -> dict[str, Any]:
    """One probe as JSON holds it."""
    return {
        "probe": one.probe.name,
        "role": one.probe.role,
        "architecture": f"sm_{one.arch}",
        "opcode": one.opcode,
        "count": one.count,
        "others": one.others,
        "failure": one.failure,
    }


def show(as_json: bool, report: Callable[[str, float], None] = lambda doing, share: None) -> int:
    """Prints three tables to stdout; returns the exit code, 1 where something fails.

    Args:
        as_json: print JSON instead.
        report: told what was compiled last, and the share of all that is done.

    Raises:
        CudaError: as `compiled`.
    """
    kernels, probes = [], []
    total = len(ARCHITECTURES) * (len(list(plans())) + len(PROBES))
    for one in compiled():
        kernels.append(one)
        report(one.source, len(kernels) / total)
    for proof in proofs():
        probes.append(proof)
        report(f"probe {proof.probe.name}", (len(kernels) + len(probes)) / total)
    peers = beside_peers(kernels)
    if as_json:
        data = {
            "kernels": list(map(to_data, kernels)),
            "beside_peers": peers,
            "probes": list(map(proof_data, probes)),
        }
        sys.stdout.write(json.dumps(data, indent=1) + "\n")
    else:
        parts = (render(kernels), render_peers(peers), render_proofs(probes))
        for part in parts:
            Console(highlight=False).print(part, "")
    failures = {
        **{f"{k.source}, {k.format}, {k.arm}, sm_{k.arch}": k.failure for k in kernels},
        **{f"probe {p.probe.name}, {p.probe.role}, sm_{p.arch}": p.failure for p in probes},
    }
    for name, failure in failures.items():
        if failure is not None:
            sys.stderr.write(f"{name}: {failure}.\n")
    return int(any(failures.values()))

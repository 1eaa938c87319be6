"""The field's machine code beside ours: instructions per weight by class, at batch 1, for one architecture.

    python -m bench.sass --peers
    python -m bench.sass --peers --gpu a100 --activation bf16

What is installed is counted here: bitsandbytes' cubins as its wheel ships them, gemlite's Triton kernels
compiled with the tile that it would choose. Everything else was counted once, by hand, and is imported from
`peers.toml`.
Peers differ in what they do besides: zero points, scales per group, rows served, sums in fp16.
"""

from __future__ import annotations

import importlib.util
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from bench.static import cuda_audit, foreign
from bench.static.audit import Audit, Job, Row, jobs_of, row_of
from bench.static.audit_report import HEADS, capability_of
from bench.static.cost import InstructionCounts
from bench.static.gemlite_code import K, N, count_gemlite
from bench.static.peer_code import Counted, count_code
from bench.static.peers import load_peers
from kernels.nvrtc import CudaError
from kernels.packing import Float16
from kernels.peers import PACKAGES
from profiles.specs import Gpu

STORED = {  # what is stored, and our format of that kind
    "int4": "int4-g128",
    "q4_0": "",  # llama.cpp's int4
    "nf4": "nf4-b64",
    "int8": "int8-ch",
    "fp8": "fp8_e4m3-ch",
    "nf4 to 16 bits": "nf4-b64",
}
DEQUANTIZED = "nf4 to 16 bits"
GEMLITE = {
    "int4": "gemlite-gemv",
    "int8": "gemlite-int8",
    "fp8": "gemlite-fp8",
}  # keys of peers.toml
ELEMENTS = {"fp16": "6__half", "bf16": "13__nv_bfloat16"}  # as mangled names have them
ARCHES = {90: "90a", 100: "100a", 120: "120a"}  # of NVRTC, where it is not the number alone
TINYGEMM = "tinygemm_m16n8k16_chunk_kernel"
NOTE = (
    "COMPILED AND COUNTED, not run: thread-instructions per weight of the hot loop at batch 1, without a "
    "loop of the whole kernel. * imported: counted by hand in 2026-11, not here; a dash: nobody noted it. "
    "typed: what was counted then of the same kernel. shfl: shuffles and shared memory. ≥ a lower bound: a "
    "loop within the hot loop runs as often as a value at run time says, and is counted once."
)


@dataclass(frozen=True)
class Line:
    """One kernel of the table.

    Attributes:
        stored: a key of STORED.
        kernel: whose and which.
        version: of the package; of ours "".
        kind: "modelled" for what was compiled and counted here, "imported" for what was typed.
        per_weight: instructions, "total" and by class; classes that nobody noted are absent.
        how: what was counted.
        lower_bound: whether more may be run: a loop of unknown length counts once.
    """

    stored: str
    kernel: str
    version: str
    kind: Literal["modelled", "imported"]
    per_weight: Mapping[str, float]
    how: str
    lower_bound: bool = False


@dataclass(frozen=True)
class Shipped:
    """A function of bitsandbytes' library.

    Attributes:
        stored: a key of STORED.
        label: for people.
        pattern: of its mangled name; "{}" stands for the type of x.
        weights: that a lane handles in one pass of the loop.
        typed: its key in `peers.toml`; None: it is not there.
        how: what a pass is, and who calls it.
    """

    stored: str
    label: str
    pattern: str
    weights: int
    typed: str | None
    how: str


BITSANDBYTES = (
    Shipped("nf4", "gemm_4bit_simt", "gemm_4bit_simtI{}Li1E", 32, "bnb-simt",
            "a lane loads 16 bytes in a pass; matmul_4bit takes it for batches 1 to 3"),
    Shipped("nf4", "kgemm_4bit_inference_naive", "kgemm_4bit_inference_naiveI{}", 32, "bnb-naive",
            "a lane loads 16 bytes in a pass; gemv_4bit alone still takes it"),
    Shipped(DEQUANTIZED, "kDequantizeBlockwise", "kDequantizeBlockwiseI{}Li512ELi64ELi8ELi2E", 16, None,
            "a lane loads 8 bytes, one at a time, in a pass; dequantize_4bit on NF4"),
)  # fmt: skip


@dataclass(frozen=True)
class Found:
    """The lines of an architecture, and a sentence for everything that is not among them."""

    gpu: Gpu
    activation: Float16
    lines: Sequence[Line]
    missing: Sequence[str]


def our_jobs(gpu: Gpu, activation: Float16) -> list[Job]:
    """Our Triton kernels that stand beside the field's."""
    formats = [name for name in dict.fromkeys(STORED.values()) if name]
    jobs = jobs_of(("fused", "dequantize"), formats, (activation,), (capability_of(gpu),))
    wanted = {"fused": ("gemv", "gemv-ptx"), "dequantize": ("default", "ptx")}
    return [
        job
        for job in jobs
        if job.variant in wanted[job.arm]
        and (job.arm == "fused" or job.format == STORED[DEQUANTIZED])
    ]


def audit_peers(gpu: Gpu, activation: Float16, ours: Mapping[Job, Audit]) -> Found:
    """Everything of one board.

    Args:
        gpu: the board.
        activation: dtype of x.
        ours: the audits of `our_jobs`.
    """
    missing: list[str] = []
    lines = [_our_line(job, audit) for job, audit in ours.items()]
    lines += _our_cuda(gpu, activation, missing)
    lines += _bitsandbytes(gpu, activation, missing)
    lines += _gemlite(gpu, activation, missing)
    counted = {line.kernel for line in lines}
    lines += [line for line in _typed(gpu, activation) if line.kernel not in counted]
    missing += [
        _tinygemm(),
        "torchao: its wheel has no weight-only kernel of its own (CUTLASS, MX)",
    ]
    order = list(STORED)
    ordered = sorted(lines, key=lambda line: (order.index(line.stored), line.per_weight["total"]))
    return Found(gpu, activation, ordered, missing)


def _our_line(job: Job, audit: Audit) -> Line:
    stored = next(
        s
        for s, name in STORED.items()
        if name == job.format and (s == DEQUANTIZED) == (job.arm != "fused")
    )
    how = f"compiled here, {audit.weights} weights of a lane in a pass"
    return _line_of(row_of(audit, job), stored, f"ours: Triton {job.variant}", how)


def _line_of(row: Row, stored: str, kernel: str, how: str) -> Line:
    """The line of a kernel of ours."""
    return Line(stored, kernel, "", "modelled", row.per_weight, how, row.lower_bound)


def _our_cuda(gpu: Gpu, activation: Float16, missing: list[str]) -> Iterator[Line]:
    """Our CUDA C++ kernels, which take x in fp16."""
    capability = capability_of(gpu)
    if activation != "fp16" or capability < 80:
        return
    formats = {name: stored for stored, name in STORED.items() if name and stored != DEQUANTIZED}
    try:
        for name, arm, plan in cuda_audit.plans():
            if arm == "fused" and name in formats:
                audit = cuda_audit.audit_plan(plan, ARCHES.get(capability, str(capability)))
                how = f"compiled here by NVRTC, {audit.weights} weights of a lane in a pass"
                yield _line_of(row_of(audit), formats[name], f"ours: {plan.path.name}", how)
    except CudaError as error:
        missing.append(f"ours in CUDA C++: {error}")


def _bitsandbytes(gpu: Gpu, activation: Float16, missing: list[str]) -> list[Line]:
    """What bitsandbytes' wheel ships for the architecture."""
    if (why := _absent("bitsandbytes")) is not None:
        missing.append(why)
        return []
    path, release = bitsandbytes_library(), version("bitsandbytes")
    try:
        if path is None:
            raise foreign.ForeignError("its wheel has no library for CUDA")
        found = count_shipped(path, capability_of(gpu), activation)
    except foreign.ForeignError as error:
        missing.append(f"bitsandbytes {release}: {error}")
        return []
    return [
        Line(shipped.stored, f"bitsandbytes {shipped.label}", release, "modelled", counted.per_weight,
             f"{path.name}; {_share(counted)}; {shipped.how}{_beside(shipped.typed, gpu, activation)}",
             counted.lower_bound)
        for shipped, counted in found.items()
    ]  # fmt: skip


def bitsandbytes_library() -> Path | None:
    """The library of the installed wheel for the earliest release of the latest CUDA it has."""
    spec = importlib.util.find_spec("bitsandbytes")
    if spec is None or spec.origin is None:
        return None
    found = [
        (-int(match[1][:2]), int(match[1][2:]), path)
        for path in Path(spec.origin).parent.glob("libbitsandbytes_cuda*.so")
        if (match := re.search(r"_cuda(\d{3,})$", path.stem))
    ]
    return min(found)[2] if found else None


def count_shipped(path: Path, capability: int, activation: Float16) -> dict[Shipped, Counted]:
    """The functions of BITSANDBYTES in a library.

    Raises:
        ForeignError: the library cannot be read, or has no code for the architecture.
    """
    found: dict[Shipped, Counted] = {}
    with tempfile.TemporaryDirectory() as folder:
        cubins = {
            int(match[1]): cubin
            for cubin in foreign.extract(path, Path(folder))
            if (match := foreign.ARCH.search(cubin.name))
        }
        if capability not in cubins:
            raise foreign.ForeignError(f"{path.name} has no machine code for sm_{capability}")
        cubin = cubins[capability]
        for shipped in BITSANDBYTES:
            pattern = shipped.pattern.format(ELEMENTS[activation])
            names = [name for name in foreign.resource_usage(cubin) if pattern in name]
            if names:
                _, code = foreign.disassemble(cubin, names[:1])
                found[shipped] = count_code(code[names[0]], shipped.weights)
    return found


def _gemlite(gpu: Gpu, activation: Float16, missing: list[str]) -> Iterator[Line]:
    """What gemlite would launch on the board."""
    if (why := _absent("gemlite")) is not None:
        missing.append(why)
        return
    cells = [{"format": STORED[s], "activation": activation, "batch": 1} for s in GEMLITE]
    sms, release = round(gpu.sms.value), version("gemlite")
    answers = count_gemlite(gpu.name, capability_of(gpu), sms, cells)
    for (stored, typed), answer in zip(GEMLITE.items(), answers, strict=True):
        if isinstance(answer, str):
            missing.append(f"gemlite {release}, {stored}: {answer}")
            continue
        kernel = "GEMV_REVSPLITK" if "revsplitK" in answer.kernel else "GEMV_SPLITK"
        tile = answer.tile + ("" if stored == "int4" else " (shipped for 8-bit x)")
        how = f"{answer.kernel} for {N} x {K}, {tile}; {_share(answer.counted)}"
        per_weight = answer.counted.per_weight
        if beside := _beside(typed, gpu, activation):
            how += beside + ("" if stored == "int4" else " with post_scale=True, not its default")
        bound = answer.counted.lower_bound
        yield Line(stored, f"gemlite {kernel}", release, "modelled", per_weight, how, bound)


def _absent(name: str) -> str | None:
    """A sentence where a package is not installed or too old; what it runs on does not matter here."""
    package = next(p for p in PACKAGES if p.name == name)
    why = package.why_not(package.devices[0])
    return None if why is None else f"{name} {why}"


def _tinygemm() -> str:
    """Why PyTorch's int4 kernel is not among the lines."""
    import torch

    if torch.version.cuda is None:
        return f"PyTorch's tinygemm: PyTorch {torch.__version__} is for CPUs and has no machine code of a GPU"
    return f"PyTorch's tinygemm: --so .../torch/lib/libtorch_cuda.so --regex {TINYGEMM} looks into this PyTorch"


def _share(counted: Counted) -> str:
    """The fraction that was counted."""
    ends = f", {counted.left_out} for a row's end left out" if counted.left_out else ""
    return f"{counted.instructions} instructions for {counted.weights} weights{ends}"


def _beside(key: str | None, gpu: Gpu, activation: Float16) -> str:
    """What was typed of the same kernel, where it was."""
    if key is None or activation != "fp16":
        return ""
    cost = load_peers()[key].cost
    return f"; typed: {cost.counts.total:.2f}" if _seen_on(cost.source, gpu) else ""


def _seen_on(source: str, gpu: Gpu) -> bool:
    return source.startswith(f"sm_{capability_of(gpu)},")


def _typed(gpu: Gpu, activation: Float16) -> Iterator[Line]:
    """What was counted by hand on the architecture, unless its package is counted here."""
    here = {s.typed for s in BITSANDBYTES if not _absent("bitsandbytes")}
    here |= set(GEMLITE.values()) if not _absent("gemlite") else set()
    for key, peer in load_peers().items():
        cost = peer.cost
        bf16 = cost.name.endswith("bf16")
        if (
            key not in here
            and cost.origin == "seen"
            and peer.format in STORED
            and _seen_on(cost.source, gpu)
            and cost.batches[0] == 1
            and bf16 == (activation == "bf16")
        ):
            how = cost.source.partition(", ")[2]
            yield Line(
                peer.format, cost.name, peer.version, "imported", _by_class(cost.counts), how
            )


def _by_class(counts: InstructionCounts) -> dict[str, float]:
    """Typed counts by the classes of the table; nobody typed the number of loads and of others."""
    return {
        "total": counts.total,
        "int": counts.integer,
        "half2": counts.half2,
        "fp32": counts.fp32,
        "cvt": counts.conversion + counts.fast_conversion,
        "mma": counts.tensor,
        "exchange": counts.shared,
    }


def render(found: Found) -> RenderableType:
    """The table of 80 columns, and under it what was counted of each line."""
    where = f"sm_{capability_of(found.gpu)} ({found.gpu.name})"
    title = f"{found.activation}, batch 1, {where}: instructions per weight"
    table = Table(box=None, padding=(0, 1, 0, 0))
    table.add_column("", overflow="fold")
    for head in HEADS.values():
        table.add_column(head, justify="right", no_wrap=True)
    notes = Table.grid(padding=(0, 1, 0, 0))
    last = ""
    for line in found.lines:
        if line.stored != last:
            table.add_row(Text(line.stored, style="bold"))
            last = line.stored
        imported = " *" if line.kind == "imported" else ""
        cells = (line.per_weight.get(name) for name in HEADS)
        style = "bold" if not line.version else "dim" if imported else ""
        label = f" {'≥ ' if line.lower_bound else ''}{line.kernel}{imported}"
        table.add_row(Text(label, style=style), *("–" if c is None else f"{c:.2f}" for c in cells))
        if line.version:
            notes.add_row(f"{line.kernel}{imported}, {line.version}: {line.how}")
    parts: list[RenderableType] = [Text(title, style="bold"), table, Text(), notes, Text()]
    parts += [Text(f"Not counted: {sentence.rstrip('.')}.") for sentence in found.missing]
    return Group(*parts, Text(), Text(NOTE, style="dim"))


def to_data(found: Found) -> dict[str, Any]:
    """The same for programs."""
    return {
        "gpu": found.gpu.key,
        "arch": f"sm_{capability_of(found.gpu)}",
        "activation": found.activation,
        "batch": 1,
        "kernels": [
            {"stored": line.stored, "kernel": line.kernel, "version": line.version, "kind": line.kind,
             "instructions_per_weight": dict(line.per_weight), "lower_bound": line.lower_bound,
             "counted": line.how}
            for line in found.lines
        ],
        "not_counted": list(found.missing),
    }  # fmt: skip

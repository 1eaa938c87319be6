"""Builds of the suite's Triton kernels to emulate: PTX, registers and stack, kept in build/ptx/.

What a build depends on is in its key, as in that of an audit (bench/static/audit_cache.py): the text of the
kernel and of what it calls, the version of Triton and the job. So a kernel is compiled once, by whichever
test or proof asks first. Only a process that does not interpret can build.
"""

from __future__ import annotations

import base64
import hashlib
import re
import tempfile
import zlib
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

from bench.static import audit_cache
from bench.static.identity import identity
from tests.aot_ptx import Ptx
from tests.aot_triton import ROOT, Job, plan_of

FOLDER = ROOT / "build" / "ptx"


@dataclass(frozen=True)
class Build:
    """A compiled kernel.

    Attributes:
        ptx: what the emulator runs. Lines of the source are left out: they are no code.
        block_n: rows of W per program.
        block_k: weights of one row per step along k; 0 for a kernel that takes no steps.
        registers: per thread, as the assembler says.
        stack_bytes: per thread; anything above 0 is spilled registers or an array in local memory.
    """

    ptx: Ptx
    block_n: int
    block_k: int
    registers: int
    stack_bytes: int

    @property
    def program(self) -> str:
        """A digest of what runs: the same for targets whose PTX differs in the target's name alone."""
        return hashlib.sha256(code_of(self.ptx).encode()).hexdigest()[:16]


def code_of(ptx: Ptx) -> str:
    """What runs, without the name of the target and the lines of the source."""
    code = re.sub(r"^\s*(\.version|\.target|\.loc|\.file) .*$", "", ptx.text, flags=re.MULTILINE)
    return f"{ptx.grid} {ptx.block} {ptx.shared_bytes}\n{code}"


@cache
def kept() -> audit_cache.Cache:
    """Where builds are kept."""
    return audit_cache.open_cache(FOLDER)


def key_of(job: Job) -> str:
    """What a build depends on, as one digest."""
    depends = [kept().programs, kept().compiler, Path(__file__).read_text(encoding="utf-8")]
    return audit_cache.checksum([*depends, asdict(job), identity(plan_of(job))])


def build(job: Job) -> Build:
    """The build of a job: the kept one, or a new one."""
    key = key_of(job)
    found = kept().read(key)
    if found is None:
        new = compile_build(job)
        found = asdict(new)
        found["ptx"]["text"] = base64.b85encode(zlib.compress(new.ptx.text.encode())).decode()
        kept().write(key, job, found)
        return new
    ptx = found.pop("ptx")
    text = zlib.decompress(base64.b85decode(ptx.pop("text"))).decode()
    return Build(Ptx(**ptx | {"text": text, "grid": tuple(ptx["grid"])}), **found)


def compile_build(job: Job) -> Build:
    """Compile a job in an empty cache of Triton's, which might answer for a changed kernel."""
    import triton

    from bench.static.compile import build_kernel, resource_usage

    plan = plan_of(job)
    with tempfile.TemporaryDirectory() as folder:
        triton.knobs.cache.dir = folder
        triton.knobs.compilation.disable_line_info = True
        built = build_kernel(
            plan.fn, plan.signature, plan.constexprs, job.capability, **plan.options
        )
    usage = resource_usage(built.asm["cubin"])
    return Build(
        ptx=Ptx.of(built, plan.grid),
        block_n=int(str(plan.constexprs["BLOCK_N"])),
        block_k=int(str(plan.constexprs.get("BLOCK_K", 0))),
        registers=usage["REG"],
        stack_bytes=usage["STACK"],
    )

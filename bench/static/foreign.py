"""Machine code that others compiled: functions of a cubin, or of the cubins within a library.

A binary does not say how many weights a lane handles in one pass of a loop, nor how many warps a program
has: such things are unknown here unless the caller states them. Names are as the linker knows them (mangled).
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from bench.static import sass
from bench.static.audit import Audit, audit_code
from bench.static.compile import tool

MOST_FUNCTIONS = 100
OLDEST = 70  # from here on an instruction has 128 bits, which addresses rest on
ARCH = re.compile(r"\.sm_(\d+)[a-z]?\.cubin$")
CODE_FOR = re.compile(r"code for sm_(\d+)")
FUNCTION = re.compile(r"^\s*Function\s*:", re.MULTILINE)
LINE = re.compile(
    r"^\s*/\*([0-9a-f]{4,})\*/\s+(?:(@!?U?P[T\d])\s+)?([A-Z][\w.]*)\s*(.*?)\s*;", re.M
)
USAGE = re.compile(r"Function (\S+?):\s*\n\s*(REG:.*)")


class ForeignError(ValueError):
    """A binary that cannot be read, or has no such function; one sentence says why."""


def audit_binary(
    path: Path,
    is_library: bool,
    pattern: str,
    capabilities: Collection[int] = (),
    weights: int | None = None,
) -> list[Audit]:
    """Count the functions of a binary whose names a regular expression finds.

    Args:
        path: a cubin, or a library or program with cubins inside.
        is_library: which of the two.
        pattern: searched for in the names.
        capabilities: compute capabilities times ten to look at; empty: all that are there.
        weights: that one lane handles in one pass of the hot loop; None: unknown.

    Raises:
        ForeignError: the file cannot be read, or holds no such function.
    """
    try:
        wanted = re.compile(pattern)
    except re.error as error:
        raise ForeignError(f"--regex {pattern!r} is no regular expression: {error}.") from None
    if not path.is_file():
        raise ForeignError(f"there is no file {path}.")
    found: list[Audit] = []
    names: set[str] = set()
    with tempfile.TemporaryDirectory() as folder:
        cubins = extract(path, Path(folder)) if is_library else [path]
        for cubin in cubins:
            arch = ARCH.search(cubin.name) if is_library else None
            if arch and (
                int(arch[1]) < OLDEST or (capabilities and int(arch[1]) not in capabilities)
            ):
                continue
            usage = resource_usage(cubin)
            names |= set(usage)
            chosen = [name for name in usage if wanted.search(name)]
            if len(found) + len(chosen) > MOST_FUNCTIONS:
                raise ForeignError(
                    f"--regex {pattern!r} finds more than {MOST_FUNCTIONS} functions of "
                    f"{path.name}; narrow it, or name one board with --gpu."
                )
            if chosen:
                audits = functions(cubin, chosen, usage, weights)
                found += [a for a in audits if not capabilities or a.capability in capabilities]
    if not found:
        some = ", ".join(sorted(names)[:3]) or "none"
        where = f" for {', '.join(f'sm_{c}' for c in capabilities)}" if capabilities else ""
        raise ForeignError(
            f"{path.name} has no function{where} whose name has {pattern!r} in it; "
            f"of {len(names)} names the first are: {some}."
        )
    return found


def extract(path: Path, folder: Path) -> list[Path]:
    """Every cubin within a library.

    Raises:
        ForeignError: there is none.
    """
    done = subprocess.run(
        [tool("cuobjdump"), "--extract-elf", "all", path.resolve()],
        cwd=folder,
        capture_output=True,
        text=True,
        errors="replace",
    )
    cubins = sorted(folder.glob("*.cubin"))
    if done.returncode or not cubins:
        raise ForeignError(f"{path.name} holds no machine code of a GPU that cuobjdump can read.")
    return cubins


def resource_usage(cubin: Path) -> dict[str, dict[str, int]]:
    """Registers, stack and static shared memory of each function of a cubin.

    Raises:
        ForeignError: cuobjdump refuses the file.
    """
    done = subprocess.run(
        [tool("cuobjdump"), "--dump-resource-usage", cubin],
        capture_output=True,
        text=True,
        errors="replace",
    )
    if done.returncode:
        raise ForeignError(f"{cubin.name} is no cubin that cuobjdump can read.")
    return {
        name: {key: int(value) for key, value in re.findall(r"(REG|STACK|SHARED):(\d+)", line)}
        for name, line in USAGE.findall(done.stdout)
    }


def functions(
    cubin: Path, names: Sequence[str], usage: dict[str, dict[str, int]], weights: int | None
) -> Iterator[Audit]:
    """The counts of these functions.

    `cuobjdump` and not `nvdisasm -json`, which crashes on some cubins of nvcc (13.1, several functions).

    Raises:
        ForeignError: cuobjdump refuses the file, or it is older than what can be counted.
    """
    capability, found = disassemble(cubin, names)
    for name, code in found.items():
        used = usage.get(name, {})
        yield audit_code(
            name,
            capability,
            code,
            weights,
            registers=used.get("REG"),
            stack_bytes=used.get("STACK", 0),
            shared_bytes=used.get("SHARED"),
        )


def disassemble(
    cubin: Path, names: Sequence[str] = ()
) -> tuple[int, dict[str, tuple[sass.Instruction, ...]]]:
    """The compute capability times ten of a cubin, and the code of these functions, or of all.

    Raises:
        ForeignError: as `functions`.
    """
    chosen = ["--function", ",".join(names)] if names else []
    done = subprocess.run(
        [tool("cuobjdump"), "--dump-sass", *chosen, cubin],
        capture_output=True,
        text=True,
        errors="replace",
    )
    arch = CODE_FOR.search(done.stdout)
    if done.returncode or arch is None:
        raise ForeignError(f"{cubin.name} is no cubin that cuobjdump can disassemble.")
    capability = int(arch[1])
    if capability < OLDEST:
        raise ForeignError(
            f"{cubin.name} is for sm_{capability}; counted is sm_{OLDEST} and later."
        )
    blocks = (block.partition("\n") for block in FUNCTION.split(done.stdout)[1:])
    return capability, {name.strip(): parse_text(text) for name, _, text in blocks}


def parse_text(text: str) -> tuple[sass.Instruction, ...]:
    """The instructions of one function as cuobjdump prints them.

    Raises:
        ForeignError: addresses are not 16 bytes apart, so branches would be misread.
    """
    code = []
    for index, (address, predicate, opcode, operands) in enumerate(LINE.findall(text)):
        if int(address, 16) != index * sass.INSTRUCTION_BYTES:
            raise ForeignError(f"the instruction at 0x{address} is not where it was expected.")
        code.append(sass.Instruction(index, opcode, operands, predicate))
    return tuple(code)

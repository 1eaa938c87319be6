"""Golden vectors: what a real GPU computed, kept so that the emulator can be held to it anywhere.

A *recording* is one launch: the PTX that ran, its arguments and what it wrote, as raw bits, and on
which GPU. It is one .npz file; `replay` launches the same PTX in the emulator and compares.

    python -m tests.ptx_golden            on a machine with an NVIDIA GPU: record (again) all kernels

`make gpu-test` records those that tests/data/golden/<gpu>/ does not have yet. Commit that folder;
from then on every machine replays it.

    header      JSON: version, origin, job, entry, grid, block, shared_bytes, sha256 of the PTX, the
                arguments ("array" or a number, in the kernel's order), which of them is written
    ptx         its text, without debug sections and folder names
    argument0   arrays, before the launch, in unsigned integers of their width
    written     the output after the launch, likewise
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from kernels.kernel import LADDER, output_shape
from tests.aot_ptx import Ptx, execute, from_bits, job_arguments
from tests.aot_triton import Job, plan_of
from tests.triton_cases import TOLERANCES

if TYPE_CHECKING:
    import torch

GOLDEN = Path(__file__).parent / "data" / "golden"
VERSION = 1
DEVICE = "cuda"
UNWRITTEN = 0xFF  # in every byte of an output before the launch

N, K = 41, 768  # rows of the last program are empty; gemm takes six steps through four stages
FORMATS = ("int4-g128", "int4-g128-zp", "int8-ch", "int8-g128")
ACTIVATIONS = ("fp16", "bf16")
ANY_GPU = 0  # capability of a job before it is known which GPU runs it

INTEGERS = ("stream", "unpack")
ELEMENTWISE = ("dequantize",)
ONE_ROUNDING = {"fp32": 2.0**-20, "fp16": 2.0**-10, "bf16": 2.0**-7}

Argument = np.ndarray | int


@dataclass(frozen=True)
class Origin:
    """Where a recording was made.

    Attributes:
        gpu: name that the driver gives it.
        driver: version.
        torch: version.
        triton: version, which compiled the PTX.
        date: day, in UTC.
        emulated: whether it was no GPU at all; only tests of this format make such recordings.
    """

    gpu: str
    driver: str
    torch: str
    triton: str
    date: str
    emulated: bool


@dataclass(frozen=True)
class Recording:
    """One launch.

    Attributes:
        origin: where.
        job: the kernel, its format, its shape and the target it was compiled for.
        ptx: what ran, and how it was launched.
        arguments: unsigned arrays and numbers, before the launch.
        output: index of the argument that the kernel writes.
        written: that argument after the launch.
    """

    origin: Origin
    job: Job
    ptx: Ptx
    arguments: tuple[Argument, ...]
    output: int
    written: np.ndarray


Launcher = Callable[[Job, list[Argument]], Ptx]  # runs a job on its arguments, which it updates


# Recording


def golden_jobs() -> list[Job]:
    """What is recorded, for no GPU in particular: every kernel and format; activations take turns."""
    once = [("gemv", 1), ("gemm", 16)]
    shapes = [(arm, *shape) for arm in ("native", *LADDER) for shape in once]
    shapes += [("dequantize", "gemv", 1), ("bypass", "gemv", 5), ("fused", "gemv", 5)]
    jobs = []
    for (turn, (arm, regime, batch)), (i, stored) in product(enumerate(shapes), enumerate(FORMATS)):
        activation = ACTIVATIONS[(turn + i) % len(ACTIVATIONS)]
        format_name = activation if arm == "native" else stored
        jobs.append(Job(arm, regime, format_name, activation, N, K, batch, ANY_GPU))
    return list(dict.fromkeys(jobs))


def record(job: Job, origin: Origin, run: Launcher) -> Recording:
    """Run a job and keep what went in and came out.

    Raises:
        ValueError: the result is wrong, so that nothing can be learnt from it.
    """
    arguments, out, expected = job_arguments(job)
    out.view(np.uint8)[...] = UNWRITTEN
    before = tuple(a if isinstance(a, int) else unsigned(a).copy() for a in arguments)
    output = next(i for i, argument in enumerate(arguments) if argument is out)
    ptx = run(job, arguments)
    error = difference(job, out, expected)
    if not error <= (0 if exact(job) else TOLERANCES[job.activation]):
        raise ValueError(
            f"{name(job)} should match its reference before it is recorded, but it differs by "
            f"{error:.1e} of the largest value on {origin.gpu}; run the other GPU tests first."
        )
    anonymous = replace(ptx, text=without_debug(ptx.text))
    return Recording(origin, job, anonymous, before, output, unsigned(out))


def this_gpu() -> tuple[Origin, int]:
    """The GPU of this machine, and its compute capability times ten."""
    import torch
    import triton

    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    driver = subprocess.run(query, capture_output=True, text=True, check=True).stdout
    major, minor = torch.cuda.get_device_capability()
    origin = Origin(
        gpu=torch.cuda.get_device_name(),
        driver=driver.splitlines()[0].strip(),
        torch=torch.__version__,
        triton=triton.__version__,
        date=datetime.now(UTC).date().isoformat(),
        emulated=False,
    )
    return origin, 10 * major + minor


def launch_on_gpu(job: Job, arguments: list[Argument]) -> Ptx:
    """Triton's own launcher; only where Triton does not interpret."""
    import torch

    plan = plan_of(job)
    kinds = [kind for kind in plan.signature.values() if kind is not None]
    given = [to_tensor(a, kind, DEVICE) for a, kind in zip(arguments, kinds, strict=True)]
    values = iter(given)
    built = plan.launch(*[kind and next(values) for kind in plan.signature.values()])()
    torch.cuda.synchronize()
    for argument, tensor in zip(arguments, given, strict=True):
        if isinstance(argument, np.ndarray):
            unsigned(argument)[...] = from_tensor(tensor)
    return Ptx.of(built, plan.grid)


def to_tensor(argument: Argument, kind: str, device: str) -> torch.Tensor | int:
    """An argument of a type in Triton's words ("*bf16", "i32") on a device."""
    import torch

    if isinstance(argument, int):
        return argument
    dtypes = {"i32": torch.int32, "u8": torch.uint8, "fp32": torch.float32}
    dtypes |= {"fp16": torch.float16, "bf16": torch.bfloat16}
    raw = torch.from_numpy(argument.view(np.uint8).copy())
    return raw.view(dtypes[kind.removeprefix("*")]).to(device)


def from_tensor(tensor: torch.Tensor) -> np.ndarray:
    """The bits of a tensor, in unsigned integers of its element's width."""
    import torch

    raw = tensor.cpu().contiguous().view(torch.uint8).numpy()
    return raw.view(f"u{tensor.element_size()}")


def without_debug(ptx: str) -> str:
    """PTX without debug sections, and with file names instead of the recording machine's paths."""
    code = re.split(r"^\s*\.section\b", ptx, maxsplit=1, flags=re.M)[0]
    return re.sub(r'(\.file\s+\d+\s+)(?:"[^"]*"\s+)?"(?:[^"]*/)?([^"/]*)"', r'\1"\2"', code)


# Files


def name(job: Job) -> str:
    """A job without its target."""
    fields = (job.arm, job.regime, job.format_name, job.activation, job.n, job.k, job.batch)
    return "-".join(map(str, fields))


def path_of(recording: Recording) -> Path:
    """Where a recording of a GPU belongs."""
    folder = re.sub(r"[^a-z0-9]+", "-", recording.origin.gpu.lower()).strip("-")
    return GOLDEN / folder / f"{name(recording.job)}.npz"


def save(path: Path, recording: Recording) -> None:
    """Write a recording.

    Raises:
        ValueError: it is an emulated one and would stand among those of real GPUs.
    """
    if recording.origin.emulated and path.resolve().is_relative_to(GOLDEN.resolve()):
        raise ValueError(f"{path} should hold what a GPU computed, but this was emulated.")
    arrays = {
        f"argument{i}": argument
        for i, argument in enumerate(recording.arguments)
        if isinstance(argument, np.ndarray)
    }
    ptx = asdict(recording.ptx)
    text = np.frombuffer(ptx.pop("text").encode(), np.uint8)
    header = {
        "version": VERSION,
        "origin": asdict(recording.origin),
        "job": asdict(recording.job),
        "ptx_sha256": hashlib.sha256(text.tobytes()).hexdigest(),
        **ptx,
        "arguments": [a if isinstance(a, int) else "array" for a in recording.arguments],
        "output": recording.output,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    encoded = np.frombuffer(json.dumps(header).encode(), np.uint8)
    np.savez_compressed(path, header=encoded, ptx=text, written=recording.written, **arrays)


def load(path: Path) -> Recording:
    """Read a recording.

    Raises:
        ValueError: the file is damaged, or of another version.
    """
    try:
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            arrays = dict(file)
        header = json.loads(arrays["header"].tobytes())
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} should be a recording, but cannot be read: {error}") from error
    if header["version"] != VERSION:
        raise ValueError(
            f"{path} has version {header['version']}, but {VERSION} is read; record it again."
        )
    text = arrays["ptx"].tobytes()
    if hashlib.sha256(text).hexdigest() != header["ptx_sha256"]:
        raise ValueError(f"{path} has another PTX than the one that ran; record it again.")
    ptx = Ptx(
        text=text.decode(),
        entry=header["entry"],
        grid=tuple(header["grid"]),
        block=header["block"],
        shared_bytes=header["shared_bytes"],
    )
    arguments = tuple(
        arrays[f"argument{i}"] if argument == "array" else argument
        for i, argument in enumerate(header["arguments"])
    )
    origin, job = Origin(**header["origin"]), Job(**header["job"])
    return Recording(origin, job, ptx, arguments, header["output"], arrays["written"])


# Replaying


def exact(job: Job) -> bool:
    """Whether every bit of the output is fixed: sums of integers, and elementwise kernels."""
    return job.arm in INTEGERS + ELEMENTWISE


def limit(job: Job) -> float:
    """How far GPU and emulator may differ, relative to the largest value.

    stream, unpack, dequantize: not at all. scale and the arms of gemv add fp32 in a fixed order, but
    the assembler may fuse a multiplication and an addition: one rounding of the output. The arms of
    gemm add in tensor cores, whose rounding is their own: the tolerance of the kernel.
    """
    if exact(job):
        return 0.0
    if job.arm == "scale":
        return ONE_ROUNDING["fp32"]
    table = TOLERANCES if job.regime == "gemm" else ONE_ROUNDING
    return table[job.activation]


def replay(recording: Recording) -> np.ndarray:
    """What the emulator writes where the GPU wrote `written`; unsigned, as that is."""
    arguments = [a if isinstance(a, int) else a.copy() for a in recording.arguments]
    execute(recording.ptx, arguments)
    return np.asarray(arguments[recording.output])


def check(recording: Recording) -> None:
    """Fail unless the emulator writes what the GPU wrote, within the job's limit."""
    job, emulated = recording.job, replay(recording)
    differing = int((emulated != recording.written).sum())
    error = difference(job, emulated, numbers(job, recording.written)) if differing else 0.0
    assert error <= limit(job), (
        f"{name(job)}: {differing} of {emulated.size} elements differ from {recording.origin.gpu}, "
        f"by up to {error:.1e} of the largest value; {limit(job):.1e} is allowed"
    )


def unsigned(array: np.ndarray) -> np.ndarray:
    """A view as unsigned integers of the same width."""
    return array.view(f"u{array.itemsize}")


def numbers(job: Job, bits: np.ndarray) -> np.ndarray:
    """The numbers that an output's bits stand for."""
    _, written = output_shape(job.arm, job.n, job.k, job.batch)
    kind = job.activation if written == "activation" else written
    dtypes = {"int32": np.int32, "fp32": np.float32, "fp16": np.float16, "bf16": np.uint16}
    return from_bits(bits.view(dtypes[kind]), written)


def difference(job: Job, out: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference, relative to the largest |expected|; NaN where something is NaN."""
    with np.errstate(invalid="ignore"):
        error = np.abs(numbers(job, out) - expected).max() / np.abs(expected).max()
    return float(error)


def main() -> int:
    """Record every job on this machine's GPU."""
    if shutil.which("nvidia-smi") is None:
        print("Recording needs an NVIDIA GPU and its driver; there is none here.", file=sys.stderr)
        return 2
    origin, capability = this_gpu()
    for job in golden_jobs():
        recording = record(replace(job, capability=capability), origin, launch_on_gpu)
        save(path_of(recording), recording)
        print(path_of(recording).relative_to(GOLDEN.parent.parent.parent))
    return 0


if __name__ == "__main__":
    sys.exit(main())

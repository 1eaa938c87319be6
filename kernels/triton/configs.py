"""Launch configurations: those that may be tried, and the one that a kernel takes on the board that is here.

`bench.tune` times the grid of a kernel on a board and keeps the fastest as data (profiles/tuned.py). A kernel
asks here when it is prepared, and what it gets is written into its row, in words:

    tuned, block_n=8 num_warps=4 ...       this board, this problem, this compiler, these sources
    untuned, block_n=4 num_warps=4 ...     the default, which was chosen by counting, never by timing
    untuned (stale: ...), ...              a choice exists, and was found with other code

The stages of the ladder are one kernel and take the configuration of `fused`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import cache, partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
import triton

from kernels.formats import WeightFormat
from kernels.kernel import LADDER, Configuration, Kernel, UnsupportedError
from kernels.triton import dequantize, gemm, gemv, lowp, native
from kernels.triton.plan import NO_CAP
from profiles.tuned import load_tuned

if TYPE_CHECKING:
    from kernels.kernel import Arm
    from kernels.packing import Float16
    from kernels.triton.plan import Plan
    from profiles.tuned import TunedBoard

Config = gemv.Config | gemm.Config | dequantize.Config
ROOT = Path(__file__).resolve().parent.parent
TUNABLE: tuple[Arm, ...] = ("fused", "native", "lowp", "upcast", "dequantize")


def arm_of(arm: str) -> str:
    """Whose configuration an arm takes."""
    return "fused" if arm in LADDER else arm


def batch_of(arm: str, batch: int) -> int:
    """For which batch an arm is tuned: what reads no x takes one configuration at all of them."""
    return 1 if arm == "dequantize" else batch


def grid(
    arm: str, variant: str, weight_format: WeightFormat, batch: int, capability: int
) -> tuple[Config, ...]:
    """Configurations worth trying, a dozen or two; those that do not fit a problem refuse it themselves.

    Args:
        arm: one of TUNABLE.
        variant: of the kernel.
        weight_format: what it reads.
        batch: rows of x.
        capability: compute capability times ten.
    """
    if arm == "dequantize":
        return tuple(dequantize.Config(*c) for c in product((2, 4, 8), (1, 4), (2, 4, 8)))
    if variant.startswith("gemv"):
        caps = (64, NO_CAP) if arm == "fused" else (None,)
        return tuple(gemv.Config(*c) for c in product((1, 2, 4, 8), (2, 4, 8), caps))
    block_b = min(max(16, triton.next_power_of_2(batch)), 64)
    rows: tuple[int, ...] = (16, 32, 64) if batch <= 16 else (32, 64, 128)
    depths: tuple[int, ...] = (64, 128)
    if arm == "fused":
        depths = (min(weight_format.group_size or 128, 128),)
    elif arm == "lowp":
        rows = tuple(r for r in (32, 64, 128) if r >= lowp.least_rows(weight_format, capability))
        depths = (128 * 8 // weight_format.bits,)
    elif arm == "upcast":
        depths = (32, 64)
    return tuple(gemm.Config(block_b, *c) for c in product(rows, depths, (2, 4, 8), (3, 5)))


def words(plan: Plan) -> str:
    """A plan's configuration as "block_n=4 num_warps=4"."""
    found = {n.lower(): v for n, v in plan.constexprs.items() if n.startswith("BLOCK_")}
    for name in ("num_warps", "num_stages", "maxnreg"):
        if plan.options.get(name) is not None:
            found[name] = plan.options[name]
    return " ".join(f"{name}={value}" for name, value in found.items())


@cache
def sources(folder: Path = ROOT) -> str:
    """SHA-256 of every file that decides what a Triton kernel is compiled to."""
    digest = hashlib.sha256()
    for path in sorted([*folder.glob("*.py"), *(folder / "triton").glob("*.py")]):
        digest.update(f"{path.relative_to(folder)}\n".encode() + path.read_bytes())
    return digest.hexdigest()


@cache
def board() -> tuple[str, int]:
    """Name and compute capability, times ten, of the GPU that is here; "" and 80 without one."""
    if not torch.cuda.is_available():
        return "", 80
    major, minor = torch.cuda.get_device_capability(0)
    return torch.cuda.get_device_name(0), 10 * major + minor


@cache
def multiprocessors() -> int | None:
    """Of the GPU that is here; None without one."""
    if not torch.cuda.is_available():
        return None
    return int(torch.cuda.get_device_properties(0).multi_processor_count)


def default_for(
    arm: str, variant: str, weight_format: WeightFormat, n: int, batch: int, multiprocessors: int
) -> Config | None:
    """The default on a board of so many multiprocessors; None where it is what all boards take."""
    if not variant.startswith("gemm") or arm_of(arm) not in ("fused", "native"):
        return None
    if arm == "native":
        found = [native.default_gemm_config(n, batch, m) for m in (multiprocessors, None)]
    else:
        found = [gemm.default_config(weight_format, n, batch, m) for m in (multiprocessors, None)]
    return None if found[0] == found[1] else found[0]


def compiler() -> str:
    """The version of Triton that compiles here; it brings its assembler."""
    return str(triton.__version__)


def why_stale(found: TunedBoard) -> str:
    """What has changed since a board was tuned; empty if nothing has."""
    if found.triton != compiler():
        return f"found with Triton {found.triton}, and this is {compiler()}"
    return "" if found.sources == sources() else "found with other kernel sources"


def config_from(arm: str, variant: str, fields: Mapping[str, int]) -> Config:
    """A configuration from its data.

    Raises:
        TypeError: a field is missing or unknown.
    """
    kind: Any = gemv.Config if variant.startswith("gemv") else gemm.Config
    if arm == "dequantize":
        kind = dequantize.Config
    return cast("Config", kind(**fields))


def config_data(config: Config) -> dict[str, int]:
    """A configuration as data: its fields that are not None."""
    return {name: value for name, value in asdict(config).items() if value is not None}


def configuration(
    arm: Arm,
    variant: str,
    weight_format: WeightFormat,
    activation: str,
    n: int,
    k: int,
    batch: int,
) -> Configuration:
    """What a kernel takes for a problem on the board that is here; see the module.

    Raises:
        ValueError: the board's file is damaged.
    """
    from kernels.triton import plan_of

    name, capability = board()
    of_arm = arm_of(arm)
    problem = (weight_format, cast("Float16", activation), n, k, batch, capability)
    try:
        default = words(plan_of(arm, variant, *problem, multiprocessors=multiprocessors()))
    except UnsupportedError:  # what binds the kernel says so
        return Configuration()
    found = load_tuned(name) if name else None
    key = (of_arm, variant, weight_format.name, activation, n, k, batch_of(arm, batch))
    choices = [c for c in found.choices if c.key == key] if found else []
    if found is None or not choices:
        return Configuration(None, f"untuned, {default}")
    stale = why_stale(found)
    if stale:
        return Configuration(None, f"untuned (stale: {stale}), {default}")
    if not choices[0].config:  # the default was the fastest of all
        return Configuration(None, f"tuned, {default}")
    config = config_from(of_arm, variant, choices[0].config)
    return Configuration(config, f"tuned, {words(plan_of(arm, variant, *problem, config))}")


def configured(kernel: Kernel) -> Kernel:
    """A Triton kernel that looks up its configuration; others, and arms without a grid, as they are."""
    if kernel.implementation.endswith("triton") and arm_of(kernel.arm) in TUNABLE:
        return replace(kernel, configuration=partial(configuration, kernel.arm, kernel.variant))
    return kernel

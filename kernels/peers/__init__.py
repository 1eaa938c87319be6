"""The field's kernels beside ours, through the public API of their packages: what `--peers` adds.

    python -m pip install -e '.[peers]'
    python -m bench.dequant --gpu cpu --format int4-g128 --peers

    package        on         rows
    onnxruntime    CPU        vendor: MatMulNBits on int4 in groups, int8 in groups and per row, in fp32 or
                              with x in int8
    bitsandbytes   CPU, GPU   vendor: Linear4bit on NF4, fused where bitsandbytes fuses
                              unfused: dequantize_4bit, then the library's 16-bit linear
                              lowp: LLM.int8(), whole ("bitsandbytes+bitsandbytes"), and its product alone
    gemlite        GPU        vendor: int4 in groups, int8 and FP8 per row, in Triton
    torchao        CPU, GPU   unfused: int8 per row, which its eager linear casts and then multiplies
                              vendor, on a GPU: int4 in groups (tinygemm; bf16 only)

PyTorch's own int4 and int8 products are part of a run in bf16 on a CPU (kernels/cpu/torch_ops.py); torchao's
int4 tensor for a CPU, a prototype, calls that same operator. All take the weights that ours take, re-packed and
never quantized again, and are held against the same reference before they are timed. The variant of a row is
the version of the package. x is brought into a peer's dtype once, when it is bound.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import re
from dataclasses import dataclass
from typing import Literal

from kernels.kernel import Kernel

DeviceKind = Literal["cuda", "cpu"]
WHERE: dict[DeviceKind, str] = {"cuda": "an NVIDIA GPU", "cpu": "a CPU"}


@dataclass(frozen=True)
class Package:
    """A package whose kernels are wrapped by the module of its name in this folder.

    Attributes:
        name: for pip, and in the rows.
        least: the oldest release that has been tried.
        devices: that it has a row on.
        needs: what else has to be installed for it.
    """

    name: str
    least: tuple[int, int]
    devices: tuple[DeviceKind, ...]
    needs: tuple[str, ...] = ()

    def release(self) -> str | None:
        """The installed version; None where there is none."""
        return installed(self.name)

    def why_not(self, device: str) -> str | None:
        """A clause that says why it has no row on a device; None where it has."""
        if device not in self.devices:
            return f"runs on {' or '.join(WHERE[d] for d in self.devices)} only"
        lacks = [name for name in (self.name, *self.needs) if installed(name) is None]
        if lacks:
            return f"needs {', '.join(lacks)}: pip install -e '.[peers]'"
        release = self.release() or ""
        if tuple(map(int, re.findall(r"\d+", release)[:2])) < self.least:
            return f"{release} is too old, {'.'.join(map(str, self.least))} is needed"
        return None


PACKAGES = (
    Package("onnxruntime", (1, 32), ("cpu",), ("onnx",)),
    Package("bitsandbytes", (0, 46), ("cuda", "cpu")),
    Package("gemlite", (0, 6), ("cuda",)),
    Package("torchao", (0, 18), ("cuda", "cpu")),
)


def installed(name: str) -> str | None:
    """The version of an installed package, which is not imported; None where there is none."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def left_out(device: str) -> list[str]:
    """A clause for each peer that has no row on a device."""
    return [f"{p.name} {why}" for p in PACKAGES if (why := p.why_not(device)) is not None]


def names(device: str) -> list[str]:
    """The peers that have a row on a device, by the names that kernels/user.py takes."""
    return [f"kernels.peers:{name}" for name in _records(device)]


def rows_for(device: str, weight_format: str) -> list[Kernel]:
    """The kernels that take a format on a device; not all of them take every dtype of x."""
    return [k for k in _records(device).values() if weight_format in k.formats]


def __getattr__(name: str) -> Kernel:
    """A peer's record, made when it is asked for: its version is known only where it is installed."""
    device = name.rpartition("_")[2]
    records = _records(device) if device in WHERE else {}
    if name not in records:
        raise AttributeError(f"there is no installed peer {name!r}")
    return records[name]


def _records(device: str) -> dict[str, Kernel]:
    """Every row on a device by its name; no peer's package is imported."""
    found: dict[str, Kernel] = {}
    for package in PACKAGES:
        if package.why_not(device) is None:
            module = importlib.import_module(f"kernels.peers.{package.name}")
            for name, kernel in module.records(device, package.release()).items():
                found[f"{name}_{device}"] = kernel
    return found

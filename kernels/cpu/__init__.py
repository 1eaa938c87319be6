"""The CPU's kernels: our ladder in Numba, and PyTorch's own operators beside it.

Numba keeps compiled kernels in a folder named after the sources below here. Its own rule looks only at the
file in which a kernel is written, and would go on running yesterday's kernel after a helper was changed.

LLVM may unroll the loop of one stage and not of another, for its body is smaller; then two stages would
differ by more than the constant that is meant. Loops of run-time length are therefore left as written.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import llvmlite.binding
import numba

llvmlite.binding.set_option("dequant-bench", "--unroll-runtime=false")

_HERE = Path(__file__).parent
if not os.environ.get("NUMBA_CACHE_DIR") and os.access(_HERE, os.W_OK):
    _sources = b"".join(path.read_bytes() for path in sorted(_HERE.glob("*.py")))
    _folder = f"numba-{hashlib.sha256(_sources).hexdigest()[:12]}"
    numba.config.CACHE_DIR = str(_HERE / "__pycache__" / _folder)

from kernels import lowp_vendor  # noqa: E402
from kernels.cpu import numba_kernels, torch_ops  # noqa: E402
from kernels.kernel import Kernel  # noqa: E402
from kernels.layercast import layercast  # noqa: E402

KERNELS: tuple[Kernel, ...] = (
    *numba_kernels.KERNELS,
    *torch_ops.KERNELS,
    *lowp_vendor.CPU_KERNELS,
    layercast("cpu", torch_ops.ACTIVATIONS, torch_ops.pack_16bit),
)

"""What bitsandbytes and torchao make of a few matrices on a CPU, as JSON on standard output.

    python tests/peer_packers.py > tests/data/peer_packers.json

Runs where both are installed, in a process of its own: bitsandbytes looks for a package named kernels, which
from the checkout would be ours. `test_kernels_packers.py` compares with the recorded output, and with a fresh
one where it can. Bytes are written as hexadecimal; of dequantized matrices, which are large, the SHA-256.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import warnings
from importlib.metadata import version
from typing import Any

import numpy as np

MX_FORMATS = ("mxfp8_e4m3", "mxfp8_e5m2", "mxfp6_e2m3", "mxfp6_e3m2", "mxfp4")


def matrices() -> dict[str, np.ndarray]:
    """Matrices to quantize, float32 [n, 256]."""
    rng = np.random.default_rng(21)
    mixed = rng.standard_normal((4, 256), dtype=np.float32)
    mixed[1] = rng.standard_t(1.5, 256)  # heavy tails
    mixed[2] = rng.integers(-48, 49, 256) / np.float32(8)  # ties of every format
    mixed[3, :64] = np.where(np.arange(64) % 2, np.float32(0), np.float32(-0.0))
    extreme = rng.standard_normal((3, 256), dtype=np.float32)
    extreme *= np.array([[3e37], [1e-20], [1e-30]], np.float32)
    normal = rng.standard_normal((65, 256), dtype=np.float32) * np.float32(0.02)
    return {"mixed": mixed, "extreme": extreme, "normal": normal}


def digest(values: np.ndarray) -> str:
    """SHA-256 of float32 numbers, with -0 taken for 0."""
    return hashlib.sha256((values.astype(np.float32) + np.float32(0)).tobytes()).hexdigest()


def bitsandbytes_4bit(weights: np.ndarray, kind: str, nested: bool) -> dict[str, Any]:
    import bitsandbytes.functional as functional
    import torch

    packed, state = functional.quantize_4bit(
        torch.from_numpy(weights), blocksize=64, quant_type=kind, compress_statistics=nested
    )
    found = {"packed": packed, "absmax": state.absmax}
    if nested:
        found = {"absmax": state.absmax, "shared": state.state2.absmax}
        found |= {"numbers": state.state2.code, "offset": state.offset.reshape(1)}
    values = functional.dequantize_4bit(packed, state)
    return {k: v.numpy().tobytes().hex() for k, v in found.items()} | {
        "values": digest(values.numpy())
    }


def torchao_mx(weights: np.ndarray, name: str) -> dict[str, str]:
    import torch
    from torchao.prototype.mx_formats.mx_tensor import to_dtype, to_mx

    kinds = {
        "e4m3": torch.float8_e4m3fn,
        "e5m2": torch.float8_e5m2,
        "mxfp4": torch.float4_e2m1fn_x2,
    }
    kind = kinds.get(name.split("_")[-1], name.removeprefix("mx"))
    scales, qdata = to_mx(torch.from_numpy(weights), kind, 32)
    values = to_dtype(qdata, scales, kind, 32, torch.float32)
    codes = {"qdata": qdata.view(torch.uint8), "scales": scales.view(torch.uint8)}
    return {k: v.numpy().tobytes().hex() for k, v in codes.items()} | {
        "values": digest(values.numpy())
    }


def torchao_nvfp4(weights: np.ndarray) -> dict[str, str]:
    import torch
    from torchao.prototype.mx_formats.nvfp4_tensor import NVFP4Tensor, per_tensor_amax_to_scale

    given = torch.from_numpy(weights)
    of_matrix = per_tensor_amax_to_scale(given.abs().max())
    made = NVFP4Tensor.to_nvfp4(given, per_tensor_scale=of_matrix)
    values = made.dequantize(torch.float32)
    codes = {"qdata": made.qdata, "scales": made.scale.view(torch.uint8), "matrix": of_matrix}
    return {k: v.numpy().tobytes().hex() for k, v in codes.items()} | {
        "values": digest(values.numpy())
    }


def torchao_float8(weights: np.ndarray, group_size: int) -> dict[str, str]:
    import torch
    from torchao.quantization.quant_primitives import (
        _choose_scale_float8,
        _quantize_affine_float8,
    )

    given = torch.from_numpy(weights)
    scales = _choose_scale_float8(given, [1, group_size], torch.float8_e4m3fn)
    qdata = _quantize_affine_float8(given, scales, torch.float8_e4m3fn)
    codes = {"qdata": qdata.view(torch.uint8), "scales": scales}
    return {k: v.numpy().tobytes().hex() for k, v in codes.items()}


def all_of(weights: dict[str, np.ndarray]) -> dict[str, Any]:
    """What each library makes of each matrix; of the largest, only what it says of nested scales."""
    made: dict[str, Any] = {}
    for label in ("mixed", "extreme"):
        given = weights[label]
        made[label] = {
            f"{kind}-b64": bitsandbytes_4bit(given, kind, False) for kind in ("nf4", "fp4")
        }
        made[label] |= {name: torchao_mx(given, name) for name in MX_FORMATS}
        made[label] |= {"nvfp4": torchao_nvfp4(given)}
        sizes = {"fp8_e4m3-b128": 128, "fp8_e4m3-ch": 256}
        made[label] |= {name: torchao_float8(given, size) for name, size in sizes.items()}
    for kind in ("nf4", "fp4"):
        made[f"{kind}-b64-dq"] = bitsandbytes_4bit(weights["normal"], kind, True)
    return made


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    with contextlib.redirect_stdout(io.StringIO()):  # what they print on import
        found = all_of(matrices())
    names = ", ".join(f"{name} {version(name)}" for name in ("bitsandbytes", "torchao", "torch"))
    print(
        json.dumps({"made_by": f"tests/peer_packers.py with {names}, on a CPU"} | found, indent=1)
    )

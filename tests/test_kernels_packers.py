"""Quantization against what bitsandbytes and torchao ship, bit for bit: recorded, and live where installed."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kernels import converters, packing
from kernels.codebooks import codebook
from kernels.formats import find_format
from tests import peer_packers

RECORDED = Path(__file__).parent / "data" / "peer_packers.json"
INSTALLED = all(importlib.util.find_spec(name) for name in ("bitsandbytes", "torchao"))
MATRICES = peer_packers.matrices()
LABELS = ("mixed", "extreme")


@pytest.fixture(
    scope="module",
    params=[
        "recorded",
        pytest.param(
            "installed",
            marks=pytest.mark.skipif(
                not INSTALLED, reason="bitsandbytes and torchao are not installed"
            ),
        ),
    ],
)
def peers(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    if request.param == "recorded":
        return json.loads(RECORDED.read_text("utf-8"))
    command = [sys.executable, peer_packers.__file__]
    folder = tmp_path_factory.mktemp("peers")
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=folder)
    return json.loads(done.stdout)


def bytes_of(made: dict[str, str], name: str, dtype: Any = np.uint8) -> np.ndarray:
    return np.frombuffer(bytes.fromhex(made[name]), dtype)


def bits_equal(ours: np.ndarray | None, theirs: np.ndarray) -> None:
    assert ours is not None
    assert ours.dtype == theirs.dtype
    unsigned = np.dtype(f"u{ours.dtype.itemsize}")
    np.testing.assert_array_equal(
        ours.reshape(-1).view(unsigned), theirs.reshape(-1).view(unsigned)
    )


@pytest.mark.parametrize("label", LABELS)
@pytest.mark.parametrize("name", peer_packers.MX_FORMATS)
def test_microscaling_of_torchao(peers: Any, label: str, name: str) -> None:
    weights, made = MATRICES[label], peers[label][name]
    per_row = 128 if name == "mxfp4" else 256
    qdata, scales = bytes_of(made, "qdata").reshape(-1, per_row), bytes_of(made, "scales")
    theirs = converters.from_mx(name, qdata, scales.reshape(-1, 8))
    ours = packing.quantize(weights, find_format(name), "fp16")
    bits_equal(ours.codes, theirs.codes)
    bits_equal(ours.scale_codes, scales)
    assert peer_packers.digest(theirs.values) == made["values"]


@pytest.mark.parametrize("label", LABELS)
def test_nvfp4_of_torchao(peers: Any, label: str) -> None:
    weights, made = MATRICES[label], peers[label]["nvfp4"]
    qdata, scales = bytes_of(made, "qdata").reshape(-1, 128), bytes_of(made, "scales")
    of_matrix = bytes_of(made, "matrix", np.float32)
    theirs = converters.from_nvfp4(qdata, scales.reshape(-1, 16), float(of_matrix[0]))
    ours = packing.quantize(weights, find_format("nvfp4"), "fp16")
    bits_equal(ours.codes, theirs.codes)
    bits_equal(ours.scale_codes, scales)
    bits_equal(ours.second_level, of_matrix)
    in_fp32 = codebook("e2m1")[theirs.codes] * theirs.per_weight(theirs.scales)
    assert peer_packers.digest(in_fp32) == made["values"]


@pytest.mark.parametrize("label", LABELS)
@pytest.mark.parametrize("name", ["fp8_e4m3-b128", "fp8_e4m3-ch"])
def test_fp8_of_torchao(peers: Any, label: str, name: str) -> None:
    made = peers[label][name]
    ours = packing.quantize(MATRICES[label], find_format(name), "fp16")
    bits_equal(ours.codes, bytes_of(made, "qdata"))
    bits_equal(ours.scales, bytes_of(made, "scales", np.float32))


@pytest.mark.parametrize("label", LABELS)
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_four_bits_of_bitsandbytes(peers: Any, label: str, kind: converters.NestedType) -> None:
    """FP4 but for what its back ends disagree about: the sign of 0, and ties of negative numbers."""
    weights, made = MATRICES[label], peers[label][f"{kind}-b64"]
    absmax = bytes_of(made, "absmax", np.float32)
    theirs = converters.from_bitsandbytes(
        bytes_of(made, "packed"), absmax, len(weights), 256, quant_type=kind
    )
    ours = packing.quantize(weights, find_format(f"{kind}-b64"), "fp16")
    bits_equal(ours.scales, absmax)
    assert peer_packers.digest(theirs.values) == made["values"]
    if kind == "nf4":
        bits_equal(ours.codes, theirs.codes)
        return
    other = ours.codes != theirs.codes
    zero = ours.codes % 8 == 0
    np.testing.assert_array_equal(theirs.codes[other & zero] % 8, 0)
    tied = other & ~zero
    assert (weights[tied] < 0).all()
    distance = [np.abs(w.values[tied] - weights[tied]) for w in (ours, theirs)]
    np.testing.assert_allclose(*distance, rtol=1e-5)


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_nested_scales_of_bitsandbytes(peers: Any, kind: converters.NestedType) -> None:
    """All but codes that its CPU path looked up in a table (scales.py): those are not the nearest."""
    made = peers[f"{kind}-b64-dq"]
    numbers, shared, offset = (
        bytes_of(made, name, np.float32) for name in ("numbers", "shared", "offset")
    )
    ours = packing.quantize(MATRICES["normal"], find_format(f"{kind}-b64-dq"), "fp16")
    assert ours.scale_codes is not None
    assert ours.second_level is not None
    bits_equal(ours.second_level[:256], numbers)
    bits_equal(ours.second_level[257:], shared)
    np.testing.assert_array_max_ulp(ours.second_level[256:257], offset, 1)
    plain = packing.quantize(MATRICES["normal"], find_format(f"{kind}-b64"), "fp16")
    np.testing.assert_array_equal(ours.codes, plain.codes)
    theirs = bytes_of(made, "absmax")
    wanted = (plain.scales.reshape(-1) - offset) / np.repeat(shared, 256)[: len(theirs)]
    looked_up = np.rint((wanted.astype(np.float64) + 1) / 2 * 65535) / 65535 * 2 - 1
    nearest = np.abs(numbers[:, None] - looked_up).argmin(axis=0)
    different = ours.scale_codes.reshape(-1) != theirs
    assert different.mean() < 0.01
    np.testing.assert_array_equal(theirs[different], nearest[different])
    nested = converters.NestedAbsmax(theirs, numbers, shared, float(offset[0]))
    packed = plain.codes.reshape(-1, 2)
    kept = converters.from_bitsandbytes(
        packed[:, 0] << 4 | packed[:, 1], nested, 65, 256, quant_type=kind
    )
    assert kept.format.name == f"{kind}-b64-dq"
    assert kept.scale_codes is not None
    bits_equal(kept.scale_codes, theirs)
    in_fp32 = codebook(kind)[kept.codes] * kept.per_weight(kept.scales)
    assert peer_packers.digest(in_fp32) == made["values"]

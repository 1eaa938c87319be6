"""The field's kernels: they multiply the weights that ours multiply. What is not installed is left out."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from kernels import packing, peers
from kernels.formats import find_format
from kernels.kernel import Kernel
from kernels.lowp import quantize_activations
from kernels.peers import bitsandbytes, gemlite, onnxruntime, torchao

N, K = 96, 384


def installed() -> list[tuple[str, str]]:
    return [
        (name.partition(":")[2], f) for name in peers.names("cpu") for f in record(name).formats
    ]


def record(name: str) -> Kernel:
    kernel: Kernel = getattr(peers, name.partition(":")[2])
    return kernel


@pytest.mark.filterwarnings("default")  # what imports of the field's packages warn of is theirs
@pytest.mark.parametrize(("name", "format_name"), installed())
@pytest.mark.parametrize("batch", [1, 5])
def test_peers_are_right(name: str, format_name: str, batch: int) -> None:
    kernel = record(f"kernels.peers:{name}")
    weights = packing.random_weights(N, K, find_format(format_name), "bf16", seed=5)
    x = packing.random_activations(batch, K, "bf16", seed=5)
    out = torch.full((batch, N), float("nan"), dtype=torch.bfloat16)
    result = kernel.bind(kernel.pack(weights), torch.from_numpy(x).bfloat16(), out)()
    assert isinstance(result, torch.Tensor)
    if kernel.arm == "lowp":
        x = quantize_activations(x, weights.format).values.astype(np.float32)
    expected = packing.reference("fused" if kernel.arm == "vendor" else kernel.arm, weights, x)
    error = np.abs(result.double().numpy() - expected).max() / np.abs(expected).max()
    assert error < kernel.tolerance


# ---- what is left out ---------------------------------------------------------------------------


def test_what_is_not_installed_is_left_out_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "installed", lambda name: None)
    assert peers.names("cpu") == []
    assert peers.names("cuda") == []
    assert peers.left_out("cuda") == [
        "onnxruntime runs on a CPU only",
        "bitsandbytes needs bitsandbytes: pip install -e '.[peers]'",
        "gemlite needs gemlite: pip install -e '.[peers]'",
        "torchao needs torchao: pip install -e '.[peers]'",
    ]
    with pytest.raises(AttributeError, match="no installed peer 'onnxruntime_cpu'"):
        peers.onnxruntime_cpu  # noqa: B018


def test_what_is_too_old_is_left_out_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "installed", lambda name: "0.5.9.post1")
    said = peers.left_out("cuda")
    assert said[1:] == [
        "bitsandbytes 0.5.9.post1 is too old, 0.46 is needed",
        "gemlite 0.5.9.post1 is too old, 0.6 is needed",
        "torchao 0.5.9.post1 is too old, 0.18 is needed",
    ]
    monkeypatch.setattr(peers, "installed", lambda name: "0.46")  # the oldest of bitsandbytes
    assert peers.left_out("cuda") == ["onnxruntime runs on a CPU only"]


def test_rows_of_a_gpu_carry_arm_version_and_dtypes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "installed", lambda name: "1.20.1")
    found = {k.implementation + "/" + k.arm: k for k in map(record, peers.names("cuda"))}
    assert sorted(found) == [
        "bitsandbytes+bitsandbytes/lowp", "bitsandbytes+torch/unfused", "bitsandbytes/lowp",
        "bitsandbytes/vendor", "gemlite/vendor", "torchao+torch/unfused", "torchao/vendor",
    ]  # fmt: skip
    assert {(k.variant, k.device) for k in found.values()} == {("1.20.1", "cuda")}
    tinygemm = found["torchao/vendor"]
    assert (tinygemm.activations, tinygemm.least_capability) == (("bf16",), 80)


# ---- layouts ------------------------------------------------------------------------------------


def weights_in(name: str, n: int = 2, k: int = 128) -> packing.Weights:
    return packing.random_weights(n, k, find_format(name), "bf16", seed=1)


def test_packed_bytes_are_those_of_onnx_and_of_bitsandbytes() -> None:
    weights = weights_in("int4-g128-zp")
    tensors = onnxruntime.pack(weights)
    assert tensors["words"].shape == (2, 1, 64)
    assert int(tensors["words"][1, 0, 3]) == weights.codes[1, 6] | weights.codes[1, 7] << 4
    assert weights.zeros is not None
    assert tensors["zeros"].flatten().tolist() == weights.zeros.flatten().tolist()
    nf4 = weights_in("nf4-b64")
    word = int(bitsandbytes.pack_nf4(nf4)["words"][64 + 3, 0])
    assert word == nf4.codes[1, 6] << 4 | nf4.codes[1, 7]


@pytest.mark.parametrize("pack", [bitsandbytes.pack_int8, torchao.pack_int8])
def test_int8_weights_are_codes_times_what_is_kept(pack: object) -> None:
    """`magnitudes` are those of code 127, `scales` those of code 1."""
    weights = weights_in("int8-ch")
    tensors = pack(weights)  # type: ignore[operator]
    scales = tensors.get("scales", tensors.get("magnitudes", torch.zeros(2)).reshape(2, 1) / 127)
    values = tensors["codes"].double().numpy() * scales.double().numpy()
    np.testing.assert_allclose(values, weights.values, rtol=1e-6)


def test_tinygemm_reads_our_weights_and_zeros_beyond_them() -> None:
    """weight = (code - 8) * scale + offset; the reference for the order is int4mm's own converter for CPUs."""
    weights = weights_in("int4-g64-zp", 4, 192)
    tensors = torchao.pack_int4(weights)
    words, pairs = tensors["words"], tensors["scales_and_offsets"]
    assert words.shape == (4, 512)
    assert pairs.shape == (16, 4, 2)
    codes = torch.stack([words >> 4, words & 15], dim=2).reshape(4, 1024).numpy().astype(float)
    scales, offsets = (pairs[..., i].float().numpy().T.repeat(64, axis=1) for i in (0, 1))
    values = (codes - 8) * scales + offsets
    assert (values[:, 192:] == 0).all()
    off = np.abs(values[:, :192] - weights.values).max() / np.abs(weights.values).max()
    assert off < 2**-8  # offsets are rounded to bf16


GEMLITE = """
import json, sys
import numpy as np, torch
from bench.static.gemlite_code import pretend
pretend("H100", 90, 132)
from kernels import packing
from kernels.formats import find_format
from kernels.peers import gemlite
for name in sys.argv[1:]:
    weights = packing.random_weights(64, 256, find_format(name), "fp16", seed=3)
    t = gemlite.pack(weights)
    _, bits, group, mask, per_word, *_, mode, contiguous = t["metadata"].tolist()
    if per_word > 1:
        words = t["W_q"].numpy().view(np.uint32)                            # [k / per_word, n]
        codes = words[:, None, :] >> (bits * np.arange(per_word, dtype=np.uint32))[:, None] & mask
        codes = codes.reshape(256, 64).T.astype(float)
    else:
        codes = t["W_q"].double().numpy()                                   # [n, k]
    spread = lambda s: s.double().numpy().T.repeat(256 // s.shape[0], axis=1)
    scales, zeros = spread(t["scales"]), t["zeros"]
    if mode == 4:
        values = codes * scales + spread(zeros)                             # zeros = -zero * scale
    elif mode == 3:
        values = (codes - zeros.item()) * scales
    else:
        values = codes * scales
    off = np.abs(values - weights.values).max() / np.abs(weights.values).max()
    print(json.dumps([name, contiguous, list(t["W_q"].shape), off]))
"""


@pytest.mark.skipif(peers.installed("gemlite") is None, reason="gemlite is not installed")
def test_gemlite_holds_our_weights() -> None:
    """Unpacked as its `dequantize` reads them: (word >> bits * (k % per_word)) & mask, by W_group_mode."""
    command = [sys.executable, "-c", GEMLITE, *gemlite.FORMATS]
    root = Path(__file__).parent.parent
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=root)
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [name for name, *_ in found] == list(gemlite.FORMATS)
    for name, contiguous, shape, off in found:
        assert shape == ([32, 64] if contiguous else [64, 256]), name
        assert off < 2**-11, name  # zero * scale is rounded to fp16

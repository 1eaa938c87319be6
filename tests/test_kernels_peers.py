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


# ---- once, and not in every launch --------------------------------------------------------------


@pytest.mark.skipif(peers.installed("onnxruntime") is None, reason="it is not installed")
def test_a_copy_of_the_weights_has_one_session_for_all_batches(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A session holds the weights once more and packs them, which takes far longer than a product."""
    import onnxruntime as package

    made: list[object] = []
    session = package.InferenceSession

    def counted(*arguments: object) -> object:
        made.append(arguments)
        return session(*arguments)

    monkeypatch.setattr(package, "InferenceSession", counted)
    tensors = onnxruntime.pack(weights_in("int4-g128", 32, 256))
    for batch in (1, 4, 1):
        x, out = torch.zeros(batch, 256, dtype=torch.bfloat16), torch.empty(batch, 32)
        assert onnxruntime.bind(0, tensors, x, out)().shape == (batch, 32)
    assert len(made) == 1
    onnxruntime.bind(4, tensors, x, out)
    onnxruntime.bind(0, {**tensors, "words": tensors["words"].clone()}, x, out)
    assert len(made) == 3  # another level, another copy


@pytest.mark.skipif(peers.installed("bitsandbytes") is None, reason="it is not installed")
@pytest.mark.filterwarnings("default")
def test_weights_are_laid_out_when_they_are_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    """bitsandbytes does it in the first call, which would be within a sample for every copy."""
    import bitsandbytes.nn.modules as modules

    tensors = bitsandbytes.pack_nf4_for_cpu(weights_in("nf4-b64", 32, 128))
    assert tensors["words"].shape == ((32, 64) if modules.has_avx512bf16() else (2048, 1))
    monkeypatch.setattr(modules, "_convert_weight_packed_for_cpu", None)
    x, out = torch.ones(1, 128, dtype=torch.bfloat16), torch.empty(1, 32)
    assert bitsandbytes.bind_nf4(tensors, x, out)().shape == (1, 32)


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


def test_a_scale_per_row_is_that_of_all_groups_of_the_row_for_onnx() -> None:
    weights = weights_in("int8-ch", 2, 384)
    tensors = onnxruntime.pack(weights)
    assert tensors["words"].shape == (2, 3, 128)
    values = (tensors["words"].double() - 128) * tensors["scales"].double()[:, :, None]
    np.testing.assert_array_equal(values.reshape(2, 384).numpy(), weights.values)
    with pytest.raises(ValueError, match="in groups of 128, and k is 192"):
        onnxruntime.pack(weights_in("int8-ch", 2, 192))


def test_what_onnx_moves_is_counted_by_hand() -> None:
    """W of 8 x 384, two rows of x: fp32 scales, x and y; three zero points of four bits take two bytes."""
    x_and_y = (4 * 2 * 384, 4 * 2 * 8)
    for name, words in (("int4-g128", 192), ("int4-g128-zp", 192 + 2), ("int8-ch", 384)):
        moved = onnxruntime.traffic(find_format(name), 8, 384, 2)
        assert moved.bytes_read == 8 * (words + 3 * 4) + x_and_y[0], name
        assert moved.bytes_written == x_and_y[1]
        assert moved.flops == 2 * 2 * 8 * 384
        tensors = onnxruntime.pack(weights_in(name, 8, 384))
        assert sum(t.nbytes for t in tensors.values()) == 8 * (words + 3 * 4), name


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

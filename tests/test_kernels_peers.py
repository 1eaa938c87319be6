"""The field's kernels: they multiply the weights that ours multiply. What is not installed is left out."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kernels import packing, peers
from kernels.formats import find_format
from kernels.kernel import Kernel


def installed() -> list[tuple[str, str]]:
    return [
        (name.partition(":")[2], f) for name in peers.names("cpu") for f in record(name).formats
    ]


def record(name: str) -> Kernel:
    kernel: Kernel = getattr(peers, name.partition(":")[2])
    return kernel


@pytest.mark.parametrize(("name", "format_name"), installed())
@pytest.mark.parametrize("batch", [1, 5])
def test_peers_are_right(name: str, format_name: str, batch: int) -> None:
    kernel = record(f"kernels.peers:{name}")
    weights = packing.random_weights(96, 384, find_format(format_name), "bf16", seed=5)
    x = packing.random_activations(batch, 384, "bf16", seed=5)
    out = torch.full((batch, 96), float("nan"), dtype=torch.bfloat16)
    result = kernel.bind(kernel.pack(weights), torch.from_numpy(x).bfloat16(), out)()
    assert isinstance(result, torch.Tensor)
    expected = packing.reference("fused", weights, x)
    error = np.abs(result.double().numpy() - expected).max() / np.abs(expected).max()
    assert error < kernel.tolerance


def test_what_is_not_installed_is_left_out_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers.importlib.util, "find_spec", lambda name: None)
    assert peers.names("cpu") == []
    assert peers.names("cuda") == []
    assert peers.missing("onnxruntime") == ["onnxruntime", "onnx"]
    with pytest.raises(AttributeError, match="no installed peer 'onnxruntime'"):
        peers.onnxruntime  # noqa: B018


def test_packed_bytes_are_those_of_onnx_and_of_bitsandbytes() -> None:
    weights = packing.random_weights(2, 128, find_format("int4-g128-zp"), "bf16", seed=1)
    tensors = peers.pack_onnx(weights)
    assert tensors["words"].shape == (2, 1, 64)
    assert int(tensors["words"][1, 0, 3]) == weights.codes[1, 6] | weights.codes[1, 7] << 4
    assert weights.zeros is not None
    assert tensors["zeros"].flatten().tolist() == weights.zeros.flatten().tolist()
    nf4 = packing.random_weights(2, 128, find_format("nf4-b64"), "bf16", seed=1)
    word = int(peers.pack_nf4(nf4)["words"][64 + 3, 0])
    assert word == nf4.codes[1, 6] << 4 | nf4.codes[1, 7]

"""Low-precision products: what activations are quantized to, and that tensor cores get p-bit operands."""

from __future__ import annotations

import os

import ml_dtypes
import numpy as np
import pytest
import torch

from kernels import find_kernels, lowp, packing
from kernels.formats import LOWP_ALIASES, find_format
from kernels.kernel import Kernel, UnsupportedError
from tests.triton_cases import check

INTERPRETED = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1",
    reason="with a GPU the kernels are compiled, not interpreted",
)
N, K = 24, 256


def kernels_of(format_name: str, batch: int, device: str = "cuda") -> list[Kernel]:
    found = find_kernels(device, find_format(format_name), "bf16", batch)
    return [kernel for kernel in found if kernel.arm == "lowp"]


def activations(batch: int, k: int = K) -> np.ndarray:
    """Rows of very different sizes, a row and a block of zeros."""
    x = packing.random_activations(batch, k, "bf16", seed=5)
    x[:, 32:64] = 0
    x *= 2.0 ** np.arange(-4, batch - 4)[:, None]
    x[-1] = 0
    return packing.round_to(x, "bf16")


def test_int8_by_hand() -> None:
    """-127 to 127, two's complement, ties to even: 2.5 and 3.5 steps are 2 and 4."""
    x = np.array([[127.0, -127.0, 2.5, 3.5, -2.5, 0.0, 0.4, -126.6]], np.float32)
    found = lowp.quantize_activations(np.tile(x, 32), find_format("int8-ch"))
    assert found.scales[0, 0] == 1.0
    codes = found.codes.view(np.int8)[0, :8]
    assert codes.tolist() == [127, -127, 2, 4, -2, 0, 0, -127]
    np.testing.assert_array_equal(found.values[0, :8], codes)


def test_fp8_agrees_with_ml_dtypes() -> None:
    x = activations(6)
    found = lowp.quantize_activations(x, find_format("fp8_e4m3-ch"))
    largest = np.abs(x).max(axis=1, keepdims=True).astype(np.float32)
    scale = np.where(largest > 0, largest / np.float32(448), np.float32(1))
    np.testing.assert_allclose(found.scales[:-1], scale[:-1], rtol=1e-7)
    theirs = (x / scale).astype(ml_dtypes.float8_e4m3fn).view(np.uint8)
    np.testing.assert_array_equal(found.codes, theirs)


@pytest.mark.parametrize("name", ["mxfp4", "mxfp8_e4m3"])
def test_blocks_of_microscaling_follow_the_ocp_rule(name: str) -> None:
    """Scale 2^(floor(log2 max) - emax); elements are those that ml_dtypes rounds to, saturated."""
    x = activations(6)
    found = lowp.quantize_activations(x, find_format(name))
    largest = np.abs(x).reshape(6, -1, 32).max(axis=2)
    emax = {"mxfp4": 2, "mxfp8_e4m3": 8}[name]
    with np.errstate(divide="ignore"):
        expected = np.where(largest > 0, np.floor(np.log2(largest)) - emax + 127, 0)
    np.testing.assert_array_equal(found.scales, expected)
    kind = {"mxfp4": ml_dtypes.float4_e2m1fn, "mxfp8_e4m3": ml_dtypes.float8_e4m3fn}[name]
    most = {"mxfp4": 6, "mxfp8_e4m3": 448}[name]
    steps = x / np.repeat(2.0 ** (found.scales.astype(int) - 127), 32, axis=1)
    rounded = np.clip(steps, -most, most).astype(kind)
    np.testing.assert_array_equal(found.values, rounded.astype(float) * (x / np.where(x, steps, 1)))


def test_nvfp4_scales_each_token_by_itself() -> None:
    x = activations(6)
    found = lowp.quantize_activations(x, find_format("nvfp4"))
    assert found.token_scales is not None
    largest = np.abs(x).max(axis=1)
    expected = np.where(largest > 0, largest / 6 / 448, 2.0**-120)
    np.testing.assert_allclose(found.token_scales, expected, rtol=1e-6)
    alone = lowp.quantize_activations(x[2:3], find_format("nvfp4"))
    np.testing.assert_array_equal(found.codes[2], alone.codes[0])


def test_two_codes_of_a_byte_lie_lowest_first() -> None:
    weights = packing.random_weights(N, K, find_format("mxfp4"), "bf16", seed=5)
    codes = lowp.pack(weights)["codes"].numpy()
    np.testing.assert_array_equal(codes & 15, weights.codes[:, ::2])
    np.testing.assert_array_equal(codes >> 4, weights.codes[:, 1::2])


def test_a_format_without_such_operands_is_refused() -> None:
    with pytest.raises(ValueError, match="no operands in nf4-b64; choose one of int8-ch, fp8"):
        lowp.quantize_activations(activations(6), find_format("nf4-b64"))


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [("int8-ch", 0.002, 0.01), ("fp8_e4m3-ch", 0.005, 0.03), ("mxfp4", 0.03, 0.15)],
)
def test_activation_error_is_what_eight_and_four_bits_cost(
    name: str, low: float, high: float
) -> None:
    """e4m3 keeps 3 bits of a number, int8 7 of the largest; without quantization it would be 0."""
    weights = packing.random_weights(256, 1024, find_format(name), "bf16", seed=5)
    x = packing.random_activations(8, 1024, "bf16", seed=5)
    assert low < lowp.activation_error(x, weights) < high
    exact = lowp.quantize_activations(x, weights.format).values.astype(np.float32)
    assert lowp.activation_error(exact, weights) < low / 10


@INTERPRETED
@pytest.mark.parametrize("batch", [1, 3, 17])
@pytest.mark.parametrize("name", ["int8-ch", "fp8_e4m3-ch", "mxfp8_e4m3", "mxfp4"])
def test_interpreted_products_match_the_reference(name: str, batch: int) -> None:
    """Not nvfp4: Triton's interpreter takes its e4m3 scales for powers of two."""
    found = [kernel for kernel in kernels_of(name, batch) if "triton" in kernel.implementation]
    assert [k.implementation for k in found if k.variant.startswith("dot")] == [
        "triton",
        "triton+triton",
    ]
    for kernel in found:
        if kernel.variant.startswith("dot"):
            check(kernel, name, "bf16", batch, 70, 384, "cpu")


@INTERPRETED
@pytest.mark.parametrize("name", list(LOWP_ALIASES))
def test_triton_quantizes_like_numpy(name: str) -> None:
    """Codes and scales, bit for bit."""
    from kernels.triton import lowp as triton_lowp

    weight_format = find_format(name)
    x = activations(6, 352)
    launch, found = triton_lowp.bind_quantize(weight_format, torch.from_numpy(x).bfloat16())
    launch()
    expected = lowp.quantize_activations(x, weight_format)
    if expected.token_scales is not None and found.token_scales is not None:
        np.testing.assert_array_equal(found.token_scales.numpy(), expected.token_scales)
    np.testing.assert_array_equal(found.scales.numpy(), expected.scales)
    np.testing.assert_array_equal(found.codes.numpy(), expected.codes)


@INTERPRETED
@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("batch", [1, 3, 17])
def test_the_library_multiplies_int8(device: str, batch: int) -> None:
    """On "cuda" the code of the GPU on CPU tensors: Triton's quantization, interpreted, for `_int_mm`."""
    found = [k for k in kernels_of("int8-ch", batch, device) if k.variant == "int_mm"]
    before = {"cpu": "torch", "cuda": "triton"}[device]
    assert [k.implementation for k in found] == ["torch", f"{before}+torch"]
    for kernel in found:
        check(kernel, "int8-ch", "bf16", batch, 72, 384, "cpu")


@INTERPRETED
@pytest.mark.parametrize("name", ["int8-ch", "mxfp4"])
def test_only_the_second_row_quantizes_in_every_launch(name: str) -> None:
    """x changes after it is bound: the product alone goes on with what was quantized before."""
    weights = packing.random_weights(N, K, find_format(name), "bf16", seed=5)
    for kernel in kernels_of(name, 2):
        x = torch.from_numpy(packing.random_activations(2, K, "bf16", seed=5)).bfloat16()
        outs = []
        out = torch.empty(2, N, dtype=torch.bfloat16)
        launch = kernel.bind(kernel.pack(weights), x, out)
        for factor in (1, -1):
            x *= factor
            launch()
            outs.append(out.clone())
        quantizes = "+" in kernel.implementation
        assert torch.equal(outs[1], -outs[0] if quantizes else outs[0]), kernel.implementation


def test_operands_that_tensor_cores_do_not_take_are_refused() -> None:
    """sm_89 has no block scales, sm_80 no FP8: Triton would convert the operands, so nothing is compiled."""
    from bench.static.audit import jobs_of
    from kernels.triton import lowp as triton_lowp

    for name, capability in (("nvfp4", 89), ("mxfp4", 90), ("fp8_e4m3-ch", 86)):
        with pytest.raises(UnsupportedError, match="first, which is dequantization"):
            triton_lowp.plan(find_format(name), "fp16", 256, 256, 1, None, capability)
        assert not jobs_of(["lowp"], [name], ["fp16"], [capability])
    assert {job.capability for job in jobs_of(["lowp"], ["nvfp4"], ["fp16"], [90, 100])} == {100}


def test_fp8_of_the_library_says_what_it_needs() -> None:
    (kernel, _) = (k for k in kernels_of("fp8_e4m3-ch", 1) if k.variant == "scaled_mm")
    weights = packing.random_weights(N, K, find_format("fp8_e4m3-ch"), "bf16", seed=5)
    x, out = torch.zeros(1, K).bfloat16(), torch.zeros(1, N).bfloat16()
    with pytest.raises(UnsupportedError, match=r"FP8 tensor cores need compute capability 8\.9"):
        kernel.bind(kernel.pack(weights), x, out)

"""Every CPU kernel against the float64 reference, and its machine code against what it claims to be."""

from __future__ import annotations

import re

import numba
import numpy as np
import pytest
import torch

from kernels import find_kernels, formats, packing
from kernels.codebooks import codebook
from kernels.cpu import gemm, gemv, gemv_batch
from kernels.cpu.activations import field_weight
from kernels.cpu.simd import BF16
from kernels.cpu.weights import INTEGER, STAGES, Storage
from kernels.formats import find_format
from kernels.kernel import PRODUCTS, Kernel, output_shape, traffic
from kernels.lowp import quantize_activations
from kernels.unfused import compose

FORMATS = ("int4-g128", "int4-g128-zp", "int8-ch", "nf4-b64", "fp8_e4m3-ch")
OTHERS = tuple(f.name for f in formats.FORMATS if f.quantized and f.name not in FORMATS)
DTYPES = {
    "int32": torch.int32,
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
}
TOLERANCE = 5e-3  # bf16 keeps 8 bits of y: half a unit of its last place is up to 2^-8 of |y|
FP16_TOLERANCE = 6e-4  # and 11 bits: 2^-11


def run(kernel: Kernel, weights: packing.Weights, x: np.ndarray) -> np.ndarray:
    """What a kernel writes; whatever it leaves unwritten stays recognisable."""
    n, k = weights.shape
    shape, name = output_shape(kernel.arm, n, k, len(x))
    activation = DTYPES[weights.activation]
    out = torch.full(shape, -777, dtype=DTYPES.get(name, activation))
    launch = kernel.bind(kernel.pack(weights), torch.from_numpy(x).to(activation), out)
    launch()
    result = launch()  # a second launch must not see what the first one left
    return (result if isinstance(result, torch.Tensor) else out).double().numpy()


def reference_of(kernel: Kernel, weights: packing.Weights, x: np.ndarray) -> np.ndarray:
    arm: str = kernel.arm
    if arm == "vendor":
        arm = "native" if kernel.weight_bits else "fused"
    if arm == "lowp":
        x = quantize_activations(x, weights.format).values
    return np.asarray(packing.reference(arm, weights, x, kernel.reading), np.float64)


def instructions(kernel: object) -> list[str]:
    """Opcodes of a compiled kernel's x86 code, the parallel body included."""
    texts = kernel.inspect_asm().values()  # type: ignore[attr-defined]
    return [m[1] for text in texts for m in re.finditer(r"^\s+([a-z][a-z0-9]+)\b", text, re.M)]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], list[str]]:
    """Machine code of every stage of int4-g128 in each regime, compiled here: cached code has no text."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(numba.config, "CACHE_DIR", str(tmp_path_factory.mktemp("numba")))
        for module in (gemv, gemv_batch, gemm):
            module.build.cache_clear()
        return compile_stages()


def compile_stages() -> dict[tuple[str, str], list[str]]:
    weights = packing.random_weights(16, 128, find_format("int4-g128"), "bf16", seed=0)
    code = {}
    for regime, module, batch in (("gemv", gemv, 1), ("batch", gemv_batch, 4), ("gemm", gemm, 16)):
        x = packing.random_activations(batch, 128, "bf16", seed=0)
        for kernel in find_kernels("cpu", weights.format, "bf16", batch):
            if kernel.arm in STAGES:
                run(kernel, weights, x)
                stage = module.build(Storage(4, INTEGER, BF16, 1, False), STAGES[kernel.arm], BF16)
                code[regime, kernel.arm] = instructions(stage)
    return code


@pytest.mark.parametrize("regime", ["gemv", "batch", "gemm"])
def test_conversions_are_where_they_belong(
    regime: str, compiled: dict[tuple[str, str], list[str]]
) -> None:
    """Eight int-to-float conversions per sixteen words in scale and fused; none in the others."""
    if not any(op.startswith("vcvtdq2ps") for op in compiled[regime, "fused"]):
        pytest.skip("this processor's conversion instruction has another name")
    for arm in ("scale", "fused"):
        assert compiled[regime, arm].count("vcvtdq2ps") >= 8
    for arm in ("stream", "unpack", "bypass"):
        assert compiled[regime, arm].count("vcvtdq2ps") == 0, arm
    fused, bypass = compiled[regime, "fused"], compiled[regime, "bypass"]
    multiplies = [sum(op.startswith("vfmadd") for op in code) for code in (fused, bypass)]
    assert multiplies[0] == multiplies[1] > 0, "bypass must multiply as fused does"


@pytest.mark.parametrize("regime", ["gemv", "batch", "gemm"])
def test_stages_are_different_programs(
    regime: str, compiled: dict[tuple[str, str], list[str]]
) -> None:
    programs = {tuple(code) for (r, _), code in compiled.items() if r == regime}
    assert len(programs) == 5


# n is ragged against the pairs of rows, the tiles of 8 and the panels of 64; torch's packed operators
# take n in multiples of 16 and are left out where it is not.
SHAPES = ((37, 256), (131, 384), (64, 128))
BATCHES = (1, 2, 3, 4, 5, 8, 15, 16, 17, 32, 33, 256)
FEWER_BATCHES = (1, 3, 16, 17, 256)


def assert_right(kernel: Kernel, weights: packing.Weights, x: np.ndarray) -> None:
    """Exact where nothing is rounded, or once; else within the rounding of y."""
    got, expected = run(kernel, weights, x), reference_of(kernel, weights, x)
    if kernel.arm in ("stream", "unpack", "dequantize"):
        np.testing.assert_array_equal(got, expected, err_msg=str(kernel))
    else:
        error = np.abs(got - expected).max() / np.abs(expected).max()
        allowed = FP16_TOLERANCE if weights.activation == "fp16" else TOLERANCE
        assert error <= allowed, f"{kernel.arm} ({kernel.implementation}): {error}"


def assert_every_arm_is_right(
    name: str, batch: int, activation: packing.Float16, left_out: tuple[str, ...] = ()
) -> None:
    n, k = SHAPES[batch % len(SHAPES)]
    weights = packing.random_weights(n, k, find_format(name), activation, seed=batch)
    x = packing.random_activations(batch, k, activation, seed=batch)
    kernels = find_kernels("cpu", weights.format, activation, batch)
    arms = [kernel.arm for kernel in kernels]
    assert arms[:5] == ["stream", "unpack", "scale", "bypass", "fused"]
    for kernel in kernels:
        if (kernel.implementation == "torch" and n % 16) or kernel.arm in left_out:
            continue
        assert_right(kernel, weights, x)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("batch", BATCHES)
def test_every_arm_is_right(name: str, batch: int) -> None:
    assert_every_arm_is_right(name, batch, "bf16")


@pytest.mark.proof
@pytest.mark.parametrize("name", OTHERS)
def test_every_arm_is_right_elsewhere(name: str) -> None:
    """Every other format; all batches in one test, since most share what they compile.

    Stages that phi exposed does not need at batch 1, 3 or 16, in turn: compiling takes half an hour of one core
    else.
    """
    whole = FEWER_BATCHES[OTHERS.index(name) % 3]
    for batch in FEWER_BATCHES:
        left_out = () if batch == whole else ("stream", "unpack", "scale")
        assert_every_arm_is_right(name, batch, "bf16", left_out)


@pytest.mark.proof
@pytest.mark.parametrize("name", FORMATS + OTHERS)
def test_every_arm_is_right_in_fp16(name: str) -> None:
    """Every format at batch 1, where scales are read and weights dequantized in fp16.

    Other batches read x and write y of one type or the other, whatever the format: a few formats have them.
    """
    for batch in (1, 3, 16, 17) if name in FORMATS else (1,):
        assert_every_arm_is_right(name, batch, "fp16")


@pytest.mark.parametrize("encoding", ["nf4", "e4m3", "e5m2"])
def test_every_code_becomes_its_number(encoding: str) -> None:
    """Every finite code in every place of a word; quantization writes no others."""
    weight_format = next(f for f in formats.FORMATS if f.encoding == encoding)
    rng = np.random.default_rng(4)
    finite = np.flatnonzero(np.isfinite(codebook(weight_format.encoding)))
    codes = np.stack([rng.permutation(np.resize(finite, 256)) for _ in range(64)]).astype(np.uint8)
    scales = np.ones((64, weight_format.groups(256)), np.float32)
    weights = packing.Weights(weight_format, "bf16", codes, scales, None)
    kernels = find_kernels("cpu", weight_format, "bf16", 256)
    (dequantize,) = (k for k in kernels if k.arm == "dequantize")
    got = run(dequantize, weights, np.zeros((256, 256), np.float32))
    np.testing.assert_array_equal(got, weights.values16)


def test_extreme_codes_and_zero_points() -> None:
    """Every code against every zero point, in every place of a word."""
    codes = np.array(
        [[(row + column) % 16 for column in range(256)] for row in range(32)], np.uint8
    )
    zeros = np.array([[row % 16, 15 - row % 16] for row in range(32)], np.uint8)
    scales = np.full((32, 2), 0.125, np.float32)
    weights = packing.Weights(find_format("int4-g128-zp"), "bf16", codes, scales, zeros)
    identity = np.eye(256, dtype=np.float32)
    for kernel in find_kernels("cpu", weights.format, "bf16", 256):
        if kernel.arm == "fused":
            np.testing.assert_array_equal(run(kernel, weights, identity), weights.values.T)


@pytest.mark.parametrize("batch", [1, 4, 16])
def test_unfused_is_the_product_with_the_rounded_weights(batch: int) -> None:
    weights = packing.random_weights(48, 256, find_format("int4-g128"), "bf16", seed=1)
    x = packing.random_activations(batch, 256, "bf16", seed=1)
    kernels = find_kernels("cpu", weights.format, "bf16", batch)
    dequantize = next(k for k in kernels if k.arm == "dequantize")
    for sixteen in kernels:
        if sixteen.weight_bits == 16 and sixteen.arm != "upcast":
            kernel = compose(dequantize, sixteen)
            got, expected = run(kernel, weights, x), packing.reference("native", weights, x)
            assert np.abs(got - expected).max() / np.abs(expected).max() <= TOLERANCE
            assert kernel.implementation == f"numba+{sixteen.implementation}"


def test_unfused_refuses_other_parts() -> None:
    kernels = find_kernels("cpu", find_format("int4-g128"), "bf16", 1)
    fused = next(k for k in kernels if k.arm == "fused")
    with pytest.raises(ValueError, match="not of fused"):
        compose(fused, fused)


def test_field_order_is_the_packed_order() -> None:
    for bits in (4, 8):
        fields = [field_weight.py_func(field, bits) for field in range(32 // bits)]
        assert tuple(fields) == packing.code_order(bits)


def test_launchers_say_what_they_expected() -> None:
    weights = packing.random_weights(16, 192, find_format("int8-ch"), "bf16", seed=0)
    kernels = find_kernels("cpu", weights.format, "bf16", 1)
    fused = next(k for k in kernels if k.arm == "fused")
    x, out = torch.zeros(1, 192, dtype=torch.bfloat16), torch.zeros(1, 16, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="multiples of 128, but k is 192"):
        fused.bind(fused.pack(weights), x, out)
    weights = packing.random_weights(16, 256, find_format("int8-ch"), "bf16", seed=0)
    with pytest.raises(ValueError, match=r"fp16 or bf16 activations, but x is torch.float32"):
        fused.bind(fused.pack(weights), torch.zeros(1, 256), out)


def test_traffic_by_hand() -> None:
    """W[8, 256] int4-g128-zp: 1024 bytes of words, 16 groups of 2 + 1 bytes; x 2 x 256 bf16; y 2 x 8."""
    zp = find_format("int4-g128-zp")
    fused = traffic("fused", zp, 8, 256, 2)
    assert (fused.bytes_read, fused.bytes_written, fused.flops) == (1024 + 48 + 1024, 32, 8192)
    native = traffic("native", find_format("bf16"), 8, 256, 2)
    assert (native.bytes_read, native.bytes_written, native.flops) == (4096 + 1024, 32, 8192)
    unfused = traffic("unfused", zp, 8, 256, 2)
    assert (unfused.bytes_read, unfused.bytes_written) == (1024 + 48 + 4096 + 1024, 4096 + 32)
    dequantize = traffic("dequantize", zp, 8, 256, 2)
    assert (dequantize.bytes_read, dequantize.bytes_written, dequantize.flops) == (1072, 4096, 0)
    stream = traffic("stream", zp, 8, 256, 2)
    assert (stream.bytes_read, stream.bytes_written, stream.flops) == (1072, 32, 0)


def test_products_write_one_row_per_activation() -> None:
    for arm in PRODUCTS:
        dtype = "fp32" if arm == "upcast" else "activation"
        assert output_shape(arm, 8, 256, 3) == ((3, 8), dtype)

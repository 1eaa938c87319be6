"""What the compiler makes of the low-precision kernels: p-bit operands everywhere, and right where emulated."""

from __future__ import annotations

import re
from itertools import product

import numpy as np
import pytest

from kernels import lowp, packing
from kernels.formats import find_format
from kernels.triton.lowp import CAPABILITIES, takes_operands
from tests.aot_lowp import LowpJob, compile_lowp
from tests.aot_ptx import Ptx, execute, float_bits
from tests.triton_cases import TOLERANCES

TARGETS = (80, 89, 90, 100, 120)
EVERYWHERE = [
    LowpJob("product", name, "fp16", 4096, 4096, batch, target)
    for name, least in CAPABILITIES.items()
    for batch, target in product((1, 64), TARGETS)
    if target >= least
]
COMPILED = [  # where Triton would convert the operands of smaller tiles
    job
    for job in EVERYWHERE
    if job.batch == 1
    and (job.capability == 100 or (job.format_name, job.capability) == ("fp8_e4m3-ch", 90))
]
RUN = [
    LowpJob("product", "int8-ch", "fp16", 41, 1280, 5, 80),
    LowpJob("product", "int8-ch", "bf16", 41, 1280, 33, 80),
    LowpJob("product", "int8-ch", "fp16", 64, 512, 16, 90),
    LowpJob("product", "int8-ch", "bf16", 41, 1280, 1, 120),
    LowpJob("product", "fp8_e4m3-ch", "fp16", 41, 1280, 5, 89),
    LowpJob("product", "fp8_e4m3-ch", "bf16", 64, 512, 33, 120),
    LowpJob("product", "mxfp8_e4m3", "fp16", 41, 1280, 5, 120),
    LowpJob("product", "mxfp4", "bf16", 64, 512, 33, 120),
    LowpJob("product", "nvfp4", "fp16", 64, 512, 33, 120),  # of 16 rows, halves that nothing wrote
]
QUANTIZED = [
    LowpJob("quantize", "int8-ch", "fp16", 0, 1280, 5, 80),
    LowpJob("quantize", "fp8_e4m3-ch", "bf16", 0, 1280, 5, 89),
    LowpJob("quantize", "mxfp8_e4m3", "fp16", 0, 1280, 5, 89),  # from sm_100 on, max.f32 of three
    LowpJob("quantize", "mxfp4", "bf16", 0, 1280, 5, 90),
    LowpJob("quantize", "nvfp4", "bf16", 0, 1280, 5, 89),
]


def name(job: LowpJob) -> str:
    return "-".join(map(str, vars(job).values()))


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[LowpJob, Ptx]:
    return compile_lowp([*COMPILED, *RUN, *QUANTIZED], tmp_path_factory.mktemp("triton"))


def activations(job: LowpJob) -> np.ndarray:
    x = packing.random_activations(job.batch, job.k, job.activation, seed=7)  # type: ignore[arg-type]
    x[0, :64] = 0
    return packing.round_to(x * 2.0 ** (np.arange(job.batch)[:, None] % 4), job.activation)  # type: ignore[arg-type]


@pytest.mark.parametrize("job", [*COMPILED, *RUN], ids=name)
def test_tensor_cores_get_the_codes_themselves(job: LowpJob, compiled: dict[LowpJob, Ptx]) -> None:
    """No multiply of converted operands: that would be the dequantization that the arm is without."""
    check_operands(job, compiled[job].text)


def check_operands(job: LowpJob, text: str) -> None:
    """Fail unless the product's own codes are what is multiplied."""
    assert takes_operands(find_format(job.format_name), text)
    assert re.findall(r"mma\S*\.(?:f16\.f16|bf16\.bf16)\b", text) == []
    assert re.findall(r"cvt\S*\.(?:f16x2|bf16x2)\.(?:e4m3x2|e2m1x2|ue8m0x2)", text) == []


@pytest.mark.proof
def test_tensor_cores_get_the_codes_themselves_everywhere(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    found = compile_lowp(EVERYWHERE, tmp_path_factory.mktemp("triton"))
    for job, ptx in found.items():
        check_operands(job, ptx.text)


def test_converted_operands_are_noticed() -> None:
    """What Triton makes of FP8 on sm_90 in 32 rows."""
    converted = "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%r1}, {%r2}, {%r3}, {%r1};"
    assert not takes_operands(find_format("fp8_e4m3-ch"), converted)


@pytest.mark.parametrize("job", RUN, ids=name)
def test_emulated_products_match_the_reference(job: LowpJob, compiled: dict[LowpJob, Ptx]) -> None:
    weight_format = find_format(job.format_name)
    weights = packing.random_weights(job.n, job.k, weight_format, job.activation, seed=7)  # type: ignore[arg-type]
    quantized = lowp.quantize_activations(activations(job), weight_format)
    packed = lowp.pack(weights)
    codes = packed["codes"].numpy()
    stored = packing.scale_dtype(weight_format, job.activation)  # type: ignore[arg-type]
    coded = stored == "u8"
    scales = packed["scales"].numpy() if coded else float_bits(weights.scales, stored)
    arguments = [codes, scales, quantized.codes, quantized.scales]
    if quantized.token_scales is not None:
        arguments.insert(2, packed["matrix_scale"].numpy())
        arguments.append(quantized.token_scales)
    out = np.zeros((job.batch, job.n), {"fp16": np.float16, "bf16": np.uint16}[job.activation])
    execute(compiled[job], [*arguments, out, job.k])
    expected = quantized.values @ weights.values.T
    got = out if job.activation == "fp16" else (out.astype(np.uint32) << 16).view(np.float32)
    for row, wanted in zip(got.astype(np.float64), expected, strict=True):
        assert np.abs(row - wanted).max() <= TOLERANCES[job.activation] * np.abs(wanted).max()


@pytest.mark.parametrize("job", QUANTIZED, ids=name)
def test_emulated_quantization_is_numpys(job: LowpJob, compiled: dict[LowpJob, Ptx]) -> None:
    """Codes and scales, bit for bit."""
    x = activations(job)
    expected = lowp.quantize_activations(x, find_format(job.format_name))
    codes, scales = np.zeros_like(expected.codes), np.zeros_like(expected.scales)
    tokens = np.zeros(job.batch, np.float32)
    arguments = [float_bits(x, job.activation), codes, scales]
    if expected.token_scales is not None:
        arguments.append(tokens)
    execute(compiled[job], arguments)
    np.testing.assert_array_equal(scales, expected.scales)
    np.testing.assert_array_equal(codes, expected.codes)
    if expected.token_scales is not None:
        np.testing.assert_array_equal(tokens, expected.token_scales)

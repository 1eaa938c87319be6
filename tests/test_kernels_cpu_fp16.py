"""fp16 on the CPU: conversions in every bit, overflow, machine code, and a kernel of each kind.

Every format in every arm is proven by test_kernels_cpu.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numba
import numpy as np
import pytest
import torch
from numba import njit
from numpy.typing import NDArray
from test_kernels_cpu import FP16_TOLERANCE, assert_right, run

from kernels import find_kernels, packing
from kernels.cpu import native, numba_kernels, simd
from kernels.cpu.simd import (
    BF16,
    FP16,
    LANES,
    converts_fp16,
    float_of_half,
    half_bits,
    half_of_float,
    load_f32,
    load_half,
    store_f32,
    store_i32,
)
from kernels.formats import find_format
from kernels.kernel import Kernel, UnsupportedError
from kernels.packing import Float16, round_to

HALF: dict[Float16, int] = {"fp16": FP16, "bf16": BF16}
PATTERNS = np.arange(1 << 16, dtype=np.uint16)


@cache
def conversions(half: int) -> tuple[Callable, Callable]:
    """Functions that widen and narrow an array, once lane by lane and once sixteen at a time."""

    @njit
    def widen(bits, one_by_one, by_vector):
        for i in range(bits.size):
            one_by_one[i] = float_of_half(bits[i], half)
        for i in range(0, bits.size, LANES):
            store_f32(by_vector, i, load_half(bits, i, half))

    @njit
    def narrow(numbers, one_by_one, by_vector):
        for i in range(numbers.size):
            one_by_one[i] = half_of_float(numbers[i], half)
        for i in range(0, numbers.size, LANES):
            store_i32(by_vector, i, half_bits(load_f32(numbers, i), half))

    return widen, narrow


def widened(bits: NDArray[np.uint16], activation: Float16) -> NDArray[np.float32]:
    one_by_one, by_vector = np.full((2, bits.size), -777, np.float32)
    conversions(HALF[activation])[0](bits, one_by_one, by_vector)
    np.testing.assert_array_equal(one_by_one.view(np.uint32), by_vector.view(np.uint32))
    return one_by_one


def narrowed(numbers: NDArray[np.float32], activation: Float16) -> NDArray[np.uint16]:
    one_by_one = np.full(numbers.size, 777, np.uint16)
    by_vector = np.full(numbers.size, -777, np.int32)
    conversions(HALF[activation])[1](numbers, one_by_one, by_vector)
    np.testing.assert_array_equal(one_by_one, by_vector)
    return one_by_one


def test_all_bits_of_fp16_are_widened_as_numpy_widens_them() -> None:
    """Subnormals, both zeros and infinities too; NaN stays NaN."""
    got, expected = widened(PATTERNS, "fp16"), PATTERNS.view(np.float16).astype(np.float32)
    numbers = ~np.isnan(expected)
    np.testing.assert_array_equal(got[numbers].view(np.uint32), expected[numbers].view(np.uint32))
    assert np.isnan(got[~numbers]).all()


def test_every_fp16_and_every_tie_is_rounded_as_numpy_rounds_it() -> None:
    """All numbers; all middles between neighbours, which go to the even one; what lies beside the middles."""
    numbers = PATTERNS[:0x7C00].view(np.float16).astype(np.float32)
    middles = (numbers[:-1] + numbers[1:]) / 2
    beside = [np.nextafter(middles, np.float32(end)) for end in (-np.inf, np.inf)]
    asked = np.concatenate([numbers, middles, *beside])
    asked = np.resize(np.concatenate([asked, -asked]), 2 * asked.size // LANES * LANES + LANES)
    expected = asked.astype(np.float16).view(np.uint16)
    np.testing.assert_array_equal(narrowed(asked, "fp16"), expected)


def test_past_the_largest_fp16_lies_infinity() -> None:
    """65504 is the largest; from 65520 on, halfway to 65536, numbers become infinite. bf16 goes on."""
    asked = np.zeros(LANES, np.float32)
    asked[:8] = 65504, 65519.996, 65520, 1e6, np.inf, -65519.996, -65520, 2**-25
    got = narrowed(asked, "fp16").view(np.float16)
    inf = np.inf
    assert got[:8].tolist() == [65504, 65504, inf, inf, inf, -65504, -inf, 0]
    assert (
        narrowed(asked, "bf16")[3] == np.float32(round_to(asked, "bf16")[3]).view(np.uint32) >> 16
    )


def test_the_two_types_round_differently() -> None:
    """1 + 2^-8 is a number of fp16 alone, 2^-40 one of bf16 alone; one path for both fails in one of them."""
    asked = np.full(LANES, 1 + 2**-8, np.float32)
    asked[1], asked[2] = 2.0**-40, 1 + 2**-7
    for activation in ("fp16", "bf16"):
        got = widened(narrowed(asked, activation), activation)
        np.testing.assert_array_equal(got, round_to(asked, activation))
    assert round_to(asked, "fp16")[:3].tolist() == [1 + 2**-8, 0, 1 + 2**-7]
    assert round_to(asked, "bf16")[:3].tolist() == [1, 2.0**-40, 1 + 2**-7]


def kernel_of(name: str, arm: str, activation: Float16, batch: int) -> Kernel:
    found = find_kernels("cpu", find_format(name), activation, batch)
    (kernel,) = (k for k in found if k.arm == arm and k.implementation == "numba")
    return kernel


# One kernel for each place that knows the type: x, scales (one, or several in a vector), weights, y.
COVERING = (
    ("int4-g128", "fused", 1),
    ("int4-g32-zp", "bypass", 3),
    ("int8-g32", "dequantize", 1),
    ("int8-g32", "stream", 1),
    ("int8-ch", "native", 1),
    ("int8-ch", "native", 3),
    ("int8-ch", "native", 16),
)


@pytest.mark.parametrize(("name", "arm", "batch"), COVERING)
def test_a_kernel_of_each_kind_is_right(name: str, arm: str, batch: int) -> None:
    n, k = 37, 256  # ragged against pairs of rows, tiles of 8 and panels of 64
    weights = packing.random_weights(n, k, find_format(name), "fp16", seed=batch)
    x = packing.random_activations(batch, k, "fp16", seed=batch)
    assert_right(kernel_of(name, arm, "fp16", batch), weights, x)


@pytest.mark.parametrize("batch", [1, 3, 16])
def test_the_library_takes_fp16(batch: int) -> None:
    """Its 16-bit linear, which best16 is chosen from, and fp32, int8 x int8 and LayerCast."""
    weights = packing.random_weights(48, 256, find_format("int8-ch"), "fp16", seed=batch)
    x = packing.random_activations(batch, 256, "fp16", seed=batch)
    found = find_kernels("cpu", weights.format, "fp16", batch)
    library = [k for k in found if k.implementation.startswith("torch")]
    assert [k.arm for k in library] == ["vendor", "vendor", "lowp", "lowp", "upcast"]
    assert [k.formats[0] for k in library] == ["fp16", "fp32", "int8-ch", "int8-ch", "fp16"]
    for kernel in library:
        assert_right(kernel, weights, x)


def test_y_is_rounded_to_the_type_of_x() -> None:
    """W has ones in its first column, and y is x[0] in fp16, of which bf16 would lose three bits."""
    codes = np.full((37, 256), 8, np.uint8)
    codes[:, 0] = codes[1, 1] = 9
    scales = np.ones((37, 2), np.float32)
    weights = packing.Weights(find_format("int4-g128"), "fp16", codes, scales, None)
    x = np.zeros((1, 256), np.float32)
    x[0, 0] = 1 + 2**-10
    kernel = kernel_of("int4-g128", "fused", "fp16", 1)
    assert (run(kernel, weights, x) == 1 + 2**-10).all()
    x[0, :2] = 65504  # the largest; row 1 has two ones, and twice that is past it
    y = run(kernel, weights, x)[0]
    assert y[0] == 65504
    assert y[1] == np.inf


def test_the_gate_is_the_one_of_the_type() -> None:
    """2e-3 of the largest |y| in fp16, 1e-2 in bf16, in every arm that multiplies; upcast has a closer one."""
    for activation, allowed in (("fp16", 2e-3), ("bf16", 1e-2)):
        found = find_kernels("cpu", find_format("int8-g128"), activation, 1)
        assert {k.tolerance for k in found if k.arm != "upcast"} == {allowed}
    assert FP16_TOLERANCE < 2e-3


def test_the_loop_widens_fp16_sixteen_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the processor's instruction: no call, and no conversion of a single weight."""
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))  # cached code has no text
    native.build_gemv.cache_clear()
    weights = packing.random_weights(16, 128, find_format("int8-ch"), "fp16", seed=0)
    x = packing.random_activations(1, 128, "fp16", seed=0)
    assert_right(kernel_of("int8-ch", "native", "fp16", 1), weights, x)
    text = "\n".join(native.build_gemv(FP16).inspect_asm().values())
    if "vcvtph2ps" not in text:
        pytest.skip("this processor's conversion instruction has another name")
    assert not re.search(r"hfsf|h2f|sfhf|f2h", text)
    wide = re.findall(r"vcvtph2psx?\s.*%[yz]mm", text)
    single = re.findall(r"vcvtph2psx?\s.*%xmm\d+$|vcvtsh2ss\s", text, re.M)
    assert len(wide) >= 4  # of sixteen weights each, or eight
    assert not single


def test_without_f16c_fp16_is_refused_and_bf16_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """What Numba compiles for decides: this processor, or NUMBA_CPU_FEATURES."""
    monkeypatch.setattr(simd.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(numba.config, "CPU_FEATURES", "+avx2,+f16c,+fma")
    assert converts_fp16()
    monkeypatch.setattr(numba.config, "CPU_FEATURES", "")  # NUMBA_CPU_NAME=generic
    assert not converts_fp16()
    fp16, bf16 = torch.zeros(1, 256, dtype=torch.float16), torch.zeros(1, 256).bfloat16()
    with pytest.raises(UnsupportedError, match="F16C"):
        numba_kernels.checked(fp16)
    assert numba_kernels.checked(bf16) == BF16
    monkeypatch.setattr(numba.config, "CPU_FEATURES", None)
    monkeypatch.setattr(simd, "get_host_cpu_features", dict)
    assert not converts_fp16()
    monkeypatch.setattr(simd.platform, "machine", lambda: "aarch64")
    assert converts_fp16()

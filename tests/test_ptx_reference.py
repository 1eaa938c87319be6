"""The oracle of the opcode tests, checked against NumPy, torch, the C library and fractions."""

import ctypes
from fractions import Fraction

import numpy as np
import pytest
import torch
from ptx_reference import reference, results

RNG = np.random.default_rng(7)
NUMPY = {"add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide, "sqrt": np.sqrt}
IEEE = [f"{name}.rn.{kind}" for name in NUMPY for kind in ("f32", "f64")]
TORCH = {"f16": "float16", "bf16": "bfloat16", "e4m3": "float8_e4m3fn", "e5m2": "float8_e5m2"}


def random_numbers(dtype: str, count: int = 6000) -> np.ndarray:
    """Random bits, and as many small numbers, so that sums and comparisons meet."""
    near = (RNG.normal(size=count) * 2.0 ** RNG.integers(-3, 4, count)).astype(dtype)
    bits = RNG.integers(0, 256, (count, near.itemsize), dtype=np.uint8)
    return np.where(RNG.random(count) < 0.5, bits.view(dtype)[:, 0], near)


def assert_same(opcode: str, operands: list[np.ndarray], wanted: np.ndarray) -> None:
    """Equal bits, or both NaN, in every case."""
    bits = [x.view(f"u{x.itemsize}").tolist() for x in operands]
    got = np.array(results(reference(opcode), bits), np.uint64).astype(f"u{wanted.itemsize}")
    both_nan = np.isnan(got.view(wanted.dtype)) & np.isnan(wanted)
    assert np.array_equal(got[~both_nan], wanted.view(got.dtype)[~both_nan])


@pytest.mark.parametrize("opcode", [*IEEE, "add.f16", "sub.f16", "mul.f16"])
def test_arithmetic_is_ieee(opcode: str) -> None:
    dtype = f"f{int(opcode[-2:]) // 8}"
    operands = [random_numbers(dtype) for _ in range(NUMPY[opcode.split(".")[0]].nin)]
    with np.errstate(all="ignore"):
        assert_same(opcode, operands, NUMPY[opcode.split(".")[0]](*operands))


def test_fma_is_the_c_librarys() -> None:
    fmaf = ctypes.CDLL(None).fmaf
    fmaf.restype, fmaf.argtypes = ctypes.c_float, [ctypes.c_float] * 3
    operands = [random_numbers("f4") for _ in range(3)]
    cases = zip(*(x.tolist() for x in operands), strict=True)
    assert_same("fma.rn.f32", operands, np.array([fmaf(*case) for case in cases], np.float32))


def test_half_fma_is_the_nearest_number() -> None:
    a, b, c = (RNG.normal(size=3000).astype(np.float16) for _ in range(3))
    c[:1000] = -(a[:1000] * b[:1000])
    bits = [x.view(np.uint16).tolist() for x in (a, b, c)]
    got = np.array(results(reference("fma.rn.f16"), bits), np.uint16).view(np.float16)
    neighbours = (np.nextafter(got, np.float16(side)).tolist() for side in (-np.inf, 0, np.inf))
    for x, y, z, *near in zip(*(v.tolist() for v in (a, b, c, got)), *neighbours, strict=True):
        exact = Fraction(x) * Fraction(y) + Fraction(z)
        errors = [abs(exact - Fraction(number)) for number in near]
        assert errors[0] == min(errors)


@pytest.mark.parametrize("kind", TORCH)
def test_narrowing_and_widening_are_torchs(kind: str) -> None:
    dtype, is_byte = getattr(torch, TORCH[kind]), kind[0] == "e"
    limit = torch.finfo(dtype).max
    x = np.float32(RNG.normal(size=20000) * 2.0 ** RNG.integers(-24, 8, 20000)).clip(-limit, limit)
    narrow = torch.from_numpy(x).to(dtype).view(torch.uint8 if is_byte else torch.uint16).numpy()
    high = narrow.astype(np.uint32) << (8 if is_byte else 16)  # a second operand is the lower half
    assert_same(f"cvt.rn{'.satfinite' * is_byte}.{kind}x2.f32", [x, np.zeros_like(x)], high)
    if is_byte:
        codes = torch.arange(256, dtype=torch.uint8)
        assert_same(f"cvt.rn.f16x2.{kind}x2", [codes.numpy()], codes.view(dtype).half().numpy())


def test_float_to_integer_is_numpys() -> None:
    x = np.float32(RNG.normal(size=9000) * 2.0 ** RNG.integers(-3, 28, 9000))
    x[:200] = np.arange(200) - 100.5
    for mode, function in (("rni", np.rint), ("rzi", np.trunc), ("rmi", np.floor)):
        assert_same(f"cvt.{mode}.s32.f32", [x], function(x).astype(np.int32))

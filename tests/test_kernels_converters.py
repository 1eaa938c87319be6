"""Checkpoints as others write them: packed here by the book, or recorded from the library itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from kernels import converters, packing
from kernels.codebooks import codebook
from kernels.formats import find_format

RECORDED = Path(__file__).parent / "data" / "bitsandbytes_nf4.json"
N, K = 16, 256


Stored = tuple[np.ndarray, np.ndarray, np.ndarray]
GROUPS = {32: "g32", 64: "g64", 128: "g128", 256: "ch"}


def stored(bits: int, group_size: int) -> Stored:
    """Codes [k, n], zero points [groups, n] and scales [groups, n], as these formats see them."""
    rng = np.random.default_rng(8)
    codes = rng.integers(0, 1 << bits, (K, N), dtype=np.uint8)
    zeros = rng.integers(1, 1 << bits, (K // group_size, N), dtype=np.uint8)
    return codes, zeros, rng.uniform(0.01, 0.02, zeros.shape).astype(np.float16)


def expected(codes: np.ndarray, zeros: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """W [n, k] by the definition, group after group."""
    rows = np.arange(K) // (K // len(zeros))
    return ((codes.astype(np.float64) - zeros[rows]) * scales[rows].astype(np.float64)).T


def gptq_words(codes: np.ndarray, zeros: np.ndarray, bits: int, minus: int) -> list[np.ndarray]:
    """AutoGPTQ's own loops: rows of W^T into a word; columns' zero points, lowered, likewise."""
    per_word = 32 // bits
    qweight = np.zeros((K // per_word, N), np.uint32)
    for row in range(K):
        qweight[row // per_word] |= codes[row].astype(np.uint32) << np.uint32(
            bits * (row % per_word)
        )
    qzeros = np.zeros((len(zeros), N // per_word), np.uint32)
    for column in range(N):
        lowered = (zeros[:, column] - minus).astype(np.uint32)
        qzeros[:, column // per_word] |= lowered << np.uint32(bits * (column % per_word))
    return [qweight.view(np.int32), qzeros.view(np.int32)]


def awq_words(numbers: np.ndarray) -> np.ndarray:
    """AutoAWQ's own loops: order_map = [0, 2, 4, 6, 1, 3, 5, 7] along the outputs."""
    words = np.zeros((len(numbers), N // 8), np.uint32)
    for column in range(N // 8):
        for i, place in enumerate([0, 2, 4, 6, 1, 3, 5, 7]):
            taken = numbers[:, 8 * column + place].astype(np.uint32)
            words[:, column] |= taken << np.uint32(4 * i)
    return words.view(np.int32)


@pytest.mark.parametrize("minus", [0, 1])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("group_size", GROUPS)
def test_gptq(group_size: int, bits: Literal[4, 8], minus: int) -> None:
    codes, zeros, scales = stored(bits, group_size)
    qweight, qzeros = gptq_words(codes, zeros, bits, minus)
    weights = converters.from_gptq(qweight, qzeros, scales, bits, stored_minus=minus)
    assert weights.format.name == f"int{bits}-{GROUPS[group_size]}-zp"
    np.testing.assert_array_equal(weights.values, expected(codes, zeros, scales))


def test_a_zero_point_one_above_its_bits() -> None:
    """GPTQ stores 15 for 16, which is kept, and 255 for 256, which no byte holds."""
    ones = np.ones((1, N), np.float16)
    qweight, qzeros = np.zeros((K // 8, N), np.int32), np.full((1, N // 8), -1, np.int32)
    assert (converters.from_gptq(qweight, qzeros, ones).values == -16).all()
    qweight, qzeros = np.zeros((K // 4, N), np.int32), np.full((1, N // 4), -1, np.int32)
    assert (converters.from_gptq(qweight, qzeros, ones, 8, stored_minus=0).values == -255).all()
    with pytest.raises(ValueError, match="zero point of 256 does not fit"):
        converters.from_gptq(qweight, qzeros, ones, 8)


@pytest.mark.parametrize("group_size", GROUPS)
def test_groups_in_another_order_are_refused(group_size: int) -> None:
    """desc_act=True: the same columns in groups that are scattered over them; no other array tells."""
    codes, zeros, scales = stored(4, group_size)
    stored_words = gptq_words(codes, zeros, 4, 1)
    in_order = (np.arange(K) // group_size).astype(np.int32)
    weights = converters.from_gptq(*stored_words, scales, g_idx=in_order)  # type: ignore[arg-type]
    np.testing.assert_array_equal(weights.values, expected(codes, zeros, scales))
    scattered = in_order[::-1].copy() if group_size < K else in_order + 1
    with pytest.raises(ValueError, match=r"g_idx is not in order \(desc_act=True\)"):
        converters.from_gptq(*stored_words, scales, g_idx=scattered)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"g_idx must have shape \(256,\), but has \(128,\)"):
        converters.from_gptq(*stored_words, scales, g_idx=in_order[:128])  # type: ignore[arg-type]


def test_scales_and_zero_points_of_another_shape_or_not_finite_are_refused() -> None:
    codes, zeros, scales = stored(4, 32)
    qweight, qzeros = gptq_words(codes, zeros, 4, 1)
    for wrong in (np.ones((64, 1), np.float16), scales[:, :2], scales.T.copy()):
        with pytest.raises(ValueError, match=r"^scales must have shape \(8, 16\), but has \("):
            converters.from_gptq(qweight, qzeros, wrong)
    with pytest.raises(
        ValueError, match=r"^zero points, .* must have shape \(16, 8\), but has \(8, 8"
    ):
        converters.from_gptq(qweight, qzeros[:, :1], scales)
    holed = scales.copy()
    holed[3, 5] = np.nan
    with pytest.raises(ValueError, match=r"^scales must be finite, but holds infinities or NaN"):
        converters.from_gptq(qweight, qzeros, holed)
    with pytest.raises(ValueError, match=r"^scales must be finite"):
        converters.from_awq(awq_words(codes), awq_words(zeros), holed)


@pytest.mark.parametrize("group_size", GROUPS)
def test_awq(group_size: int) -> None:
    codes, zeros, scales = stored(4, group_size)
    weights = converters.from_awq(awq_words(codes), awq_words(zeros), scales)
    assert weights.format.name == f"int4-{GROUPS[group_size]}-zp"
    np.testing.assert_array_equal(weights.values, expected(codes, zeros, scales))


def test_other_groups_are_refused() -> None:
    words = np.zeros((K, N // 8), np.int32)
    with pytest.raises(ValueError, match="zero points and groups of 16; quantize with groups of"):
        converters.from_awq(words, np.zeros((16, N // 8), np.int32), np.ones((16, N), np.float16))


def test_mxint8_of_ocp() -> None:
    """Every int8 in two's complement counts in 64ths; an empty block keeps its scale of 2^-127 or any."""
    every = np.arange(-128, 128).astype(np.int8).reshape(1, 256)
    scales = np.array([[127, 128, 100, 254, 7, 133, 127, 126]], np.uint8)
    weights = converters.from_mx("mxint8", every, scales)
    by_ocp = every / 64.0 * np.exp2(np.repeat(scales, 32).astype(np.float64) - 127)
    np.testing.assert_array_equal(weights.values, by_ocp)
    empty = converters.from_mx("mxint8", np.zeros((1, 32), np.int8), np.array([[3]], np.uint8))
    assert (empty.values == 0).all()
    with pytest.raises(ValueError, match="must exceed 6"):
        converters.from_mx("mxint8", every, np.full((1, 8), 6, np.uint8))
    with pytest.raises(ValueError, match=r"scales must have shape \(1, 8\), but has \(1, 7\)"):
        converters.from_mx("mxint8", every, scales[:, :7])


def test_what_ours_makes_of_mxint8_is_ocps_with_a_lower_exponent() -> None:
    """1.0 is 64 in OCP's int8 at a scale of 1; here code 64 + 128 at a stored scale of 2^-6."""
    row = np.zeros((1, 32))
    row[0, :4] = [1.0, -1.0, 1.984375, 1 / 128]  # 1/128: a tie, half a step
    weights = packing.quantize(row, find_format("mxint8"), "fp16")
    assert weights.codes[0, :5].tolist() == [192, 64, 255, 128, 128]
    assert weights.scale_codes is not None
    assert weights.scale_codes.tolist() == [[121]]
    signed = (weights.codes ^ np.uint8(128)).view(np.int8)
    again = converters.from_mx("mxint8", signed, weights.scale_codes + np.uint8(6))
    np.testing.assert_array_equal(again.values, weights.values)
    np.testing.assert_array_equal(again.scale_codes, weights.scale_codes)


def test_mx_and_nvfp4_by_hand() -> None:
    """The first of two codes in the lower nibble; a scale of 2^1, and of 1.5 * 0.25."""
    qdata = np.zeros((1, 16), np.uint8)
    qdata[0, :2] = [0x2F, 0x71]  # codes 15, 2, 1, 7: -6, 1, 0.5, 6
    mx = converters.from_mx("mxfp4", qdata, np.array([[128]], np.uint8))
    assert mx.values[0, :5].tolist() == [-12, 2, 1, 12, 0]
    nv = converters.from_nvfp4(qdata, np.full((1, 2), 0x3C, np.uint8), 0.25)
    assert nv.values[0, :5].tolist() == [-2.25, 0.375, 0.1875, 2.25, 0]
    six = np.zeros((1, 32), np.uint8)
    six[0, :2] = [0b011111, 0b100001]
    assert converters.from_mx("mxfp6_e3m2", six, np.array([[127]], np.uint8)).values[
        0, :2
    ].tolist() == [
        28,
        -0.0625,
    ]


def test_what_stands_for_no_finite_number_is_refused() -> None:
    row = np.zeros((1, 32), np.uint8)
    row[0, 3] = 0x7F
    with pytest.raises(ValueError, match=r"row 0, column 3 of mxfp8_e4m3 is no finite .* code 127"):
        converters.from_mx("mxfp8_e4m3", row, np.array([[127]], np.uint8))
    with pytest.raises(ValueError, match=r"row 0, column 0 of mxfp6_e2m3 .* scale nan"):
        converters.from_mx("mxfp6_e2m3", row & 63, np.array([[255]], np.uint8))
    with pytest.raises(ValueError, match=r"\(1, 1\) scales, but these are \(1, 4\); swizzled"):
        converters.from_mx("mxfp8_e4m3", row & 63, np.full((1, 4), 127, np.uint8))
    with pytest.raises(ValueError, match="nf4-b64 is not a microscaling format"):
        converters.from_mx("nf4-b64", row, row)


def recorded() -> dict[str, Any]:
    raw = json.loads(RECORDED.read_text("utf-8"))
    return {
        name: np.frombuffer(bytes.fromhex(value), kind(name))
        for name, value in raw.items()
        if name not in ("made_by", "weights", "nested_offset")
    } | {"nested_offset": raw["nested_offset"]}


def kind(name: str) -> type:
    return np.uint8 if name.endswith(("packed", "codes")) else np.float32


def test_bitsandbytes_as_recorded() -> None:
    """Its levels, codes, absmax and dequantized values, bit for bit; and what we would have packed."""
    theirs = recorded()
    np.testing.assert_array_equal(codebook("nf4"), theirs["levels"])
    weights = converters.from_bitsandbytes(theirs["packed"], theirs["absmax"], 8, 256)
    values = weights.values.astype(np.float32).reshape(-1)
    np.testing.assert_array_equal(values, theirs["dequantized"])
    original = np.random.default_rng(11).standard_normal((8, 256), dtype=np.float32)
    ours = packing.quantize(original * np.float32(0.02), find_format("nf4-b64"), "fp16")
    np.testing.assert_array_equal(ours.codes, weights.codes)
    np.testing.assert_array_equal(ours.scales, weights.scales)


def test_double_quantized_absmax_as_recorded() -> None:
    theirs = recorded()
    nested = converters.NestedAbsmax(
        theirs["nested_codes"],
        theirs["nested_numbers"],
        theirs["nested_absmax"],
        theirs["nested_offset"],
    )
    weights = converters.from_bitsandbytes(theirs["nested_packed"], nested, 8, 256)
    assert weights.format == find_format("nf4-b64-dq")
    assert weights.scale_codes is not None
    np.testing.assert_array_equal(weights.scale_codes.reshape(-1), theirs["nested_codes"])
    values = (codebook("nf4")[weights.codes] * weights.per_weight(weights.scales)).reshape(-1)
    np.testing.assert_array_equal(values, theirs["nested_dequantized"])


def test_what_bitsandbytes_does_not_write_is_refused() -> None:
    theirs = recorded()
    packed, absmax = theirs["packed"], theirs["absmax"].copy()
    with pytest.raises(
        ValueError, match=r"^absmax, flat, must have shape \(32,\), but has \(31,\)"
    ):
        converters.from_bitsandbytes(packed, absmax[:31], 8, 256)
    with pytest.raises(ValueError, match=r"^the packed codes, flat, must have shape \(1024,\)"):
        converters.from_bitsandbytes(packed[:1000], absmax, 8, 256)
    absmax[7] = np.nan
    with pytest.raises(ValueError, match=r"^absmax, flat, must be finite"):
        converters.from_bitsandbytes(packed, absmax, 8, 256)
    parts = [theirs[f"nested_{name}"] for name in ("codes", "numbers", "absmax")]
    offset = theirs["nested_offset"]
    for place, name in enumerate(
        ("the codes of absmax, flat,", "nested_quant_map", "nested_absmax")
    ):
        short = [part[:-1] if i == place else part for i, part in enumerate(parts)]
        nested = converters.NestedAbsmax(*short, offset)
        with pytest.raises(ValueError, match=f"^{name} must have shape"):
            converters.from_bitsandbytes(theirs["nested_packed"], nested, 8, 256)
    nested = converters.NestedAbsmax(*parts, float("nan"))
    with pytest.raises(ValueError, match=r"^nested_offset must be finite"):
        converters.from_bitsandbytes(theirs["nested_packed"], nested, 8, 256)

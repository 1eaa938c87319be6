"""The bit layouts, spelled out by hand, and quantization against brute force."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kernels import packing
from kernels.codebooks import codebook
from kernels.formats import FORMATS, find_format, formats_with_bits
from kernels.kernel import traffic

QUANTIZED = [f.name for f in FORMATS if f.quantized]


def test_int4_word_by_hand() -> None:
    """Weights 0..7 of a word hold codes 1..8: nibbles from the lowest are w0 w2 w4 w6 w1 w3 w5 w7."""
    codes = np.array([[1, 2, 3, 4, 5, 6, 7, 8]], np.uint8)
    assert packing.pack(codes, 4).tolist() == [[0x8642_7531]]


def test_one_mask_yields_neighbours_in_the_halves_of_a_word() -> None:
    codes = np.arange(16, dtype=np.uint8).reshape(2, 8)
    words = packing.pack(codes, 4)
    for pair in range(4):
        halves = (words >> np.uint32(4 * pair)) & np.uint32(0x000F_000F)
        np.testing.assert_array_equal(halves[:, 0] & 0xFFFF, codes[:, 2 * pair])
        np.testing.assert_array_equal(halves[:, 0] >> 16, codes[:, 2 * pair + 1])


def test_int8_word_is_little_endian() -> None:
    codes = np.array([[0x11, 0x22, 0x33, 0x44]], np.uint8)
    words = packing.pack(codes, 8)
    assert words.tolist() == [[0x4433_2211]]
    assert words.astype("<u4").tobytes() == codes.tobytes()


@pytest.mark.parametrize("bits", range(1, 9))
def test_every_code_in_every_place_survives_packing(bits: int) -> None:
    """One code in each of 64 places, all others zero; no bit of it in another 32 weights' words."""
    places, top = 2 * packing.SEGMENT, 1 << bits
    codes = np.zeros((top, places, places), np.uint8)
    codes[:, range(places), range(places)] = np.arange(top)[:, None]
    codes = codes.reshape(-1, places)
    words = packing.pack(codes, bits)
    assert words.shape == (len(codes), 2 * bits)
    np.testing.assert_array_equal(packing.unpack(words, bits), codes)
    first = np.concatenate([p[:, : p.shape[1] // 2] for p in packing.split_planes(words, bits)], 1)
    in_second = codes[:, packing.SEGMENT :].any(axis=1)
    assert (first[in_second] == 0).all(), "a code leaked into other weights' words"


def test_six_bits_by_hand() -> None:
    """Weight 9 of a row holds 0b110110: its four high bits in the second word, its low two in the fifth."""
    codes = np.zeros((1, 32), np.uint8)
    codes[0, 9] = 0b110110
    at_nibble, at_crumb = 16 * (1 % 2) + 4 * (1 // 2), 16 * (9 % 2) + 2 * (9 // 2)
    expected = [0, 0b1101 << at_nibble, 0, 0, 0b10 << at_crumb, 0]
    assert packing.pack(codes, 6).tolist() == [expected]


@pytest.mark.parametrize("bits", range(1, 9))
def test_a_pair_of_neighbours_is_sixteen_bits_apart_in_every_plane(bits: int) -> None:
    """What lets one mask take two weights, of any plane narrower than a byte."""
    codes = np.random.default_rng(bits).integers(0, 1 << bits, (3, 64), dtype=np.uint8)
    planes = packing.split_planes(packing.pack(codes, bits), bits)
    taken = np.zeros((3, 2, 32), np.uint32)  # half, pair
    for plane in planes:
        width = 64 // 32 and plane.shape[1] * 32 // 64
        if width == 8:
            return
        mask = np.uint32(0x0001_0001 * ((1 << width) - 1))
        fields = [plane >> np.uint32(width * i) & mask for i in range(16 // width)]
        pairs = np.stack(fields, axis=2).reshape(3, -1)
        taken[:, 0] = taken[:, 0] << np.uint32(width) | pairs & 0xFFFF
        taken[:, 1] = taken[:, 1] << np.uint32(width) | pairs >> 16
    np.testing.assert_array_equal(taken.transpose(0, 2, 1).reshape(3, 64), codes)


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_rounding_is_torch_rounding(dtype: packing.Float) -> None:
    rng = np.random.default_rng(0)
    mantissa = rng.integers(0, 1 << 23, 20000, dtype=np.uint32)
    exponent = rng.integers(100, 140, 20000, dtype=np.uint32) << 23
    values = (mantissa | exponent).view(np.float32)
    ties = (values.view(np.uint32) & np.uint32(0xFFFF0000) | np.uint32(0x8000)).view(np.float32)
    every = np.concatenate([values, -values, ties, -ties, np.float32([0.0, 1.0, 65504.0])])
    target = {"fp16": torch.float16, "bf16": torch.bfloat16}[dtype]
    expected = torch.from_numpy(every).to(target).to(torch.float32).numpy()
    np.testing.assert_array_equal(packing.round_to(every, dtype), expected)


@pytest.mark.parametrize("name", QUANTIZED)
@pytest.mark.parametrize("activation", ["fp16", "bf16"])
def test_quantization_is_the_nearest_code(name: str, activation: packing.Float) -> None:
    """Against brute force over all codes, with the scale and zero point that were chosen.

    Codes of nested scales are the nearest for the scale before it was quantized again.
    """
    weight_format = find_format(name)
    original = np.random.default_rng(3).normal(0, 0.02, (4, 256)).astype(np.float32)
    weights = packing.quantize(original, weight_format, activation)
    if weight_format.scale_type == "nested":
        plain = packing.quantize(original, find_format(name.removesuffix("-dq")), activation)
        np.testing.assert_array_equal(weights.codes, plain.codes)
        np.testing.assert_allclose(weights.scales, plain.scales, rtol=0.05)
        return
    scale = weights.per_weight(weights.scales).astype(np.float64)
    numbers = np.arange(1 << weight_format.bits, dtype=np.float64)
    zero = 0 if weights.zeros is None else weights.per_weight(weights.zeros)
    if weight_format.encoding != "int":
        numbers = codebook(weight_format.encoding).astype(np.float64)
    elif weights.zeros is None:
        zero = weight_format.zero
    numbers = numbers[np.isfinite(numbers)]
    candidates = (numbers[:, None, None] - zero) * scale
    best = np.abs(candidates - original).min(axis=0)
    np.testing.assert_allclose(np.abs(weights.values - original), best, rtol=1e-12, atol=1e-15)
    error = np.abs(weights.values - original).max() / np.abs(original).max()
    rounded = 2**-8 if activation == "bf16" else 0  # a scale rounded down saturates
    assert error <= LARGEST_STEP[name.split("-")[0]] + rounded


# The largest error, of the largest magnitude: half of the widest step between codes, or what saturates
# above the largest number where the scale is a power of two (2 of 8 for mxfp4) or rounded (nv).
LARGEST_STEP = {f"int{bits}": 0.51 / (2 ** (bits - 1) - 1) for bits in range(2, 9)}
LARGEST_STEP |= {"int1": 1.0, "nf4": 0.16, "fp4": 0.17, "fp8_e4m3": 2**-4, "fp8_e5m2": 2**-3}
LARGEST_STEP |= {"mxfp8_e4m3": 2**-3, "mxfp8_e5m2": 2**-3, "mxint8": 2**-7, "mxfp6_e2m3": 2**-4}
LARGEST_STEP |= {"mxfp6_e3m2": 2**-3, "mxfp4": 2**-2, "nvfp4": 0.23, "nvint4": 0.14}


def test_symmetric_scale_and_zero_point_by_hand() -> None:
    row = np.zeros((1, 128))
    row[0, :3] = [0.7, -0.35, 0.1]
    symmetric = packing.quantize(row, find_format("int4-g128"), "fp16")
    assert symmetric.scales[0, 0] == np.float16(0.1)
    assert symmetric.zeros is None
    assert symmetric.codes[0, :4].tolist() == [
        15,
        4,
        9,
        8,
    ]  # -0.35 / 0.1 is just above -3.5 in fp16
    row[0, :3] = [1.0, -0.5, 0.25]
    shifted = packing.quantize(row, find_format("int4-g128-zp"), "fp16")
    assert shifted.scales[0, 0] == np.float16(0.1)
    assert shifted.zeros is not None
    assert shifted.zeros[0, 0] == 5
    assert shifted.codes[0, 0] == 15
    assert shifted.codes[0, 3] == 5, "zero must be exact"


def test_a_row_of_zeros_stays_zero() -> None:
    for name in QUANTIZED:
        weights = packing.quantize(np.zeros((2, 128)), find_format(name), "bf16")
        assert (weights.values == 0).all()


@pytest.mark.parametrize("name", QUANTIZED)
@pytest.mark.parametrize("activation", ["fp16", "bf16"])
def test_bypass_words_are_sane_numbers_in_every_reading(
    name: str, activation: packing.Float
) -> None:
    weights = packing.random_weights(8, 256, find_format(name), activation, seed=5)
    halves = weights.bypass_words.view(np.uint16)
    as_fp16 = np.abs(halves.view(np.float16).astype(np.float64))
    as_bf16 = np.abs((halves.astype(np.uint32) << 16).view(np.float32))
    as_fp32 = np.abs(weights.bypass_words.view(np.float32))
    # 0x3C00 to 0x3CFF, or 0x4600 to 0x46FF where scales are as small as those of 57344.
    least16, least = (6.0, 2.0**13) if name == "mxfp8_e5m2" else (1.0, 2.0**-7)
    assert (as_fp16 >= least16).all()
    assert (as_fp16 < least16 + 1).all()
    assert (as_bf16 >= least).all()
    assert (as_bf16 < 4 * least).all()
    assert (as_fp32 >= least).all()
    assert (as_fp32 < 4 * least).all()
    if name != "mxfp8_e5m2":
        assert (as_fp16 < 1.25).all()


def test_bypass_readings_by_hand() -> None:
    weights = packing.random_weights(1, 128, find_format("int4-g128"), "fp16", seed=1)
    word = int(weights.bypass_words[0, 0])
    low, high = np.array([word & 0xFFFF, word >> 16], np.uint16).view(np.float16)
    assert weights.bypass_values("halves")[0, :8].tolist() == [low, high] * 4
    single = np.array([word], np.uint32).view(np.float32)[0]
    assert weights.bypass_values("fp32")[0, :8].tolist() == [single] * 8


def test_two_words_stand_for_their_pairs_by_turns_by_hand() -> None:
    assert packing.words_by_turns(32, 4).tolist() == [0, 1] * 4 + [2, 3] * 4
    assert packing.words_by_turns(16, 8).tolist() == [0, 1] * 2 + [2, 3] * 2
    weights = packing.random_weights(1, 128, find_format("int4-g128"), "fp16", seed=1)
    first, second = weights.bypass_words[0, :2].view(np.float16).reshape(2, 2).tolist()
    assert weights.bypass_values("turns")[0, :16].tolist() == [*first, *second] * 4


def test_bypass_takes_every_word_of_every_plane_by_hand() -> None:
    """Six bits, 64 weights: 8 words of the high plane, then 4 of the low one. Pairs take them in turn."""
    first = [
        0,
        0,
        0,
        1,
        1,
        1,
        2,
        2,
        3,
        3,
        3,
        8,
        8,
        8,
        9,
        9,
    ]  # pair i of 16: place 12 * i // 32 of 6
    second = [4, 4, 4, 5, 5, 5, 6, 6, 7, 7, 7, 10, 10, 10, 11, 11]
    assert packing.words_of_pairs(64, 6).tolist() == first + second
    for bits in range(1, 9):
        assert set(packing.words_of_pairs(256, bits)) == set(range(8 * bits))


def test_stored_bits_count_scales_and_zero_points() -> None:
    stored = {f.name: f.bits_stored(4096) for f in FORMATS}
    assert stored["nf4-b64"] == 4.5
    assert stored["nf4-b64-s16"] == 4.25
    assert stored["fp8_e4m3-ch"] == 8 + 32 / 4096
    assert stored["fp8_e5m2-b128"] == 8.25
    assert stored["int4-g128"] == 4.125  # METHOD section 3
    assert stored["int4-g128-zp"] == 4 + 16 / 128 + 8 / 128
    assert stored["int8-g128"] == 8.125
    assert stored["int8-ch"] == 8 + 16 / 4096
    assert stored["int3-g128"] == 3.125
    assert stored["int4-g32-zp"] == 4 + 16 / 32 + 8 / 32
    assert stored["nf4-b64-dq"] == 4 + 8 / 64 + 32 / (64 * 256)  # QLoRA: 0.127 bits of constants
    assert (stored["mxfp4"], stored["mxfp6_e2m3"], stored["mxint8"]) == (4.25, 6.25, 8.25)
    assert stored["nvfp4"] == stored["nvint4"] == 4.5
    assert stored["bf16"] == 16


def test_stored_bits_are_the_bytes_that_are_there() -> None:
    for name in QUANTIZED:
        weights = packing.random_weights(4, 256, find_format(name), "fp16", seed=0)
        stored = weights.words.nbytes + weights.scales.size * find_format(name).scale_bits // 8
        stored += 0 if weights.zeros is None else weights.zeros.nbytes
        constant = 0
        if weights.second_level is not None:
            constant = 4 * {"e4m3": 1, "nested": 257 + 1}[find_format(name).scale_type]
            assert weights.second_level.nbytes == constant
        assert traffic("stream", find_format(name), 4, 256, 1).bytes_read == stored + constant
        if find_format(name).scale_type != "nested":  # which counts a 256th of a number per scale
            assert stored * 8 == find_format(name).bits_stored(256) * 4 * 256


def test_unknown_formats_and_widths_are_named() -> None:
    with pytest.raises(ValueError, match=r"no weight format named 'int9'; choose one of fp16"):
        find_format("int9")
    with pytest.raises(ValueError, match=r"has 17 bits; choose --bits from 1, 2, 3, 4, 5, 6, 7, 8"):
        formats_with_bits(17)
    assert [f.name for f in formats_with_bits(6)] == ["int6-g128", "mxfp6_e2m3", "mxfp6_e3m2"]


def test_k_must_divide_into_groups() -> None:
    with pytest.raises(ValueError, match=r"group size 128 .* but k is 200"):
        packing.random_weights(4, 200, find_format("int4-g128"), "bf16", seed=0)


def test_scale_sums_numbers_of_16_bits_where_a_kernel_reads_halves() -> None:
    """Code 1 of NF4, -0.6961928, is -0.6953125 in bf16: the sum of equal codes is off by as much everywhere."""
    codes = np.ones((1, 128), np.uint8)
    weights = packing.Weights(
        find_format("nf4-b64"), "bf16", codes, np.full((1, 2), 0.5, np.float32), None
    )
    x = np.ones((1, 128), np.float32)
    assert packing.reference("scale", weights, x) == pytest.approx([-64 * 0.6961928009986877])
    assert packing.reference("scale", weights, x, "halves").tolist() == [-64 * 0.6953125]
    half = packing.Weights(weights.format, "fp16", codes, weights.scales, None)
    assert packing.reference("scale", half, x, "halves").tolist() == [-64 * 0.6962890625]


def test_16_bits_hold_every_number_that_the_scale_reference_does_not_round() -> None:
    """Every code, and with every zero point there can be."""
    for weight_format in FORMATS:
        if not weight_format.quantized or weight_format.encoding in ("nf4", "fp4"):
            continue
        n = 1 << weight_format.bits
        codes = np.tile(np.arange(n, dtype=np.uint8), (n, 256 // n))
        scales = np.ones((n, 256 // (weight_format.group_size or 256)), np.float32)
        zeros = np.arange(n, dtype=np.uint8)[:, None].repeat(scales.shape[1], axis=1)
        given = zeros if weight_format.zero_point else None
        numbers = packing.Weights(weight_format, "bf16", codes, scales, given).numbers
        for activation in ("fp16", "bf16"):
            rounded = packing.round_to(numbers, activation)
            np.testing.assert_array_equal(rounded, numbers, err_msg=weight_format.name)


def test_stage_references_by_hand() -> None:
    """Two words of known codes: the sums of the early stages, computed without the library."""
    codes = np.arange(128, dtype=np.uint8)[None, :] % 16
    scales = np.array([[0.5]], np.float32)
    zeros = np.array([[3]], np.uint8)
    weights = packing.Weights(find_format("int4-g128-zp"), "fp16", codes, scales, zeros)
    half = int(np.float16(0.5).view(np.int16))
    word0, word1 = 0x7531_6420, 0xFDB9_ECA8
    total = 8 * (word0 + word1 - (1 << 32)) + half + 3
    total = (total + (1 << 31)) % (1 << 32) - (1 << 31)
    x = np.ones((1, 128), np.float32)
    assert packing.reference("stream", weights, x).tolist() == [total]
    assert packing.reference("unpack", weights, x).tolist() == [8 * 120 + half + 3]
    assert packing.reference("scale", weights, x).tolist() == [0.5 * (8 * 120 - 3 * 128)]
    assert packing.reference("fused", weights, x).tolist() == [[0.5 * (8 * 120 - 3 * 128)]]
    with pytest.raises(ValueError, match="no arm named 'nonsense' that multiplies"):
        packing.reference("nonsense", weights, x)

"""What the CPU's kernels are made of, for every width, encoding and scale; and some of each format's kernels.

The parts are compiled alone, without threads, which takes a third of a second each. Every format in every arm
is proven by test_kernels_cpu.py; of some, the stages at one batch.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numba import njit
from numpy.typing import NDArray
from test_kernels_cpu import DTYPES, assert_right

from kernels import find_kernels, packing
from kernels.codebooks import codebook
from kernels.cpu import planes as cpu_planes
from kernels.cpu.activations import field_weight
from kernels.cpu.numba_kernels import pack_words, stored
from kernels.cpu.planes import code_of, load_padded, load_planes, weights_of_lane
from kernels.cpu.simd import LANES, splat_i32, store_f32, store_i32
from kernels.cpu.weights import BYPASS, FUSED, Storage, scale_of, weight_of
from kernels.formats import FORMATS, PLANES, find_format

QUANTIZED = tuple(f for f in FORMATS if f.quantized)
OF_BITS = {f.bits: f for f in QUANTIZED if f.encoding == "int"}
OF_ENCODING = {f.encoding: f for f in QUANTIZED}
OF_SCALES = {
    (f.scale_type, f.group_size): f for f in QUANTIZED if f.bits == 4 or f.encoding == "int"
}


def fields_of(values: NDArray, bits: int) -> NDArray:
    """Values [n, k] as a kernel meets them: [n, vector, field, lane]."""
    per_lane = weights_of_lane(bits)
    order = [field_weight.py_func(field, 32 // per_lane) for field in range(per_lane)]
    lanes = values.reshape(len(values), -1, LANES, per_lane)[:, :, :, order]
    return lanes.transpose(0, 1, 3, 2)


def stored_as(weights: packing.Weights) -> tuple[Storage, tuple[NDArray, ...]]:
    asked = weights.format.encoding, weights.format.scale_type, DTYPES[weights.activation]
    return stored(pack_words(weights), weights.shape[1], *asked)


def random_codes(bits: int, rows: int = 2, k: int = 384) -> NDArray[np.uint8]:
    return np.random.default_rng(bits).integers(0, 1 << bits, (rows, k), dtype=np.uint8)


@pytest.mark.parametrize("bits", sorted(PLANES))
def test_every_field_of_every_plane_is_found(bits: int) -> None:
    fields = weights_of_lane(bits)

    @njit
    def unpack(words, rows, vectors, codes):
        for row in range(rows):
            for vector in range(vectors):
                planes = load_planes(words, row, vectors, vector, bits, 64)
                for field in range(fields):
                    at = ((row * vectors + vector) * fields + field) * LANES
                    store_i32(codes, at, code_of(planes, field, bits))

    codes = random_codes(bits)
    expected = fields_of(codes, bits)
    got = np.full(expected.shape, -7, np.int32)
    words = packing.pack(codes, bits).view(np.int32).reshape(-1)
    unpack(words, len(codes), expected.shape[1], got.reshape(-1))
    np.testing.assert_array_equal(got, expected)


def weights_kernel(bits: int, encoding: int, zero: int, stage: int) -> Callable:
    """The unscaled weights of every field, written out."""
    fields = weights_of_lane(bits)

    @njit
    def expand(words, rows, vectors, out):
        for row in range(rows):
            for vector in range(vectors):
                planes = load_planes(words, row, vectors, vector, bits, 64)
                for field in range(fields):
                    at = ((row * vectors + vector) * fields + field) * LANES
                    middle = splat_i32(np.int32(zero))
                    w = weight_of(planes, field, bits, encoding, middle, stage)
                    store_f32(out, at, w)

    return expand


def unscaled(weights: packing.Weights, stage: int) -> NDArray[np.float32]:
    storage, _ = stored_as(weights)
    words = weights.bypass_words if stage == BYPASS else weights.words
    n, k = weights.shape
    per_lane = weights_of_lane(weights.format.bits)
    vectors = k // LANES // per_lane
    out = np.full((n, vectors, per_lane, LANES), -7, np.float32)
    expand = weights_kernel(storage.bits, storage.encoding, storage.zero, stage)
    expand(words.view(np.int32).reshape(-1), n, vectors, out.reshape(-1))
    return out


@pytest.mark.parametrize("bits", sorted(PLANES))
def test_bypass_takes_the_words_that_its_reference_takes(bits: int) -> None:
    weights = packing.random_weights(2, 384, OF_BITS[bits], "bf16", seed=1)
    expected = fields_of(weights.bypass_values("fp32"), bits)
    np.testing.assert_array_equal(unscaled(weights, BYPASS), expected)


def all_codes(encoding: str) -> packing.Weights:
    """Every finite code in every place of a word, in random order."""
    weight_format = OF_ENCODING[encoding]
    numbers = codebook(weight_format.encoding)
    finite = np.flatnonzero(np.isfinite(numbers))
    rng = np.random.default_rng(4)
    codes = np.stack([rng.permutation(np.resize(finite, 384)) for _ in range(64)]).astype(np.uint8)
    groups = weight_format.groups(384)
    levels = np.zeros((64, groups), np.uint8)
    return packing.Weights(
        weight_format, "bf16", codes, np.ones((64, groups), np.float32), None, 0, levels
    )


@pytest.mark.parametrize(
    ("encoding", "permutes"),
    [(e, True) for e in sorted(set(OF_ENCODING) - {"int"})] + [("nf4", False), ("e3m2", False)],
)
def test_every_code_becomes_its_number(
    encoding: str, permutes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By permutation where AVX-512 has one, and where it is missing."""
    if not permutes:
        monkeypatch.setattr(cpu_planes, "get_host_cpu_features", dict)
    weights = all_codes(encoding)
    expected = codebook(weights.format.encoding)[weights.codes]
    expected = fields_of(expected, weights.format.bits)
    got = unscaled(weights, FUSED)
    np.testing.assert_array_equal(got.view(np.uint32), expected.view(np.uint32))  # -0 as well


@pytest.mark.parametrize(
    ("name", "activation"),
    [
        *((f.name, "bf16") for f in OF_SCALES.values()),
        *((f.name, "fp16") for (kind, _), f in OF_SCALES.items() if kind == "activation"),
    ],
)
def test_scales_of_every_type_and_group_reach_their_lanes(
    name: str, activation: packing.Float16
) -> None:
    """Also their bits, each once: what the stages that do not multiply add up."""
    weights = packing.random_weights(3, 512, find_format(name), activation, seed=3)
    storage, (_, scales, second, _) = stored_as(weights)
    parts, scale_type = storage.parts, storage.scale_type

    @njit
    def spread(scales, second, out, bits):
        for i in range(scales.size // parts):
            store_f32(out, i * LANES, scale_of(scales, second, i * parts, parts, scale_type))
            store_i32(bits, i * LANES, load_padded(scales, i * parts, parts))

    got = np.zeros((scales.size // parts, LANES), np.float32)
    bits = np.zeros(got.shape, np.int32)
    spread(scales, second, got.reshape(-1), bits.reshape(-1))
    lanes = np.repeat(weights.scales.reshape(-1, parts), LANES // parts, axis=1)
    np.testing.assert_array_equal(got, lanes)
    assert bits.sum() == packing.bits_of_scales(weights).sum()


# One kernel each, so that every regime and arm meets several planes, and several groups in a vector.
COVERING = (
    ("int1-g128", "unpack", 16),
    ("int3-g128", "bypass", 1),
    ("int7-g128", "fused", 17),
    ("int6-g128", "stream", 3),
    ("int4-g32-zp", "bypass", 3),
    ("int8-g32-zp", "stream", 16),
    ("nvfp4", "fused", 1),
    ("nf4-b64-dq", "fused", 3),
    ("mxfp6_e3m2", "dequantize", 1),
)


@pytest.mark.parametrize(("name", "arm", "batch"), COVERING)
def test_kernels_of_other_formats_are_right(name: str, arm: str, batch: int) -> None:
    n, k = 37, 256  # ragged against pairs of rows, tiles of 8 and panels of 64
    weights = packing.random_weights(n, k, find_format(name), "bf16", seed=batch)
    x = packing.random_activations(batch, k, "bf16", seed=batch)
    (kernel,) = (k for k in find_kernels("cpu", weights.format, "bf16", batch) if k.arm == arm)
    assert_right(kernel, weights, x)


@pytest.mark.parametrize("activation", ["fp16", "bf16"])
def test_every_quantized_format_has_every_arm(activation: str) -> None:
    for weight_format in QUANTIZED:
        for batch in (1, 256):
            arms = [k.arm for k in find_kernels("cpu", weight_format, activation, batch)]
            ours = ["stream", "unpack", "scale", "bypass", "fused", "native", "dequantize"]
            beside = ("vendor", "lowp", "upcast")
            assert [arm for arm in arms if arm not in beside] == ours, weight_format.name

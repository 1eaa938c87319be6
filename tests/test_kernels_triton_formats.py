"""Planes, eight-bit scales and the encodings beside int4, int8, NF4 and FP8: where bits are, what they mean."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kernels import packing
from kernels.codebooks import codebook
from kernels.formats import FORMATS, PLANES, find_format
from kernels.triton import KERNELS, tiles, tuned
from kernels.triton.plan import packed_tensors
from tests.aot_ptx import Ptx, compile_ptx, execute, float_bits, from_bits
from tests.aot_triton import Job
from tests.triton_cases import check

N, K = 64, 512
IN_PTX = (
    ("int1-g128", "fp16", 80),
    ("int7-g128", "fp16", 90),
    ("int6-g128", "fp16", 80),
    ("int5-g128", "bf16", 90),
    ("int3-g128", "fp16", 80),
    ("int2-g128", "fp16", 90),
    ("int4-g128-zp", "fp16", 80),
    ("int8-g128-zp", "fp16", 90),
    ("nf4-b64", "fp16", 80),
    ("mxfp6_e3m2", "bf16", 120),
    ("nvfp4", "fp16", 90),
    ("fp4-b64-dq", "fp16", 100),
)
JOBS = [Job("dequantize", "ptx", name, act, N, K, 1, sm) for name, act, sm in IN_PTX]
INTERPRETED = ("int7-g128", "int1-g128", "nvfp4", "fp4-b64-dq")


def random_words(bits: int, weights: int) -> list[int]:
    count = weights * bits // 32
    return np.random.default_rng(bits).integers(0, 1 << 32, count, dtype=np.uint32).tolist()


@pytest.mark.parametrize("bits", PLANES)
@pytest.mark.parametrize("weights", [32, 64, 128])
def test_masks_and_shifts_find_every_code(bits: int, weights: int) -> None:
    """What `tiles.field` does, in integers of Python, against packing.unpack."""
    words = random_words(bits, weights)
    (codes,) = packing.unpack(np.array([words], np.uint32), bits)
    for i in range(weights):
        field = 0
        for plane in range(tiles.planes(bits)):
            word = words[tiles.word_of(i, bits, plane, len(words))]
            shift = tiles.moved_by(i, bits, plane)
            moved = (word << shift if shift > 0 else word >> -shift) & 0xFFFFFFFF
            field |= moved & tiles.mask_of(i, bits, plane)
        assert field == int(codes[i]) << tiles.place_of(i, bits)


@pytest.mark.parametrize("bits", PLANES)
@pytest.mark.parametrize("weights", [32, 64, 128])
def test_bypass_takes_the_words_of_the_definition(bits: int, weights: int) -> None:
    """And every one of them, so that no load is dropped."""
    count = weights * bits // 32
    found = [tiles.word_of_pair(i, bits, count) for i in range(weights)]
    assert found[::2] == found[1::2] == packing.words_of_pairs(weights, bits).tolist()
    assert set(found) == set(range(count))


@pytest.mark.parametrize("bits", [b for b in PLANES if b < 8])
def test_pairs_leave_room_below_the_exponent_of_fp16(bits: int) -> None:
    for i in range(16):
        place = tuned.place_of_pair(i, bits)
        assert place + bits <= 10
        offset = 2.0 ** (11 - bits - place) + tiles.middle(bits) * tuned.unit(bits, "int")
        assert float(np.float16(offset)) == offset


@pytest.mark.parametrize("encoding", ["e5m2", "e4m3", "e3m2", "e2m3", "e2m1"])
def test_pairs_of_floats_stay_between_two_and_one(encoding: str) -> None:
    """Not smaller either: products with activations should be normal numbers of fp16."""
    if tuned.makes_pairs(encoding):
        bits = {"e4m3": 8, "e2m1": 4}.get(encoding, 6)
        numbers = codebook(encoding)
        largest = np.abs(numbers[np.isfinite(numbers)]).max() * tuned.unit(bits, encoding)
        assert 1 <= largest < 2


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[Job, Ptx]:
    cache: Path = tmp_path_factory.mktemp("triton")
    return compile_ptx(JOBS, cache)


@pytest.mark.parametrize("job", JOBS, ids=lambda job: f"{job.format_name}-{job.capability}")
def test_every_code_in_every_place_in_ptx(job: Job, compiled: dict[Job, Ptx]) -> None:
    """Executed in our emulator, bit for bit. 1024 of each of the 32 places, in random order."""
    weight_format = find_format(job.format_name)
    made = packing.random_weights(N, K, weight_format, job.activation, seed=7)
    codes = np.arange(N * K // 32, dtype=np.uint32)[:, None] + np.zeros(32, np.uint32)
    codes = np.random.default_rng(1).permuted(codes % (1 << weight_format.bits), axis=0)
    weights = replace(made, codes=codes.astype(np.uint8).reshape(N, K))
    np.testing.assert_array_equal(dequantized(compiled[job], weights), weights.values16)


@pytest.mark.parametrize(
    "job",
    [job for job in JOBS if job.format_name.startswith("int") and job.activation == "fp16"],
    ids=lambda job: f"{job.format_name}-{job.capability}",
)
def test_scales_may_be_as_large_as_fp16_allows(job: Job, compiled: dict[Job, Ptx]) -> None:
    """Two weights at a time are numbers as they are, not a fraction whose scale would have to be larger."""
    made = packing.random_weights(N, K, find_format(job.format_name), job.activation, seed=7)
    zeros = int(np.ceil(made.format.zero)) if made.zeros is None else made.per_weight(made.zeros)
    codes = np.random.default_rng(2).integers(-1, 1, (N, K)) + zeros
    scales = np.full_like(made.scales, 60000)
    weights = replace(made, codes=codes.clip(0).astype(np.uint8), scales=scales)
    assert np.abs(weights.values).max() == 30000 if made.format.bits == 1 else 60000
    np.testing.assert_array_equal(dequantized(compiled[job], weights), weights.values16)


def test_what_a_lane_reads_it_writes(compiled: dict[Job, Ptx]) -> None:
    """16 bytes at a time, and nothing passes through shared memory, where levels are not looked up."""
    for job, ptx in compiled.items():
        stores = set(re.findall(r"st\.global\.(\S+)", ptx.text))
        assert stores == {"v4.b32"}, job
        moved = find_format(job.format_name).encoding in ("nf4", "fp4")
        assert (ptx.shared_bytes > 0, "st.shared" in ptx.text) == (moved, moved), job


def dequantized(ptx: Ptx, weights: packing.Weights) -> np.ndarray:
    """What the compiled kernel writes, executed in our emulator: [N, K]."""
    stored = packing.scale_dtype(weights.format, weights.activation)
    scales = weights.scale_codes
    out = float_bits(np.full((N, K), np.nan), weights.activation)
    arguments = [
        weights.words.copy(),
        float_bits(weights.scales, stored) if scales is None else scales.copy(),
        *([] if weights.zeros is None else [weights.zeros.copy()]),
        *([] if weights.second_level is None else [weights.second_level.copy()]),
        out,
    ]
    execute(ptx, arguments)
    return from_bits(out, "activation")


@pytest.mark.parametrize("format_name", INTERPRETED)
@pytest.mark.parametrize(("regime", "batch", "n", "k"), [("gemv", 3, 5, 384), ("gemm", 17, 6, 256)])
def test_ladder_interpreted(format_name: str, regime: str, batch: int, n: int, k: int) -> None:
    weight_format = find_format(format_name)
    ladder = [
        kernel
        for kernel in KERNELS
        if kernel.variant in (regime, "default")
        and kernel.implementation == "triton"
        and kernel.weight_bits is None
        and kernel.arm != "lowp"
        and kernel.accepts(weight_format, "fp16", batch)
    ]
    assert len(ladder) == 6
    for kernel in ladder:
        check(kernel, format_name, "fp16", batch, n, k, "cpu")


@pytest.mark.parametrize("variant", ["gemv", "gemv-ptx", "gemm", "gemm-ptx"])
def test_every_quantized_format_has_a_ladder_in_every_variant(variant: str) -> None:
    for weight_format in FORMATS:
        for activation in ("fp16", "bf16"):
            arms = [
                kernel.arm
                for kernel in KERNELS
                if kernel.variant == variant
                and weight_format.name in kernel.formats
                and activation in kernel.activations
                and kernel.arm != "native"
                and kernel.arm != "upcast"
            ]
            expected = ["stream", "unpack", "scale", "bypass", "fused"]
            assert arms == (expected if weight_format.quantized else [])


def test_missing_second_level_is_refused() -> None:
    import torch

    weights = packing.random_weights(8, 256, find_format("nvfp4"), "fp16", seed=1)
    tensors = packed_tensors(weights)
    kernel = next(k for k in KERNELS if k.accepts(weights.format, "fp16", 1) and k.arm == "fused")
    x, out = torch.zeros(1, 256).half(), torch.zeros(1, 8).half()
    kernel.bind(tensors, x, out)
    del tensors["second_level"]
    with pytest.raises(ValueError, match=r"no weight format stores .* without a second level"):
        kernel.bind(tensors, x, out)

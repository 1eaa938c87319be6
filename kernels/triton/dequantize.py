"""W[n, k] from packed words to 16-bit numbers in memory: number(code) * scale, rounded once.

The question: what does dequantization cost when it is a kernel of its own? Followed by the best
16-bit kernel it is the `unfused` arm, which is what a framework does that has no fused kernel.

The write is 4 times the read (int4) and decides the time, so it decides the layout: a lane owns CHUNK
weights of each of BLOCK_N rows, which it writes as 16 bytes beside its neighbour's. It reads the words
that hold them, from every plane: one of int4, two of int8, half a word of 2 bits, which its neighbour
reads, too.

             k ->  w0 .. w7   w8 .. w15           BLOCK_K = 8 weights * 32 lanes * num_warps * chunks
    row r           lane 0     lane 1    ...
    row r + 1       lane 0     lane 1    ...

With several chunks the compiler lets a lane read as much as 16 bytes, of int4 the words of 4 chunks
side by side. Their weights then change lanes through shared memory before they are written.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from kernels.codebooks import Encoding
from kernels.formats import WeightFormat
from kernels.kernel import Launch, Tensors
from kernels.packing import Float16
from kernels.triton import gemv, tiles, tuned
from kernels.triton.memory import load, scale_of, scale_of_matrix
from kernels.triton.plan import (
    FP8_CAPABILITY,
    Plan,
    capability_of,
    check_packed,
    compile_options,
    packed_arguments,
    packed_signature,
)

CHUNK = tl.constexpr(8)  # weights that a lane writes at once: 16 bytes


@triton.jit
def dequantize_kernel(
    words_ptr,  # int32 [N, K * BITS / 32]
    scales_ptr,  # activation dtype, fp32 or uint8 [N, K / GROUP_SIZE]
    zeros_ptr,  # uint8 [N, K / GROUP_SIZE], or None
    second_ptr,  # fp32, the second level of scales (kernels/scales.py), or None
    out_ptr,  # activation dtype [N, K]
    N: tl.constexpr,
    K: tl.constexpr,
    BITS: tl.constexpr,
    ENCODING: tl.constexpr,
    GROUP_SIZE: tl.constexpr,
    SCALE_TYPE: tl.constexpr,
    HAS_ZERO: tl.constexpr,
    TUNED: tl.constexpr,
    HAS_FP8: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    CHUNKS: tl.constexpr,
):
    """One program owns BLOCK_N rows and BLOCK_K columns."""
    UNITS: tl.constexpr = BLOCK_K // CHUNK
    ROW_WORDS: tl.constexpr = K * BITS // 32
    GROUPS: tl.constexpr = K // GROUP_SIZE
    SHARED: tl.constexpr = chunks_per_scale(CHUNKS, GROUP_SIZE, GROUPS)
    SLOTS: tl.constexpr = UNITS // SHARED
    WHOLE: tl.constexpr = N % BLOCK_N == 0 and K % BLOCK_K == 0
    dtype: tl.constexpr = out_ptr.dtype.element_ty
    row = tl.program_id(0) * BLOCK_N
    first_row = tl.full([1, 1], row, tl.int32)  # a tile: interpreted, a scalar makes no mask
    unit = tl.program_id(1) * UNITS + tl.arange(0, UNITS)[None, :]
    column = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)[None, :]
    # One scale and zero point for chunks that certainly lie in one group.
    slot = tl.program_id(1) * SLOTS + tl.arange(0, SLOTS)[None, :]
    group = slot * (SHARED * CHUNK) // GROUP_SIZE

    # Addresses of the first row. Those of the others are a constant further, which costs no instruction.
    planes, inside = (), ()
    for plane in tl.static_range(tiles.planes(BITS)):
        word = words_of_plane(tl.program_id(1) * UNITS, UNITS, BITS, plane)
        planes += (words_ptr + row * ROW_WORDS + tiles.before(BITS, plane) * K // 32 + word,)
        inside += (word < tiles.width(BITS, plane) * K // 32,)
    offset = row * GROUPS + group
    address = out_ptr + row * K + column

    of_matrix = scale_of_matrix(second_ptr, SCALE_TYPE)

    # Load everything first: for all the compiler knows, a row that is written is the next one to read.
    words, scales, zeros = (), (), ()
    for r in tl.static_range(BLOCK_N):
        known = first_row + r < N
        row_words = ()
        for plane in tl.static_range(tiles.planes(BITS)):
            tile = load(planes[plane] + r * ROW_WORDS, inside[plane] & known, 0, WHOLE)
            row_words += in_place(tile, unit, BITS, plane)
        words += (row_words,)
        known_group = (group < GROUPS) & known
        scale = load(scales_ptr + offset + r * GROUPS, known_group, 0, WHOLE)
        at = offset + r * GROUPS
        scale = scale_of(scale, at, known_group, second_ptr, of_matrix, SCALE_TYPE, WHOLE)
        scales += (spread(scale, SLOTS, SHARED),)
        if HAS_ZERO:
            zero = load(zeros_ptr + offset + r * GROUPS, known_group, 0, WHOLE)
            zeros += (spread(zero, SLOTS, SHARED),)
        else:
            zeros += (0,)

    for r in tl.static_range(BLOCK_N):
        weights = weights_of(
            words[r],
            scales[r],
            zeros[r],
            dtype,
            BITS,
            ENCODING,
            SCALE_TYPE,
            HAS_ZERO,
            TUNED,
            HAS_FP8,
        )
        if WHOLE:
            tl.store(address + r * K, weights)
        else:
            tl.store(address + r * K, weights, mask=(column < K) & (first_row + r < N))


@triton.constexpr_function
def chunks_per_scale(chunks, group_size, groups):
    """Chunks, of those of a lane, that certainly share a scale."""
    return chunks if groups == 1 else min(chunks, group_size // int(CHUNK.value))


@triton.jit
def spread(per_slot, SLOTS: tl.constexpr, SHARED: tl.constexpr):
    """Values [1, SLOTS] for every eight weights: [1, SLOTS * SHARED]."""
    tile = tl.broadcast_to(per_slot[:, :, None], [1, SLOTS, SHARED])
    return tl.reshape(tile, [1, SLOTS * SHARED])


@triton.jit
def words_of_plane(unit, UNITS: tl.constexpr, BITS: tl.constexpr, plane: tl.constexpr):
    """Which words of a plane and row hold UNITS times 8 weights, from an eighth on: [1, UNITS * parts]."""
    EIGHT_BITS: tl.constexpr = 8 * tiles.width(BITS, plane)
    if EIGHT_BITS >= 32:
        PARTS: tl.constexpr = EIGHT_BITS // 32
        return unit * PARTS + tl.arange(0, UNITS * PARTS)[None, :]
    else:
        return (unit + tl.arange(0, UNITS)[None, :]) // (32 // EIGHT_BITS)


@triton.jit
def in_place(tile, unit, BITS: tl.constexpr, plane: tl.constexpr):
    """Words of `words_of_plane` as tiles [1, UNITS] whose first 8 weights are the ones that are meant.

    A word with more than 8 weights of a plane has them in both halves, even ones in the lower, so that
    one shift brings any 8 of them to where the first 8 are.
    """
    WIDTH: tl.constexpr = tiles.width(BITS, plane)
    if WIDTH >= 4:
        return tiles.split(tile, WIDTH // 4)
    else:
        shift = (unit % (4 // WIDTH) * (4 * WIDTH)).to(tl.uint32)
        return ((tile.to(tl.uint32, bitcast=True) >> shift).to(tl.int32, bitcast=True),)


@triton.jit
def weights_of(
    words,
    scale,
    zero,
    dtype: tl.constexpr,
    BITS: tl.constexpr,
    ENCODING: tl.constexpr,
    SCALE_TYPE: tl.constexpr,
    HAS_ZERO: tl.constexpr,
    TUNED: tl.constexpr,
    HAS_FP8: tl.constexpr,
):
    """8 weights for every word, or words, of `in_place`: `dtype` [1, 8 * UNITS].

    A product of two fp16 is rounded once, whether it is taken in fp16 or in fp32 first: where both
    factors are fp16, two weights at a time are multiplied.
    """
    HALF2: tl.constexpr = TUNED and dtype == tl.float16 and ENCODING == "int"
    parts = ()
    if HALF2 and SCALE_TYPE == "activation":
        known = tuned.constants(zero, BITS, ENCODING, HAS_ZERO, 1.0)
        twice = tuned.twice_of(scale)
        for i in tl.static_range(CHUNK // 2):
            pair = tuned.pair(words, i, known, BITS, ENCODING, HAS_FP8, 1.0)
            parts += tuned.split_pair(tuned.multiply(pair, twice))
    elif TUNED:
        known = tuned.constants(zero, BITS, ENCODING, HAS_ZERO)
        factor = scale.to(tl.float32) * (1.0 / tuned.unit(BITS, ENCODING))
        for i in tl.static_range(CHUNK):
            number = tuned.number(words, i, known, BITS, ENCODING, HAS_FP8)
            parts += ((number * factor).to(dtype),)
    else:
        known = tiles.zero_point(zero, BITS, HAS_ZERO)
        for i in tl.static_range(CHUNK):
            number = tiles.number(words, i, known, BITS, ENCODING)
            parts += ((number * scale.to(tl.float32)).to(dtype),)
    return tl.reshape(tiles.join(parts), [1, words[0].shape[1] * CHUNK])


@dataclass(frozen=True)
class Config:
    """How the matrix is cut into programs. Any power of two.

    Attributes:
        block_n: rows per program; all are loaded before the first is written.
        chunks: times 8 weights of each row that a lane writes.
        num_warps: warps per program.
    """

    block_n: int
    chunks: int
    num_warps: int

    @property
    def block_k(self) -> int:
        """Columns per program."""
        return self.chunks * int(CHUNK.value) * gemv.WARP_LANES * self.num_warps


def default_config(weight_format: WeightFormat) -> Config:
    """Untuned: chosen by counting instructions and registers, never by timing.

    A lane reads what it writes, 64 weights, and little remains besides unpacking them. Only levels are
    read 16 bytes at a time, as their target asks (bench/static/targets.py), and change lanes; to have
    them at hand takes 33 instructions, so there a lane has 128 weights.
    """
    if weight_format.encoding in ("nf4", "fp4"):
        return Config(block_n=4, chunks=4, num_warps=4)
    return Config(block_n=8, chunks=1, num_warps=4)


def plan(
    weight_format: WeightFormat,
    activation: Float16,
    n: int,
    k: int,
    config: Config | None = None,
    tuned: bool = False,
    capability: int = 80,
) -> Plan:
    """What `bind` launches and what the ahead-of-time compiler compiles; arguments as gemv.plan."""
    config = config or default_config(weight_format)
    types = packed_signature(weight_format, activation, "dequantize")
    constexprs = {
        "N": n,
        "K": k,
        "BITS": weight_format.bits,
        "ENCODING": weight_format.encoding,
        "GROUP_SIZE": weight_format.group_size or k,
        "SCALE_TYPE": weight_format.scale_type,
        "HAS_ZERO": weight_format.zero_point,
        "TUNED": tuned,
        "HAS_FP8": tuned and weight_format.encoding == "e4m3" and capability >= FP8_CAPABILITY,
        "BLOCK_N": config.block_n,
        "BLOCK_K": config.block_k,
        "CHUNKS": config.chunks,
    }
    return Plan(
        fn=dequantize_kernel,
        signature={name: types[name] for name in types if name not in ("x_ptr", "k_end")},
        constexprs=constexprs,
        options=compile_options(config.num_warps, num_stages=1),
        grid=(triton.cdiv(n, config.block_n), triton.cdiv(k, config.block_k)),
    )


def bind(
    tensors: Tensors,
    x: torch.Tensor,
    out: torch.Tensor,
    config: Config | None = None,
    encoding: Encoding = "int",
    tuned: bool = False,
) -> Launch:
    """Check the arguments of one launch, once.

    Args:
        tensors: `packed_tensors` on the device of x.
        x: activations [batch, k]; only their dtype and k matter.
        out: [n, k] in the dtype of x.
        config: how to cut the matrix; None for the default.
        encoding: what the codes in the words stand for.
        tuned: whether to take the tile functions in inline PTX, which cannot be interpreted.

    Raises:
        ValueError: an argument does not fit; the message says what would.
    """
    weight_format, activation, n, k, _ = check_packed(tensors, x, out, "dequantize", encoding)
    launch_plan = plan(weight_format, activation, n, k, config, tuned, capability_of(x))
    return launch_plan.launch(*packed_arguments(tensors), out)

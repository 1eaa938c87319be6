"""y[B, n] = x[B, k] . W[n, k]^T on tensor cores, for batches of 16 and more.

The question: each tile of weights is dequantized once per tile of the batch and then multiplied by
tensor cores that would otherwise be waiting for it. How much of that does the pipeline hide?

    stream   loads words, scales and zero points; sums the words
    unpack   + takes the codes out of the words; sums them
    scale    + subtracts the zero point, rounds to the activation dtype (exact), scales; sums
    fused    + multiplies by x: the real kernel
    bypass   `fused` without dequantization: the two 16-bit halves of a word, read as numbers of
             the activation dtype, stand in turn for its weights (where weights are scaled one by one,
             the compiler scales such a half once for all of them)

The stages are one kernel that differs by STAGE. Stages that multiply nothing do not load x. TUNED
takes the tile functions in inline PTX (tuned.py) instead of Triton's own operations (tiles.py).
Programs of every batch tile repeat the same sums, as `fused` repeats the dequantization, and store
the same value.

W is the *left* operand: its BLOCK_N rows fill the tall side of the tensor-core instruction and the
batch its narrow side, so that a batch of 16 wastes nothing. `code - zero` is exact in 16 bits; the
scale multiplies the accumulated tile once per group (BLOCK_K divides the group), not every weight. Groups
of 16 or 32 would make such steps short: where their scales are a power of two, or e4m3, a step spans several
and weights are scaled before they are rounded, which costs them no digit (only fp16's subnormal numbers).

    y^T [BLOCK_N, BLOCK_B]  +=  scale [BLOCK_N, 1] * (W [BLOCK_N, BLOCK_K] . x^T [BLOCK_K, BLOCK_B])
"""

from dataclasses import dataclass, replace

import torch
import triton
import triton.language as tl

from kernels.codebooks import Encoding
from kernels.formats import WeightFormat
from kernels.kernel import Arm, Launch, Tensors
from kernels.packing import Float16
from kernels.triton import tiles, tuned
from kernels.triton.memory import E4M3_UNBIAS, load, load_units, scale_of, scale_of_matrix
from kernels.triton.plan import (
    FP8_CAPABILITY,
    NO_CAP,
    Plan,
    capability_of,
    check_batch,
    check_packed,
    compile_options,
    multiprocessors_of,
    packed_arguments,
    packed_signature,
)
from kernels.triton.tiles import INTERPRETED
from profiles.specs import SCHEDULERS

BATCHES = (16, 256)


@triton.jit
def gemm_kernel(
    words_ptr,  # int32 [N, K * BITS / 32]
    scales_ptr,  # activation dtype, fp32 or uint8 [N, K / GROUP_SIZE]
    zeros_ptr,  # uint8 [N, K / GROUP_SIZE], or None
    second_ptr,  # fp32, the second level of scales (kernels/scales.py), or None
    x_ptr,  # activation dtype [BATCH, K]
    out_ptr,  # int32 [N], fp32 [N] or activation dtype [BATCH, N]: kernel.output_shape
    k_end,  # K again, but known only at run time: see plan.py
    N: tl.constexpr,
    K: tl.constexpr,
    BATCH: tl.constexpr,
    STAGE: tl.constexpr,
    BITS: tl.constexpr,
    ENCODING: tl.constexpr,
    GROUP_SIZE: tl.constexpr,
    SCALE_TYPE: tl.constexpr,
    HAS_ZERO: tl.constexpr,
    TUNED: tl.constexpr,
    HAS_FP8: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    NUM_STAGES: tl.constexpr,
):
    """One program owns BLOCK_N rows of W and BLOCK_B rows of x, and walks along k.

    Rows past the end repeat the last one, so that loads need no mask; their results are not stored.
    """
    UNITS: tl.constexpr = BLOCK_K // tiles.per_unit(BITS)
    GROUPS: tl.constexpr = K // GROUP_SIZE
    PER_ROW: tl.constexpr = GROUPS == 1 and not HAS_ZERO
    WHOLE: tl.constexpr = K % BLOCK_K == 0
    CHECKSUM: tl.constexpr = STAGE == "stream" or STAGE == "unpack"
    UNIT: tl.constexpr = tuned.unit(BITS, ENCODING) if TUNED and STAGE != "bypass" else 1.0
    # Several groups in a step: the scales multiply the weights, not the sums.
    SCALED: tl.constexpr = not PER_ROW and GROUP_SIZE < BLOCK_K
    STEP: tl.constexpr = (BLOCK_K + GROUP_SIZE - 1) // GROUP_SIZE  # tl.cdiv is no constant in 3.6
    LATE: tl.constexpr = SCALED and SCALE_TYPE == "e4m3"
    tl.static_assert(PER_ROW or SCALED or GROUP_SIZE % BLOCK_K == 0, "a step must stay in a group")

    row = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    weight_row = tl.minimum(row, N - 1)
    batch = tl.program_id(1) * BLOCK_B + tl.arange(0, BLOCK_B)
    x_row = tl.minimum(batch, BATCH - 1)
    dtype: tl.constexpr = x_ptr.dtype.element_ty

    checksum = tl.zeros([BLOCK_N, UNITS], tl.int32)
    groups = tl.zeros([BLOCK_N, 1], tl.int32)
    total = tl.zeros([BLOCK_N, UNITS], tl.float32)
    y = tl.zeros([BLOCK_N, BLOCK_B], tl.float32)
    if not HAS_ZERO:
        zero = 0
    of_matrix = 0.0 if CHECKSUM else scale_of_matrix(second_ptr, SCALE_TYPE)
    if LATE and not CHECKSUM:  # what is left is exact in 16 bits
        late = of_matrix * (1.0 / E4M3_UNBIAS)
        of_matrix = E4M3_UNBIAS
    if PER_ROW:
        offset = weight_row[:, None]
        scale = tl.load(scales_ptr + weight_row)[:, None]
        if not CHECKSUM:
            scale = scale_of(scale, offset, True, second_ptr, of_matrix, SCALE_TYPE, True)

    for k0 in tl.range(0, K if INTERPRETED else k_end, BLOCK_K, num_stages=NUM_STAGES):
        # Load the words, and one scale and zero point per row.
        words = load_units(
            words_ptr, weight_row, k0, BLOCK_K, K, BITS, ENCODING, not CHECKSUM, WHOLE
        )
        if SCALED:
            group = k0 // GROUP_SIZE + tl.arange(0, STEP)[None, :]
            offset = weight_row[:, None] * GROUPS + group
            scale = load(scales_ptr + offset, group < GROUPS, 0, WHOLE)
            if not CHECKSUM:
                scale = scale_of(
                    scale, offset, group < GROUPS, second_ptr, of_matrix, SCALE_TYPE, WHOLE
                )
                scale = tl.broadcast_to(scale[:, :, None], [BLOCK_N, STEP, UNITS // STEP])
                scale = tl.reshape(scale, [BLOCK_N, UNITS])
        elif not PER_ROW:
            offset = weight_row[:, None] * GROUPS + k0 // GROUP_SIZE
            scale = tl.load(scales_ptr + offset)
            if not CHECKSUM:
                scale = scale_of(scale, offset, True, second_ptr, of_matrix, SCALE_TYPE, True)
            if HAS_ZERO:
                zero = tl.load(zeros_ptr + offset)
        if TUNED and not CHECKSUM:
            known = tuned.constants(zero, BITS, ENCODING, HAS_ZERO)
        else:
            known = tiles.zero_point(zero, BITS, HAS_ZERO)

        if CHECKSUM:
            if STAGE == "stream":
                checksum += tiles.sum_of_words(words)
            else:
                checksum += tiles.sum_of_codes(words, BITS)
            first = k0 % GROUP_SIZE == 0  # a group counts once
            bits = tiles.group_bits(scale, zero, HAS_ZERO)
            if SCALED:
                groups += tl.sum(bits, axis=1)[:, None]
            else:
                groups += tl.where(first, bits, 0)
        elif STAGE == "scale":
            part = tl.zeros([BLOCK_N, UNITS], tl.float32)
            for i in tl.static_range(tiles.per_unit(BITS)):
                if TUNED:
                    number = tuned.number(words, i, known, BITS, ENCODING, HAS_FP8)
                else:
                    number = tiles.number(words, i, known, BITS, ENCODING)
                part += number.to(dtype).to(tl.float32)
            total += part * scale.to(tl.float32)
        else:
            column = k0 + tl.arange(0, BLOCK_K)
            address = x_ptr + x_row[:, None] * K + column[None, :]
            x = load(address, (column < K)[None, :], 0.0, WHOLE)
            if STAGE == "fused" and SCALED:
                if TUNED:
                    w = tuned.numbers(words, known, BITS, ENCODING, HAS_FP8)
                else:
                    w = tiles.numbers(words, known, BITS, ENCODING, tl.float32)
            elif STAGE == "fused":
                if TUNED:
                    w = tuned.numbers16(words, known, BITS, ENCODING, HAS_FP8, dtype)
                else:
                    w = tiles.numbers(words, known, BITS, ENCODING, dtype)
                per_group = scale
            else:
                w = tiles.halves(words, BITS, dtype)
                per_group = tiles.keep_zero(scale, zero, HAS_ZERO)
            if SCALED:
                w = (w.to(tl.float32) * (scale * (1.0 / UNIT))[:, :, None]).to(dtype)
            w = tl.reshape(w, [BLOCK_N, BLOCK_K])
            if PER_ROW or SCALED:
                y = tiles.dot(w, x.T, y)
            else:
                y += tiles.dot(w, x.T) * per_group.to(tl.float32)

    if CHECKSUM:
        tl.store(out_ptr + row, tl.sum(checksum, axis=1) + tl.sum(groups, axis=1), mask=row < N)
    elif STAGE == "scale":
        sums = tl.sum(total, axis=1) * (1.0 / UNIT)
        tl.store(out_ptr + row, sums * late if LATE else sums, mask=row < N)
    else:
        if PER_ROW:
            y *= scale.to(tl.float32)
        if LATE:
            y *= late
        if not SCALED:
            y *= 1.0 / UNIT
        inside = (batch < BATCH)[None, :] & (row < N)[:, None]
        address = out_ptr + batch[None, :] * N + row[:, None]
        tl.store(address, y.to(dtype), mask=inside)


@dataclass(frozen=True)
class Config:
    """How the problem is cut into programs. Any power of two; tensor cores want at least 16.

    Attributes:
        block_b: rows of x per program; each such tile dequantizes the weights again.
        block_n: rows of W per program.
        block_k: weights of one row per step; divides the group size, or is a multiple of it.
        num_warps: warps per program.
        num_stages: steps of the pipeline, so steps in flight plus one.
        max_registers: registers per thread that the assembler may use. Left to itself it spills a few bytes of
            some kernels, on every target, to reach a round number.
    """

    block_b: int
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int
    max_registers: int = NO_CAP


def cut_for(config: Config, n: int, batch: int, multiprocessors: int | None) -> Config:
    """A default configuration in smaller tiles, where it would leave half of a board idle or more.

    Rows of x are halved, down to 16, then rows of W, down to 8 per warp, as long as twice as many warps still
    find a scheduler each. Tiles along the batch dequantize the same weights again, but side by side, where
    nothing else would run. One program waits for memory on its own, so steps in flight are added: as many
    as 99 KiB of shared memory hold in every format.

    Args:
        config: the largest tile.
        n: rows of W.
        batch: rows of x.
        multiprocessors: of the board; None where it is not known, and nothing is changed.
    """
    if multiprocessors is None:
        return config
    tile = config

    def half_idle() -> bool:
        programs = -(-n // tile.block_n) * -(-batch // tile.block_b)
        return 2 * programs * tile.num_warps <= SCHEDULERS * multiprocessors

    while tile.block_b > 16 and half_idle():
        tile = replace(tile, block_b=tile.block_b // 2)
    while tile.block_n > 8 * tile.num_warps and half_idle():
        tile = replace(tile, block_n=tile.block_n // 2)
    return replace(tile, num_stages=max(tile.num_stages, 5 if tile.block_b <= 32 else 4))


def default_config(
    weight_format: WeightFormat, n: int, batch: int, multiprocessors: int | None = None
) -> Config:
    """Conservative and untuned: chosen by counting instructions and registers, never by timing.

    A small batch is limited by memory: many short tiles, a deep pipeline. A larger one is limited
    by arithmetic: 64 rows, which is what the warp-group instruction of sm_90 needs. Where that gives a
    board too few programs, tiles are smaller: `cut_for`.

    Known cost: sm_80 splits the 64 x 64 tile over 2 x 2 warps, and where the compiler
    dequantizes in the operand's own layout (zero points) both warps along the batch do it.
    """
    block_k = min(weight_format.group_size or 128, 128)
    if weight_format.scale_type in ("e8m0", "e4m3") and weight_format.bits < 8:
        block_k = 64
    if batch <= 16:
        # One warp per 16 rows: one more along the batch would dequantize the same weights again.
        largest = Config(16, 32, block_k, num_warps=2, num_stages=5)
    else:
        block_b = min(triton.next_power_of_2(batch), 64)
        largest = Config(block_b, 64, block_k, num_warps=4, num_stages=3)
    return cut_for(largest, n, batch, multiprocessors)


def plan(
    arm: Arm,
    weight_format: WeightFormat,
    activation: Float16,
    n: int,
    k: int,
    batch: int,
    config: Config | None = None,
    tuned: bool = False,
    capability: int = 80,
    multiprocessors: int | None = None,
) -> Plan:
    """What `bind` launches and what the ahead-of-time compiler compiles.

    Args:
        arm: "stream", "unpack", "scale", "bypass" or "fused".
        weight_format: a quantized format whose groups divide k.
        activation: "fp16" or "bf16".
        n: rows of W.
        k: columns of W.
        batch: 16 to 256.
        config: how to cut the problem; None for the default.
        tuned: whether to take the tile functions in inline PTX.
        capability: compute capability times ten; what every later one can do as well.
        multiprocessors: of the board, which decide the default; None where they are not known.
    """
    config = config or default_config(weight_format, n, batch, multiprocessors)
    constexprs = {
        "N": n,
        "K": k,
        "BATCH": batch,
        "STAGE": arm,
        "BITS": weight_format.bits,
        "ENCODING": weight_format.encoding,
        "GROUP_SIZE": weight_format.group_size or k,
        "SCALE_TYPE": weight_format.scale_type,
        "HAS_ZERO": weight_format.zero_point,
        "TUNED": tuned,
        "HAS_FP8": tuned and weight_format.encoding == "e4m3" and capability >= FP8_CAPABILITY,
        "BLOCK_B": config.block_b,
        "BLOCK_N": config.block_n,
        "BLOCK_K": config.block_k,
        "NUM_STAGES": config.num_stages,
    }
    return Plan(
        fn=gemm_kernel,
        signature=packed_signature(weight_format, activation, arm),
        constexprs=constexprs,
        options=compile_options(config.num_warps, config.num_stages, config.max_registers),
        grid=(triton.cdiv(n, config.block_n), triton.cdiv(batch, config.block_b)),
    )


def bind(
    arm: Arm,
    tensors: Tensors,
    x: torch.Tensor,
    out: torch.Tensor,
    config: Config | None = None,
    encoding: Encoding = "int",
    tuned: bool = False,
) -> Launch:
    """Check the arguments of one launch, once.

    Args:
        arm: a stage of the ladder.
        tensors: `packed_tensors` on the device of x.
        x: activations [batch, k], fp16 or bf16.
        out: what `output_shape` says for the arm.
        config: how to cut the problem; None for the default.
        encoding: what the codes in the words stand for.
        tuned: whether to take the tile functions in inline PTX, which cannot be interpreted.

    Raises:
        ValueError: an argument does not fit; the message says what would.
    """
    weight_format, activation, n, k, batch = check_packed(tensors, x, out, arm, encoding)
    check_batch("gemm", batch, BATCHES)
    board = (capability_of(x), multiprocessors_of(x))
    launch_plan = plan(arm, weight_format, activation, n, k, batch, config, tuned, *board)
    return launch_plan.launch(*packed_arguments(tensors), x, out, k)

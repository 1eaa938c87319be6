"""y[B, n] = x[B, k] . W[n, k]^T for a small batch: every weight is read once and serves all B rows.

The question: at batch 1 a low-bit kernel is limited by memory if it can dequantize in the shadow of
its own loads. Does it? `fused - bypass` is the answer; the earlier stages show where the time goes.

    stream   loads words, scales and zero points; sums the words
    unpack   + takes the codes out of the words; sums them
    scale    + converts to fp32, subtracts the zero point, scales; sums. It is `fused` with x = 1
    fused    + multiplies by x: the real kernel
    bypass   `fused` without dequantization: the word itself, read as one fp32, stands for each of
             its weights. Same loads, multiply-adds, scales and reduction

The stages are one kernel that differs by STAGE. Stages that multiply nothing do not load x.

One lane owns a *segment* of 4 words in each of BLOCK_N rows: one 16-byte load per row, whose 32
(int4) or 16 (int8) weights share a scale. So a lane sums `(code - zero) * x` over its segment and
multiplies once by the scale. x is loaded in the same places, 8 values at a time, converted to fp32
once and used for all BLOCK_N rows. Lanes are added up once, at the end.

             k ->  segment 0      segment 1            BLOCK_K = 4 words * 32 lanes * num_warps
    row r        [w0 w1 w2 w3]  [w0 w1 w2 w3]  ...
    row r + 1    [w0 w1 w2 w3]  [w0 w1 w2 w3]  ...
                    lane 0         lane 1
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from kernels.formats import WeightFormat
from kernels.kernel import Arm, Launch, Tensors
from kernels.triton import tiles
from kernels.triton.memory import load
from kernels.triton.plan import (
    Plan,
    check_batch,
    check_packed,
    compile_options,
    packed_signature,
)
from kernels.triton.tiles import INTERPRETED

BATCHES = (1, 16)
WORDS_PER_LOAD = tl.constexpr(4)  # 16 bytes
CHUNK = tl.constexpr(8)  # activations in one 16-byte load
WARP_LANES = 32


@triton.jit
def gemv_kernel(
    words_ptr,  # int32 [N, K * BITS / 32]
    scales_ptr,  # activation dtype [N, K / GROUP_SIZE]
    zeros_ptr,  # uint8 [N, K / GROUP_SIZE], or None
    x_ptr,  # activation dtype [BATCH, K]
    out_ptr,  # int32 [N], fp32 [N] or activation dtype [BATCH, N]: kernel.output_shape
    k_end,  # K again, but known only at run time: see plan.py
    N: tl.constexpr,
    K: tl.constexpr,
    BATCH: tl.constexpr,
    STAGE: tl.constexpr,
    BITS: tl.constexpr,
    GROUP_SIZE: tl.constexpr,
    HAS_ZERO: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """One program owns BLOCK_N rows of W and walks along k.

    Rows past the end repeat the last one, so that loads need no mask; their results are not stored.
    """
    PER_WORD: tl.constexpr = 32 // BITS
    SEGMENT: tl.constexpr = WORDS_PER_LOAD * PER_WORD
    SEGMENTS: tl.constexpr = BLOCK_K // SEGMENT
    WORDS: tl.constexpr = BLOCK_K // PER_WORD
    GROUPS: tl.constexpr = K // GROUP_SIZE
    PER_ROW: tl.constexpr = GROUPS == 1 and not HAS_ZERO
    WHOLE: tl.constexpr = K % BLOCK_K == 0
    CHECKSUM: tl.constexpr = STAGE == "stream" or STAGE == "unpack"
    # Beyond k: nothing for the integer sums, else the word whose codes all mean zero.
    PAD: tl.constexpr = 0 if CHECKSUM else tiles.middle_word(BITS)

    row = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    weight_row = tl.minimum(row, N - 1)
    batch = tl.arange(0, BLOCK_B)
    x_row = tl.minimum(batch, BATCH - 1)
    lane = tl.arange(0, SEGMENTS * CHUNK)  # CHUNK activations for each segment
    # Scales are loaded along one axis and then folded into [BLOCK_N, SEGMENTS]. On two axes Triton
    # 3.6 lays the lanes along the rows, and moves every weight through shared memory to its scale.
    slot = tl.arange(0, BLOCK_N * SEGMENTS)
    slot_row = tl.minimum(tl.program_id(0) * BLOCK_N + slot // SEGMENTS, N - 1)

    checksum = tl.zeros([BLOCK_N, SEGMENTS], tl.int32)
    total = tl.zeros([BLOCK_N, SEGMENTS], tl.float32)
    y = tl.zeros([BLOCK_B, BLOCK_N, SEGMENTS], tl.float32)
    if not HAS_ZERO:
        zero = 0
    if PER_ROW:
        scale = tl.load(scales_ptr + weight_row)[:, None]

    for k0 in range(0, K if INTERPRETED else k_end, BLOCK_K):
        # Load the words, and one scale and zero point per segment.
        segment = k0 // SEGMENT + tl.arange(0, SEGMENTS)
        word = k0 // PER_WORD + tl.arange(0, WORDS)
        address = words_ptr + weight_row[:, None] * (K // PER_WORD) + word[None, :]
        words = load(address, (word < K // PER_WORD)[None, :], PAD, WHOLE)
        words = tiles.split4(tl.reshape(words, [BLOCK_N, SEGMENTS, WORDS_PER_LOAD]))
        if not PER_ROW:
            group = (k0 + slot % SEGMENTS * SEGMENT) // GROUP_SIZE
            offset = slot_row * GROUPS + group
            scale = load(scales_ptr + offset, group < GROUPS, 0.0, WHOLE)
            scale = tl.reshape(scale, [BLOCK_N, SEGMENTS])
            if HAS_ZERO:
                zero = load(zeros_ptr + offset, group < GROUPS, 0, WHOLE)
                zero = tl.reshape(zero, [BLOCK_N, SEGMENTS])

        if CHECKSUM:
            for w in tl.static_range(WORDS_PER_LOAD):
                checksum += words[w] if STAGE == "stream" else tiles.sum_of_codes(words[w], BITS)
            start = segment * SEGMENT  # a group counts once, in the first of its segments
            counts = (start % GROUP_SIZE == 0) & (start < K)
            checksum += tl.where(counts[None, :], tiles.group_bits(scale, zero, HAS_ZERO), 0)
        elif STAGE == "scale":
            part = tl.zeros([BLOCK_N, SEGMENTS], tl.float32)
            subtract = tiles.zero_point(zero, BITS, HAS_ZERO)
            for i in tl.static_range(SEGMENT):
                part += tiles.number(words[i // PER_WORD], i % PER_WORD, subtract, BITS)
            total += part * scale.to(tl.float32)
        else:
            part = tl.zeros([BLOCK_B, BLOCK_N, SEGMENTS], tl.float32)
            subtract = tiles.zero_point(zero, BITS, HAS_ZERO)
            for chunk in tl.static_range(0, SEGMENT, CHUNK):
                column = k0 + lane // CHUNK * SEGMENT + chunk + lane % CHUNK
                address = x_ptr + x_row[:, None] * K + column[None, :]
                x = load(address, (column < K)[None, :], 0.0, WHOLE)
                x = tiles.split8(tl.reshape(x, [BLOCK_B, SEGMENTS, CHUNK]))
                for i in tl.static_range(CHUNK):
                    w = words[(chunk + i) // PER_WORD]
                    if STAGE == "fused":
                        value = tiles.number(w, (chunk + i) % PER_WORD, subtract, BITS)
                    else:
                        value = w.to(tl.float32, bitcast=True)
                    part += value[None, :, :] * x[i].to(tl.float32)[:, None, :]
            per_group = scale if STAGE == "fused" else tiles.keep_zero(scale, zero, HAS_ZERO)
            y += part * per_group.to(tl.float32)[None, :, :]

    if CHECKSUM:
        tl.store(out_ptr + row, tl.sum(checksum, axis=1), mask=row < N)
    elif STAGE == "scale":
        tl.store(out_ptr + row, tl.sum(total, axis=1), mask=row < N)
    else:
        inside = (batch < BATCH)[:, None] & (row < N)[None, :]
        address = out_ptr + batch[:, None] * N + row[None, :]
        tl.store(address, tl.sum(y, axis=2).to(out_ptr.dtype.element_ty), mask=inside)


@dataclass(frozen=True)
class Config:
    """How the problem is cut into programs. Any power of two.

    Attributes:
        block_n: rows of W per program, so also 16-byte loads in flight per lane.
        num_warps: warps per program; their 32 lanes each set how much of k one step covers.
        max_registers: registers per thread that the assembler may use; None for its own choice.
    """

    block_n: int
    num_warps: int
    max_registers: int | None = None

    def block_k(self, bits: int) -> int:
        """Weights of one row that a program reads per step."""
        return self.num_warps * WARP_LANES * int(WORDS_PER_LOAD.value) * 32 // bits


def default_config(weight_format: WeightFormat, k: int, batch: int) -> Config:
    """Conservative and untuned: chosen by counting instructions and registers, never by timing.

    Fewer rows per program where the batch needs the registers. Between 2 and 4 warps, the number
    that wastes less of the last step along k. The assembler fills the registers it is given: at 56,
    `fused` and `bypass` of int4 at batch 1 use the same number, so run at the same occupancy. Left
    to itself it sometimes spills to reach a round number, which a cap of 255 (none) prevents.
    """

    def padded(num_warps: int) -> int:
        block_k = Config(1, num_warps).block_k(weight_format.bits)
        return -(-k // block_k) * block_k

    registers = 255 if batch > 1 else 56 if weight_format.bits == 4 else None
    return Config(
        block_n=4 if batch <= 4 else 2,
        num_warps=min((4, 2), key=padded),
        max_registers=registers,
    )


def plan(
    arm: Arm,
    weight_format: WeightFormat,
    activation: str,
    n: int,
    k: int,
    batch: int,
    config: Config | None = None,
) -> Plan:
    """What `bind` launches and what the ahead-of-time compiler compiles.

    Args:
        arm: "stream", "unpack", "scale", "bypass" or "fused".
        weight_format: a quantized format whose groups divide k.
        activation: "fp16" or "bf16".
        n: rows of W.
        k: columns of W.
        batch: 1 to 16.
        config: how to cut the problem; None for the default.
    """
    config = config or default_config(weight_format, k, batch)
    constexprs = {
        "N": n,
        "K": k,
        "BATCH": batch,
        "STAGE": arm,
        "BITS": weight_format.bits,
        "GROUP_SIZE": weight_format.group_size or k,
        "HAS_ZERO": weight_format.zero_point,
        "BLOCK_B": triton.next_power_of_2(batch),
        "BLOCK_N": config.block_n,
        "BLOCK_K": config.block_k(weight_format.bits),
    }
    return Plan(
        fn=gemv_kernel,
        signature=packed_signature(weight_format, activation, arm),
        constexprs=constexprs,
        options=compile_options(config.num_warps, 1, config.max_registers),
        grid=(triton.cdiv(n, config.block_n),),
    )


def bind(
    arm: Arm, tensors: Tensors, x: torch.Tensor, out: torch.Tensor, config: Config | None = None
) -> Launch:
    """Check the arguments of one launch, once.

    Args:
        arm: a stage of the ladder.
        tensors: `packed_tensors` on the device of x.
        x: activations [batch, k], fp16 or bf16.
        out: what `output_shape` says for the arm.
        config: how to cut the problem; None for the default.

    Raises:
        ValueError: an argument does not fit; the message says what would.
    """
    weight_format, activation, n, k, batch = check_packed(tensors, x, out, arm)
    check_batch("gemv", batch, BATCHES)
    launch_plan = plan(arm, weight_format, activation, n, k, batch, config)
    return launch_plan.launch(tensors["words"], tensors["scales"], tensors.get("zeros"), x, out, k)

"""y[B, n] = x[B, k] . W[n, k]^T for a small batch: every weight is read once and serves all B rows.

The question: at batch 1 a low-bit kernel is limited by memory if it can dequantize in the shadow of
its own loads. Does it? `fused - bypass` is the answer; the earlier stages show where the time goes.

    stream   loads words, scales and zero points; sums the words
    unpack   + takes the codes out of the words; sums them
    scale    + converts, subtracts the zero point, scales; sums. It is `fused` with x = 1
    fused    + multiplies by x: the real kernel
    bypass   `fused` without dequantization: the word itself, read as one fp32 or as a pair of
             fp16, stands for each of its weights or pairs. Same loads, multiply-adds, scales and
             reduction

The stages are one kernel that differs by STAGE. Stages that multiply nothing do not load x. TUNED
takes the tile functions in inline PTX (tuned.py) instead of Triton's own operations (tiles.py). With
fp16 activations it also multiplies two weights at a time: at most sixteen such products are added in
fp16, then both halves go to the fp32 sum. bf16 keeps too few digits for that: there each weight is
widened.

One lane owns a *segment* of each of BLOCK_N rows: 32 weights that share a scale, in one 16-byte load
(int4) or two (int8, where the four lanes of a quad load 64 bytes side by side, twice). So a lane sums
`(code - zero) * x` over its segment and multiplies once by the scale. x is loaded in the same places,
8 values at a time, and used for all BLOCK_N rows. Lanes are added up once, at the end.

A load of 1- or 2-bit codes holds 128 or 64 weights. Of codes in several planes, the widest is loaded 16 bytes
at a time and the others 8 or 4. A segment of two groups (NVFP4: 16 weights) takes its scales one after another.

             k ->  segment 0      segment 1            BLOCK_K = 32 weights * 32 lanes * num_warps
    row r        [w0 w1 w2 w3]  [w0 w1 w2 w3]  ...
    row r + 1    [w0 w1 w2 w3]  [w0 w1 w2 w3]  ...
                    lane 0         lane 1
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from kernels.codebooks import Encoding
from kernels.formats import WeightFormat
from kernels.kernel import PRODUCTS, Arm, Launch, Tensors
from kernels.packing import Float16
from kernels.triton import tiles, tuned
from kernels.triton.memory import load, load_words, scale_of, scale_of_matrix
from kernels.triton.plan import (
    FP8_CAPABILITY,
    NO_CAP,
    Plan,
    capability_of,
    check_batch,
    check_packed,
    compile_options,
    packed_arguments,
    packed_signature,
)
from kernels.triton.tiles import INTERPRETED

BATCHES = (1, 16)
WORDS_PER_LOAD = tl.constexpr(4)  # 16 bytes
CHUNK = tl.constexpr(8)  # activations in one 16-byte load
ONES = tl.constexpr(0x3C003C00)  # a pair of fp16
FP16_CHAIN = 16  # products that may be added in fp16
LANES_PER_QUAD = tl.constexpr(4)  # lanes whose loads lie side by side
WARP_LANES = 32
STEP = 2048  # weights of a row; more lanes than those only add sums at the end


@triton.jit
def gemv_kernel(
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
    LOADS: tl.constexpr,
):
    """One program owns BLOCK_N rows of W and walks along k.

    Rows past the end repeat the last one, so that loads need no mask; their results are not stored.
    """
    PER_LOAD: tl.constexpr = WORDS_PER_LOAD * 32 // tiles.width(BITS, 0)
    QUAD: tl.constexpr = LANES_PER_QUAD * LOADS * PER_LOAD
    SEGMENTS: tl.constexpr = BLOCK_K // (LOADS * PER_LOAD)
    GROUPS: tl.constexpr = K // GROUP_SIZE
    # One scale for a whole row, also beyond its end: where no code means zero, those are added up.
    PER_ROW: tl.constexpr = GROUPS == 1 and not HAS_ZERO and BITS > 1
    WHOLE: tl.constexpr = K % BLOCK_K == 0
    CHECKSUM: tl.constexpr = STAGE == "stream" or STAGE == "unpack"
    FP16: tl.constexpr = x_ptr.dtype.element_ty == tl.float16
    HALF2: tl.constexpr = TUNED and FP16 and tuned.makes_pairs(ENCODING)
    UNIT: tl.constexpr = tuned.unit(BITS, ENCODING) if TUNED and STAGE != "bypass" else 1.0
    SPAN: tl.constexpr = span(LOADS * PER_LOAD, GROUP_SIZE, PER_ROW, HALF2)
    SCALES: tl.constexpr = 1 if PER_ROW else (LOADS * PER_LOAD + GROUP_SIZE - 1) // GROUP_SIZE

    row = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    # Where rows divide, their distance is a constant, and one address serves all of a lane's loads.
    weight_row = row if N % BLOCK_N == 0 else tl.minimum(row, N - 1)
    batch = tl.arange(0, BLOCK_B)
    x_row = tl.minimum(batch, BATCH - 1)
    # Where a lane's first load starts in the step, for 8 activations or 4 pairs of them.
    four = tl.arange(0, SEGMENTS * 4)
    eight = tl.arange(0, SEGMENTS * 8)
    four_start = tiles.segment_start(four // 4, PER_LOAD, QUAD)
    eight_start = tiles.segment_start(eight // 8, PER_LOAD, QUAD)
    # Scales are loaded along one axis and then folded into [BLOCK_N, SEGMENTS]. On two axes Triton
    # 3.6 lays the lanes along the rows, and moves every weight through shared memory to its scale.
    slot = tl.arange(0, BLOCK_N * SEGMENTS)
    slot_row = tl.program_id(0) * BLOCK_N + slot // SEGMENTS
    if N % BLOCK_N != 0:
        slot_row = tl.minimum(slot_row, N - 1)
    slot_start = tiles.segment_start(slot % SEGMENTS, PER_LOAD, QUAD)

    checksum = tl.zeros([BLOCK_N, SEGMENTS], tl.int32)
    y = tl.zeros([BLOCK_B, BLOCK_N, SEGMENTS], tl.float32)
    if not HAS_ZERO:
        zero = 0
    of_matrix = 0.0 if CHECKSUM else scale_of_matrix(second_ptr, SCALE_TYPE)
    if PER_ROW:
        scales = (tl.load(scales_ptr + weight_row)[:, None],)
        if not CHECKSUM:
            offset = weight_row[:, None]
            scales = (scale_of(scales[0], offset, True, second_ptr, of_matrix, SCALE_TYPE, True),)

    for k0 in range(0, K if INTERPRETED else k_end, BLOCK_K):
        # Load the scales and the zero point of each segment.
        if not PER_ROW:
            scales = ()
            for part_of in tl.static_range(SCALES):
                group = (k0 + slot_start) // GROUP_SIZE + part_of
                offset = slot_row * GROUPS + group
                scale = load(scales_ptr + offset, group < GROUPS, 0, WHOLE)
                if not CHECKSUM:
                    scale = scale_of(
                        scale, offset, group < GROUPS, second_ptr, of_matrix, SCALE_TYPE, WHOLE
                    )
                scales += (tl.reshape(scale, [BLOCK_N, SEGMENTS]),)
            if HAS_ZERO:
                zero = load(zeros_ptr + offset, group < GROUPS, 0, WHOLE)
                zero = tl.reshape(zero, [BLOCK_N, SEGMENTS])
        if CHECKSUM:
            for part_of in tl.static_range(SCALES):
                start = k0 + tiles.segment_start(tl.arange(0, SEGMENTS), PER_LOAD, QUAD)
                start += part_of * GROUP_SIZE
                first = (start % GROUP_SIZE == 0) & (start < K)  # a group counts once
                bits = tiles.group_bits(scales[part_of], zero, HAS_ZERO)
                checksum += tl.where(first[None, :], bits, 0)
        else:
            part = tl.zeros([BLOCK_B, BLOCK_N, SEGMENTS], tl.int32 if HALF2 else tl.float32)
            if TUNED:
                known = tuned.constants(zero, BITS, ENCODING, HAS_ZERO)
            else:
                known = tiles.zero_point(zero, BITS, HAS_ZERO)

        for n_load in tl.static_range(LOADS):
            k1 = n_load * (QUAD // LOADS)
            # Load the words: of the widest plane 16 bytes per lane and row.
            words = ()
            for plane in tl.static_range(tiles.planes(BITS)):
                word = segment_words(k0 + k1, plane, SEGMENTS, PER_LOAD, QUAD, BITS)
                # Beyond k: nothing for the integer sums, else words whose codes all mean zero.
                tile = load_words(
                    words_ptr, weight_row, word, plane, K, BITS, ENCODING, not CHECKSUM, WHOLE
                )
                words += tiles.split(tile, PER_LOAD * tiles.width(BITS, plane) // 32)
            if CHECKSUM:
                if STAGE == "stream":
                    checksum += tiles.sum_of_words(words)
                else:
                    checksum += tiles.sum_of_codes(words, BITS)
            else:
                for k2 in tl.static_range(0, PER_LOAD, CHUNK):
                    # Load the activations, 16 bytes per lane and row of x, and multiply.
                    if HALF2 and STAGE != "scale":
                        column = (k0 + k1 + k2 + four_start) // 2 + four % 4
                        pairs_ptr = x_ptr.to(tl.pointer_type(tl.int32), bitcast=True)
                        address = pairs_ptr + x_row[:, None] * (K // 2) + column[None, :]
                        x = load(address, (column < K // 2)[None, :], 0, WHOLE)
                        x = tiles.split4(tl.reshape(x, [BLOCK_B, SEGMENTS, 4]))
                    elif STAGE != "scale":
                        column = k0 + k1 + k2 + eight_start + eight % 8
                        address = x_ptr + x_row[:, None] * K + column[None, :]
                        x = load(address, (column < K)[None, :], 0.0, WHOLE)
                        x = tiles.split8(tl.reshape(x, [BLOCK_B, SEGMENTS, 8]))
                    for i in tl.static_range(0, CHUNK, 2 if HALF2 else 1):
                        if STAGE == "bypass":
                            value = words[tiles.word_of_pair(k2 + i, BITS, len(words))]
                        if HALF2:
                            if STAGE != "bypass":
                                value = tuned.pair(
                                    words, (k2 + i) // 2, known, BITS, ENCODING, HAS_FP8
                                )
                            factor = ONES if STAGE == "scale" else x[i // 2][:, None, :]
                            part = tuned.multiply_add(value[None, :, :], factor, part)
                        else:
                            if STAGE == "bypass":
                                value = value.to(tl.float32, bitcast=True)
                            elif TUNED:
                                value = tuned.number(words, k2 + i, known, BITS, ENCODING, HAS_FP8)
                            else:
                                value = tiles.number(words, k2 + i, known, BITS, ENCODING)
                            if STAGE == "scale":
                                part += value[None, :, :]
                            else:
                                factor = x[i].to(tl.float32)
                                part += value[None, :, :] * factor[:, None, :]
                    # Scale what shares a scale, or as much as fp16 may sum up.
                    if (n_load * PER_LOAD + k2 + CHUNK) % SPAN == 0:
                        if HALF2:
                            even, odd = tuned.widen(part)
                            part = even + odd
                        scale = scales[(n_load * PER_LOAD + k2) // GROUP_SIZE if SCALES > 1 else 0]
                        if STAGE == "bypass":
                            scale = tiles.keep_zero(scale, zero, HAS_ZERO)
                        y += part * scale.to(tl.float32)[None, :, :]
                        part = tl.zeros(
                            [BLOCK_B, BLOCK_N, SEGMENTS], tl.int32 if HALF2 else tl.float32
                        )

    if CHECKSUM:
        tl.store(out_ptr + row, tl.sum(checksum, axis=1), mask=row < N)
    else:
        inside = (batch < BATCH)[:, None] & (row < N)[None, :]
        address = out_ptr + batch[:, None] * N + row[None, :]
        total = tl.sum(y, axis=2) * (1.0 / UNIT)
        tl.store(address, total.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def segment_words(
    k,
    plane: tl.constexpr,
    SEGMENTS: tl.constexpr,
    PER_LOAD: tl.constexpr,
    QUAD: tl.constexpr,
    BITS: tl.constexpr,
):
    """Which words of a plane SEGMENTS lanes load, those of a lane side by side: [SEGMENTS * parts]."""
    PER_WORD: tl.constexpr = 32 // tiles.width(BITS, plane)
    PARTS: tl.constexpr = PER_LOAD // PER_WORD
    part = tl.arange(0, SEGMENTS * PARTS)
    return (k + tiles.segment_start(part // PARTS, PER_LOAD, QUAD)) // PER_WORD + part % PARTS


@triton.constexpr_function
def span(segment, group_size, per_row, half2):
    """Weights of a lane that are summed up before they are scaled: 16 pairs at most in fp16."""
    weights = segment if per_row else min(segment, group_size)
    return min(weights, FP16_CHAIN * 2) if half2 else weights


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

    def block_k(self, weight_format: WeightFormat) -> int:
        """Weights of one row that a program reads per step."""
        per_load = int(WORDS_PER_LOAD.value) * weight_format.weights_per_word
        return self.num_warps * WARP_LANES * loads_per_segment(weight_format) * per_load


def loads_per_segment(weight_format: WeightFormat) -> int:
    """How many loads make up a segment: 32 weights, if all of a quad's 128 share a scale."""
    return 2 if weight_format.bits == 8 and (weight_format.group_size or 128) % 128 == 0 else 1


def default_config(
    weight_format: WeightFormat,
    k: int,
    batch: int,
    tuned: bool = False,
    capability: int = 80,
) -> Config:
    """Conservative and untuned: chosen by counting instructions and registers, never by timing.

    Fewer rows per program where the batch needs the registers, or where a load of 16 bytes holds many
    weights. As many warps as a step of 2048 weights needs, 2 or 4; of loads that hold many weights between 1
    and 4, the number that wastes least of the last step along k.
    The assembler fills the registers it is given: under these caps `fused` and `bypass` at batch 1 run at
    the same occupancy, and neither spills. Only selects of NF4 and scales of FP4 that are quantized again need
    more than their `bypass`, and fewer rows.
    Left to itself it sometimes spills to reach a round number, which NO_CAP prevents. Codes of 1 and 3 bits
    spill all the same, in a few kernels that tests name: `unpack` at batch 1, whose caps are those that `fused`
    and `bypass` need, and at 9 to 16 rows of x, where all registers do not suffice. There 1, 2 and 4 rows, as
    many warps and caps from 224 to 255 were tried; these leave the least.
    """
    bits = weight_format.bits

    def padded(num_warps: int) -> int:
        block_k = Config(1, num_warps).block_k(weight_format)
        return -(-k // block_k) * block_k

    warps = (4, 2, 1)
    if weight_format.planes[0] >= 4:
        warps = (4, 2) if Config(1, 4).block_k(weight_format) <= STEP else (2,)
    cap = {4: 56, 5: 64, 6: 64}.get(bits, 72)
    if bits == 8 and loads_per_segment(weight_format) == 1:
        cap = 56 if tuned else 48
    if weight_format.zero_point:
        cap = 72  # at 56 bf16 spills on sm_100
    if weight_format.group_size == 16:
        cap = 64  # at 56 its bypass does
    rows = 4 if batch <= 4 else 2
    if not tuned and (weight_format.encoding == "nf4" or weight_format.scale_type == "nested"):
        cap, rows = 128, 2
    if bits == 1:
        cap = 96 if tuned else 48
        rows = 2 if tuned or batch <= 8 else 1  # with two, bypass spills
    if bits == 3:
        masked = min(map(padded, warps)) > k
        cap, rows = 64 if masked else 72, 1 if batch > 8 else 2  # with more, masks spill
    if capability in (100, 103):  # there the same programs need more
        if bits < 8 and tuned == (weight_format.encoding in ("nf4", "fp4")):
            rows = min(rows, 2)  # with more rows they spill under nearly any cap
            if cap == 56 and not tuned:
                cap = 48  # what two rows of bypass need
        if bits in (1, 3, 7) and not tuned:
            cap = 80
        if weight_format.group_size == 16 and not tuned:
            cap = 72
        if bits == 2 and batch > 8:
            rows = 1  # with two, fused spills
    if capability >= 100 and bits == 8 and not weight_format.group_size:
        cap = 80  # at 72 its bypass spills
    if capability == 120 and bits == 6 and tuned:
        cap = 80  # at 56 to 72 one of its formats does
    return Config(
        block_n=rows,
        num_warps=min(warps, key=padded),
        max_registers=NO_CAP if batch > 1 else cap,
    )


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
        tuned: whether to take the tile functions in inline PTX.
        capability: compute capability times ten; what every later one can do as well.
    """
    config = config or default_config(weight_format, k, batch, tuned, capability)
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
        "BLOCK_B": triton.next_power_of_2(batch) if arm in PRODUCTS else 1,
        "BLOCK_N": config.block_n,
        "BLOCK_K": config.block_k(weight_format),
        "LOADS": loads_per_segment(weight_format),
    }
    return Plan(
        fn=gemv_kernel,
        signature=packed_signature(weight_format, activation, arm),
        constexprs=constexprs,
        options=compile_options(config.num_warps, 1, config.max_registers),
        grid=(triton.cdiv(n, config.block_n),),
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
    check_batch("gemv", batch, BATCHES)
    capability = capability_of(x)
    launch_plan = plan(arm, weight_format, activation, n, k, batch, config, tuned, capability)
    return launch_plan.launch(*packed_arguments(tensors), x, out, k)

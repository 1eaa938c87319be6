"""The arm `lowp` in Triton: y[B, n] = xq[B, k] . Wq[n, k]^T with both operands as tensor cores take them.

What is multiplied, and why each product has two rows, is said in kernels/lowp.py. Here are three kernels:

    quantize_kernel   one program per row of x: its scale, or those of its blocks, then its codes
    rowwise_kernel    int8 or e4m3 with one scale per row of W and per token: `tl.dot`, scales at the end
    blockwise_kernel  e2m1 or e4m3 with a scale per block: `tl.dot_scaled`, which applies the scales

W is the left operand, as in gemm.py. Where a GPU lacks an instruction Triton emulates it by converting the
operands to 16 bits: that is dequantization, so `bind` refuses there and says what the instruction needs. It
looks at the compiled PTX too, because Triton does the same to tiles that are too small (`least_rows`).

    int8                  mma of int8              sm_80 and later
    e4m3                  mma of e4m3              sm_89 and later
    block-scaled          mma ... block_scale      sm_100 and later

Sums of e4m3 products: on sm_90 the tensor core itself adds with fewer bits than fp32; after every 128 products
they are moved to an fp32 register (as DeepSeek-V3 does, arXiv 2412.19437, section 3.3.2).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl

from kernels import lowp
from kernels.codebooks import full_scale, largest_exponent
from kernels.formats import find_format
from kernels.kernel import Kernel, UnsupportedError
from kernels.packing import scale_dtype
from kernels.scales import MATRIX_SCALE_SMALLEST
from kernels.triton import gemm
from kernels.triton.memory import load
from kernels.triton.plan import (
    ACTIVATIONS,
    TORCH_DTYPES,
    Plan,
    capability_of,
    check,
    check_activations,
    check_batch,
    compile_options,
)
from kernels.triton.tiles import INTERPRETED

if TYPE_CHECKING:
    from kernels.formats import WeightFormat
    from kernels.kernel import Launch, Tensors

BATCHES = (1, 256)
CAPABILITIES = {"int8-ch": 80, "fp8_e4m3-ch": 89, "mxfp8_e4m3": 100, "mxfp4": 100, "nvfp4": 100}
INSTRUCTIONS = {  # in PTX: mma.sync and wgmma name the types of their operands, tcgen05 a kind
    "int8-ch": r"mma\S*(\.s8\.s8|kind::i8)",
    "fp8_e4m3-ch": r"mma\S*(\.e4m3\.e4m3|kind::f8f6f4)",
    "mxfp8_e4m3": r"mma\S*block_scale",
    "mxfp4": r"mma\S*block_scale",
    "nvfp4": r"mma\S*block_scale",
}
ROUND = tl.constexpr(12582912.0)  # 1.5 * 2^23: adding it rounds an fp32 to an integer, ties to even


SMALLEST = tl.constexpr(float(MATRIX_SCALE_SMALLEST))  # of a token whose numbers are all zero


@triton.jit
def e2m1_codes(steps):
    """Codes of the nearest e2m1 numbers, ties to even: int32 tile of 0 to 15."""
    size = tl.abs(steps)
    code = (size > 0.25).to(tl.int32) + (size >= 0.75).to(tl.int32) + (size > 1.25).to(tl.int32)
    code += (size >= 1.75).to(tl.int32) + (size > 2.5).to(tl.int32) + (size >= 3.5).to(tl.int32)
    code += (size > 5.0).to(tl.int32)
    sign = (steps.to(tl.int32, bitcast=True) >> 31) & 1  # of zero too
    return code | sign << 3


@triton.jit
def e4m3_codes(steps):
    """Codes of the nearest e4m3 numbers, ties to even, saturated: uint8 tile.

    Triton's interpreter converts to FP8 wrongly, so there bits are rounded in place.
    """
    limited = tl.minimum(tl.maximum(steps, -448.0), 448.0)
    if INTERPRETED:
        bits = tl.abs(limited).to(tl.int32, bitcast=True)
        normal = ((bits + 0x7FFFF + ((bits >> 20) & 1)) >> 20) - (120 << 3)
        subnormal = ((tl.abs(limited) * 512.0 + ROUND) - ROUND).to(tl.int32)
        code = tl.where(tl.abs(limited) < 0.015625, subnormal, normal)
        sign = (limited.to(tl.int32, bitcast=True) >> 31) & 1
        return (code | sign << 7).to(tl.uint8)
    else:
        return limited.to(tl.float8e4nv).to(tl.uint8, bitcast=True)


@triton.jit
def quantize_kernel(
    x_ptr,  # fp16 or bf16 [BATCH, K]
    codes_ptr,  # uint8 [BATCH, K * BITS / 8]
    scales_ptr,  # fp32 [BATCH, 1], or uint8 [BATCH, K / GROUP_SIZE]
    token_scales_ptr,  # fp32 [BATCH], or None
    K: tl.constexpr,
    ENCODING: tl.constexpr,
    SCALE: tl.constexpr,
    GROUP_SIZE: tl.constexpr,
    LARGEST: tl.constexpr,
    EXPONENT: tl.constexpr,
    ROW: tl.constexpr,
):
    """One program owns a whole row of x, in registers: ROW is K to the next power of two."""
    row = tl.program_id(0)
    column = tl.arange(0, ROW)
    x = tl.load(x_ptr + row * K + column, mask=column < K, other=0.0).to(tl.float32)
    if SCALE == "fp32":
        largest = tl.max(tl.abs(x), axis=0)
        scale = tl.div_rn(largest, LARGEST)
        tl.store(scales_ptr + row, scale)
        steps = tl.div_rn(x, tl.where(scale > 0, scale, 1.0))
    else:
        GROUPS: tl.constexpr = K // GROUP_SIZE
        x = tl.reshape(x, [ROW // GROUP_SIZE, GROUP_SIZE])
        largest = tl.max(tl.abs(x), axis=1)
        if SCALE == "e8m0":
            exponent = (largest.to(tl.int32, bitcast=True) >> 23) - EXPONENT
            code = tl.where(largest > 0, tl.minimum(tl.maximum(exponent, 1), 254), 0)
            inverse = ((254 - code) << 23).to(tl.float32, bitcast=True)
            steps = x * inverse[:, None]
            stored = code.to(tl.uint8)
        else:
            of_token = tl.div_rn(tl.max(largest, axis=0), LARGEST * 448.0)
            of_token = tl.maximum(of_token, SMALLEST)
            tl.store(token_scales_ptr + row, of_token)
            ratio = tl.div_rn(tl.div_rn(largest, LARGEST), of_token + tl.zeros_like(largest))
            stored = e4m3_codes(tl.maximum(ratio, 0.015625))  # 2^-6, the smallest normal e4m3
            scale = stored.to(tl.float8e4nv, bitcast=True).to(tl.float32) * of_token
            steps = tl.div_rn(x, scale[:, None] + tl.zeros_like(x))
        group = tl.arange(0, ROW // GROUP_SIZE)
        tl.store(scales_ptr + row * GROUPS + group, stored, mask=group < GROUPS)

    if ENCODING == "e2m1":
        low, high = tl.split(tl.reshape(e2m1_codes(steps), [ROW // 2, 2]))
        column = tl.arange(0, ROW // 2)
        codes = (low | high << 4).to(tl.uint8)
        tl.store(codes_ptr + row * (K // 2) + column, codes, mask=column < K // 2)
    else:
        if ENCODING == "int":
            codes = ((steps + ROUND) - ROUND).to(tl.int32).to(tl.int8).to(tl.uint8, bitcast=True)
        else:
            codes = e4m3_codes(steps)
        codes = tl.reshape(codes, [ROW])
        tl.store(codes_ptr + row * K + column, codes, mask=column < K)


@triton.jit
def rowwise_kernel(
    codes_ptr,  # uint8 [N, K]
    scales_ptr,  # fp16, bf16 or fp32 [N, 1]
    x_ptr,  # uint8 [BATCH, K]
    x_scales_ptr,  # fp32 [BATCH, 1]
    out_ptr,  # activation dtype [BATCH, N]
    k_end,  # K again, but known only at run time: see plan.py
    N: tl.constexpr,
    K: tl.constexpr,
    BATCH: tl.constexpr,
    ENCODING: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    NUM_STAGES: tl.constexpr,
):
    """One program owns BLOCK_N rows of W (the left operand) and BLOCK_B rows of x."""
    WHOLE: tl.constexpr = K % BLOCK_K == 0
    operand: tl.constexpr = tl.int8 if ENCODING == "int" else tl.float8e4nv
    sum_type: tl.constexpr = tl.int32 if ENCODING == "int" else tl.float32
    row = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    weight_row = tl.minimum(row, N - 1)
    batch = tl.program_id(1) * BLOCK_B + tl.arange(0, BLOCK_B)
    x_row = tl.minimum(batch, BATCH - 1)

    y = tl.zeros([BLOCK_N, BLOCK_B], sum_type)
    for k0 in tl.range(0, K if INTERPRETED else k_end, BLOCK_K, num_stages=NUM_STAGES):
        column = k0 + tl.arange(0, BLOCK_K)
        inside = (column < K)[None, :]
        w = load(codes_ptr + weight_row[:, None] * K + column[None, :], inside, 0, WHOLE)
        x = load(x_ptr + x_row[:, None] * K + column[None, :], inside, 0, WHOLE)
        w, x = w.to(operand, bitcast=True), x.to(operand, bitcast=True)
        y = tl.dot(w, x.T, y, max_num_imprecise_acc=128, out_dtype=sum_type)

    scale = tl.load(scales_ptr + weight_row).to(tl.float32)[:, None]
    x_scale = tl.load(x_scales_ptr + x_row)[None, :]
    inside = (batch < BATCH)[None, :] & (row < N)[:, None]
    address = out_ptr + batch[None, :] * N + row[:, None]
    tl.store(address, (y.to(tl.float32) * scale * x_scale).to(out_ptr.dtype.element_ty), inside)


@triton.jit
def blockwise_kernel(
    codes_ptr,  # uint8 [N, K / PER_BYTE]
    scales_ptr,  # uint8 [N, K / GROUP_SIZE]
    matrix_scale_ptr,  # fp32 [1], or None
    x_ptr,  # uint8 [BATCH, K / PER_BYTE]
    x_scales_ptr,  # uint8 [BATCH, K / GROUP_SIZE]
    token_scales_ptr,  # fp32 [BATCH], or None
    out_ptr,  # activation dtype [BATCH, N]
    k_end,  # K again, but known only at run time: see plan.py
    N: tl.constexpr,
    K: tl.constexpr,
    BATCH: tl.constexpr,
    ENCODING: tl.constexpr,
    SCALE: tl.constexpr,
    GROUP_SIZE: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    NUM_STAGES: tl.constexpr,
):
    """One program owns BLOCK_N rows of W (the left operand) and BLOCK_B rows of x."""
    PER_BYTE: tl.constexpr = 2 if ENCODING == "e2m1" else 1
    BYTES: tl.constexpr = K // PER_BYTE
    GROUPS: tl.constexpr = K // GROUP_SIZE
    WHOLE: tl.constexpr = K % BLOCK_K == 0
    row = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    weight_row = tl.minimum(row, N - 1)
    batch = tl.program_id(1) * BLOCK_B + tl.arange(0, BLOCK_B)
    x_row = tl.minimum(batch, BATCH - 1)

    y = tl.zeros([BLOCK_N, BLOCK_B], tl.float32)
    for k0 in tl.range(0, K if INTERPRETED else k_end, BLOCK_K, num_stages=NUM_STAGES):
        column = k0 // PER_BYTE + tl.arange(0, BLOCK_K // PER_BYTE)
        inside = (column < BYTES)[None, :]
        w = load(codes_ptr + weight_row[:, None] * BYTES + column[None, :], inside, 0, WHOLE)
        x = load(x_ptr + x_row[:, None] * BYTES + column[None, :], inside, 0, WHOLE)
        group = k0 // GROUP_SIZE + tl.arange(0, BLOCK_K // GROUP_SIZE)
        inside = (group < GROUPS)[None, :]
        scale = load(scales_ptr + weight_row[:, None] * GROUPS + group[None, :], inside, 0, WHOLE)
        x_scale = load(x_scales_ptr + x_row[:, None] * GROUPS + group[None, :], inside, 0, WHOLE)
        if SCALE == "e4m3":
            scale = scale.to(tl.float8e4nv, bitcast=True)
            x_scale = x_scale.to(tl.float8e4nv, bitcast=True)
        y = tl.dot_scaled(w, scale, ENCODING, x.T, x_scale, ENCODING, y)

    if SCALE == "e4m3":
        y *= tl.load(matrix_scale_ptr) * tl.load(token_scales_ptr + x_row)[None, :]
    inside = (batch < BATCH)[None, :] & (row < N)[:, None]
    address = out_ptr + batch[None, :] * N + row[:, None]
    tl.store(address, y.to(out_ptr.dtype.element_ty), inside)


@dataclass(frozen=True)
class Quantized:
    """Buffers for quantized activations on a device: see `lowp.Activations`."""

    codes: torch.Tensor
    scales: torch.Tensor
    token_scales: torch.Tensor | None


def blockwise(weight_format: WeightFormat) -> bool:
    """Whether scales belong to blocks of k, so that tensor cores must apply them."""
    return weight_format.group_size is not None


def least_rows(weight_format: WeightFormat, capability: int) -> int:
    """Rows of W that a tile needs, or Triton converts its operands and multiplies 16-bit numbers instead.

    Of sm_90 and later Triton knows FP8 only in instructions of a whole warp group, with 64 rows; of sm_100
    block scales only in tiles of 128.
    """
    if blockwise(weight_format) and capability < 120:
        return 128
    return 64 if weight_format.encoding == "e4m3" and 90 <= capability < 120 else 16


def default_config(weight_format: WeightFormat, batch: int, capability: int) -> gemm.Config:
    """Conservative and untuned: 128 bytes of a row per step, as few rows as fill the instruction."""
    block_b = min(max(16, triton.next_power_of_2(batch)), 64)
    block_n = max(32 if batch <= 16 else 64, least_rows(weight_format, capability))
    block_k = 128 * 8 // weight_format.bits
    stages = 3 if blockwise(weight_format) else 5
    return gemm.Config(block_b, block_n, block_k, num_warps=4, num_stages=stages)


def plan(
    weight_format: WeightFormat,
    activation: str,
    n: int,
    k: int,
    batch: int,
    config: gemm.Config | None = None,
    capability: int = 100,
) -> Plan:
    """The product: what `bind` launches and what the ahead-of-time compiler compiles.

    Raises:
        UnsupportedError: tensor cores of this capability take no such operands.
        ValueError: the configuration's tile is too small for their instructions.
    """
    needed = CAPABILITIES[weight_format.name]
    if capability < needed:
        raise UnsupportedError(
            f"tensor cores that take {weight_format.name} operands need compute capability "
            f"{needed / 10}, and this GPU has {capability / 10}: Triton would convert them to 16 bits "
            f"first, which is dequantization"
        )
    config = config or default_config(weight_format, batch, capability)
    least = least_rows(weight_format, capability)
    if config.block_n < least:
        raise ValueError(
            f"lowp takes tiles of {least} rows of {weight_format.name} on compute capability "
            f"{capability / 10}, not of {config.block_n}: smaller ones are multiplied in 16 bits."
        )
    constexprs: dict[str, object] = {
        "N": n,
        "K": k,
        "BATCH": batch,
        "ENCODING": weight_format.encoding,
        "BLOCK_B": config.block_b,
        "BLOCK_N": config.block_n,
        "BLOCK_K": config.block_k,
        "NUM_STAGES": config.num_stages,
    }
    pointer = f"*{activation}"
    if blockwise(weight_format):
        second = "*fp32" if weight_format.scale_type == "e4m3" else None
        signature: dict[str, str | None] = {
            "codes_ptr": "*u8",
            "scales_ptr": "*u8",
            "matrix_scale_ptr": second,
            "x_ptr": "*u8",
            "x_scales_ptr": "*u8",
            "token_scales_ptr": second,
            "out_ptr": pointer,
            "k_end": "i32",
        }
        constexprs |= {"SCALE": weight_format.scale_type, "GROUP_SIZE": weight_format.group_size}
    else:
        stored = scale_dtype(weight_format, activation)  # type: ignore[arg-type]
        signature = {
            "codes_ptr": "*u8",
            "scales_ptr": f"*{stored}",
            "x_ptr": "*u8",
            "x_scales_ptr": "*fp32",
            "out_ptr": pointer,
            "k_end": "i32",
        }
    return Plan(
        fn=blockwise_kernel if blockwise(weight_format) else rowwise_kernel,
        signature=signature,
        constexprs=constexprs,
        options=compile_options(config.num_warps, config.num_stages, config.max_registers),
        grid=(triton.cdiv(n, config.block_n), triton.cdiv(batch, config.block_b)),
    )


def plan_quantize(weight_format: WeightFormat, activation: str, k: int, batch: int) -> Plan:
    """The quantization of x, a launch of its own."""
    coded = blockwise(weight_format)
    integer = weight_format.encoding == "int"
    row = triton.next_power_of_2(k)
    return Plan(
        fn=quantize_kernel,
        signature={
            "x_ptr": f"*{activation}",
            "codes_ptr": "*u8",
            "scales_ptr": "*u8" if coded else "*fp32",
            "token_scales_ptr": "*fp32" if weight_format.scale_type == "e4m3" else None,
        },
        constexprs={
            "K": k,
            "ENCODING": weight_format.encoding,
            "SCALE": weight_format.scale_type if coded else "fp32",
            "GROUP_SIZE": weight_format.group_size or k,
            "LARGEST": 127.0 if integer else full_scale(weight_format.encoding),
            "EXPONENT": 0 if integer else largest_exponent(weight_format.encoding),
            "ROW": row,
        },
        options=compile_options(min(max(row // 512, 4), 32), 1),
        grid=(batch,),
    )


def quantized_buffers(
    weight_format: WeightFormat, x: torch.Tensor, codes: torch.Tensor | None = None
) -> Quantized:
    """Uninitialised buffers for quantized x [batch, k], on its device; `codes`, where given, is one."""
    batch, k = x.shape
    if codes is None:
        codes = torch.empty(batch, k * weight_format.bits // 8, dtype=torch.uint8, device=x.device)
    coded = blockwise(weight_format)
    dtype = torch.uint8 if coded else torch.float32
    scales = torch.empty(batch, weight_format.groups(k), dtype=dtype, device=x.device)
    second = weight_format.scale_type == "e4m3"
    tokens = torch.empty(batch, dtype=torch.float32, device=x.device) if second else None
    return Quantized(codes, scales, tokens)


def bind_quantize(
    weight_format: WeightFormat, x: torch.Tensor, codes: torch.Tensor | None = None
) -> tuple[Launch, Quantized]:
    """The launch that quantizes x [batch, k], and where it writes: to `codes`, or to a new tensor.

    Raises:
        ValueError: x is no matrix of 16-bit numbers.
    """
    activation, batch, k = check_activations(x)
    check("x", x, (batch, k), x.dtype, x.device)
    to = quantized_buffers(weight_format, x, codes)
    check("codes of x", to.codes, (batch, k * weight_format.bits // 8), torch.uint8, x.device)
    quantize = plan_quantize(weight_format, activation, k, batch)
    return quantize.launch(x, to.codes, to.scales, to.token_scales), to


def takes_operands(weight_format: WeightFormat, ptx: str) -> bool:
    """Whether a compiled product hands the tensor cores operands of the format, not converted ones."""
    return re.search(INSTRUCTIONS[weight_format.name], ptx) is not None


def bind(
    format_name: str,
    tensors: Tensors,
    x: torch.Tensor,
    out: torch.Tensor,
    config: gemm.Config | None = None,
    quantizes: bool = False,
) -> Launch:
    """Check the arguments and run once; x is quantized here, and again in every launch if `quantizes`.

    Args:
        format_name: of weights and activations.
        tensors: `lowp.pack` on the device of x.
        x: activations [batch, k], fp16 or bf16.
        out: [batch, n] in the dtype of x.
        config: how to cut the product; None for the default.
        quantizes: whether the launch quantizes x before it multiplies.

    Raises:
        ValueError: an argument does not fit; the message says what would.
        UnsupportedError: the GPU has no such tensor cores.
    """
    weight_format = find_format(format_name)
    activation, batch, k = check_activations(x)
    check_batch("lowp", batch, BATCHES)
    n = tensors["codes"].shape[0]
    stored = "u8" if blockwise(weight_format) else scale_dtype(weight_format, activation)
    dtype = torch.uint8 if stored == "u8" else TORCH_DTYPES[stored]
    check("codes", tensors["codes"], (n, k * weight_format.bits // 8), torch.uint8, x.device)
    check("scales", tensors["scales"], (n, weight_format.groups(k)), dtype, x.device)
    check("out", out, (batch, n), x.dtype, x.device)
    on_gpu = x.device.type == "cuda"  # interpreted, there are no tensor cores
    capability = capability_of(x) if on_gpu else CAPABILITIES[format_name]
    cut = plan(weight_format, activation, n, k, batch, config, capability)
    quantize, to = bind_quantize(weight_format, x)
    quantize()
    values: tuple[torch.Tensor | int | None, ...]
    values = (tensors["codes"], tensors["scales"], to.codes, to.scales, out, k)
    if blockwise(weight_format):
        second = tensors.get("matrix_scale")
        values = (*values[:2], second, *values[2:4], to.token_scales, out, k)
    product: Any = cut.launch(*values)
    compiled = product()
    if compiled is not None and not takes_operands(weight_format, compiled.asm["ptx"]):
        raise UnsupportedError(
            f"this version of Triton converts {weight_format.name} operands to 16 bits first on this "
            f"GPU, which is dequantization"
        )
    return lowp.in_turn(quantize, product) if quantizes else product


def _kernels(format_name: str) -> tuple[Kernel, Kernel]:
    """The product alone, and with the quantization of x before it."""
    product = Kernel(
        arm="lowp",
        implementation="triton",
        device="cuda",
        formats=(format_name,),
        activations=ACTIVATIONS,
        batches=BATCHES,
        pack=lowp.pack,
        bind=partial(bind, format_name),
        variant="dot-scaled" if blockwise(find_format(format_name)) else "dot",
        tolerance=lowp.TOLERANCE,
        least_capability=CAPABILITIES[format_name],
    )
    whole = partial(bind, format_name, quantizes=True)
    return product, replace(product, implementation="triton+triton", bind=whole)


KERNELS = tuple(kernel for name in CAPABILITIES for kernel in _kernels(name))

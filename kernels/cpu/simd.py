"""Sixteen-lane vectors for Numba: explicit SIMD, so that a kernel's machine code is what its source says.

Numba's vectorizer decides for itself which loop becomes a vector loop, and a kernel whose stages are
compared must not depend on that decision. The types here map onto LLVM's `<16 x float>` and `<16 x i32>`:
one zmm register with AVX-512, two ymm registers with AVX2, four q registers on Arm. Written this way
LLVM also uses 512-bit registers where its own cost model would prefer 256 bits.

    words = load_i32(packed, i)               16 packed words from a contiguous uint32 / int32 array
    codes = and_(shift_right(words, 4), 15)
    total = fma(to_f32(codes), load_f32(x, j), total)

Array indices are in elements and are not bounds-checked: the launchers check shapes once.

Numba has no 16-bit floats on a CPU, so they lie in uint16 arrays, and a compile-time constant, BF16 or FP16,
says which they are. bf16 is widened by a shift, fp16 by LLVM's `fpext`: an instruction on Arm, and with F16C,
which x86 processors have had since 2012. Without F16C LLVM would call a function that nobody links: fp16 rows
then say "not on this device" (`converts_fp16`). Both are rounded to nearest even; fp16 becomes infinite from
65520 on, half a step past 65504, the largest, as IEEE 754 and PyTorch have it.
"""

from __future__ import annotations

import platform

import numba
from llvmlite import ir
from llvmlite.binding import get_host_cpu_features
from numba import types
from numba.core import cgutils
from numba.core.datamodel import models
from numba.extending import intrinsic, register_model

LANES = 16
BF16, FP16 = range(2)

_F32 = ir.VectorType(ir.FloatType(), LANES)
_I32 = ir.VectorType(ir.IntType(32), LANES)
_I16 = ir.VectorType(ir.IntType(16), LANES)
ROWS = (
    8  # rows of the register tile: 8 x 2 accumulators of 16 lanes, of the 32 registers of AVX-512
)


class _Vector(types.Type):
    def __init__(self, name: str, llvm: ir.VectorType) -> None:
        self.llvm = llvm
        super().__init__(name=name)


@register_model(_Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, dmm, fe_type):
        super().__init__(dmm, fe_type, fe_type.llvm)


f32x16 = _Vector("f32x16", _F32)
i32x16 = _Vector("i32x16", _I32)


def converts_fp16() -> bool:
    """Whether the processor that Numba compiles for has instructions between fp16 and float32."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return True
    if numba.config.CPU_FEATURES is not None:  # NUMBA_CPU_FEATURES; "" for NUMBA_CPU_NAME=generic
        return "+f16c" in numba.config.CPU_FEATURES
    return bool(get_host_cpu_features().get("f16c"))


def _pointer(context, builder, array_type, array, index, element):
    """Address of array.data[index] as a pointer to `element`."""
    data = context.make_array(array_type)(context, builder, array).data
    at = builder.gep(data, [index])
    return builder.bitcast(at, element.as_pointer())


def _constant(value):
    return ir.Constant(_I32, [value] * LANES)


def _splat(builder, scalar, vector):
    one = builder.insert_element(ir.Constant(vector, ir.Undefined), scalar, ir.IntType(32)(0))
    zeros = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
    return builder.shuffle_vector(one, ir.Constant(vector, ir.Undefined), zeros)


def _loader(vector, result):
    @intrinsic
    def load(typingctx, array, index):
        def codegen(context, builder, signature, args):
            pointer = _pointer(context, builder, signature.args[0], args[0], args[1], vector)
            return builder.load(pointer, align=signature.args[0].dtype.bitwidth // 8)

        return result(array, types.intp), codegen

    return load


load_f32 = _loader(_F32, f32x16)
load_f32.__doc__ = "load_f32(array, index) -> f32x16 from a contiguous float32 array."
load_i32 = _loader(_I32, i32x16)
load_i32.__doc__ = "load_i32(array, index) -> i32x16 from a contiguous 32-bit integer array."


def _like(value, element):
    """The type of `element`, in as many lanes as a value has."""
    vector = isinstance(value.type, ir.VectorType)
    return ir.VectorType(element, value.type.count) if vector else element


def _all(kind, number):
    """That number in every lane of a type."""
    return ir.Constant(kind, [number] * kind.count if isinstance(kind, ir.VectorType) else number)


def widened(builder, bits, half):
    """float32 of 16-bit floats, a number or a vector of them, whose bits are given."""
    wide = _like(bits, ir.FloatType())
    if half == FP16:
        return builder.fpext(builder.bitcast(bits, _like(bits, ir.HalfType())), wide)
    integer = _like(bits, ir.IntType(32))
    return builder.bitcast(builder.shl(builder.zext(bits, integer), _all(integer, 16)), wide)


def _narrowed(builder, value, half):
    """Bits of 16-bit floats, of float32 rounded to nearest even; of bf16 of finite ones only."""
    narrow, integer = _like(value, ir.IntType(16)), _like(value, ir.IntType(32))
    if half == FP16:
        return builder.bitcast(builder.fptrunc(value, _like(value, ir.HalfType())), narrow)
    bits, sixteen = builder.bitcast(value, integer), _all(integer, 16)
    odd = builder.and_(builder.lshr(bits, sixteen), _all(integer, 1))
    rounded = builder.add(builder.add(bits, odd), _all(integer, 0x7FFF))
    return builder.trunc(builder.lshr(rounded, sixteen), narrow)


@intrinsic(prefer_literal=True)
def load_half(typingctx, array, index, half):
    """load_half(uint16 array, index, half) -> f32x16: sixteen 16-bit floats, widened."""

    def codegen(context, builder, signature, args):
        pointer = _pointer(context, builder, signature.args[0], args[0], args[1], _I16)
        return widened(builder, builder.load(pointer, align=2), half.literal_value)

    return f32x16(array, types.intp, half), codegen


@intrinsic
def store_f32(typingctx, array, index, vector):
    """store_f32(array, index, vector) writes sixteen float32."""

    def codegen(context, builder, signature, args):
        pointer = _pointer(context, builder, signature.args[0], args[0], args[1], _F32)
        builder.store(args[2], pointer, align=4)
        return context.get_dummy_value()

    return types.void(array, types.intp, f32x16), codegen


@intrinsic
def store_i32(typingctx, array, index, vector):
    """store_i32(array, index, vector) writes sixteen 32-bit integers."""

    def codegen(context, builder, signature, args):
        pointer = _pointer(context, builder, signature.args[0], args[0], args[1], _I32)
        builder.store(args[2], pointer, align=4)
        return context.get_dummy_value()

    return types.void(array, types.intp, i32x16), codegen


@intrinsic(prefer_literal=True)
def half_bits(typingctx, vector, half):
    """half_bits(f32x16, half) -> i32x16: float32 rounded to 16-bit floats, in the low 16 bits."""

    def codegen(context, builder, signature, args):
        return builder.zext(_narrowed(builder, args[0], half.literal_value), _I32)

    return i32x16(f32x16, half), codegen


@intrinsic
def splat_f32(typingctx, scalar):
    """splat_f32(number) -> f32x16 with that number in every lane."""

    def codegen(context, builder, signature, args):
        return _splat(builder, args[0], _F32)

    return f32x16(types.float32), codegen


@intrinsic
def splat_i32(typingctx, scalar):
    """splat_i32(integer) -> i32x16 with that integer in every lane."""

    def codegen(context, builder, signature, args):
        return _splat(builder, args[0], _I32)

    return i32x16(types.int32), codegen


def _immediate(build):
    """An operation on an i32x16 and a compile-time or run-time integer."""

    @intrinsic
    def operation(typingctx, vector, amount):
        def codegen(context, builder, signature, args):
            return build(builder, args[0], _splat(builder, args[1], _I32))

        return i32x16(i32x16, types.int32), codegen

    return operation


shift_left = _immediate(lambda builder, vector, amount: builder.shl(vector, amount))
shift_right = _immediate(lambda builder, vector, amount: builder.lshr(vector, amount))
and_ = _immediate(lambda builder, vector, mask: builder.and_(vector, mask))


def _binary(build, vector):
    @intrinsic
    def operation(typingctx, a, b):
        def codegen(context, builder, signature, args):
            return build(builder, *args)

        return vector(vector, vector), codegen

    return operation


or_i32 = _binary(lambda builder, a, b: builder.or_(a, b), i32x16)
xor_i32 = _binary(lambda builder, a, b: builder.xor(a, b), i32x16)
add_i32 = _binary(lambda builder, a, b: builder.add(a, b), i32x16)
sub_i32 = _binary(lambda builder, a, b: builder.sub(a, b), i32x16)
add_f32 = _binary(lambda builder, a, b: builder.fadd(a, b), f32x16)
mul_f32 = _binary(lambda builder, a, b: builder.fmul(a, b), f32x16)


def _zip(first):
    """Lanes of a and b alternately, from lane `first` of each on."""
    lanes = [lane for i in range(first, first + LANES // 2) for lane in (i, LANES + i)]
    order = ir.Constant(ir.VectorType(ir.IntType(32), LANES), lanes)
    return _binary(lambda builder, a, b: builder.shuffle_vector(a, b, order), i32x16)


zip_low = _zip(0)
zip_high = _zip(LANES // 2)


@intrinsic
def to_f32(typingctx, vector):
    """to_f32(i32x16) -> f32x16, converting signed integers."""

    def codegen(context, builder, signature, args):
        return builder.sitofp(args[0], _F32)

    return f32x16(i32x16), codegen


@intrinsic
def as_f32(typingctx, vector):
    """as_f32(i32x16) -> f32x16, the same bits read as float32: free."""

    def codegen(context, builder, signature, args):
        return builder.bitcast(args[0], _F32)

    return f32x16(i32x16), codegen


@intrinsic
def as_i32(typingctx, vector):
    """as_i32(f32x16) -> i32x16, the same bits: free."""

    def codegen(context, builder, signature, args):
        return builder.bitcast(args[0], _I32)

    return i32x16(f32x16), codegen


@intrinsic
def fma(typingctx, a, b, c):
    """fma(a, b, c) -> a * b + c, rounded once."""

    def codegen(context, builder, signature, args):
        function = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(_F32, [_F32] * 3), "llvm.fma.v16f32"
        )
        return builder.call(function, args)

    return f32x16(f32x16, f32x16, f32x16), codegen


@intrinsic
def sum_f32(typingctx, vector):
    """sum_f32(f32x16) -> float32: the sum of the lanes, pairwise."""

    def codegen(context, builder, signature, args):
        return _tree(builder, args[0], builder.fadd)

    return types.float32(f32x16), codegen


@intrinsic
def sum_i32(typingctx, vector):
    """sum_i32(i32x16) -> int32: the sum of the lanes modulo 2^32."""

    def codegen(context, builder, signature, args):
        return _tree(builder, args[0], builder.add)

    return types.int32(i32x16), codegen


def _tree(builder, vector, add):
    """Add the upper half to the lower until one lane is left."""
    lanes = LANES
    while lanes > 1:
        lanes //= 2
        index = ir.VectorType(ir.IntType(32), lanes)
        low = builder.shuffle_vector(vector, vector, ir.Constant(index, list(range(lanes))))
        high = builder.shuffle_vector(
            vector, vector, ir.Constant(index, list(range(lanes, 2 * lanes)))
        )
        vector = add(low, high)
    return builder.extract_element(vector, ir.IntType(32)(0))


@intrinsic
def prefetch(typingctx, array, index):
    """prefetch(array, index) asks for the cache line of array[index]; harmless past the end."""

    def codegen(context, builder, signature, args):
        byte = ir.IntType(8).as_pointer()
        i32 = ir.IntType(32)
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        at = builder.bitcast(builder.gep(data, [args[1]]), byte)
        function = cgutils.get_or_insert_function(
            builder.module,
            ir.FunctionType(ir.VoidType(), [byte, i32, i32, i32]),
            "llvm.prefetch.p0",
        )
        builder.call(function, [at, i32(0), i32(3), i32(1)])
        return context.get_dummy_value()

    return types.void(array, types.intp), codegen


@intrinsic(prefer_literal=True)
def float_of_half(typingctx, bits, half):
    """float_of_half(uint16, half) -> float32: the number that the bits of a 16-bit float stand for."""

    def codegen(context, builder, signature, args):
        return widened(builder, args[0], half.literal_value)

    return types.float32(types.uint16, half), codegen


@intrinsic(prefer_literal=True)
def half_of_float(typingctx, value, half):
    """half_of_float(float32, half) -> uint16: the bits of the number rounded to a 16-bit float."""

    def codegen(context, builder, signature, args):
        return _narrowed(builder, args[0], half.literal_value)

    return types.uint16(types.float32, half), codegen


# ---- register tiles: ROWS vectors held as one value ---------------------------------------------------

_tile = types.UniTuple(f32x16, ROWS)


def _elements(builder, tile):
    return [builder.extract_value(tile, row) for row in range(ROWS)]


def _pack_tile(builder, vectors):
    tile = ir.Constant(ir.ArrayType(_F32, ROWS), ir.Undefined)
    for row, vector in enumerate(vectors):
        tile = builder.insert_value(tile, vector, row)
    return tile


@intrinsic
def load_tile(typingctx, array, index, stride):
    """load_tile(float32 array, index, stride) -> ROWS vectors, at index + row * stride."""

    def codegen(context, builder, signature, args):
        kind, pitch = signature.args[0], args[2]
        vectors = []
        for row in range(ROWS):
            at = builder.add(args[1], builder.mul(pitch, pitch.type(row)))
            vectors.append(
                builder.load(_pointer(context, builder, kind, args[0], at, _F32), align=4)
            )
        return _pack_tile(builder, vectors)

    return _tile(array, types.intp, types.intp), codegen


@intrinsic
def store_tile(typingctx, array, index, stride, tile):
    """store_tile(float32 array, index, stride, tile) writes row r at index + r * stride."""

    def codegen(context, builder, signature, args):
        kind, pitch = signature.args[0], args[2]
        for row, vector in enumerate(_elements(builder, args[3])):
            at = builder.add(args[1], builder.mul(pitch, pitch.type(row)))
            builder.store(vector, _pointer(context, builder, kind, args[0], at, _F32), align=4)
        return context.get_dummy_value()

    return types.void(array, types.intp, types.intp, _tile), codegen


@intrinsic
def fma_tile(typingctx, weights, index, stride, x, tile):
    """fma_tile(weights, index, stride, x, tile): tile[r] += weights[index + r * stride] * x."""

    def codegen(context, builder, signature, args):
        array, index, pitch, x, tile = args
        function = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(_F32, [_F32] * 3), "llvm.fma.v16f32"
        )
        vectors = []
        for row, vector in enumerate(_elements(builder, tile)):
            at = builder.add(index, builder.mul(pitch, pitch.type(row)))
            pointer = _pointer(context, builder, signature.args[0], array, at, ir.FloatType())
            weight = _splat(builder, builder.load(pointer), _F32)
            vectors.append(builder.call(function, [weight, x, vector]))
        return _pack_tile(builder, vectors)

    return _tile(weights, types.intp, types.intp, f32x16, _tile), codegen

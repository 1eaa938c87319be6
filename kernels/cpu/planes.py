"""From packed words to codes: the planes of sixteen lanes, one layout for every width.

A *vector of weights* is 128 of them, or 64 of eight bits. A lane has eight (four) neighbours of it, those of
one word of four (eight) bits. A plane of width 4 or 8 has sixteen words per vector, one for each lane; of a
narrower one several lanes share a word, and each lane's fields begin further up in it:

    width 2   words  0 0 1 1 ...  7 7      lane l: word l / 2, shifted right by 8 * (l % 2)
    width 1   words  0 0 0 0 ...  3 3      lane l: word l / 4, shifted right by 4 * (l % 4)

After that one field of all lanes lies at one place in every plane (packing.code_order), and takes the same
two instructions as in a format of four bits. `bits` must be a compile-time constant everywhere here.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from llvmlite import ir
from llvmlite.binding import get_host_cpu_features
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from kernels.codebooks import codebook
from kernels.cpu.simd import _F32, _I32, LANES, _constant, _pointer, f32x16, i32x16, widened
from kernels.formats import PLANES
from kernels.packing import words_of_pairs


def weights_of_lane(bits: int) -> int:
    """Neighbouring weights that one lane of a vector has: fields per lane."""
    return 4 if bits == 8 else 8


def words_of_plane(bits: int, width: int) -> int:
    """Words that a plane has per vector of weights."""
    return LANES * weights_of_lane(bits) * width // 32


def _order(lanes: Sequence[int]) -> ir.Constant:
    return ir.Constant(ir.VectorType(ir.IntType(32), len(lanes)), list(lanes))


def _load(context, builder, array_type, array, index, count, left=0):
    """<count x i32>: `count` neighbouring integers, widened with zeros to 32 bits and shifted left.

    One is widened and shifted as a scalar, before it reaches a vector register.
    """
    integer = ir.IntType(array_type.dtype.bitwidth)
    wide = ir.VectorType(ir.IntType(32), count)
    kind, target, shift = ir.VectorType(integer, count), wide, ir.Constant(wide, [left] * count)
    if count == 1:
        kind, target, shift = integer, wide.element, wide.element(left)
    pointer = _pointer(context, builder, array_type, array, index, kind)
    loaded = builder.load(pointer, align=integer.width // 8)
    if integer.width < 32:
        loaded = builder.zext(loaded, target)
    loaded = builder.shl(loaded, shift)
    if count > 1:
        return loaded
    return builder.insert_element(ir.Constant(wide, ir.Undefined), loaded, ir.IntType(32)(0))


def _spread(builder, vector, count):
    """Each of `count` elements in 16 / count neighbouring lanes."""
    undefined = ir.Constant(vector.type, ir.Undefined)
    lanes = [lane * count // LANES for lane in range(LANES)]
    return builder.shuffle_vector(vector, undefined, _order(lanes))


def _padded(builder, vector, count):
    """`count` elements in the first lanes, and zeros."""
    zeros = ir.Constant(vector.type, [0] * count)
    return builder.shuffle_vector(vector, zeros, _order([min(i, count) for i in range(LANES)]))


@intrinsic(prefer_literal=True)
def load_spread(typingctx, array, index, count, left):
    """load_spread(unsigned array, index, count, left) -> i32x16: elements << left, 16 / count lanes each."""
    shift, some = left.literal_value, count.literal_value

    def codegen(context, builder, signature, args):
        loaded = _load(context, builder, signature.args[0], args[0], args[1], some, shift)
        return _spread(builder, loaded, some)

    return i32x16(array, types.intp, count, left), codegen


@intrinsic(prefer_literal=True)
def load_halves(typingctx, array, index, count, half):
    """load_halves(uint16 array, index, count, half) -> f32x16: 16-bit floats, 16 / count lanes each.

    One is widened as a scalar, before it reaches a vector register.
    """
    some = count.literal_value

    def codegen(context, builder, signature, args):
        kind = ir.IntType(16) if some == 1 else ir.VectorType(ir.IntType(16), some)
        pointer = _pointer(context, builder, signature.args[0], args[0], args[1], kind)
        numbers = widened(builder, builder.load(pointer, align=2), half.literal_value)
        if some == 1:
            one = ir.Constant(ir.VectorType(ir.FloatType(), 1), ir.Undefined)
            numbers = builder.insert_element(one, numbers, ir.IntType(32)(0))
        return _spread(builder, numbers, some)

    return f32x16(array, types.intp, count, half), codegen


@intrinsic(prefer_literal=True)
def load_padded(typingctx, array, index, count):
    """load_padded(unsigned array, index, count) -> i32x16: `count` elements, zero in the other lanes."""

    def codegen(context, builder, signature, args):
        loaded = _load(context, builder, signature.args[0], args[0], args[1], count.literal_value)
        return _padded(builder, loaded, count.literal_value)

    return i32x16(array, types.intp, count), codegen


@intrinsic(prefer_literal=True)
def load_numbers(typingctx, table, codes, index, count):
    """load_numbers(float32 table, uint8 codes, index, count) -> f32x16: table[code] of codes, spread."""

    def codegen(context, builder, signature, args):
        some = count.literal_value
        loaded = _load(context, builder, signature.args[1], args[1], args[2], some)
        numbers = ir.Constant(ir.VectorType(ir.FloatType(), some), ir.Undefined)
        for i in range(some):
            code = builder.zext(builder.extract_element(loaded, ir.IntType(32)(i)), ir.IntType(64))
            pointer = _pointer(context, builder, signature.args[0], args[0], code, ir.FloatType())
            numbers = builder.insert_element(numbers, builder.load(pointer), ir.IntType(32)(i))
        return _spread(builder, numbers, some)

    return f32x16(table, codes, types.intp, count), codegen


@intrinsic(prefer_literal=True)
def load_planes(typingctx, words, row, vectors, vector, bits, ahead):
    """load_planes(words, row, vectors, vector, bits, ahead) -> an i32x16 for each plane.

    Word j of a plane's share of vector `vector` of the `vectors` of a row is in lane j; lanes past the last are
    zero. The lines `ahead` words further on are prefetched.
    """
    planes = PLANES[bits.literal_value]

    def codegen(context, builder, signature, args):
        array, row, vectors, vector, _, ahead = args
        kind, i32 = signature.args[0], ir.IntType(32)
        byte = ir.IntType(8).as_pointer()
        fetch = cgutils.get_or_insert_function(
            builder.module,
            ir.FunctionType(ir.VoidType(), [byte, i32, i32, i32]),
            "llvm.prefetch.p0",
        )
        counts = [words_of_plane(bits.literal_value, width) for width in planes]
        result = ir.Constant(ir.ArrayType(_I32, len(planes)), ir.Undefined)
        start = builder.mul(builder.mul(row, vectors), row.type(sum(counts)))
        for plane, count in enumerate(counts):
            at = builder.add(start, builder.mul(vector, row.type(count)))
            start = builder.add(start, builder.mul(vectors, row.type(count)))
            later = _pointer(context, builder, kind, array, builder.add(at, ahead), ir.IntType(8))
            builder.call(fetch, [later, i32(0), i32(3), i32(1)])
            loaded = _load(context, builder, kind, array, at, count)
            result = builder.insert_value(result, _padded(builder, loaded, count), plane)
        return result

    result = types.UniTuple(i32x16, len(planes))
    intp = types.intp
    return result(words, intp, intp, intp, bits, intp), codegen


@intrinsic
def add_planes(typingctx, total, planes):
    """add_planes(i32x16, planes) -> i32x16: the words of all planes added, lane by lane."""

    def codegen(context, builder, signature, args):
        total = args[0]
        for plane in range(planes.count):
            total = builder.add(total, builder.extract_value(args[1], plane))
        return total

    return i32x16(i32x16, planes), codegen


@intrinsic(prefer_literal=True)
def code_of(typingctx, planes, field, bits):
    """code_of(planes, field, bits) -> i32x16: the codes of sixteen weights, one field of each lane."""
    per_lane = weights_of_lane(bits.literal_value)

    def codegen(context, builder, signature, args):
        field, left, codes = args[1], bits.literal_value, None
        for plane, width in enumerate(PLANES[bits.literal_value]):
            left -= width
            words = _fields_aligned(builder, builder.extract_value(args[0], plane), width)
            half = per_lane // 2 if width < 8 else per_lane  # fields that lie side by side
            upper, within = (
                builder.udiv(field, field.type(half)),
                builder.urem(field, field.type(half)),
            )
            place = builder.add(
                builder.mul(upper, field.type(16)), builder.mul(within, field.type(width))
            )
            shifts = _splat_integer(builder, place)
            some = builder.and_(builder.lshr(words, shifts), _constant((1 << width) - 1))
            some = builder.shl(some, _constant(left))
            codes = some if codes is None else builder.or_(codes, some)
        return codes

    return i32x16(planes, types.intp, bits), codegen


def _splat_integer(builder, scalar):
    narrow = builder.trunc(scalar, ir.IntType(32))
    one = builder.insert_element(ir.Constant(_I32, ir.Undefined), narrow, ir.IntType(32)(0))
    return builder.shuffle_vector(one, ir.Constant(_I32, ir.Undefined), _order([0] * LANES))


def _fields_aligned(builder, words, width):
    """Every lane's own fields of a plane's words, the first at bit 0."""
    if width >= 4:
        return words
    sharing = 4 // width
    undefined = ir.Constant(_I32, ir.Undefined)
    spread = builder.shuffle_vector(
        words, undefined, _order([lane // sharing for lane in range(LANES)])
    )
    return builder.lshr(
        spread, ir.Constant(_I32, [4 // sharing * 4 * (lane % sharing) for lane in range(LANES)])
    )


@intrinsic(prefer_literal=True)
def bypass_of(typingctx, planes, field, bits):
    """bypass_of(planes, field, bits) -> f32x16: what packing.words_of_pairs names, read as float32.

    Free where a lane has a word of its own; of narrower planes, a shuffle for each pair of fields.
    """
    width, per_lane = PLANES[bits.literal_value][0], weights_of_lane(bits.literal_value)
    taken = words_of_pairs(LANES * per_lane, bits.literal_value).reshape(LANES, per_lane // 2)

    def codegen(context, builder, signature, args):
        low, high = _all_words(builder, args[0], bits.literal_value)
        field, chosen = args[1], None
        half = per_lane // 2
        pair = (
            builder.udiv(field, field.type(2))
            if width == 8
            else builder.urem(field, field.type(half))
        )
        for candidate in range(half):
            words = builder.shuffle_vector(low, high, _order(taken[:, candidate].tolist()))
            here = builder.icmp_unsigned("==", pair, field.type(candidate))
            chosen = words if chosen is None else builder.select(here, words, chosen)
        return builder.bitcast(chosen, _F32)

    return f32x16(planes, types.intp, bits), codegen


def _all_words(builder, planes, bits):
    """The words of a vector's planes one after another, in two vectors."""
    undefined = ir.Constant(_I32, ir.Undefined)
    vectors, filled = [undefined, undefined], 0
    for plane, width in enumerate(PLANES[bits]):
        count = words_of_plane(bits, width)
        at, vector = filled % LANES, filled // LANES
        lanes = list(range(LANES))
        lanes[at : at + count] = range(LANES, LANES + count)
        words = builder.extract_value(planes, plane)
        vectors[vector] = builder.shuffle_vector(vectors[vector], words, _order(lanes))
        filled += count
    return vectors


def _table(numbers: Sequence[float]):
    """An intrinsic that looks up 16 or 32 numbers by the low bits of each lane; bits above them are ignored."""

    @intrinsic
    def look_up(typingctx, codes):
        def codegen(context, builder, signature, args):
            if get_host_cpu_features().get("avx512f"):
                return _permuted(builder, numbers, args[0])
            return _selected(builder, numbers, args[0])

        return f32x16(i32x16), codegen

    return look_up


def _permuted(builder, numbers, codes):
    """One permutation of a table in one or two registers: AVX-512."""
    tables = [
        ir.Constant(_F32, list(numbers[i : i + LANES])) for i in range(0, len(numbers), LANES)
    ]
    name = "llvm.x86.avx512.permvar.sf.512"
    arguments = [tables[0], codes]
    if len(tables) == 2:
        name = "llvm.x86.avx512.vpermi2var.ps.512"
        arguments = [tables[0], codes, tables[1]]
    kinds = [argument.type for argument in arguments]
    function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(_F32, kinds), name)
    return builder.call(function, arguments)


def _selected(builder, numbers, codes):
    """A selection less than there are numbers."""
    levels = [ir.Constant(_F32, [number] * LANES) for number in numbers]
    bit = 1
    while len(levels) > 1:
        chosen = builder.icmp_unsigned("!=", builder.and_(codes, _constant(bit)), _constant(0))
        pairs = zip(levels[1::2], levels[::2], strict=True)
        levels = [builder.select(chosen, high, low) for high, low in pairs]
        bit *= 2
    return levels[0]


def _numbers(encoding) -> list[float]:
    return [float(number) for number in np.asarray(codebook(encoding))]


nf4_levels = _table(_numbers("nf4"))
fp4_levels = _table(_numbers("fp4"))
e2m1_numbers = _table(_numbers("e2m1"))
e2m3_magnitudes = _table(_numbers("e2m3")[:32])
e3m2_magnitudes = _table(_numbers("e3m2")[:32])

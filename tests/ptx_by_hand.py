"""Small PTX kernels with what no kernel of the suite has: lop3, prmt, branches around shuffles.

Each is a text, a way to launch it and what it must write. The mutation table plants bugs in them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from kernels import packing

CODEBOOK = np.array([0, 1, 2, 3, 4, 6, 8, 12], np.uint8)  # of an e2m1 float, times two

Case = tuple[list[Any], np.ndarray, np.ndarray]  # arguments, the output among them, and expected


@dataclass(frozen=True)
class ByHand:
    """A kernel written in PTX.

    Attributes:
        name: of the entry.
        body: declarations and instructions.
        parameters: all of them pointers.
        block: threads per CTA.
        grid: CTAs.
        make: arguments, output and the exact result.
    """

    name: str
    parameters: tuple[str, ...]
    body: str
    block: int
    grid: int
    make: Callable[[], Case]

    @property
    def text(self) -> str:
        """The PTX module. Registers r, rd, f and p, and %i, the thread's index in the grid."""
        loads = "\n".join(
            f"ld.param.u64 %rd{i}, [{name}];" for i, name in enumerate(self.parameters)
        )
        return f"""
.version 7.8
.target sm_80
.address_size 64
.visible .entry {self.name}({", ".join(f".param .u64 {name}" for name in self.parameters)})
.reqntid {self.block}
{{
.reg .pred %p<8>;
.reg .b32 %r<32>;
.reg .b32 %i, %cta, %t, %lane, %warp;
.reg .b64 %rd<16>;
{loads}
mov.u32 %t, %tid.x;
and.b32 %lane, %t, 31;
shr.u32 %warp, %t, 5;
mov.u32 %cta, %ctaid.x;
mad.lo.u32 %i, %cta, {self.block}, %t;
{self.body.strip()}
ret;
}}
"""


def random_words(count: int) -> np.ndarray:
    return np.random.default_rng(7).integers(0, 1 << 32, count, dtype=np.uint32)


def unpack_case() -> Case:
    words = random_words(128)
    codes = packing.unpack(words[:, None], 4).astype(np.int16) - 8
    out = np.empty((128, 8), np.float16)
    return [words, out], out, codes.astype(np.float16)


# (word >> 4 i) & 0x000f000f | 0x64006400 is the pair 1024 + code.
UNPACK = ByHand(
    "unpack",
    ("words", "out"),
    """
mul.wide.u32 %rd2, %i, 4;
add.s64 %rd2, %rd0, %rd2;
ld.global.u32 %r0, [%rd2];
mov.b32 %r9, 0x64086408;
lop3.b32 %r1, %r0, 0x000f000f, 0x64006400, 0xEA;
shr.u32 %r10, %r0, 4;
lop3.b32 %r2, %r10, 0x000f000f, 0x64006400, 0xEA;
shr.u32 %r11, %r0, 8;
lop3.b32 %r3, %r11, 0x000f000f, 0x64006400, 0xEA;
shr.u32 %r12, %r0, 12;
lop3.b32 %r4, %r12, 0x000f000f, 0x64006400, 0xEA;
sub.f16x2 %r1, %r1, %r9;
sub.f16x2 %r2, %r2, %r9;
sub.f16x2 %r3, %r3, %r9;
sub.f16x2 %r4, %r4, %r9;
mul.wide.u32 %rd3, %i, 16;
add.s64 %rd3, %rd1, %rd3;
st.global.v4.b32 [%rd3], {%r1, %r2, %r3, %r4};
""",
    block=64,
    grid=2,
    make=unpack_case,
)


def codebook_case() -> Case:
    words = random_words(128)
    nibbles = words[:, None] >> np.arange(0, 32, 4, dtype=np.uint32) & 7
    out = np.empty((128, 8), np.uint8)
    return [words, out], out, CODEBOOK[nibbles]


# A selector of prmt is a nibble: three bits choose one of 8 bytes, the fourth would spread its sign.
LOOK_UP = ByHand(
    "look_up",
    ("words", "out"),
    """
mul.wide.u32 %rd2, %i, 4;
add.s64 %rd2, %rd0, %rd2;
ld.global.u32 %r0, [%rd2];
mov.b32 %r1, 0x03020100;
mov.b32 %r2, 0x0C080604;
and.b32 %r3, %r0, 0x77777777;
prmt.b32 %r4, %r1, %r2, %r3;
shr.u32 %r5, %r3, 16;
prmt.b32 %r6, %r1, %r2, %r5;
mul.wide.u32 %rd3, %i, 8;
add.s64 %rd3, %rd1, %rd3;
st.global.v2.b32 [%rd3], {%r4, %r6};
""",
    block=64,
    grid=2,
    make=codebook_case,
)


def sum_case() -> Case:
    x = random_words(128)
    sums = x.reshape(4, 32).sum(axis=1, dtype=np.uint32)
    out = np.empty(128, np.uint32)
    return [x, out], out, np.repeat(sums, 32)


WARP_SUM = ByHand(
    "warp_sum",
    ("x", "out"),
    """
mul.wide.u32 %rd2, %i, 4;
add.s64 %rd3, %rd0, %rd2;
ld.global.u32 %r0, [%rd3];
redux.sync.add.u32 %r1, %r0, 0xffffffff;
add.s64 %rd4, %rd1, %rd2;
st.global.u32 [%rd4], %r1;
""",
    block=64,
    grid=2,
    make=sum_case,
)


def half_sum_case() -> Case:
    x = random_words(128)
    out = np.empty(4, np.uint32)
    return [x, out], out, x.reshape(4, 32)[:, :16].sum(axis=1, dtype=np.uint32)


HALF_SUM = ByHand(
    "half_sum",
    ("x", "out"),
    """
mul.wide.u32 %rd2, %i, 4;
add.s64 %rd3, %rd0, %rd2;
ld.global.u32 %r0, [%rd3];
setp.ge.u32 %p0, %lane, 16;
@%p0 bra $DONE;
shfl.sync.bfly.b32 %r1, %r0, 8, 31, 0x0000ffff;
add.u32 %r0, %r0, %r1;
shfl.sync.bfly.b32 %r1, %r0, 4, 31, 0x0000ffff;
add.u32 %r0, %r0, %r1;
shfl.sync.bfly.b32 %r1, %r0, 2, 31, 0x0000ffff;
add.u32 %r0, %r0, %r1;
shfl.sync.bfly.b32 %r1, %r0, 1, 31, 0x0000ffff;
add.u32 %r0, %r0, %r1;
setp.eq.u32 %p1, %lane, 0;
shr.u32 %r2, %i, 5;
mul.wide.u32 %rd4, %r2, 4;
add.s64 %rd5, %rd1, %rd4;
@%p1 st.global.u32 [%rd5], %r0;
$DONE:
bar.warp.sync -1;
""",
    block=64,
    grid=2,
    make=half_sum_case,
)


def transpose_case() -> Case:
    x = random_words(128)
    out = np.empty((2, 8, 8), np.uint32)
    return [x, out], out, x.reshape(2, 8, 8).swapaxes(1, 2)


TRANSPOSE = ByHand(
    "transpose",
    ("x", "out"),
    """
.shared .align 16 .b8 tile[256];
mul.wide.u32 %rd2, %i, 4;
add.s64 %rd3, %rd0, %rd2;
ld.global.u32 %r0, [%rd3];
mov.u32 %r1, tile;
shl.b32 %r2, %t, 2;
add.u32 %r3, %r1, %r2;
st.shared.u32 [%r3], %r0;
bar.sync 0;
and.b32 %r4, %t, 7;
shr.u32 %r5, %t, 3;
mad.lo.u32 %r6, %r4, 8, %r5;
shl.b32 %r7, %r6, 2;
add.u32 %r8, %r1, %r7;
ld.shared.u32 %r9, [%r8];
add.s64 %rd4, %rd1, %rd2;
st.global.u32 [%rd4], %r9;
""",
    block=64,
    grid=2,
    make=transpose_case,
)


def staged_case() -> Case:
    x = random_words(2 * 64)
    out = np.empty(64, np.uint32)
    return [x, out], out, (x.reshape(2, 64)[:, ::-1]).sum(axis=0, dtype=np.uint32)


# Step i goes through buffer i % 2, so that one barrier per step is enough.
STAGED = ByHand(
    "staged",
    ("x", "out"),
    """
.shared .align 16 .b8 buffers[512];
mov.u32 %r0, buffers;
shl.b32 %r1, %t, 2;
add.u32 %r2, %r0, %r1;
sub.u32 %r3, 252, %r1;
add.u32 %r3, %r0, %r3;
mul.wide.u32 %rd2, %t, 4;
add.s64 %rd3, %rd0, %rd2;
mov.b32 %r4, 0;
mov.b32 %r5, 0;
mov.b32 %r6, 0;
$STEP:
ld.global.u32 %r7, [%rd3];
add.u32 %r8, %r2, %r5;
st.shared.u32 [%r8], %r7;
bar.sync 0;
add.u32 %r9, %r3, %r6;
ld.shared.u32 %r10, [%r9];
add.u32 %r4, %r4, %r10;
xor.b32 %r5, %r5, 256;
xor.b32 %r6, %r6, 256;
add.s64 %rd3, %rd3, 256;
setp.ne.u32 %p0, %r5, 0;
@%p0 bra $STEP;
bar.sync 0;
add.s64 %rd4, %rd1, %rd2;
st.global.u32 [%rd4], %r4;
""",
    block=64,
    grid=1,
    make=staged_case,
)


def quantize_case() -> Case:
    x = np.random.default_rng(7).standard_normal(100).astype(np.float32)
    out = np.empty(100, np.int8)
    codes = np.clip(np.rint(x * np.float32(64)), -127, 127)
    return [x, out], out, codes.astype(np.int8)


QUANTIZE = ByHand(
    "quantize",
    ("x", "out"),
    """
setp.lt.u32 %p0, %i, 100;
mul.wide.u32 %rd2, %i, 4;
add.s64 %rd3, %rd0, %rd2;
mov.b32 %r0, 0f00000000;
@%p0 ld.global.b32 %r0, [%rd3];
mul.rn.f32 %r1, %r0, 0f42800000;
cvt.rni.s32.f32 %r2, %r1;
max.s32 %r2, %r2, -127;
min.s32 %r2, %r2, 127;
cvt.u64.u32 %rd4, %i;
add.s64 %rd5, %rd1, %rd4;
@%p0 st.global.b8 [%rd5], %r2;
""",
    block=64,
    grid=2,
    make=quantize_case,
)


def exchange_case() -> Case:
    x = random_words(64)
    out = np.empty(64, np.uint32)
    return [x, out], out, x[np.arange(64) ^ 1]


EXCHANGE = ByHand(
    "exchange",
    ("x", "out"),
    """
.shared .align 16 .b8 words[256];
mul.wide.u32 %rd2, %t, 4;
add.s64 %rd3, %rd0, %rd2;
ld.global.u32 %r0, [%rd3];
mov.u32 %r1, words;
shl.b32 %r2, %t, 2;
add.u32 %r3, %r1, %r2;
st.shared.u32 [%r3], %r0;
bar.warp.sync 0xffffffff;
xor.b32 %r4, %r2, 4;
add.u32 %r5, %r1, %r4;
ld.shared.u32 %r6, [%r5];
add.s64 %rd4, %rd1, %rd2;
st.global.u32 [%rd4], %r6;
""",
    block=64,
    grid=1,
    make=exchange_case,
)


def reverse_case() -> Case:
    x = random_words(64)
    out = np.empty(64, np.uint32)
    return [x, np.zeros(64, np.uint32), out], out, x[::-1]


REVERSE = ByHand(
    "reverse",
    ("x", "scratch", "out"),
    """
mul.wide.u32 %rd3, %t, 4;
add.s64 %rd4, %rd0, %rd3;
ld.global.u32 %r0, [%rd4];
add.s64 %rd5, %rd1, %rd3;
st.global.u32 [%rd5], %r0;
bar.sync 0;
sub.u32 %r1, 63, %t;
mul.wide.u32 %rd6, %r1, 4;
add.s64 %rd6, %rd1, %rd6;
ld.global.u32 %r2, [%rd6];
add.s64 %rd7, %rd2, %rd3;
st.global.u32 [%rd7], %r2;
""",
    block=64,
    grid=1,
    make=reverse_case,
)

BY_HAND = (
    UNPACK,
    LOOK_UP,
    WARP_SUM,
    HALF_SUM,
    TRANSPOSE,
    STAGED,
    QUANTIZE,
    EXCHANGE,
    REVERSE,
)

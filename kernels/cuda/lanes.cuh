// The few instructions that these kernels are made of. No header of CUDA's is needed: NVRTC compiles them anywhere.
//
// A `pair` is two fp16 numbers in one register, the first in the lower half.
#pragma once

typedef unsigned pair;
typedef unsigned short half_bits;  // one fp16 number

constexpr int WARP = 32;
constexpr unsigned ALL_LANES = 0xffffffff;

// The same number in both halves.
__device__ constexpr pair both(unsigned bits) { return bits | bits << 16; }

// A constant that stays in a register: left alone, the compiler makes it anew wherever it is used.
__device__ __forceinline__ unsigned keep(unsigned constant) {
    asm volatile("" : "+r"(constant));
    return constant;
}

// 16 bytes that are read once: they should not push out of L1 what is read again (x, scales).
__device__ __forceinline__ uint4 load_once(const uint4 *address) {
    uint4 v;
    asm("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
        : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(address));
    return v;
}

// (word & mask) | magic in one instruction. In C it would become two: only one constant fits into a LOP3, so
// `magic` has to come in a register.
__device__ __forceinline__ pair select_or(unsigned word, unsigned mask, unsigned magic) {
    pair result;
    asm("lop3.b32 %0, %1, %2, %3, 0xEA;" : "=r"(result) : "r"(word), "r"(mask), "r"(magic));
    return result;
}

// Four bytes out of the eight of b:a, chosen by the four digits of `selector`, lowest first.
__device__ __forceinline__ pair choose_bytes(unsigned a, unsigned b, unsigned selector) {
    pair result;
    asm("prmt.b32 %0, %1, %2, %3;" : "=r"(result) : "r"(a), "r"(b), "r"(selector));
    return result;
}

__device__ __forceinline__ pair add2(pair a, pair b) {
    pair result;
    asm("add.rn.f16x2 %0, %1, %2;" : "=r"(result) : "r"(a), "r"(b));
    return result;
}

__device__ __forceinline__ pair multiply2(pair a, pair b) {
    pair result;
    asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(result) : "r"(a), "r"(b));
    return result;
}

__device__ __forceinline__ pair multiply_add2(pair a, pair b, pair c) {
    pair result;
    asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(result) : "r"(a), "r"(b), "r"(c));
    return result;
}

__device__ __forceinline__ float widen(half_bits bits) {
    float result;
    asm("cvt.f32.f16 %0, %1;" : "=f"(result) : "h"(bits));
    return result;
}

__device__ __forceinline__ float2 widen2(pair p) {
    return make_float2(widen(half_bits(p)), widen(half_bits(p >> 16)));
}

__device__ __forceinline__ half_bits narrow(float value) {
    half_bits result;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(result) : "f"(value));
    return result;
}

__device__ __forceinline__ pair narrow2(float first, float second) {
    pair result;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(result) : "f"(second), "f"(first));
    return result;
}

// The four fp8 numbers (e4m3) of a word, exactly: from sm_89 on.
__device__ __forceinline__ uint2 widen_e4m3(unsigned word) {
    uint2 pairs;
    asm("{\n"
        ".reg .b16 low, high;\n"
        "mov.b32 {low, high}, %2;\n"
        "cvt.rn.f16x2.e4m3x2 %0, low;\n"
        "cvt.rn.f16x2.e4m3x2 %1, high;\n"
        "}"
        : "=r"(pairs.x), "=r"(pairs.y) : "r"(word));
    return pairs;
}

// d += A b on the tensor cores: A is 16 x 16, of which lane 4 g + t holds
//
//     a0 = A[g][2t, 2t+1]    a2 = A[g][8+2t, 9+2t]
//     a1 = A[g+8][2t, 2t+1]  a3 = A[g+8][8+2t, 9+2t]
//
// b0 = b[2t, 2t+1][g], b1 = b[8+2t, 9+2t][g], and d[0..3] = D[g][2t], D[g][2t+1], D[g+8][2t], D[g+8][2t+1].
// Which column of W is called column 2t of A is ours to choose, as long as x is read in the same order. b0 and
// b1 have to be neighbouring registers, and a0..a3 too: other orders cost moves.
__device__ __forceinline__ void multiply_tile(float (&d)[4], pair a0, pair a1, pair a2, pair a3, const pair *b) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b[0]), "r"(b[1]));
}

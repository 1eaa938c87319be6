// The four fp8 numbers (e4m3) of a word as pairs (w0 w1) and (w2 w3) of fp16, times 1 / FP8_UNIT.
//
// From sm_89 on one instruction widens two, exactly. Before, the seven bits of exponent and fraction are moved
// to where fp16 has them, which divides by 2^8 because the biases are 7 and 15; the scale makes up for it.
// (NaN would become 480: no format here writes one.)
//
//     e4m3   s eeee mmm            fp16   s 0eeee mmm0000000
#pragma once
#include "lanes.cuh"

constexpr float FP8_UNIT = __CUDA_ARCH__ >= 890 ? 1.0f : 256.0f;

__device__ __forceinline__ pair move_bits(unsigned shifted_codes) {  // each in the upper byte of a half
    return (shifted_codes & 0x80008000) | (shifted_codes >> 1 & 0x3f803f80);
}

__device__ __forceinline__ uint2 numbers(unsigned word) {
#if __CUDA_ARCH__ >= 890
    return widen_e4m3(word);
#else
    return make_uint2(move_bits(choose_bytes(word, 0, 0x1404)), move_bits(choose_bytes(word, 0, 0x3424)));
#endif
}

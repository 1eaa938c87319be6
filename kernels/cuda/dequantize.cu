// W[n, k] from packed words to fp16 in memory: number(code) * scale, rounded once.
//
// The question: what does dequantization cost when it is a kernel of its own? A thread owns 8 columns, one
// 16-byte store, of 8 rows: its loads are all on their way before the first store. Words are row by row, as
// kernels/packing.py has them. Integers stay pairs of fp16, in which code - zero and its product with an fp16
// scale are as exact as can be; the others are multiplied in fp32, since their scales are.
//
//     int4   word  [ w7 w5 w3 w1 w6 w4 w2 w0 ]   mask, put under 1024, subtract 1032 (upper nibbles: see int4_simt.cu)
//     int8   words [ w3 w2 w1 w0 ] [ w7 .. w4 ]  put under 1024, subtract 1152
//     nf4    as int4: each code picks one of 16 lanes, which hold the levels: a shuffle per weight
//     e4m3   as int8: converted, or moved to where fp16 has them before sm_89 (fp8_mma.cu)
//
// GROUP: columns per scale; 0 for one scale per row. WIDE_SCALES: scales of nf4 are fp32 instead of fp16.
#include "fp8.cuh"
#include "nf4.cuh"

constexpr int THREADS = 128;
constexpr int COLUMNS = 8;  // of a thread
constexpr int ROWS = 8;

struct Int4 {
    typedef unsigned Packed;
    typedef half_bits Scale;
    __device__ __forceinline__ uint4 operator()(unsigned w, half_bits scale) const {
        const pair s = both(scale);
        return make_uint4(multiply2(low(w), s), multiply2(high(w), s), multiply2(low(w >> 8), s), multiply2(high(w >> 8), s));
    }
    __device__ __forceinline__ pair low(unsigned w) const {
        return add2(select_or(w, 0x000f000f, both(0x6400)), both(0xe408));
    }
    __device__ __forceinline__ pair high(unsigned w) const {
        return multiply_add2(select_or(w, 0x00f000f0, both(0x6400)), both(0x2c00), both(0xd480));
    }
};

struct Int8 {
    typedef uint2 Packed;
    typedef half_bits Scale;
    __device__ __forceinline__ uint4 operator()(uint2 w, half_bits scale) const {
        const pair s = both(scale);
        return make_uint4(multiply2(number(w.x, 0x5150), s), multiply2(number(w.x, 0x5352), s),
                          multiply2(number(w.y, 0x5150), s), multiply2(number(w.y, 0x5352), s));
    }
    __device__ __forceinline__ pair number(unsigned w, unsigned bytes) const {
        return add2(choose_bytes(w, 0x64646464, bytes), both(0xe480));
    }
};

struct Nf4 {
    typedef unsigned Packed;
#if WIDE_SCALES
    typedef float Scale;
#else
    typedef half_bits Scale;
#endif
    const float level = LEVELS[threadIdx.x % 16];  // twice in a warp: a shuffle looks at five bits, one too many
    __device__ __forceinline__ uint4 operator()(unsigned w, Scale scale) const {
        const float s = number(scale);
        return make_uint4(narrow2(look_up(w) * s, look_up(w >> 16) * s), narrow2(look_up(w >> 4) * s, look_up(w >> 20) * s),
                          narrow2(look_up(w >> 8) * s, look_up(w >> 24) * s), narrow2(look_up(w >> 12) * s, look_up(w >> 28) * s));
    }
    __device__ __forceinline__ float look_up(unsigned code) const { return __shfl_sync(ALL_LANES, level, code); }
    static __device__ __forceinline__ float number(float scale) { return scale; }
    static __device__ __forceinline__ float number(half_bits scale) { return widen(scale); }
};

struct E4m3 {
    typedef uint2 Packed;
    typedef float Scale;
    __device__ __forceinline__ uint4 operator()(uint2 w, float scale) const {
        const uint2 first = numbers(w.x), second = numbers(w.y);
        const float s = scale * FP8_UNIT;
        return make_uint4(scaled(first.x, s), scaled(first.y, s), scaled(second.x, s), scaled(second.y, s));
    }
    __device__ __forceinline__ pair scaled(pair p, float s) const {
        const float2 f = widen2(p);
        return narrow2(f.x * s, f.y * s);
    }
};

// Columns past the end are read as the last ones and not stored, so that warps stay whole. The last block takes
// the last rows, some of which the block before it may write too, the same. n is at least ROWS.
template <typename Format>
__device__ __forceinline__ void dequantize(const typename Format::Packed *words, const typename Format::Scale *scales,
                                           uint4 *out, int n, int k) {
    const Format format;
    const int units = k / COLUMNS, groups = GROUP ? k / (GROUP ? GROUP : 1) : 1;
    const int unit = blockIdx.y * THREADS + threadIdx.x, readable = min(unit, units - 1);
    const int first = min(int(blockIdx.x) * ROWS, n - ROWS);
    words += first * units + readable;
    scales += first * groups + (GROUP ? readable * COLUMNS / (GROUP ? GROUP : 1) : 0);
    out += first * units + readable;
    typename Format::Packed packed[ROWS];
    typename Format::Scale scale[ROWS];
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        packed[r] = words[r * units];
        scale[r] = scales[r * groups];
    }
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        const uint4 weights = format(packed[r], scale[r]);
        if (unit < units) out[r * units] = weights;
    }
}

#define KERNEL(NAME, FORMAT)                                                                                   \
    extern "C" __global__ void __launch_bounds__(THREADS)                                                      \
    NAME(const FORMAT::Packed *words, const FORMAT::Scale *scales, uint4 *out, int n, int k) {                 \
        dequantize<FORMAT>(words, scales, out, n, k);                                                          \
    }

KERNEL(int4, Int4)
KERNEL(int8, Int8)
KERNEL(nf4, Nf4)
KERNEL(e4m3, E4m3)

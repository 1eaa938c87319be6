// y[n] = W[n, k] . x[k] for int4 with one scale per 128 weights and a single row of x, without tensor cores.
//
// The question: what does a 4-bit weight cost where every weight is made a number of its own? Two at a time:
//
//     lower nibbles   (word & 0x000f000f) | 0x6400 = 1024 + q       - 1032          = q - 8
//     upper nibbles   (word & 0x00f000f0) | 0x6400 = 1024 + 16 q    / 16 - 72       = q - 8
//
// LOP3 and HADD2 or HFMA2 for two weights, and one shift by 8 for the other half of a word. A warp owns four
// rows, a lane 32 weights of each at a time: one 16-byte load per row, and x is loaded once for all four.
// Sixteen products are added in fp16; then both halves go to the fp32 sum, times the scale.
//
//     word of a row:   [ w7 w5 w3 w1 w6 w4 w2 w0 ]   pairs (w0 w1) (w2 w3) and, after the shift, (w4 w5) (w6 w7)
//
// BYPASS: the word itself stands for each of its pairs. Everything else stays.
#include "lanes.cuh"

constexpr int WARPS = 4;
constexpr int THREADS = WARPS * WARP;
constexpr int ROWS = 4;  // of a warp
constexpr int SEGMENT = 32, GROUP = 128;
constexpr pair MAGIC = both(0x6400);                                     // 1024
constexpr pair MINUS_1032 = both(0xe408), SIXTEENTH = both(0x2c00), MINUS_72 = both(0xd480);

__device__ __forceinline__ pair low(unsigned word) {
    return BYPASS ? word : add2(select_or(word, 0x000f000f, MAGIC), MINUS_1032);
}
__device__ __forceinline__ pair high(unsigned word) {
    return BYPASS ? word : multiply_add2(select_or(word, 0x00f000f0, MAGIC), SIXTEENTH, MINUS_72);
}
__device__ __forceinline__ unsigned later(unsigned word) { return BYPASS ? word : word >> 8; }

// words: [n, k / 8]; scales: [n, k / 128]; x: [k]; y: [n].
extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT)
gemv(const uint4 *words, const half_bits *scales, const uint4 *x, half_bits *y, int n, int k) {
    const int lane = threadIdx.x % WARP, first = (blockIdx.x * WARPS + threadIdx.x / WARP) * ROWS;
    const int segments = k / SEGMENT, groups = k / GROUP;
    const uint4 *from[ROWS];
    const half_bits *scale[ROWS];
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        const int row = min(first + r, n - 1);  // past the end: the last one again, not stored
        from[r] = words + row * segments + lane;
        scale[r] = scales + row * groups + lane / (GROUP / SEGMENT);
    }
    float sums[ROWS] = {};
#pragma unroll 1
    for (int segment = lane; segment < segments; segment += WARP) {
        pair a[16];
#pragma unroll
        for (int i = 0; i < 4; i++) reinterpret_cast<uint4 *>(a)[i] = x[segment * 4 + i];
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            const uint4 loaded = load_once(from[r]);
            const unsigned w[4] = {loaded.x, loaded.y, loaded.z, loaded.w};
            pair sum = 0;
#pragma unroll
            for (int j = 0; j < 4; j++) {
                sum = multiply_add2(low(w[j]), a[4 * j], sum);
                sum = multiply_add2(high(w[j]), a[4 * j + 1], sum);
                sum = multiply_add2(low(later(w[j])), a[4 * j + 2], sum);
                sum = multiply_add2(high(later(w[j])), a[4 * j + 3], sum);
            }
            const float2 halves = widen2(sum);
            sums[r] += (halves.x + halves.y) * widen(*scale[r]);
            from[r] += WARP;
            scale[r] += WARP * SEGMENT / GROUP;
        }
    }
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        for (int step = WARP / 2; step > 0; step /= 2) sums[r] += __shfl_xor_sync(ALL_LANES, sums[r], step);
        if (lane == 0 && first + r < n) y[first + r] = narrow(sums[r]);
    }
}

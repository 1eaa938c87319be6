// sums[n] = the words and the bits of the scales of each row, added up modulo 2^32: nothing is computed with them.
//
// The question: how long do the tensor-core kernels wait for memory, whatever they do with it? The same blocks,
// warps and loads of words and scales, in the same order; no x. It is the floor under fused and bypass.
//
// TILE_WIDTH: columns of 8 words. CHUNK_SCALES: of a row in 128 columns, 0 for one per row. WIDE_SCALES: fp32, not fp16.
#define BATCH 1
#define BYPASS 1
#include "tiles.cuh"

// The bits of two scales as signed integers.
__device__ __forceinline__ int2 bits(pair scales) { return make_int2(short(scales), int(scales) >> 16); }
__device__ __forceinline__ int2 bits(float2 scales) { return make_int2(__float_as_int(scales.x), __float_as_int(scales.y)); }

// words, scales: as fused has them, but for the order of codes within a word; sums: [n].
extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT)
stream(const uint4 *words, const scale_pair *scales, int *sums, int n, int k) {
    int totals[ROW_TILES][2] = {};
    const int counts = threadIdx.x % 4 == 0;  // all four lanes of a row load its scales; one adds them
    Walk<TILE_WIDTH, CHUNK_SCALES, scale_pair> walk(words, scales, nullptr, k);
    const bool first_warp = walk.chunk == 0;
#pragma unroll 1
    for (; walk.inside(); walk.next()) {
#pragma unroll
        for (int tile = 0; tile < walk.TILES; tile++) {
#pragma unroll
            for (int r = 0; r < ROW_TILES; r++) {
                const uint4 w = walk.load_words(r, tile);
                totals[r][0] += w.x + w.z;
                totals[r][1] += w.y + w.w;
            }
        }
#pragma unroll
        for (int i = 0; i < CHUNK_SCALES * ROW_TILES; i++) {
            const int2 scale = bits(walk.scales[i * 8]);
            totals[i % ROW_TILES][0] += counts * scale.x;
            totals[i % ROW_TILES][1] += counts * scale.y;
        }
    }
    __shared__ int partial[WARPS][ROWS];
#pragma unroll
    for (int r = 0; r < ROW_TILES; r++) {
        if (CHUNK_SCALES == 0 && first_warp) {
            const int2 scale = bits(walk.scales[r * 8]);
            totals[r][0] += counts * scale.x;
            totals[r][1] += counts * scale.y;
        }
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int total = totals[r][half];
            total += __shfl_xor_sync(ALL_LANES, total, 1);
            total += __shfl_xor_sync(ALL_LANES, total, 2);
            if (counts) partial[threadIdx.x / WARP][r * 16 + half * 8 + threadIdx.x % WARP / 4] = total;
        }
    }
    __syncthreads();
    const int row = blockIdx.x * ROWS + threadIdx.x;
    if (threadIdx.x >= ROWS || row >= n) return;
    int total = 0;
    for (int w = 0; w < WARPS; w++) total += partial[w][threadIdx.x];
    sums[row] = total;
}

// What the tensor-core kernels share: who owns what, where it lies, and the sum over the warps at the end.
//
// A block owns 32 rows of W, two tiles side by side; its 8 warps share the columns, 128 at a time in turn. A tile
// is 16 rows x 8 words, in the order in which the lanes of a warp read it (layout.py): lane 4 g + t finds in
// one 16-byte load
//
//     x: row g, word 2t    y: row g+8, word 2t    z: row g, word 2t+1    w: row g+8, word 2t+1
//
// and reads the x that belong to words 2t and 2t+1, side by side. Batches 1 to 8 are the columns of x on the
// tensor cores. Rows of W past the end are packed as zeros.
#pragma once
#include "lanes.cuh"

#ifndef BATCH
#error "define BATCH, the rows of x: 1 to 8"
#endif
#ifndef BYPASS
#error "define BYPASS, 1 for the kernel without dequantization"
#endif

// The scales of rows g and g + 8 where a kernel takes both widths; WIDE_SCALES: fp32 instead of fp16.
#if WIDE_SCALES
typedef float2 scale_pair;
#else
typedef pair scale_pair;
#endif

constexpr int WARPS = 8;
constexpr int THREADS = WARPS * WARP;
constexpr int ROW_TILES = 2;
constexpr int ROWS = 16 * ROW_TILES;
constexpr int CHUNK = 128;  // columns that a warp takes at a time

// Where this thread is, and what it reads next. TILE_COLUMNS of W are 8 words; SCALES of a row serve a chunk.
template <int TILE_COLUMNS, int SCALES, typename Scale>
struct Walk {
    static constexpr int TILES = CHUNK / TILE_COLUMNS;
    static constexpr int PAIRS = TILE_COLUMNS / 8;  // of x, that a lane needs for a tile

    const uint4 *words;
    const Scale *scales;
    const uint4 *x;
    int chunk, chunks;

    __device__ __forceinline__ Walk(const uint4 *all_words, const Scale *all_scales, const half_bits *all_x, int k)
        : chunk(__shfl_sync(ALL_LANES, threadIdx.x / WARP, 0)),  // so the compiler sees that a warp stays together
          chunks(k / CHUNK) {
        const int g = threadIdx.x % WARP / 4, t = threadIdx.x % 4, first = blockIdx.x * chunks + chunk;
        words = all_words + first * (TILES * ROW_TILES * WARP) + threadIdx.x % WARP;
        scales = all_scales + (SCALES ? first * SCALES : blockIdx.x) * (ROW_TILES * 8) + g;
        const int row = BATCH == 1 ? 0 : min(g, BATCH - 1);
        x = reinterpret_cast<const uint4 *>(all_x + row * k + chunk * CHUNK + t * 2 * PAIRS);
    }
    __device__ __forceinline__ bool inside() const { return chunk < chunks; }
    __device__ __forceinline__ void next() {
        chunk += WARPS;
        words += WARPS * TILES * ROW_TILES * WARP;
        scales += WARPS * SCALES * ROW_TILES * 8;
        x += WARPS * CHUNK / 8;
    }
    __device__ __forceinline__ uint4 load_words(int r, int tile) const {
        return load_once(words + (tile * ROW_TILES + r) * WARP);
    }
    __device__ __forceinline__ void load_x(pair (&pairs)[PAIRS], int tile) const {
#pragma unroll
        for (int i = 0; i < PAIRS / 4; i++) reinterpret_cast<uint4 *>(pairs)[i] = x[tile * (TILE_COLUMNS / 8) + i];
    }
    // The scales of rows g and g + 8.
    __device__ __forceinline__ float2 load_scales(int r, int tile = 0) const {
        return numbers(scales[(tile * ROW_TILES + r) * 8]);
    }
    static __device__ __forceinline__ float2 numbers(pair scales) { return widen2(scales); }
    static __device__ __forceinline__ float2 numbers(float2 scales) { return scales; }
};

// The bypass of a tile: words 2t and 2t+1 as they are stand for pairs of x by turns (packing.py, words_by_turns).
// Neighbouring pairs of x lie in neighbouring registers, and so do the words: no register has to move.
template <int PAIRS>
__device__ __forceinline__ void multiply_words(float (&d)[4], uint4 words, const pair (&x)[PAIRS]) {
#pragma unroll
    for (int i = 0; i < PAIRS / 2; i++) {
        const pair b[2] = {x[2 * i], x[2 * i + 1]};
        multiply_tile(d, words.x, words.y, words.z, words.w, b);
    }
}

// WIDE_Y leaves y in fp32, for tests that look at the digits which fp16 would hide.
#ifdef WIDE_Y
typedef float Y;
__device__ __forceinline__ Y round_y(float total) { return total; }
#else
typedef half_bits Y;
__device__ __forceinline__ Y round_y(float total) { return narrow(total); }
#endif

// Adds up the warps' sums and writes y[BATCH, n].
__device__ __forceinline__ void store(const float (&sums)[ROW_TILES][4], Y *y, int n) {
    __shared__ float partial[WARPS][BATCH][ROWS];
    const int warp = threadIdx.x / WARP, g = threadIdx.x % WARP / 4, t = threadIdx.x % 4;
#pragma unroll
    for (int r = 0; r < ROW_TILES; r++) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int column = 2 * t + i % 2;
            if (column < BATCH) partial[warp][column][r * 16 + g + i / 2 * 8] = sums[r][i];
        }
    }
    __syncthreads();
    const int row = blockIdx.x * ROWS + threadIdx.x % ROWS, column = threadIdx.x / ROWS;
    if (column >= BATCH || row >= n) return;
    float total = 0;
    for (int w = 0; w < WARPS; w++) total += partial[w][column][threadIdx.x % ROWS];
    y[column * n + row] = round_y(total);
}

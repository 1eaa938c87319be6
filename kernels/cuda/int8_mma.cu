// y[B, n] = x[B, k] . W[n, k]^T for int8, B from 1 to 8, on the tensor cores.
//
// A byte becomes a number by being put under 0x64, the upper byte of 1024: 0x64qq = 1024 + q. PRMT does that
// for two bytes at once. 1024 and the zero point, 128, are the same for all rows: 1152 times the sum of x is
// computed once for all 32 rows and subtracted once per 128 columns, as in int4_mma.cu.
//
//     word of a row:   [ w3 w2 w1 w0 ]   pairs (w0 w1) and (w2 w3)
//
// PER_ROW: one scale per row instead of one per 128 columns.
// BYPASS: two words of a row, as they are, stand for their pairs by turns. Everything else stays, but for the offset.
#include "tiles.cuh"

constexpr int TILE_COLUMNS = 32;
constexpr unsigned MAGIC = 0x64646464;
constexpr pair OFFSET = both(0x6480);  // 1152

__device__ __forceinline__ pair first(unsigned word) { return choose_bytes(word, MAGIC, 0x5150); }
__device__ __forceinline__ pair second(unsigned word) { return choose_bytes(word, MAGIC, 0x5352); }

// words: blocks [n / 32][k / 32][2]; scales: [n / 32][groups][2][8] pairs of rows g and g + 8; x: [BATCH, k]; y: [BATCH, n].
extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT)
gemv(const uint4 *words, const pair *scales, const half_bits *x, Y *y, int n, int k) {
    float sums[ROW_TILES][4] = {};
    Walk<TILE_COLUMNS, PER_ROW ? 0 : 1, pair> walk(words, scales, x, k);
#pragma unroll 1
    for (; walk.inside(); walk.next()) {
        float products[ROW_TILES][4] = {}, offset[4] = {};
#pragma unroll
        for (int tile = 0; tile < walk.TILES; tile++) {
            pair a[walk.PAIRS];
            walk.load_x(a, tile);
#pragma unroll
            for (int r = 0; r < ROW_TILES; r++) {
                const uint4 w = walk.load_words(r, tile);
                if (BYPASS) {
                    multiply_words(products[r], w, a);
                } else {
                    multiply_tile(products[r], first(w.x), first(w.y), second(w.x), second(w.y), a);
                    multiply_tile(products[r], first(w.z), first(w.w), second(w.z), second(w.w), a + 2);
                }
            }
#pragma unroll
            for (int i = 0; i < (BYPASS ? 0 : 4); i += 2) multiply_tile(offset, OFFSET, OFFSET, OFFSET, OFFSET, a + i);
        }
#pragma unroll
        for (int r = 0; r < ROW_TILES; r++) {
            const float2 scale = PER_ROW ? make_float2(1, 1) : walk.load_scales(r);
#pragma unroll
            for (int i = 0; i < 4; i++)
                sums[r][i] += (i < 2 ? scale.x : scale.y) * (products[r][i] - offset[i % 2]);
        }
    }
#pragma unroll
    for (int r = 0; r < ROW_TILES; r++) {
        const float2 scale = PER_ROW ? walk.load_scales(r) : make_float2(1, 1);
#pragma unroll
        for (int i = 0; i < 4; i++) sums[r][i] *= i < 2 ? scale.x : scale.y;
    }
    store(sums, y, n);
}

// y[B, n] = x[B, k] . W[n, k]^T for fp8 (e4m3) with fp32 scales, B from 1 to 8, on the tensor cores.
//
// What dequantization is here: one conversion for two weights, and before sm_89 four instructions (fp8.cuh).
// It is exact and has no offset, so that nothing is left to subtract.
//
//     word of a row:   [ w3 w2 w1 w0 ]   pairs (w0 w1) and (w2 w3)
//
// PER_ROW: one scale per row instead of one per 128 columns.
// BYPASS: two words of a row, as they are, stand for their pairs by turns. Everything else stays.
#include "fp8.cuh"
#include "tiles.cuh"

constexpr int TILE_COLUMNS = 32;
constexpr float UNIT = BYPASS ? 1.0f : FP8_UNIT;

// words: blocks [n / 32][k / 32][2]; scales: [n / 32][groups][2][8] of rows g and g + 8; x: [BATCH, k]; y: [BATCH, n].
extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT)
gemv(const uint4 *words, const float2 *scales, const half_bits *x, Y *y, int n, int k) {
    float sums[ROW_TILES][4] = {};
    Walk<TILE_COLUMNS, PER_ROW ? 0 : 1, float2> walk(words, scales, x, k);
#pragma unroll 1
    for (; walk.inside(); walk.next()) {
        float products[ROW_TILES][4] = {};
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
                    const uint2 p = numbers(w.x), q = numbers(w.y), s = numbers(w.z), u = numbers(w.w);
                    multiply_tile(products[r], p.x, q.x, p.y, q.y, a);
                    multiply_tile(products[r], s.x, u.x, s.y, u.y, a + 2);
                }
            }
        }
#pragma unroll
        for (int r = 0; r < ROW_TILES; r++) {
            const float2 scale = PER_ROW ? make_float2(1, 1) : walk.load_scales(r);
#pragma unroll
            for (int i = 0; i < 4; i++) sums[r][i] += (i < 2 ? scale.x : scale.y) * products[r][i];
        }
    }
#pragma unroll
    for (int r = 0; r < ROW_TILES; r++) {
        const float2 scale = PER_ROW ? walk.load_scales(r) : make_float2(1, 1);
#pragma unroll
        for (int i = 0; i < 4; i++) sums[r][i] *= UNIT * (i < 2 ? scale.x : scale.y);
    }
    store(sums, y, n);
}

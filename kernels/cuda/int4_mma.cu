// y[B, n] = x[B, k] . W[n, k]^T for int4 with one scale per 128 weights, B from 1 to 8, on the tensor cores.
//
// The question: how few instructions can a 4-bit weight cost? Weights are the A operand, so that one
// instruction multiplies 256 of them. A nibble becomes a number by one LOP3 per pair and no arithmetic at all:
//
//     (word      & 0x000f000f) | 0x6400  =  1024 + q          (word & 0x00f000f0) | 0x6400  =  1024 + 16 q
//
// and so do the other four nibbles after one shift by 8. The upper nibbles have sums of their own, `highs`, that
// are divided by 16 once per group. What the magic numbers and the zero point add to a group does not depend
// on the row: 1032 times the sum of the x that meet lower nibbles and 72 times that of the others. So the
// tensor cores compute it once for all 32 rows, and it is subtracted once per group:
//
//     (1024 + q) - 1032 = q - 8        (1024 + 16 q) / 16 - 72 = q - 8
//
// The difference of two sums near 1000 |x| loses digits; tests state how many.
//
//     word of a row:   [ w7 w3 w5 w1 w6 w2 w4 w0 ]   lower nibbles w0 w1 and, after the shift, w2 w3
//                                                    upper nibbles w4 w5 and, after the shift, w6 w7
//
// BYPASS: two words of a row, as they are, stand for their pairs by turns. Everything else stays, but for the offset.
#include "tiles.cuh"

constexpr int TILE_COLUMNS = 64;
constexpr pair MAGIC = both(0x6400);  // 1024
constexpr pair ONES = both(0x3c00);
constexpr float LOW_OFFSET = 1032, HIGH_OFFSET = 72;
constexpr float HIGH_UNIT = BYPASS ? 1.0f : 1.0f / 16;

__device__ __forceinline__ pair low(unsigned word) { return select_or(word, 0x000f000f, MAGIC); }
__device__ __forceinline__ pair high(unsigned word) { return select_or(word, 0x00f000f0, MAGIC); }

// Rows g and g + 8 of one word: u and v, which meet four pairs of x.
__device__ __forceinline__ void multiply(float (&lows)[4], float (&highs)[4], unsigned u, unsigned v, const pair *x) {
    multiply_tile(lows, low(u), low(v), low(u >> 8), low(v >> 8), x);
    multiply_tile(highs, high(u), high(v), high(u >> 8), high(v >> 8), x + 2);
}

// words: blocks [n / 32][k / 64][2]; scales: [n / 32][k / 128][2][8] pairs of rows g and g + 8; x: [BATCH, k]; y: [BATCH, n].
extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT)
gemv(const uint4 *words, const pair *scales, const half_bits *x, Y *y, int n, int k) {
    const pair one[4] = {keep(ONES), keep(ONES), keep(ONES), keep(ONES)};
    float sums[ROW_TILES][4] = {};
    Walk<TILE_COLUMNS, 1, pair> walk(words, scales, x, k);
#pragma unroll 1
    for (; walk.inside(); walk.next()) {
        float lows[ROW_TILES][4] = {}, highs[ROW_TILES][4] = {}, low_x[4] = {}, high_x[4] = {};
#pragma unroll
        for (int tile = 0; tile < walk.TILES; tile++) {
            pair a[walk.PAIRS];
            walk.load_x(a, tile);
#pragma unroll
            for (int r = 0; r < ROW_TILES; r++) {
                const uint4 w = walk.load_words(r, tile);
                if (BYPASS) {
                    multiply_words(tile ? highs[r] : lows[r], w, a);
                } else {
                    multiply(lows[r], highs[r], w.x, w.y, a);
                    multiply(lows[r], highs[r], w.z, w.w, a + 4);
                }
            }
#pragma unroll
            for (int i = 0; i < (BYPASS ? 0 : 8); i += 4) {
                multiply_tile(low_x, one[0], one[1], one[2], one[3], a + i);
                multiply_tile(high_x, one[0], one[1], one[2], one[3], a + i + 2);
            }
        }
        const float offset[2] = {LOW_OFFSET * low_x[0] + HIGH_OFFSET * high_x[0],
                                 LOW_OFFSET * low_x[1] + HIGH_OFFSET * high_x[1]};
#pragma unroll
        for (int r = 0; r < ROW_TILES; r++) {
            const float2 scale = walk.load_scales(r);
#pragma unroll
            for (int i = 0; i < 4; i++)
                sums[r][i] += (i < 2 ? scale.x : scale.y) * (lows[r][i] + HIGH_UNIT * highs[r][i] - offset[i % 2]);
        }
    }
    store(sums, y, n);
}

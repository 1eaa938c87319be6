// y[B, n] = x[B, k] . W[n, k]^T for NF4 with one scale per 64 weights, B from 1 to 8, on the tensor cores.
//
// The question: how cheap can a codebook be? A byte holds two codes, so a table of 256 pairs turns both into
// fp16 by one look-up in shared memory. Of each pair there are 32 copies, one in every bank: lanes that look
// up different bytes never wait for each other. The table takes 32 KB and is made anew by every block.
//
//     address of a pair = byte * 128 + lane * 4:  a shift, and one LOP3 that masks the byte and adds the lane
//
//     word of a row:   [ w7 w6 w5 w4 w3 w2 w1 w0 ]   its bytes are the pairs (w0 w1) (w2 w3) (w4 w5) (w6 w7)
//
// WIDE_SCALES: scales are fp32 instead of fp16.
// BYPASS: two words of a row, as they are, stand for their pairs by turns. No table is made; the launch asks for
// shared memory all the same, so that as many blocks fit on a multiprocessor.
#include "nf4.cuh"
#include "tiles.cuh"

constexpr int TILE_COLUMNS = 64;
constexpr int TABLE_ROW_BYTES = WARP * 4;
// sm_90: with RESIDENT the compiler spills there; left to itself it does not, but takes more registers for larger BATCH.
constexpr int LEAST = __CUDA_ARCH__ != 900 ? RESIDENT : BATCH == 1 ? 0 : 4;

// Thread i writes the 32 copies of pair i, each time another bank than its neighbours.
__device__ __forceinline__ void make_table(uint4 *table) {
    const pair p = narrow2(LEVELS[threadIdx.x % 16], LEVELS[threadIdx.x / 16]);
    for (int i = 0; i < 8; i++) table[threadIdx.x * 8 + (i + threadIdx.x) % 8] = make_uint4(p, p, p, p);
    __syncthreads();
}

// Byte INDEX of a word, times 128, plus this lane's bank.
template <int INDEX>
__device__ __forceinline__ pair look_up(const char *table, unsigned word) {
    const unsigned shifted = INDEX == 0 ? word << 7 : word >> (8 * INDEX - 7);
    const unsigned address = select_or(shifted, 0xff * TABLE_ROW_BYTES, threadIdx.x % WARP * 4);
    return *reinterpret_cast<const pair *>(table + address);
}

// Rows g and g + 8 of one word: u and v, which meet four pairs of x.
__device__ __forceinline__ void multiply(float (&d)[4], const char *table, unsigned u, unsigned v, const pair *x) {
    multiply_tile(d, look_up<0>(table, u), look_up<0>(table, v), look_up<1>(table, u), look_up<1>(table, v), x);
    multiply_tile(d, look_up<2>(table, u), look_up<2>(table, v), look_up<3>(table, u), look_up<3>(table, v), x + 2);
}

// words: blocks [n / 32][k / 64][2]; scales: [n / 32][k / 64][2][8] of rows g and g + 8; x: [BATCH, k]; y: [BATCH, n].
extern "C" __global__ void __launch_bounds__(THREADS, LEAST)
gemv(const uint4 *words, const scale_pair *scales, const half_bits *x, Y *y, int n, int k) {
    __shared__ uint4 pairs[256 * TABLE_ROW_BYTES / 16];
    const char *table = reinterpret_cast<const char *>(pairs);
    if (!BYPASS) make_table(pairs);
    float sums[ROW_TILES][4] = {};
    Walk<TILE_COLUMNS, 2, scale_pair> walk(words, scales, x, k);
#pragma unroll 1
    for (; walk.inside(); walk.next()) {
#pragma unroll
        for (int tile = 0; tile < walk.TILES; tile++) {
            pair a[walk.PAIRS];
            walk.load_x(a, tile);
#pragma unroll
            for (int r = 0; r < ROW_TILES; r++) {
                const uint4 w = walk.load_words(r, tile);
                float products[4] = {};
                if (BYPASS) {
                    multiply_words(products, w, a);
                } else {
                    multiply(products, table, w.x, w.y, a);
                    multiply(products, table, w.z, w.w, a + 4);
                }
                const float2 scale = walk.load_scales(r, tile);
#pragma unroll
                for (int i = 0; i < 4; i++) sums[r][i] += (i < 2 ? scale.x : scale.y) * products[i];
            }
        }
    }
    store(sums, y, n);
}

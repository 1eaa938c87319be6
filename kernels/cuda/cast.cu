// The dequant work w(h, p): clocks to turn a code into a number that an fp16 multiply-add can take, with every
// operand in registers.
//
// A number has to be used, or nothing is made. So each pair goes into one HFMA2, as in int4_simt.cu, and
// BYPASS does the same with the words themselves: what is longer is the dequantization. Words
// change between passes by one addition, lest the compiler make the numbers once and for all.
//
//     FORMAT 0  int4, code - 8 exact        LOP3, then HADD2 or HFMA2       (int4_simt.cu)
//     FORMAT 1  int4, offset left in        LOP3                            (int4_mma.cu)
//     FORMAT 2  int8, offset left in        PRMT                            (int8_mma.cu)
//     FORMAT 3  e4m3                        F2FP, or moved bits             (fp8_mma.cu)
//     FORMAT 4  nf4                         a look-up in shared memory      (nf4_pairs.cu)
#include "fp8.cuh"
#include "nf4.cuh"

constexpr int WORDS = 8;  // of a lane, in flight together
constexpr int PAIRS = FORMAT == 2 || FORMAT == 3 ? 2 : 4;

__device__ __forceinline__ pair number(unsigned word, int i, const char *table) {
    if (BYPASS) return word;
    const unsigned w = i < 2 ? word : word >> 8;
    switch (FORMAT) {
    case 0:
        return i % 2 == 0 ? add2(select_or(w, 0x000f000f, both(0x6400)), both(0xe408))
                          : multiply_add2(select_or(w, 0x00f000f0, both(0x6400)), both(0x2c00), both(0xd480));
    case 1: return select_or(w, i % 2 == 0 ? 0x000f000f : 0x00f000f0, both(0x6400));
    case 2: return choose_bytes(word, 0x64646464, i == 0 ? 0x5150 : 0x5352);
    case 3: return i == 0 ? numbers(word).x : numbers(word).y;
    default: {
        const unsigned shifted = i == 0 ? word << 7 : word >> (8 * i - 7);
        return *reinterpret_cast<const pair *>(table + select_or(shifted, 0xff * WARP * 4, threadIdx.x % WARP * 4));
    }
    }
}

// operands: [4] numbers; clocks: [blocks]; sink: [1], never written. Weights of a thread: iterations * WORDS * 2 PAIRS.
extern "C" __global__ void probe(const unsigned *operands, long long *clocks, unsigned *sink, int iterations) {
    __shared__ pair table[256 * WARP];
    if (FORMAT == 4 && !BYPASS) {
        for (int i = threadIdx.x; i < 256 * WARP; i += blockDim.x)
            table[i] = narrow2(LEVELS[i / WARP % 16], LEVELS[i / WARP / 16]);
    }
    __syncthreads();
    unsigned words[WORDS];
    pair sums[WORDS] = {};
#pragma unroll
    for (int j = 0; j < WORDS; j++) words[j] = operands[0] * (threadIdx.x + j);
    const unsigned change = operands[1];
    const pair x = operands[2];
    const long long before = clock64();
#pragma unroll 1
    for (int iteration = 0; iteration < iterations; iteration++) {
#pragma unroll
        for (int j = 0; j < WORDS; j++) {
#pragma unroll
            for (int i = 0; i < PAIRS; i++)
                sums[j] = multiply_add2(number(words[j], i, reinterpret_cast<const char *>(table)), x, sums[j]);
            words[j] += change;
        }
    }
    const long long after = clock64();
    unsigned all = 0;
#pragma unroll
    for (int j = 0; j < WORDS; j++) all += sums[j];
    if (all == 0xdeadbeef && iterations < 0) *sink = all;
    if (threadIdx.x == 0) clocks[blockIdx.x] = after - before;
}

// How many instructions of one kind a multiprocessor completes in a clock.
//
// A thread runs CHAINS chains of one instruction, each as long as the loop: with one chain every instruction
// waits for the one before it (its latency), with eight the pipe is kept full (its throughput). Each block
// notes how many clocks it took, from where all of its warps begin to where the last of them is done: a rate
// credits every thread, so the clock of the first to finish would be too early. The result of every chain is stored if it is a
// number that never comes, so nothing can be left out; a test looks into the machine code for what is left.
//
//     clocks[block] = clock after - clock before      instructions of a thread = ITERATIONS * UNROLL * CHAINS
//
// Operands come from memory, lest the compiler compute with them.
#include "lanes.cuh"

constexpr int UNROLL = 16;

// The number of the operation, OPERATION, chooses one of these; `a` and `b` are operands that it does not know.
__device__ __forceinline__ unsigned step(unsigned x, unsigned a, unsigned b, const unsigned *shared) {
    unsigned result;
#if OPERATION == 0  // I2F: an integer to fp16, on the slow unit
    asm("{\n.reg .b16 h, g;\nmov.b32 {h, g}, %1;\ncvt.rn.f16.u16 h, h;\nmov.b32 %0, {h, h};\n}" : "=r"(result) : "r"(x));
#elif OPERATION == 1  // I2FP: an integer to fp32
    asm("{\n.reg .f32 f;\ncvt.rn.f32.s32 f, %1;\nmov.b32 %0, f;\n}" : "=r"(result) : "r"(x));
#elif OPERATION == 2  // F2F: fp32 to fp64
    asm("{\n.reg .f32 f;\n.reg .f64 d;\n.reg .b32 high;\nmov.b32 f, %1;\ncvt.f64.f32 d, f;\nmov.b64 {%0, high}, d;\n"
        "mov.b32 %0, high;\n}" : "=r"(result) : "r"(x));
#elif OPERATION == 3  // F2FP: two fp32 to a pair of fp16
    asm("{\n.reg .f32 f, g;\nmov.b32 f, %1;\nmov.b32 g, %2;\ncvt.rn.f16x2.f32 %0, f, g;\n}" : "=r"(result) : "r"(x), "r"(a));
#elif OPERATION == 4  // LOP3
    asm("lop3.b32 %0, %1, %2, %3, 0x96;" : "=r"(result) : "r"(x), "r"(a), "r"(b));
#elif OPERATION == 5  // PRMT
    asm("prmt.b32 %0, %1, %2, %3;" : "=r"(result) : "r"(x), "r"(a), "r"(b));
#elif OPERATION == 6  // HFMA2
    asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(result) : "r"(x), "r"(a), "r"(b));
#elif OPERATION == 7  // SHFL
    asm volatile("shfl.sync.bfly.b32 %0, %1, %2, 31, 0xffffffff;" : "=r"(result) : "r"(x), "r"(a));
#elif OPERATION == 8  // LDS
    asm volatile("ld.shared.u32 %0, [%1];" : "=r"(result) : "r"(x));
#elif OPERATION == 9  // F2FP.E4M3: two fp8 to a pair of fp16
    asm("{\n.reg .b16 h, unused;\nmov.b32 {h, unused}, %1;\ncvt.rn.f16x2.e4m3x2 %0, h;\n}" : "=r"(result) : "r"(x));
#elif OPERATION == 10  // IMAD
    asm("mad.lo.u32 %0, %1, %2, %3;" : "=r"(result) : "r"(x), "r"(a), "r"(b));
#elif OPERATION == 11  // FFMA
    asm("{\n.reg .f32 f, g, h;\nmov.b32 f, %1;\nmov.b32 g, %2;\nmov.b32 h, %3;\nfma.rn.f32 f, f, g, h;\n"
        "mov.b32 %0, f;\n}" : "=r"(result) : "r"(x), "r"(a), "r"(b));
#else
#error "define OPERATION, 0 to 11"
#endif
    return result;
}

// operands: [4] numbers; clocks: [blocks]; sink: [1], never written.
extern "C" __global__ void probe(const unsigned *operands, long long *clocks, unsigned *sink, int iterations) {
    __shared__ unsigned places[WARP];
    const int lane = threadIdx.x % WARP;
    // What LDS follows: each lane finds its own address, in its own bank.
    if (threadIdx.x < WARP) places[lane] = static_cast<unsigned>(__cvta_generic_to_shared(&places[lane]));
    __syncthreads();
    unsigned x[CHAINS];
#pragma unroll
    for (int i = 0; i < CHAINS; i++) x[i] = OPERATION == 8 ? places[lane] : operands[0] + lane + i;
    const unsigned a[2] = {operands[1], operands[2]}, b = operands[3];
    __syncthreads();
    const long long before = clock64();
#pragma unroll 1
    for (int iteration = 0; iteration < iterations; iteration++) {
#pragma unroll
        for (int u = 0; u < UNROLL; u++) {
#pragma unroll
            for (int i = 0; i < CHAINS; i++) x[i] = step(x[i], a[u % 2], b + u % 2, places);
        }
    }
    __syncthreads();
    const long long after = clock64();
    unsigned all = 0;
#pragma unroll
    for (int i = 0; i < CHAINS; i++) all += x[i];
    if (all == 0xdeadbeef && iterations < 0) *sink = all;
    if (threadIdx.x == 0) clocks[blockIdx.x] = after - before;
}

// What memory delivers to a kernel that does nothing else, and what a kernel costs that does nothing at all.
//
//     read    `passes` times over `count` x 16 bytes: of main memory if they exceed the caches, else of the L2
//     copy    once
//     empty   the launch itself, eager or in a graph
//
// The sum of what was read is stored if it is a number that never comes: that keeps the loads.
#include "lanes.cuh"

constexpr int AT_ONCE = 4;  // loads of a thread on their way together; count is a multiple of them all

extern "C" __global__ void read(const uint4 *from, unsigned *sink, int count, int passes) {
    const int threads = gridDim.x * blockDim.x, first = blockIdx.x * blockDim.x + threadIdx.x;
    unsigned sum = 0;
    for (int pass = 0; pass < passes; pass++) {
        for (int i = first; i < count; i += AT_ONCE * threads) {
            uint4 v[AT_ONCE] = {};
#pragma unroll
            for (int j = 0; j < AT_ONCE; j++) {
                // Volatile, lest passes become one; .cg: from the L2, whatever is in L1.
                if (i + j * threads < count)
                    asm volatile("ld.global.cg.v4.u32 {%0, %1, %2, %3}, [%4];"
                                 : "=r"(v[j].x), "=r"(v[j].y), "=r"(v[j].z), "=r"(v[j].w)
                                 : "l"(from + i + j * threads));
            }
#pragma unroll
            for (int j = 0; j < AT_ONCE; j++) sum += v[j].x ^ v[j].y ^ v[j].z ^ v[j].w;
        }
    }
    if (sum == 0xdeadbeef && passes < 0) *sink = sum;
}

extern "C" __global__ void copy(const uint4 *from, uint4 *to, int count) {
    const int threads = gridDim.x * blockDim.x;
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < count; i += AT_ONCE * threads) {
        uint4 v[AT_ONCE] = {};
#pragma unroll
        for (int j = 0; j < AT_ONCE; j++)
            if (i + j * threads < count) v[j] = load_once(from + i + j * threads);
#pragma unroll
        for (int j = 0; j < AT_ONCE; j++)
            if (i + j * threads < count) to[i + j * threads] = v[j];
    }
}

extern "C" __global__ void empty() {}

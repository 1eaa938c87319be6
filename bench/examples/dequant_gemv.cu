// The CUDA C++ twin of dequant_gemv.py, which also holds its problem().
// N, K, GROUP and BLOCK_N are macros: the constexprs of the problem.
#include <cuda_fp16.h>

// One block owns BLOCK_N rows, one warp one row; x is staged in shared memory for all of them.
extern "C" __global__ void gemv(const unsigned *words, const __half *scales, const __half *x,
                                float *y) {
    __shared__ __half staged[K];
    for (int k = threadIdx.x; k < K; k += blockDim.x) staged[k] = x[k];
    __syncthreads();

    const int lane = threadIdx.x % 32;
    const int n = blockIdx.x * BLOCK_N + threadIdx.x / 32;
    if (n >= N) return;
    float total = 0;
    for (int w = lane; w < K / 8; w += 32) {
        const unsigned word = words[n * (K / 8) + w];
        const float scale = __half2float(scales[n * (K / GROUP) + w / (GROUP / 8)]);
        for (int i = 0; i < 8; i++) {
            const int code = (word >> (4 * i)) & 15;
            total += (code - 8) * scale * __half2float(staged[w * 8 + i]);
        }
    }
    for (int step = 16; step > 0; step /= 2) total += __shfl_xor_sync(~0u, total, step);
    if (lane == 0) y[n] = total;
}

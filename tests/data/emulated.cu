// Kernels for tests/test_ptx_cuda.py: what nvcc makes of half2, inline lop3, cp.async, ldmatrix, mma and fp8.
#include <cuda_fp16.h>

typedef unsigned int u32;

// y[n] = sum over k of (code - 8) x[k]: a warp for each row, four warps for each block, pairs of fp16.
// Nibbles 0 to 3 of a word hold the even weights of its eight, nibbles 4 to 7 the odd ones.
extern "C" __global__ void lop3_gemv(const uint4 *words, const __half2 *x, float *y, int k) {
  __shared__ float totals[4];
  int lane = threadIdx.x % 32, warp = threadIdx.x / 32, row = blockIdx.x * 4 + warp;
  float total = 0;
  for (int i = lane; i < k / 32; i += 32) {
    uint4 four = words[row * (k / 32) + i];
    u32 word[4] = {four.x, four.y, four.z, four.w};
    __half2 part = __float2half2_rn(0.f);
    for (int j = 0; j < 16; j++) {
      u32 pair;  // 1024 + code in both halves: 0x6400 is 1024 in fp16, whose last bits count ones
      asm("lop3.b32 %0, %1, 0x000f000f, 0x64006400, 0xEA;" : "=r"(pair) : "r"(word[j / 4] >> 4 * (j % 4)));
      __half2 value = __hsub2(*reinterpret_cast<__half2 *>(&pair), __float2half2_rn(1032.f));
      part = __hfma2(value, x[i * 16 + j], part);
    }
    total += __low2float(part) + __high2float(part);
  }
  for (int step = 16; step; step /= 2) total += __shfl_xor_sync(~0u, total, step);
  if (lane == 0) totals[warp] = total;
  __syncthreads();
  if (threadIdx.x < 4) y[blockIdx.x * 4 + threadIdx.x] = totals[threadIdx.x];
}

// d[16, 8] = a[16, k] b[k, 8], one warp; tiles of a and b are copied to shared memory a step ahead.
extern "C" __global__ void mma_pipeline(const __half *a, const __half *b, float *d, int k) {
  __shared__ __align__(16) __half as[2][16][24], bs[2][16][8];  // rows of 24: no bank conflicts
  int lane = threadIdx.x;
  float c[4] = {0, 0, 0, 0};
  auto copy = [&](int step) {
    u32 to_a = __cvta_generic_to_shared(&as[step % 2][lane / 2][lane % 2 * 8]);
    asm volatile("cp.async.ca.shared.global [%0], [%1], 16;" ::"r"(to_a), "l"(a + lane / 2 * k + step * 16 + lane % 2 * 8));
    if (lane < 16) {
      u32 to_b = __cvta_generic_to_shared(&bs[step % 2][lane][0]);
      asm volatile("cp.async.ca.shared.global [%0], [%1], 16;" ::"r"(to_b), "l"(b + (step * 16 + lane) * 8));
    }
    asm volatile("cp.async.commit_group;");
  };
  copy(0);
  for (int step = 0; step < k / 16; step++) {
    if (step + 1 < k / 16) {
      copy(step + 1);
      asm volatile("cp.async.wait_group 1;");
    } else {
      asm volatile("cp.async.wait_group 0;");
    }
    __syncthreads();
    u32 f[4], g[2];
    u32 from_a = __cvta_generic_to_shared(&as[step % 2][lane % 16][lane / 16 * 8]);
    u32 from_b = __cvta_generic_to_shared(&bs[step % 2][lane % 16][0]);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];" : "=r"(f[0]), "=r"(f[1]), "=r"(f[2]), "=r"(f[3]) : "r"(from_a));
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];" : "=r"(g[0]), "=r"(g[1]) : "r"(from_b));
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]) : "r"(f[0]), "r"(f[1]), "r"(f[2]), "r"(f[3]), "r"(g[0]), "r"(g[1]));
    __syncthreads();
  }
  int row = lane / 4, column = lane % 4 * 2;
  d[row * 8 + column] = c[0];
  d[row * 8 + column + 1] = c[1];
  d[(row + 8) * 8 + column] = c[2];
  d[(row + 8) * 8 + column + 1] = c[3];
}

// Control flow as nvcc writes it: branches that diverge, a switch, loops of different lengths, an early return
// before a barrier. y[i] is what Python computes in the test.
extern "C" __global__ void ways(const int *x, int *y, int n) {
  __shared__ int s[64];
  int i = blockIdx.x * 64 + threadIdx.x, v = x[i], total = 0;
  s[threadIdx.x] = v;
  __syncthreads();
  int mirrored = s[63 - threadIdx.x];
  if (v & 1) {
    for (int j = 0; j < v; j++) {
      if (j == 7) continue;
      if (j > 11) break;
      total += j;
    }
  } else {
    while (v > 3) v = v / 2 - 1, total -= 1;
  }
  switch (x[i] % 5) {
    case 0: total *= 3; break;
    case 1: total ^= 21;
    case 2: total += 2; break;
    case 3: total = -total; break;
    default: total += mirrored;
  }
  if (i >= n) return;
  __syncthreads();
  s[threadIdx.x] = total;
  __syncthreads();
  y[i] = s[threadIdx.x];
}

// Library functions: y = expf(x), roundf(x), sqrtf(|x|), x / 3, saturated, remainder.
extern "C" __global__ void library(const float *x, float *y) {
  int i = threadIdx.x;
  y[i] = expf(x[i]);
  y[64 + i] = rintf(x[i]);
  y[128 + i] = sqrtf(fabsf(x[i]));
  y[192 + i] = x[i] / 3.1f;
  y[256 + i] = __saturatef(x[i]);
  y[320 + i] = fmodf((float)i, 7.f);
}

#if __CUDA_ARCH__ >= 890
#include <cuda_fp8.h>

// Four fp8 of each word to fp16 and, from fp16, back.
extern "C" __global__ void fp8_round_trip(const u32 *codes, __half2 *values, unsigned short *back) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  for (int half = 0; half < 2; half++) {
    unsigned short pair = codes[i] >> 16 * half;
    __half2 value = __half2(__nv_cvt_fp8x2_to_halfraw2(pair, __NV_E4M3));
    values[2 * i + half] = value;
    back[2 * i + half] = __nv_cvt_halfraw2_to_fp8x2(value, __NV_SATFINITE, __NV_E4M3);
  }
}
#endif

// As much of CUDA as moves.cuh uses, on threads of a CPU: each thread of a block is one of the machine's, a warp meets at a barrier.
#pragma once
#include <math.h>
#include <pthread.h>
#include <stdint.h>
#include <string.h>

#define __device__
#define __global__
#define __shared__ static
#define __forceinline__ inline
#define __launch_bounds__(...)

struct uint4 {
  uint32_t x, y, z, w;
};
inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) { return {x, y, z, w}; }

struct dim3 {
  unsigned x = 1;
};
inline thread_local dim3 blockIdx, threadIdx;
inline thread_local pthread_barrier_t* warp_barrier = nullptr;
inline void __syncwarp() { pthread_barrier_wait(warp_barrier); }

inline uint32_t __float_as_uint(float x) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  return bits;
}
inline float __uint_as_float(uint32_t bits) {
  float x;
  memcpy(&x, &bits, 4);
  return x;
}
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline void* __cvta_global_to_generic(uint64_t address) { return reinterpret_cast<void*>(address); }

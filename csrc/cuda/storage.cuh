// Eight consecutive elements of a tensor in registers as float32: loads and stores of 128 bits, and the rounding of a step.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "blockzo/cuda.h"
#include "blockzo/gaussian.h"

namespace {

__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ float widen(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ __forceinline__ float widen(__half x) { return __half2float(x); }
template <class T>
__device__ __forceinline__ T narrow(float x);
template <>
__device__ __forceinline__ float narrow<float>(float x) {
  return x;
}
template <>
__device__ __forceinline__ __nv_bfloat16 narrow<__nv_bfloat16>(float x) {
  return __float2bfloat16_rn(x);
}
template <>
__device__ __forceinline__ __half narrow<__half>(float x) {
  return __float2half_rn(x);
}

// The compiler cannot know that an address out of a table is one of global memory, and generic loads are slower.
template <class T>
__device__ __forceinline__ T* in_global_memory(uint64_t address) {
  return reinterpret_cast<T*>(__cvta_global_to_generic(address));
}

// Consecutive elements as they lie in memory.
template <class T, int N>
union Stored {
  uint4 wide[N * sizeof(T) / 16];
  T each[N];
  __device__ __forceinline__ Stored() {}
};

template <class T, int N>
__device__ __forceinline__ void widen(float (&value)[N], const Stored<T, N>& held) {
#pragma unroll
  for (int j = 0; j < N; ++j) value[j] = widen(held.each[j]);
}

// P parts, APART elements from one another. Where all of them lie inside, nothing stands between two loads: a branch there would have
// the second wait for the first.
template <int P, int APART, int N, class T>
__device__ __forceinline__ void load_parts(Stored<T, N> (&held)[P], const T* data, int64_t index, int64_t count, bool aligned) {
  if (aligned && index + (P - 1) * APART + N <= count) {
#pragma unroll
    for (int p = 0; p < P; ++p)
#pragma unroll
      for (int k = 0; k < (int)(N * sizeof(T) / 16); ++k) held[p].wide[k] = reinterpret_cast<const uint4*>(data + index + p * APART)[k];
    return;
  }
#pragma unroll
  for (int p = 0; p < P; ++p)
#pragma unroll
    for (int j = 0; j < N; ++j) {
      const int64_t place = index + p * APART + j;
      held[p].each[j] = place < count ? data[place] : narrow<T>(0.0f);
    }
}

template <int N, class T>
__device__ __forceinline__ void store(const float (&value)[N], T* data, int64_t index, int64_t count, bool aligned) {
  if (aligned && index + N <= count) {
    Stored<T, N> held;
#pragma unroll
    for (int j = 0; j < N; ++j) held.each[j] = narrow<T>(value[j]);
#pragma unroll
    for (int k = 0; k < (int)(N * sizeof(T) / 16); ++k) reinterpret_cast<uint4*>(data + index)[k] = held.wide[k];
    return;
  }
#pragma unroll
  for (int j = 0; j < N; ++j)
    if (index + j < count) data[index + j] = narrow<T>(value[j]);
}

__device__ __forceinline__ bool finite(float x) { return (__float_as_uint(x) & 0x7F800000u) != 0x7F800000u; }

// docs/noise.md, "Stochastic rounding"; float32 is not rounded.
__device__ __forceinline__ float stochastic(float x, uint32_t, float) { return x; }
__device__ __forceinline__ float stochastic(float x, uint32_t bits, __nv_bfloat16) {
  return finite(x) ? __uint_as_float((__float_as_uint(x) + bits) & 0xFFFF0000u) : x;
}
__device__ __forceinline__ float stochastic(float x, uint32_t bits, __half) {
  if (!finite(x)) return x;
  const uint32_t pattern = __float_as_uint(x);
  const float size = __uint_as_float(pattern & 0x7FFFFFFFu);
  if (size >= 6.103515625e-05f) return __uint_as_float((pattern + (bits >> 3)) & 0xFFFFE000u);
  const float ticks = floorf(__fadd_rn(__fmul_rn(size, 16777216.0f), __fmul_rn((float)bits, 1.52587890625e-05f)));
  return __uint_as_float(__float_as_uint(__fmul_rn(ticks, 5.9604644775390625e-08f)) | (pattern & 0x80000000u));
}

// value <- round(value + total), or round(value * factor - total), to T and back to float32. DECAYS: the factor is not 1.
template <class T, bool UPDATES, bool DECAYS, int N>
__device__ __forceinline__ void settle(float (&value)[N], const float (&total)[N], const BlockzoStep& step, uint64_t seed,
                                       uint32_t stream, int64_t index) {
  uint32_t words[4];
  const bool rounds = UPDATES && sizeof(T) == 2 && (step.flags & 1);
  if (rounds) philox_block((uint64_t)index >> 3, seed, stream, 0xFFFFFFFFu, words);
#pragma unroll
  for (int j = 0; j < N; ++j) {
    const float held = DECAYS ? __fmul_rn(value[j], step.factor) : value[j];
    float x = UPDATES ? __fsub_rn(held, total[j]) : __fadd_rn(held, total[j]);
    if (rounds) x = stochastic(x, j & 1 ? words[j >> 1] >> 16 : words[j >> 1] & 0xFFFFu, T());
    value[j] = widen(narrow<T>(x));
  }
}

}  // namespace

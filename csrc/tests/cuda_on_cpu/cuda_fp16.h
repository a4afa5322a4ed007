// float16 as the CPU kernels have it.
#pragma once
#include "blockzo/half.h"
#include "cuda_runtime.h"

struct __half {
  uint16_t bits;
};
inline float __half2float(__half x) { return half_to_float(x.bits); }
inline __half __float2half_rn(float x) { return {float_to_half(x)}; }

// Single float32 operations, each rounded on its own, for g++, clang and nvcc alike; and the constants of noise contract v1.
#pragma once

#include <cstdint>
#include <cstring>
#if !defined(__CUDA_ARCH__)
#include <cmath>
#endif

#if defined(__FAST_MATH__)
#error "blockzo's numbers are exact: compile without -ffast-math"
#endif

#if defined(__CUDACC__)
#define BLOCKZO_FN __host__ __device__ __forceinline__
#else
#define BLOCKZO_FN inline
#endif

namespace blockzo {

BLOCKZO_FN float float_of(uint32_t bits) {
#if defined(__CUDA_ARCH__)
    return __uint_as_float(bits);
#else
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
#endif
}

BLOCKZO_FN uint32_t bits_of(float value) {
#if defined(__CUDA_ARCH__)
    return __float_as_uint(value);
#else
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
#endif
}

// The host relies on -ffp-contract=off; the device is told operation by operation.
BLOCKZO_FN float mul(float a, float b) {
#if defined(__CUDA_ARCH__)
    return __fmul_rn(a, b);
#else
    return a * b;
#endif
}

BLOCKZO_FN float add(float a, float b) {
#if defined(__CUDA_ARCH__)
    return __fadd_rn(a, b);
#else
    return a + b;
#endif
}

BLOCKZO_FN float root(float a) {
#if defined(__CUDA_ARCH__)
    return __fsqrt_rn(a);
#else
    return std::sqrt(a);
#endif
}

constexpr uint32_t philox_m0 = 0xD2511F53u, philox_m1 = 0xCD9E8D57u, philox_w0 = 0x9E3779B9u, philox_w1 = 0xBB67AE85u;
constexpr int philox_rounds = 10;
constexpr uint32_t rounding_direction = 0xFFFFFFFFu;

constexpr uint32_t log_origin = 0x3F3504F3u, log_scale = 0x3FB17218u, angle_scale = 0x38490FDBu;
// Lowest degree first; functions, as device code cannot read a host array.
BLOCKZO_FN constexpr uint32_t log_term(int k) {
    return k == 0 ? 0xC000001Bu : k == 1 ? 0x3F800149u : k == 2 ? 0xBF2A8369u : k == 3 ? 0x3EFEC92Fu
         : k == 4 ? 0xBED2FBB6u : k == 5 ? 0x3EC18C5Du : 0xBE7242CDu;
}
BLOCKZO_FN constexpr uint32_t cosine_term(int k) {
    return k == 0 ? 0x3F7FFFFFu : k == 1 ? 0xBEFFFFE0u : k == 2 ? 0x3D2AA76Fu : k == 3 ? 0xBAB59551u : 0x37C23AB1u;
}
BLOCKZO_FN constexpr uint32_t sine_term(int k) {
    return k == 0 ? 0x3F7FFFF3u : k == 1 ? 0xBE2AA816u : k == 2 ? 0x3C083456u : 0xB9423DF1u;
}

}  // namespace blockzo

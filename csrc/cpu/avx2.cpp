#include "isa.h"

#if defined(__x86_64__)
#include <immintrin.h>
#pragma GCC push_options
#pragma GCC target("avx2,f16c,bmi2,fma")
namespace blockzo {
namespace {
#define LANES 8
#define VARIABLE_SHIFT true
#define NAME "avx2"
#define ROWS_2 6
#define ROWS_1 12
typedef float wide_floats __attribute__((vector_size(32)));
typedef uint64_t wide_words __attribute__((vector_size(32)));
inline wide_words mul_words(wide_words a, uint32_t b) {
  return (wide_words)_mm256_mul_epu32((__m256i)a, _mm256_set1_epi64x((long long)b));
}
inline wide_floats root(wide_floats a) { return (wide_floats)_mm256_sqrt_ps((__m256)a); }
inline wide_floats load_half(const uint16_t* p) {
  return (wide_floats)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p));
}
inline void store_half(uint16_t* p, wide_floats x) {
  _mm_storeu_si128((__m128i*)p, _mm256_cvtps_ph((__m256)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
inline wide_floats round_half(wide_floats x) {
  return (wide_floats)_mm256_cvtph_ps(_mm256_cvtps_ph((__m256)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
typedef uint32_t wide_bits __attribute__((vector_size(32)));
inline wide_bits widen_16(const uint16_t* p) { return (wide_bits)_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p)); }
inline void narrow_16(uint16_t* p, wide_bits x) {
  const __m256i packed = _mm256_packus_epi32((__m256i)x, (__m256i)x);  // twice within each half
  _mm_storeu_si128((__m128i*)p, _mm256_castsi256_si128(_mm256_permute4x64_epi64(packed, 0x08)));
}
inline wide_bits widen_8(const int8_t* p) { return (wide_bits)_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)p)); }
inline wide_floats multiply_add(wide_floats a, wide_floats b, wide_floats c) {
  return (wide_floats)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
}
bool runs_here() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("f16c") &&
         __builtin_cpu_supports("fma");
}
#include "../include/blockzo/gaussian.h"
#include "kernels.inl"
}  // namespace
const KernelTable* avx2_table() { return &TABLE; }
}  // namespace blockzo
#pragma GCC pop_options
#else
namespace blockzo {
const KernelTable* avx2_table() { return nullptr; }
}  // namespace blockzo
#endif

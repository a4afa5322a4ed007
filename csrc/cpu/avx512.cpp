#include "isa.h"

#if defined(__clang__) ? __clang_major__ >= 9 : __GNUC__ >= 10
#define DOTS_KNOWN
#endif

#if defined(__x86_64__)
#include <immintrin.h>
#if defined(__linux__) && defined(DOTS_KNOWN) && __has_include(<amxbf16intrin.h>)
#define TILES_KNOWN  // to the assembler too
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
namespace blockzo {
namespace {
// The operating system lends the registers of the matrix unit to processes that ask.
bool has_tiles() {
  static const bool found = [] {
    unsigned a, b, c, d;
    if (!avx512_table()->runs_here() || !__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(d >> 22 & 1u) || !(d >> 24 & 1u)) return false;
    constexpr int ARCH_REQ_XCOMP_PERM = 0x1023, XTILEDATA = 18;
    return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XTILEDATA) == 0;
  }();
  return found;
}
}  // namespace
}  // namespace blockzo
#endif
#pragma GCC push_options
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // in the compiler's own header
#pragma GCC diagnostic ignored "-Wuninitialized"
#define SET "avx512f,avx512bw,avx512vl,avx512dq,f16c,avx2,bmi2,fma"
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,f16c,avx2,bmi2,fma")
namespace blockzo {
namespace {
#define LANES 16
#define VARIABLE_SHIFT true
#define NAME "avx512"
#define ROWS_2 12
#define ROWS_1 12
typedef float wide_floats __attribute__((vector_size(64)));
typedef uint64_t wide_words __attribute__((vector_size(64)));
inline wide_words mul_words(wide_words a, uint32_t b) {
  return (wide_words)_mm512_mul_epu32((__m512i)a, _mm512_set1_epi64((long long)b));
}
inline wide_floats root(wide_floats a) { return (wide_floats)_mm512_sqrt_ps((__m512)a); }
inline wide_floats load_half(const uint16_t* p) {
  return (wide_floats)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p));
}
inline void store_half(uint16_t* p, wide_floats x) {
  _mm256_storeu_si256((__m256i*)p, _mm512_cvtps_ph((__m512)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
inline wide_floats round_half(wide_floats x) {
  return (wide_floats)_mm512_cvtph_ps(_mm512_cvtps_ph((__m512)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
typedef uint32_t wide_bits __attribute__((vector_size(64)));
inline wide_bits widen_16(const uint16_t* p) { return (wide_bits)_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)); }
inline void narrow_16(uint16_t* p, wide_bits x) { _mm256_storeu_si256((__m256i*)p, _mm512_cvtepi32_epi16((__m512i)x)); }
inline wide_bits widen_8(const int8_t* p) { return (wide_bits)_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p)); }
inline wide_floats multiply_add(wide_floats a, wide_floats b, wide_floats c) {
  return (wide_floats)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
}
typedef float half_floats __attribute__((vector_size(32)));
inline half_floats multiply_add(half_floats a, half_floats b, half_floats c) {
  return (half_floats)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
}
inline wide_floats choose_of_32(const float* table, wide_bits index) {
  return (wide_floats)_mm512_permutex2var_ps(_mm512_load_ps(table), (__m512i)index, _mm512_load_ps(table + 16));
}
bool runs_here() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("bmi2");
}
// Products of 16-bit pairs, on the CPUs of this set that have them.
#ifdef DOTS_KNOWN
#define DOTS_HERE __attribute__((target(SET ",avx512bf16"), noinline))
DOTS_HERE bool has_dots() { return __builtin_cpu_supports("avx512bf16"); }
// Written out, for what has them as intrinsics may not be put into a function of the set alone.
struct Pair {
  uint16_t a, b;
};
inline wide_floats add_dot(wide_floats sum, wide_floats x, const uint16_t* pair) {
  __asm__("vdpbf16ps %2%{1to16%}, %1, %0" : "+v"(sum) : "v"(x), "m"(*(const Pair*)pair));
  return sum;
}
inline half_floats add_dot(half_floats sum, half_floats x, const uint16_t* pair) {
  __asm__("vdpbf16ps %2%{1to8%}, %1, %0" : "+v"(sum) : "v"(x), "m"(*(const Pair*)pair));
  return sum;
}
// In two, for a pair that several vectors meet.
template <class V>
__attribute__((always_inline)) inline V spread_pair(const uint16_t* pair) {
  V all;
  __asm__("vbroadcastss %1, %0" : "=v"(all) : "m"(*(const Pair*)pair));
  return all;
}
template <class V>
__attribute__((always_inline)) inline V add_spread_dot(V sum, V x, V pairs) {
  __asm__("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(x), "v"(pairs));
  return sum;
}
// Rounded to bfloat16; subnormal numbers become 0, which products of pairs take them for anyway.
__attribute__((always_inline)) inline void put_rounded(uint16_t* p, wide_floats x) {
  __m256i rounded;
  __asm__("vcvtneps2bf16 %1, %0" : "=v"(rounded) : "v"(x));
  _mm256_storeu_si256((__m256i*)p, rounded);
}
__attribute__((always_inline)) inline void put_rounded(uint16_t* p, wide_floats x, wide_floats next) {
  __m512i rounded;
  __asm__("vcvtne2ps2bf16 %1, %2, %0" : "=v"(rounded) : "v"(x), "v"(next));
  _mm512_storeu_si512(p, rounded);
}
#endif
#include "../include/blockzo/gaussian.h"
#include "kernels.inl"
#ifdef TILES_KNOWN
#include "linear_tiles.inl"
constexpr KernelTable AMX_TABLE = KERNELS("amx", has_tiles, has_dots, tiles_room, tiles_rows);
#endif
}  // namespace
const KernelTable* avx512_table() { return &TABLE; }
#ifdef TILES_KNOWN
const KernelTable* amx_table() { return &AMX_TABLE; }
#else
const KernelTable* amx_table() { return nullptr; }
#endif
}  // namespace blockzo
#pragma GCC pop_options
#else
namespace blockzo {
const KernelTable* avx512_table() { return nullptr; }
const KernelTable* amx_table() { return nullptr; }
}  // namespace blockzo
#endif

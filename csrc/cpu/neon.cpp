#include "isa.h"

#if defined(__aarch64__)
#include <arm_neon.h>
#if defined(__linux__) && __has_include(<arm_bf16.h>)
#define DOTS_KNOWN  // to the assembler too
#include <sys/auxv.h>
#endif
namespace blockzo {
namespace {
#define LANES 4
#define VARIABLE_SHIFT true
#define NAME "neon"
#define ROWS_2 12
#define ROWS_1 12
typedef float wide_floats __attribute__((vector_size(16)));
typedef uint64_t wide_words __attribute__((vector_size(16)));
inline wide_words mul_words(wide_words a, uint32_t b) {
  return (wide_words)vmull_u32(vmovn_u64((uint64x2_t)a), vdup_n_u32(b));
}
inline wide_floats root(wide_floats a) { return (wide_floats)vsqrtq_f32((float32x4_t)a); }
inline wide_floats load_half(const uint16_t* p) {
  return (wide_floats)vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p)));
}
inline void store_half(uint16_t* p, wide_floats x) {
  vst1_u16(p, vreinterpret_u16_f16(vcvt_f16_f32((float32x4_t)x)));
}
inline wide_floats round_half(wide_floats x) { return (wide_floats)vcvt_f32_f16(vcvt_f16_f32((float32x4_t)x)); }
typedef uint32_t wide_bits __attribute__((vector_size(16)));
inline wide_bits widen_16(const uint16_t* p) { return (wide_bits)vmovl_u16(vld1_u16(p)); }
inline void narrow_16(uint16_t* p, wide_bits x) { vst1_u16(p, vmovn_u32((uint32x4_t)x)); }
inline wide_bits widen_8(const int8_t* p) {
  int32_t four;
  memcpy(&four, p, sizeof four);
  return (wide_bits)vmovl_s16(vget_low_s16(vmovl_s8(vreinterpret_s8_s32(vdup_n_s32(four)))));
}
inline wide_floats multiply_add(wide_floats a, wide_floats b, wide_floats c) {
  return (wide_floats)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
}
bool runs_here() { return true; }
#ifdef DOTS_KNOWN
// Products of 16-bit pairs, in a set of their own.
constexpr bool (*has_dots)() = nullptr;
bool has_bf16() {
  constexpr unsigned long BF16 = 1ul << 14;  // HWCAP2_BF16, which older headers lack
  return getauxval(AT_HWCAP2) & BF16;
}
// BFDOT without FEAT_EBF16's own mode: two products are added, rounded to odd, and their sum added, rounded to odd; subnormal numbers are 0
// before and after. Written out, for what has it as an intrinsic may not be put into a function of the set alone.
inline wide_floats add_dot(wide_floats sum, wide_floats x, const uint16_t* pair) {
  float both;
  memcpy(&both, pair, sizeof both);
  __asm__(".arch_extension bf16\n\tbfdot %0.4s, %1.8h, %2.2h[0]" : "+w"(sum) : "w"(x), "w"(both));
  return sum;
}
// Rounded to bfloat16, subnormal numbers too.
__attribute__((always_inline)) inline void put_rounded(uint16_t* p, wide_floats x) {
  uint16x4_t rounded;
  __asm__(".arch_extension bf16\n\tbfcvtn %0.4h, %1.4s" : "=w"(rounded) : "w"(x));
  vst1_u16(p, rounded);
}
__attribute__((always_inline)) inline void put_rounded(uint16_t* p, wide_floats x, wide_floats next) {
  uint16x8_t rounded;
  __asm__(".arch_extension bf16\n\tbfcvtn %0.4h, %1.4s\n\tbfcvtn2 %0.8h, %2.4s" : "=&w"(rounded) : "w"(x), "w"(next));
  vst1q_u16(p, rounded);
}
#endif
#include "../include/blockzo/gaussian.h"
#include "kernels.inl"
#ifdef DOTS_KNOWN
constexpr KernelTable BF16_TABLE = KERNELS("neon-bf16", has_bf16, has_bf16, nullptr, nullptr);
#endif
}  // namespace
const KernelTable* neon_table() { return &TABLE; }
#ifdef DOTS_KNOWN
const KernelTable* neon_bf16_table() { return &BF16_TABLE; }
#else
const KernelTable* neon_bf16_table() { return nullptr; }
#endif
}  // namespace blockzo
#else
namespace blockzo {
const KernelTable* neon_table() { return nullptr; }
const KernelTable* neon_bf16_table() { return nullptr; }
}  // namespace blockzo
#endif

#include "isa.h"

#if defined(__aarch64__)
#include <arm_neon.h>
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
#include "../include/blockzo/gaussian.h"
#include "kernels.inl"
}  // namespace
const KernelTable* neon_table() { return &TABLE; }
}  // namespace blockzo
#else
namespace blockzo {
const KernelTable* neon_table() { return nullptr; }
}  // namespace blockzo
#endif

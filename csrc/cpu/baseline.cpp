// No more than the architecture's own minimum: SSE2 on x86-64, scalars elsewhere.
#include "isa.h"

#include "../include/blockzo/half.h"

namespace blockzo {
namespace {
#define LANES 4
#define VARIABLE_SHIFT false
#define NAME "baseline"
#define ROWS_2 6
#define ROWS_1 6
typedef float wide_floats __attribute__((vector_size(16)));
typedef uint64_t wide_words __attribute__((vector_size(16)));
inline wide_words mul_words(wide_words a, uint32_t b) { return (a & 0xFFFFFFFFull) * (uint64_t)b; }
inline wide_floats root(wide_floats a) {
  for (int k = 0; k < LANES; ++k) a[k] = ::sqrtf(a[k]);
  return a;
}
inline wide_floats load_half(const uint16_t* p) {
  wide_floats x;
  for (int k = 0; k < LANES; ++k) x[k] = half_to_float(p[k]);
  return x;
}
inline void store_half(uint16_t* p, wide_floats x) {
  for (int k = 0; k < LANES; ++k) p[k] = float_to_half(x[k]);
}
inline wide_floats round_half(wide_floats x) {
  for (int k = 0; k < LANES; ++k) x[k] = half_to_float(float_to_half(x[k]));
  return x;
}
typedef uint32_t wide_bits __attribute__((vector_size(16)));
typedef uint16_t half_bits __attribute__((vector_size(8)));
inline wide_bits widen_16(const uint16_t* p) {
  half_bits x;
  memcpy(&x, p, sizeof x);
  return __builtin_convertvector(x, wide_bits);
}
inline void narrow_16(uint16_t* p, wide_bits x) {
  const half_bits low = __builtin_convertvector(x, half_bits);
  memcpy(p, &low, sizeof low);
}
inline wide_bits widen_8(const int8_t* p) {
  wide_bits x;
  for (int k = 0; k < LANES; ++k) x[k] = (uint32_t)(int32_t)p[k];
  return x;
}
inline wide_floats multiply_add(wide_floats a, wide_floats b, wide_floats c) { return a * b + c; }
bool runs_here() { return true; }
#include "../include/blockzo/gaussian.h"
#include "kernels.inl"
}  // namespace
const KernelTable* baseline_table() { return &TABLE; }
}  // namespace blockzo

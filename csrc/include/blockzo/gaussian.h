// The Gaussian of noise contract v1: one Box-Muller pair from one 32-bit word, one definition for scalars, vectors and GPU threads.
//
// Every operation is rounded on its own: compile with -ffp-contract=off; the GPU form spells __fmul_rn and __fadd_rn.
#pragma once
#include <math.h>
#include <string.h>

#include "philox.h"

template <class T, int N>
BLOCKZO_HD typename T::F polynomial(typename T::F x, const uint32_t (&bits)[N]) {
  typename T::F value = T::constant(bits[N - 1]);
  for (int k = N - 2; k >= 0; --k) value = T::add(T::mul(value, x), T::constant(bits[k]));
  return value;
}

template <class T>
BLOCKZO_HD void gaussian_pair(typename T::U word, typename T::F& even, typename T::F& odd) {
  typedef typename T::F F;
  typedef typename T::U U;
  typedef typename T::I I;
  const uint32_t q[7] = {0xC000001B, 0x3F800149, 0xBF2A8369, 0x3EFEC92F, 0xBED2FBB6, 0x3EC18C5D, 0xBE7242CD};
  const uint32_t cosine[5] = {0x3F7FFFFF, 0xBEFFFFE0, 0x3D2AA76F, 0xBAB59551, 0x37C23AB1};
  const uint32_t sine[4] = {0x3F7FFFF3, 0xBE2AA816, 0x3C083456, 0xB9423DF1};

  const F y = T::to_float((I)(((word & 0xFFFFu) << 1) | 1u));
  const I bits = T::bits(y);
  const I e = (bits - 0x3F3504F3) >> 23;
  const F t = T::add(T::from_bits(bits - (e << 23)), T::constant(0xBF800000u));
  const F log_term = T::mul(t, polynomial<T>(t, q));
  const F radius = T::sqrt(T::add(T::mul(T::to_float(17 - e), T::constant(0x3FB17218u)), log_term));

  const F g = T::mul(T::to_float((I)((word >> 15) & 0xFFFEu) - 32767), T::constant(0x38490FDBu));
  const F u = T::mul(g, g);
  const F c = polynomial<T>(u, cosine);
  const F s = T::mul(g, polynomial<T>(u, sine));
  const U sign = word & 0x80000000u;
  even = T::from_bits((I)((U)T::bits(T::mul(radius, c)) ^ sign));
  odd = T::from_bits((I)((U)T::bits(T::mul(radius, s)) ^ sign));
}

struct ScalarFloat {
  typedef float F;
  typedef uint32_t U;
  typedef int32_t I;
  static BLOCKZO_HD I bits(F x) {
    I r;
    memcpy(&r, &x, 4);
    return r;
  }
  static BLOCKZO_HD F from_bits(I x) {
    F r;
    memcpy(&r, &x, 4);
    return r;
  }
  static BLOCKZO_HD F constant(uint32_t x) { return from_bits((I)x); }
  static BLOCKZO_HD F to_float(I x) { return (F)x; }
#if defined(__CUDA_ARCH__)
  static BLOCKZO_HD F mul(F a, F b) { return __fmul_rn(a, b); }
  static BLOCKZO_HD F add(F a, F b) { return __fadd_rn(a, b); }
  static BLOCKZO_HD F sqrt(F a) { return __fsqrt_rn(a); }
#else
  static BLOCKZO_HD F mul(F a, F b) { return a * b; }
  static BLOCKZO_HD F add(F a, F b) { return a + b; }
  static BLOCKZO_HD F sqrt(F a) { return ::sqrtf(a); }
#endif
};

BLOCKZO_HD uint32_t gaussian_word(uint64_t i, uint64_t seed, uint32_t stream, uint32_t direction) {
  uint32_t words[4];
  philox_block(i >> 3, seed, stream, direction, words);
  return words[(i >> 1) & 3];
}

BLOCKZO_HD float gaussian_at(uint64_t i, uint64_t seed, uint32_t stream, uint32_t direction) {
  float even, odd;
  gaussian_pair<ScalarFloat>(gaussian_word(i, seed, stream, direction), even, odd);
  return i & 1 ? odd : even;
}

// The Gaussian of noise contract v1: one Box-Muller pair from one 32-bit word, one definition for scalars, vectors and GPU threads.
//
// Every operation is rounded on its own: compile with -ffp-contract=off; the GPU form spells __fmul_rn and __fadd_rn.
#pragma once
#include <math.h>
#include <string.h>

#include "philox.h"

template <class T, int N>
BLOCKZO_HD typename T::F polynomial(typename T::F x, const uint32_t (&bits)[N]) {
  typename T::F value = T::add(T::mul(x, T::constant(bits[N - 1])), T::constant(bits[N - 2]));
  for (int k = N - 3; k >= 0; --k) value = T::add(T::mul(value, x), T::constant(bits[k]));
  return value;
}

// Integers n below 2^23 become floats without a conversion: 2^23 + n has the bits 4B000000 | n, and what is taken off leaves no rest.
//
// `between` is called now and then: other work, for a CPU that would else wait for one result after the other.
template <class T, class Between>
BLOCKZO_HD void gaussian_pair(typename T::U word, typename T::F& even, typename T::F& odd, const Between& between) {
  typedef typename T::F F;
  typedef typename T::I I;
  const uint32_t q[7] = {0xC000001B, 0x3F800149, 0xBF2A8369, 0x3EFEC92F, 0xBED2FBB6, 0x3EC18C5D, 0xBE7242CD};
  const uint32_t cosine[5] = {0x3F7FFFFF, 0xBEFFFFE0, 0x3D2AA76F, 0xBAB59551, 0x37C23AB1};
  const uint32_t sine[4] = {0x3F7FFFF3, 0xBE2AA816, 0x3C083456, 0xB9423DF1};

  const F low = T::from_bits((word & 0xFFFFu) | 0x4B000000u);
  const I bits = T::bits(T::add(T::add(low, low), T::constant(0xCB7FFFFFu)));  // of 2 n + 1
  const I over = bits - 0x3F3504F3, e = over >> 23;
  const F t = T::add(T::from_bits(bits - (over & (int32_t)0xFF800000)), T::constant(0xBF800000u));
  between();
  const F log_part = polynomial<T>(t, q);
  between();
  const F radius = T::sqrt(T::add(T::level(e), T::mul(t, log_part)));

  const F high = T::from_bits(((word >> 15) & 0xFFFEu) | 0x4B000000u);
  const F g = T::mul(T::add(high, T::constant(0xCB007FFFu)), T::constant(0x38490FDBu));
  const F u = T::mul(g, g);
  between();
  const F c = polynomial<T>(u, cosine);
  between();
  const F s = T::mul(g, polynomial<T>(u, sine));
  const F signed_radius = T::from_bits(T::bits(radius) ^ T::bits(word & 0x80000000u));
  even = T::mul(signed_radius, c);
  odd = T::mul(signed_radius, s);
}

struct Nothing {
  BLOCKZO_HD void operator()() const {}
};

template <class T>
BLOCKZO_HD void gaussian_pair(typename T::U word, typename T::F& even, typename T::F& odd) {
  const Nothing nothing;
  gaussian_pair<T>(word, even, odd, nothing);
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
  static BLOCKZO_HD I bits(U x) { return (I)x; }
  static BLOCKZO_HD F from_bits(U x) { return from_bits((I)x); }
  static BLOCKZO_HD F constant(uint32_t x) { return from_bits((I)x); }
  static BLOCKZO_HD F level(I e) { return mul((F)(17 - e), constant(0x3FB17218u)); }
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

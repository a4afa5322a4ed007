// Vectors of LANES floats by GCC/clang vector extensions alone, so that the same text is SSE2, AVX2, AVX-512 and NEON.

#define INLINE inline __attribute__((always_inline))

constexpr int QLANES = LANES / 2;
typedef float vf __attribute__((vector_size(LANES * 4)));
typedef int32_t vi __attribute__((vector_size(LANES * 4)));
typedef uint32_t vu __attribute__((vector_size(LANES * 4)));
typedef uint64_t vq __attribute__((vector_size(LANES * 4)));

INLINE vf splat(float x) { return x - vf{}; }
INLINE vu splat_bits(uint32_t x) { return x | vu{}; }

template <class V>
INLINE V load(const void* p) {
  V v;
  memcpy(&v, p, sizeof(V));
  return v;
}
template <class V>
INLINE void store(void* p, V v) {
  memcpy(p, &v, sizeof(V));
}

INLINE vq lane_numbers() {
  vq v;
  for (int k = 0; k < QLANES; ++k) v[k] = (uint64_t)k;
  return v;
}

struct VectorWords {
  typedef vq Q;
  static INLINE vq mul(vq a, uint32_t b) { return mul_words(a, b); }
};

struct VectorFloat {
  typedef vf F;
  typedef vu U;
  typedef vi I;
  static INLINE vi bits(vf x) { return (vi)x; }
  static INLINE vf from_bits(vi x) { return (vf)x; }
  static INLINE vf constant(uint32_t x) { return (vf)splat_bits(x); }
  static INLINE vf to_float(vi x) { return __builtin_convertvector(x, vf); }
  static INLINE vf mul(vf a, vf b) { return a * b; }
  static INLINE vf add(vf a, vf b) { return a + b; }
  static INLINE vf sqrt(vf a) { return root(a); }
};

// even[0] odd[0] even[1] odd[1] ... in two vectors
INLINE void interleave(vf even, vf odd, vf& first, vf& second) {
#if LANES == 16
  first = __builtin_shufflevector(even, odd, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  second = __builtin_shufflevector(even, odd, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
#elif LANES == 8
  first = __builtin_shufflevector(even, odd, 0, 8, 1, 9, 2, 10, 3, 11);
  second = __builtin_shufflevector(even, odd, 4, 12, 5, 13, 6, 14, 7, 15);
#else
  first = __builtin_shufflevector(even, odd, 0, 4, 1, 5);
  second = __builtin_shufflevector(even, odd, 2, 6, 3, 7);
#endif
}

INLINE void interleave_pairs(vq even, vq odd, vq& first, vq& second) {
#if LANES == 16
  first = __builtin_shufflevector(even, odd, 0, 8, 1, 9, 2, 10, 3, 11);
  second = __builtin_shufflevector(even, odd, 4, 12, 5, 13, 6, 14, 7, 15);
#elif LANES == 8
  first = __builtin_shufflevector(even, odd, 0, 4, 1, 5);
  second = __builtin_shufflevector(even, odd, 2, 6, 3, 7);
#else
  first = __builtin_shufflevector(even, odd, 0, 2);
  second = __builtin_shufflevector(even, odd, 1, 3);
#endif
}

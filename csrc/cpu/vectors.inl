// Vectors of LANES floats by GCC/clang vector extensions alone, so that the same text is SSE2, AVX2, AVX-512 and NEON.

#define INLINE inline __attribute__((always_inline))

constexpr int QLANES = LANES / 2;
typedef float vf __attribute__((vector_size(LANES * 4)));
typedef int32_t vi __attribute__((vector_size(LANES * 4)));
typedef uint32_t vu __attribute__((vector_size(LANES * 4)));
typedef uint64_t vq __attribute__((vector_size(LANES * 4)));

// Of a few tokens: half of the widest vectors, which take half of the time.
typedef float few __attribute__((vector_size(LANES == 16 ? 32 : LANES * 4)));
typedef uint32_t few_bits __attribute__((vector_size(LANES == 16 ? 32 : LANES * 4)));

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

// Two vectors on which every operation is done in turn: a chain of dependent operations leaves half of a core idle, two fill it.
template <class V>
struct Two {
  V a, b;
};
#define IN_TURN(OP)                                                                              \
  template <class V>                                                                             \
  INLINE Two<V> operator OP(Two<V> x, Two<V> y) {                                                \
    return {x.a OP y.a, x.b OP y.b};                                                             \
  }                                                                                              \
  template <class V, class S, class = decltype(V() OP S())>                                      \
  INLINE Two<V> operator OP(Two<V> x, S y) {                                                     \
    return {x.a OP y, x.b OP y};                                                                 \
  }
IN_TURN(+) IN_TURN(-) IN_TURN(*) IN_TURN(&) IN_TURN(|) IN_TURN(^) IN_TURN(<<) IN_TURN(>>)
#undef IN_TURN

// float(17 - e) * 2 ln 2 of noise contract v1, 0 <= e <= 17, rounded as the one product there is.
INLINE vf levels(vu e) {
#if LANES == 16
  struct Levels {
    alignas(64) float value[32];
    constexpr Levels() : value() {
      for (int e = 0; e <= 17; ++e) value[e] = (float)(17 - e) * 0x1.62e43p0f;
    }
  };
  static constexpr Levels table;
  return choose_of_32(table.value, e);
#else
  return __builtin_convertvector(17 - (vi)e, vf) * 0x1.62e43p0f;
#endif
}

INLINE Two<vq> mul_words(Two<vq> a, uint32_t b) { return {mul_words(a.a, b), mul_words(a.b, b)}; }

struct VectorFloat {
  typedef Two<vf> F;
  typedef Two<vu> U;
  typedef Two<vi> I;
  static INLINE I bits(F x) { return {(vi)x.a, (vi)x.b}; }
  static INLINE I bits(U x) { return {(vi)x.a, (vi)x.b}; }
  static INLINE F from_bits(I x) { return {(vf)x.a, (vf)x.b}; }
  static INLINE F from_bits(U x) { return {(vf)x.a, (vf)x.b}; }
  static INLINE vf constant(uint32_t x) { return (vf)splat_bits(x); }
  static INLINE F level(I e) { return {levels((vu)e.a), levels((vu)e.b)}; }
  static INLINE F mul(F a, F b) { return a * b; }
  static INLINE F mul(F a, vf b) { return a * b; }
  static INLINE F add(F a, F b) { return a + b; }
  static INLINE F add(F a, vf b) { return a + b; }
  static INLINE F sqrt(F a) { return {root(a.a), root(a.b)}; }
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

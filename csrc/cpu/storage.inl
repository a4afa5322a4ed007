// How weights lie in memory: `type` there, float32 in registers. `round` is what `put` followed by `get` would give.

struct Float32 {
  typedef float type;
  static constexpr int code = FLOAT32;
  static INLINE vf get(const float* p) { return load<vf>(p); }
  static INLINE void put(float* p, vf x) { store(p, x); }
  static INLINE vf round(vf x) { return x; }
};

// No test for NaN: whatever is rounded to bfloat16 came from bfloat16 or is a NaN that the arithmetic made, so the low half of a
// NaN is 0, the carry below cannot leave it, and a NaN stays the NaN it was.
struct BFloat16 {
  typedef uint16_t type;
  static constexpr int code = BFLOAT16;
  static INLINE vu rounded(vf x) { return (vu)x + 0x7FFFu + (((vu)x >> 16) & 1u); }
  static INLINE vf get(const uint16_t* p) { return (vf)(widen_16((p)) << 16); }
  static INLINE void put(uint16_t* p, vf x) { narrow_16(p, rounded(x) >> 16); }
  static INLINE vf round(vf x) { return (vf)(rounded(x) & 0xFFFF0000u); }
};

struct Float16 {
  typedef uint16_t type;
  static constexpr int code = FLOAT16;
  static INLINE vf get(const uint16_t* p) { return load_half(p); }
  static INLINE void put(uint16_t* p, vf x) { store_half(p, x); }
  static INLINE vf round(vf x) { return round_half(x); }
};

// A float32 copy of weights of Io: every value that it holds is one that Io can hold.
template <class Io>
struct Mirror {
  typedef float type;
  static constexpr int code = Io::code;
  static INLINE vf get(const float* p) { return load<vf>(p); }
  static INLINE void put(float* p, vf x) { store(p, Io::round(x)); }
};

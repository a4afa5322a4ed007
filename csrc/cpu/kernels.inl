// Kernel bodies, included once per instruction set inside its target region and an anonymous namespace. Before it stand:
//   LANES      float lanes of a vector
//   mul_words  low 32 bits of each 64-bit lane times a 32-bit constant
//   root       correctly rounded float32 square root of each lane
//   load_half, store_half   LANES float16 values <-> vf
// Only GCC/clang vector extensions beyond that, so the same text is SSE2, AVX2, AVX-512 and NEON.

constexpr int QLANES = LANES / 2;
typedef float vf __attribute__((vector_size(LANES * 4)));
typedef int32_t vi __attribute__((vector_size(LANES * 4)));
typedef uint32_t vu __attribute__((vector_size(LANES * 4)));
typedef uint64_t vq __attribute__((vector_size(LANES * 4)));
typedef uint16_t vh __attribute__((vector_size(LANES * 2)));

inline vf splat(float x) { return x - vf{}; }
inline vu splat_bits(uint32_t x) { return x | vu{}; }

template <class V>
inline V load(const void* p) {
  V v;
  memcpy(&v, p, sizeof(V));
  return v;
}
template <class V>
inline void store(void* p, V v) {
  memcpy(p, &v, sizeof(V));
}

inline vq lane_numbers() {
  vq v;
  for (int k = 0; k < QLANES; ++k) v[k] = (uint64_t)k;
  return v;
}

struct VectorWords {
  typedef vq Q;
  static inline vq mul(vq a, uint32_t b) { return mul_words(a, b); }
};

struct VectorFloat {
  typedef vf F;
  typedef vu U;
  typedef vi I;
  static inline vi bits(vf x) { return (vi)x; }
  static inline vf from_bits(vi x) { return (vf)x; }
  static inline vf constant(uint32_t x) { return (vf)splat_bits(x); }
  static inline vf to_float(vi x) { return __builtin_convertvector(x, vf); }
  static inline vf mul(vf a, vf b) { return a * b; }
  static inline vf add(vf a, vf b) { return a + b; }
  static inline vf sqrt(vf a) { return root(a); }
};

// Words of `count` consecutive blocks, four each, in the order of the blocks. `words` has room for whole vectors.
inline void make_words(uint32_t* words, uint64_t first, int count, uint64_t seed, uint32_t stream, uint32_t direction) {
  for (int b = 0; b < count; b += QLANES) {
    const vq block = (first + (uint64_t)b) + lane_numbers();
    vq x[4] = {block, block >> 32, (uint64_t)stream | vq{}, (uint64_t)direction | vq{}};
    philox<VectorWords>(x, seed);
    const vq low = (x[0] & 0xFFFFFFFFull) | (x[1] << 32), high = (x[2] & 0xFFFFFFFFull) | (x[3] << 32);
#if LANES == 16
    store(words + 4 * b, __builtin_shufflevector(low, high, 0, 8, 1, 9, 2, 10, 3, 11));
    store(words + 4 * b + 16, __builtin_shufflevector(low, high, 4, 12, 5, 13, 6, 14, 7, 15));
#elif LANES == 8
    store(words + 4 * b, __builtin_shufflevector(low, high, 0, 4, 1, 5));
    store(words + 4 * b + 8, __builtin_shufflevector(low, high, 2, 6, 3, 7));
#else
    store(words + 4 * b, __builtin_shufflevector(low, high, 0, 2));
    store(words + 4 * b + 4, __builtin_shufflevector(low, high, 1, 3));
#endif
  }
}

constexpr int BLOCKS = TILE / GROUP;  // Rademacher blocks of a tile
// Bit k of a word moved to the sign bit, for lanes k = part * LANES + 0, 1, ...
struct SignShift {
  vu amount[32 / LANES];
  SignShift() {
    for (int k = 0; k < 32; ++k) amount[k / LANES][k % LANES] = VARIABLE_SHIFT ? (uint32_t)(31 - k) : (uint32_t)1 << k;
  }
  inline vf apply(uint32_t word, int part, vu scale_bits) const {
    const vu bits = splat_bits(word);
    const vu sign = VARIABLE_SHIFT ? bits << amount[part] : (vu)((bits & amount[part]) != 0u);
    return (vf)((sign & 0x80000000u) ^ scale_bits);
  }
};

inline vf to_bfloat_bits(vf x, vu& result) {
  const vu bits = (vu)x;
  const vu rounded = bits + 0x7FFFu + ((bits >> 16) & 1u);
  const vu quiet = bits | 0x400000u;
  result = (x == x ? rounded : quiet) & 0xFFFF0000u;
  return (vf)result;
}

struct Float32 {
  typedef float type;
  static constexpr int code = FLOAT32;
  static inline vf get(const float* p) { return load<vf>(p); }
  static inline void put(float* p, vf x) { store(p, x); }
  static inline vf round(vf x) { return x; }
};
struct BFloat16 {
  typedef uint16_t type;
  static constexpr int code = BFLOAT16;
  static inline vf get(const uint16_t* p) { return (vf)(__builtin_convertvector(load<vh>(p), vu) << 16); }
  static inline void put(uint16_t* p, vf x) {
    vu bits;
    to_bfloat_bits(x, bits);
    store(p, __builtin_convertvector(bits >> 16, vh));
  }
  static inline vf round(vf x) {
    vu bits;
    return to_bfloat_bits(x, bits);
  }
};
struct Float16 {
  typedef uint16_t type;
  static constexpr int code = FLOAT16;
  static inline vf get(const uint16_t* p) { return load_half(p); }
  static inline void put(uint16_t* p, vf x) { store_half(p, x); }
  static inline vf round(vf x) {
    uint16_t bits[LANES];
    store_half(bits, x);
    return load_half(bits);
  }
};

inline void gaussian_tile(float* out, int64_t base, int count, uint64_t seed, uint32_t stream, uint32_t direction) {
  alignas(64) uint32_t words[TILE / 2];
  make_words(words, (uint64_t)base >> 3, count >> 3, seed, stream, direction);
  for (int q = 0; q < count / 2; q += LANES) {
    vf even, odd;
    gaussian_pair<VectorFloat>(load<vu>(words + q), even, odd);
#if LANES == 16
    store(out + 2 * q, __builtin_shufflevector(even, odd, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23));
    store(out + 2 * q + 16, __builtin_shufflevector(even, odd, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31));
#elif LANES == 8
    store(out + 2 * q, __builtin_shufflevector(even, odd, 0, 8, 1, 9, 2, 10, 3, 11));
    store(out + 2 * q + 8, __builtin_shufflevector(even, odd, 4, 12, 5, 13, 6, 14, 7, 15));
#else
    store(out + 2 * q, __builtin_shufflevector(even, odd, 0, 4, 1, 5));
    store(out + 2 * q + 4, __builtin_shufflevector(even, odd, 2, 6, 3, 7));
#endif
  }
}

template <class In, class Out>
inline void perturb_typed(const typename In::type* in, typename Out::type* out, int64_t base, int64_t count, const Step& step,
                          uint32_t stream, float scale) {
  const SignShift signs;
  const vu scale_bits = (vu)splat(scale);
  const vf c = splat(scale);
  for (int64_t at = 0; at < count; at += TILE) {
    const int size = (int)(count - at < TILE ? count - at : TILE);
    if (step.distribution == RADEMACHER) {
      alignas(64) uint32_t words[BLOCKS * 4];
      make_words(words, (uint64_t)(base + at) / GROUP, size / (int)GROUP, step.seed, stream, step.directions[0]);
      for (int w = 0; w < size / 32; ++w)
        for (int part = 0; part < 32 / LANES; ++part) {
          const int64_t j = at + 32 * w + part * LANES;
          Out::put(out + j, In::get(in + j) + signs.apply(words[w], part, scale_bits));
        }
    } else {
      alignas(64) float z[TILE];
      gaussian_tile(z, base + at, size, step.seed, stream, step.directions[0]);
      for (int j = 0; j < size; j += LANES) Out::put(out + at + j, In::get(in + at + j) + c * load<vf>(z + j));
    }
  }
}

void perturb(const void* in, int in_dtype, void* out, int out_dtype, int64_t base, int64_t count, const Step& step,
             uint32_t stream, float scale) {
  if (in_dtype == FLOAT32)
    perturb_typed<Float32, Float32>((const float*)in, (float*)out, base, count, step, stream, scale);
  else if (in_dtype == BFLOAT16 && out_dtype == FLOAT32)
    perturb_typed<BFloat16, Float32>((const uint16_t*)in, (float*)out, base, count, step, stream, scale);
  else if (in_dtype == BFLOAT16)
    perturb_typed<BFloat16, BFloat16>((const uint16_t*)in, (uint16_t*)out, base, count, step, stream, scale);
  else if (out_dtype == FLOAT32)
    perturb_typed<Float16, Float32>((const uint16_t*)in, (float*)out, base, count, step, stream, scale);
  else
    perturb_typed<Float16, Float16>((const uint16_t*)in, (uint16_t*)out, base, count, step, stream, scale);
}

// acc = acc + (c_k * z_k) over the tile, one direction after the other
inline void add_directions(float* acc, int64_t base, int size, const Step& step, uint32_t stream, const SignShift& signs) {
  for (size_t k = 0; k < step.directions.size(); ++k) {
    if (step.distribution == RADEMACHER) {
      const vu scale_bits = (vu)splat(step.coefficients[k]);
      alignas(64) uint32_t words[BLOCKS * 4];
      make_words(words, (uint64_t)base / GROUP, size / (int)GROUP, step.seed, stream, step.directions[k]);
      for (int w = 0; w < size / 32; ++w)
        for (int part = 0; part < 32 / LANES; ++part) {
          float* p = acc + 32 * w + part * LANES;
          store(p, load<vf>(p) + signs.apply(words[w], part, scale_bits));
        }
    } else {
      const vf c = splat(step.coefficients[k]);
      alignas(64) float z[TILE];
      gaussian_tile(z, base, size, step.seed, stream, step.directions[k]);
      for (int j = 0; j < size; j += LANES) store(acc + j, load<vf>(acc + j) + c * load<vf>(z + j));
    }
  }
}

template <class Io>
inline vf round_stochastically(vf x, vu random) {
  const vu bits = (vu)x;
  vf moved;
  if (Io::code == BFLOAT16) {
    moved = (vf)((bits + random) & 0xFFFF0000u);
  } else {
    const vf size = (vf)(bits & 0x7FFFFFFFu);
    const vf large = (vf)((bits + (random >> 3)) & 0xFFFFE000u);
    const vf capped = size < 1.0f ? size : splat(0.0f);
    const vf ticks = capped * 16777216.0f + __builtin_convertvector((vi)random, vf) * 1.52587890625e-05f;
    const vf whole = __builtin_convertvector(__builtin_convertvector(ticks, vi), vf);
    const vf small = (vf)((vu)(whole * 5.9604644775390625e-08f) | (bits & 0x80000000u));
    moved = size >= 6.103515625e-05f ? large : small;
  }
  const vi finite = (bits & 0x7F800000u) != 0x7F800000u;
  return finite ? moved : x;
}

template <class Io>
inline void one_step(float* x, int64_t base, int size, const Step& step, Mode mode, uint32_t stream, const SignShift& signs) {
  alignas(64) float acc[TILE];
  memset(acc, 0, sizeof(float) * (size_t)size);
  add_directions(acc, base, size, step, stream, signs);
  const bool stochastic = step.stochastic && Io::code != FLOAT32 && mode == UPDATE;
  alignas(64) uint32_t words[TILE / 2 + LANES];
  if (stochastic) make_words(words, (uint64_t)base >> 3, size >> 3, step.seed, stream, 0xFFFFFFFFu);
  const bool scaled = mode == UPDATE && step.factor != 1.0f;
  for (int j = 0; j < size; j += LANES) {
    vf value = load<vf>(x + j);
    const vf total = load<vf>(acc + j);
    if (scaled) value = value * step.factor;
    value = mode == SHIFT ? value + total : value - total;
    if (stochastic) {
      const vh random = load<vh>((const uint16_t*)words + j);
      value = round_stochastically<Io>(value, __builtin_convertvector(random, vu));
    }
    store(x + j, Io::round(value));
  }
}

// Updates of one Rademacher direction each: eight vectors of weights stay in registers while several steps go by.
constexpr int RUN = 16;
constexpr int HELD = 8;

template <class Io, bool Scaled>
inline void run_of_steps(float* x, int64_t base, int size, const Step* steps, int number, uint32_t stream,
                         const SignShift& signs) {
  alignas(64) uint32_t words[RUN][BLOCKS * 4];
  for (int s = 0; s < number; ++s)
    make_words(words[s], (uint64_t)base / GROUP, size / (int)GROUP, steps[s].seed, stream, steps[s].directions[0]);
  for (int at = 0; at < size; at += HELD * LANES) {
    vf held[HELD];
    for (int v = 0; v < HELD; ++v) held[v] = load<vf>(x + at + v * LANES);
    for (int s = 0; s < number; ++s) {
      const vu scale_bits = (vu)splat(steps[s].coefficients[0]);
      for (int v = 0; v < HELD; ++v) {
        const int bit = at + v * LANES;
        vf value = Scaled ? held[v] * steps[s].factor : held[v];
        held[v] = Io::round(value - signs.apply(words[s][bit / 32], (v * LANES % 32) / LANES, scale_bits));
      }
    }
    for (int v = 0; v < HELD; ++v) store(x + at + v * LANES, held[v]);
  }
}

// With a coefficient of 0 the sum is +0 and not the signed 0 that c * z would be.
inline bool simple(const Step& step) {
  return step.distribution == RADEMACHER && step.directions.size() == 1 && step.coefficients[0] != 0.0f;
}

template <class Io>
inline void steps_typed(typename Io::type* weights, int64_t base, int64_t count, const Step* steps, int64_t number, Mode mode,
                        uint32_t stream) {
  const SignShift signs;
  if (mode == UPDATE && number == 1 && steps[0].directions.size() == 1 && steps[0].coefficients[0] != 0.0f &&
      steps[0].factor == 1.0f && !(steps[0].stochastic && Io::code != FLOAT32)) {
    perturb_typed<Io, Io>(weights, weights, base, count, steps[0], stream, -steps[0].coefficients[0]);
    return;
  }
  for (int64_t at = 0; at < count; at += TILE) {
    const int size = (int)(count - at < TILE ? count - at : TILE);
    alignas(64) float x[TILE];
    for (int j = 0; j < size; j += LANES) store(x + j, Io::get(weights + at + j));
    int64_t s = 0;
    while (s < number) {
      int run = 0;
      bool scaled = false;
      while (mode == UPDATE && run < RUN && s + run < number && simple(steps[s + run]) &&
             !(steps[s + run].stochastic && Io::code != FLOAT32)) {
        scaled |= steps[s + run].factor != 1.0f;
        ++run;
      }
      if (run > 0 && scaled)
        run_of_steps<Io, true>(x, base + at, size, steps + s, run, stream, signs);
      else if (run > 0)
        run_of_steps<Io, false>(x, base + at, size, steps + s, run, stream, signs);
      else
        one_step<Io>(x, base + at, size, steps[s], mode, stream, signs);
      s += run > 0 ? run : 1;
    }
    for (int j = 0; j < size; j += LANES) Io::put(weights + at + j, load<vf>(x + j));
  }
}

void steps(void* weights, int dtype, int64_t base, int64_t count, const Step* first, int64_t number, Mode mode,
           uint32_t stream) {
  if (dtype == FLOAT32)
    steps_typed<Float32>((float*)weights, base, count, first, number, mode, stream);
  else if (dtype == BFLOAT16)
    steps_typed<BFloat16>((uint16_t*)weights, base, count, first, number, mode, stream);
  else
    steps_typed<Float16>((uint16_t*)weights, base, count, first, number, mode, stream);
}

void fill(float* out, int64_t base, int64_t count, uint64_t seed, int distribution, uint32_t stream, uint32_t direction) {
  const SignShift signs;
  for (int64_t at = 0; at < count; at += TILE) {
    const int size = (int)(count - at < TILE ? count - at : TILE);
    if (distribution == GAUSSIAN) {
      gaussian_tile(out + at, base + at, size, seed, stream, direction);
      continue;
    }
    alignas(64) uint32_t words[BLOCKS * 4];
    make_words(words, (uint64_t)(base + at) / GROUP, size / (int)GROUP, seed, stream, direction);
    for (int j = 0; j < size; j += LANES)
      store(out + at + j, signs.apply(words[j / 32], (j % 32) / LANES, (vu)splat(1.0f)));
  }
}

void widen(const void* in, int dtype, float* out, int64_t count) {
  for (int64_t j = 0; j < count; j += LANES)
    if (dtype == FLOAT32)
      store(out + j, Float32::get((const float*)in + j));
    else if (dtype == BFLOAT16)
      store(out + j, BFloat16::get((const uint16_t*)in + j));
    else
      store(out + j, Float16::get((const uint16_t*)in + j));
}

double dot(const float* x, const float* z) {
  typedef float vs __attribute__((vector_size(SUM_LANES * 4)));
  typedef double vd __attribute__((vector_size(SUM_LANES * 8)));
  vd lanes = {};
  for (int64_t j = 0; j < CHUNK; j += SUM_LANES)
    lanes = lanes + __builtin_convertvector(load<vs>(x + j), vd) * __builtin_convertvector(load<vs>(z + j), vd);
  double sums[SUM_LANES];
  store(sums, lanes);
  for (int half = SUM_LANES / 2; half; half /= 2)
    for (int k = 0; k < half; ++k) sums[k] = sums[k] + sums[k + half];
  return sums[0];
}

const KernelTable TABLE = {NAME, runs_here, perturb, steps, fill, widen, dot};

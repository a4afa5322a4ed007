// Many steps in one pass: a tile of weights stays in the first-level cache as float32 and is rounded to its dtype at every step.

struct AddSink {
  float* sum;
  INLINE void take(int64_t at, vf cz) const { store(sum + at, load<vf>(sum + at) + cz); }
};

// Rows of +1 and -1 by the signs of a few neighbours: one number of the table and one multiplication give what else takes a shift and
// a flip of every sign. The product of c and a sign is exact, so a fused addition has the bits of contract v1.
constexpr int SIGNS = LANES == 4 ? 4 : 8;
typedef float vs __attribute__((vector_size(SIGNS * 4)));

struct SignTable {
  alignas(64) float row[1 << SIGNS][SIGNS];
  constexpr SignTable() : row() {
    for (int bits = 0; bits < 1 << SIGNS; ++bits)
      for (int k = 0; k < SIGNS; ++k) row[bits][k] = bits >> k & 1 ? -1.0f : 1.0f;
  }
};
constexpr SignTable SIGN_TABLE;

constexpr int SUMS = LANES == 16 ? 16 : 8;  // vectors of sums in registers
constexpr int TERMS = 64;                   // directions whose words are made together, a multiple of AT_ONCE
constexpr int PAIR = 16;                    // room behind the last word, which is read with the one after it

// A coefficient of 0 changes no sum, for none is -0: it fills up the last call of Philox.
struct Terms {
  alignas(64) uint64_t directions[TERMS] = {};
  alignas(64) float coefficients[TERMS] = {};
  int count;
  INLINE Terms(const Step& step, size_t first) {
    const size_t left = step.directions.size() - first, held = left < TERMS ? left : TERMS;
    for (size_t k = 0; k < held; ++k) {
      directions[k] = step.directions[first + k];
      coefficients[k] = step.coefficients[first + k];
    }
    count = (int)(held + AT_ONCE - 1) / AT_ONCE * AT_ONCE;
  }
  INLINE Calls call(int first, uint64_t block, const Step& step, uint32_t stream) const {
    const Two<vq> along = {load<vq>(directions + first), load<vq>(directions + first + QLANES)};
    return Calls(block, block >> 32, stream, along, step.seed);
  }
};

// sum += c z of AT_ONCE directions for SUMS * SIGNS weights. `words`: where the signs of these begin, APART words a direction.
template <int APART, class Between>
INLINE void add_signs(vs* sum, const uint32_t* words, const float* coefficients, const Between& between) {
#pragma GCC unroll 16
  for (int d = 0; d < AT_ONCE; ++d) {
    const vs c = coefficients[d] - vs{};
    for (int v = 0; v < SUMS; ++v) {
      // signs times the bytes of a row, by one rotation and one mask
      constexpr int ROW = (int)sizeof(SIGN_TABLE.row[0]), MASK = ((1 << SIGNS) - 1) * ROW;
      const uint64_t pair = load<uint64_t>(words + APART * d + v * SIGNS / 64 * 2);
      const int turn = (64 + v * SIGNS % 64 - __builtin_ctz(ROW)) % 64;
      const uint64_t at = (turn ? pair >> turn | pair << (64 - turn) : pair) & (uint64_t)MASK;
      sum[v] = multiply_add(load<vs>((const char*)SIGN_TABLE.row + at), c, sum[v]);
    }
    between();
  }
}

// sum += c_k z_k in the order of k, in one pass over the tile for every TERMS directions; while the sums of one block of weights are
// taken, the words of the next are made.
inline void sum_signs(float* sum, int64_t base, int size, const Step& step, uint32_t stream) {
  alignas(64) uint32_t words[2][4 * TERMS + PAIR];
  for (size_t first = 0; first < step.directions.size(); first += TERMS) {
    const Terms terms(step, first);
    const uint64_t block = (uint64_t)base / GROUP;
    for (int d = 0; d < terms.count; d += AT_ONCE) terms.call(d, block, step, stream).finish(words[0] + 4 * d);
    for (int b = 0; b < size / (int)GROUP; ++b)
      for (int part = 0; part < (int)GROUP; part += SUMS * SIGNS) {
        const uint32_t* ready = words[b % 2] + part / 32;
        uint32_t* wanted = words[(b + 1) % 2];
        float* place = sum + b * (int)GROUP + part;
        vs held[SUMS];
        for (int v = 0; v < SUMS; ++v) held[v] = load<vs>(place + v * SIGNS);
        for (int d = 0; d < terms.count; d += AT_ONCE)
          if (part == 0) {
            Calls next = terms.call(d, block + (uint64_t)b + 1, step, stream);
            add_signs<4>(held, ready + 4 * d, terms.coefficients + d, [&] { next.step(); });
            next.finish(wanted + 4 * d);
          } else {
            add_signs<4>(held, ready + 4 * d, terms.coefficients + d, Nothing());
          }
        for (int v = 0; v < SUMS; ++v) store(place + v * SIGNS, held[v]);
      }
  }
}

// sum += c z of steps of one Rademacher direction each, every one with a seed of its own, at most AT_ONCE.
inline void sum_seeds(float* sum, int64_t base, int size, const Step* steps, int number, uint32_t stream) {
  constexpr int ROW = BLOCKS * 4;
  alignas(64) uint32_t words[ROW * AT_ONCE + PAIR] = {};
  alignas(64) float coefficients[AT_ONCE] = {};  // 0 fills up, as above
  for (int s = 0; s < number; ++s) {
    make_words(words + ROW * s, (uint64_t)base / GROUP, size / (int)GROUP, steps[s].seed, stream, steps[s].directions[0]);
    coefficients[s] = steps[s].coefficients[0];
  }
  for (int at = 0; at < size; at += SUMS * SIGNS) {
    vs held[SUMS];
    for (int v = 0; v < SUMS; ++v) held[v] = load<vs>(sum + at + v * SIGNS);
    add_signs<ROW>(held, words + at / 32, coefficients, Nothing());
    for (int v = 0; v < SUMS; ++v) store(sum + at + v * SIGNS, held[v]);
  }
}

INLINE bool one_sign(const Step& step) { return step.distribution == RADEMACHER && step.directions.size() == 1; }

// sum += c z of all directions of a step.
inline void sum_terms(float* sum, int64_t base, int size, const Step& step, uint32_t stream) {
  if (step.distribution == RADEMACHER && 2 * (int)step.directions.size() >= AT_ONCE)
    sum_signs(sum, base, size, step, stream);
  else
    for (size_t k = 0; k < step.directions.size(); ++k)
      generate(step.distribution, base, size, step.seed, stream, step.directions[k], step.coefficients[k], AddSink{sum});
}

// The sum of `number` steps that are joined, from 0.
inline void sum_joined(float* sum, int64_t base, int size, const Step* steps, int64_t number, uint32_t stream) {
  memset(sum, 0, sizeof(float) * (size_t)size);
  for (int64_t s = 0; s < number;) {
    int run = 0;
    while (run < AT_ONCE && s + run < number && one_sign(steps[s + run])) ++run;
    if (2 * run >= AT_ONCE)
      sum_seeds(sum, base, size, steps + s, run, stream);
    else
      sum_terms(sum, base, size, steps[s], stream), run = 1;
    s += run;
  }
}

// `moved` where the weight has a scale, `before` where that is 0.
INLINE vf chosen(vf scale, vf moved, vf before) {
  const vi has = scale != 0.0f;
  return has ? moved : before;
}

template <class Io>
INLINE vf round_stochastically(vf x, vu random) {
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

// The last of `number` steps, along the sum of all of them: those before it are joined to it. `scales`: of the weights, null but where
// they are Scaled (scaled.inl).
template <class Io, bool Scaled = false>
inline void one_step(float* x, const float* scales, int64_t base, int size, const Step* steps, int64_t number, Mode mode, uint32_t stream) {
  const Step& step = steps[number - 1];
  const bool stochastic = step.stochastic && Io::code != FLOAT32 && mode == UPDATE;
  if (!Scaled && number == 1 && step.directions.size() == 1 && !stochastic) {
    single_term<Mirror<Io>>(x, x, base, size, step, mode, stream);
    return;
  }
  alignas(64) float sum[TILE];
  sum_joined(sum, base, size, steps, number, stream);
  alignas(64) uint32_t words[TILE / 2];
  if (stochastic) make_words(words, (uint64_t)base >> 3, size >> 3, step.seed, stream, 0xFFFFFFFFu);
  const float factor = mode == UPDATE ? step.factor : 1.0f;
  for (int j = 0; j < size; j += LANES) {
    const vf before = load<vf>(x + j), w = before * factor, scale = Scaled ? load<vf>(scales + j) : splat(1.0f);
    const vf s = Scaled ? scale * load<vf>(sum + j) : load<vf>(sum + j);
    vf moved = mode == SHIFT ? w + s : w - s;
    // the words of rounding, read as 16-bit numbers, are the bits of one element after the other
    if (stochastic) moved = round_stochastically<Io>(moved, widen_16((const uint16_t*)words + j));
    moved = Io::round(moved);
    store(x + j, Scaled ? chosen(scale, moved, before) : moved);
  }
}

// Updates of one Rademacher direction each: eight vectors of weights stay in registers while several steps go by.
constexpr int RUN = 16;
constexpr int HELD = 8;

template <class Io, bool Scaled>
inline void run_of_steps(float* x, int64_t base, int size, const Step* steps, int number, uint32_t stream) {
  const SignShift signs;
  alignas(64) uint32_t words[RUN][BLOCKS * 4];
  for (int s = 0; s < number; ++s)
    make_words(words[s], (uint64_t)base / GROUP, size / (int)GROUP, steps[s].seed, stream, steps[s].directions[0]);
  for (int at = 0; at < size; at += HELD * LANES) {
    vf held[HELD];
    for (int v = 0; v < HELD; ++v) held[v] = load<vf>(x + at + v * LANES);
    for (int s = 0; s < number; ++s) {
      const vf scale = splat(steps[s].coefficients[0]);
      for (int v = 0; v < HELD; ++v) {
        const int bit = at + v * LANES;
        const vf value = Scaled ? held[v] * steps[s].factor : held[v];
        held[v] = Io::round(value - signs.apply(words[s][bit / 32], (v * LANES % 32) / LANES, scale));
      }
    }
    for (int v = 0; v < HELD; ++v) store(x + at + v * LANES, held[v]);
  }
}

// With a coefficient of 0 the sum is +0 and not the signed 0 that c * z would be.
template <class Io>
INLINE bool runs(const Step& step) {
  return step.distribution == RADEMACHER && step.directions.size() == 1 && step.coefficients[0] != 0.0f && !step.joins &&
         !(step.stochastic && Io::code != FLOAT32);
}

template <class Io>
inline void steps_typed(typename Io::type* weights, int64_t base, int64_t count, const Step* steps, int64_t number, Mode mode,
                        uint32_t stream) {
  if (number == 1 && steps[0].directions.size() == 1 && !(steps[0].stochastic && Io::code != FLOAT32)) {
    single_term<Io>(weights, weights, base, count, steps[0], mode, stream);
    return;
  }
  for (int64_t at = 0; at < count; at += TILE) {
    const int size = (int)(count - at < TILE ? count - at : TILE);
    alignas(64) float x[TILE];
    for (int j = 0; j < size; j += LANES) store(x + j, Io::get(weights + at + j));
    int64_t s = 0;
    while (s < number) {
      int64_t run = 0;
      bool scaled = false;
      while (mode == UPDATE && run < RUN && s + run < number && runs<Io>(steps[s + run])) {
        scaled |= steps[s + run].factor != 1.0f;
        ++run;
      }
      if (run > 0 && scaled)
        run_of_steps<Io, true>(x, base + at, size, steps + s, (int)run, stream);
      else if (run > 0)
        run_of_steps<Io, false>(x, base + at, size, steps + s, (int)run, stream);
      else {
        run = 1;
        while (s + run < number && steps[s + run - 1].joins) ++run;
        one_step<Io>(x, nullptr, base + at, size, steps + s, run, mode, stream);
      }
      s += run;
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

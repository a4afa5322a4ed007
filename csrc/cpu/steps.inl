// Many steps in one pass: a tile of weights stays in the first-level cache as float32 and is rounded to its dtype at every step.

struct AddSink {
  float* sum;
  INLINE void take(int64_t at, vf cz) const { store(sum + at, load<vf>(sum + at) + cz); }
};

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

template <class Io>
inline void one_step(float* x, int64_t base, int size, const Step& step, Mode mode, uint32_t stream) {
  const bool stochastic = step.stochastic && Io::code != FLOAT32 && mode == UPDATE;
  if (step.directions.size() == 1 && !stochastic) {
    single_term<Mirror<Io>>(x, x, base, size, step, mode, stream);
    return;
  }
  alignas(64) float sum[TILE];
  memset(sum, 0, sizeof(float) * (size_t)size);
  for (size_t k = 0; k < step.directions.size(); ++k)
    generate(step.distribution, base, size, step.seed, stream, step.directions[k], step.coefficients[k], AddSink{sum});
  alignas(64) uint32_t words[TILE / 2];
  if (stochastic) make_words(words, (uint64_t)base >> 3, size >> 3, step.seed, stream, 0xFFFFFFFFu);
  const float factor = mode == UPDATE ? step.factor : 1.0f;
  for (int j = 0; j < size; j += LANES) {
    const vf w = load<vf>(x + j) * factor, s = load<vf>(sum + j), moved = mode == SHIFT ? w + s : w - s;
    // the words of rounding, read as 16-bit numbers, are the bits of one element after the other
    if (stochastic)
      store(x + j, Io::round(round_stochastically<Io>(moved, widen_16((const uint16_t*)words + j))));
    else
      store(x + j, Io::round(moved));
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
  return step.distribution == RADEMACHER && step.directions.size() == 1 && step.coefficients[0] != 0.0f &&
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
      int run = 0;
      bool scaled = false;
      while (mode == UPDATE && run < RUN && s + run < number && runs<Io>(steps[s + run])) {
        scaled |= steps[s + run].factor != 1.0f;
        ++run;
      }
      if (run > 0 && scaled)
        run_of_steps<Io, true>(x, base + at, size, steps + s, run, stream);
      else if (run > 0)
        run_of_steps<Io, false>(x, base + at, size, steps + s, run, stream);
      else
        one_step<Io>(x, base + at, size, steps[s], mode, stream);
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

// Weights with a scale each: a mask, or how far each may go. It multiplies the sum, or the one product c z, before the weight meets it;
// where it is 0 the weight keeps its bits.

template <class Io, Mode MODE>
struct ScaledSink {
  typename Io::type* weights;
  const float* scales;
  float factor;
  INLINE void take(int64_t at, vf cz) const {
    __builtin_prefetch(weights + at + AHEAD, 1);
    __builtin_prefetch(scales + at + AHEAD);
    const vf before = Io::get(weights + at), scale = load<vf>(scales + at);
    // a sum begins at +0, see MoveSink
    const vf by = scale * (MODE == PERTURB ? cz : cz + 0.0f);
    const vf moved = MODE == UPDATE ? before * factor - by : before + by;
    Io::put(weights + at, chosen(scale, moved, before));
  }
};

template <class Io, Mode MODE>
inline void scaled_term(typename Io::type* weights, const float* scales, int64_t base, int size, const Step& step, uint32_t stream) {
  generate(step.distribution, base, size, step.seed, stream, step.directions[0], step.coefficients[0],
           ScaledSink<Io, MODE>{weights, scales, step.factor});
}

template <class Io>
inline void scaled_typed(typename Io::type* weights, const float* scales, int64_t base, int size, const Step* steps, int64_t number,
                         Mode mode, uint32_t stream) {
  if (number == 1 && steps[0].directions.size() == 1 && !(steps[0].stochastic && Io::code != FLOAT32)) {
    if (mode == PERTURB) return scaled_term<Io, PERTURB>(weights, scales, base, size, steps[0], stream);
    if (mode == SHIFT) return scaled_term<Io, SHIFT>(weights, scales, base, size, steps[0], stream);
    return scaled_term<Io, UPDATE>(weights, scales, base, size, steps[0], stream);
  }
  alignas(64) float x[TILE];
  for (int j = 0; j < size; j += LANES) store(x + j, Io::get(weights + j));
  for (int64_t s = 0, joined; s < number; s += joined) {
    for (joined = 1; s + joined < number && steps[s + joined - 1].joins;) ++joined;
    one_step<Io, true>(x, scales, base, size, steps + s, joined, mode, stream);
  }
  for (int j = 0; j < size; j += LANES) Io::put(weights + j, load<vf>(x + j));
}

void scaled(void* weights, int dtype, const float* scales, int64_t base, int64_t count, const Step* steps, int64_t number, Mode mode,
            uint32_t stream) {
  if (dtype == FLOAT32)
    scaled_typed<Float32>((float*)weights, scales, base, (int)count, steps, number, mode, stream);
  else if (dtype == BFLOAT16)
    scaled_typed<BFloat16>((uint16_t*)weights, scales, base, (int)count, steps, number, mode, stream);
  else
    scaled_typed<Float16>((uint16_t*)weights, scales, base, (int)count, steps, number, mode, stream);
}

// One term met by the weight on its way through the registers: read, moved, rounded, written.

// Weights are asked for one tile ahead, so that memory goes on streaming while the next tile's words are made (measured: from 0.95 to
// 0.99 of the speed of tensor.add_).
constexpr int64_t AHEAD = TILE;

template <class In, class Out, Mode MODE>
struct MoveSink {
  const typename In::type* in;
  typename Out::type* out;
  float factor;
  INLINE void take(int64_t at, vf cz) const {
    __builtin_prefetch(in + at + AHEAD);
    if ((const void*)in != (const void*)out) __builtin_prefetch(out + at + AHEAD, 1);
    const vf w = In::get(in + at);
    // a sum begins at +0, which makes a +0 of the -0 that c * z may be; a single perturbation does not
    if (MODE == PERTURB)
      Out::put(out + at, w + cz);
    else if (MODE == SHIFT)
      Out::put(out + at, w + (cz + 0.0f));
    else
      Out::put(out + at, w * factor - (cz + 0.0f));
  }
};

template <class In, class Out, Mode MODE>
inline void move_typed(const typename In::type* in, typename Out::type* out, int64_t base, int64_t count, const Step& step,
                       uint32_t stream, float scale) {
  for (int64_t at = 0; at < count; at += TILE) {
    const int size = (int)(count - at < TILE ? count - at : TILE);
    const MoveSink<In, Out, MODE> sink{in + at, out + at, step.factor};
    generate(step.distribution, base + at, size, step.seed, stream, step.directions[0], scale, sink);
  }
}

// One term in one step: as a perturbation where that gives the same bits, which a coefficient of 0 or a decay does not.
template <class Io>
inline void single_term(const typename Io::type* in, typename Io::type* out, int64_t base, int64_t count, const Step& step, Mode mode,
                        uint32_t stream) {
  const float c = step.coefficients[0];
  if (step.distribution == RADEMACHER && c != 0.0f && (mode == SHIFT || step.factor == 1.0f))
    move_typed<Io, Io, PERTURB>(in, out, base, count, step, stream, mode == SHIFT ? c : -c);
  else if (mode == SHIFT)
    move_typed<Io, Io, SHIFT>(in, out, base, count, step, stream, c);
  else
    move_typed<Io, Io, UPDATE>(in, out, base, count, step, stream, c);
}

void perturb(const void* in, int in_dtype, void* out, int out_dtype, int64_t base, int64_t count, const Step& step,
             uint32_t stream, float scale) {
  if (in_dtype == FLOAT32)
    move_typed<Float32, Float32, PERTURB>((const float*)in, (float*)out, base, count, step, stream, scale);
  else if (in_dtype == BFLOAT16 && out_dtype == FLOAT32)
    move_typed<BFloat16, Float32, PERTURB>((const uint16_t*)in, (float*)out, base, count, step, stream, scale);
  else if (in_dtype == BFLOAT16)
    move_typed<BFloat16, BFloat16, PERTURB>((const uint16_t*)in, (uint16_t*)out, base, count, step, stream, scale);
  else if (out_dtype == FLOAT32)
    move_typed<Float16, Float32, PERTURB>((const uint16_t*)in, (float*)out, base, count, step, stream, scale);
  else
    move_typed<Float16, Float16, PERTURB>((const uint16_t*)in, (uint16_t*)out, base, count, step, stream, scale);
}

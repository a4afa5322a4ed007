// The parts of project and sample: noise by itself, weights as float32, and the sum of one chunk in 16 float64 lanes.

struct FillSink {
  float* out;
  INLINE void take(int64_t at, vf z) const { store(out + at, z); }
};

void fill(float* out, int64_t base, int64_t count, uint64_t seed, int distribution, uint32_t stream, uint32_t direction) {
  for (int64_t at = 0; at < count; at += TILE) {
    const int size = (int)(count - at < TILE ? count - at : TILE);
    generate(distribution, base + at, size, seed, stream, direction, 1.0f, FillSink{out + at});
  }
}

void widen(const void* in, int dtype, float* out, int64_t count) {
  for (int64_t j = 0; j < count; j += LANES)
    if (dtype == FLOAT32)
      store(out + j, Float32::get((const float*)in + j));
    else if (dtype == BFLOAT16)
      store(out + j, BFloat16::get((const uint16_t*)in + j));
    else if (dtype == INT8)
      store(out + j, __builtin_convertvector((vi)widen_8((const int8_t*)in + j), vf));
    else
      store(out + j, Float16::get((const uint16_t*)in + j));
}

double dot(const float* x, const float* z) {
  typedef float quarter __attribute__((vector_size(LANES * 2)));
  typedef double vd __attribute__((vector_size(LANES * 4)));
  constexpr int PARTS = SUM_LANES / QLANES;
  vd lanes[PARTS] = {};
  for (int64_t j = 0; j < CHUNK; j += SUM_LANES)
    for (int p = 0; p < PARTS; ++p)
      lanes[p] += __builtin_convertvector(load<quarter>(x + j + p * QLANES), vd) *
                  __builtin_convertvector(load<quarter>(z + j + p * QLANES), vd);
  double sums[SUM_LANES];
  for (int p = 0; p < PARTS; ++p) store(sums + p * QLANES, lanes[p]);
  for (int half = SUM_LANES / 2; half; half /= 2)
    for (int k = 0; k < half; ++k) sums[k] = sums[k] + sums[k + half];
  return sums[0];
}

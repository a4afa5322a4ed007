// c * z for whole groups of 128, handed vector by vector and in order to `sink.take(position, c * z)`.

constexpr int BLOCKS = TILE / GROUP;  // Rademacher blocks of a tile

// Words of any QLANES blocks, four each, in the order of the blocks.
INLINE void make_words(uint32_t* words, vq block, uint64_t seed, uint32_t stream, uint32_t direction) {
  vq x[4] = {block, block >> 32, (uint64_t)stream | vq{}, (uint64_t)direction | vq{}};
  philox<VectorWords>(x, seed);
  const vq low = (x[0] & 0xFFFFFFFFull) | (x[1] << 32), high = (x[2] & 0xFFFFFFFFull) | (x[3] << 32);
  vq a, z;
  interleave_pairs(low, high, a, z);
  store(words, a);
  store(words + LANES, z);
}

// The same of `count` consecutive blocks. `words` has room for whole vectors.
INLINE void make_words(uint32_t* words, uint64_t first, int count, uint64_t seed, uint32_t stream, uint32_t direction) {
  for (int b = 0; b < count; b += QLANES)
    make_words(words + 4 * b, (first + (uint64_t)b) + lane_numbers(), seed, stream, direction);
}

struct ShiftTable {
  alignas(64) uint32_t amount[32];
  constexpr ShiftTable() : amount() {
    for (int k = 0; k < 32; ++k) amount[k] = VARIABLE_SHIFT ? (uint32_t)(31 - k) : (uint32_t)1 << k;
  }
};
constexpr ShiftTable SHIFTS;

// Bit k of a word moved to the sign bit, for lanes k = part * LANES + 0, 1, ...
struct SignShift {
  vu amount[32 / LANES];
  INLINE SignShift() {
    for (int part = 0; part < 32 / LANES; ++part) amount[part] = load<vu>(SHIFTS.amount + part * LANES);
  }
  INLINE vf apply(uint32_t word, int part, vf scale) const {
    const vu bits = splat_bits(word);
    const vu sign = VARIABLE_SHIFT ? bits << amount[part] : (vu)((bits & amount[part]) != 0u);
    return (vf)((sign & 0x80000000u) ^ (vu)scale);
  }
};

template <int COUNT, class Sink>
INLINE void generate_pairs(uint64_t block, uint64_t seed, uint32_t stream, uint32_t direction, vf c, int position, const Sink& sink) {
  alignas(64) uint32_t words[COUNT / 2];
  make_words(words, block, COUNT / 8, seed, stream, direction);
  for (int q = 0; q < COUNT / 2; q += LANES) {
    vf even, odd, first, second;
    gaussian_pair<VectorFloat>(load<vu>(words + q), even, odd);
    interleave(even, odd, first, second);
    sink.take(position + 2 * q, c * first);
    sink.take(position + 2 * q + LANES, c * second);
  }
}

// Gaussians made from one batch of words. With whole tiles, the integer work of Philox and the float work of the pairs come in long
// phases that each leave part of the core idle; in batches this small it overlaps them (measured: a tenth to a quarter faster).
constexpr int BATCH = 256;

// At most a tile.
template <class Sink>
INLINE void generate(int distribution, int64_t base, int count, uint64_t seed, uint32_t stream, uint32_t direction, float scale,
                     const Sink& sink) {
  const vf c = splat(scale);
  if (distribution == RADEMACHER) {
    const SignShift signs;
    alignas(64) uint32_t words[BLOCKS * 4];
    make_words(words, (uint64_t)base / GROUP, count / (int)GROUP, seed, stream, direction);
    for (int w = 0; w < count / 32; ++w)
      for (int part = 0; part < 32 / LANES; ++part) sink.take(32 * w + part * LANES, signs.apply(words[w], part, c));
  } else {
    const uint64_t block = (uint64_t)base >> 3;
    int at = 0;
    for (; at + BATCH <= count; at += BATCH)
      generate_pairs<BATCH>(block + (uint64_t)(at >> 3), seed, stream, direction, c, at, sink);
    for (; at < count; at += (int)GROUP)
      generate_pairs<(int)GROUP>(block + (uint64_t)(at >> 3), seed, stream, direction, c, at, sink);
  }
}

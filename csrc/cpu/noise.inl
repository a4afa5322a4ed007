// c * z for whole groups of 128, handed vector by vector and in order to `sink.take(position, c * z)`.

constexpr int BLOCKS = TILE / GROUP;  // Rademacher blocks of a tile
constexpr int AT_ONCE = 2 * QLANES;   // calls of Philox

INLINE Two<vq> spread(Two<vq> x) { return x; }
INLINE Two<vq> spread(uint64_t x) { return Two<vq>{} | x; }
INLINE uint64_t mul_words(uint64_t a, uint32_t b) { return (uint64_t)(uint32_t)a * b; }
INLINE Two<vq> mix(Two<vq> high, Two<vq> other, uint64_t key) { return high ^ other ^ key; }
INLINE Two<vq> mix(Two<vq> high, uint64_t other, uint64_t key) { return high ^ (other ^ key); }
INLINE Two<vq> mix(uint64_t high, Two<vq> other, uint64_t key) { return other ^ (high ^ key); }
INLINE uint64_t mix(uint64_t high, uint64_t other, uint64_t key) { return high ^ other ^ key; }

// A counter of Philox whose parts are vectors, or numbers that all lanes share: these cost next to nothing. Whatever the counter, a
// part that is shared is gone after three rounds, so the first three have types of their own.
template <class A, class B, class C, class D>
struct Counter {
  A x0;
  B x1;
  C x2;
  D x3;
};
template <class A, class B, class C, class D>
INLINE Counter<A, B, C, D> counter(A x0, B x1, C x2, D x3) {
  return {x0, x1, x2, x3};
}

struct Keys {
  uint32_t first, second;
  INLINE explicit Keys(uint64_t seed) : first((uint32_t)seed), second((uint32_t)(seed >> 32)) {}
  INLINE void next() {
    first += 0x9E3779B9u;
    second += 0xBB67AE85u;
  }
};

template <class A, class B, class C, class D>
INLINE auto one_round(const Counter<A, B, C, D>& x, Keys& keys) {
  const auto p0 = mul_words(x.x0, 0xD2511F53u);
  const auto p1 = mul_words(x.x2, 0xCD9E8D57u);
  const auto found = counter(mix(p1 >> 32, x.x1, keys.first), p1, mix(p0 >> 32, x.x3, keys.second), p0);
  keys.next();
  return found;
}

INLINE vq turn_halves(vq x) {
#if LANES == 16
  return (vq)__builtin_shufflevector((vu)x, (vu)x, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14);
#elif LANES == 8
  return (vq)__builtin_shufflevector((vu)x, (vu)x, 1, 0, 3, 2, 5, 4, 7, 6);
#else
  return (vq)__builtin_shufflevector((vu)x, (vu)x, 1, 0, 3, 2);
#endif
}

// AT_ONCE calls of Philox, step by step.
struct Calls {
  Counter<Two<vq>, Two<vq>, Two<vq>, Two<vq>> x;
  Keys keys;
  int done;

  template <class A, class B, class C>
  INLINE Calls(A block, B block_high, uint64_t stream, C direction, uint64_t seed) : keys(seed), done(3) {
    const auto first = one_round(counter(block, block_high, stream, direction), keys);
    const auto second = one_round(first, keys);
    const auto third = one_round(second, keys);
    x = counter(spread(third.x0), spread(third.x1), spread(third.x2), spread(third.x3));
  }
  INLINE void step() {
    if (done++ < 9) x = one_round(x, keys);
  }
  // Four words a call, in the order of the lanes.
  INLINE void finish(uint32_t* words) {
    while (done < 9) step();
    // the last round puts its words where they belong: the high half of a product below the low half of the same
    const Two<vq> p0 = mul_words(x.x0, 0xD2511F53u), p1 = mul_words(x.x2, 0xCD9E8D57u);
    const Two<vq> other1 = (x.x1 ^ (uint64_t)keys.first) & (uint64_t)0xFFFFFFFFu, other3 = (x.x3 ^ (uint64_t)keys.second) & (uint64_t)0xFFFFFFFFu;
    const Two<vq> low = Two<vq>{turn_halves(p1.a), turn_halves(p1.b)} ^ other1;
    const Two<vq> high = Two<vq>{turn_halves(p0.a), turn_halves(p0.b)} ^ other3;
    vq a, b, c, d;
    interleave_pairs(low.a, high.a, a, b);
    interleave_pairs(low.b, high.b, c, d);
    store(words, a);
    store(words + LANES, b);
    store(words + 2 * LANES, c);
    store(words + 3 * LANES, d);
  }
};

// Blocks on both sides of a multiple of 2^32.
__attribute__((noinline)) void make_far_words(uint32_t* words, const Two<vq>& block, uint64_t seed, uint32_t stream, uint32_t direction) {
  Calls(block, block >> 32, stream, (uint64_t)direction, seed).finish(words);
}

// Words of any AT_ONCE blocks; `high`: what all of them have above their low 32 bits, or FAR where they differ there.
constexpr uint64_t FAR = ~0ull;
INLINE void make_words(uint32_t* words, Two<vq> block, uint64_t high, uint64_t seed, uint32_t stream, uint32_t direction) {
  if (high == FAR)
    make_far_words(words, block, seed, stream, direction);
  else
    Calls(block, high, stream, (uint64_t)direction, seed).finish(words);
}

INLINE uint64_t high_of(uint64_t first, uint64_t last) { return first >> 32 == last >> 32 ? first >> 32 : FAR; }

INLINE Two<vq> blocks_from(uint64_t first) {
  const vq lanes = lane_numbers();
  return {first + lanes, first + (uint64_t)QLANES + lanes};
}

// Words of `count` consecutive blocks. `words` has room for whole calls.
INLINE void make_words(uint32_t* words, uint64_t first, int count, uint64_t seed, uint32_t stream, uint32_t direction) {
  const uint64_t high = high_of(first, first + (uint64_t)(count + AT_ONCE));
  for (int b = 0; b < count; b += AT_ONCE)
    make_words(words + 4 * b, blocks_from(first + (uint64_t)b), high, seed, stream, direction);
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

// 4 LANES Gaussians of 2 LANES words, in order, as take(position, vector).
template <class Take, class Between>
INLINE void take_pairs(const uint32_t* words, int position, const Take& take, const Between& between) {
  Two<vf> even, odd;
  vf v[4];
  gaussian_pair<VectorFloat>(Two<vu>{load<vu>(words), load<vu>(words + LANES)}, even, odd, between);
  interleave(even.a, odd.a, v[0], v[1]);
  interleave(even.b, odd.b, v[2], v[3]);
  for (int j = 0; j < 4; ++j) take(position + j * LANES, v[j]);
}

// Gaussians of `count` blocks, AT_ONCE at a time, in order as take(position, vector); block(n) gives those from number n on. While
// one batch of words becomes floats, the next is made: integers and floats each leave part of the core idle (measured: a seventh).
template <class Block, class Take>
INLINE void generate_pairs(int count, const Block& block, uint64_t high, uint64_t seed, uint32_t stream, uint32_t direction,
                           const Take& take) {
  constexpr int HALF = 2 * AT_ONCE;
  alignas(64) uint32_t words[2][2 * HALF];
  if (high == FAR) {
    for (int b = 0; b < count; b += AT_ONCE) {
      make_far_words(words[0], block(b), seed, stream, direction);
      for (int w = 0; w < 2 * HALF; w += HALF) take_pairs(words[0] + w, 8 * b + 2 * w, take, Nothing());
    }
    return;
  }
  Calls(block(0), high, stream, (uint64_t)direction, seed).finish(words[0]);
  for (int b = 0; b < count; b += AT_ONCE) {
    Calls next(block(b + AT_ONCE), high, stream, (uint64_t)direction, seed);
    const auto step = [&] { next.step(); };
    const uint32_t* ready = words[b / AT_ONCE % 2];
    take_pairs(ready, 8 * b, take, step);
    take_pairs(ready + HALF, 8 * b + 2 * HALF, take, step);
    next.finish(words[(b / AT_ONCE + 1) % 2]);
  }
}

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
    const uint64_t first = (uint64_t)base >> 3;
    const auto block = [&](int number) { return blocks_from(first + (uint64_t)number); };
    generate_pairs(count >> 3, block, high_of(first, first + TILE), seed, stream, direction, [&](int at, vf z) { sink.take(at, c * z); });
  }
}

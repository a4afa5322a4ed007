// Rows of a weight, moved and widened into a scratch: w + (c * z), each operation rounded on its own, for any start and any stride.

constexpr int SIGN_BLOCKS = DEPTH / (int)GROUP + 1;  // that DEPTH columns can touch
constexpr int PAIR_BLOCKS = DEPTH / 8 + 1;

// LANES weights of one row as float32, and the `left` that its end may leave, without a read beyond.
template <class Io>
struct DenseRow {
  const typename Io::type* row;
  INLINE vf get(int64_t k) const { return Io::get(row + k); }
  INLINE vf partial(int64_t k, int left) const {
    typename Io::type padded[LANES] = {};
    memcpy(padded, row + k, sizeof(*row) * (size_t)left);
    return Io::get(padded);
  }
};

struct Int8Row {
  const int8_t* row;
  float scale;
  INLINE vf get(int64_t k) const {
    return __builtin_convertvector((vi)widen_8(row + k), vf) * scale;
  }
  INLINE vf partial(int64_t k, int left) const {
    int8_t padded[LANES] = {};
    memcpy(padded, row + k, (size_t)left);
    return Int8Row{padded, scale}.get(0);
  }
};

struct Int4Row {
  const uint8_t* row;
  float scale;
  // Each lane gets the word of eight numbers that its own is in.
  static INLINE vu spread(const uint8_t* p) {
    uint32_t words[2] = {};
    memcpy(words, p, LANES / 2);
#if LANES == 16
    return __builtin_shufflevector(splat_bits(words[0]), splat_bits(words[1]), 0, 0, 0, 0, 0, 0, 0, 0, 16, 16, 16, 16, 16, 16, 16, 16);
#else
    return splat_bits(words[0]);
#endif
  }
  INLINE vf get(int64_t k) const {
    const uint8_t* p = row + k / 2;
    vu amount;
    for (int j = 0; j < LANES; ++j) amount[j] = (uint32_t)(j % 8 * 4);
    return __builtin_convertvector((vi)(spread(p) >> amount & 15u) - 8, vf) * scale;
  }
  INLINE vf partial(int64_t k, int left) const {
    uint8_t padded[LANES / 2] = {};
    memcpy(padded, row + k / 2, (size_t)(left + 1) / 2);
    return Int4Row{padded, scale}.get(0);
  }
};

// How moved weights lie in the scratch: `apart` numbers between two rows.
struct Floats {
  typedef float number;
  static constexpr int apart = LINE;
  static INLINE void put(float* out, vf a) { store(out, a); }
  static INLINE void put(float* out, vf a, vf b) {
    store(out, a);
    store(out + LANES, b);
  }
};

template <class To = Floats, class Row>
INLINE void widen_row(const Row& row, int count, typename To::number* out) {
  int k = 0;
  for (; k + LANES <= count; k += LANES) To::put(out + k, row.get(k));
  if (k < count) To::put(out + k, row.partial(k, count - k));
}

// `words` begins with the word that holds the sign of the first column, `shift` bits up.
template <class To, int MOVES, class Row>
INLINE void move_signs(const Row& row, int count, const uint32_t* words, int shift, const float* scales, typename To::number* const* out) {
  const SignShift signs;
  vf c[MOVES];
  for (int m = 0; m < MOVES; ++m) c[m] = splat(scales[m]);
  const auto word_at = [&](int k) { return (uint32_t)((words[k / 32] | (uint64_t)words[k / 32 + 1] << 32) >> shift); };
  int k = 0;
  for (; k + 32 <= count; k += 32) {
    const uint32_t word = word_at(k);
    for (int part = 0; part < 32 / LANES; part += 2) {
      const int at = k + part * LANES;
      const vf w = row.get(at), next = row.get(at + LANES);
      for (int m = 0; m < MOVES; ++m) To::put(out[m] + at, w + signs.apply(word, part, c[m]), next + signs.apply(word, part + 1, c[m]));
    }
  }
  for (int part = 0; k < count; ++part, k += LANES) {
    const vf w = k + LANES <= count ? row.get(k) : row.partial(k, count - k);
    for (int m = 0; m < MOVES; ++m) To::put(out[m] + k, w + signs.apply(word_at(k / 32 * 32), part, c[m]));
  }
}

template <class To, int MOVES, class Row>
INLINE void move_values(const Row& row, int count, const float* z, const float* scales, typename To::number* const* out) {
  int k = 0;
  for (; k < count; k += LANES) {
    const vf w = k + LANES <= count ? row.get(k) : row.partial(k, count - k), value = load<vf>(z + k);
    for (int m = 0; m < MOVES; ++m) To::put(out[m] + k, w + value * scales[m]);
  }
}

// Noise of one tile of rows and one block of columns, kept while the moves along its direction are made. All rows at once, so that
// short rows fill the lanes of Philox as well as long ones.
struct TileNoise {
  alignas(64) uint32_t words[4 * (ROW_TILE * SIGN_BLOCKS + AT_ONCE)];
  alignas(64) float values[8 * (ROW_TILE * PAIR_BLOCKS + AT_ONCE)];
  alignas(64) uint64_t numbers[ROW_TILE * PAIR_BLOCKS + 2 * AT_ONCE + QLANES];
  int blocks;  // of a row
  int count;   // of all

  // The blocks of `span` elements each that the rows touch.
  INLINE uint64_t list_blocks(const LinearPlan& plan, uint64_t index, int rows, int columns, uint64_t span) {
    blocks = 0;
    for (int r = 0; r < rows; ++r) {
      const uint64_t at = index + (uint64_t)(r * plan.call.noise_row);
      const int touched = (int)((at % span + (uint64_t)columns + span - 1) / span);
      blocks = touched > blocks ? touched : blocks;
    }
    count = rows * blocks;
    const vq lanes = lane_numbers();
    for (int r = 0; r < rows; ++r) {
      const uint64_t first = (index + (uint64_t)(r * plan.call.noise_row)) / span;
      for (int b = 0; b < blocks; b += QLANES) store(numbers + r * blocks + b, first + (uint64_t)b + lanes);
    }
    const uint64_t high = high_of(numbers[0], numbers[count - 1]);
    for (int pad = 0; pad < 2 * AT_ONCE; pad += QLANES) store(numbers + count + pad, numbers[0] | vq{});
    return high;
  }

  INLINE Two<vq> block(int number) const { return {load<vq>(numbers + number), load<vq>(numbers + number + QLANES)}; }

  INLINE void make_signs(const LinearPlan& plan, uint32_t direction, uint64_t index, int rows, int columns) {
    const uint64_t high = list_blocks(plan, index, rows, columns, GROUP);
    for (int b = 0; b < count; b += AT_ONCE) make_words(words + 4 * b, block(b), high, plan.seed, plan.stream, direction);
  }

  INLINE void make_values(const LinearPlan& plan, uint32_t direction, uint64_t index, int rows, int columns) {
    const uint64_t high = list_blocks(plan, index, rows, columns, 8);
    generate_pairs(count, [&](int number) { return block(number); }, high, plan.seed, plan.stream, direction,
                   [&](int at, vf z) { store(values + at, z); });
  }
};

// One move along Gaussians that nothing else needs: they meet their weights in registers, while memory brings the next weights
// (measured: a twentieth of a product by 32 tokens). Rows begin and end with whole blocks, of 8 numbers, and with whole vectors.
template <class To, class MakeRow>
INLINE void move_fresh_values(const LinearPlan& plan, uint32_t direction, TileNoise& noise, uint64_t index, int rows, int count,
                              float scale, typename To::number* out, const MakeRow& make_row) {
  const uint64_t high = noise.list_blocks(plan, index, rows, count, 8);
  const vf c = splat(scale);
  int r = 0, k = 0;
  auto row = make_row(0);
  generate_pairs(noise.count, [&](int number) { return noise.block(number); }, high, plan.seed, plan.stream, direction,
                 [&](int, vf z) {
                   if (r == rows) return;  // of whole batches
                   To::put(out + k, row.get(k) + z * c);
                   k += LANES;
                   if (k < count) return;
                   k = 0;
                   out += To::apart;
                   row = make_row(++r);
                 });
}

INLINE bool fresh_values(const LinearPlan& plan, const LinearDirection& along, uint64_t index, int count) {
  return along.noisy && plan.distribution == GAUSSIAN && along.moves.size() == 1 && plan.call.weight_dtype <= FLOAT16 &&
         count % LANES == 0 && count % 8 == 0 && index % 8 == 0 && plan.call.noise_row % 8 == 0;
}

// Rows [row, row + rows) and columns [column, column + count) by one or two moves into moved[move][row][To::apart].
template <class To, int MOVES, class MakeRow>
INLINE void move_tile(const LinearPlan& plan, const LinearDirection& along, const TileNoise& noise, uint64_t index, int rows, int count,
                      const float* scales, typename To::number* const* moved, const MakeRow& make_row) {
  for (int r = 0; r < rows; ++r) {
    typename To::number* out[MOVES];
    for (int m = 0; m < MOVES; ++m) out[m] = moved[m] + r * To::apart;
    const uint64_t at = index + (uint64_t)(r * plan.call.noise_row);
    const auto row = make_row(r);
    if (!along.noisy) {
      widen_row<To>(row, count, out[0]);
    } else if (plan.distribution == RADEMACHER) {
      const int bit = (int)(at % GROUP);
      move_signs<To, MOVES>(row, count, noise.words + r * noise.blocks * 4 + bit / 32, bit % 32, scales, out);
    } else {
      move_values<To, MOVES>(row, count, noise.values + r * noise.blocks * 8 + at % 8, scales, out);
    }
  }
}

template <class To, int MOVES>
inline void move_tile(const LinearPlan& plan, const LinearDirection& along, TileNoise& noise, int64_t row, int rows, int64_t column,
                      int count, const float* scales, typename To::number* const* moved) {
  const Linear& call = plan.call;
  const uint64_t index = (uint64_t)(call.start + row * call.noise_row + column);
  const auto with = [&](const auto& make_row) {
    move_tile<To, MOVES>(plan, along, noise, index, rows, count, scales, moved, make_row);
  };
  const auto dense = [&](auto io) {
    typedef decltype(io) Io;
    const auto* first = (const typename Io::type*)call.weight + row * call.weight_row + column;
    const auto make_row = [&](int r) { return DenseRow<Io>{first + r * call.weight_row}; };
    if (MOVES == 1 && fresh_values(plan, along, index, count))
      move_fresh_values<To>(plan, along.direction, noise, index, rows, count, scales[0], moved[0], make_row);
    else
      with(make_row);
  };
  if (call.weight_dtype == BFLOAT16) {
    dense(BFloat16());
  } else if constexpr (sizeof(typename To::number) == 2) {
    return;  // such panels are of bfloat16 weights
  } else if (call.weight_dtype == FLOAT32) {
    dense(Float32());
  } else if (call.weight_dtype == FLOAT16) {
    dense(Float16());
  } else if (call.weight_dtype == INT8) {
    const int8_t* first = (const int8_t*)call.weight + row * call.weight_row + column;
    with([&](int r) { return Int8Row{first + r * call.weight_row, call.weight_scales[row + r]}; });
  } else {
    const uint8_t* first = (const uint8_t*)call.weight + row * call.weight_row + column / 2;
    with([&](int r) { return Int4Row{first + r * call.weight_row, call.weight_scales[row + r]}; });
  }
}

// bfloat16 rows by bfloat16 weights along Rademacher directions, in two parts that are exact but for the rounding of float32 sums:
// x (w + c z) = x w + c (x z). The first is a product of 16-bit numbers, which the CPU has. In the second each factor is a sign: the
// sums of all signs of SIGNS_A_TABLE neighbours are made once and looked up for every row of the weight. A lookup and an addition
// serve five weights, where a product serves two and a moved weight in float32 one.

constexpr int SIGNS_A_TABLE = 5, TABLES = 11;       // 22 KB for LANES tokens, which stay in the first-level cache
constexpr int WINDOW = SIGNS_A_TABLE * TABLES;      // signs of a row that are summed at a time; at most 57, see below

template <class V, class Bits>
INLINE void make_tables(const float* pairs, int64_t column, int64_t width, float* tables) {
  for (int t = 0; t < TABLES; ++t) {
    V sum[1 << SIGNS_A_TABLE];
    sum[0] = V{};
    for (int j = 0; j < SIGNS_A_TABLE; ++j) {
      const int64_t k = column + t * SIGNS_A_TABLE + j;
      const Bits both = load<Bits>(pairs + (k < width ? k / 2 : 0) * LANES);
      const V x = k < width ? (V)(k % 2 ? both & 0xFFFF0000u : both << 16) : V{};
      for (int bits = 0; bits < 1 << j; ++bits) {
        sum[bits + (1 << j)] = sum[bits] - x;
        sum[bits] = sum[bits] + x;
      }
    }
    for (int bits = 0; bits < 1 << SIGNS_A_TABLE; ++bits) store(tables + (t * (1 << SIGNS_A_TABLE) + bits) * LANES, sum[bits]);
  }
}

// sums[row][stride] = x z of LANES tokens. Row r's signs begin at bit `bit` + r * width of `words`.
template <class V, class Bits>
INLINE void sum_by_signs(const float* pairs, const uint32_t* words, uint64_t bit, int rows, int64_t width, float* tables, float* sums,
                         int stride) {
  for (int64_t column = 0; column < width; column += WINDOW) {
    make_tables<V, Bits>(pairs, column, width, tables);
    for (int r = 0; r < rows; ++r) {
      const uint64_t at = bit + (uint64_t)(r * width + column);
      const uint64_t window = load<uint64_t>((const char*)words + at / 8) >> at % 8;
      V chains[2] = {column ? load<V>(sums + r * stride) : V{}, V{}};
#pragma GCC unroll 11
      for (int t = 0; t < TABLES; ++t) {
        const int turn = (64 + t * SIGNS_A_TABLE - 6) % 64;  // to where a row of 64 bytes begins
        const uint64_t row = (window >> turn | window << (64 - turn)) & (((1 << SIGNS_A_TABLE) - 1) << 6);
        chains[t % 2] += load<V>((const char*)tables + t * (sizeof(vf) << SIGNS_A_TABLE) + row);
      }
      store(sums + r * stride, chains[0] + chains[1]);
    }
  }
}

// sums = c sums + x w, one chain over the pairs of neighbours.
template <class V, int VECTORS>
DOTS_HERE void add_dots(const LinearPlan& plan, const float* pairs, int64_t first, int rows, float scale, float* sums) {
  const Linear& call = plan.call;
  const int64_t half = call.width / 2;
  const float* x[2] = {pairs, pairs + half * LANES};
  for (int r0 = 0; r0 < rows; r0 += ROW_TILE) {
    const uint16_t* w[ROW_TILE];
    V sum[ROW_TILE][VECTORS];
    for (int r = 0; r < ROW_TILE; ++r) {
      w[r] = (const uint16_t*)call.weight + (first + (r0 + r < rows ? r0 + r : rows - 1)) * call.weight_row;
      for (int v = 0; v < VECTORS; ++v) sum[r][v] = load<V>(sums + (r0 + r) * 2 * LANES + v * LANES) * scale;
    }
    for (int64_t k = 0; k < half; ++k)
      for (int r = 0; r < ROW_TILE; ++r) {
        if (VECTORS == 1) {
          sum[r][0] = add_dot(sum[r][0], load<V>(x[0] + k * LANES), w[r] + 2 * k);
          continue;
        }
        // twelve pointers do not fit into registers: each is read once (measured: a seventh of the whole)
        const V pairs = spread_pair<V>(w[r] + 2 * k);
        for (int v = 0; v < VECTORS; ++v) sum[r][v] = add_spread_dot(sum[r][v], load<V>(x[v] + k * LANES), pairs);
      }
    for (int r = 0; r < ROW_TILE; ++r)
      for (int v = 0; v < VECTORS; ++v) store(sums + (r0 + r) * 2 * LANES + v * LANES, sum[r][v]);
  }
}

// Weight rows [first, last), at most SIGN_ROWS. `room` holds their sums for two vectors of tokens, the tables and the signs.
void signs_rows(const LinearPlan& plan, int64_t first, int64_t last, float* room) {
  const Linear& call = plan.call;
  const int rows = (int)(last - first);
  float* const sums = room;
  float* const tables = sums + SIGN_ROWS * 2 * LANES;
  uint32_t* const words = (uint32_t*)(tables + TABLES * LANES * (1 << SIGNS_A_TABLE));
  const uint64_t index = (uint64_t)(call.start + first * call.width);
  for (const LinearDirection& along : plan.directions) {
    if (along.noisy) {
      const int blocks = (int)((index % GROUP + (uint64_t)(rows * call.width) + GROUP - 1) / GROUP);
      make_words(words, index / GROUP, blocks, plan.seed, plan.stream, along.direction);
    }
    for (const LinearMove& move : along.moves)
      for (size_t g = 0; g < move.groups.size(); ++g)
        for (int64_t token = 0; token < plan.padded; token += 2 * LANES) {
          const int vectors = plan.padded - token > LANES ? 2 : 1;
          const int64_t place = call.x_group ? move.places[g] : 0;
          const float* pairs = plan.packed + (place * plan.padded + token) * (call.width / 2);
          const int64_t left = plan.tokens - token;
          const bool short_of_half = left <= (int64_t)(sizeof(few) / sizeof(float));
          const auto with_signs = [&](auto v, auto bits) {
            for (int n = 0; n < vectors; ++n)
              sum_by_signs<decltype(v), decltype(bits)>(pairs + n * (call.width / 2) * LANES, words, index % GROUP, rows, call.width,
                                                        tables, sums + n * LANES, 2 * LANES);
          };
          if (!along.noisy)
            memset(sums, 0, sizeof(float) * (size_t)(rows * 2 * LANES));
          else if (short_of_half)
            with_signs(few(), few_bits());
          else
            with_signs(vf(), vu());
          if (short_of_half)
            add_dots<few, 1>(plan, pairs, first, rows, move.scale, sums);
          else if (vectors == 1)
            add_dots<vf, 1>(plan, pairs, first, rows, move.scale, sums);
          else
            add_dots<vf, 2>(plan, pairs, first, rows, move.scale, sums);
          for (int r = 0; r < rows; r += PANEL_ROWS)
            write_out(plan, move.groups[g], token, left < 2 * LANES ? left : 2 * LANES, first + r,
                      rows - r < PANEL_ROWS ? rows - r : PANEL_ROWS, sums + r * 2 * LANES);
        }
  }
}

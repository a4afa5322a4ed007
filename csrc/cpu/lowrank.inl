// Noise of a low rank: a few rows of weights meet the factors of their columns and are moved by all steps, rounded at each.

constexpr int WIDE = LOW_RANK_PAD / LANES;  // vectors that one pass over the factors serves

// total += c z over the directions of a step; or = that of its one direction, without the +0 that a sum begins with.
template <int ROWS, bool Sum>
INLINE void low_rank_sums(const LowRankTile& tile, const LowRankStep& s, int row, int at, vf (&total)[ROWS][WIDE]) {
  const vf norm = splat(tile.norm);
  const int rank = tile.rank;
  for (size_t k = 0; k < s.step->directions.size(); ++k) {
    const float* a = s.a + (int64_t)k * s.a_direction + (int64_t)row * rank;
    const float* b = s.b + (int64_t)k * rank * s.b_rank + at;
    vf z[ROWS][WIDE];
    for (int v = 0; v < WIDE; ++v) {
      const vf value = load<vf>(b + v * LANES);
      for (int r = 0; r < ROWS; ++r) z[r][v] = splat(a[r * rank]) * value;
    }
    for (int q = 1; q < rank; ++q)
      for (int v = 0; v < WIDE; ++v) {
        const vf value = load<vf>(b + q * s.b_rank + v * LANES);
        for (int r = 0; r < ROWS; ++r) z[r][v] = z[r][v] + splat(a[r * rank + q]) * value;
      }
    const vf c = splat(s.step->coefficients[k]);
    for (int r = 0; r < ROWS; ++r)
      for (int v = 0; v < WIDE; ++v) {
        const vf cz = c * (z[r][v] * norm);
        total[r][v] = Sum ? total[r][v] + cz : cz;
      }
  }
}

// The weights of a pass over the columns, as they lie in memory or as float32 that is rounded to Io at every step. The last of `number`
// steps, along the sum of all of them: those before it are joined to it.
template <class Io, int ROWS, bool Sum>
INLINE void low_rank_step(const LowRankTile& tile, const LowRankStep* steps, int64_t number, int row, int first, int last,
                          typename Io::type* const (&in)[ROWS], typename Io::type* const (&out)[ROWS]) {
  const LowRankStep& s = steps[number - 1];
  const bool stochastic = s.step->stochastic && Io::code != FLOAT32 && tile.mode == UPDATE;
  alignas(64) uint32_t words[ROWS][(LOW_RANK_SPAN + LOW_RANK_PAD) / 2 + 4 * AT_ONCE + LANES];
  if (stochastic)
    for (int r = 0; r < ROWS; ++r) {
      const uint64_t index = tile.index[row + r];
      make_words(words[r], index >> 3, (int)(((index & 7) + (uint64_t)tile.columns + 7) >> 3), s.step->seed, tile.stream, 0xFFFFFFFFu);
    }
  const float factor = tile.mode == UPDATE ? s.step->factor : 1.0f;
  const int64_t ahead = ROWS > 1 ? ROWS * (in[ROWS > 1] - in[0]) : 0;  // the rows that come next
  for (int at = first; at < last; at += LOW_RANK_PAD) {
    vf total[ROWS][WIDE] = {};
    for (int64_t n = 0; n < number; ++n) low_rank_sums<ROWS, Sum>(tile, steps[n], row, at, total);
    for (int r = 0; r < ROWS; ++r)
      for (int v = 0; v < WIDE; ++v) {
        const int place = at + v * LANES;
        if (ROWS > 1) __builtin_prefetch(in[r] + ahead + place);
        const vf w = Io::get(in[r] + place) * factor;
        const vf moved = tile.mode == UPDATE ? w - total[r][v] : w + total[r][v];
        if (stochastic)
          Io::put(out[r] + place, round_stochastically<Io>(moved, widen_16((const uint16_t*)words[r] + (tile.index[row + r] & 7) + place)));
        else
          Io::put(out[r] + place, moved);
      }
  }
}

// All steps on columns from `first` on, in float32 between them.
template <class Io, int ROWS, bool Sum>
inline void low_rank_steps(const LowRankTile& tile, int row, int first) {
  alignas(64) float x[ROWS][LOW_RANK_SPAN + LOW_RANK_PAD];
  const int whole = first + (tile.columns - first) / LANES * LANES, left = tile.columns - whole;
  const int64_t in_item = tile.in_dtype == FLOAT32 ? 4 : 2;
  float* held[ROWS];
  for (int r = 0; r < ROWS; ++r) {
    const char* in = (const char*)tile.in[row + r];
    held[r] = x[r];
    memset(x[r] + whole, 0, sizeof(float) * LOW_RANK_PAD);
    widen(in + first * in_item, tile.in_dtype, x[r] + first, whole - first);
    if (left) {
      alignas(64) char padded[LANES * 4] = {};
      memcpy(padded, in + whole * in_item, (size_t)(left * in_item));
      widen(padded, tile.in_dtype, x[r] + whole, LANES);
    }
  }
  for (int64_t n = 0, joined; n < tile.number; n += joined) {
    for (joined = 1; n + joined < tile.number && tile.steps[n + joined - 1].step->joins;) ++joined;
    low_rank_step<Mirror<Io>, ROWS, Sum>(tile, tile.steps + n, joined, row, first, tile.columns, held, held);
  }
  for (int r = 0; r < ROWS; ++r) {
    auto* out = (typename Io::type*)tile.out[row + r];
    for (int j = first; j < whole; j += LANES) Io::put(out + j, load<vf>(x[r] + j));
    if (left) {
      alignas(64) typename Io::type padded[LANES];
      Io::put(padded, load<vf>(x[r] + whole));
      memcpy(out + whole, padded, sizeof(*out) * (size_t)left);
    }
  }
}

template <class Io, int ROWS, bool Sum>
inline void low_rank_rows(const LowRankTile& tile, int row) {
  int done = 0;
  if (tile.number == 1 && tile.in_dtype == tile.out_dtype) {
    // one step goes from memory to memory; a ragged end does not
    typename Io::type *in[ROWS], *out[ROWS];
    for (int r = 0; r < ROWS; ++r) {
      in[r] = (typename Io::type*)tile.in[row + r];
      out[r] = (typename Io::type*)tile.out[row + r];
    }
    done = tile.columns / LOW_RANK_PAD * LOW_RANK_PAD;
    low_rank_step<Io, ROWS, Sum>(tile, tile.steps, 1, row, 0, done, in, out);
  }
  if (done < tile.columns) low_rank_steps<Io, ROWS, Sum>(tile, row, done);
}

template <class Io>
inline void low_rank_typed(const LowRankTile& tile) {
  const bool one = tile.mode == PERTURB;
  if (tile.rows == LOW_RANK_ROWS) return one ? low_rank_rows<Io, LOW_RANK_ROWS, false>(tile, 0) : low_rank_rows<Io, LOW_RANK_ROWS, true>(tile, 0);
  for (int row = 0; row < tile.rows; ++row) one ? low_rank_rows<Io, 1, false>(tile, row) : low_rank_rows<Io, 1, true>(tile, row);
}

void low_rank(const LowRankTile& tile) {
  if (tile.out_dtype == FLOAT32)
    low_rank_typed<Float32>(tile);
  else if (tile.out_dtype == BFLOAT16)
    low_rank_typed<BFloat16>(tile);
  else
    low_rank_typed<Float16>(tile);
}

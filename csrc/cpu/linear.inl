// The product: a scalar of the moved weight times a vector of tokens, sums of a few rows by one or two vectors in registers.

// Weights that are wanted next, asked for while the present ones are multiplied. `columns` of 0: nothing.
struct Ahead {
  const char* first;
  int64_t row_bytes;
  int columns, column_bytes;
};

// One weight times a vector of tokens. `columns`: of a product; tokens are packed by them.
struct ByFloats : Floats {
  static constexpr int columns = 1;
  explicit ByFloats(const LinearPlan&) {}
  static INLINE int64_t packed_width(const LinearPlan& plan) { return plan.call.width; }  // floats of a token
  INLINE const float* tile(const float* x, int64_t column, int64_t wide) const { return x + column * wide; }
  template <int VECTORS>
  INLINE const float* at(const float* tile, int k, int v) const {
    return tile + (k * VECTORS + v) * LANES;
  }
  template <class V>
  static INLINE V add(V sum, V x, const float* w) {
    return multiply_add(*w - V{}, x, sum);
  }
};

// c[r][stride] (+)= sum over k of w[r][k] * x[k], one chain of additions in the order of k. V: the lanes of a vector that are used.
template <class V, int ROWS, int VECTORS, class By>
inline void multiply(const By& by, const typename By::number* w, const float* x, float* c, int64_t stride, int depth, bool fresh,
                     Ahead ahead) {
  V sum[ROWS][VECTORS];
  for (int r = 0; r < ROWS; ++r)
    for (int v = 0; v < VECTORS; ++v) sum[r][v] = fresh ? V{} : load<V>(c + r * stride + v * LANES);
  for (int part = 0; part < depth; part += 16 * By::columns) {
    if (part < ahead.columns)
      for (int r = 0; r < ROWS; ++r) __builtin_prefetch(ahead.first + r * ahead.row_bytes + part * ahead.column_bytes, 0, 2);
    for (int r = 0; r < ROWS; ++r) __builtin_prefetch(w + r * By::apart + part + 32);  // measured: a twentieth faster
    const int stop = depth - part < 16 * By::columns ? depth : part + 16 * By::columns;
    for (int k = part; k < stop; k += By::columns) {
      V tokens[VECTORS];
      for (int v = 0; v < VECTORS; ++v) tokens[v] = load<V>(by.template at<VECTORS>(x, k, v));
      for (int r = 0; r < ROWS; ++r)
        for (int v = 0; v < VECTORS; ++v) sum[r][v] = By::add(sum[r][v], tokens[v], w + r * By::apart + k);
    }
  }
  for (int r = 0; r < ROWS; ++r)
    for (int v = 0; v < VECTORS; ++v) store(c + r * stride + v * LANES, sum[r][v]);
}

// One token tile by all rows of the scratch: the tile stays in the first-level cache, the rows come from the second.
template <class V, int ROWS, int VECTORS, class By>
INLINE void multiply_tile(const By& by, const typename By::number* w, const float* x, float* c, int64_t stride, int rows, int depth,
                          bool fresh, Ahead ahead) {
  for (int r = 0; r < rows; r += ROWS) {
    multiply<V, ROWS, VECTORS>(by, w + r * By::apart, x, c + r * stride, stride, depth, fresh, ahead);
    ahead.first += ROWS * ahead.row_bytes;
  }
}

// All tokens of the groups of one move. The last columns done, a tile's sums go out while they are in the first-level cache
// (measured at 1,024 tokens: a quarter faster than when the whole panel is done).
template <class By>
INLINE void multiply_groups(const LinearPlan& plan, const LinearMove& move, const typename By::number* w, int64_t first, int rows,
                            int64_t column, int depth, float* sums, Ahead& ahead) {
  const bool fresh = column == 0, done = column + depth == plan.call.width;
  const By by(plan);
  for (size_t g = 0; g < move.groups.size(); ++g) {
    const int group = move.groups[g], place = move.places[g];
    const float* x = plan.packed + (plan.call.x_group ? place : 0) * plan.padded * By::packed_width(plan);
    float* c = sums + place * plan.padded;
    for (int64_t token = 0; token < plan.padded; token += TOKENS) {
      const int64_t wide = plan.padded - token < TOKENS ? LANES : TOKENS;
      const float* tile = by.tile(x + token * By::packed_width(plan), column, wide);
      const int64_t left = plan.tokens - token;
      if (left <= (int64_t)(sizeof(few) / sizeof(float)))
        multiply_tile<few, ROWS_1, 1>(by, w, tile, c + token, plan.stride, rows, depth, fresh, ahead);
      else if (wide == LANES)
        multiply_tile<vf, ROWS_1, 1>(by, w, tile, c + token, plan.stride, rows, depth, fresh, ahead);
      else
        multiply_tile<vf, ROWS_2, 2>(by, w, tile, c + token, plan.stride, rows, depth, fresh, ahead);
      ahead.columns = 0;
      if (done) write_out(plan, group, token, left < wide ? left : wide, first, rows, c + token);
    }
  }
}

INLINE Ahead look_ahead(const Linear& call, int64_t row, int64_t column, int depth) {
  if (column >= call.width || call.weight_dtype > FLOAT16) return {};
  const int bytes = call.weight_dtype == FLOAT32 ? 4 : 2;
  const int64_t left = call.width - column;
  return {(const char*)call.weight + (row * call.weight_row + column) * bytes, call.weight_row * bytes, left < depth ? (int)left : depth,
          bytes};
}

// To the dtype of the weights and back, in the scratch: what a move in place would leave. Whole vectors: what stands behind a row is
// nobody's.
template <class Io>
INLINE void round_tile(float* moved, int rows, int depth) {
  for (int r = 0; r < rows; ++r)
    for (int k = 0; k < depth; k += LANES) store(moved + r * LINE + k, Io::round(load<vf>(moved + r * LINE + k)));
}

// Up to two moves along one direction, of all rows of a panel; rows that fill up the last tile are 0.
template <class By>
INLINE void move_panel(const LinearPlan& plan, const LinearDirection& along, size_t first_move, int64_t first, int64_t last,
                       int64_t column, int depth, typename By::number* const* moved) {
  TileNoise noise;
  const bool two = first_move + 1 < along.moves.size();
  const float scales[2] = {along.moves[first_move].scale, two ? along.moves[first_move + 1].scale : 0.0f};
  for (int64_t row = first; row < last; row += ROW_TILE) {
    const int rows = (int)(last - row < ROW_TILE ? last - row : ROW_TILE);
    const uint64_t index = (uint64_t)(plan.call.start + row * plan.call.noise_row + column);
    if (along.noisy && plan.distribution == RADEMACHER)
      noise.make_signs(plan, along.direction, index, rows, depth);
    else if (along.noisy && !fresh_values(plan, along, index, depth))
      noise.make_values(plan, along.direction, index, rows, depth);
    typename By::number* const out[2] = {moved[0] + (row - first) * By::apart, moved[1] + (row - first) * By::apart};
    if (two)
      move_tile<By, 2>(plan, along, noise, row, rows, column, depth, scales, out);
    else
      move_tile<By, 1>(plan, along, noise, row, rows, column, depth, scales, out);
    for (int j = 0; By::columns == 1 && plan.call.narrow && along.noisy && j <= (int)two; ++j) {
      if (plan.call.weight_dtype == BFLOAT16) round_tile<BFloat16>((float*)out[j], rows, depth);
      if (plan.call.weight_dtype == FLOAT16) round_tile<Float16>((float*)out[j], rows, depth);
    }
    for (int j = 0; j <= (int)two; ++j) memset(out[j] + rows * By::apart, 0, sizeof(*out[j]) * (size_t)((ROW_TILE - rows) * By::apart));
  }
}

// Weight rows [first, last), at most plan.panel. `room` holds two moved panels and the sums, up to whole tiles of rows.
template <class By>
INLINE void panel_rows(const LinearPlan& plan, int64_t first, int64_t last, float* room) {
  const Linear& call = plan.call;
  typename By::number* const moved[2] = {(typename By::number*)room, (typename By::number*)(room + plan.panel * LINE)};
  float* const sums = room + 2 * plan.panel * LINE;
  const int rows = (int)(last - first);
  for (int64_t column = 0; column < call.width; column += plan.depth) {
    const int64_t next = column + plan.depth;
    const int depth = (int)(next > call.width ? call.width - column : plan.depth);
    // the rows of the next panel are taken to be there: asking for memory that is not does no harm
    Ahead ahead = next < call.width ? look_ahead(call, first, next, plan.depth) : look_ahead(call, last, 0, plan.depth);
    for (const LinearDirection& along : plan.directions)
      for (size_t m = 0; m < along.moves.size(); m += 2) {
        move_panel<By>(plan, along, m, first, last, column, depth, moved);
        for (size_t j = 0; j < 2 && m + j < along.moves.size(); ++j)
          multiply_groups<By>(plan, along.moves[m + j], moved[j], first, rows, column, depth, sums, ahead);
      }
  }
}

void linear_rows(const LinearPlan& plan, int64_t first, int64_t last, float* room) { panel_rows<ByFloats>(plan, first, last, room); }

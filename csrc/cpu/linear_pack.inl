// Tokens into the lanes of vectors, and sums back into rows of tokens: transpositions by 4 x 4 blocks.

constexpr int TOKENS = 2 * LANES;  // of a tile
typedef float quad __attribute__((vector_size(16)));

#if LANES == 16
#define IN_QUADS(a, b, c, d)                                                                                                       \
  a, b, c, d, a + 4, b + 4, c + 4, d + 4, a + 8, b + 8, c + 8, d + 8, a + 12, b + 12, c + 12, d + 12
#elif LANES == 8
#define IN_QUADS(a, b, c, d) a, b, c, d, a + 4, b + 4, c + 4, d + 4
#else
#define IN_QUADS(a, b, c, d) a, b, c, d
#endif

// A 4 x 4 transposition in every quad of four vectors.
INLINE void transpose_quads(vf v[4]) {
  const vf a = __builtin_shufflevector(v[0], v[1], IN_QUADS(0, LANES, 1, LANES + 1));
  const vf b = __builtin_shufflevector(v[0], v[1], IN_QUADS(2, LANES + 2, 3, LANES + 3));
  const vf c = __builtin_shufflevector(v[2], v[3], IN_QUADS(0, LANES, 1, LANES + 1));
  const vf d = __builtin_shufflevector(v[2], v[3], IN_QUADS(2, LANES + 2, 3, LANES + 3));
  v[0] = __builtin_shufflevector(a, c, IN_QUADS(0, 1, LANES, LANES + 1));
  v[1] = __builtin_shufflevector(a, c, IN_QUADS(2, 3, LANES + 2, LANES + 3));
  v[2] = __builtin_shufflevector(b, d, IN_QUADS(0, 1, LANES, LANES + 1));
  v[3] = __builtin_shufflevector(b, d, IN_QUADS(2, 3, LANES + 2, LANES + 3));
}
#undef IN_QUADS

// Quads from `row[0]`, `row[4]`, ... at column k.
INLINE vf join_quads(const float* const* row, int64_t k) {
#if LANES == 4
  return load<vf>(row[0] + k);
#else
  typedef float pair __attribute__((vector_size(32)));
  const pair low = __builtin_shufflevector(load<quad>(row[0] + k), load<quad>(row[4] + k), 0, 1, 2, 3, 4, 5, 6, 7);
#if LANES == 8
  return low;
#else
  const pair high = __builtin_shufflevector(load<quad>(row[8] + k), load<quad>(row[12] + k), 0, 1, 2, 3, 4, 5, 6, 7);
  return __builtin_shufflevector(low, high, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
#endif
#endif
}

// Quad q of a vector to out + q * 4 * stride.
INLINE void part_quads(vf v, float* out, [[maybe_unused]] int64_t stride) {
#if LANES == 4
  store(out, v);
#else
  store(out, __builtin_shufflevector(v, v, 0, 1, 2, 3));
  store(out + 4 * stride, __builtin_shufflevector(v, v, 4, 5, 6, 7));
#if LANES == 16
  store(out + 8 * stride, __builtin_shufflevector(v, v, 8, 9, 10, 11));
  store(out + 12 * stride, __builtin_shufflevector(v, v, 12, 13, 14, 15));
#endif
#endif
}

// LANES rows of `count` columns to out[k][stride].
INLINE void pack_rows(const float* const* rows, int count, float* out, int64_t stride) {
  int k = 0;
  for (; k + 4 <= count; k += 4) {
    vf v[4];
    for (int j = 0; j < 4; ++j) v[j] = join_quads(rows + j, k);
    transpose_quads(v);
    for (int j = 0; j < 4; ++j) store(out + (k + j) * stride, v[j]);
  }
  for (; k < count; ++k)
    for (int lane = 0; lane < LANES; ++lane) out[k * stride + lane] = rows[lane][k];
}

template <class Io>
INLINE void widen_tokens(const typename Io::type* x, int count, float* out) {
  widen_row(DenseRow<Io>{x}, count, out);
}

// Tile number `tile` of the tiles of all groups held. Lanes beyond the last token repeat it; nobody reads what becomes of them.
void linear_pack(const LinearPlan& plan, int64_t tile) {
  const Linear& call = plan.call;
  const int64_t place = tile / plan.tiles, first = tile % plan.tiles * TOKENS, left = plan.padded - first, group = plan.held[place];
  const int64_t wide = left < TOKENS ? left : TOKENS;
  float* out = plan.packed + (place * plan.padded + first) * call.width;
  alignas(64) float widened[LANES][LINE];
  for (int64_t lane0 = 0; lane0 < wide; lane0 += LANES)
    for (int64_t column = 0; column < call.width; column += DEPTH) {
      const int count = (int)(call.width - column < DEPTH ? call.width - column : DEPTH);
      const float* rows[LANES];
      for (int lane = 0; lane < LANES; ++lane) {
        const int64_t token = first + lane0 + lane < plan.tokens ? first + lane0 + lane : plan.tokens - 1;
        const int64_t at = group * call.x_group + (plan.first_token + token) * call.x_row + column;
        if (call.x_dtype == FLOAT32) {
          rows[lane] = (const float*)call.x + at;
          continue;
        }
        rows[lane] = widened[lane];
        if (call.x_dtype == BFLOAT16)
          widen_tokens<BFloat16>((const uint16_t*)call.x + at, count, widened[lane]);
        else
          widen_tokens<Float16>((const uint16_t*)call.x + at, count, widened[lane]);
      }
      pack_rows(rows, count, out + column * wide + lane0, wide);
    }
}

// A NaN may carry any bits here, and a carry out of them would turn it into a number.
INLINE vf plain_nan(vf x) { return x == x ? x : splat(__builtin_nanf("")); }

template <class Io>
INLINE void put_row(typename Io::type* out, const float* sums, const float* bias, int count) {
  int n = 0;
  for (; n + LANES <= count; n += LANES) Io::put(out + n, plain_nan(load<vf>(sums + n) + load<vf>(bias + n)));
  if (n < count) {
    typename Io::type padded[LANES];
    Io::put(padded, plain_nan(load<vf>(sums + n) + load<vf>(bias + n)));
    memcpy(out + n, padded, sizeof(*out) * (size_t)(count - n));
  }
}

constexpr int SUM_LINE = PANEL_ROWS + 4 * LANES;

INLINE void load_bias(const Linear& call, int64_t group, int64_t first, int rows, float* bias) {
  memset(bias, 0, sizeof(float) * SUM_LINE);
  if (!call.bias) return;
  const int64_t at = group * call.bias_group + first;
  if (call.bias_dtype == FLOAT32)
    widen_row(DenseRow<Float32>{(const float*)call.bias + at}, rows, bias);
  else if (call.bias_dtype == BFLOAT16)
    widen_row(DenseRow<BFloat16>{(const uint16_t*)call.bias + at}, rows, bias);
  else
    widen_row(DenseRow<Float16>{(const uint16_t*)call.bias + at}, rows, bias);
}

// sums[row][stride] of `tokens` tokens of a group, from `token` on, to out[token][rows of the weight], rows [first, first + rows).
INLINE void write_out(const LinearPlan& plan, int64_t group, int64_t token, int64_t tokens, int64_t first, int rows, const float* sums) {
  const Linear& call = plan.call;
  alignas(64) float bias[SUM_LINE], turned[LANES][SUM_LINE];
  load_bias(call, group, first, rows, bias);
  for (int64_t token0 = 0; token0 < tokens; token0 += LANES) {
    for (int r = 0; r < rows; r += 4) {  // rows up to a whole tile have their sums
      vf v[4];
      for (int j = 0; j < 4; ++j) v[j] = load<vf>(sums + (r + j) * plan.stride + token0);
      transpose_quads(v);
      for (int j = 0; j < 4; ++j) part_quads(v[j], turned[j] + r, SUM_LINE);
    }
    const int held = (int)(tokens - token0 < LANES ? tokens - token0 : LANES);
    for (int lane = 0; lane < held; ++lane) {
      const int64_t at = (group * call.tokens + plan.first_token + token + token0 + lane) * call.rows + first;
      if (call.x_dtype == FLOAT32)
        put_row<Float32>((float*)call.out + at, turned[lane], bias, rows);
      else if (call.x_dtype == BFLOAT16)
        put_row<BFloat16>((uint16_t*)call.out + at, turned[lane], bias, rows);
      else
        put_row<Float16>((uint16_t*)call.out + at, turned[lane], bias, rows);
    }
  }
}

// bfloat16 rows by weights that are moved and rounded to bfloat16: products of pairs of neighbours, summed in float32.

// Two neighbours of each token in the two halves of its lane, so that tokens are packed as floats would be.
void pack_pairs(const LinearPlan& plan, int64_t vector) {
  const Linear& call = plan.call;
  const int64_t of_group = plan.padded / LANES, place = vector / of_group, first = vector % of_group * LANES;
  const float* rows[LANES];
  for (int lane = 0; lane < LANES; ++lane) {
    const int64_t token = first + lane < plan.tokens ? first + lane : plan.tokens - 1;
    rows[lane] = (const float*)((const uint16_t*)call.x + plan.held[place] * call.x_group + (plan.first_token + token) * call.x_row);
  }
  float* const out = plan.packed + vector * plan.pairs * LANES;
  pack_rows(rows, (int)(call.width / 2), out, LANES);
  memset(out + call.width / 2 * LANES, 0, sizeof(vf) * (size_t)(plan.pairs - call.width / 2));
}

struct ByPairs {
  typedef uint16_t number;
  static constexpr int apart = DEPTH + 32, columns = 2;
  const int64_t vector;  // floats between two vectors of tokens
  explicit ByPairs(const LinearPlan& plan) : vector(plan.pairs * LANES) {}
  static INLINE int64_t packed_width(const LinearPlan& plan) { return plan.pairs; }
  INLINE const float* tile(const float* x, int64_t column, int64_t) const { return x + column / 2 * LANES; }
  template <int VECTORS>
  INLINE const float* at(const float* tile, int k, int v) const {
    return tile + k / 2 * LANES + v * vector;
  }
  static INLINE void put(uint16_t* out, vf a) { put_rounded(out, a); }
  static INLINE void put(uint16_t* out, vf a, vf b) { put_rounded(out, a, b); }
  template <class V>
  static INLINE V add(V sum, V x, const uint16_t* w) {
    return add_dot(sum, x, w);
  }
};

void rounded_rows(const LinearPlan& plan, int64_t first, int64_t last, float* room) { panel_rows<ByPairs>(plan, first, last, room); }

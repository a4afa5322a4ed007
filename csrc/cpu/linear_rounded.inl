// bfloat16 rows by weights that are moved and rounded to bfloat16: products of pairs of neighbours, summed in float32.

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

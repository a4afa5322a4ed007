// A matrix unit (AMX): products of two by two tiles of bfloat16 with float32 sums, and what is made and fetched beside them.

constexpr int SIDE = 16;            // rows of a tile, and tokens of one
constexpr int STEP = 32;            // columns of a product of two tiles
constexpr int TILE_ROWS = 2 * SIDE, TILE_TOKENS = 2 * SIDE;  // of a product of two by two tiles
constexpr int TILE_DEPTH = 256;     // columns of signs that are made at a time: 16 KB, which stay in the first-level cache
constexpr int TILE_SUMS = TILE_ROWS * TILE_TOKENS;

#define TILE_LOAD(t, p, bytes) __asm__ volatile("tileloadd (%0,%1,1), %%tmm" #t ::"r"(p), "r"((long)(bytes)) : "memory")
#define TILE_STORE(t, p, bytes) __asm__ volatile("tilestored %%tmm" #t ", (%0,%1,1)" ::"r"(p), "r"((long)(bytes)) : "memory")
#define TILE_ZERO(t) __asm__ volatile("tilezero %%tmm" #t ::)
#define TILE_DOTS(sum, a, b) __asm__ volatile("tdpbf16ps %%tmm" #b ", %%tmm" #a ", %%tmm" #sum ::)

struct alignas(64) TileShapes {
  uint8_t palette = 1, start = 0, unused[14] = {};
  uint16_t bytes[16] = {};
  uint8_t rows[16] = {};
  TileShapes() {
    for (int t = 0; t < 8; ++t) {
      bytes[t] = 64;
      rows[t] = SIDE;
    }
  }
};

struct TilesInUse {
  TilesInUse() {
    const TileShapes shapes;
    __asm__ volatile("ldtilecfg %0" ::"m"(shapes));
  }
  ~TilesInUse() { __asm__ volatile("tilerelease" ::); }
};

// One side of a product: TILE_ROWS rows of 16-bit numbers, `row_bytes` from each other; the next STEP columns `step_bytes` on.
struct TileSide {
  const uint16_t* first;
  int64_t row_bytes, step_bytes;
};
constexpr int STEP_SIZE = TILE_ROWS * STEP;  // numbers of a step, where these lie together: [step][row][column]
INLINE TileSide by_steps(const uint16_t* first) { return {first, STEP * 2, STEP_SIZE * 2}; }

// Rows of signs from the bit `bit` of `words` on, by steps; row r + 1 begins `width` bits after row r. With `weights`: of these, moved
// by `scale` along the signs.
struct SignRows {
  const uint32_t* words;
  uint64_t bit;
  int64_t width;
  TileSide weights;
  float scale;
  int steps;
  uint16_t* to;

  INLINE uint32_t word(int r, int s) const {
    const uint64_t at = bit + (uint64_t)(r * width + s * STEP);
    return (uint32_t)(load<uint64_t>((const char*)words + at / 8) >> at % 8);
  }
  INLINE void make(int first, int last) const {
    if (weights.first)
      move(first, last);
    else
      spread(first, last);
  }
  INLINE void spread(int first, int last) const {
    const __m512i plus = _mm512_set1_epi16(0x3F80), minus = _mm512_set1_epi16((short)0xBF80);
    for (int r = first; r < last; ++r)
      for (int s = 0; s < steps; ++s)
        _mm512_store_si512(to + s * STEP_SIZE + r * STEP, _mm512_mask_blend_epi16(word(r, s), plus, minus));
  }
  DOTS_HERE void move(int first, int last) const {
    const __m512 c = _mm512_set1_ps(scale);
    const auto moved = [&](__m256i w, __mmask16 negative) __attribute__((always_inline)) {
      const __m512 wide = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(w), 16));
      return _mm512_mask_sub_ps(_mm512_add_ps(wide, c), negative, wide, c);
    };
    for (int r = first; r < last; ++r)
      for (int s = 0; s < steps; ++s) {
        const __m256i* w = (const __m256i*)((const char*)weights.first + r * weights.row_bytes + s * weights.step_bytes);
        const uint32_t negative = word(r, s);
        const __m512 low = moved(_mm256_loadu_si256(w), (__mmask16)negative);
        const __m512 high = moved(_mm256_loadu_si256(w + 1), (__mmask16)(negative >> 16));
        _mm512_store_si512(to + s * STEP_SIZE + r * STEP, (__m512i)_mm512_cvtne2ps_pbh(high, low));
      }
  }
};

// What goes on between products, for integers, memory and the matrix unit each leave most of the core idle: the weights of the next
// panel are fetched, and the noise of the next columns is made.
struct Beside {
  const char *next, *last;  // weights of the next panel, asked for in the order of memory: then the hardware reads ahead as well
  int lines;                // of memory, a step
  SignRows signs;
  int rows, made, a_step;

  // `products`: calls of `step` that will come for these columns
  INLINE void begin(const SignRows& next, int products) {
    signs = next;
    made = 0;
    a_step = (rows + products - 1) / products;
  }
  INLINE void step() {
    if (next < last)
      for (int line = 0; line < lines; ++line, next += 64) __builtin_prefetch(next, 0, 2);
    if (made < rows && signs.words) make(a_step);
  }
  INLINE void make(int count) {
    const int last = made + count < rows ? made + count : rows;
    signs.make(made, last);
    made = last;
  }
  INLINE void finish() {
    if (signs.words) make(rows);
  }
};

// sums[TILE_ROWS][TILE_TOKENS] (+)= rows x tokens over `steps` times STEP columns. x: vectors of tokens as pairs, `vector_bytes` apart.
template <bool TWO>
INLINE void multiply_tiles(TileSide rows, const float* x, int64_t vector_bytes, int steps, float* sums, bool fresh, Beside& beside) {
  constexpr int64_t LINE_BYTES = TILE_TOKENS * sizeof(float);
  if (fresh) {
    TILE_ZERO(0);
    TILE_ZERO(2);
    if (TWO) {
      TILE_ZERO(1);
      TILE_ZERO(3);
    }
  } else {
    TILE_LOAD(0, sums, LINE_BYTES);
    TILE_LOAD(2, sums + TILE_SUMS / 2, LINE_BYTES);
    if (TWO) {
      TILE_LOAD(1, sums + SIDE, LINE_BYTES);
      TILE_LOAD(3, sums + TILE_SUMS / 2 + SIDE, LINE_BYTES);
    }
  }
  const char* upper = (const char*)rows.first;
  const char* lower = upper + SIDE * rows.row_bytes;
  const char* tokens = (const char*)x;
  for (int s = 0; s < steps; ++s) {
    TILE_LOAD(6, tokens, 64);
    TILE_LOAD(4, upper, rows.row_bytes);
    TILE_DOTS(0, 4, 6);
    if (TWO) {
      TILE_LOAD(7, tokens + vector_bytes, 64);
      TILE_DOTS(1, 4, 7);
    }
    TILE_LOAD(5, lower, rows.row_bytes);
    TILE_DOTS(2, 5, 6);
    if (TWO) TILE_DOTS(3, 5, 7);
    beside.step();
    upper += rows.step_bytes;
    lower += rows.step_bytes;
    tokens += 1024;
  }
  TILE_STORE(0, sums, LINE_BYTES);
  TILE_STORE(2, sums + TILE_SUMS / 2, LINE_BYTES);
  if (TWO) {
    TILE_STORE(1, sums + SIDE, LINE_BYTES);
    TILE_STORE(3, sums + TILE_SUMS / 2 + SIDE, LINE_BYTES);
  }
}

#undef TILE_LOAD
#undef TILE_STORE
#undef TILE_ZERO
#undef TILE_DOTS

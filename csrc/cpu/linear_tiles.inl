// bfloat16 rows by bfloat16 weights on a matrix unit (AMX), in one of two ways.
// Exact: x (w + c z) = x w + c (x z), both as products of 16-bit numbers that are summed in float32. A sign is a bfloat16, so along
// Rademacher directions nothing but sums is rounded.
// Narrow, where there are so many tokens that a second product would cost more than memory does: the moved weight, rounded to bfloat16.
// Rows of weights and of noise are the left side, in the order in which they lie in memory; tokens, which are packed anyway, the right.
#include "matrix_unit.inl"

// The room of a thread, in floats.
struct TileRoom {
  float *weights, *products;  // sums of x w and x z, [held, or 1][blocks of a group][TILE_SUMS]
  float* sums;                // of one block
  uint16_t* signs[2];         // of these columns and of the next, by steps
  uint16_t* short_rows;       // weights of rows or columns that do not fill their tiles, filled up by zeros
  uint32_t* words;
  uint16_t* moved[2];         // in the place of words: weights that are moved along Gaussians, by steps

  static int64_t blocks(const LinearPlan& plan) { return (plan.padded + TILE_TOKENS - 1) / TILE_TOKENS; }
  static int64_t of_sums(const LinearPlan& plan) {
    return (plan.call.x_group ? (int64_t)plan.held.size() : 1) * blocks(plan) * TILE_SUMS;
  }
  static int64_t of_panel(const LinearPlan& plan) { return TILE_ROWS * ((plan.call.width + STEP - 1) / STEP * STEP); }
  static int64_t floats(const LinearPlan& plan) {
    const int64_t width = plan.call.width;
    const int64_t noise = plan.distribution == RADEMACHER ? TILE_ROWS * width / 32 + 4 * AT_ONCE + 8 : of_panel(plan);
    return 2 * of_sums(plan) + TILE_SUMS + TILE_ROWS * TILE_DEPTH + of_panel(plan) / 2 + noise + 16;
  }
  TileRoom(const LinearPlan& plan, float* room) {
    weights = room;
    products = weights + of_sums(plan);
    sums = products + of_sums(plan);
    signs[0] = (uint16_t*)(sums + TILE_SUMS);
    signs[1] = signs[0] + TILE_ROWS * TILE_DEPTH;
    short_rows = signs[1] + TILE_ROWS * TILE_DEPTH;
    words = (uint32_t*)(short_rows + of_panel(plan));
    moved[0] = (uint16_t*)words;
    moved[1] = moved[0] + of_panel(plan);
  }
};

int64_t tiles_room(const LinearPlan& plan) { return TileRoom::floats(plan); }

INLINE void make_panel_signs(const LinearPlan& plan, uint32_t direction, uint64_t index, int rows, const TileRoom& room) {
  const uint64_t bits = index % GROUP + (uint64_t)(rows * plan.call.width);
  make_words(room.words, index / GROUP, (int)((bits + GROUP - 1) / GROUP), plan.seed, plan.stream, direction);
}

// All tokens of one group by some columns of weights, of noise or of both, whichever are not null.
INLINE void multiply_group(const LinearPlan& plan, const TileSide* weights, const TileSide* noise, int64_t place, int64_t column, int steps,
                           const TileRoom& room, Beside& beside) {
  const int64_t vector = plan.pairs * LANES, at = place * TileRoom::blocks(plan) * TILE_SUMS;
  const float* x = plan.packed + place * (plan.padded / LANES) * vector + column / 2 * LANES;
  float *w = room.weights + at, *z = room.products + at;
  for (int64_t token = 0; token < plan.padded; token += TILE_TOKENS, w += TILE_SUMS, z += TILE_SUMS) {
    const float* tokens = x + token / LANES * vector;
    const auto product = [&](TileSide rows, float* sums) {
      if (plan.padded - token > LANES)
        multiply_tiles<true>(rows, tokens, vector * 4, steps, sums, column == 0, beside);
      else
        multiply_tiles<false>(rows, tokens, vector * 4, steps, sums, column == 0, beside);
    };
    if (weights) product(*weights, w);
    if (noise) product(*noise, z);
  }
}

INLINE void finish_group(const LinearPlan& plan, int group, int64_t place, float scale, bool noisy, int64_t first, int rows,
                         const TileRoom& room) {
  const int64_t at = place * TileRoom::blocks(plan) * TILE_SUMS;
  const float *w = room.weights + at, *z = room.products + at;
  const vf c = splat(scale);
  for (int64_t token = 0; token < plan.padded; token += TILE_TOKENS, w += TILE_SUMS, z += TILE_SUMS) {
    if (noisy)
      for (int k = 0; k < TILE_SUMS; k += LANES) store(room.sums + k, multiply_add(c, load<vf>(z + k), load<vf>(w + k)));
    const int64_t left = plan.tokens - token;
    write_out(plan, group, token, left < TILE_TOKENS ? left : TILE_TOKENS, first, rows, noisy ? room.sums : w);
  }
}

INLINE int steps_from(int64_t width, int64_t column) {
  const int64_t left = width - column;
  return (int)((left < TILE_DEPTH ? left + STEP - 1 : TILE_DEPTH) / STEP);
}

struct Panel {
  int64_t first;
  int rows;
  TileSide weights;

  INLINE TileSide from(int64_t column) const {
    return {weights.first + column / STEP * (weights.step_bytes / 2), weights.row_bytes, weights.step_bytes};
  }
};

// x w + c (x z).
INLINE void exact_panel(const LinearPlan& plan, const Panel& panel, Beside& beside, const TileRoom& room) {
  const Linear& call = plan.call;
  const uint64_t index = (uint64_t)(call.start + panel.first * call.width);
  const bool shared = !call.x_group;
  bool weigh = true;  // once for tokens that all groups share
  for (const LinearDirection& along : plan.directions) {
    if (along.noisy) make_panel_signs(plan, along.direction, index, panel.rows, room);
    const int either = (int)weigh + (int)along.noisy;  // neither: a second direction of scale 0 whose tokens are shared
    const int products = std::max(1, (int)((shared ? 1 : along.groups()) * TileRoom::blocks(plan)) * either);
    beside.lines = TILE_ROWS / products + 1;
    const auto signs_from = [&](int64_t column) {
      const bool any = along.noisy && column < call.width;
      return SignRows{any ? room.words : nullptr, index % GROUP + (uint64_t)column,   call.width, {}, 0.0f,
                      steps_from(call.width, column), room.signs[column / TILE_DEPTH % 2]};
    };
    beside.begin(signs_from(0), 1);
    beside.finish();
    for (int64_t column = 0; column < call.width; column += TILE_DEPTH) {
      const int steps = steps_from(call.width, column);
      const TileSide weights = panel.from(column);
      const TileSide noise = by_steps(room.signs[column / TILE_DEPTH % 2]);
      beside.begin(signs_from(column + TILE_DEPTH), products * steps);
      const auto multiply = [&](int64_t place) {
        multiply_group(plan, weigh ? &weights : nullptr, along.noisy ? &noise : nullptr, place, column, steps, room, beside);
      };
      if (shared)
        multiply(0);
      else
        for (const LinearMove& move : along.moves)
          for (int place : move.places) multiply(place);
      beside.finish();
    }
    weigh = !shared;
    for (const LinearMove& move : along.moves)
      for (size_t g = 0; g < move.groups.size(); ++g)
        finish_group(plan, move.groups[g], shared ? 0 : move.places[g], move.scale, along.noisy, panel.first, panel.rows, room);
  }
}

// The panel moved along Gaussians by one or two scales, rounded, by steps. Rows begin with a vector of noise and end with a step.
INLINE void move_along_gaussians(const LinearPlan& plan, const Panel& panel, uint32_t direction, const float* scales, int moves,
                                 const TileRoom& room) {
  const int64_t width = plan.call.width, end = panel.rows * width;
  const uint64_t first = (uint64_t)(plan.call.start + panel.first * width) / 8;
  const int blocks = (int)(end / 8);
  int r = 0;
  int64_t k = 0;
  generate_pairs(blocks, [&](int number) { return blocks_from(first + (uint64_t)number); },
                 high_of(first, first + (uint64_t)(blocks + 2 * AT_ONCE)), plan.seed, plan.stream, direction, [&](int, vf z) {
                   if (r == panel.rows) return;  // of whole batches
                   const vf w = BFloat16::get((const uint16_t*)((const char*)panel.from(k).first + r * panel.weights.row_bytes) + k % STEP);
                   const int64_t at = k / STEP * STEP_SIZE + r * STEP + k % STEP;
                   for (int m = 0; m < moves; ++m) BFloat16::put(room.moved[m] + at, w + z * scales[m]);
                   k += LANES;
                   if (k < width) return;
                   k = 0;
                   ++r;
                 });
}

// x (w + c z), the second factor rounded.
INLINE void narrow_panel(const LinearPlan& plan, const Panel& panel, Beside& beside, const TileRoom& room) {
  const Linear& call = plan.call;
  const uint64_t index = (uint64_t)(call.start + panel.first * call.width);
  for (const LinearDirection& along : plan.directions) {
    const bool by_signs = along.noisy && plan.distribution == RADEMACHER;
    if (by_signs) make_panel_signs(plan, along.direction, index, panel.rows, room);
    for (size_t m = 0; m < along.moves.size(); ++m) {
      const LinearMove& move = along.moves[m];
      if (along.noisy && !by_signs && m % 2 == 0) {
        const bool two = m + 1 < along.moves.size();
        const float scales[2] = {move.scale, two ? along.moves[m + 1].scale : 0.0f};
        move_along_gaussians(plan, panel, along.direction, scales, 1 + two, room);
      }
      const int products = (int)((call.x_group ? (int64_t)move.groups.size() : 1) * TileRoom::blocks(plan));
      beside.lines = TILE_ROWS / products + 1;
      const auto moved_from = [&](int64_t column) {
        const bool any = by_signs && column < call.width;
        return SignRows{any ? room.words : nullptr,     index % GROUP + (uint64_t)column, call.width, panel.from(column),
                        move.scale, steps_from(call.width, column), room.signs[column / TILE_DEPTH % 2]};
      };
      beside.begin(moved_from(0), 1);
      beside.finish();
      for (int64_t column = 0; column < call.width; column += TILE_DEPTH) {
        const int steps = steps_from(call.width, column);
        const TileSide rows = !along.noisy ? panel.from(column)
                                           : by_steps(by_signs ? room.signs[column / TILE_DEPTH % 2] : room.moved[m % 2] + column * TILE_ROWS);
        beside.begin(moved_from(column + TILE_DEPTH), products * steps);
        if (!call.x_group)
          multiply_group(plan, &rows, nullptr, 0, column, steps, room, beside);
        else
          for (int place : move.places) multiply_group(plan, &rows, nullptr, place, column, steps, room, beside);
        beside.finish();
      }
      for (size_t g = 0; g < move.groups.size(); ++g)
        finish_group(plan, move.groups[g], call.x_group ? move.places[g] : 0, 0.0f, false, panel.first, panel.rows, room);
    }
  }
}

// Rows that do not fill a panel, or columns that do not fill the last step, are read from a copy.
INLINE TileSide whole_rows(const LinearPlan& plan, int64_t first, int rows, const TileRoom& room) {
  const Linear& call = plan.call;
  const uint16_t* w = (const uint16_t*)call.weight + first * call.weight_row;
  if (rows == TILE_ROWS && call.width % STEP == 0) return {w, call.weight_row * 2, STEP * 2};
  memset(room.short_rows, 0, sizeof(uint16_t) * (size_t)TileRoom::of_panel(plan));
  for (int r = 0; r < rows; ++r)
    for (int64_t k = 0; k < call.width; k += STEP)
      memcpy(room.short_rows + k / STEP * STEP_SIZE + r * STEP, w + r * call.weight_row + k,
             sizeof(uint16_t) * (size_t)(call.width - k < STEP ? call.width - k : STEP));
  return by_steps(room.short_rows);
}

// Weight rows [first, last).
void tiles_rows(const LinearPlan& plan, int64_t first, int64_t last, float* memory) {
  const TilesInUse tiles;
  const TileRoom room(plan, memory);
  const Linear& call = plan.call;
  for (int64_t row = first; row < last; row += TILE_ROWS) {
    const int64_t left = last - row, after = left - TILE_ROWS;
    const int rows = (int)(left < TILE_ROWS ? left : TILE_ROWS);
    Beside beside{nullptr, nullptr, 0, {}, rows, 0, 0};
    if (after > 0 && call.weight_row == call.width) {
      beside.next = (const char*)((const uint16_t*)call.weight + (row + TILE_ROWS) * call.weight_row);
      beside.last = beside.next + (after < TILE_ROWS ? after : TILE_ROWS) * call.width * 2;
    }
    const Panel panel{row, rows, whole_rows(plan, row, rows, room)};
    if (call.narrow)
      narrow_panel(plan, panel, beside, room);
    else
      exact_panel(plan, panel, beside, room);
  }
}

// `linear`: which groups share what, the scratch, and the work of the threads.
#include <algorithm>
#include <memory>

#include "table.h"
#include "threads.h"

namespace blockzo {
namespace {

std::vector<LinearDirection> share_noise(const Step& step) {
  const IeeeArithmetic arithmetic;  // or a subnormal scale might compare equal to 0
  std::vector<LinearDirection> found;
  for (size_t g = 0; g < step.directions.size(); ++g) {
    const float scale = step.coefficients[g];
    const bool noisy = scale != 0.0f;
    const uint32_t direction = noisy ? step.directions[g] : 0;
    auto along = std::find_if(found.begin(), found.end(),
                              [&](const LinearDirection& d) { return d.noisy == noisy && d.direction == direction; });
    if (along == found.end()) along = found.insert(found.end(), LinearDirection{direction, noisy, {}});
    auto move = std::find_if(along->moves.begin(), along->moves.end(), [&](const LinearMove& m) { return m.scale == scale; });
    if (move == along->moves.end()) move = along->moves.insert(move, LinearMove{scale, {}, {}});
    move->groups.push_back((int)g);
  }
  return found;
}

// Memory of a thread that is kept from call to call: a forward pass makes a hundred calls of the same few sizes.
class Scratch {
 public:
  float* floats(int64_t count) {
    if (count > size_) {
      memory_.reset();
      memory_.reset(new char[(size_t)count * 4 + 64]);
      size_ = count;
    }
    return reinterpret_cast<float*>((reinterpret_cast<uintptr_t>(memory_.get()) + 63) / 64 * 64);
  }

 private:
  std::unique_ptr<char[]> memory_;
  int64_t size_ = 0;
};

int64_t round_up(int64_t value, int64_t to) { return (value + to - 1) / to * to; }

// Columns in blocks of equal size, in whole words of signs.
int depth_of(int64_t width) {
  const int64_t blocks = std::max<int64_t>(1, (width + DEPTH - 1) / DEPTH);
  return (int)std::max<int64_t>(32, round_up((width + blocks - 1) / blocks, 32));
}

// Takes the next directions whose tokens go together, one at least, and gives their groups places.
size_t take_batch(LinearPlan& plan, const std::vector<LinearDirection>& all, size_t next, int64_t most) {
  plan.directions.clear();
  plan.held.clear();
  do {
    plan.directions.push_back(all[next++]);
    for (LinearMove& move : plan.directions.back().moves)
      for (int group : move.groups) {
        move.places.push_back((int)plan.held.size());
        plan.held.push_back(group);
      }
  } while (next < all.size() && ((int64_t)plan.held.size() + all[next].groups()) * plan.call.tokens <= most);
  return next;
}

// Products of 16-bit pairs and tables of signs: where both are faster than a product of moved weights.
bool by_signs(const LinearPlan& plan, const KernelTable& table) {
  const Linear& call = plan.call;
  return table.signs_rows && table.has_dots && table.has_dots() && plan.distribution == RADEMACHER && call.x_dtype == BFLOAT16 &&
         call.weight_dtype == BFLOAT16 && call.rows >= 128 && call.width >= 64 && call.width % 2 == 0 &&
         call.weight_row == call.width && call.noise_row == call.width;
}

// Tokens as pairs of neighbours, filled up by zeros to whole pairs of `columns` columns.
void pack_tokens_as_pairs(LinearPlan& plan, const KernelTable& table, int64_t columns, int threads) {
  static thread_local Scratch packed;
  const Linear& call = plan.call;
  const int64_t packs = call.x_group ? (int64_t)plan.held.size() : 1;
  plan.padded = round_up(plan.tokens, table.token_lanes);
  plan.pairs = columns / 2;
  plan.packed = packed.floats(packs * plan.padded * plan.pairs);
  plan.stride = table.token_tile;
  const int64_t vectors = packs * plan.padded / table.token_lanes;
  in_parallel(vectors * call.width * table.token_lanes / 4, threads, [&](int number, int of) {
    for (int64_t v = vectors * number / of; v < vectors * (number + 1) / of; ++v) table.pack_pairs(plan, v);
  });
}

void signs_round(LinearPlan& plan, const KernelTable& table, int threads) {
  const Linear& call = plan.call;
  pack_tokens_as_pairs(plan, table, call.width, threads);
  in_parallel(call.rows * call.width * ((int64_t)plan.held.size() * plan.padded / 16 + 1), threads, [&](int number, int of) {
    static thread_local Scratch scratch;
    float* room = scratch.floats(SIGN_ROWS * (table.token_tile + call.width / 32 + 1) + (1 << 14));
    const int64_t first = call.rows * number / of, last = call.rows * (number + 1) / of;
    for (int64_t row = first; row < last; row += SIGN_ROWS) table.signs_rows(plan, row, std::min<int64_t>(last, row + SIGN_ROWS), room);
  });
}

// By a matrix unit: rounded weights by tiles of whole steps, or two exact products.
bool by_tiles(const Linear& call, int distribution, const KernelTable& table) {
  if (!table.tiles_rows || call.x_dtype != BFLOAT16 || call.weight_dtype != BFLOAT16 || call.noise_row != call.width || !call.width)
    return false;
  return call.narrow ? call.width % 32 == 0 && call.start % 16 == 0 : distribution == RADEMACHER && call.width % 2 == 0;
}

void tiles_round(LinearPlan& plan, const KernelTable& table, int threads) {
  const Linear& call = plan.call;
  pack_tokens_as_pairs(plan, table, round_up(call.width, 32), threads);
  const int64_t panels = (call.rows + 31) / 32;
  in_parallel(call.rows * call.width * ((int64_t)plan.held.size() * plan.padded / 64 + 1), threads, [&](int number, int of) {
    static thread_local Scratch scratch;
    const int64_t first = panels * number / of * 32, last = std::min(call.rows, panels * (number + 1) / of * 32);
    if (first < last) table.tiles_rows(plan, first, last, scratch.floats(table.tiles_room(plan)));
  });
}

// Panels of moved weights that are rounded to bfloat16.
bool by_pairs(const Linear& call, const KernelTable& table) {
  return call.narrow && table.has_dots && table.has_dots() && call.x_dtype == BFLOAT16 && call.weight_dtype == BFLOAT16 &&
         call.width % 2 == 0;
}

void pack_tokens(LinearPlan& plan, const KernelTable& table, int threads) {
  static thread_local Scratch packed;
  const Linear& call = plan.call;
  const int64_t tile = table.token_tile, packs = call.x_group ? (int64_t)plan.held.size() : 1;
  plan.padded = round_up(plan.tokens, table.token_lanes);
  plan.tiles = (plan.padded + tile - 1) / tile;
  plan.packed = packed.floats(packs * plan.padded * call.width);
  const int64_t pack_tiles = packs * plan.tiles;
  in_parallel(packs * plan.padded * call.width / 4, threads, [&](int number, int of) {
    for (int64_t t = pack_tiles * number / of; t < pack_tiles * (number + 1) / of; ++t) table.linear_pack(plan, t);
  });
}

// Some of the tokens of all groups held.
void linear_round(LinearPlan& plan, const KernelTable& table, bool pairs, int threads) {
  const Linear& call = plan.call;
  if (pairs)
    pack_tokens_as_pairs(plan, table, call.width, threads);
  else
    pack_tokens(plan, table, threads);
  const auto rows = pairs ? table.rounded_rows : table.linear_rows;
  // a stride of a power of two would crowd few sets of the first-level cache
  const int64_t stride = plan.stride = (int64_t)plan.held.size() * plan.padded + 16;
  const int64_t panel = std::clamp<int64_t>(PANEL_SUMS / stride / ROW_TILE * ROW_TILE, ROW_TILE, PANEL_ROWS);
  plan.panel = panel;
  const int64_t row_tiles = (call.rows + ROW_TILE - 1) / ROW_TILE;
  in_parallel(call.rows * call.width * (stride / 8 + 1), threads, [&](int number, int of) {
    static thread_local Scratch scratch;
    float* room = scratch.floats(panel * (2 * LINE + stride));
    const int64_t first = row_tiles * number / of * ROW_TILE;
    const int64_t last = std::min(call.rows, row_tiles * (number + 1) / of * ROW_TILE);
    for (int64_t row = first; row < last; row += panel) rows(plan, row, std::min(last, row + panel), room);
  });
}

}  // namespace

void linear(const Linear& call, const Step& step, uint32_t stream, int threads) {
  if (!call.groups || !call.tokens || !call.rows) return;
  const KernelTable* table = chosen_table();
  const std::vector<LinearDirection> all = share_noise(step);
  LinearPlan plan{call, step.seed, step.distribution, stream, {}, {}, depth_of(call.width), 0, 0, 0, 0, 0, 0, 0, nullptr};
  const bool tiles = by_tiles(call, step.distribution, *table);
  const int64_t most = tiles ? std::clamp<int64_t>(TILE_BYTES / (2 * call.width) / 32 * 32, 32, TOKENS_AT_ONCE) : TOKENS_AT_ONCE;
  for (size_t next = 0; next < all.size();) {
    next = take_batch(plan, all, next, most);
    const int64_t tile = table->token_tile, groups = (int64_t)plan.held.size();
    const int64_t at_once = std::max(tile, most / groups / tile * tile);
    for (plan.first_token = 0; plan.first_token < call.tokens; plan.first_token += at_once) {
      plan.tokens = std::min(at_once, call.tokens - plan.first_token);
      if (tiles)
        tiles_round(plan, *table, threads);
      else if (!call.narrow && by_signs(plan, *table))
        signs_round(plan, *table, threads);
      else
        linear_round(plan, *table, by_pairs(call, *table), threads);
    }
  }
}

}  // namespace blockzo

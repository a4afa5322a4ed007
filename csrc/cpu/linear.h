// What every thread of one `linear` call is told, and the sizes that fit its working set into caches.
#pragma once
#include <cstdint>
#include <vector>

#include "../include/blockzo/cpu.h"

namespace blockzo {

constexpr int ROW_TILE = 12;    // weight rows moved at a time
constexpr int DEPTH = 256;      // and columns of them
constexpr int LINE = DEPTH + 16;  // floats between two rows of them; not a power of two, which would crowd few cache sets
constexpr int PANEL_ROWS = 48;  // at most so many moved rows (two moves: 100 KB) meet every token before the next are made
constexpr int64_t PANEL_SUMS = 3 << 13;  // float32 sums of a panel (96 KB), unless one tile of rows has more
constexpr int64_t TOKENS_AT_ONCE = 512;  // tokens of all groups: weights are moved again for the next ones

// Groups that see the same moved weight.
struct LinearMove {
  float scale;
  std::vector<int> groups;
};

// Moves along one direction: the noise is made once for all of them.
struct LinearDirection {
  uint32_t direction;
  bool noisy;
  std::vector<LinearMove> moves;
};

struct LinearPlan {
  Linear call;
  uint64_t seed;
  int distribution;
  uint32_t stream;
  std::vector<LinearDirection> directions;
  int depth;                  // columns of a block, at most DEPTH
  int64_t panel;              // rows, a multiple of ROW_TILE
  int64_t first_token;        // of every group, in this round
  int64_t tokens, padded;     // tokens of a group in this round, and the same in whole vectors
  int64_t stride;             // floats between two rows of sums, which hold all groups' tokens
  int64_t tiles;              // token tiles of a group
  float* packed;              // [groups, or 1 where they share x][padded / tile][width][tile]
};

}  // namespace blockzo

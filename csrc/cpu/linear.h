// What every thread of one `linear` call is told, and the sizes that fit its working set into caches.
#pragma once
#include <cstdint>
#include <vector>

#include "../include/blockzo/cpu.h"

namespace blockzo {

constexpr int ROW_TILE = 12;    // weight rows moved at a time
constexpr int DEPTH = 256;      // and columns of them
constexpr int LINE = DEPTH + 16;  // floats between two rows of them; not a power of two, which would crowd few cache sets
constexpr int PANEL_ROWS = 96;  // at most so many moved rows (104 KB a move) meet every token before the next are made
constexpr int64_t PANEL_SUMS = 1 << 16;  // float32 sums of a panel (256 KB), unless one tile of rows has more
constexpr int64_t TOKENS_AT_ONCE = 1024;  // tokens of a batch of directions; of one direction, weights are moved again for the rest

constexpr int64_t TILE_BYTES = 3 << 19;   // of tokens that a matrix unit multiplies every panel by: three quarters of a second-level cache of 2 MB
constexpr int SIGN_ROWS = 1020;  // whole tiles of rows for which sums over signs are looked up in the same tables

// Groups that see the same moved weight, and where among those held they are.
struct LinearMove {
  float scale;
  std::vector<int> groups, places;
};

// Moves along one direction: the noise is made once for all of them.
struct LinearDirection {
  uint32_t direction;
  bool noisy;
  std::vector<LinearMove> moves;
  int64_t groups() const {
    int64_t count = 0;
    for (const LinearMove& move : moves) count += (int64_t)move.groups.size();
    return count;
  }
};

struct LinearPlan {
  Linear call;
  uint64_t seed;
  int distribution;
  uint32_t stream;
  std::vector<LinearDirection> directions;  // of this batch
  std::vector<int> held;                    // groups of this batch: the first has the first place in x and sums, and so on
  int depth;                  // columns of a block, at most DEPTH
  int64_t panel;              // rows, a multiple of ROW_TILE
  int64_t first_token;        // of every group, in this round
  int64_t tokens, padded;     // tokens of a group in this round, and the same in whole vectors
  int64_t stride;             // floats between two rows of sums, which have the tokens of all groups held
  int64_t tiles;              // token tiles of a group
  int64_t pairs;              // where tokens are packed as pairs: pairs of a token, those behind the last column are 0
  float* packed;              // [groups held, or 1 where they share x][padded / tile][width][tile]
};

}  // namespace blockzo

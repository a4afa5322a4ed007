// Noise of a low rank: what a kernel is told about a few rows of a matrix.
#pragma once
#include <cstdint>

#include "../include/blockzo/cpu.h"

namespace blockzo {

constexpr int LOW_RANK_ROWS = 4;       // rows that meet the factors of the columns together
constexpr int LOW_RANK_SPAN = 1024;    // columns of a tile, at most
constexpr int LOW_RANK_PAD = 32;       // columns are read in whole multiples of it

// One step on a tile. Element (i, j) of direction k: the sum over q of a[k][i][q] * b[k][q][j].
struct LowRankStep {
  const Step* step;
  const float* a;  // of the tile's first row; the next row's come `rank` on
  int64_t a_direction;
  const float* b;  // of the tile's first column
  int64_t b_rank;  // from one q to the next; `rank` of these to the next direction
};

struct LowRankTile {
  int rank;
  float norm;  // 1 / sqrt(rank)
  uint32_t stream;
  Mode mode;
  const LowRankStep* steps;
  int64_t number;
  int rows, columns;
  const void* in[LOW_RANK_ROWS];
  void* out[LOW_RANK_ROWS];
  int in_dtype, out_dtype;
  uint64_t index[LOW_RANK_ROWS];  // of each row's first element, for stochastic rounding
};

// The operations of cpu.h where a step has a rank.
void low_rank_apply(const std::vector<Shard>& parts, const std::vector<Step>& steps, Mode mode, int threads);
void low_rank_copy(void* out, int out_dtype, const void* source, int dtype, int64_t count, int64_t start, const Step& step,
                   uint32_t stream, int threads);
void low_rank_rows(void* out, const void* weight, int dtype, int64_t width, const int64_t* chosen_rows, int64_t count,
                   const Step& step, uint32_t stream, int threads);
void low_rank_project(const Shard& part, const Step& step, double* totals, int threads);

}  // namespace blockzo

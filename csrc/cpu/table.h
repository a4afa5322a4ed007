// One table of kernels per instruction set. A null pointer: the set is not compiled for this architecture.
#pragma once
#include "../include/blockzo/cpu.h"
#include "linear.h"
#include "lowrank.h"

namespace blockzo {

constexpr int64_t GROUP = 128;    // weights of one Philox call (Rademacher); every kernel works on whole, aligned groups
constexpr int64_t TILE = 2048;    // weights that stay in the first-level cache while many steps are applied
constexpr int64_t CHUNK = 4096;   // weights of one partial sum of project
constexpr int SUM_LANES = 16;

struct KernelTable {
  const char* name;
  bool (*runs_here)();
  // `base` is a multiple of GROUP and `count` too; in may equal out
  void (*perturb)(const void* in, int in_dtype, void* out, int out_dtype, int64_t base, int64_t count, const Step& step,
                  uint32_t stream, float scale);
  void (*steps)(void* weights, int dtype, int64_t base, int64_t count, const Step* steps, int64_t number, Mode mode,
                uint32_t stream);
  // the same on at most TILE weights, with a scale for each
  void (*scaled)(void* weights, int dtype, const float* scales, int64_t base, int64_t count, const Step* steps, int64_t number,
                 Mode mode, uint32_t stream);
  void (*fill)(float* out, int64_t base, int64_t count, uint64_t seed, int distribution, uint32_t stream, uint32_t direction);
  void (*widen)(const void* in, int dtype, float* out, int64_t count);  // INT8 too
  double (*dot)(const float* x, const float* z);  // CHUNK elements
  int token_lanes;                                // tokens of one vector
  int token_tile;                                 // and of one tile of packed x
  void (*linear_pack)(const LinearPlan& plan, int64_t tile);
  void (*linear_rows)(const LinearPlan& plan, int64_t first, int64_t last, float* room);
  void (*low_rank)(const LowRankTile& tile);
  // null where no CPU of the set multiplies 16-bit numbers; signs_rows also where sums over signs are not known to be faster
  bool (*has_dots)();
  void (*pack_pairs)(const LinearPlan& plan, int64_t vector);
  void (*signs_rows)(const LinearPlan& plan, int64_t first, int64_t last, float* room);
  void (*rounded_rows)(const LinearPlan& plan, int64_t first, int64_t last, float* room);
  // null where the set has no matrix unit for 16-bit numbers
  int64_t (*tiles_room)(const LinearPlan& plan);
  void (*tiles_rows)(const LinearPlan& plan, int64_t first, int64_t last, float* room);
};

const KernelTable* baseline_table();
const KernelTable* avx2_table();
const KernelTable* avx512_table();
const KernelTable* amx_table();
const KernelTable* neon_table();
const KernelTable* neon_bf16_table();
const KernelTable* chosen_table();

}  // namespace blockzo

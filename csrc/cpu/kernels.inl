// Kernel bodies, included once per instruction set inside its target region and an anonymous namespace. Before it stand:
//   LANES, NAME            float lanes of a vector; what the set is called
//   VARIABLE_SHIFT         every lane can be shifted by its own amount at little cost
//   mul_words              low 32 bits of each 64-bit lane times a 32-bit constant
//   root                   correctly rounded float32 square root of each lane
//   load_half, store_half, round_half   LANES float16 values <-> floats, and a float by way of float16
//   widen_16, narrow_16    LANES uint16_t in memory <-> the low halves of 32-bit lanes
//   widen_8                LANES int8_t in memory -> int32_t lanes
//   multiply_add           a * b + c, fused where the set can: for products of `linear`, never for noise
//   ROWS_2, ROWS_1         weight rows of its innermost loop with two and with one vector of tokens
//   DOTS_KNOWN, has_dots   where the set may have products of pairs of bfloat16; whether this CPU has them
//   add_dot, put_rounded   sum + the products of such pairs, one pair for all lanes; LANES floats, or two vectors, to bfloat16
//   DOTS_HERE, spread_pair, add_spread_dot   where sums over signs beside such products are faster: attributes of what makes these;
//                          add_dot in two
//   runs_here              whether this CPU has the set
#include "vectors.inl"
#include "storage.inl"
#include "noise.inl"
#include "moves.inl"
#include "steps.inl"
#include "scaled.inl"
#include "sums.inl"
#include "lowrank.inl"
#include "linear_move.inl"
#include "linear_pack.inl"
#include "linear.inl"
#ifdef DOTS_KNOWN
#include "linear_rounded.inl"
#else
constexpr bool (*has_dots)() = nullptr;
constexpr void (*pack_pairs)(const LinearPlan&, int64_t) = nullptr;
constexpr void (*rounded_rows)(const LinearPlan&, int64_t, int64_t, float*) = nullptr;
#endif
#ifdef DOTS_HERE
#include "linear_signs.inl"
#else
constexpr void (*signs_rows)(const LinearPlan&, int64_t, int64_t, float*) = nullptr;
#endif

// constexpr: nothing of a set may run on a CPU that lacks it, the making of its table included
#define KERNELS(name, runs, dots, room_of_tiles, rows_of_tiles)                                                                   \
  {name,  runs,   perturb,     steps,       scaled,   fill, widen,      dot,                                                       \
   LANES, TOKENS, linear_pack, linear_rows, low_rank, dots, pack_pairs, signs_rows, rounded_rows, room_of_tiles, rows_of_tiles}
constexpr KernelTable TABLE = KERNELS(NAME, runs_here, has_dots, nullptr, nullptr);

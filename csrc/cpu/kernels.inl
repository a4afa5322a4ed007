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
//   runs_here              whether this CPU has the set
#include "vectors.inl"
#include "storage.inl"
#include "noise.inl"
#include "moves.inl"
#include "steps.inl"
#include "sums.inl"
#include "linear_move.inl"
#include "linear_pack.inl"
#include "linear.inl"

const KernelTable TABLE = {NAME, runs_here, perturb, steps, fill, widen, dot, LANES, TOKENS, linear_pack, linear_rows};

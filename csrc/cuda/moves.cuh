// perturb_, shift_, update_ and replay_ over a whole list of tensors in one launch.
//
// A warp takes a run of 4,096 elements. A Rademacher block of Philox serves 128 elements, so each lane makes the words of one block and
// the warp reads them from shared memory; a Gaussian block serves the 8 elements that one lane holds, so nothing is shared.
#pragma once
#include "storage.cuh"

namespace {

constexpr int WARPS = 4, RUN = 4096, CHUNK = WARPS * RUN, LANES = 32, EACH = 8, ROUNDS = RUN / (LANES * EACH);
enum { PERTURB = 0, SHIFT = 1, UPDATE = 2 };

__device__ __forceinline__ float flip(float value, uint32_t bit) {
  return __uint_as_float(__float_as_uint(value) ^ (bit << 31));
}

struct Noise {
  uint64_t seed;
  uint32_t stream;
};

// The 32 blocks of Philox that a warp's run of 4,096 Rademacher values needs, one a lane.
__device__ void fill(uint4* words, const Noise& noise, uint32_t direction, int64_t run) {
  uint32_t found[4];
  const int lane = threadIdx.x & 31;
  philox_block((uint64_t)run / 128 + lane, noise.seed, noise.stream, direction, found);
  __syncwarp();
  words[lane] = make_uint4(found[0], found[1], found[2], found[3]);
  __syncwarp();
}

// total += coefficient * z for the 8 elements of this lane in one round of the run.
// ALONE: total = coefficient * z.
template <bool GAUSSIAN, bool ALONE>
__device__ __forceinline__ void accumulate(float (&total)[EACH], const BlockzoTerm& term, const uint32_t* words, const Noise& noise,
                                           int64_t index) {
  const float c = term.coefficient;
  if (GAUSSIAN) {
    uint32_t block[4];
    philox_block((uint64_t)index >> 3, noise.seed, noise.stream, term.direction, block);
#pragma unroll
    for (int w = 0; w < 4; ++w) {
      float even, odd;
      gaussian_pair<ScalarFloat>(block[w], even, odd);
      even = __fmul_rn(c, even);
      odd = __fmul_rn(c, odd);
      total[2 * w] = ALONE ? even : __fadd_rn(total[2 * w], even);
      total[2 * w + 1] = ALONE ? odd : __fadd_rn(total[2 * w + 1], odd);
    }
  } else {
    const uint32_t bits = words[(index & (RUN - 1)) >> 5] >> (index & 31);
#pragma unroll
    for (int j = 0; j < EACH; ++j) {
      const float moved = flip(c, bits >> j);
      total[j] = ALONE ? moved : __fadd_rn(total[j], moved);
    }
  }
}

template <class T, int MODE, bool GAUSSIAN>
__global__ void __launch_bounds__(WARPS* LANES, 3) move(const BlockzoTensor* tensors, const BlockzoChunk* chunks, const BlockzoStep* steps,
                                                     int step_count, const BlockzoTerm* terms) {
  __shared__ uint4 shared[WARPS][LANES];
  const BlockzoChunk chunk = chunks[blockIdx.x];
  const BlockzoTensor tensor = tensors[chunk.tensor];
  T* data = reinterpret_cast<T*>(tensor.address);
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
  const int64_t run = (int64_t)chunk.number * CHUNK + warp * RUN;
  // no thread of a warp leaves before the others: they fill shared memory together
  if (run >= tensor.count) return;
  const bool aligned = tensor.address % 16 == 0;
  uint4* words = shared[warp];
  const uint32_t stream = (uint32_t)tensor.stream;

  // so many rounds stay in registers through all steps and share the words that a lane makes; Gaussian ones share nothing.
  // A replay is bound by instructions and fills the registers (stochastic rounding needs them for itself); the others want more warps.
  constexpr int PART = GAUSSIAN ? 1 : MODE == UPDATE && sizeof(T) == 4 ? 8 : 4;
  for (int part = 0; part < ROUNDS; part += PART) {
    if (run + part * LANES * EACH >= tensor.count) break;
    float value[PART][EACH];
    const int64_t base = run + part * LANES * EACH + lane * EACH;
    load_parts<PART, LANES * EACH>(value, data, base, tensor.count, aligned);
    float total[PART][EACH];
    bool joined = false;
    for (int s = 0; s < step_count; ++s) {
      const BlockzoStep step = steps[s];
      const Noise noise = {((uint64_t)step.seed_high << 32) | step.seed_low, stream};
#pragma unroll
      for (int p = 0; p < PART; ++p)
#pragma unroll
        for (int j = 0; j < EACH; ++j) total[p][j] = MODE == UPDATE && joined ? total[p][j] : 0.0f;
      for (int t = step.first; t < step.end; ++t) {
        const BlockzoTerm term = terms[t];
        if (!GAUSSIAN) fill(words, noise, term.direction, run);
#pragma unroll
        for (int p = 0; p < PART; ++p)
          accumulate<GAUSSIAN, MODE == PERTURB>(total[p], term, (const uint32_t*)words, noise, base + p * LANES * EACH);
      }
      joined = MODE == UPDATE && (step.flags & 2);
      if (joined) continue;
#pragma unroll
      for (int p = 0; p < PART; ++p)
        settle<T, MODE == UPDATE, EACH>(value[p], total[p], step, noise.seed, stream, base + p * LANES * EACH);
    }
#pragma unroll
    for (int p = 0; p < PART; ++p) {
      const int64_t index = base + p * LANES * EACH;
      if (index < tensor.count) store<EACH>(value[p], data, index, tensor.count, aligned);
    }
  }
}

}  // namespace

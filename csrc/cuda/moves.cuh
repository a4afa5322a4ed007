// perturb_, shift_, update_ and replay_ over a whole list of tensors in one launch.
//
// A warp takes a run of 4,096 elements. A Rademacher block of Philox serves 128 elements, so each lane makes the words of one block and
// the warp reads them from shared memory; a Gaussian block serves the 8 elements that one lane holds, so nothing is shared.
#pragma once
#include "storage.cuh"

namespace {

constexpr int WARPS = 4, RUN = 4096, CHUNK = WARPS * RUN, LANES = 32, EACH = 8, ROUNDS = RUN / (LANES * EACH);
enum { PERTURB = 0, SHIFT = 1, UPDATE = 2 };

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

enum Sum { ADDED, FIRST, ALONE };

// total += coefficient * z for the 8 elements of this lane in one round of the run. FIRST: total = +0 + coefficient * z, of signs
// and without an addition; ALONE: total = coefficient * z.
template <bool GAUSSIAN, Sum SUM>
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
      total[2 * w] = SUM == ADDED ? __fadd_rn(total[2 * w], even) : even;
      total[2 * w + 1] = SUM == ADDED ? __fadd_rn(total[2 * w + 1], odd) : odd;
    }
  } else {
    const uint32_t bits = words[(index & (RUN - 1)) >> 5] >> (index & 31);
    // +0 + -0 is +0
    const bool zero = SUM == FIRST && c == 0.0f;
    const uint32_t sign = zero ? 0u : 0x80000000u, size = zero ? 0u : __float_as_uint(c);
#pragma unroll
    for (int j = 0; j < EACH; ++j) {
      const float moved = __uint_as_float(size ^ (bits << (31 - j) & sign));
      total[j] = SUM == ADDED ? __fadd_rn(total[j], moved) : moved;
    }
  }
}

// What a step adds to P parts, APART elements from one another. `joined`: the sum of the step before goes on.
template <bool GAUSSIAN, bool SINGLE, int P>
__device__ __forceinline__ void sum_terms(float (&total)[P][EACH], bool joined, const BlockzoStep& step, const BlockzoTerm* terms,
                                          uint4* words, const Noise& noise, int64_t run, int64_t index) {
  int t = step.first;
  if (!joined && t < step.end && (SINGLE || !GAUSSIAN)) {
    const BlockzoTerm term = terms[t++];
    if (!GAUSSIAN) fill(words, noise, term.direction, run);
#pragma unroll
    for (int p = 0; p < P; ++p)
      accumulate<GAUSSIAN, SINGLE ? ALONE : FIRST>(total[p], term, (const uint32_t*)words, noise, index + p * LANES * EACH);
  } else if (!joined) {
#pragma unroll
    for (int p = 0; p < P; ++p)
#pragma unroll
      for (int j = 0; j < EACH; ++j) total[p][j] = 0.0f;
  }
  if (SINGLE) return;
  for (; t < step.end; ++t) {
    const BlockzoTerm term = terms[t];
    if (!GAUSSIAN) fill(words, noise, term.direction, run);
#pragma unroll
    for (int p = 0; p < P; ++p)
      accumulate<GAUSSIAN, ADDED>(total[p], term, (const uint32_t*)words, noise, index + p * LANES * EACH);
  }
}

// P parts through all steps, in registers.
template <class T, int MODE, bool GAUSSIAN, int P>
__device__ __forceinline__ void move_parts(float (&value)[P][EACH], const BlockzoStep* steps, int step_count, const BlockzoTerm* terms,
                                           uint4* words, uint32_t stream, int64_t run, int64_t index) {
  constexpr bool UPDATES = MODE == UPDATE;
  float total[P][EACH];
  bool joined = false;
  for (int s = 0; s < step_count; ++s) {
    const BlockzoStep step = steps[s];
    const Noise noise = {((uint64_t)step.seed_high << 32) | step.seed_low, stream};
    sum_terms<GAUSSIAN, MODE == PERTURB>(total, UPDATES && joined, step, terms, words, noise, run, index);
    joined = UPDATES && (step.flags & 2);
    if (joined) continue;
    if (UPDATES && step.factor != 1.0f) {
#pragma unroll
      for (int p = 0; p < P; ++p)
        settle<T, UPDATES, true, EACH>(value[p], total[p], step, noise.seed, stream, index + p * LANES * EACH);
    } else {
#pragma unroll
      for (int p = 0; p < P; ++p)
        settle<T, UPDATES, false, EACH>(value[p], total[p], step, noise.seed, stream, index + p * LANES * EACH);
    }
  }
}

template <class T, int MODE, bool GAUSSIAN>
__global__ void __launch_bounds__(WARPS* LANES, 3) move(const BlockzoTensor* tensors, const BlockzoChunk* chunks, const BlockzoStep* steps,
                                                     int step_count, const BlockzoTerm* terms) {
  __shared__ uint4 shared[WARPS][LANES];
  const BlockzoChunk chunk = chunks[blockIdx.x];
  const BlockzoTensor tensor = tensors[chunk.tensor];
  T* data = in_global_memory<T>(tensor.address);
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
  const int64_t run = (int64_t)chunk.number * CHUNK + warp * RUN;
  // no thread of a warp leaves before the others: they fill shared memory together
  if (run >= tensor.count) return;
  const bool aligned = tensor.address % 16 == 0;
  uint4* words = shared[warp];
  const uint32_t stream = (uint32_t)tensor.stream;

  // So many rounds are loaded together. Those of Rademacher noise go through all steps together too, and share the words that a lane
  // makes; Gaussian ones share nothing, and wait in the form of memory. A replay is bound by instructions and fills the registers
  // (stochastic rounding needs them for itself); the others want more warps.
  constexpr int PART = GAUSSIAN ? 8 / sizeof(T) : MODE == UPDATE && sizeof(T) == 4 ? 8 : 4;
  for (int part = 0; part < ROUNDS; part += PART) {
    const int64_t first = run + part * LANES * EACH, index = first + lane * EACH;
    if (first >= tensor.count) break;
    Stored<T, EACH> held[PART];
    load_parts<PART, LANES * EACH>(held, data, index, tensor.count, aligned);
    if (GAUSSIAN) {
#pragma unroll 1
      for (int p = 0; p < PART; ++p) {
        float value[1][EACH];
        widen(value[0], held[0]);
        const int64_t place = index + p * LANES * EACH;
        move_parts<T, MODE, GAUSSIAN>(value, steps, step_count, terms, words, stream, run, place);
        if (place < tensor.count) store<EACH>(value[0], data, place, tensor.count, aligned);
        // numbered by constants, they stay in registers
#pragma unroll
        for (int q = 1; q < PART; ++q) held[q - 1] = held[q];
      }
    } else {
      float value[PART][EACH];
#pragma unroll
      for (int p = 0; p < PART; ++p) widen(value[p], held[p]);
      move_parts<T, MODE, GAUSSIAN>(value, steps, step_count, terms, words, stream, run, index);
#pragma unroll
      for (int p = 0; p < PART; ++p) {
        const int64_t place = index + p * LANES * EACH;
        if (place < tensor.count) store<EACH>(value[p], data, place, tensor.count, aligned);
      }
    }
  }
}

}  // namespace

// Philox4x32-10 (Salmon et al., SC'11), one definition for scalars, vectors and GPU threads.
//
// T::Q is an unsigned 64-bit number or a vector of them; each lane carries one 32-bit word in its low half. The high halves
// hold leftovers of products, which T::mul ignores, so that no round has to clear them.
#pragma once
#include <stdint.h>

#if defined(__CUDACC__)
#define BLOCKZO_HD __host__ __device__ __forceinline__
#else
#define BLOCKZO_HD inline __attribute__((always_inline))
#endif

template <class T>
BLOCKZO_HD void philox(typename T::Q x[4], uint64_t seed) {
  uint32_t key0 = (uint32_t)seed, key1 = (uint32_t)(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const typename T::Q p0 = T::mul(x[0], 0xD2511F53u), p1 = T::mul(x[2], 0xCD9E8D57u);
    x[0] = (p1 >> 32) ^ x[1] ^ (uint64_t)key0;
    x[2] = (p0 >> 32) ^ x[3] ^ (uint64_t)key1;
    x[1] = p1;
    x[3] = p0;
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
}

// The scalar form: words of one block.
struct ScalarWords {
  typedef uint64_t Q;
  static BLOCKZO_HD Q mul(Q a, uint32_t b) { return (uint64_t)(uint32_t)a * b; }
};

BLOCKZO_HD void philox_block(uint64_t block, uint64_t seed, uint32_t stream, uint32_t direction, uint32_t words[4]) {
  uint64_t x[4] = {(uint32_t)block, block >> 32, stream, direction};
  philox<ScalarWords>(x, seed);
  for (int w = 0; w < 4; ++w) words[w] = (uint32_t)x[w];
}

// Rademacher value of index i (noise contract v1): bit 1 is -1.
BLOCKZO_HD float rademacher_at(uint64_t i, uint64_t seed, uint32_t stream, uint32_t direction) {
  uint32_t words[4];
  philox_block(i >> 7, seed, stream, direction, words);
  return (words[(i >> 5) & 3] >> (i & 31)) & 1 ? -1.0f : 1.0f;
}

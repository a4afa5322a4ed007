// The CUDA kernels as plain C: addresses, sizes and a stream in, an error code out. Nothing of torch, nothing of Python.
#pragma once
#include <stdint.h>

#define BLOCKZO_EXPORT extern "C" __attribute__((visibility("default")))

// One tensor of a list: contiguous, `count` elements of the list's dtype.
struct BlockzoTensor {
  uint64_t address;
  int64_t count;
  int64_t stream;
};

// Elements [number * BLOCKZO_CHUNK, ...) of one tensor, for one block of threads.
struct BlockzoChunk {
  int32_t tensor, number;
};

// One step; its terms are [first, end) of the list of terms.
struct BlockzoStep {
  uint32_t seed_low, seed_high;
  int32_t first, end;
  float factor;
  int32_t flags;  // 1: stochastic rounding; 2: the sum goes on in the next step, which alone moves and rounds the weight
};

struct BlockzoTerm {
  uint32_t direction;
  float coefficient;
};

// dtype, mode and distribution are the codes of cpu.h. All lists lie in device memory. Returns 0 or a cudaError_t; nothing waits.
BLOCKZO_EXPORT int blockzo_cuda_move(const BlockzoTensor* tensors, const BlockzoChunk* chunks, int64_t chunk_count,
                                     const BlockzoStep* steps, int step_count, const BlockzoTerm* terms, int dtype, int mode,
                                     int distribution, void* stream);

// Elements of a chunk, which the caller's list of chunks is made by.
BLOCKZO_EXPORT int blockzo_cuda_chunk(void);

// Version of this interface; number of devices, or minus a cudaError_t where no driver or device is there.
BLOCKZO_EXPORT int blockzo_cuda_version(void);
BLOCKZO_EXPORT int blockzo_cuda_devices(void);

// What an error code means.
BLOCKZO_EXPORT const char* blockzo_cuda_error(int code);

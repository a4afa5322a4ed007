// Launchers of moves.cuh, and what the library says of itself.
#include <cuda_runtime.h>

#include "moves.cuh"

namespace {

template <class T, int MODE>
int launch(const BlockzoTensor* tensors, const BlockzoChunk* chunks, int64_t count, const BlockzoStep* steps, int step_count,
           const BlockzoTerm* terms, int distribution, cudaStream_t stream) {
  const dim3 grid((unsigned)count);
  if (distribution)
    move<T, MODE, true><<<grid, WARPS * LANES, 0, stream>>>(tensors, chunks, steps, step_count, terms);
  else
    move<T, MODE, false><<<grid, WARPS * LANES, 0, stream>>>(tensors, chunks, steps, step_count, terms);
  return (int)cudaGetLastError();
}

template <class T>
int launch_mode(const BlockzoTensor* tensors, const BlockzoChunk* chunks, int64_t count, const BlockzoStep* steps, int step_count,
                const BlockzoTerm* terms, int mode, int distribution, cudaStream_t stream) {
  switch (mode) {
    case PERTURB: return launch<T, PERTURB>(tensors, chunks, count, steps, step_count, terms, distribution, stream);
    case SHIFT: return launch<T, SHIFT>(tensors, chunks, count, steps, step_count, terms, distribution, stream);
    case UPDATE: return launch<T, UPDATE>(tensors, chunks, count, steps, step_count, terms, distribution, stream);
  }
  return (int)cudaErrorInvalidValue;
}

}  // namespace

int blockzo_cuda_move(const BlockzoTensor* tensors, const BlockzoChunk* chunks, int64_t chunk_count, const BlockzoStep* steps,
                      int step_count, const BlockzoTerm* terms, int dtype, int mode, int distribution, void* stream) {
  if (chunk_count == 0) return 0;
  if (chunk_count < 0 || chunk_count > 0x7FFFFFFF || step_count < 1 || (distribution != 0 && distribution != 1))
    return (int)cudaErrorInvalidValue;
  cudaStream_t on = (cudaStream_t)stream;
  switch (dtype) {
    case 0: return launch_mode<float>(tensors, chunks, chunk_count, steps, step_count, terms, mode, distribution, on);
    case 1: return launch_mode<__nv_bfloat16>(tensors, chunks, chunk_count, steps, step_count, terms, mode, distribution, on);
    case 2: return launch_mode<__half>(tensors, chunks, chunk_count, steps, step_count, terms, mode, distribution, on);
  }
  return (int)cudaErrorInvalidValue;
}

int blockzo_cuda_chunk(void) { return CHUNK; }
int blockzo_cuda_version(void) { return 2; }

int blockzo_cuda_devices(void) {
  int count = 0;
  const cudaError_t code = cudaGetDeviceCount(&count);
  return code == cudaSuccess ? count : -(int)code;
}

const char* blockzo_cuda_error(int code) { return cudaGetErrorString((cudaError_t)code); }

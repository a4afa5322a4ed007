// The kernels of csrc/cuda with the interface of that library, on a CPU: what a machine without a GPU can run of them.
#include "cuda_runtime.h"

#include <functional>
#include <thread>
#include <vector>

#include "../../cuda/moves.cuh"

namespace {

void each_block(int64_t count, const std::function<void()>& body) {
  for (int64_t block = 0; block < count; ++block) {
    pthread_barrier_t barriers[WARPS];
    for (auto& barrier : barriers) pthread_barrier_init(&barrier, nullptr, LANES);
    std::vector<std::thread> threads;
    for (int thread = 0; thread < WARPS * LANES; ++thread)
      threads.emplace_back([&, thread] {
        blockIdx.x = (unsigned)block;
        threadIdx.x = (unsigned)thread;
        warp_barrier = &barriers[thread / LANES];
        body();
      });
    for (auto& thread : threads) thread.join();
    for (auto& barrier : barriers) pthread_barrier_destroy(&barrier);
  }
}

template <class T, bool GAUSSIAN>
void run(const BlockzoTensor* tensors, const BlockzoChunk* chunks, int64_t count, const BlockzoStep* steps, int step_count,
         const BlockzoTerm* terms, int mode) {
  each_block(count, [&] {
    if (mode == PERTURB) move<T, PERTURB, GAUSSIAN>(tensors, chunks, steps, step_count, terms);
    if (mode == SHIFT) move<T, SHIFT, GAUSSIAN>(tensors, chunks, steps, step_count, terms);
    if (mode == UPDATE) move<T, UPDATE, GAUSSIAN>(tensors, chunks, steps, step_count, terms);
  });
}

template <class T>
void run_of(const BlockzoTensor* tensors, const BlockzoChunk* chunks, int64_t count, const BlockzoStep* steps, int step_count,
            const BlockzoTerm* terms, int mode, int distribution) {
  if (distribution)
    run<T, true>(tensors, chunks, count, steps, step_count, terms, mode);
  else
    run<T, false>(tensors, chunks, count, steps, step_count, terms, mode);
}

}  // namespace

int blockzo_cuda_move(const BlockzoTensor* tensors, const BlockzoChunk* chunks, int64_t count, const BlockzoStep* steps, int step_count,
                      const BlockzoTerm* terms, int dtype, int mode, int distribution, void*) {
  if (dtype == 0) run_of<float>(tensors, chunks, count, steps, step_count, terms, mode, distribution);
  if (dtype == 1) run_of<__nv_bfloat16>(tensors, chunks, count, steps, step_count, terms, mode, distribution);
  if (dtype == 2) run_of<__half>(tensors, chunks, count, steps, step_count, terms, mode, distribution);
  return 0;
}

int blockzo_cuda_chunk(void) { return CHUNK; }
int blockzo_cuda_version(void) { return 2; }
int blockzo_cuda_devices(void) { return 1; }
const char* blockzo_cuda_error(int) { return "no error is known here"; }

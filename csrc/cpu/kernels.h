// What each instruction set's source exports: one table of functions over whole blocks of 128 elements.
#pragma once

#include <cstddef>
#include <cstdint>

#include "blockzo/cpu.h"

namespace blockzo {

// Elements of one Rademacher block; every run that a kernel is given begins at a multiple of it and holds whole ones.
constexpr int64_t block_size = 128;
// Elements of one chunk of a projection's sum (docs/noise.md, "Projection").
constexpr int64_t project_chunk = 4096;

// How the one term of a fused step meets the weight.
enum class Move { perturb, shift, update };

// A Step without containers: nothing from the standard library is compiled for an instruction set that the CPU may lack.
struct Plan {
    uint64_t seed;
    Distribution distribution;
    const Term* terms;
    size_t count;
    float factor;
    bool stochastic;
};

struct KernelTable {
    const char* name;
    // perturb: dst <- round(src + c z); shift: round(src + (0 + c z)); update: round(src * factor - (0 + c z)); one term.
    void (*move)(void* dst, Dtype dst_dtype, const void* src, Dtype src_dtype, uint64_t block, int64_t blocks, uint32_t stream,
                 const Plan& plan, Move how);
    // dst <- src after every plan in turn; with `add` the sums are added instead of subtracted.
    void (*replay)(void* dst, const void* src, Dtype dtype, uint64_t block, int64_t blocks, uint32_t stream, const Plan* plans,
                   size_t count, bool add);
    // One chunk: sums[k] <- <src, z of term k>; `blocks` is at most project_chunk / block_size.
    void (*project)(const void* src, Dtype dtype, uint64_t block, int64_t blocks, uint32_t stream, const Plan& plan, double* sums);
};

// Null where the source is for another architecture.
extern const KernelTable* const baseline_kernels;
extern const KernelTable* const avx2_kernels;
extern const KernelTable* const avx512_kernels;
extern const KernelTable* const neon_kernels;

}  // namespace blockzo

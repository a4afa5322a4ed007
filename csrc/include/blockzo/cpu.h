// The CPU kernels as a plain C++ interface: pointers, sizes and numbers, nothing of Python or torch.
// Noise and rounding follow docs/noise.md bit for bit, whatever the instruction set and the number of threads.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace blockzo {

enum class Dtype : int32_t { float32 = 0, bfloat16 = 1, float16 = 2 };
enum class Distribution : int32_t { rademacher = 0, gaussian = 1 };

// A tensor that an operation moves. Element i is the i-th in row-major order of `sizes`; strides count elements. ndim 0 is one element.
struct Tensor {
    void* data = nullptr;
    Dtype dtype = Dtype::float32;
    uint32_t stream = 0;
    std::vector<int64_t> sizes;
    std::vector<int64_t> strides;
};

struct Term {
    uint32_t direction;
    float coefficient;
};

// One step of the record: sum over terms of coefficient * z[direction]. `factor` (1 - decay) and `stochastic` matter to replay only.
struct Step {
    uint64_t seed = 0;
    Distribution distribution = Distribution::rademacher;
    std::vector<Term> terms;
    float factor = 1.0f;
    bool stochastic = false;
};

// w <- round(w + (c * z)); `step` has exactly one term.
void perturb(const std::vector<Tensor>& tensors, const Step& step, int threads);
// w <- round(w + sum of c_k z_k), the sum made in float32 from 0 in order.
void shift(const std::vector<Tensor>& tensors, const Step& step, int threads);
// w <- round(w * factor - sum of c_k z_k) for every step in turn, in one pass over the weights.
void replay(const std::vector<Tensor>& tensors, const std::vector<Step>& steps, int threads);
// out[i] <- round(source[i] + (c * z[start + i])), i < count; out is float32 or the dtype of source, and may be source itself.
void copy(void* out, Dtype out_dtype, const void* source, Dtype source_dtype, int64_t count, int64_t start, uint32_t stream,
          const Step& step, int threads);
// out[j, :] <- round(weight[rows[j], :] + (c * z of that row)); weight is a contiguous [n, width], out a contiguous [count, width].
void rows(void* out, const void* weight, Dtype dtype, const int64_t* rows, int64_t count, int64_t width, uint32_t stream,
          const Step& step, int threads);
// <w, z_k> for every term of the step, in float64 and in the order of docs/noise.md, "Projection"; coefficients are not used.
std::vector<double> project(const std::vector<Tensor>& tensors, const Step& step, int threads);
// Where `count` consecutive logical elements from `start` lie, in elements from `data`: what the kernels do with sizes and strides.
std::vector<int64_t> offsets(const Tensor& tensor, int64_t start, int64_t count);

// Instruction sets: "baseline", "avx2", "avx512", "neon".
std::vector<std::string> compiled();
std::vector<std::string> available();
std::string chosen();
// Forces one; throws std::invalid_argument, with the reason, for a name that is not available here.
void choose(const std::string& name);

}  // namespace blockzo

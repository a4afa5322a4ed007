// The CPU kernels as plain C++: raw pointers, sizes and codes; no Python and no torch.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

namespace blockzo {

enum DType { FLOAT32 = 0, BFLOAT16 = 1, FLOAT16 = 2 };
enum Distribution { RADEMACHER = 0, GAUSSIAN = 1 };
// PERTURB: w + c z for one direction.  SHIFT: w + sum.  UPDATE: w * factor - sum.  Sums are float32, from 0, in order.
enum Mode { PERTURB = 0, SHIFT = 1, UPDATE = 2 };

struct Step {
  uint64_t seed;
  int distribution;
  std::vector<uint32_t> directions;
  std::vector<float> coefficients;
  float factor = 1.0f;
  bool stochastic = false;
};

// Strides count elements; sizes and strides are of the logical tensor, whose row-major index addresses the noise.
struct View {
  void* data;
  int dtype;
  uint32_t stream;
  std::vector<int64_t> sizes, strides;
};

// Instruction sets: "baseline", "avx2", "avx512", "neon".
std::vector<std::string> compiled();
std::vector<std::string> available();
std::string chosen();
// Throws std::invalid_argument where `name` is unknown or cannot run here.
void choose(const std::string& name);

// All steps on every tensor in one pass: each weight is read once, rounded to its dtype at every step, written once.
void apply(const std::vector<View>& tensors, const std::vector<Step>& steps, Mode mode, int threads);

// out[j] = round(source[j] + c z[start + j]), j < count; out is float32 or has the dtype of source.
void copy(void* out, int out_dtype, const void* source, int dtype, int64_t count, int64_t start, const Step& step,
          uint32_t stream, int threads);

// out[m] = round(weight[rows[m]] + c z of that row); weight is [*, width].
void rows(void* out, const void* weight, int dtype, int64_t width, const int64_t* chosen_rows, int64_t count, const Step& step,
          uint32_t stream, int threads);

// totals[k] = <tensor, z_k> in float64: 16 lanes over chunks of 4,096 elements, chunks added in order.
void project(const View& tensor, const Step& step, double* totals, int threads);

// out[j] = z[start + j].
void sample(float* out, int64_t count, int64_t start, uint64_t seed, int distribution, uint32_t stream, uint32_t direction,
            int threads);

// Copies elements [first, first + count) of the row-major order between a strided tensor and dense memory.
void gather(void* dense, const View& tensor, int64_t first, int64_t count);
void scatter(const void* dense, const View& tensor, int64_t first, int64_t count);

}  // namespace blockzo

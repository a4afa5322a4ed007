// The CPU kernels as plain C++: raw pointers, sizes and codes; no Python and no torch.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

namespace blockzo {

// INT8 and INT4 are weights of `linear`, one float32 scale a row; INT4 holds value + 8, two to a byte, the even column low.
enum DType { FLOAT32 = 0, BFLOAT16 = 1, FLOAT16 = 2, INT8 = 3, INT4 = 4 };
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
  bool joins = false;  // UPDATE: the sum goes on in the next step, which alone moves and rounds the weight
  // 0: noise of full rank. Else that of a matrix of `width` columns, alike for all steps of a call
  int rank = 0;
  int64_t width = 0;
};

// Strides count elements; sizes and strides are of the logical tensor, whose row-major index addresses the noise.
struct View {
  void* data;
  int dtype;
  uint32_t stream;
  std::vector<int64_t> sizes, strides;
};

// A part of a tensor: element (i, j, ...) of `local` has the noise of index start + i * apart[0] + j * apart[1] + ... in the whole.
// Dimensions come in falling order of `apart`.
struct Shard {
  View local;
  int64_t start;
  std::vector<int64_t> apart;
};

// A part whose weights have a scale each, which multiplies what is added to the weight or taken from it; where it is 0 the weight keeps its
// bits. `scales` has the sizes of the part and any strides, 0 too; INT8 is a mask of bytes 0 and 1.
struct Scaled {
  Shard part;
  View scales;
};

// A linear layer for `groups` groups of `tokens` rows each, all of them [tokens, width]; strides count elements (INT4: bytes).
struct Linear {
  int64_t groups, tokens, rows, width;
  const void* x;
  int x_dtype;
  int64_t x_group, x_row;  // x_group 0: every group reads the same x
  const void* weight;      // [rows, width]
  int weight_dtype;
  int64_t weight_row;
  const float* weight_scales;     // INT8, INT4: [rows]
  int64_t start, noise_row;       // element (n, k) has the noise of index start + n * noise_row + k
  const void* bias;               // null, [rows] or [groups, rows]
  int bias_dtype;
  int64_t bias_group;
  void* out;    // [groups, tokens, rows] in x_dtype
  bool narrow;  // moved weights are rounded to their 16-bit dtype, as a move in place would leave them
};

// Instruction sets: "baseline", "avx2", "avx512", "amx" (avx512 and its matrix unit), "neon", "neon-bf16" (neon and products of bfloat16).
std::vector<std::string> compiled();
std::vector<std::string> available();
std::string chosen();
// "intel", "amd" or "other"
std::string vendor();
// Throws std::invalid_argument where `name` is unknown or cannot run here.
void choose(const std::string& name);

// All steps on every tensor in one pass: each weight is read once, rounded to its dtype at every step, written once.
void apply(const std::vector<View>& tensors, const std::vector<Step>& steps, Mode mode, int threads);

// The same on parts of tensors: the bits are those that the part has in the whole.
void apply_shards(const std::vector<Shard>& shards, const std::vector<Step>& steps, Mode mode, int threads);

// The same on parts with scales; steps of full rank.
void apply_scaled(const std::vector<Scaled>& tensors, const std::vector<Step>& steps, Mode mode, int threads);

// out[j] = round(source[j] + c z[start + j]), j < count; out is float32 or has the dtype of source.
void copy(void* out, int out_dtype, const void* source, int dtype, int64_t count, int64_t start, const Step& step,
          uint32_t stream, int threads);

// The same for `rows` rows of `width` that lie `apart` elements from each other, in memory and in the noise; out is dense.
void panel(void* out, int out_dtype, const void* source, int dtype, int64_t rows, int64_t width, int64_t apart, int64_t start,
           const Step& step, uint32_t stream, int threads);

// out[m] = round(weight[rows[m]] + c z of that row); weight is [*, width].
void rows(void* out, const void* weight, int dtype, int64_t width, const int64_t* chosen_rows, int64_t count, const Step& step,
          uint32_t stream, int threads);

// out[g] = x[g] (weight + c_g z_g)^T + bias[g], in float32: one chain of additions over k for each number of the result, whatever the
// threads, the groups and the number of tokens.
void linear(const Linear& call, const Step& step, uint32_t stream, int threads);

// totals[k] = <tensor, z_k> in float64: 16 lanes over chunks of 4,096 elements, chunks added in order.
void project(const View& tensor, const Step& step, double* totals, int threads);

// The same over the elements of a part, chunks cut in its own row-major order.
void project_shard(const Shard& shard, const Step& step, double* totals, int threads);

// out[j] = z[start + j].
void sample(float* out, int64_t count, int64_t start, uint64_t seed, int distribution, uint32_t stream, uint32_t direction,
            int threads);

// out[j] = z[first + j] of the factors of noise of a low rank, whose indices lie above 2^63.
void factors(float* out, uint64_t first, int64_t count, uint64_t seed, int distribution, uint32_t stream, uint32_t direction);

// Copies elements [first, first + count) of the row-major order between a strided tensor and dense memory.
void gather(void* dense, const View& tensor, int64_t first, int64_t count);
void scatter(const void* dense, const View& tensor, int64_t first, int64_t count);

}  // namespace blockzo

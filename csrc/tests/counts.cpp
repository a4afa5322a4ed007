// Runs each kernel once under callgrind, which counts; tests/guard/kernels.py builds it from the objects of the extension and reads
// what it prints and what callgrind dumps, one dump a case, named `set|case`.
//
//   valgrind --tool=callgrind --collect-atstart=no ... counts [--only=PREFIX] avx2 baseline
//
// Prints `set|case bytes-of-weights allocations allocated-bytes`. Each case runs once before it is counted, so that memory which a
// thread keeps for all calls does not count, and meets weights that no cache holds.
#include <valgrind/callgrind.h>

#include <cstdio>
#include <cstdlib>
#include <functional>
#include <new>
#include <string>
#include <vector>

#include "blockzo/cpu.h"

namespace {

long long allocations = 0, allocated = 0;

void* counted(size_t size, void* memory) {
  ++allocations;
  allocated += (long long)size;
  return memory;
}

}  // namespace

// -Wl,--wrap sends the calls of the kernels' own objects here
extern "C" {
void* __real_malloc(size_t size);
void* __real_calloc(size_t count, size_t size);
void* __real_realloc(void* memory, size_t size);
void* __real_aligned_alloc(size_t alignment, size_t size);
void* __wrap_malloc(size_t size) { return counted(size, __real_malloc(size)); }
void* __wrap_calloc(size_t count, size_t size) { return counted(count * size, __real_calloc(count, size)); }
void* __wrap_realloc(void* memory, size_t size) { return counted(size, __real_realloc(memory, size)); }
void* __wrap_aligned_alloc(size_t alignment, size_t size) { return counted(size, __real_aligned_alloc(alignment, size)); }
}
void* operator new(size_t size) { return counted(size, __real_malloc(size)); }
void* operator new(size_t size, std::align_val_t to) { return counted(size, __real_aligned_alloc((size_t)to, size)); }
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, size_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::align_val_t) noexcept { std::free(memory); }
void operator delete(void* memory, size_t, std::align_val_t) noexcept { std::free(memory); }

namespace {
using namespace blockzo;

constexpr int64_t ROWS = 128, WIDTH = 512, COUNT = ROWS * WIDTH;
constexpr int THREADS = 1;
const char* const DTYPES[] = {"float32", "bfloat16", "float16", "int8", "int4"};
const char* const DISTRIBUTIONS[] = {"rademacher", "gaussian"};

struct Memory {
  std::vector<char> bytes;
  explicit Memory(size_t size) : bytes(size + 64) {}
  char* data() { return (char*)(((uintptr_t)bytes.data() + 63) / 64 * 64); }
  View view(int dtype, std::vector<int64_t> sizes = {ROWS, WIDTH}, std::vector<int64_t> strides = {WIDTH, 1}) {
    return View{data(), dtype, 7, std::move(sizes), std::move(strides)};
  }
};

Step step_of(int distribution, uint32_t directions, uint64_t seed = 3) {
  Step step{seed, distribution, {}, {}};
  for (uint32_t k = 0; k < directions; ++k) {
    step.directions.push_back(k);
    step.coefficients.push_back(1e-3f * (float)(k + 1));
  }
  return step;
}

int64_t size_of(int dtype) { return dtype == FLOAT32 ? 4 : dtype == INT8 ? 1 : 2; }

class Counter {
 public:
  Counter(std::string set, std::string only) : set_(std::move(set)), only_(std::move(only)), other_(1 << 18) {}

  // `weights`: bytes of them, which one pass reads; 0 where they are not most of what is read, and one more pass is more instructions
  void operator()(const std::string& name, int64_t weights, const std::function<void()>& run) {
    if (name.compare(0, only_.size(), only_) != 0) return;
    run();
    // the caches hold something else now
    for (size_t at = 0; at < other_.size(); at += 64) sum_ = sum_ + other_[at];
    const long long count = allocations, bytes = allocated;
    CALLGRIND_ZERO_STATS;
    CALLGRIND_TOGGLE_COLLECT;
    run();
    CALLGRIND_TOGGLE_COLLECT;
    const long long more = allocations - count, larger = allocated - bytes;
    const std::string label = set_ + "|" + name;
    CALLGRIND_DUMP_STATS_AT(label.c_str());
    std::printf("%s\t%lld\t%lld\t%lld\n", label.c_str(), (long long)weights, more, larger);
  }

  const std::string& set() const { return set_; }

 private:
  std::string set_, only_;
  std::vector<char> other_;
  volatile char sum_ = 0;
};

void moves(Counter& count) {
  for (int dtype : {FLOAT32, BFLOAT16, FLOAT16}) {
    Memory memory(COUNT * 4);
    const std::vector<View> w{memory.view(dtype)};
    const int64_t bytes = COUNT * size_of(dtype);
    for (int kind : {RADEMACHER, GAUSSIAN}) {
      const std::string end = std::string(" ") + DTYPES[dtype] + " " + DISTRIBUTIONS[kind];
      // one of these takes as long as several signs
      const uint32_t number = kind == GAUSSIAN ? 4 : 16;
      const std::string several = " of " + std::to_string(number);
      const Step one = step_of(kind, 1), two = step_of(kind, 2), many = step_of(kind, number);
      count("perturb" + end, bytes, [&] { apply(w, {one}, PERTURB, THREADS); });
      count("update of 1 direction" + end, bytes, [&] { apply(w, {one}, UPDATE, THREADS); });
      if (dtype == FLOAT16 || (dtype == BFLOAT16 && count.set() == "baseline")) continue;
      count("shift of 2 directions" + end, bytes, [&] { apply(w, {two}, SHIFT, THREADS); });
      count("update" + several + " directions" + end, bytes, [&] { apply(w, {many}, UPDATE, THREADS); });
      std::vector<Step> steps, joined;
      for (uint64_t k = 0; k < number; ++k) {
        steps.push_back(step_of(kind, 1, k));
        joined.push_back(steps.back());
        joined.back().joins = k + 1 < number;
      }
      count("replay" + several + " steps" + end, bytes, [&] { apply(w, steps, UPDATE, THREADS); });
      count("update" + several + " seeds" + end, bytes, [&] { apply(w, joined, UPDATE, THREADS); });
      Step rounded = one;
      rounded.stochastic = true;
      if (dtype != FLOAT32) count("update, stochastic rounding" + end, bytes, [&] { apply(w, {rounded}, UPDATE, THREADS); });
      const Shard part{memory.view(dtype, {ROWS / 2, WIDTH}, {WIDTH, 1}), 0, {2 * WIDTH, 1}};
      count("update of a shard" + end, bytes / 2, [&] { apply_shards({part}, {one}, UPDATE, THREADS); });
      Memory mask(COUNT);
      const Scaled scaled{{memory.view(dtype), 0, {WIDTH, 1}}, mask.view(INT8)};
      count("update under a mask" + end, bytes, [&] { apply_scaled({scaled}, {one}, UPDATE, THREADS); });
      std::vector<double> totals(2);
      count("project on 2 directions" + end, bytes, [&] { project(w[0], two, totals.data(), THREADS); });
      Step low = many;
      low.rank = 4, low.width = WIDTH;
      count("update" + several + " directions of rank 4" + end, 0, [&] { apply(w, {low}, UPDATE, THREADS); });
    }
  }
}

void copies(Counter& count) {
  Memory source(COUNT * 4), target(COUNT * 4);
  std::vector<int64_t> chosen;
  for (int64_t k = 0; k < ROWS; ++k) chosen.push_back(k * 37 % ROWS);
  for (int kind : {RADEMACHER, GAUSSIAN}) {
    const std::string end = std::string(" ") + DISTRIBUTIONS[kind];
    const Step one = step_of(kind, 1);
    count("copy bfloat16" + end, COUNT * 2, [&] { copy(target.data(), BFLOAT16, source.data(), BFLOAT16, COUNT, 0, one, 7, THREADS); });
    count("rows float32" + end, COUNT * 4,
          [&] { rows(target.data(), source.data(), FLOAT32, WIDTH, chosen.data(), ROWS, one, 7, THREADS); });
    count("sample" + end, COUNT * 4, [&] { sample((float*)target.data(), COUNT, 0, 3, kind, 7, 0, THREADS); });
  }
}

void products(Counter& count) {
  constexpr int64_t GROUPS = 4, TOKENS = 16;
  Memory weight(COUNT * 4), x(GROUPS * TOKENS * WIDTH * 4), out(GROUPS * TOKENS * ROWS * 4), scales(ROWS * 4);
  for (int dtype : {FLOAT32, INT4, BFLOAT16, INT8}) {
    if (dtype == BFLOAT16 && count.set() == "baseline") break;
    for (int kind : {RADEMACHER, GAUSSIAN})
      for (int64_t groups : {(int64_t)1, GROUPS}) {
        const int64_t row = dtype == INT4 ? WIDTH / 2 : WIDTH;
        const int x_dtype = dtype == BFLOAT16 ? BFLOAT16 : FLOAT32;
        const float* by = dtype >= INT8 ? (const float*)scales.data() : nullptr;
        const Linear call{groups, TOKENS, ROWS, WIDTH, x.data(), x_dtype, TOKENS * WIDTH, WIDTH, weight.data(), dtype, row, by, 0, WIDTH,
                          nullptr, FLOAT32, 0, out.data(), false};
        Step step = step_of(kind, (uint32_t)groups);
        if (groups > 1) step.directions = {0, 0, 1, 1}, step.coefficients = {1e-3f, -1e-3f, 1e-3f, -1e-3f};
        const std::string form = groups > 1 ? ", 2 directions, both signs" : "";
        count(std::string("linear ") + DTYPES[dtype] + " " + DISTRIBUTIONS[kind] + form, 0, [&] { linear(call, step, 7, THREADS); });
      }
  }
}

}  // namespace

int main(int number, char** arguments) {
  std::string only;
  for (int n = 1; n < number; ++n) {
    const std::string argument = arguments[n];
    if (argument.rfind("--only=", 0) == 0) {
      only = argument.substr(7);
      continue;
    }
    blockzo::choose(argument);
    Counter count(argument, only);
    moves(count);
    copies(count);
    products(count);
  }
  return 0;
}

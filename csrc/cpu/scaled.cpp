// Weights with a scale each: both read tile by tile, wherever they lie.
#include <algorithm>
#include <cstring>

#include "pieces.h"
#include "runs.h"
#include "table.h"
#include "threads.h"

namespace blockzo {
namespace {

void read_elements(char* to, const View& from, int64_t first, int64_t count) {
  if (dense(from))
    std::memcpy(to, (const char*)from.data + first * size_of(from.dtype), (size_t)(count * size_of(from.dtype)));
  else
    gather(to, from, first, count);
}

// The scales of one tensor as float32, a tile at a time.
class Scales {
 public:
  Scales(const View& given, const KernelTable* table) : view_(collapsed(given)), table_(table) {
    one_ = view_.sizes.empty() || (view_.sizes.size() == 1 && view_.strides[0] == 0);
    if (one_) {
      read(0, 1, 0);
      std::fill(values_, values_ + TILE, values_[0]);
    }
  }

  // Those of elements [first, first + count) from place `skip` on, up to a whole group; what is no element's is 0, or not used.
  const float* take(int64_t first, int64_t count, int64_t skip) {
    if (one_) return values_;
    if (skip || count % GROUP || !dense(view_)) {
      read(first, count, skip);
      return values_;
    }
    const char* data = (const char*)view_.data + first * size_of(view_.dtype);
    if (view_.dtype == FLOAT32) return (const float*)data;
    table_->widen(data, view_.dtype, values_, count);
    return values_;
  }

 private:
  void read(int64_t first, int64_t count, int64_t skip) {
    const int64_t size = (skip + count + GROUP - 1) / GROUP * GROUP, item = size_of(view_.dtype);
    if (skip || count < size) std::memset(raw_, 0, (size_t)(size * item));
    read_elements(raw_ + skip * item, view_, first, count);
    table_->widen(raw_, view_.dtype, values_, size);
  }

  const View view_;
  const KernelTable* table_;
  bool one_;  // one number for all
  alignas(64) float values_[TILE];
  alignas(64) char raw_[TILE * 4];
};

}  // namespace

void apply_scaled(const std::vector<Scaled>& tensors, const std::vector<Step>& steps, Mode mode, int threads) {
  std::vector<Runs> all;
  int64_t total = 0;
  for (const Scaled& tensor : tensors) {
    all.push_back(runs_of(tensor.part));
    total += elements(tensor.part.local);
  }
  if (steps.empty() || !total) return;
  const KernelTable* table = chosen_table();
  in_parallel(total * (int64_t)steps.size(), threads, [&](int number, int of) {
    int64_t before = 0;
    alignas(64) char buffer[TILE * 4];
    for (size_t s = 0; s < all.size(); ++s) {
      const int64_t size = all[s].count * all[s].width;
      const auto [first, last] = share(before, size, total, number, of);
      before += size;
      if (first == last) continue;
      Scales scales(tensors[s].scales, table);
      int64_t done = first;  // elements of the part, in its own row-major order
      each_run(all[s], tensors[s].part.start, first, last, [&](const View& run, int64_t index, int64_t from, int64_t to) {
        const int64_t item = size_of(run.dtype);
        for (int64_t at = from; at < to;) {
          const int64_t skip = (index + at) % GROUP, base = index + at - skip, n = std::min(TILE - skip, to - at);
          const int64_t whole = (skip + n + GROUP - 1) / GROUP * GROUP;
          const float* by = scales.take(done, n, skip);
          if (dense(run) && whole == n) {
            table->scaled((char*)run.data + at * item, run.dtype, by, base, n, steps.data(), (int64_t)steps.size(), mode, run.stream);
          } else {
            std::memset(buffer, 0, (size_t)(whole * item));
            read_elements(buffer + skip * item, run, at, n);
            table->scaled(buffer, run.dtype, by, base, whole, steps.data(), (int64_t)steps.size(), mode, run.stream);
            scatter(buffer + skip * item, run, at, n);
          }
          at += n;
          done += n;
        }
      });
    }
  });
}

}  // namespace blockzo

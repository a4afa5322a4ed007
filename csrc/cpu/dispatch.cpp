// Choosing an instruction set, splitting work over threads, and fitting ragged and strided tensors to the kernels.
#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "pieces.h"
#include "table.h"
#include "threads.h"

namespace blockzo {
namespace {

std::vector<const KernelTable*> tables() {
  std::vector<const KernelTable*> found;
  for (const KernelTable* table : {amx_table(), avx512_table(), avx2_table(), neon_bf16_table(), neon_table(), baseline_table()})
    if (table) found.push_back(table);
  return found;
}

const KernelTable* best() {
  for (const KernelTable* table : tables())
    if (table->runs_here()) return table;
  return baseline_table();
}

const KernelTable*& current() {
  static const KernelTable* table = best();
  return table;
}

// in_groups for a kernel that reads one memory and writes another.
template <class Kernel>
void in_groups(const char* in, int64_t in_item, char* out, int64_t out_item, int64_t first, int64_t last,
               const Kernel& kernel) {
  alignas(64) char from[GROUP * 4], to[GROUP * 4];
  int64_t at = first;
  while (at < last) {
    const int64_t base = at / GROUP * GROUP;
    const char* source = in + (at - first) * in_item;
    char* target = out + (at - first) * out_item;
    if (at == base && last - at >= GROUP) {
      const int64_t whole = (last - at) / GROUP * GROUP;
      kernel(source, target, at, whole);
      at += whole;
    } else {
      const int64_t stop = std::min(last, base + GROUP);
      std::memset(from, 0, sizeof from);
      std::memcpy(from + (at - base) * in_item, source, (size_t)((stop - at) * in_item));
      kernel(from, to, base, GROUP);
      std::memcpy(target, to + (at - base) * out_item, (size_t)((stop - at) * out_item));
      at = stop;
    }
  }
}

template <bool Gather>
void move_strided(char* dense_memory, const View& tensor, int64_t first, int64_t count) {
  const int64_t item = size_of(tensor.dtype);
  const size_t dims = tensor.sizes.size();
  std::vector<int64_t> place(dims);
  int64_t rest = first, offset = 0;
  for (size_t d = dims; d-- > 0;) {
    place[d] = rest % tensor.sizes[d];
    rest /= tensor.sizes[d];
    offset += place[d] * tensor.strides[d];
  }
  const int64_t inner = dims ? tensor.strides[dims - 1] : 1, width = dims ? tensor.sizes[dims - 1] : 1;
  while (count > 0) {
    const int64_t run = std::min(count, dims ? width - place[dims - 1] : 1);
    char* p = (char*)tensor.data + offset * item;
    for (int64_t j = 0; j < run; ++j, p += inner * item, dense_memory += item) {
      if (Gather)
        std::memcpy(dense_memory, p, (size_t)item);
      else
        std::memcpy(p, dense_memory, (size_t)item);
    }
    count -= run;
    if (!count) break;
    place[dims - 1] += run;
    offset += run * inner;
    for (size_t d = dims - 1; d > 0 && place[d] == tensor.sizes[d]; --d) {
      offset += tensor.strides[d - 1] - place[d] * tensor.strides[d];
      place[d] = 0;
      ++place[d - 1];
    }
  }
}

}  // namespace

std::vector<std::string> compiled() {
  std::vector<std::string> names;
  for (const KernelTable* table : tables()) names.push_back(table->name);
  return names;
}

std::vector<std::string> available() {
  std::vector<std::string> names;
  for (const KernelTable* table : tables())
    if (table->runs_here()) names.push_back(table->name);
  return names;
}

std::string chosen() { return current()->name; }

std::string vendor() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_is("intel")) return "intel";
  if (__builtin_cpu_is("amd")) return "amd";
#endif
  return "other";
}

const KernelTable* chosen_table() { return current(); }

void choose(const std::string& name) {
  for (const KernelTable* table : tables())
    if (name == table->name && table->runs_here()) {
      current() = table;
      return;
    }
  std::string text = "instruction set '" + name + "' cannot be used here; expected one of";
  for (const std::string& good : available()) text += " " + good;
  throw std::invalid_argument(text);
}

void gather(void* dense_memory, const View& tensor, int64_t first, int64_t count) {
  move_strided<true>((char*)dense_memory, tensor, first, count);
}

void scatter(const void* dense_memory, const View& tensor, int64_t first, int64_t count) {
  move_strided<false>((char*)dense_memory, tensor, first, count);
}

void apply(const std::vector<View>& tensors, const std::vector<Step>& steps, Mode mode, int threads) {
  if (!steps.empty() && steps[0].rank) {
    std::vector<Shard> parts;
    for (const View& tensor : tensors) parts.push_back(as_part(tensor));
    return low_rank_apply(parts, steps, mode, threads);
  }
  std::vector<View> views;
  int64_t total = 0;
  for (const View& tensor : tensors) {
    views.push_back(collapsed(tensor));
    total += elements(tensor);
  }
  if (steps.empty() || !total) return;
  const KernelTable* table = current();
  in_parallel(total * (int64_t)steps.size(), threads, [&](int number, int count) {
    int64_t before = 0;
    alignas(64) char buffer[TILE * 4];
    for (const View& view : views) {
      const int64_t size = elements(view), item = size_of(view.dtype);
      const auto [first, last] = share(before, size, total, number, count);
      before += size;
      const auto kernel = [&](void* weights, int64_t base, int64_t n) {
        if (mode == PERTURB)
          table->perturb(weights, view.dtype, weights, view.dtype, base, n, steps[0], view.stream, steps[0].coefficients[0]);
        else
          table->steps(weights, view.dtype, base, n, steps.data(), (int64_t)steps.size(), mode, view.stream);
      };
      if (dense(view)) {
        in_groups((char*)view.data + first * item, item, first, last, kernel);
        continue;
      }
      for (int64_t at = first; at < last; at += TILE) {
        const int64_t n = std::min(TILE, last - at);
        gather(buffer, view, at, n);
        in_groups(buffer, item, at, at + n, kernel);
        scatter(buffer, view, at, n);
      }
    }
  });
}

void copy(void* out, int out_dtype, const void* source, int dtype, int64_t count, int64_t start, const Step& step,
          uint32_t stream, int threads) {
  if (step.rank) return low_rank_copy(out, out_dtype, source, dtype, count, start, step, stream, threads);
  const KernelTable* table = current();
  const int64_t in_item = size_of(dtype), out_item = size_of(out_dtype);
  in_parallel(count, threads, [&](int number, int of) {
    const auto [first, last] = share(0, count, count, number, of);
    in_groups((const char*)source + first * in_item, in_item, (char*)out + first * out_item, out_item, start + first,
              start + last, [&](const void* from, void* to, int64_t base, int64_t n) {
                table->perturb(from, dtype, to, out_dtype, base, n, step, stream, step.coefficients[0]);
              });
  });
}

void panel(void* out, int out_dtype, const void* source, int dtype, int64_t rows, int64_t width, int64_t apart, int64_t start,
           const Step& step, uint32_t stream, int threads) {
  if (apart == width || rows == 1) return copy(out, out_dtype, source, dtype, rows * width, start, step, stream, threads);
  const KernelTable* table = current();
  const int64_t in_item = size_of(dtype), out_item = size_of(out_dtype);
  in_parallel(rows * width, threads, [&](int number, int of) {
    for (int64_t r = rows * number / of; r < rows * (number + 1) / of; ++r)
      in_groups((const char*)source + r * apart * in_item, in_item, (char*)out + r * width * out_item, out_item,
                start + r * apart, start + r * apart + width, [&](const void* from, void* to, int64_t base, int64_t n) {
                  table->perturb(from, dtype, to, out_dtype, base, n, step, stream, step.coefficients[0]);
                });
  });
}

void rows(void* out, const void* weight, int dtype, int64_t width, const int64_t* chosen_rows, int64_t count, const Step& step,
          uint32_t stream, int threads) {
  if (step.rank) return low_rank_rows(out, weight, dtype, width, chosen_rows, count, step, stream, threads);
  const KernelTable* table = current();
  const int64_t item = size_of(dtype);
  in_parallel(count * width, threads, [&](int number, int of) {
    for (int64_t m = count * number / of; m < count * (number + 1) / of; ++m) {
      const int64_t start = chosen_rows[m] * width;
      in_groups((const char*)weight + start * item, item, (char*)out + m * width * item, item, start, start + width,
                [&](const void* from, void* to, int64_t base, int64_t n) {
                  table->perturb(from, dtype, to, dtype, base, n, step, stream, step.coefficients[0]);
                });
    }
  });
}

void project(const View& tensor, const Step& step, double* totals, int threads) {
  if (step.rank) return low_rank_project(as_part(tensor), step, totals, threads);
  const View view = collapsed(tensor);
  const int64_t size = elements(view), item = size_of(view.dtype), chunks = (size + CHUNK - 1) / CHUNK;
  const int64_t directions = (int64_t)step.directions.size();
  const KernelTable* table = current();
  // as many chunks at a time as give a few MB of sums
  const int64_t most = std::max<int64_t>(64, ((int64_t)1 << 19) / std::max<int64_t>(1, directions));
  std::vector<double> sums((size_t)(std::min(chunks, most) * directions));
  std::fill(totals, totals + directions, 0.0);
  for (int64_t begin = 0; begin < chunks; begin += most) {
    const int64_t held = std::min(most, chunks - begin);
    in_parallel(held * CHUNK * directions, threads, [&](int number, int of) {
      alignas(64) float x[CHUNK], z[CHUNK];
      alignas(64) char raw[CHUNK * 4];
      for (int64_t c = held * number / of; c < held * (number + 1) / of; ++c) {
        const int64_t first = (begin + c) * CHUNK, n = std::min(CHUNK, size - first);
        std::memset(raw, 0, sizeof raw);
        if (dense(view))
          std::memcpy(raw, (const char*)view.data + first * item, (size_t)(n * item));
        else
          gather(raw, view, first, n);
        table->widen(raw, view.dtype, x, CHUNK);
        for (int64_t k = 0; k < directions; ++k) {
          table->fill(z, first, CHUNK, step.seed, step.distribution, view.stream, step.directions[(size_t)k]);
          sums[(size_t)(c * directions + k)] = table->dot(x, z);
        }
      }
    });
    for (int64_t c = 0; c < held; ++c)
      for (int64_t k = 0; k < directions; ++k) totals[k] += sums[(size_t)(c * directions + k)];
  }
}

void sample(float* out, int64_t count, int64_t start, uint64_t seed, int distribution, uint32_t stream, uint32_t direction,
            int threads) {
  const KernelTable* table = current();
  in_parallel(count, threads, [&](int number, int of) {
    const auto [first, last] = share(0, count, count, number, of);
    in_groups((char*)(out + first), 4, start + first, start + last, [&](void* to, int64_t base, int64_t n) {
      table->fill((float*)to, base, n, seed, distribution, stream, direction);
    });
  });
}

}  // namespace blockzo

// Parts of tensors: runs of consecutive indices, each one piece of noise, wherever they lie in memory.
#include <algorithm>
#include <cstring>

#include "pieces.h"
#include "table.h"
#include "threads.h"

namespace blockzo {
namespace {

// One run [width] for each place of the outer dimensions; `run` is the first of them.
struct Runs {
  View run;
  int64_t width = 1, count = 1;
  std::vector<int64_t> sizes, strides, apart;  // outer
};

Runs runs_of(const Shard& shard) {
  const View& local = shard.local;
  View joined{local.data, local.dtype, local.stream, {}, {}};
  std::vector<int64_t> apart;
  for (size_t d = 0; d < local.sizes.size(); ++d) {
    const int64_t size = local.sizes[d], stride = local.strides[d];
    if (size == 1) continue;
    // where one dimension follows another both in memory and in the noise, the two are one
    if (!apart.empty() && joined.strides.back() == size * stride && apart.back() == size * shard.apart[d]) {
      joined.sizes.back() *= size;
      joined.strides.back() = stride;
      apart.back() = shard.apart[d];
    } else {
      joined.sizes.push_back(size);
      joined.strides.push_back(stride);
      apart.push_back(shard.apart[d]);
    }
  }
  Runs runs;
  size_t inner = apart.size();
  while (inner > 0 && apart[inner - 1] == runs.width) runs.width *= joined.sizes[--inner];
  const auto cut = [&](std::vector<int64_t>& numbers) {
    std::vector<int64_t> outer(numbers.begin(), numbers.begin() + (int64_t)inner);
    numbers.erase(numbers.begin(), numbers.begin() + (int64_t)inner);
    return outer;
  };
  runs.sizes = cut(joined.sizes);
  runs.strides = cut(joined.strides);
  runs.apart = cut(apart);
  for (int64_t size : runs.sizes) runs.count *= size;
  runs.run = std::move(joined);
  return runs;
}

// Calls body(run, index of its first element, first, last) for the parts of runs that cover local elements [first, last).
template <class Body>
void each_run(const Runs& runs, int64_t start, int64_t first, int64_t last, const Body& body) {
  const int64_t item = size_of(runs.run.dtype);
  View run = runs.run;
  for (int64_t at = first; at < last;) {
    int64_t rest = at / runs.width, index = start, offset = 0;
    for (size_t d = runs.sizes.size(); d-- > 0; rest /= runs.sizes[d]) {
      index += rest % runs.sizes[d] * runs.apart[d];
      offset += rest % runs.sizes[d] * runs.strides[d];
    }
    run.data = (char*)runs.run.data + offset * item;
    const int64_t from = at % runs.width, to = std::min(runs.width, from + last - at);
    body(run, index, from, to);
    at += to - from;
  }
}

}  // namespace

void apply_shards(const std::vector<Shard>& shards, const std::vector<Step>& steps, Mode mode, int threads) {
  if (!steps.empty() && steps[0].rank) return low_rank_apply(shards, steps, mode, threads);
  std::vector<Runs> all;
  int64_t total = 0;
  for (const Shard& shard : shards) {
    all.push_back(runs_of(shard));
    total += elements(shard.local);
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
      each_run(all[s], shards[s].start, first, last, [&](const View& run, int64_t index, int64_t from, int64_t to) {
        const int64_t item = size_of(run.dtype);
        const auto kernel = [&](void* weights, int64_t base, int64_t n) {
          if (mode == PERTURB)
            table->perturb(weights, run.dtype, weights, run.dtype, base, n, steps[0], run.stream, steps[0].coefficients[0]);
          else
            table->steps(weights, run.dtype, base, n, steps.data(), (int64_t)steps.size(), mode, run.stream);
        };
        if (dense(run)) {
          in_groups((char*)run.data + from * item, item, index + from, index + to, kernel);
          return;
        }
        for (int64_t at = from; at < to;) {
          // pieces end where a group does, so that only the first and the last are ragged
          const int64_t n = std::min(TILE - (index + at) % GROUP, to - at);
          gather(buffer, run, at, n);
          in_groups(buffer, item, index + at, index + at + n, kernel);
          scatter(buffer, run, at, n);
          at += n;
        }
      });
    }
  });
}

void project_shard(const Shard& shard, const Step& step, double* totals, int threads) {
  if (step.rank) return low_rank_project(shard, step, totals, threads);
  const Runs runs = runs_of(shard);
  const int64_t size = elements(shard.local), item = size_of(shard.local.dtype), chunks = (size + CHUNK - 1) / CHUNK;
  const int64_t directions = (int64_t)step.directions.size();
  const KernelTable* table = chosen_table();
  std::fill(totals, totals + directions, 0.0);
  // as many chunks at a time as give a few MB of sums
  const int64_t most = std::max<int64_t>(64, ((int64_t)1 << 19) / std::max<int64_t>(1, directions));
  std::vector<double> sums((size_t)(std::min(chunks, most) * directions));
  for (int64_t begin = 0; begin < chunks; begin += most) {
    const int64_t held = std::min(most, chunks - begin);
    in_parallel(held * CHUNK * directions, threads, [&](int number, int of) {
      alignas(64) float x[CHUNK], z[CHUNK];
      alignas(64) char raw[CHUNK * 4];
      for (int64_t c = held * number / of; c < held * (number + 1) / of; ++c) {
        const int64_t first = (begin + c) * CHUNK, last = std::min(size, first + CHUNK);
        int64_t filled = 0;
        std::memset(raw, 0, sizeof raw);
        each_run(runs, shard.start, first, last, [&](const View& run, int64_t, int64_t from, int64_t to) {
          gather(raw + filled * item, run, from, to - from);
          filled += to - from;
        });
        table->widen(raw, shard.local.dtype, x, CHUNK);
        for (int64_t k = 0; k < directions; ++k) {
          filled = 0;
          std::memset(z, 0, sizeof z);
          each_run(runs, shard.start, first, last, [&](const View& run, int64_t index, int64_t from, int64_t to) {
            in_groups((char*)(z + filled), 4, index + from, index + to, [&](void* out, int64_t base, int64_t n) {
              table->fill((float*)out, base, n, step.seed, step.distribution, run.stream, step.directions[(size_t)k]);
            });
            filled += to - from;
          });
          sums[(size_t)(c * directions + k)] = table->dot(x, z);
        }
      }
    });
    for (int64_t c = 0; c < held; ++c)
      for (int64_t k = 0; k < directions; ++k) totals[k] += sums[(size_t)(c * directions + k)];
  }
}

}  // namespace blockzo

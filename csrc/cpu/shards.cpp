// Parts of tensors: runs of consecutive indices, each one piece of noise, wherever they lie in memory.
#include <algorithm>
#include <cstring>

#include "pieces.h"
#include "runs.h"
#include "table.h"
#include "threads.h"

namespace blockzo {
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

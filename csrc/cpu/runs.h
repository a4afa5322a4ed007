// Parts of tensors cut into runs of consecutive indices, each one piece of noise. Not for the files of one instruction set.
#pragma once
#include <algorithm>
#include <utility>
#include <vector>

#include "pieces.h"

namespace blockzo {

// One run [width] for each place of the outer dimensions; `run` is the first of them.
struct Runs {
  View run;
  int64_t width = 1, count = 1;
  std::vector<int64_t> sizes, strides, apart;  // outer
};

inline Runs runs_of(const Shard& shard) {
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

}  // namespace blockzo

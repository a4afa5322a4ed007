// Tensors cut into what a thread works on, and that into whole aligned groups. Not for the files of one instruction set.
#pragma once
#include <algorithm>
#include <cstring>
#include <utility>

#include "table.h"

namespace blockzo {

inline int64_t size_of(int dtype) { return dtype == FLOAT32 ? 4 : dtype == INT8 ? 1 : 2; }

inline int64_t elements(const View& tensor) {
  int64_t count = 1;
  for (int64_t size : tensor.sizes) count *= size;
  return count;
}

inline bool dense(const View& tensor) { return tensor.sizes.empty() || (tensor.sizes.size() == 1 && tensor.strides[0] == 1); }

// Joins dimensions that lie one after the other, so that a contiguous tensor has one and a view as few as it can.
inline View collapsed(const View& tensor) {
  View result{tensor.data, tensor.dtype, tensor.stream, {}, {}};
  for (size_t d = 0; d < tensor.sizes.size(); ++d) {
    if (tensor.sizes[d] == 1) continue;
    if (!result.sizes.empty() && result.strides.back() == tensor.sizes[d] * tensor.strides[d]) {
      result.sizes.back() *= tensor.sizes[d];
      result.strides.back() = tensor.strides[d];
    } else {
      result.sizes.push_back(tensor.sizes[d]);
      result.strides.push_back(tensor.strides[d]);
    }
  }
  return result;
}

// The whole tensor as a part of itself.
inline Shard as_part(const View& tensor) {
  Shard part{tensor, 0, std::vector<int64_t>(tensor.sizes.size(), 1)};
  for (size_t d = tensor.sizes.size(); d-- > 1;) part.apart[d - 1] = part.apart[d] * tensor.sizes[d];
  return part;
}

// Part of [0, count) that thread `number` of `threads` works on, if the whole list has `total` weights and this tensor begins at `before`.
inline std::pair<int64_t, int64_t> share(int64_t before, int64_t count, int64_t total, int number, int threads) {
  const auto edge = [&](int t) {
    const int64_t place = (int64_t)((__int128)total * t / threads) - before;
    return std::clamp<int64_t>(t == threads ? count : place / TILE * TILE, 0, count);
  };
  return {edge(number), edge(number + 1)};
}

// Runs `kernel(dense memory, base, count)` on whole aligned groups that cover [first, last): the middle where it lies, the ragged
// ends in a padded copy.
template <class Kernel>
void in_groups(char* data, int64_t item, int64_t first, int64_t last, const Kernel& kernel) {
  alignas(64) char padded[GROUP * 4];
  int64_t at = first;
  while (at < last) {
    const int64_t base = at / GROUP * GROUP;
    if (at == base && last - at >= GROUP) {
      const int64_t whole = (last - at) / GROUP * GROUP;
      kernel(data + (at - first) * item, at, whole);
      at += whole;
    } else {
      const int64_t stop = std::min(last, base + GROUP);
      std::memset(padded, 0, sizeof padded);
      std::memcpy(padded + (at - base) * item, data + (at - first) * item, (size_t)((stop - at) * item));
      kernel(padded, base, GROUP);
      std::memcpy(data + (at - first) * item, padded + (at - base) * item, (size_t)((stop - at) * item));
      at = stop;
    }
  }
}

}  // namespace blockzo

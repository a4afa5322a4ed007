// Pieces of work over threads. Which thread does which piece never shows in a result.
#pragma once

#include <cstdint>
#include <functional>

namespace blockzo {

// Calls body(piece) for 0 <= piece < count on up to `threads` threads, each taking the next free piece, with IEEE float arithmetic
// (nearest even, subnormals kept) whatever mode the thread was in. The first exception is thrown again in the caller.
void parallel(int64_t count, int threads, const std::function<void(int64_t)>& body);

}  // namespace blockzo

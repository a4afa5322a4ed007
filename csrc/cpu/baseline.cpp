// The kernels for any CPU.
#include "headers.h"

namespace {
#include "address.inl"
#include "lanes.inl"
#include "operations.inl"

const blockzo::KernelTable table = {"baseline", move, replay, project};
}  // namespace

namespace blockzo {
const KernelTable* const baseline_kernels = &table;
}

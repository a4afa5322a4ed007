// Which instruction set serves: the best that the CPU has, or the one that was chosen.
#pragma once

#include "kernels.h"

namespace blockzo {

const KernelTable& kernels();

}  // namespace blockzo

// All that the sources of the instruction sets include, before they set a target.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "blockzo/exact.h"
#include "blockzo/gaussian.h"
#include "blockzo/philox.h"
#include "blockzo/rounding.h"
#include "kernels.h"

#define BLOCKZO_INLINE inline __attribute__((always_inline))

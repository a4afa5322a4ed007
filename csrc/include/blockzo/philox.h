// Philox4x32-10 (Salmon et al., SC'11), one call.
#pragma once

#include "blockzo/exact.h"

namespace blockzo {

struct Words {
    uint32_t x[4];
};

BLOCKZO_FN Words philox(uint64_t block, uint32_t stream, uint32_t direction, uint64_t seed) {
    uint32_t x0 = static_cast<uint32_t>(block), x1 = static_cast<uint32_t>(block >> 32), x2 = stream, x3 = direction;
    uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
    for (int round = 0; round < philox_rounds; ++round) {
        const uint64_t p0 = static_cast<uint64_t>(philox_m0) * x0, p1 = static_cast<uint64_t>(philox_m1) * x2;
        x0 = static_cast<uint32_t>(p1 >> 32) ^ x1 ^ k0;
        x1 = static_cast<uint32_t>(p1);
        x2 = static_cast<uint32_t>(p0 >> 32) ^ x3 ^ k1;
        x3 = static_cast<uint32_t>(p0);
        k0 += philox_w0;
        k1 += philox_w1;
    }
    return {{x0, x1, x2, x3}};
}

}  // namespace blockzo

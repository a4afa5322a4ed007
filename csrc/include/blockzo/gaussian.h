// The Box-Muller pair of one 32-bit word, and noise at one index: the definition in C++.
#pragma once

#include "blockzo/philox.h"

namespace blockzo {

struct Pair {
    float even, odd;
};

BLOCKZO_FN Pair gaussian_pair(uint32_t word) {
    const uint32_t b = bits_of(static_cast<float>(2 * (word & 0xFFFFu) + 1));
    // the true value is never negative, so a logical shift serves
    const uint32_t e = (b - log_origin) >> 23;
    const float t = add(float_of(b - (e << 23)), -1.0f);
    float p = float_of(log_term(6));
    for (int k = 5; k >= 0; --k) p = add(mul(p, t), float_of(log_term(k)));
    const float r = root(add(mul(static_cast<float>(static_cast<int32_t>(17u - e)), float_of(log_scale)), mul(t, p)));
    const int32_t turn = static_cast<int32_t>(2 * ((word >> 16) & 0x7FFFu)) - 32767;
    const float g = mul(static_cast<float>(turn), float_of(angle_scale));
    const float u = mul(g, g);
    float c = float_of(cosine_term(4));
    for (int k = 3; k >= 0; --k) c = add(mul(c, u), float_of(cosine_term(k)));
    float s = float_of(sine_term(3));
    for (int k = 2; k >= 0; --k) s = add(mul(s, u), float_of(sine_term(k)));
    const uint32_t flip = word & 0x80000000u;
    return {float_of(bits_of(mul(r, c)) ^ flip), float_of(bits_of(mul(r, mul(g, s))) ^ flip)};
}

BLOCKZO_FN float rademacher_at(uint64_t i, uint32_t stream, uint32_t direction, uint64_t seed) {
    const Words words = philox(i >> 7, stream, direction, seed);
    return (words.x[(i >> 5) & 3] >> (i & 31)) & 1 ? -1.0f : 1.0f;
}

BLOCKZO_FN float gaussian_at(uint64_t i, uint32_t stream, uint32_t direction, uint64_t seed) {
    const Pair pair = gaussian_pair(philox(i >> 3, stream, direction, seed).x[(i >> 1) & 3]);
    return i & 1 ? pair.odd : pair.even;
}

}  // namespace blockzo

// float32 <-> bfloat16 and float16 by integers: round to nearest even, subnormals kept, a NaN stays a (quiet) NaN;
// and the stochastic rounding of docs/noise.md.
#pragma once

#include "blockzo/exact.h"

namespace blockzo {

BLOCKZO_FN float from_bfloat16(uint16_t h) { return float_of(static_cast<uint32_t>(h) << 16); }

BLOCKZO_FN uint16_t to_bfloat16(float value) {
    const uint32_t b = bits_of(value);
    if ((b & 0x7FFFFFFFu) > 0x7F800000u) return static_cast<uint16_t>((b >> 16) | 0x40u);
    return static_cast<uint16_t>((b + 0x7FFFu + ((b >> 16) & 1u)) >> 16);
}

BLOCKZO_FN float from_float16(uint16_t h) {
    const uint32_t sign = static_cast<uint32_t>(h & 0x8000u) << 16, rest = h & 0x7FFFu;
    if (rest >= 0x7C00u) return float_of(sign | 0x7F800000u | ((rest & 0x3FFu) << 13) | (rest > 0x7C00u ? 0x400000u : 0u));
    if (rest >= 0x0400u) return float_of(sign | ((rest + (112u << 10)) << 13));
    // subnormal: rest * 2^-24, exact
    return float_of(sign | bits_of(mul(static_cast<float>(rest), float_of(0x33800000u))));
}

BLOCKZO_FN uint16_t to_float16(float value) {
    const uint32_t b = bits_of(value), sign = (b >> 16) & 0x8000u, rest = b & 0x7FFFFFFFu;
    if (rest > 0x7F800000u) return static_cast<uint16_t>(sign | 0x7E00u | ((rest >> 13) & 0x3FFu));
    if (rest >= 0x477FF000u) return static_cast<uint16_t>(sign | 0x7C00u);
    if (rest < 0x38800000u) {
        // below 2^-14: adding 0.5 leaves the value, in units of 2^-24 and rounded to even, in the low bits
        return static_cast<uint16_t>(sign | (bits_of(add(float_of(rest), 0.5f)) - 0x3F000000u));
    }
    return static_cast<uint16_t>(sign | ((rest - (112u << 23) + 0xFFFu + ((rest >> 13) & 1u)) >> 13));
}

BLOCKZO_FN float stochastic_bfloat16(float value, uint32_t n) {
    const uint32_t b = bits_of(value);
    return (b & 0x7F800000u) == 0x7F800000u ? value : float_of((b + n) & 0xFFFF0000u);
}

BLOCKZO_FN float stochastic_float16(float value, uint32_t n) {
    const uint32_t b = bits_of(value), rest = b & 0x7FFFFFFFu;
    if (rest >= 0x7F800000u) return value;
    if (rest >= 0x38800000u) return float_of((b + (n >> 3)) & 0xFFFFE000u);
    // in units of 2^-24; both products are exact
    const float ticks = add(mul(float_of(rest), float_of(0x4B800000u)), mul(static_cast<float>(n), float_of(0x37800000u)));
    const float whole = static_cast<float>(static_cast<int32_t>(ticks));
    return float_of((b & 0x80000000u) | bits_of(mul(whole, float_of(0x33800000u))));
}

}  // namespace blockzo

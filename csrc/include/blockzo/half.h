// float16 <-> float32 by integers: exact one way, rounded to nearest even the other, NaN quieted with its payload kept.
#pragma once
#include <string.h>

#include "philox.h"

BLOCKZO_HD float half_to_float(uint16_t half) {
  const uint32_t sign = (uint32_t)(half & 0x8000u) << 16, rest = half & 0x7FFFu;
  float value;
  if (rest >= 0x7C00u) {  // infinity or NaN
    const uint32_t bits = sign | 0x7F800000u | (rest & 0x3FFu) << 13 | (rest > 0x7C00u ? 0x400000u : 0u);
    memcpy(&value, &bits, 4);
    return value;
  }
  if (rest < 0x400u) {  // subnormal: a small integer times 2^-24
    value = (float)rest * 5.9604644775390625e-08f;
    return sign ? -value : value;
  }
  const uint32_t bits = sign | ((rest << 13) + (112u << 23));
  memcpy(&value, &bits, 4);
  return value;
}

BLOCKZO_HD uint16_t float_to_half(float value) {
  uint32_t bits;
  memcpy(&bits, &value, 4);
  const uint16_t sign = (uint16_t)((bits >> 16) & 0x8000u);
  const uint32_t rest = bits & 0x7FFFFFFFu;
  if (rest > 0x7F800000u) return (uint16_t)(sign | 0x7E00u | ((rest >> 13) & 0x3FFu));
  if (rest >= 0x47800000u) return (uint16_t)(sign | 0x7C00u);  // 65,536 and above
  if (rest < 0x38800000u) {                                    // below 2^-14: units of 2^-24
    float size;
    memcpy(&size, &rest, 4);
    const float shifted = size + 0.5f;  // one unit of 0.5's last place is 2^-24, so the addition rounds for us
    uint32_t units;
    memcpy(&units, &shifted, 4);
    return (uint16_t)(sign | (units - 0x3F000000u));
  }
  const uint32_t rounded = rest + 0xFFFu + ((rest >> 13) & 1u);
  return (uint16_t)(sign | ((rounded - (112u << 23)) >> 13));
}

// Stands in for CUDA's header of this name: the upper half of a float, converted with round to nearest even.
#pragma once

#include <cstdint>
#include <cstring>

struct __nv_bfloat16 {
  std::uint16_t bits;
};

inline float __bfloat162float(__nv_bfloat16 x) {
  const std::uint32_t word = std::uint32_t{x.bits} << 16;
  float number;
  std::memcpy(&number, &word, sizeof number);
  return number;
}

inline __nv_bfloat16 __float2bfloat16_rn(float x) {
  std::uint32_t word;
  std::memcpy(&word, &x, sizeof word);
  if (x != x) return {0x7fff};  // rounding might carry a NaN over to infinity
  word += 0x7fff + (word >> 16 & 1);
  return {static_cast<std::uint16_t>(word >> 16)};
}

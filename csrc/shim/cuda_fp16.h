// Stands in for CUDA's header of this name: storage of half precision, converted with round to nearest even.
#pragma once

struct __half {
  _Float16 number;
};

inline float __half2float(__half x) { return static_cast<float>(x.number); }
inline __half __float2half_rn(float x) { return {static_cast<_Float16>(x)}; }

// Numbers as they are stored, four at a time; arithmetic is float32 throughout.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "cuda_api.h"

namespace fedsparse {

__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ float widen(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ __forceinline__ float widen(__half x) { return __half2float(x); }

template <typename T>
__device__ __forceinline__ T narrow(float x);
template <>
__device__ __forceinline__ float narrow<float>(float x) {
  return x;
}
template <>
__device__ __forceinline__ __nv_bfloat16 narrow<__nv_bfloat16>(float x) {
  return __float2bfloat16_rn(x);
}
template <>
__device__ __forceinline__ __half narrow<__half>(float x) {
  return __float2half_rn(x);
}

// Four neighbours, moved as one access: 16 or 8 bytes, aligned to as many.
template <typename T>
struct alignas(4 * sizeof(T)) Four {
  T number[4];
};

struct Quad {
  float number[4];
};

template <typename T>
__device__ __forceinline__ Quad load4(const T* address) {
  const Four<T> stored = *reinterpret_cast<const Four<T>*>(address);
  Quad quad;
#pragma unroll
  for (int i = 0; i < 4; ++i) quad.number[i] = widen(stored.number[i]);
  return quad;
}

template <typename T>
__device__ __forceinline__ void store4(T* address, const Quad& quad) {
  Four<T> stored;
#pragma unroll
  for (int i = 0; i < 4; ++i) stored.number[i] = narrow<T>(quad.number[i]);
  *reinterpret_cast<Four<T>*>(address) = stored;
}

// Calls visit with a null pointer of the stored type; its result is a status.
template <typename F>
int with_dtype(std::int64_t dtype, F&& visit) {
  switch (dtype) {
    case FEDSPARSE_FLOAT32: return visit(static_cast<float*>(nullptr));
    case FEDSPARSE_BFLOAT16: return visit(static_cast<__nv_bfloat16*>(nullptr));
    case FEDSPARSE_FLOAT16: return visit(static_cast<__half*>(nullptr));
  }
  return cudaErrorInvalidValue;
}

}  // namespace fedsparse

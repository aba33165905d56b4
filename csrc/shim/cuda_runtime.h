// Stands in for CUDA's header of this name when a kernel is compiled for the CPU: this folder then comes first among
// the include folders. Holds what csrc/cuda uses and no more.
#pragma once

#include <cstddef>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "block.h"
#include "warp.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __grid_constant__
// Shared arrays are declared through the macros of launch.cuh: they have to be poisoned and have to end somewhere.
#define __shared__ static_assert(false, "use FEDSPARSE_SHARED or FEDSPARSE_DYNAMIC_SHARED of launch.cuh");

#define threadIdx fedsparse::shim::thread_index
#define blockIdx fedsparse::shim::block_index
#define blockDim fedsparse::shim::block_size
#define gridDim fedsparse::shim::grid_size

using dim3 = fedsparse::shim::Size3;

// ---- vectors, aligned as on a device: UndefinedBehaviorSanitizer names a pointer that is not
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(8) uint2 {
  unsigned x, y;
};

inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }

inline unsigned __float_as_uint(float x) {
  unsigned bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}

// ---- the runtime
using cudaStream_t = void*;

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorLaunchFailure = 719,
};
enum cudaDeviceAttr { cudaDevAttrMaxSharedMemoryPerBlockOptin = 97 };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };

inline cudaError_t cudaGetLastError() { return static_cast<cudaError_t>(fedsparse::shim::last_status()); }

inline cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return cudaSuccess;
}

inline cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}

// That of an H200.
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) {
  *value = 227 << 10;
  return cudaSuccess;
}

inline const char* cudaGetErrorString(cudaError_t status) {
  switch (status) {
    case cudaSuccess: return "no error";
    case cudaErrorInvalidValue: return "invalid argument";
    case cudaErrorInvalidConfiguration: return "invalid configuration argument";
    case cudaErrorLaunchFailure: return fedsparse_shim_report();
  }
  return "unrecognized error code";
}

template <typename Kernel>
cudaError_t cudaFuncSetAttribute(Kernel* kernel, cudaFuncAttribute, int bytes) {
  fedsparse::shim::allow_shared_bytes(reinterpret_cast<const void*>(kernel), static_cast<std::size_t>(bytes));
  return cudaSuccess;
}

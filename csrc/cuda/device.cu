// What the machine has, and what a status means.
#include <cuda_runtime.h>

#include "cuda_api.h"

int fedsparse_cuda_device_count() {
  static const int count = [] {
    int found = 0;
    if (cudaGetDeviceCount(&found) == cudaSuccess) return found;
    cudaGetLastError();  // no driver is an answer, not an error for the next launch to report
    return 0;
  }();
  return count;
}

std::int64_t fedsparse_cuda_shared_limit() {
  int device = 0, bytes = 0;
  if (fedsparse_cuda_device_count() == 0 || cudaGetDevice(&device) != cudaSuccess) return 0;
  const auto status = cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  return status == cudaSuccess ? bytes : 0;
}

const char* fedsparse_cuda_status_text(int status) { return cudaGetErrorString(static_cast<cudaError_t>(status)); }

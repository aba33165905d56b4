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

const char* fedsparse_cuda_status_text(int status) { return cudaGetErrorString(static_cast<cudaError_t>(status)); }

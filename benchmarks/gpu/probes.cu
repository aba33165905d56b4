// Ceilings that no library call shows: shared memory, and launches one after another. Built by the stage `build`.
#include <cstdint>
#include <cuda_runtime.h>

namespace {

constexpr int THREADS = 256;
constexpr int LOADS = 16;  // of 16 bytes, each round and thread

__global__ void shared_loop(float* out, int rounds) {
  __shared__ float4 lines[THREADS * 4];
  for (int i = threadIdx.x; i < THREADS * 4; i += THREADS) lines[i] = make_float4(i, i, i, i);
  __syncthreads();
  float4 sum = make_float4(0, 0, 0, 0);
  int at = threadIdx.x;
  for (int round = 0; round < rounds; ++round) {
#pragma unroll
    for (int load = 0; load < LOADS; ++load) {
      const float4 line = lines[(at + load * 32) & (THREADS * 4 - 1)];
      sum.x += line.x;
      sum.y += line.y;
      sum.z += line.z;
      sum.w += line.w;
    }
    at = (at + 37) & (THREADS * 4 - 1);  // another address each round: the loads stay in the loop
  }
  if (sum.x + sum.y + sum.z + sum.w == -1.0f) out[0] = sum.x;  // never true, but the compiler cannot know
}

__global__ void nothing(float* out) {
  if (out == nullptr) return;
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;\ngriddepcontrol.wait;" ::: "memory");
#endif
  out[threadIdx.x] = 0.0f;
}

}  // namespace

extern "C" {

// Bytes that a call of probe_shared reads from shared memory.
std::int64_t probe_shared_bytes(int blocks, int rounds) {
  return static_cast<std::int64_t>(blocks) * THREADS * LOADS * rounds * 16;
}

int probe_shared(float* out, int blocks, int rounds, void* stream) {
  shared_loop<<<blocks, THREADS, 0, static_cast<cudaStream_t>(stream)>>>(out, rounds);
  return cudaGetLastError();
}

// `count` kernels of one warp. With `overlapped`, each may start before the one before has ended (programmatic
// dependent launch, compute capability 9.0).
int probe_launches(float* out, int count, int overlapped, void* stream) {
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(1);
  config.blockDim = dim3(32);
  config.stream = static_cast<cudaStream_t>(stream);
  config.attrs = &attribute;
  config.numAttrs = overlapped ? 1 : 0;
  for (int i = 0; i < count; ++i) {
    const cudaError_t status = cudaLaunchKernelEx(&config, nothing, out);
    if (status != cudaSuccess) return status;
  }
  return 0;
}
}

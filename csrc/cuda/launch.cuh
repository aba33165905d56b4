// How kernels are launched: on the caller's stream, with the status as the result.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

// FEDSPARSE_LAUNCH queues `kernel` and is the status of doing so. A template with several arguments needs parentheses
// around it. Shared arrays are declared in the kernel itself; each is a pointer to numbers that hold nothing yet.
#ifdef FEDSPARSE_SHIM

#define FEDSPARSE_LAUNCH(kernel, blocks, threads, shared_bytes, stream, ...) \
  (static_cast<void>(stream), fedsparse::shim::launch(kernel, (blocks), (threads), (shared_bytes), __VA_ARGS__))

#define FEDSPARSE_SHARED(T, name, count) \
  static char name##_site;               \
  T* const name = static_cast<T*>(fedsparse::shim::shared_array(&name##_site, (count) * sizeof(T)))

#define FEDSPARSE_DYNAMIC_SHARED(T, name) T* const name = static_cast<T*>(fedsparse::shim::dynamic_shared())

#else

#define FEDSPARSE_LAUNCH(kernel, blocks, threads, shared_bytes, stream, ...)                          \
  (kernel<<<(blocks), (threads), (shared_bytes), static_cast<cudaStream_t>(stream)>>>(__VA_ARGS__), \
   static_cast<int>(cudaGetLastError()))

#define FEDSPARSE_SHARED(T, name, count) __shared__ __align__(16) T name[count]

// One array in a kernel, aligned to 16 bytes, of as many as the launch gives it.
#define FEDSPARSE_DYNAMIC_SHARED(T, name)                              \
  extern __shared__ __align__(16) unsigned char fedsparse_dynamic[]; \
  T* const name = reinterpret_cast<T*>(fedsparse_dynamic)

#endif

namespace fedsparse {

constexpr int kThreads = 256;

// Blocks for a grid-stride loop over `items`. 4096 blocks fill any present device several times over; beyond that
// threads take more turns.
inline unsigned blocks_for(std::int64_t items) {
  const std::int64_t blocks = (items + kThreads - 1) / kThreads;
  return static_cast<unsigned>(std::clamp<std::int64_t>(blocks, 1, 4096));
}

}  // namespace fedsparse

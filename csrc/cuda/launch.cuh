// How kernels are launched: on the caller's stream, with the status as the result.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

// Queues `kernel` and is the status of doing so. A template with several arguments needs parentheses around it.
#define FEDSPARSE_LAUNCH(kernel, blocks, threads, shared_bytes, stream, ...)                          \
  (kernel<<<(blocks), (threads), (shared_bytes), static_cast<cudaStream_t>(stream)>>>(__VA_ARGS__), \
   static_cast<int>(cudaGetLastError()))

namespace fedsparse {

constexpr int kThreads = 256;

// Blocks for a grid-stride loop over `items`. 4096 blocks fill any present device several times over; beyond that
// threads take more turns.
inline unsigned blocks_for(std::int64_t items) {
  const std::int64_t blocks = (items + kThreads - 1) / kThreads;
  return static_cast<unsigned>(std::clamp<std::int64_t>(blocks, 1, 4096));
}

}  // namespace fedsparse

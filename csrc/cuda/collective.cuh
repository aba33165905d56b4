// What the threads of a block of kThreads find out together about whole numbers.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "launch.cuh"

namespace fedsparse {

constexpr unsigned kEveryLane = 0xffffffffu;

__device__ __forceinline__ unsigned lanes_before() { return (1u << (threadIdx.x % 32)) - 1; }

// Sum of `value` over the threads before this one, and over all of them in `total`. Ends with a barrier.
__device__ __forceinline__ std::uint32_t sum_before(std::uint32_t value, std::uint32_t& total) {
  FEDSPARSE_SHARED(std::uint32_t, warp_sums, kThreads / 32);
  const unsigned lane = threadIdx.x % 32;
  std::uint32_t sum = value;
  for (unsigned step = 1; step < 32; step *= 2) {
    const std::uint32_t other = __shfl_up_sync(kEveryLane, sum, step);
    if (lane >= step) sum += other;
  }
  if (lane == 31) warp_sums[threadIdx.x / 32] = sum;
  __syncthreads();
  std::uint32_t before = 0;
  total = 0;
  for (unsigned warp = 0; warp < kThreads / 32; ++warp) {
    if (warp < threadIdx.x / 32) before += warp_sums[warp];
    total += warp_sums[warp];
  }
  __syncthreads();  // the sums have been read
  return before + sum - value;
}

// Adds one to a bin for each live lane, lanes of one bin together: where all share one, atomics would queue up.
__device__ __forceinline__ void count(std::uint32_t* bins, bool live, std::uint32_t bin) {
  const unsigned equal = __match_any_sync(kEveryLane, live ? bin : ~0u);
  if (live && (equal & lanes_before()) == 0) atomicAdd(bins + bin, static_cast<std::uint32_t>(__popc(equal)));
}

}  // namespace fedsparse

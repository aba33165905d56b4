// Tasks of many weights in one launch. They travel by value as part of it: nothing is copied to the device before, and
// a captured graph holds the tasks themselves.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "columns.cuh"
#include "launch.cuh"

namespace fedsparse {

// Up to kCount tasks, each of which has blocks of its own: as many as its `blocks()` says.
template <typename Task, int kCount>
struct Batch {
  static constexpr int kMost = kCount;

  Task tasks[kCount];
  std::uint32_t first_block[kCount + 1];
  int count;

  std::uint32_t blocks() const { return first_block[count]; }

  void add(const Task& task) {
    tasks[count] = task;
    first_block[count + 1] = first_block[count] + task.blocks();
    ++count;
  }

  // Number of the task that this block works for: the last one whose first block is not behind it.
  __device__ __forceinline__ int task() const {
    return last_up_to(count, blockIdx.x, [&](std::int32_t i) { return first_block[i]; });
  }
};

// Calls `launch` with batches of tasks until all `count` are done, and is its first bad status. A task without blocks
// takes no place.
template <typename Batch, typename Make, typename Launch>
int in_batches(std::int64_t count, const Make& make, const Launch& launch) {
  static_assert(sizeof(Batch) <= 4096, "what a kernel may take");
  for (std::int64_t next = 0; next < count;) {
    Batch batch = {};
    for (; next < count && batch.count < Batch::kMost; ++next)
      if (const auto task = make(next); task.blocks() > 0) batch.add(task);
    if (batch.count == 0) continue;
    const int status = launch(batch);
    if (status != cudaSuccess) return status;
  }
  return cudaSuccess;
}

constexpr int kWarps = kThreads / 32;

// Blocks of a task whose rows have a warp each.
inline std::uint32_t row_blocks(std::int64_t rows) { return static_cast<std::uint32_t>((rows + kWarps - 1) / kWarps); }

}  // namespace fedsparse

// What belongs to the values of any number of patterns moved along with them, in one launch.
#include <vector>

#include "batch.cuh"
#include "columns.cuh"
#include "cuda_api.h"

namespace fedsparse::carry {
namespace {

constexpr int kArrays = 4;  // of a task: positions are searched once for them

struct Rows {
  const std::int32_t* start;
  Columns column;
};

struct Carried {
  std::int64_t rows;
  Rows old, now;
  std::int32_t* places;
  const std::uint32_t* from[kArrays];
  std::uint32_t* to[kArrays];  // null: no such array
  std::uint32_t fill[kArrays];

  std::uint32_t blocks() const { return row_blocks(rows); }
};

using Batch = fedsparse::Batch<Carried, 26>;

// A warp takes a row: every new entry looks for itself among the old ones.
__global__ void __launch_bounds__(kThreads) carry_kernel(const __grid_constant__ Batch batch) {
  const int task = batch.task();
  const Carried& c = batch.tasks[task];
  const std::int64_t row = std::int64_t{blockIdx.x - batch.first_block[task]} * kWarps + threadIdx.x / 32;
  if (row >= c.rows) return;  // the whole warp
  const std::int32_t begin = c.old.start[row], end = c.old.start[row + 1], last = c.now.start[row + 1];
  for (auto i = static_cast<std::int32_t>(c.now.start[row] + threadIdx.x % 32); i < last; i += 32) {
    const std::int32_t at = c.now.column[i];
    const std::int64_t found = first_from(c.old.column, begin, end, at);
    const bool kept = found < end && c.old.column[found] == at;
    if (c.places) c.places[i] = kept ? static_cast<std::int32_t>(found) : -1;
#pragma unroll
    for (int a = 0; a < kArrays; ++a)
      if (c.to[a]) c.to[a][i] = kept ? c.from[a][found] : c.fill[a];
  }
}

// The arrays of a weight from number `first` on; the first task of a weight writes the places.
Carried task_of(const Move& move, std::int64_t first) {
  Carried task = {move.now.rows,
                  {move.old.row_start, {move.old.column, move.old.wide}},
                  {move.now.row_start, {move.now.column, move.now.wide}},
                  first == 0 ? move.places : nullptr, {}, {}, {}};
  for (std::int64_t a = first; a < std::min(first + kArrays, move.arrays); ++a) {
    task.from[a - first] = static_cast<const std::uint32_t*>(move.from[a]);
    task.to[a - first] = static_cast<std::uint32_t*>(move.to[a]);
    task.fill[a - first] = move.fill[a];
  }
  return task;
}

std::vector<Carried> tasks_of(std::int64_t count, const Move* moves) {
  std::vector<Carried> tasks;
  for (std::int64_t i = 0; i < count; ++i) {
    if (moves[i].places && moves[i].arrays == 0) tasks.push_back(task_of(moves[i], 0));
    for (std::int64_t a = 0; a < moves[i].arrays; a += kArrays) tasks.push_back(task_of(moves[i], a));
  }
  return tasks;
}

}  // namespace
}  // namespace fedsparse::carry

using namespace fedsparse;

int fedsparse_cuda_carry_words(std::int64_t count, const Move* moves, void* stream) {
  const std::vector<carry::Carried> tasks = carry::tasks_of(count, moves);
  return in_batches<carry::Batch>(
      static_cast<std::int64_t>(tasks.size()), [&](std::int64_t i) { return tasks[i]; },
      [&](const carry::Batch& some) {
        return FEDSPARSE_LAUNCH(carry::carry_kernel, some.blocks(), kThreads, 0, stream, some);
      });
}

// Which strips patterns have, any number of them in one launch.
#include <cstring>

#include "lists.cuh"

namespace fedsparse::block {
namespace {

constexpr int kWarps = kThreads / 32;
constexpr std::int32_t kNarrowest = 8;

// A pattern's rows, a warp each, and its part of the launch.
struct Rows {
  std::int32_t rows, inputs, taps;
  std::uint32_t first_block;
  const std::int32_t* start;
  Columns column;

  __device__ __forceinline__ bool keeps(std::int32_t row, std::int32_t at) const {
    const std::int32_t end = start[row + 1];
    const std::int64_t i = first_from(column, start[row], end, at);
    return i < end && column[i] == at;
  }
};

// Every row is compared with the first one of its strip of 8, that with the first of 16 and so on; an input is kept
// where the next one of its strip of 8 is, and where the other half of a wider strip is. Whoever finds a difference
// lowers the pattern's two numbers in `widest`.
__global__ void __launch_bounds__(kThreads)
    find_strips_kernel(const Rows* __restrict__ patterns, std::int32_t count, std::int32_t* __restrict__ widest) {
  const Rows& rows = lists::share_of(patterns, count, &Rows::first_block);
  std::int32_t* const found = widest + 2 * (&rows - patterns);
  const auto row = static_cast<std::int32_t>((blockIdx.x - rows.first_block) * kWarps + threadIdx.x / 32);
  if (row >= rows.rows) return;  // the whole warp
  std::int32_t rows_alike = kWidest, inputs_alike = kWidest;
  const std::int32_t begin = rows.start[row], count_own = rows.start[row + 1] - begin;
  std::int32_t like = row / kNarrowest * kNarrowest, without = 0;  // width of strips that a difference leaves
  for (std::int32_t width = kNarrowest; like == row && width < kWidest; width *= 2) {
    like = row / (2 * width) * (2 * width);
    without = width;
  }
  const std::int32_t twin = rows.start[like], count_twin = rows.start[like + 1] - twin;
  if (count_twin != count_own) rows_alike = without;
  for (auto i = static_cast<std::int32_t>(threadIdx.x % 32); i < count_own; i += 32) {
    const std::int32_t at = rows.column[begin + i], input = at / rows.taps, tap = at % rows.taps;
    if (like != row && rows_alike > without && i < count_twin && rows.column[twin + i] != at) rows_alike = without;
    const std::int32_t first = input / kNarrowest * kNarrowest, end = min(first + kNarrowest, rows.inputs);
    const std::int32_t next = input + 1 < end ? input + 1 : first;
    if (inputs_alike > 0 && !rows.keeps(row, next * rows.taps + tap)) inputs_alike = 0;
    for (std::int32_t width = kNarrowest; width < kWidest; width *= 2) {
      const std::int32_t other = input / width * width ^ width;
      if (inputs_alike > width && other < rows.inputs && !rows.keeps(row, other * rows.taps + tap))
        inputs_alike = width;
    }
  }
  rows_alike = __reduce_min_sync(kEveryLane, rows_alike);
  inputs_alike = __reduce_min_sync(kEveryLane, inputs_alike);
  if (threadIdx.x % 32 == 0 && rows_alike < kWidest) atomicMin(found, rows_alike);
  if (threadIdx.x % 32 == 0 && inputs_alike < kWidest) atomicMin(found + 1, inputs_alike);
}

std::uint32_t blocks_of(std::int32_t rows) { return static_cast<std::uint32_t>((rows + kWarps - 1) / kWarps); }

// A table's arrays: what is found comes first.
struct Table {
  std::int32_t* widest;
  Rows* patterns;

  Table(std::int64_t count, void* base)
      : widest(static_cast<std::int32_t*>(base)), patterns(reinterpret_cast<Rows*>(widest + 2 * count)) {}
};

}  // namespace
}  // namespace fedsparse::block

using namespace fedsparse;

std::int64_t fedsparse_block_strips_table_size(std::int64_t count) {
  return count * static_cast<std::int64_t>(2 * sizeof(std::int32_t) + sizeof(block::Rows));
}

void fedsparse_block_strips_table(std::int64_t count, const WeightRows* weights, void* table) {
  const block::Table here(count, table);
  std::uint32_t first = 0;
  for (std::int64_t i = 0; i < count; ++i) {
    const WeightRows& w = weights[i];
    const block::Rows rows = {static_cast<std::int32_t>(w.rows), static_cast<std::int32_t>(w.inputs),
                              static_cast<std::int32_t>(w.taps), first, w.row_start, {w.column, w.wide}};
    std::memcpy(static_cast<void*>(here.patterns + i), &rows, sizeof rows);
    first += block::blocks_of(rows.rows);
    std::fill_n(here.widest + 2 * i, 2, block::kWidest);
  }
}

int fedsparse_cuda_block_strips(std::int64_t count, const void* table, void* device, void* stream) {
  if (count == 0) return cudaSuccess;
  block::Rows last = {};
  std::memcpy(static_cast<void*>(&last), block::Table(count, const_cast<void*>(table)).patterns + count - 1,
              sizeof last);
  const block::Table there(count, device);
  return FEDSPARSE_LAUNCH(block::find_strips_kernel, last.first_block + block::blocks_of(last.rows), kThreads, 0,
                          stream, there.patterns, static_cast<std::int32_t>(count), there.widest);
}

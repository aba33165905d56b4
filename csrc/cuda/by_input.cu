// Lists by input of any number of patterns, from their rows, in one launch.
//
// A block turns the columns [first, last) of a weight: which rows keep each of them is marked in shared memory, a bit
// each, and the bits before one's own are one's place. Of a weight with more rows than bits for one column a block has
// one column and takes its rows tile by tile.
#include "batch.cuh"
#include "collective.cuh"
#include "columns.cuh"
#include "cuda_api.h"

namespace fedsparse::by_input {
namespace {

constexpr int kRun = 8;  // words of a thread
constexpr int kWords = kThreads * kRun;

struct Turned {
  std::int32_t rows, columns, taps;
  std::int32_t words, width, team;  // words of a column, columns of a block, threads that share a row
  const std::int32_t* row_start;
  Columns column;
  std::int32_t* column_start;
  NewColumns entry, rank;

  std::uint32_t blocks() const { return static_cast<std::uint32_t>((columns + width - 1) / width); }

  // Visits (column counted from `first`, row counted from `top`, number within the row) of what rows from `top` on, as
  // many as there are bits for, keep in [first, last). A team of threads has a row.
  template <typename F>
  __device__ __forceinline__ void each(std::int32_t first, std::int32_t last, std::int32_t top, F&& visit) const {
    const auto thread = static_cast<std::int32_t>(threadIdx.x);
    const std::int32_t end = min(rows - top, words * 32);
    for (std::int32_t row = thread / team; row < end; row += kThreads / team) {
      const std::int32_t start = row_start[top + row], stop = row_start[top + row + 1];
      auto i = static_cast<std::int32_t>(first_from(column, start, stop, first)) + thread % team;
      for (std::int32_t at; i < stop && (at = column[i]) < last; i += team) visit(at - first, row, i - start);
    }
  }
};

using Batch = fedsparse::Batch<Turned, 40>;

// How many are kept in the columns before `first`, of all rows.
__device__ __forceinline__ std::uint32_t kept_before(const Turned& t, std::int32_t first) {
  std::uint32_t own = 0, total;
  for (auto row = static_cast<std::int32_t>(threadIdx.x); row < t.rows; row += kThreads) {
    const std::int32_t start = t.row_start[row];
    own += static_cast<std::uint32_t>(first_from(t.column, start, t.row_start[row + 1], first) - start);
  }
  sum_before(own, total);
  return total;
}

// before[w]: `base` and the bits of the words before w. All bits together. Ends with a barrier.
__device__ __forceinline__ std::uint32_t add_up(const std::uint32_t* bits, std::uint32_t* before, std::uint32_t base) {
  const unsigned first = threadIdx.x * kRun;
  std::uint32_t sum = 0, total;
#pragma unroll
  for (int i = 0; i < kRun; ++i) sum += __popc(bits[first + i]);
  std::uint32_t place = base + sum_before(sum, total);
#pragma unroll
  for (int i = 0; i < kRun; ++i) {
    before[first + i] = place;
    place += __popc(bits[first + i]);
  }
  __syncthreads();
  return total;
}

__global__ void __launch_bounds__(kThreads) list_by_input_kernel(const __grid_constant__ Batch batch) {
  FEDSPARSE_SHARED(std::uint32_t, bits, kWords);
  FEDSPARSE_SHARED(std::uint32_t, before, kWords);
  const int task = batch.task();
  const Turned& t = batch.tasks[task];
  const auto first = static_cast<std::int32_t>(blockIdx.x - batch.first_block[task]) * t.width;
  const std::int32_t last = min(first + t.width, t.columns);
  std::uint32_t base = kept_before(t, first);
  for (std::int32_t left = t.rows; left > 0; left -= t.words * 32) {
    const std::int32_t top = t.rows - left;
    for (int w = threadIdx.x; w < kWords; w += kThreads) bits[w] = 0;
    __syncthreads();
    t.each(first, last, top, [&](std::int32_t column, std::int32_t row, std::int32_t) {
      atomicOr(bits + column * t.words + row / 32, 1u << row % 32);
    });
    __syncthreads();  // all marks are there
    const std::uint32_t here = add_up(bits, before, base);
    t.each(first, last, top, [&](std::int32_t column, std::int32_t row, std::int32_t number) {
      const std::int32_t word = column * t.words + row / 32;
      const std::uint32_t place = before[word] + __popc(bits[word] & ((1u << row % 32) - 1));
      t.entry.put(place, std::int64_t{(first + column) % t.taps} * t.rows + top + row);
      t.rank.put(place, number);
    });
    if (top == 0)
      for (std::int32_t c = first + static_cast<std::int32_t>(threadIdx.x); c < last; c += kThreads)
        if (c % t.taps == 0) t.column_start[c / t.taps] = static_cast<std::int32_t>(before[(c - first) * t.words]);
    base += here;
    __syncthreads();  // bits and counts have been read
  }
  if (last == t.columns && threadIdx.x == 0) t.column_start[t.columns / t.taps] = static_cast<std::int32_t>(base);
}

Turned task_of(const InputList& list) {
  const WeightRows& r = list.rows;
  const auto rows = static_cast<std::int32_t>(r.rows), columns = static_cast<std::int32_t>(r.inputs * r.taps);
  const std::int32_t words = std::min((rows + 31) / 32, kWords);
  std::int32_t team = 32;
  while (team > 1 && rows > kThreads / team) team /= 2;
  return {rows, columns, static_cast<std::int32_t>(r.taps), words, std::min(columns, kWords / words), team,
          r.row_start, {r.column, r.wide}, list.column_start, {list.entry, list.wide_entry},
          {list.rank, list.wide_rank}};
}

}  // namespace
}  // namespace fedsparse::by_input

using namespace fedsparse;

int fedsparse_cuda_list_by_input(std::int64_t count, const InputList* lists, void* stream) {
  return in_batches<by_input::Batch>(
      count, [&](std::int64_t i) { return by_input::task_of(lists[i]); },
      [&](const by_input::Batch& some) {
        return FEDSPARSE_LAUNCH(by_input::list_by_input_kernel, some.blocks(), kThreads, 0, stream, some);
      });
}

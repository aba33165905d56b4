// Rows of any number of patterns changed in one launch: without the dropped values and with the grown positions; and
// before that, whether positions can be grown.
#include "batch.cuh"
#include "columns.cuh"
#include "cuda_api.h"

namespace fedsparse::rebuild {
namespace {

// ---- rows
struct Change : Exchange {
  std::uint32_t blocks() const { return row_blocks(old.rows); }
};

using Changes = Batch<Change, 40>;

// Of a rising list the places [first, end) whose numbers are a row's.
struct Run {
  std::int32_t first, end;

  __device__ __forceinline__ Run(const std::int64_t* list, std::int64_t count, std::int64_t low, std::int64_t high)
      : first(static_cast<std::int32_t>(first_from(list, 0, count, low))),
        end(static_cast<std::int32_t>(first_from(list, first, count, high))) {}

  // The numbers of the whole list that come before `least`, which is the row's.
  __device__ __forceinline__ std::int32_t before(const std::int64_t* list, std::int64_t least) const {
    return static_cast<std::int32_t>(first_from(list, first, end, least));
  }
};

// A warp merges a row: every entry finds its own place by what is dropped and grown before it.
__global__ void __launch_bounds__(kThreads) exchange_kernel(const __grid_constant__ Changes changes) {
  const int task = changes.task();
  const Exchange& e = changes.tasks[task];
  const std::int64_t row = std::int64_t{blockIdx.x - changes.first_block[task]} * kWarps + threadIdx.x / 32;
  if (row >= e.old.rows) return;  // the whole warp
  const Columns column = {e.old.column, e.old.wide};
  const NewColumns out = {e.column, e.old.wide};
  const std::int64_t columns = e.old.inputs * e.old.taps, base = row * columns;
  const std::int32_t begin = e.old.row_start[row], end = e.old.row_start[row + 1];
  const Run drop(e.dropped, e.drops, begin, end), grow(e.grown, e.grows, base, base + columns);
  if (threadIdx.x % 32 == 0) {
    e.row_start[row] = begin - drop.first + grow.first;
    if (row + 1 == e.old.rows) e.row_start[row + 1] = end - drop.end + grow.end;
  }
  for (auto i = static_cast<std::int32_t>(begin + threadIdx.x % 32); i < end; i += 32) {
    const std::int32_t d = drop.before(e.dropped, i);
    if (d < drop.end && e.dropped[d] == i) continue;
    const std::int32_t at = column[i];
    out.put(i - d + grow.before(e.grown, base + at), at);
  }
  for (auto g = static_cast<std::int32_t>(grow.first + threadIdx.x % 32); g < grow.end; g += 32) {
    const std::int64_t at = e.grown[g] - base, i = first_from(column, begin, end, at);
    out.put(i - drop.before(e.dropped, i) + g, at);
  }
}

// ---- positions to be grown
enum Fault : int { kOutside = 1, kNotRising = 2, kKept = 4 };

struct Proposal {
  Growth growth;
  std::int32_t* faults;

  std::uint32_t blocks() const { return static_cast<std::uint32_t>((growth.count + kThreads - 1) / kThreads); }
};

using Proposals = Batch<Proposal, 40>;

__global__ void __launch_bounds__(kThreads) check_growth_kernel(const __grid_constant__ Proposals proposals) {
  const int task = proposals.task();
  const Growth& g = proposals.tasks[task].growth;
  const std::int64_t i = std::int64_t{blockIdx.x - proposals.first_block[task]} * kThreads + threadIdx.x;
  if (i >= g.count) return;
  const std::int64_t columns = g.rows.inputs * g.rows.taps, at = g.positions[i];
  int faults = i > 0 && at <= g.positions[i - 1] ? kNotRising : 0;
  if (at < 0 || at >= g.rows.rows * columns) {
    faults |= kOutside;
  } else {
    const std::int64_t row = at / columns, end = g.rows.row_start[row + 1];
    const Columns column = {g.rows.column, g.rows.wide};
    const std::int64_t place = first_from(column, g.rows.row_start[row], end, at - row * columns);
    if (place < end && column[place] == at - row * columns) faults |= kKept;
  }
  if (faults) atomicOr(proposals.tasks[task].faults, faults);
}

}  // namespace
}  // namespace fedsparse::rebuild

using namespace fedsparse;

int fedsparse_cuda_exchange(std::int64_t count, const Exchange* changes, void* stream) {
  return in_batches<rebuild::Changes>(
      count, [&](std::int64_t i) { return rebuild::Change{changes[i]}; },
      [&](const rebuild::Changes& some) {
        return FEDSPARSE_LAUNCH(rebuild::exchange_kernel, some.blocks(), kThreads, 0, stream, some);
      });
}

int fedsparse_cuda_check_growth(std::int64_t count, const Growth* growths, std::int32_t* faults, void* stream) {
  return in_batches<rebuild::Proposals>(
      count, [&](std::int64_t i) { return rebuild::Proposal{growths[i], faults + i}; },
      [&](const rebuild::Proposals& some) {
        return FEDSPARSE_LAUNCH(rebuild::check_growth_kernel, some.blocks(), kThreads, 0, stream, some);
      });
}

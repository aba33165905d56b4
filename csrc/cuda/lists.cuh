// Lists for products, of many patterns in one set of launches: the table that says which, and the blocks' share of it.
//
// A list is cut into *parts*: of one grid, the weights of a strip of target channels and a slab of source channels. A
// block of threads has one part. A table holds a Task for each list, in the order of their kinds; it is written in main
// memory and copied to the device, so that launches stay as many however many lists there are.
#pragma once

#include "block.h"
#include "collective.cuh"
#include "cuda_api.h"
#include "kept.cuh"

namespace fedsparse::lists {

// A list to be made, as kernels see it.
struct Task {
  csr16::KeptRows kept;
  std::int32_t grids, groups, strips, slabs, width;  // strips of each group, target channels of a strip
  bool wide;                                          // numbers of 32 bits
  std::int64_t entries;                               // of `start`, without the last
  std::uint32_t first_part;                           // among those of its kind
  std::int32_t* start;
  std::uint16_t* offset;
  std::int32_t* value;

  std::int64_t parts() const { return std::int64_t{grids} * groups * strips * slabs; }
};

// Lists of a launch, on the device, and their parts, each a block.
struct Batch {
  const Task* tasks;
  std::int32_t count;
  std::uint32_t parts;
};

// The last one whose first block is not behind this one: those before may have none.
template <typename Share>
__device__ __forceinline__ const Share& share_of(const Share* shares, std::int32_t count,
                                                 std::uint32_t Share::* first) {
  return shares[last_up_to(count, blockIdx.x, [&](std::int32_t i) { return shares[i].*first; })];
}

// The weights of one part: of some rows those of a grid in the columns [first_column, last_column).
struct Part {
  std::int32_t grid, slab, first_row, rows, first_column, last_column, first_target, targets;  // first_target: of all

  __device__ __forceinline__ Part(const Task& l, std::uint32_t block) {
    const csr16::KeptRows& k = l.kept;
    const std::int32_t group_sources = k.backward ? k.outputs : k.inputs;
    const std::int32_t group_targets = k.backward ? k.inputs : k.outputs;
    const auto number = static_cast<std::int32_t>(block - l.first_part);
    slab = number % l.slabs;
    grid = number / l.slabs / l.strips / l.groups;
    const std::int32_t group = number / l.slabs / l.strips % l.groups;
    const std::int32_t source = slab * k.slab_channels, source_end = min(source + k.slab_channels, group_sources);
    const std::int32_t target = number / l.slabs % l.strips * l.width;
    targets = min(l.width, group_targets - target);
    first_target = group * group_targets + target;
    first_row = group * k.outputs + (k.backward ? source : target);
    rows = k.backward ? source_end - source : targets;
    first_column = (k.backward ? target : source) * k.taps;
    last_column = (k.backward ? target + targets : source_end) * k.taps;
  }

  // Channel of the strip that a weight in row `first_row` + r belongs to.
  __device__ __forceinline__ std::int32_t channel(const csr16::KeptRows& k, std::int32_t r, std::int32_t at) const {
    return k.backward ? (at - first_column) / k.taps : r;
  }
};

static_assert(std::max(block::kSlab.channels, csr16::kSlab.channels) <= kThreads, "a thread for each row of a part");

// The weights of a part and of the other grids in the same columns, in the order of their numbers. A thread looks a row
// up, so that all are found at once.
struct Weights {
  const std::int32_t* first;    // (kThreads) number of the first weight of each row
  const std::uint32_t* before;  // (kThreads) weights of earlier rows
  std::int32_t rows;
  std::uint32_t count;

  // Ends with a barrier.
  __device__ __forceinline__ Weights(const csr16::KeptRows& k, const Part& part) : rows(part.rows) {
    FEDSPARSE_SHARED(std::int32_t, firsts, kThreads);
    FEDSPARSE_SHARED(std::uint32_t, befores, kThreads);
    std::int64_t begin = 0, end = 0;
    if (static_cast<std::int32_t>(threadIdx.x) < part.rows) {
      const std::int32_t row = part.first_row + static_cast<std::int32_t>(threadIdx.x), row_end = k.row_start[row + 1];
      begin = first_from(k.column, k.row_start[row], row_end, part.first_column);
      end = first_from(k.column, begin, row_end, part.last_column);
    }
    befores[threadIdx.x] = sum_before(static_cast<std::uint32_t>(end - begin), count);
    firsts[threadIdx.x] = static_cast<std::int32_t>(begin);
    first = firsts;
    before = befores;
    __syncthreads();
  }

  // Row, counted from the part's first, of the weight that comes n-th, from 0.
  __device__ __forceinline__ std::int32_t row(std::uint32_t n) const {
    // The last row with no more before it: those without a weight have as many.
    return last_up_to(rows, n, [&](std::int32_t r) { return before[r]; });
  }
  __device__ __forceinline__ std::int32_t number(std::int32_t r, std::uint32_t n) const {
    return first[r] + static_cast<std::int32_t>(n - before[r]);
  }

  // Calls visit(number of the value, row counted from the part's first, column) for each weight of the part's grid.
  template <typename F>
  __device__ __forceinline__ void each(const csr16::KeptRows& k, const Part& part, F&& visit) const {
    for (std::uint32_t n = threadIdx.x; n < count; n += kThreads) {
      const std::int32_t r = row(n), i = number(r, n), at = k.column[i];
      if (k.grid(at) == part.grid) visit(i, r, at);
    }
  }
};

constexpr std::int32_t kTapStrip = 64;  // target channels of a part of a list of taps

// A launch each, of one kind of list; nothing where there is none. Statuses.
int count_lines(const Batch& batch, void* stream);  // start[e]: chunks of entry e
int list_lines(const Batch& batch, void* stream);   // the rest, once the counts have been added up
int count_taps(const Batch& batch, void* stream);   // the same of taps, of the backward direction
int list_taps(const Batch& batch, void* stream);    // of both; forward, start is written as well

}  // namespace fedsparse::lists

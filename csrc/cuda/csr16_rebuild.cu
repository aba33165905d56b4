// Lists of taps made on the device from the rows of patterns: equal to those that fedsparse_csr16_list makes.
//
// Forward, a list has the order of the values: what a row keeps in a slab is an entry as it stands. Backward, a launch
// counts the weights of each target channel and slab, the next adds the counts up, and a third puts every weight where
// they say. A warp takes a run of a part's weights, 32 neighbours at a time, so that those of one entry keep their
// order: nothing is sorted, and nothing depends on timing.
#include "lists.cuh"

namespace fedsparse::csr16 {
namespace {

using fedsparse::kThreads;
using lists::Batch;
using lists::kTapStrip;
using lists::Part;
using lists::Task;
using lists::Weights;

constexpr int kRuns = fedsparse::kThreads / 32;
static_assert(kTapStrip <= fedsparse::kThreads, "a thread has a channel of the strip");

// The entry of `start` for a channel of a part's strip.
__device__ __forceinline__ std::int64_t entry(const Task& l, const Part& part, std::int32_t channel) {
  const std::int32_t targets = l.groups * (l.kept.backward ? l.kept.inputs : l.kept.outputs);
  return (std::int64_t{part.grid} * targets + part.first_target + channel) * l.slabs + part.slab;
}

// Backward lists.
__global__ void __launch_bounds__(fedsparse::kThreads)
    count_taps_kernel(const Task* __restrict__ tasks, std::int32_t count) {
  FEDSPARSE_SHARED(std::uint32_t, counts, kTapStrip);
  const Task& l = lists::share_of(tasks, count, &Task::first_part);
  const Part part(l, blockIdx.x);
  if (threadIdx.x < kTapStrip) counts[threadIdx.x] = 0;
  const Weights weights(l.kept, part);
  weights.each(l.kept, part, [&](std::int32_t, std::int32_t r, std::int32_t at) {
    atomicAdd(counts + part.channel(l.kept, r, at), 1u);
  });
  __syncthreads();
  const auto channel = static_cast<std::int32_t>(threadIdx.x);
  if (channel < part.targets) l.start[entry(l, part, channel)] = static_cast<std::int32_t>(counts[channel]);
}

__device__ __forceinline__ void list_in_order(const Task& l, const Part& part, const Weights& weights) {
  const auto r = static_cast<std::int32_t>(threadIdx.x);
  if (r < part.rows) l.start[entry(l, part, r)] = weights.first[r];
  if (r == 0 && blockIdx.x == l.first_part) l.start[l.entries] = l.kept.row_start[l.kept.rows];
  weights.each(l.kept, part, [&](std::int32_t i, std::int32_t row, std::int32_t at) {
    l.offset[i] = l.kept.distance(part.first_row + row, at);
    if (l.value) l.value[i] = i;
  });
}

// A warp's weights of a part.
struct Run {
  std::uint32_t begin, end;

  __device__ __forceinline__ explicit Run(const Weights& weights) {
    const std::uint32_t steps = (weights.count + kThreads - 1) / kThreads;
    begin = min(threadIdx.x / 32 * steps * 32, weights.count);
    end = min(begin + steps * 32, weights.count);
  }
};

// Calls visit(whether it is of the part's grid, channel of the strip, number of the value, distance) for all of a run,
// in all lanes at once: behind the end they get one that is not.
template <typename F>
__device__ __forceinline__ void each_of_run(const Task& l, const Part& part, const Weights& weights, F&& visit) {
  const Run run(weights);
  for (std::uint32_t n = run.begin + threadIdx.x % 32; n - threadIdx.x % 32 < run.end; n += 32) {
    if (n >= run.end) {
      visit(false, 0, 0, std::uint16_t{0});
      continue;
    }
    const std::int32_t r = weights.row(n), i = weights.number(r, n), at = l.kept.column[i];
    visit(l.kept.grid(at) == part.grid, part.channel(l.kept, r, at), i, l.kept.distance(part.first_row + r, at));
  }
}

__device__ __forceinline__ void list_by_target(const Task& l, const Part& part, const Weights& weights) {
  FEDSPARSE_SHARED(std::uint32_t, next, kRuns * kTapStrip);  // of each run and channel: how many, then the next place
  std::uint32_t* const own = next + threadIdx.x / 32 * kTapStrip;
  for (int i = static_cast<int>(threadIdx.x); i < kRuns * kTapStrip; i += kThreads) next[i] = 0;
  __syncthreads();
  each_of_run(l, part, weights, [&](bool live, std::int32_t channel, std::int32_t, std::uint16_t) {
    if (live) atomicAdd(own + channel, 1u);
  });
  __syncthreads();
  if (static_cast<std::int32_t>(threadIdx.x) < part.targets) {
    auto place = static_cast<std::uint32_t>(l.start[entry(l, part, static_cast<std::int32_t>(threadIdx.x))]);
    for (int run = 0; run < kRuns; ++run) {
      const std::uint32_t here = next[run * kTapStrip + threadIdx.x];
      next[run * kTapStrip + threadIdx.x] = place;
      place += here;
    }
  }
  __syncthreads();
  each_of_run(l, part, weights, [&](bool live, std::int32_t channel, std::int32_t i, std::uint16_t distance) {
    const unsigned equal = __match_any_sync(kEveryLane, live ? static_cast<std::uint32_t>(channel) : ~0u);
    const std::uint32_t to = own[channel] + __popc(equal & lanes_before());
    __syncwarp();  // the places have been read
    if (live && (equal & lanes_before()) == 0) own[channel] += __popc(equal);
    __syncwarp();
    if (!live) return;
    l.offset[to] = distance;
    l.value[to] = i;
  });
}

__global__ void __launch_bounds__(fedsparse::kThreads)
    list_taps_kernel(const Task* __restrict__ tasks, std::int32_t count) {
  const Task& l = lists::share_of(tasks, count, &Task::first_part);
  const Part part(l, blockIdx.x);
  const Weights weights(l.kept, part);
  if (l.kept.backward)
    list_by_target(l, part, weights);
  else
    list_in_order(l, part, weights);
}

}  // namespace
}  // namespace fedsparse::csr16

using namespace fedsparse;

int lists::count_taps(const Batch& batch, void* stream) {
  if (batch.parts == 0) return cudaSuccess;
  return FEDSPARSE_LAUNCH(csr16::count_taps_kernel, batch.parts, kThreads, 0, stream, batch.tasks, batch.count);
}

int lists::list_taps(const Batch& batch, void* stream) {
  if (batch.parts == 0) return cudaSuccess;
  return FEDSPARSE_LAUNCH(csr16::list_taps_kernel, batch.parts, kThreads, 0, stream, batch.tasks, batch.count);
}

// Lists of any number of patterns, of both directions and both kinds, in five launches at most.
#include "lists.cuh"

#include <cstring>

#include "../cpu/arena.h"

namespace fedsparse::lists {
namespace {

// start[e]: the counts of all entries before e, a block for each list.
__global__ void __launch_bounds__(kThreads) add_counts_kernel(const Task* __restrict__ tasks) {
  constexpr int kRun = 8;  // of a thread
  std::int32_t* const start = tasks[blockIdx.x].start;
  const std::int64_t entries = tasks[blockIdx.x].entries;
  std::uint32_t before = 0;
  for (std::int64_t tile = 0; tile <= entries; tile += kThreads * kRun) {
    const std::int64_t first = tile + threadIdx.x * kRun;
    std::uint32_t own[kRun], sum = 0, total;
#pragma unroll
    for (int i = 0; i < kRun; ++i) {
      own[i] = first + i < entries ? static_cast<std::uint32_t>(start[first + i]) : 0;
      sum += own[i];
    }
    std::uint32_t place = before + sum_before(sum, total);
#pragma unroll
    for (int i = 0; i < kRun; ++i) {
      if (first + i <= entries) start[first + i] = static_cast<std::int32_t>(place);
      place += own[i];
    }
    before += total;
  }
}

// ---- the table
enum Kind : int { kLines, kTapsBackward, kTapsForward, kKinds };

Kind kind_of(const NewList& list) { return list.width ? kLines : list.backward ? kTapsBackward : kTapsForward; }

// How many lists of each kind, and their parts: what the table begins with, for whoever launches.
struct Header {
  std::int32_t lists[kKinds];
  std::uint32_t parts[kKinds];
};

std::int64_t axis_taps(const NewList& list) { return list.shape.kernel_h + list.shape.kernel_w; }

// Where a table's arrays lie, in main memory or on the device.
struct Arrays {
  Header* header;
  Task* tasks;
  csr16::AxisTap* taps;
  std::int64_t bytes;

  Arrays(std::int64_t count, std::int64_t all_taps, void* base) {
    Arena arena(base);
    header = arena.take<Header>(1);
    tasks = arena.take<Task>(count);
    taps = arena.take<csr16::AxisTap>(all_taps);
    bytes = arena.used();
  }
};

// Whether the kernels compute such a product, and with such strips.
bool plan_for(const NewList& list, csr16::Plan& plan) {
  const bool wide = list.dtype == FEDSPARSE_FLOAT32;
  if (list.width == 0) return csr16::make_plan(list.shape, list.backward, wide ? 4 : 2, plan);
  return fedsparse_block_start_size(&list.shape, list.backward, list.dtype, list.width) > 0 &&
         block::make_plan(list.shape, list.backward, wide, plan);
}

// Writes the kernel's positions to `taps`, which lie at `there` on the device.
Task make_task(const NewList& list, const csr16::Plan& plan, csr16::AxisTap* taps, const csr16::AxisTap* there) {
  const ConvShape& s = list.shape;
  std::fill_n(taps, axis_taps(list), csr16::AxisTap{});
  csr16::list_axis(plan.vertical, plan.tile.rows, taps);
  csr16::list_axis(plan.horizontal, plan.tile.columns, taps + s.kernel_h);
  const csr16::KeptRows kept(plan, s, list.backward, list.row_start, {list.column, list.wide}, there,
                             there + s.kernel_h);
  const std::int32_t width = list.width ? static_cast<std::int32_t>(list.width) : kTapStrip;
  Task task = {kept, static_cast<std::int32_t>(plan.grids.size()), plan.groups,
               block::strips(plan.group_targets(), width), plan.slabs, width, list.dtype == FEDSPARSE_FLOAT32, 0, 0,
               list.start, list.offset, list.value};
  task.entries = list.width ? task.parts() : std::int64_t{task.grids} * plan.target.channels * plan.slabs;
  return task;
}

}  // namespace
}  // namespace fedsparse::lists

using namespace fedsparse;
using namespace fedsparse::lists;

std::int64_t fedsparse_lists_table_size(std::int64_t count, const NewList* wanted) {
  std::int64_t taps = 0;
  for (std::int64_t i = 0; i < count; ++i) taps += axis_taps(wanted[i]);
  return Arrays(count, taps, nullptr).bytes;
}

int fedsparse_lists_table(std::int64_t count, const NewList* wanted, void* table, const void* device) {
  constexpr std::int64_t kMostParts = std::int64_t{1} << 31;
  const Arrays here(count, 0, table), there(count, 0, const_cast<void*>(device));
  Header header = {};
  std::int64_t at = 0, tap = 0, first = 0;
  for (int kind = 0; kind < kKinds; ++kind) {
    if (kind != kTapsForward) first = 0;  // a launch takes taps of both directions, the backward ones before
    const std::int64_t begin = first;
    for (std::int64_t i = 0; i < count; ++i) {
      if (kind_of(wanted[i]) != kind) continue;
      csr16::Plan plan;
      if (!plan_for(wanted[i], plan)) return cudaErrorInvalidValue;
      Task task = make_task(wanted[i], plan, here.taps + tap, there.taps + tap);
      task.first_part = static_cast<std::uint32_t>(first);
      first += task.parts();
      if (first >= kMostParts || task.entries >= kMostParts) return cudaErrorInvalidValue;
      std::memcpy(static_cast<void*>(here.tasks + at++), &task, sizeof task);
      tap += axis_taps(wanted[i]);
      ++header.lists[kind];
    }
    header.parts[kind] = static_cast<std::uint32_t>(first - begin);
  }
  std::memcpy(here.header, &header, sizeof header);
  return cudaSuccess;
}

int fedsparse_cuda_lists(const void* table, const void* device, void* stream) {
  Header header;
  std::memcpy(&header, table, sizeof header);
  const auto& [lists, parts] = header;
  const std::int32_t counted = lists[kLines] + lists[kTapsBackward];
  const Task* const tasks = Arrays(counted + lists[kTapsForward], 0, const_cast<void*>(device)).tasks;
  const Batch lines = {tasks, lists[kLines], parts[kLines]};
  const Batch backward = {tasks + lists[kLines], lists[kTapsBackward], parts[kTapsBackward]};
  const Batch taps = {backward.tasks, backward.count + lists[kTapsForward], backward.parts + parts[kTapsForward]};
  int status = count_lines(lines, stream);
  if (status == cudaSuccess) status = count_taps(backward, stream);
  if (status == cudaSuccess && counted > 0)
    status = FEDSPARSE_LAUNCH(add_counts_kernel, static_cast<unsigned>(counted), kThreads, 0, stream, tasks);
  if (status == cudaSuccess) status = list_lines(lines, stream);
  return status == cudaSuccess ? list_taps(taps, stream) : status;
}

// Strips for a structure, and how large their lists may be. Host code only.
#include <algorithm>

#include "block.h"
#include "cuda_api.h"

namespace fedsparse::block {
namespace {

bool is_width(std::int64_t width) { return width == 8 || width == 16 || width == 32; }

// A strip may end with the weight, but not reach into the next group; half of it has to be used.
std::int64_t forward_width(const ConvShape& shape, std::int64_t rows_alike) {
  const std::int64_t outputs = shape.out_channels / shape.groups;
  for (const std::int64_t width : {32, 16, 8})
    if (width <= rows_alike && width < 2 * outputs && (shape.groups == 1 || outputs % width == 0)) return width;
  return 0;
}

// 32 for blocks of so many inputs. Strips of 16 cost vectors the least: their union is nearer to what is kept than that
// of 32, while strips of 8 read each line from shared memory twice as often.
std::int64_t backward_width(const ConvShape& shape, std::int64_t inputs_alike) {
  const std::int64_t inputs = shape.in_channels / shape.groups;
  if (inputs > 16 && inputs_alike == 32) return 32;
  return inputs <= 8 ? 8 : 16;
}

std::int64_t chunks_of(std::int64_t lines) { return (lines + kChunk - 1) / kChunk; }

// Lines and chunks of a list in which every strip keeps every line, and how many entries can have any.
struct Whole {
  std::int64_t entries = 0, lines = 0, chunks = 0;

  Whole(const csr16::Plan& plan, std::int64_t strips) {
    const auto taps = [](const csr16::Axis& axis) {
      return std::count_if(axis.shift.begin(), axis.shift.end(), [](std::int32_t shift) { return shift >= 0; });
    };
    const std::int64_t last = plan.group_sources() - (plan.slabs - 1) * std::int64_t{plan.slab_channels};
    for (const csr16::Axis& y : plan.vertical)
      for (const csr16::Axis& x : plan.horizontal) {
        const std::int64_t each = taps(y) * taps(x);
        if (each == 0) continue;
        entries += strips * plan.slabs;
        lines += strips * plan.group_sources() * each;
        chunks += strips * ((plan.slabs - 1) * chunks_of(plan.slab_channels * each) + chunks_of(last * each));
      }
  }
};

// The most lines that nnz weights make where all channels of a strip keep them: those of a short last strip need fewer
// weights each.
std::int64_t lines_alike(const csr16::Plan& plan, std::int64_t width, std::int64_t positions, std::int64_t nnz) {
  const std::int64_t shorter = plan.group_targets() % width;
  const std::int64_t in_shorter = std::min(nnz, positions / plan.group_targets() * shorter);
  return (nnz - in_shorter) / width + (shorter ? in_shorter / shorter : 0);
}

// Lines of which every entry has a multiple: those of source channels that are alike come together.
std::int64_t run_of_lines(const csr16::Plan& plan, std::int64_t sources_alike) {
  const std::int64_t run = std::clamp<std::int64_t>(sources_alike, 1, kChunk);
  return plan.slab_channels % run == 0 && plan.group_sources() % run == 0 ? run : 1;
}

}  // namespace
}  // namespace fedsparse::block

using namespace fedsparse;
using namespace fedsparse::block;

std::int64_t fedsparse_block_width(const ConvShape* shape, bool backward, std::int64_t dtype, std::int64_t rows_alike,
                                   std::int64_t inputs_alike) {
  csr16::Plan plan;
  if (!make_plan(*shape, backward, is_wide(dtype), plan)) return 0;
  const std::int64_t width = forward_width(*shape, rows_alike);
  return backward && width ? backward_width(*shape, inputs_alike) : width;
}

std::int64_t fedsparse_block_start_size(const ConvShape* shape, bool backward, std::int64_t dtype,
                                        std::int64_t width) {
  csr16::Plan plan;
  if (!is_width(width) || !make_plan(*shape, backward, is_wide(dtype), plan)) return 0;
  const std::int64_t all = std::int64_t{plan.groups} * strips(plan.group_targets(), static_cast<std::int32_t>(width));
  return static_cast<std::int64_t>(plan.grids.size()) * all * plan.slabs + 1;
}

std::int64_t fedsparse_block_room(const ConvShape* shape, bool backward, std::int64_t dtype, std::int64_t width,
                                  std::int64_t nnz, std::int64_t rows_alike, std::int64_t inputs_alike) {
  csr16::Plan plan;
  if (!is_width(width) || !make_plan(*shape, backward, is_wide(dtype), plan)) return 0;
  const std::int64_t all = std::int64_t{plan.groups} * strips(plan.group_targets(), static_cast<std::int32_t>(width));
  const Whole whole(plan, all);
  const std::int64_t positions = shape->out_channels * (shape->in_channels / shape->groups) * shape->taps();
  const bool alike = (backward ? inputs_alike : rows_alike) >= width;
  const std::int64_t lines = std::min(alike ? lines_alike(plan, width, positions, nnz) : nnz, whole.lines);
  const std::int64_t run = run_of_lines(plan, backward ? rows_alike : inputs_alike);
  const std::int64_t unfilled = (kChunk - run) * std::min(lines / run, whole.entries);
  return std::min((lines + unfilled) / kChunk, whole.chunks);
}

// How a product is cut for the device, and the lists of taps that follow from it. Host code only.
#include "csr16.h"

#include <cuda_runtime.h>

#include <algorithm>
#include <numeric>

#include "cuda_api.h"
#include "number.cuh"

namespace fedsparse::csr16 {
namespace {

constexpr Tile kRow = {1, 1, 16};  // of a linear layer, whose images are columns

// Sizes small enough for sums of them to stay inside 32 bits, with a tile's worth of strides.
bool valid(const ConvShape& s) {
  constexpr std::int64_t kLimit = std::int64_t{1} << 27;
  const auto positive = [](std::int64_t n) { return n > 0 && n < kLimit; };
  const std::int64_t sizes[] = {s.in_channels, s.height,   s.width,      s.out_channels, s.kernel_h, s.kernel_w,
                                s.stride_h,    s.stride_w, s.dilation_h, s.dilation_w,   s.groups};
  return std::all_of(std::begin(sizes), std::end(sizes), positive) && s.batch >= 0 && s.pad_h >= 0 && s.pad_w >= 0 &&
         s.pad_h < kLimit && s.pad_w < kLimit && s.out_height() > 0 && s.out_width() > 0 &&
         s.in_channels % s.groups == 0 && s.out_channels % s.groups == 0;
}

bool one_pixel(const ConvShape& s) {
  return s.height == 1 && s.width == 1 && s.taps() == 1 && s.pad_h == 0 && s.pad_w == 0;
}

// Batch-innermost where the batch fills its lines, one image of 8 samples after the other where it does not.
Plane pictures(std::int64_t batch, std::int64_t channels, std::int64_t height, std::int64_t width) {
  Plane plane = {};
  const std::int64_t images = (batch + kBatch - 1) / kBatch;
  const bool innermost = batch % kBatch == 0;
  plane.images = static_cast<std::int32_t>(images);
  plane.channels = static_cast<std::int32_t>(channels);
  plane.height = static_cast<std::int32_t>(height);
  plane.width = static_cast<std::int32_t>(width);
  plane.column = innermost ? images : 1;
  plane.row = width * plane.column;
  plane.channel = height * plane.row;
  plane.image = innermost ? 1 : channels * plane.channel;
  return plane;
}

Plane features(std::int64_t batch, std::int64_t channels) {
  Plane plane = pictures(batch, channels, 1, 1);
  std::swap(plane.images, plane.width);
  plane.column = plane.image;
  plane.image = 0;
  return plane;
}

// What an axis of a convolution is made of.
struct Side {
  std::int64_t kernel, stride, pad, dilation, in, out;
};

Axis forward_axis(const Side& s) {
  Axis axis = {0, 1, static_cast<std::int32_t>(s.out), static_cast<std::int32_t>(-s.pad),
               static_cast<std::int32_t>(s.stride), static_cast<std::int32_t>((s.kernel - 1) * s.dilation + 1), {}};
  for (std::int64_t k = 0; k < s.kernel; ++k) axis.shift.push_back(static_cast<std::int32_t>(k * s.dilation));
  return axis;
}

// Pixels y of x with (y + pad) % stride == residue: pixel y meets tap k in the output pixel (y + pad - k * dilation) /
// stride, for the taps with the same residue.
Axis backward_axis(const Side& s, std::int64_t residue) {
  const std::int64_t first = ((residue - s.pad) % s.stride + s.stride) % s.stride;
  const std::int64_t count = first < s.in ? (s.in - first + s.stride - 1) / s.stride : 0;
  Axis axis = {static_cast<std::int32_t>(first), static_cast<std::int32_t>(s.stride), static_cast<std::int32_t>(count),
               0, 1, 1, std::vector<std::int32_t>(static_cast<std::size_t>(s.kernel), -1)};
  const auto source = [&](std::int64_t k) { return (first + s.pad - k * s.dilation) / s.stride; };
  std::int64_t lowest = 0, highest = 0;
  bool any = false;
  for (std::int64_t k = 0; k < s.kernel; ++k) {
    if (k * s.dilation % s.stride != residue) continue;
    lowest = any ? std::min(lowest, source(k)) : source(k);
    highest = any ? std::max(highest, source(k)) : source(k);
    any = true;
  }
  for (std::int64_t k = 0; k < s.kernel; ++k)
    if (k * s.dilation % s.stride == residue)
      axis.shift[static_cast<std::size_t>(k)] = static_cast<std::int32_t>(source(k) - lowest);
  axis.first_source = static_cast<std::int32_t>(lowest);
  axis.reach = static_cast<std::int32_t>(highest - lowest + 1);
  return axis;
}

std::vector<Axis> axes(const Side& side, bool backward) {
  if (!backward) return {forward_axis(side)};
  std::vector<Axis> all;
  for (std::int64_t residue = 0; residue < side.stride; ++residue) all.push_back(backward_axis(side, residue));
  return all;
}

Grid make_grid(const Axis& y, const Axis& x, const Tile& tile) {
  Grid g = {y.first_target, x.first_target, y.target_step, x.target_step, y.count, x.count,
            y.first_source, x.first_source, y.source_step, x.source_step, 0, 0, 0, 0, 0};
  g.halo_rows = (tile.rows - 1) * y.source_step + y.reach;
  g.halo_columns = (tile.columns - 1) * x.source_step + x.reach;
  // Whatever is larger than a slab does not fit anyway, and would not fit into 32 bits either.
  const std::int64_t plane = std::min<std::int64_t>(std::int64_t{g.halo_rows} * g.halo_columns, kSlabLines);
  const std::int64_t lines = tile.images * plane;
  g.pitch = static_cast<std::int32_t>(lines | 1);
  g.tiles_y = (g.rows + tile.rows - 1) / tile.rows;
  g.tiles_x = (g.columns + tile.columns - 1) / tile.columns;
  return g;
}

// Cuts the plan into tiles of this size; false where not one channel of a tile fits.
bool cut(Plan& plan, const Tile& tile, int number_bytes, const SlabLimit& limit) {
  plan.tile = tile;
  plan.grids.clear();
  std::int32_t pitch = 1;
  for (const Axis& y : plan.vertical)
    for (const Axis& x : plan.horizontal) {
      plan.grids.push_back(make_grid(y, x, tile));
      pitch = std::max(pitch, plan.grids.back().pitch);
    }
  const std::int32_t fitting = std::min(limit.bytes / (pitch * kBatch * number_bytes), kSlabLines / pitch) - limit.spare;
  plan.slab_channels = std::min({limit.channels, plan.group_sources(), fitting});
  if (plan.slab_channels <= 0) return false;
  if (plan.slab_channels > limit.multiple) plan.slab_channels -= plan.slab_channels % limit.multiple;
  plan.slabs = (plan.group_sources() + plan.slab_channels - 1) / plan.slab_channels;
  return true;
}

bool met(const Axis& axis) {
  return std::any_of(axis.shift.begin(), axis.shift.end(), [](std::int32_t shift) { return shift >= 0; });
}

std::int32_t longest(const std::vector<Axis>& list) {
  std::int32_t count = 0;
  for (const Axis& axis : list) count = std::max(count, axis.count);
  return count;
}

}  // namespace

bool Plan::met_by_taps(std::size_t grid) const {
  return met(vertical[grid / horizontal.size()]) && met(horizontal[grid % horizontal.size()]);
}

bool make_plan(const ConvShape& s, bool backward, int number_bytes, Plan& plan, const SlabLimit& limit) {
  if (!valid(s)) return false;
  const bool linear = one_pixel(s);
  const std::int64_t images = (s.batch + kBatch - 1) / kBatch;
  const Side vertical = {s.kernel_h, linear ? 1 : s.stride_h, s.pad_h, s.dilation_h, s.height, s.out_height()};
  const Side horizontal = {s.kernel_w, linear ? 1 : s.stride_w, s.pad_w, s.dilation_w, linear ? images : s.width,
                           linear ? images : s.out_width()};
  plan.vertical = axes(vertical, backward);
  plan.horizontal = axes(horizontal, backward);
  plan.source = linear ? features(s.batch, s.in_channels) : pictures(s.batch, s.in_channels, s.height, s.width);
  plan.target = linear ? features(s.batch, s.out_channels)
                       : pictures(s.batch, s.out_channels, s.out_height(), s.out_width());
  if (backward) std::swap(plan.source, plan.target);
  plan.groups = static_cast<std::int32_t>(s.groups);
  if (linear) return cut(plan, kRow, number_bytes, limit);
  const auto& tiles = limit.tiles_of(number_bytes);
  const std::int32_t rows = longest(plan.vertical), columns = longest(plan.horizontal);
  for (std::size_t i = 0; i + 1 < tiles.size(); ++i) {
    const Tile &tile = tiles[i], &smaller = tiles[i + 1];
    if (smaller.images == tile.images && rows <= smaller.rows && columns <= smaller.columns) continue;
    if (cut(plan, tile, number_bytes, limit) && plan.slab_channels >= std::min(limit.multiple, plan.group_sources()))
      return true;
  }
  return cut(plan, tiles.back(), number_bytes, limit);
}

namespace {

// The one axis that a tap belongs to, for each tap.
std::vector<std::size_t> axis_of_taps(const std::vector<Axis>& list) {
  std::vector<std::size_t> owner(list[0].shift.size());
  for (std::size_t a = 0; a < list.size(); ++a)
    for (std::size_t k = 0; k < owner.size(); ++k)
      if (list[a].shift[k] >= 0) owner[k] = a;
  return owner;
}

}  // namespace

void each_kept(const Plan& plan, bool backward, const ConvShape& s, const PatternView& pattern,
               const std::function<void(const Kept&)>& visit) {
  const auto owner_y = axis_of_taps(plan.vertical), owner_x = axis_of_taps(plan.horizontal);
  const std::int64_t outputs = s.out_channels / s.groups, inputs = s.in_channels / s.groups;
  for (std::int64_t row = 0; row < pattern.rows; ++row)
    for (std::int64_t i = pattern.row_start[row]; i < pattern.row_start[row + 1]; ++i) {
      const std::int64_t column = pattern.column[i], input = column / s.taps(), tap = column % s.taps();
      const auto ky = static_cast<std::size_t>(tap / s.kernel_w), kx = static_cast<std::size_t>(tap % s.kernel_w);
      const std::size_t number = owner_y[ky] * plan.horizontal.size() + owner_x[kx];
      const Grid& grid = plan.grids[number];
      const std::int64_t source = backward ? row % outputs : input;
      const std::int64_t target = backward ? row / outputs * inputs + input : row;
      const std::int64_t distance = source % plan.slab_channels * grid.pitch +
                                    plan.vertical[owner_y[ky]].shift[ky] * grid.halo_columns +
                                    plan.horizontal[owner_x[kx]].shift[kx];
      visit({i, static_cast<std::int64_t>(number) * plan.target.channels + target, source / plan.slab_channels,
             static_cast<std::uint16_t>(distance)});
    }
}

namespace {

// The entry of `start` for a kept weight: list rows in turn, cut where slabs end.
std::size_t entry(const Plan& plan, const Kept& kept) {
  return static_cast<std::size_t>(kept.row * plan.slabs + kept.slab);
}

int number_bytes(std::int64_t dtype) { return dtype == FEDSPARSE_FLOAT32 ? 4 : 2; }

}  // namespace
}  // namespace fedsparse::csr16

using namespace fedsparse;
using namespace fedsparse::csr16;

std::int64_t fedsparse_csr16_shared_bytes() { return csr16::kSlabBytes; }

std::int64_t fedsparse_csr16_start_size(const ConvShape* shape, bool backward, std::int64_t dtype) {
  Plan plan;
  if (!make_plan(*shape, backward, number_bytes(dtype), plan)) return 0;
  return static_cast<std::int64_t>(plan.grids.size()) * plan.target.channels * plan.slabs + 1;
}

int fedsparse_csr16_list(const ConvShape* shape, bool backward, std::int64_t dtype, const PatternView* pattern,
                         std::int32_t* start, std::uint16_t* offset, std::int32_t* value) {
  Plan plan;
  if (!make_plan(*shape, backward, number_bytes(dtype), plan)) return cudaErrorInvalidValue;
  const auto entries = static_cast<std::size_t>(fedsparse_csr16_start_size(shape, backward, dtype) - 1);
  std::fill(start, start + entries + 1, 0);
  each_kept(plan, backward, *shape, *pattern, [&](const Kept& kept) { ++start[entry(plan, kept) + 1]; });
  std::partial_sum(start, start + entries + 1, start);
  std::vector<std::int32_t> next(start, start + entries);
  each_kept(plan, backward, *shape, *pattern, [&](const Kept& kept) {
    const std::int32_t at = next[entry(plan, kept)]++;
    offset[at] = kept.distance;
    if (value) value[at] = static_cast<std::int32_t>(kept.value);
  });
  return cudaSuccess;
}

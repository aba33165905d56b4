// Where kept weights belong in the slabs of a plan, worked out on the device: what csr16::each_kept does on the host.
#pragma once

#include <algorithm>

#include "columns.cuh"
#include "csr16.h"

namespace fedsparse::csr16 {

// A position of the kernel along one axis: the one grid that it belongs to, its shift there, and the halo of that grid.
struct AxisTap {
  std::int32_t owner, shift, halo;
};

// Those of all positions along an axis; `taps` has room for them.
inline void list_axis(const std::vector<Axis>& axes, std::int32_t tile, AxisTap* taps) {
  for (std::size_t a = 0; a < axes.size(); ++a)
    for (std::size_t k = 0; k < axes[a].shift.size(); ++k)
      if (axes[a].shift[k] >= 0)
        taps[k] = {static_cast<std::int32_t>(a), axes[a].shift[k], (tile - 1) * axes[a].source_step + axes[a].reach};
}

// The rows of a pattern on the device, and where a kept position goes. `at` is its column.
struct KeptRows {
  std::int32_t rows, kernel_w, taps, outputs, inputs;  // outputs and inputs of a group
  std::int32_t slab_channels, grids_x, planes;
  bool backward;
  const std::int32_t* row_start;
  Columns column;
  const AxisTap *vertical, *horizontal;

  KeptRows(const Plan& plan, const ConvShape& s, bool backward_, const std::int32_t* row_start_, const Columns& column_,
           const AxisTap* vertical_, const AxisTap* horizontal_)
      : rows(static_cast<std::int32_t>(s.out_channels)), kernel_w(static_cast<std::int32_t>(s.kernel_w)),
        taps(static_cast<std::int32_t>(s.taps())), outputs(static_cast<std::int32_t>(s.out_channels / s.groups)),
        inputs(static_cast<std::int32_t>(s.in_channels / s.groups)), slab_channels(plan.slab_channels),
        grids_x(static_cast<std::int32_t>(plan.horizontal.size())), planes(plan.tile.images), backward(backward_),
        row_start(row_start_), column(column_), vertical(vertical_), horizontal(horizontal_) {}

  // Number of the grid.
  __device__ __forceinline__ std::int32_t grid(std::int32_t at) const {
    const std::int32_t tap = at % taps;
    return vertical[tap / kernel_w].owner * grids_x + horizontal[tap % kernel_w].owner;
  }
  // Source channel of a group.
  __device__ __forceinline__ std::int32_t source(std::int32_t row, std::int32_t at) const {
    return backward ? row % outputs : at / taps;
  }
  // Distance inside its slab.
  __device__ __forceinline__ std::uint16_t distance(std::int32_t row, std::int32_t at) const {
    const std::int32_t tap = at % taps;
    const AxisTap y = vertical[tap / kernel_w], x = horizontal[tap % kernel_w];
    const std::int32_t inside = y.shift * x.halo + x.shift;
    return static_cast<std::uint16_t>(source(row, at) % slab_channels * pitch(at) + inside);
  }
  // Lines of a channel in the grid of a position.
  __device__ __forceinline__ std::int32_t pitch(std::int32_t at) const {
    const std::int32_t tap = at % taps;
    return planes * vertical[tap / kernel_w].halo * horizontal[tap % kernel_w].halo | 1;
  }
};

}  // namespace fedsparse::csr16

// Where kept weights belong in the slabs of a plan, worked out on the device: what csr16::each_kept does on the host.
#pragma once

#include <algorithm>

#include "columns.cuh"
#include "csr16.h"

namespace fedsparse::csr16 {

constexpr std::int64_t kTaps = 64;  // along one axis of a kernel; a launch's arguments have room for more

// Of one axis, for each tap: the one grid that it belongs to, its shift there, and the halo of that grid.
struct AxisTaps {
  std::int32_t owner[kTaps], shift[kTaps], halo[kTaps];

  AxisTaps(const std::vector<Axis>& axes, std::int32_t tile) : owner{}, shift{}, halo{} {
    for (std::size_t a = 0; a < axes.size(); ++a)
      for (std::size_t k = 0; k < axes[a].shift.size(); ++k) {
        if (axes[a].shift[k] < 0) continue;
        owner[k] = static_cast<std::int32_t>(a);
        shift[k] = axes[a].shift[k];
        halo[k] = (tile - 1) * axes[a].source_step + axes[a].reach;
      }
  }
};

// The rows of a pattern on the device, and where a kept position goes. `at` is its column.
struct KeptRows {
  std::int32_t rows, kernel_w, taps, outputs, inputs;  // outputs and inputs of a group
  std::int32_t slab_channels, grids_x, planes;
  bool backward;
  const std::int32_t* row_start;
  Columns column;
  AxisTaps vertical, horizontal;

  KeptRows(const Plan& plan, const ConvShape& s, bool backward_, const std::int32_t* row_start_, const Columns& column_)
      : rows(static_cast<std::int32_t>(s.out_channels)), kernel_w(static_cast<std::int32_t>(s.kernel_w)),
        taps(static_cast<std::int32_t>(s.taps())), outputs(static_cast<std::int32_t>(s.out_channels / s.groups)),
        inputs(static_cast<std::int32_t>(s.in_channels / s.groups)), slab_channels(plan.slab_channels),
        grids_x(static_cast<std::int32_t>(plan.horizontal.size())), planes(plan.tile.images), backward(backward_),
        row_start(row_start_), column(column_), vertical(plan.vertical, plan.tile.rows),
        horizontal(plan.horizontal, plan.tile.columns) {}

  // What the arguments of a launch have room for.
  static bool fit(const ConvShape& s) { return s.kernel_h <= kTaps && s.kernel_w <= kTaps; }

  // Number of the grid, target channel of all, source channel of a group.
  __device__ __forceinline__ std::int32_t grid(std::int32_t at) const {
    const std::int32_t tap = at % taps;
    return vertical.owner[tap / kernel_w] * grids_x + horizontal.owner[tap % kernel_w];
  }
  __device__ __forceinline__ std::int32_t target(std::int32_t row, std::int32_t at) const {
    return backward ? row / outputs * inputs + at / taps : row;
  }
  __device__ __forceinline__ std::int32_t source(std::int32_t row, std::int32_t at) const {
    return backward ? row % outputs : at / taps;
  }
  // Distance inside its slab.
  __device__ __forceinline__ std::uint16_t distance(std::int32_t row, std::int32_t at) const {
    const std::int32_t tap = at % taps, y = tap / kernel_w, x = tap % kernel_w;
    const std::int32_t inside = vertical.shift[y] * horizontal.halo[x] + horizontal.shift[x];
    return static_cast<std::uint16_t>(source(row, at) % slab_channels * pitch(at) + inside);
  }
  // Lines of a channel in the grid of a position.
  __device__ __forceinline__ std::int32_t pitch(std::int32_t at) const {
    const std::int32_t tap = at % taps;
    return planes * vertical.halo[tap / kernel_w] * horizontal.halo[tap % kernel_w] | 1;
  }
};

}  // namespace fedsparse::csr16

// Planes, tap offsets and stride classes of a convolution, forward and backward.
#include <algorithm>

#include "program.h"

namespace fedsparse {
namespace {

// Planes a multiple of the cache's set count apart would all land in the same few sets: skew them by a line.
constexpr std::int64_t kConflictLines = 16;

Planes planes(std::int64_t channels, std::int64_t height, std::int64_t width, std::int64_t top, std::int64_t left,
              std::int64_t padded_height, std::int64_t padded_width) {
  Planes p;
  p.channels = channels;
  p.height = height;
  p.width = width;
  p.top = top;
  p.left = left;
  p.pitch = padded_width;
  p.lines = padded_height * padded_width;
  if (p.lines % kConflictLines == 0) p.lines += 1;
  return p;
}

// One axis of the backward pass.
struct BackwardAxis {
  std::vector<Grid> grids;          // rows, y0 used
  std::vector<std::int64_t> shift;  // (kernel) source position of the grid's pixel 0, border included
  std::int64_t border, padded;

  BackwardAxis(std::int64_t kernel, std::int64_t stride, std::int64_t pad, std::int64_t dilation, std::int64_t size,
               std::int64_t out_size) {
    std::int64_t lowest = 0, highest = out_size - 1;
    for (std::int64_t residue = 0; residue < stride; ++residue) {
      Grid grid;
      grid.y0 = ((residue - pad) % stride + stride) % stride;
      grid.rows = grid.y0 < size ? (size - grid.y0 + stride - 1) / stride : 0;
      grids.push_back(grid);
    }
    for (std::int64_t k = 0; k < kernel; ++k) {
      const Grid& grid = grids[static_cast<std::size_t>(k * dilation % stride)];
      const std::int64_t first = (grid.y0 + pad - k * dilation) / stride;  // exact by the choice of the grid
      shift.push_back(first);
      if (grid.rows == 0) continue;
      lowest = std::min(lowest, first);
      highest = std::max(highest, first + grid.rows - 1);
    }
    border = -lowest;
    padded = highest + 1 + border;
    for (auto& s : shift) s += border;
  }
};

}  // namespace

Geometry forward_geometry(const ConvShape& s) {
  Geometry g;
  const std::int64_t out_h = s.out_height(), out_w = s.out_width();
  const std::int64_t reach_h = (out_h - 1) * s.stride_h + (s.kernel_h - 1) * s.dilation_h + 1;
  const std::int64_t reach_w = (out_w - 1) * s.stride_w + (s.kernel_w - 1) * s.dilation_w + 1;
  g.source = planes(s.in_channels, s.height, s.width, s.pad_h, s.pad_w, std::max(reach_h, s.pad_h + s.height),
                    std::max(reach_w, s.pad_w + s.width));
  g.target = planes(s.out_channels, out_h, out_w, 0, 0, out_h, out_w);
  g.grids.push_back({out_h, out_w, 0, 0});
  for (std::int64_t ky = 0; ky < s.kernel_h; ++ky)
    for (std::int64_t kx = 0; kx < s.kernel_w; ++kx) {
      g.tap_line.push_back(ky * s.dilation_h * g.source.pitch + kx * s.dilation_w);
      g.tap_class.push_back(0);
    }
  g.source_step_y = s.stride_h;
  g.source_step_x = s.stride_w;
  g.target_step_y = g.target_step_x = 1;
  return g;
}

Geometry backward_geometry(const ConvShape& s) {
  Geometry g;
  const std::int64_t out_h = s.out_height(), out_w = s.out_width();
  const BackwardAxis y(s.kernel_h, s.stride_h, s.pad_h, s.dilation_h, s.height, out_h);
  const BackwardAxis x(s.kernel_w, s.stride_w, s.pad_w, s.dilation_w, s.width, out_w);
  g.source = planes(s.out_channels, out_h, out_w, y.border, x.border, y.padded, x.padded);
  g.target = planes(s.in_channels, s.height, s.width, 0, 0, s.height, s.width);
  for (const Grid& row : y.grids)
    for (const Grid& column : x.grids) g.grids.push_back({row.rows, column.rows, row.y0, column.y0});
  for (std::int64_t ky = 0; ky < s.kernel_h; ++ky)
    for (std::int64_t kx = 0; kx < s.kernel_w; ++kx) {
      g.tap_line.push_back(y.shift[static_cast<std::size_t>(ky)] * g.source.pitch + x.shift[static_cast<std::size_t>(kx)]);
      g.tap_class.push_back(static_cast<std::int32_t>(ky * s.dilation_h % s.stride_h * s.stride_w +
                                                      kx * s.dilation_w % s.stride_w));
    }
  g.source_step_y = g.source_step_x = 1;
  g.target_step_y = s.stride_h;
  g.target_step_x = s.stride_w;
  return g;
}

}  // namespace fedsparse

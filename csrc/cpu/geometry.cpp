// Lines, tap offsets and stride classes of a convolution, forward and backward.
#include <algorithm>

#include "program.h"

namespace fedsparse {
namespace {

Lines pictures(const ConvShape& s, std::int64_t channels, std::int64_t height, std::int64_t width, int lanes) {
  Lines l;
  l.groups = (s.batch + lanes - 1) / lanes;
  l.channels = channels;
  l.height = height;
  l.width = width;
  l.column = lanes;
  l.row = width * lanes;
  l.channel = height * l.row;
  l.group = channels * l.channel;
  return l;
}

// One axis of either direction: the grids of the stride classes, and for each tap its class and source pixel.
struct Axis {
  std::vector<Grid> grids;          // rows, y0 used
  std::vector<std::int64_t> shift;  // (kernel) source pixel of the grid's pixel 0, less `first`
  std::vector<std::int64_t> residue;
  std::int64_t first = 0, reach = 1;

  // Which pixel of a grid reads outside a source of `size` pixels under a tap, source pixels being walked one by one.
  int edge(std::size_t tap, std::int64_t size) const {
    const std::int64_t start = first + shift[tap], end = start + grids[static_cast<std::size_t>(residue[tap])].rows;
    return start < 0 ? Edge::kFirst : end > size ? Edge::kLast : Edge::kNone;
  }

  // Whether every grid is one tile that reads at most one pixel outside under any tap.
  bool fits(std::int64_t size, std::int64_t tile) const {
    for (std::size_t tap = 0; tap < shift.size(); ++tap) {
      const std::int64_t start = first + shift[tap], end = start + tile;
      if (grids[static_cast<std::size_t>(residue[tap])].rows != tile) return false;
      if (start < -1 || end > size + 1 || (start < 0 && end > size)) return false;
    }
    return true;
  }

  // Makes the whole source of `size` pixels the reach: no border is copied with it.
  void clip(std::int64_t size) {
    for (auto& s : shift) s += first;
    first = 0;
    reach = size;
  }

  static Axis forward(std::int64_t kernel, std::int64_t pad, std::int64_t dilation, std::int64_t out_size) {
    Axis axis;
    axis.grids.push_back({out_size, 0, 0, 0});
    for (std::int64_t k = 0; k < kernel; ++k) {
      axis.shift.push_back(k * dilation);
      axis.residue.push_back(0);
    }
    axis.first = -pad;
    axis.reach = (kernel - 1) * dilation + 1;
    return axis;
  }

  static Axis backward(std::int64_t kernel, std::int64_t stride, std::int64_t pad, std::int64_t dilation, std::int64_t size) {
    Axis axis;
    for (std::int64_t residue = 0; residue < stride; ++residue) {
      Grid grid;
      grid.y0 = ((residue - pad) % stride + stride) % stride;
      grid.rows = grid.y0 < size ? (size - grid.y0 + stride - 1) / stride : 0;
      axis.grids.push_back(grid);
    }
    std::int64_t lowest = 0, highest = 0;
    bool any = false;
    for (std::int64_t k = 0; k < kernel; ++k) {
      axis.residue.push_back(k * dilation % stride);
      const Grid& grid = axis.grids[static_cast<std::size_t>(axis.residue.back())];
      axis.shift.push_back((grid.y0 + pad - k * dilation) / stride);  // exact by the choice of the grid
      if (grid.rows == 0) continue;                                   // no pixel sees this tap
      lowest = any ? std::min(lowest, axis.shift.back()) : axis.shift.back();
      highest = any ? std::max(highest, axis.shift.back()) : axis.shift.back();
      any = true;
    }
    for (auto& s : axis.shift) s -= lowest;
    axis.first = lowest;
    axis.reach = highest - lowest + 1;
    return axis;
  }

  std::int64_t longest() const {
    std::int64_t rows = 0;
    for (const Grid& grid : grids) rows = std::max(rows, grid.rows);
    return rows;
  }
};

// Half of a core's L2 cache, or a little less: what else a tile reads and writes takes the rest.
constexpr std::int64_t kHaloBytes = 320 * 1024;

// A tile of strips is twice as high as one in registers where it spans the picture then, or its halo stays small.
std::int64_t rows_of_strips(const Geometry& g, const Axis& y, const Axis& x, const GatherKernels& kernels) {
  const std::int64_t rows = 2 * kernels.tile_rows;
  if (y.longest() <= kernels.tile_rows) return kernels.tile_rows;
  if (y.longest() <= rows) return rows;
  const std::int64_t high = (rows - 1) * g.source_step_y + y.reach;
  const std::int64_t wide = (kernels.tile_columns - 1) * g.source_step_x + x.reach;
  const std::int64_t line = g.source.column * static_cast<std::int64_t>(sizeof(float));
  return g.source.channels * high * wide * line <= kHaloBytes ? rows : kernels.tile_rows;
}

void place(Geometry& g, Axis y, Axis x, const GatherKernels& kernels, bool strips) {
  const std::int64_t tile_rows = strips ? rows_of_strips(g, y, x, kernels) : kernels.tile_rows;
  const std::int64_t tile_columns = kernels.tile_columns;
  g.tile_rows = tile_rows;
  for (const Grid& row : y.grids)
    for (const Grid& column : x.grids) g.grids.push_back({row.rows, column.rows, row.y0, column.y0});
  const bool walks = g.source_step_y == 1 && g.source_step_x == 1 && y.shift.size() * x.shift.size() > 1;
  g.trimmed = walks && y.fits(g.source.height, tile_rows) && x.fits(g.source.width, tile_columns);
  if (g.trimmed) {
    for (std::size_t ky = 0; ky < y.shift.size(); ++ky)
      for (std::size_t kx = 0; kx < x.shift.size(); ++kx)
        g.tap_edge.push_back(Edge::of(y.edge(ky, g.source.height), x.edge(kx, g.source.width)));
    y.clip(g.source.height);
    x.clip(g.source.width);
    g.halo.rows = y.reach;
    g.halo.columns = x.reach;
  } else {
    g.halo.rows = (std::min(tile_rows, y.longest()) - 1) * g.source_step_y + y.reach;
    g.halo.columns = (std::min(tile_columns, x.longest()) - 1) * g.source_step_x + x.reach;
  }
  g.halo.first_y = y.first;
  g.halo.first_x = x.first;
  for (std::size_t ky = 0; ky < y.shift.size(); ++ky)
    for (std::size_t kx = 0; kx < x.shift.size(); ++kx) {
      g.tap_line.push_back(static_cast<std::int32_t>(y.shift[ky] * g.halo.columns + x.shift[kx]));
      g.tap_class.push_back(static_cast<std::int32_t>(y.residue[ky] * static_cast<std::int64_t>(x.grids.size()) + x.residue[kx]));
    }
}

}  // namespace

Geometry forward_geometry(const Problem& problem, bool strips) {
  const ConvShape& s = problem.shape;
  const int lanes = problem.kernels->lanes;
  Geometry g;
  g.source = pictures(s, s.in_channels, s.height, s.width, lanes);
  g.target = pictures(s, s.out_channels, s.out_height(), s.out_width(), lanes);
  g.source_step_y = s.stride_h;
  g.source_step_x = s.stride_w;
  g.target_step_y = g.target_step_x = 1;
  place(g, Axis::forward(s.kernel_h, s.pad_h, s.dilation_h, g.target.height),
        Axis::forward(s.kernel_w, s.pad_w, s.dilation_w, g.target.width), problem.kernels->gather, strips);
  return g;
}

Geometry backward_geometry(const Problem& problem, bool strips) {
  const ConvShape& s = problem.shape;
  Geometry g = forward_geometry(problem, strips);
  std::swap(g.source, g.target);
  g.grids.clear();
  g.tap_line.clear();
  g.tap_class.clear();
  g.tap_edge.clear();
  std::swap(g.source_step_y, g.target_step_y);
  std::swap(g.source_step_x, g.target_step_x);
  place(g, Axis::backward(s.kernel_h, s.stride_h, s.pad_h, s.dilation_h, g.target.height),
        Axis::backward(s.kernel_w, s.stride_w, s.pad_w, s.dilation_w, g.target.width), problem.kernels->gather, strips);
  return g;
}

}  // namespace fedsparse

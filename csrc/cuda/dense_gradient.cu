// How a dense gradient is cut for the device, and the gradient itself for those who want all of it.
#include "dense_gradient.cuh"

#include "../cpu/arena.h"

namespace fedsparse::dense {
namespace {

// Sums that lie in memory as they were cut.
struct Leave {
  float* sums;

  __device__ bool wanted() const { return true; }
  template <typename Sums>
  __device__ __forceinline__ void operator()(const Shape& s, const Area& area, const Sums& sums_of) const {
    float* const mine = sums + s.numbers() * blockIdx.x;
    for (auto row = static_cast<std::int32_t>(threadIdx.x / 32); row < area.rows; row += kWarps)
      for (auto column = static_cast<std::int32_t>(threadIdx.x % 32); column < area.columns; column += 32)
        mine[row * s.words * kWord + column] = sums_of(row, column);
  }
};

struct Whole {
  float* gradient;

  __device__ bool wanted() const { return true; }
  template <typename Sums>
  __device__ __forceinline__ void operator()(const Shape& s, const Area& area, const Sums& sums_of) const {
    const std::int64_t first = (std::int64_t{area.group} * s.group_rows + area.row) * s.columns + area.column;
    for (auto row = static_cast<std::int32_t>(threadIdx.x / 32); row < area.rows; row += kWarps)
      for (auto column = static_cast<std::int32_t>(threadIdx.x % 32); column < area.columns; column += 32)
        gradient[first + std::int64_t{row} * s.columns + column] = sums_of(row, column);
  }
};

// Slabs of no more columns than a block has sums for, unless a single channel has.
csr16::SlabLimit limit_of(std::int64_t taps) {
  csr16::SlabLimit limit = block::kSlab;
  limit.channels = static_cast<std::int32_t>(std::max<std::int64_t>(kLines / taps, 1));
  limit.multiple = std::min(limit.channels, limit.multiple);
  return limit;
}

}  // namespace

Shape::Shape(const csr16::Plan& plan, const ConvShape& s)
    : problem(plan, plan.grids[0]), taps(static_cast<std::int32_t>(s.taps())),
      kernel_w(static_cast<std::int32_t>(s.kernel_w)),
      step_y(static_cast<std::int32_t>(s.dilation_h * problem.grid.halo_columns)),
      step_x(static_cast<std::int32_t>(s.dilation_w)), group_rows(plan.group_targets()),
      columns(plan.group_sources() * taps), taken(group_rows > kStrip ? 2 : 1),
      row_tiles((group_rows + tile_rows() - 1) / tile_rows()), slab_columns(plan.slab_channels * taps),
      passes((slab_columns + kLines - 1) / kLines), tiles(plan.groups * row_tiles * plan.slabs * passes),
      words((std::min(slab_columns, kLines) + kWord - 1) / kWord), places(static_cast<std::int32_t>(problem.tiles())) {}

std::optional<Shape> cut(const ConvShape& s, std::int64_t dtype) {
  constexpr std::int64_t kSide = std::int64_t{1} << 27, kLimit = std::int64_t{1} << 31;
  csr16::Plan plan;
  if (s.batch >= kSide || s.kernel_h <= 0 || s.kernel_w <= 0 || s.kernel_h >= kSide || s.kernel_w >= kSide) return {};
  if (!csr16::make_plan(s, false, block::is_wide(dtype) ? 4 : 2, plan, limit_of(s.taps()))) return {};
  const double size = static_cast<double>(s.out_channels) * plan.group_sources() * static_cast<double>(s.taps());
  if (size >= static_cast<double>(kLimit) || csr16::Problem(plan, plan.grids[0]).tiles() >= kLimit) return {};
  return Shape(plan, s);
}

int leave(const Shape& shape, std::int64_t dtype, bool tf32, const void* grad_y, const void* x, float* sums,
          void* stream) {
  return compute(shape, dtype, tf32, grad_y, x, 1, Leave{sums}, stream);
}

}  // namespace fedsparse::dense

using namespace fedsparse;

std::int64_t fedsparse_cuda_dense_gradient_size(const ConvShape* shape, std::int64_t dtype) {
  const auto s = dense::cut(*shape, dtype);
  if (!s) return 0;
  Arena arena;
  arena.take<float>(s->left_floats());
  return std::max<std::int64_t>(arena.used(), Arena::kAlign);
}

int fedsparse_cuda_dense_gradient(const ConvShape* shape, std::int64_t dtype, bool tf32, const void* grad_y,
                                  const void* x, float* gradient, void* workspace, void* stream) {
  const auto s = dense::cut(*shape, dtype);
  if (!s) return cudaErrorInvalidValue;
  if (!s->left()) return dense::compute(*s, dtype, tf32, grad_y, x, 1, dense::Whole{gradient}, stream);
  float* const sums = static_cast<float*>(workspace);
  const int status = dense::leave(*s, dtype, tf32, grad_y, x, sums, stream);
  return status == cudaSuccess ? dense::join(*s, sums, 1, dense::Whole{gradient}, stream) : status;
}

// How a dense gradient is cut for the device, and the gradient itself for those who want all of it.
#include "dense_gradient.cuh"

#include "../cpu/arena.h"

namespace fedsparse::dense {
namespace {

struct Whole {
  float* gradient;

  __device__ bool wanted() const { return true; }
  __device__ std::int32_t tile(const Shape&, std::int32_t number) const { return number; }
  __device__ void operator()(const Shape& s, const Tile& tile, const Quad& sums) const {
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const std::int32_t at = threadIdx.x + i * kThreads;
      const std::int32_t row = tile.row + at / kTile, column = tile.column + at % kTile;
      if (row < s.group_rows && column < s.columns)
        gradient[(std::int64_t{tile.group} * s.group_rows + row) * s.columns + column] = sums.number[i];
    }
  }
};

__global__ void __launch_bounds__(kThreads) clear_words_kernel(std::uint32_t* words, std::int64_t n) {
  const std::int64_t stride = static_cast<std::int64_t>(gridDim.x) * blockDim.x;
  for (std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += stride)
    words[i] = 0;
}

template <typename T>
Operands<T> carve(const Shape& s, const void* grad_y, const void* x, Arena& arena) {
  const std::int64_t tickets = s.runs > 1 ? s.tiles : 0;
  return {static_cast<const T*>(grad_y), static_cast<const T*>(x), arena.take<float>(s.partial_floats()),
          arena.take<std::uint32_t>(tickets)};
}

std::int32_t narrow_size(std::int64_t n) { return static_cast<std::int32_t>(n); }

}  // namespace

bool fits(const ConvShape& s) {
  constexpr std::int64_t kSide = std::int64_t{1} << 27, kLimit = std::int64_t{1} << 31;
  const std::int64_t sides[] = {s.in_channels, s.height,   s.width,      s.out_channels, s.kernel_h, s.kernel_w,
                                s.stride_h,    s.stride_w, s.dilation_h, s.dilation_w,   s.groups};
  for (const std::int64_t side : sides)
    if (side <= 0 || side >= kSide) return false;
  if (s.batch < 0 || s.pad_h < 0 || s.pad_w < 0 || s.out_height() <= 0 || s.out_width() <= 0) return false;
  if (s.in_channels % s.groups || s.out_channels % s.groups) return false;
  // A last step may begin kDepth below the limit and end above it.
  const double depth = static_cast<double>(s.batch) * s.out_height() * s.out_width() + kDepth;
  const double size = static_cast<double>(s.out_channels) * (s.in_channels / s.groups) * s.taps();
  const double image = static_cast<double>(s.in_channels) * s.height * s.width;
  return depth < kLimit && size < kLimit && image < kLimit && s.height + 2 * s.pad_h < kSide &&
         s.width + 2 * s.pad_w < kSide;
}

Shape::Shape(const ConvShape& s)
    : in_channels(narrow_size(s.in_channels)), height(narrow_size(s.height)), width(narrow_size(s.width)),
      out_channels(narrow_size(s.out_channels)), out_width(narrow_size(s.out_width())),
      kernel_w(narrow_size(s.kernel_w)), stride_h(narrow_size(s.stride_h)), stride_w(narrow_size(s.stride_w)),
      pad_h(narrow_size(s.pad_h)), pad_w(narrow_size(s.pad_w)), dilation_h(narrow_size(s.dilation_h)),
      dilation_w(narrow_size(s.dilation_w)), pixels(narrow_size(s.out_height() * s.out_width())),
      depth(narrow_size(s.batch * pixels)), group_rows(narrow_size(s.out_channels / s.groups)),
      group_inputs(narrow_size(s.in_channels / s.groups)), taps(narrow_size(s.taps())), columns(group_inputs * taps),
      row_tiles((group_rows + kTile - 1) / kTile), column_tiles((columns + kTile - 1) / kTile),
      tiles(narrow_size(s.groups * row_tiles * column_tiles)) {
  const std::int64_t wanted = (kFullDevice + tiles - 1) / tiles, longest = std::max<std::int64_t>(depth / kShortest, 1);
  const std::int64_t parts = std::min(wanted, longest);
  run_depth = narrow_size((depth + parts * kDepth - 1) / (parts * kDepth) * kDepth);
  runs = run_depth == 0 ? 1 : (depth + run_depth - 1) / run_depth;
}

}  // namespace fedsparse::dense

using namespace fedsparse;

std::int64_t fedsparse_cuda_dense_gradient_size(const ConvShape* shape) {
  if (!dense::fits(*shape)) return 0;
  Arena arena;
  dense::carve<float>(dense::Shape(*shape), nullptr, nullptr, arena);
  return std::max<std::int64_t>(arena.used(), Arena::kAlign);
}

int fedsparse_cuda_dense_gradient(const ConvShape* shape, std::int64_t dtype, const void* grad_y, const void* x,
                                  float* gradient, void* workspace, void* stream) {
  if (!dense::fits(*shape)) return cudaErrorInvalidValue;
  return with_dtype(dtype, [&](auto* number) -> int {
    using T = std::remove_pointer_t<decltype(number)>;
    const dense::Shape s(*shape);
    Arena arena(workspace);
    const dense::Operands<T> operands = dense::carve<T>(s, grad_y, x, arena);
    if (s.runs > 1) {
      const int status = FEDSPARSE_LAUNCH(dense::clear_words_kernel, blocks_for(s.tiles), kThreads, 0, stream,
                                          operands.arrived, std::int64_t{s.tiles});
      if (status != cudaSuccess) return status;
    }
    return dense::launch(s, operands, s.tiles, dense::Whole{gradient}, stream);
  });
}

// A pattern changed in place on the device: rows without the dropped values and with the grown positions, and what
// belongs to each value moved along.
#include "collective.cuh"
#include "columns.cuh"
#include "cuda_api.h"

namespace fedsparse::rebuild {
namespace {

constexpr int kWarps = kThreads / 32;

struct Exchange {
  std::int64_t rows, columns;
  const std::int32_t* row_start;
  Columns column;
  const std::int64_t *dropped, *grown;
  std::int64_t drops, grows;
  std::int32_t* new_start;
  void* new_column;
  std::int32_t* places;
};

__global__ void __launch_bounds__(kThreads) start_rows_kernel(const Exchange e) {
  const std::int64_t stride = static_cast<std::int64_t>(gridDim.x) * blockDim.x;
  const std::int64_t first = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  for (std::int64_t row = first; row <= e.rows; row += stride) {
    const std::int64_t more = first_from(e.grown, 0, e.grows, row * e.columns);
    const std::int64_t fewer = first_from(e.dropped, 0, e.drops, e.row_start[row]);
    e.new_start[row] = e.row_start[row] + static_cast<std::int32_t>(more - fewer);
  }
}

// A warp merges a row: every entry finds its own place by what is dropped and grown before it.
template <typename C>
__global__ void __launch_bounds__(kThreads) merge_rows_kernel(const Exchange e) {
  const C* column = static_cast<const C*>(e.column.data);
  C* out = static_cast<C*>(e.new_column);
  const std::int64_t stride = static_cast<std::int64_t>(gridDim.x) * kWarps;
  const std::int64_t first = static_cast<std::int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
  for (std::int64_t row = first; row < e.rows; row += stride) {
    const std::int64_t begin = e.row_start[row], end = e.row_start[row + 1], base = row * e.columns;
    const std::int64_t drop = first_from(e.dropped, 0, e.drops, begin);
    const std::int64_t drop_end = first_from(e.dropped, drop, e.drops, end);
    const std::int64_t grow = first_from(e.grown, 0, e.grows, base);
    const std::int64_t grow_end = first_from(e.grown, grow, e.grows, base + e.columns);
    const std::int64_t start = e.new_start[row];
    for (std::int64_t i = begin + threadIdx.x % 32; i < end; i += 32) {
      const std::int64_t d = first_from(e.dropped, drop, drop_end, i);
      if (d < drop_end && e.dropped[d] == i) continue;
      const std::int64_t g = first_from(e.grown, grow, grow_end, base + column[i]);
      const std::int64_t to = start + (i - begin) - (d - drop) + (g - grow);
      out[to] = column[i];
      e.places[to] = static_cast<std::int32_t>(i);
    }
    for (std::int64_t g = grow + threadIdx.x % 32; g < grow_end; g += 32) {
      const std::int64_t at = e.grown[g] - base, i = first_from(column, begin, end, at);
      const std::int64_t d = first_from(e.dropped, drop, drop_end, i);
      const std::int64_t to = start + (i - begin) - (d - drop) + (g - grow);
      out[to] = static_cast<C>(at);
      e.places[to] = -1;
    }
  }
}

constexpr int kArrays = 4;  // moved by one launch: places are read once for them

struct Arrays {
  const std::uint32_t* from[kArrays];
  std::uint32_t* to[kArrays];
  std::uint32_t fill[kArrays];
};

__global__ void __launch_bounds__(kThreads)
    carry_kernel(const std::int32_t* __restrict__ places, std::int64_t count, const Arrays arrays) {
  const std::int64_t stride = static_cast<std::int64_t>(gridDim.x) * blockDim.x;
  for (std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += stride) {
    const std::int32_t place = places[i];
#pragma unroll
    for (int a = 0; a < kArrays; ++a)
      if (arrays.to[a]) arrays.to[a][i] = place < 0 ? arrays.fill[a] : arrays.from[a][place];
  }
}

}  // namespace
}  // namespace fedsparse::rebuild

using namespace fedsparse;

int fedsparse_cuda_exchange(std::int64_t rows, std::int64_t columns, const std::int32_t* row_start, const void* column,
                            bool wide, const std::int64_t* dropped, std::int64_t drops, const std::int64_t* grown,
                            std::int64_t grows, std::int32_t* new_row_start, void* new_column, std::int32_t* places,
                            void* stream) {
  const rebuild::Exchange e = {rows,  columns, row_start,     {column, wide}, dropped, grown,
                               drops, grows,   new_row_start, new_column,     places};
  const int status = FEDSPARSE_LAUNCH(rebuild::start_rows_kernel, blocks_for(rows + 1), kThreads, 0, stream, e);
  if (status != cudaSuccess) return status;
  const auto kernel =
      wide ? &rebuild::merge_rows_kernel<std::int32_t> : &rebuild::merge_rows_kernel<std::uint16_t>;
  return FEDSPARSE_LAUNCH(kernel, blocks_for(rows * 32), kThreads, 0, stream, e);
}

int fedsparse_cuda_carry_words(const std::int32_t* places, std::int64_t count, std::int64_t arrays,
                               const void* const* from, void* const* to, const std::uint32_t* fill, void* stream) {
  if (count == 0) return cudaSuccess;
  for (std::int64_t first = 0; first < arrays; first += rebuild::kArrays) {
    rebuild::Arrays some = {};
    for (std::int64_t a = first; a < std::min<std::int64_t>(first + rebuild::kArrays, arrays); ++a) {
      some.from[a - first] = static_cast<const std::uint32_t*>(from[a]);
      some.to[a - first] = static_cast<std::uint32_t*>(to[a]);
      some.fill[a - first] = fill[a];
    }
    const int status =
        FEDSPARSE_LAUNCH(rebuild::carry_kernel, blocks_for(count), kThreads, 0, stream, places, count, some);
    if (status != cudaSuccess) return status;
  }
  return cudaSuccess;
}

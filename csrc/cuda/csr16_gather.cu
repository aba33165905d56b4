// Forward and gradient of x of an unstructured product: both gather lines at the distances of a row's taps.
//
// A warp computes a few rows for the pixels of one tile. Its accumulators stay in registers while the slabs of the
// source pass through shared memory; each tap costs one broadcast of (distance, weight) and, for each pixel of a
// thread, one load of four samples and four multiply-adds.
#include "csr16_slab.cuh"
#include "cuda_api.h"

namespace fedsparse::csr16 {
namespace {

constexpr std::int64_t kFullDevice = 264;  // blocks that keep 132 SMs busy, two each

template <typename T>
struct Gather {
  Problem problem;
  std::int32_t row_blocks;  // blocks for the rows of a group
  const std::int32_t* start;
  const std::uint16_t* offset;
  const std::int32_t* value;  // null: the list has the order of the values
  const T* values;
  const T* input;
  const T* bias;  // null: none
  T* output;
};

struct alignas(8) Tap {
  std::int32_t distance;  // in numbers
  float weight;
};

// Adds the taps [first, last) of one row. The warp stages 32 at a time in `taps`. kUnroll: taps whose loads are under
// way together, as far as registers allow.
template <typename T, int kUnroll, int kPixels>
__device__ __forceinline__ void accumulate(Quad (&sum)[kPixels], const Gather<T>& g, std::int32_t first,
                                           std::int32_t last, const T* slab, const Steps& steps, Tap* taps) {
  const auto lane = static_cast<std::int32_t>(threadIdx.x % 32);
  for (std::int32_t base = first; base < last; base += 32) {
    const std::int32_t count = min(32, last - base);
    __syncwarp();  // the taps before have been read
    if (lane < count) {
      const std::int32_t at = base + lane;
      taps[lane] = {g.offset[at] * kBatch, widen(g.values[g.value ? g.value[at] : at])};
    }
    __syncwarp();
#pragma unroll kUnroll
    for (std::int32_t t = 0; t < count; ++t) {
      const Tap tap = taps[t];
#pragma unroll
      for (int p = 0; p < kPixels; ++p) {
        const Quad x = load4(slab + tap.distance + steps[p]);
#pragma unroll
        for (int i = 0; i < 4; ++i) sum[p].number[i] += tap.weight * x.number[i];
      }
    }
  }
}

template <typename T, int kPixels>
__device__ __forceinline__ void store(const Quad (&sum)[kPixels], const Gather<T>& g, const Place& place,
                                      const Share& share, std::int32_t channel) {
  const float bias = g.bias ? widen(g.bias[channel]) : 0.0f;
  T* output = g.output + channel * g.problem.target.channel * kBatch;
#pragma unroll
  for (int p = 0; p < kPixels; ++p) {
    const std::int64_t at = target_pixel(g.problem, place, share, p);
    if (at < 0) continue;
    Quad y = sum[p];
#pragma unroll
    for (int i = 0; i < 4; ++i) y.number[i] += bias;
    store4(output + at, y);
  }
}

template <typename T, int kPixels, int kRows>
__global__ void __launch_bounds__(kThreads, 2) gather_kernel(const Gather<T> g) {
  FEDSPARSE_SHARED(Tap, taps, kThreads);
  FEDSPARSE_DYNAMIC_SHARED(T, slab);
  const Problem& problem = g.problem;
  const std::int32_t warp = threadIdx.x / 32, all_rows = problem.groups * g.row_blocks;
  const std::int32_t group = blockIdx.x % all_rows / g.row_blocks;
  const std::int32_t row = (blockIdx.x % g.row_blocks * kWarps + warp) * kRows;  // of the group
  const std::int32_t channel = group * problem.group_targets() + row;
  const std::int32_t rows = min(kRows, problem.group_targets() - row);
  const Place place = place_by_tile(problem, blockIdx.x / all_rows);
  const Share share(problem.tile);
  const Steps steps(share, problem);

  Quad sum[kRows][kPixels] = {};
  for (std::int32_t s = 0; s < problem.slabs; ++s) {
    if (s > 0) __syncthreads();  // the slab before has been read
    load_slab(slab, g.input, problem, place, group * problem.group_sources() + s * problem.slab_channels,
              channels_of(problem, s));
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      if (r >= rows) break;
      const std::int32_t* start = g.start + std::int64_t{channel + r} * problem.slabs + s;
      accumulate<T, kRows == 1 ? 4 : 1>(sum[r], g, start[0], start[1], slab + steps.first, steps, taps + warp * 32);
    }
  }
#pragma unroll
  for (int r = 0; r < kRows; ++r)
    if (r < rows) store<T>(sum[r], g, place, share, channel + r);
}

template <typename T, int kPixels, int kRows>
int launch_rows(Gather<T> g, std::int64_t slab_bytes, void* stream) {
  constexpr std::int32_t kBlock = kWarps * kRows;
  g.row_blocks = (g.problem.group_targets() + kBlock - 1) / kBlock;
  return launch(&gather_kernel<T, kPixels, kRows>, g.problem.tiles() * g.problem.groups * g.row_blocks, slab_bytes, g,
                stream);
}

// More rows to a warp read the slab less often, fewer make more blocks. The sums are the same either way.
template <typename T, int kPixels>
int launch_pixels(const Gather<T>& g, std::int64_t slab_bytes, void* stream) {
  const std::int64_t blocks = g.problem.tiles() * g.problem.groups * ((g.problem.group_targets() + 31) / 32);
  if (blocks >= kFullDevice) return launch_rows<T, kPixels, 4>(g, slab_bytes, stream);
  return launch_rows<T, kPixels, 1>(g, slab_bytes, stream);
}

// What both directions are given.
struct Operands {
  const std::int32_t* start;
  const std::uint16_t* offset;
  const std::int32_t* value;
  const void *values, *input, *bias;
  void* output;
};

template <typename T>
int gather(const ConvShape& shape, bool backward, const Operands& o, void* stream) {
  Plan plan;
  if (!make_plan(shape, backward, sizeof(T), plan)) return cudaErrorInvalidValue;
  const std::int32_t* start = o.start;
  for (std::size_t number = 0; number < plan.grids.size(); ++number) {
    const Grid& grid = plan.grids[number];
    Gather<T> g = {Problem(plan, grid), 0, start, o.offset, o.value, static_cast<const T*>(o.values),
                   static_cast<const T*>(o.input), static_cast<const T*>(o.bias), static_cast<T*>(o.output)};
    start += std::int64_t{plan.target.channels} * plan.slabs;
    if (g.problem.tiles() == 0) continue;
    if (!plan.met_by_taps(number)) g.problem.slabs = 0;  // zeros, for which nothing has to be read
    const std::int64_t bytes = plan.slab_bytes(grid, sizeof(T));
    const int status = with_pixels(plan.tile, [&](auto pixels) { return launch_pixels<T, pixels>(g, bytes, stream); });
    if (status != cudaSuccess) return status;
  }
  return cudaSuccess;
}

}  // namespace
}  // namespace fedsparse::csr16

using namespace fedsparse;

int fedsparse_cuda_csr16_forward(const ConvShape* shape, std::int64_t dtype, const std::int32_t* start,
                                 const std::uint16_t* offset, const void* values, const void* x, const void* bias,
                                 void* y, void* stream) {
  return with_dtype(dtype, [&](auto* number) {
    using T = std::remove_pointer_t<decltype(number)>;
    return csr16::gather<T>(*shape, false, {start, offset, nullptr, values, x, bias, y}, stream);
  });
}

int fedsparse_cuda_csr16_grad_x(const ConvShape* shape, std::int64_t dtype, const std::int32_t* start,
                                const std::uint16_t* offset, const std::int32_t* value, const void* values,
                                const void* grad_y, void* grad_x, void* stream) {
  return with_dtype(dtype, [&](auto* number) {
    using T = std::remove_pointer_t<decltype(number)>;
    return csr16::gather<T>(*shape, true, {start, offset, value, values, grad_y, nullptr, grad_x}, stream);
  });
}

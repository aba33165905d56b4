// Forward and gradient of x of an unstructured product: both gather lines at the distances of a row's taps.
//
// A warp computes a few rows for the pixels of one tile. Its accumulators stay in registers while the slabs of the
// source pass through shared memory; each tap costs one broadcast of (distance, weight) and, for each pixel of a
// thread, one load of four samples and four multiply-adds. All residues of a strided gradient are one launch, and blocks
// behind those that multiply add up what a weight gradient has left.
#include "csr16_product.h"
#include "csr16_slab.cuh"

namespace fedsparse::csr16 {
namespace {

constexpr std::int64_t kFullDevice = 264;  // blocks that keep 132 SMs busy, two each

template <typename T>
struct Gather {
  Grids grids;
  std::int32_t groups, row_blocks;  // blocks for the rows of a group
  std::uint32_t multiplying;        // blocks; others add
  Sums beside;
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
__device__ __forceinline__ void store(const Quad (&sum)[kPixels], const Gather<T>& g, const Problem& problem,
                                      const Place& place, const Share& share, std::int32_t channel) {
  const float bias = g.bias ? widen(g.bias[channel]) : 0.0f;
  T* output = g.output + channel * problem.target.channel * kBatch;
#pragma unroll
  for (int p = 0; p < kPixels; ++p) {
    const std::int64_t at = target_pixel(problem, place, share, p);
    if (at < 0) continue;
    Quad y = sum[p];
#pragma unroll
    for (int i = 0; i < 4; ++i) y.number[i] += bias;
    store4(output + at, y);
  }
}

template <typename T, int kPixels, int kRows>
__global__ void __launch_bounds__(kThreads, 2) gather_kernel(const __grid_constant__ Gather<T> g) {
  FEDSPARSE_SHARED(Tap, taps, kThreads);
  FEDSPARSE_DYNAMIC_SHARED(T, slab);
  if (blockIdx.x >= g.multiplying) return add<T>(g.beside, blockIdx.x - g.multiplying, gridDim.x - g.multiplying);
  const std::int32_t warp = threadIdx.x / 32, all_rows = g.groups * g.row_blocks;
  const std::int64_t tile = blockIdx.x / all_rows;
  const int which = g.grids.of(tile);
  const Problem& problem = g.grids.problem[which];
  const std::int32_t group = blockIdx.x % all_rows / g.row_blocks;
  const std::int32_t row = (blockIdx.x % g.row_blocks * kWarps + warp) * kRows;  // of the group
  const std::int32_t channel = group * problem.group_targets() + row;
  const std::int32_t rows = min(kRows, problem.group_targets() - row);
  const Place place = place_by_tile(problem, tile - g.grids.before(which));
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
      const std::int32_t* start = g.grids.start[which] + std::int64_t{channel + r} * problem.slabs + s;
      accumulate<T, kRows == 1 ? 4 : 1>(sum[r], g, start[0], start[1], slab + steps.first, steps, taps + warp * 32);
    }
  }
#pragma unroll
  for (int r = 0; r < kRows; ++r)
    if (r < rows) store<T>(sum[r], g, problem, place, share, channel + r);
}

template <typename T, int kPixels, int kRows>
int launch_rows(Gather<T> g, const Plan& plan, void* stream) {
  constexpr std::int32_t kBlock = kWarps * kRows;
  g.row_blocks = (plan.group_targets() + kBlock - 1) / kBlock;
  const std::int64_t multiplying = g.grids.tiles() * g.groups * g.row_blocks;
  g.multiplying = static_cast<std::uint32_t>(multiplying);  // a launch of more is refused
  const std::int64_t bytes = plan.slab_channels * g.grids.slab_lines * kBatch * static_cast<std::int64_t>(sizeof(T));
  return launch(&gather_kernel<T, kPixels, kRows>, multiplying + g.beside.blocks(), bytes, g, stream);
}

// More rows to a warp read the slab less often, fewer make more blocks. The sums are the same either way.
template <typename T, int kPixels>
int launch_pixels(const Gather<T>& g, const Plan& plan, void* stream) {
  const std::int64_t blocks = g.grids.tiles() * g.groups * ((plan.group_targets() + 31) / 32);
  if (blocks >= kFullDevice) return launch_rows<T, kPixels, 4>(g, plan, stream);
  return launch_rows<T, kPixels, 1>(g, plan, stream);
}

template <typename T>
int gather_taps(const Plan& plan, const Operands& o, Sums beside, void* stream) {
  const std::int64_t entries = std::int64_t{plan.target.channels} * plan.slabs;
  for (std::size_t next = 0; next < plan.grids.size();) {
    const Grids grids(plan, next, o.list.start, entries);
    if (grids.tiles() == 0) break;
    const Gather<T> g = {grids, plan.groups, 0, 0, beside, o.list.offset, o.list.value,
                         static_cast<const T*>(o.values), static_cast<const T*>(o.input),
                         static_cast<const T*>(o.bias), static_cast<T*>(o.output)};
    const int status = with_pixels(plan.tile, [&](auto pixels) { return launch_pixels<T, pixels>(g, plan, stream); });
    if (status != cudaSuccess) return status;
    beside.out = nullptr;  // done
  }
  return beside.out ? add_sums(beside, o.dtype, stream) : cudaSuccess;
}

}  // namespace

int gather(const ConvShape& shape, bool backward, const Operands& operands, const Sums& beside, void* stream) {
  return with_dtype(operands.dtype, [&](auto* number) -> int {
    using T = std::remove_pointer_t<decltype(number)>;
    Plan plan;
    if (!make_plan(shape, backward, sizeof(T), plan)) return cudaErrorInvalidValue;
    return gather_taps<T>(plan, operands, beside, stream);
  });
}

}  // namespace fedsparse::csr16

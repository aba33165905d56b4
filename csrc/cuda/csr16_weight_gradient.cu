// The gradient of the kept values of an unstructured product.
//
// A warp holds what a tile of grad_y is for one row in registers and multiplies it with the lines at the distances of
// 32 taps, one sum for each tap in each lane. Exchanging halves five times leaves lane t with the whole sum of tap t
// in 31 shuffles, where 32 separate sums would take 160. Blocks add up the tiles of one chunk in turn; who comes next
// adds the chunks in order. Nothing depends on timing.
#include "csr16_product.h"
#include "csr16_slab.cuh"

namespace fedsparse::csr16 {
namespace {

constexpr unsigned kAllLanes = 0xffffffffu;
constexpr int kRows = 4;                   // of a warp
constexpr std::int64_t kFullDevice = 264;  // blocks that keep 132 SMs busy, two each

template <typename T>
struct Correlation {
  Problem problem;
  std::int32_t row_blocks;  // blocks for the rows of a group
  std::int32_t chunks;
  std::int64_t tiles, nnz;
  const std::int32_t* start;
  const std::uint16_t* offset;
  const T* slope;    // grad_y
  const T* input;    // x
  float* partial;    // (chunks, nnz)
};

// sums[t] of 32 lanes -> in sums[0] of lane t the sum over lanes of sums[t]. Starts with half the sums and half the
// lanes; recursion rather than a loop, so that every index is known and the sums stay in registers.
template <int kHalf = 16>
__device__ __forceinline__ void transpose_and_add(float (&sums)[32]) {
  const bool upper = threadIdx.x & kHalf;
#pragma unroll
  for (int i = 0; i < kHalf; ++i) {
    const float sent = upper ? sums[i] : sums[i + kHalf], kept = upper ? sums[i + kHalf] : sums[i];
    sums[i] = kept + __shfl_xor_sync(kAllLanes, sent, kHalf);
  }
  if constexpr (kHalf > 1) transpose_and_add<kHalf / 2>(sums);
}

// grad_y of one row at this lane's pixels; zero, and not `live`, outside the picture.
template <int kPixels>
struct Slopes {
  Quad number[kPixels];
  bool live[kPixels];

  template <typename T>
  __device__ __forceinline__ Slopes(const Correlation<T>& c, const Place& place, const Share& share,
                                    std::int32_t channel) {
    const T* slope = c.slope + channel * c.problem.target.channel * kBatch;
#pragma unroll
    for (int p = 0; p < kPixels; ++p) {
      const std::int64_t at = target_pixel(c.problem, place, share, p);
      live[p] = at >= 0;
      number[p] = live[p] ? load4(slope + at) : Quad{};
    }
  }
};

// Sums of up to 32 taps over the tile; in each lane that of the tap whose distance it holds. What lies outside the
// picture is left out rather than multiplied by zero: x may be infinite there.
template <typename T, int kPixels>
__device__ __forceinline__ float correlate(const Slopes<kPixels>& slopes, const T* pixels, const Steps& steps,
                                           std::int32_t distance, std::int32_t count) {
  float sums[32];
#pragma unroll
  for (int t = 0; t < 32; ++t) {
    sums[t] = 0;
    if (t >= count) continue;
    const T* x = pixels + __shfl_sync(kAllLanes, distance, t);
#pragma unroll
    for (int p = 0; p < kPixels; ++p) {
      if (!slopes.live[p]) continue;
      const Quad line = load4(x + steps[p]);
#pragma unroll
      for (int i = 0; i < 4; ++i) sums[t] += slopes.number[p].number[i] * line.number[i];
    }
  }
  transpose_and_add(sums);
  return sums[0];
}

template <typename T, int kPixels>
__global__ void __launch_bounds__(kThreads, 2) correlation_kernel(const Correlation<T> c) {
  FEDSPARSE_DYNAMIC_SHARED(T, slab);
  const Problem& problem = c.problem;
  const auto lane = static_cast<std::int32_t>(threadIdx.x % 32);
  const std::int32_t all_rows = problem.groups * c.row_blocks;
  const std::int32_t group = blockIdx.x % all_rows / c.row_blocks;
  const std::int32_t row = (blockIdx.x % c.row_blocks * kWarps + threadIdx.x / 32) * kRows;  // of the group
  const std::int32_t channel = group * problem.group_targets() + row;
  const std::int32_t rows = min(kRows, problem.group_targets() - row);
  const std::int64_t chunk = blockIdx.x / all_rows;
  const std::int64_t first = chunk * c.tiles / c.chunks, last = (chunk + 1) * c.tiles / c.chunks;
  const Share share(problem.tile);
  const Steps steps(share, problem);
  float* partial = c.partial + chunk * c.nnz;

  for (std::int64_t tile = first; tile < last; ++tile) {
    const Place place = place_by_image(problem, tile);
    for (std::int32_t s = 0; s < problem.slabs; ++s) {
      __syncthreads();  // the slab before has been read
      load_slab(slab, c.input, problem, place, group * problem.group_sources() + s * problem.slab_channels,
                channels_of(problem, s));
      for (std::int32_t r = 0; r < rows; ++r) {
        const Slopes<kPixels> slopes(c, place, share, channel + r);
        const std::int32_t* start = c.start + std::int64_t{channel + r} * problem.slabs + s;
        for (std::int32_t base = start[0]; base < start[1]; base += 32) {
          const std::int32_t at = base + lane, count = min(32, start[1] - base);
          const std::int32_t distance = lane < count ? c.offset[at] * kBatch : 0;
          const float sum = correlate<T>(slopes, slab + steps.first, steps, distance, count);
          if (lane < count) partial[at] = tile == first ? sum : partial[at] + sum;
        }
      }
    }
  }
}

std::int32_t row_blocks(const Problem& problem) {
  return (problem.group_targets() + kWarps * kRows - 1) / (kWarps * kRows);
}

// As many as fill a device, whatever the device: the order of sums must not depend on it.
std::int32_t chunks(const Problem& problem) {
  const std::int64_t blocks = std::int64_t{problem.groups} * row_blocks(problem);
  return static_cast<std::int32_t>(std::min(problem.tiles(), (kFullDevice + blocks - 1) / blocks));
}

template <typename T>
int correlate_taps(const Plan& plan, std::int64_t nnz, const WeightGradient& of, void* stream) {
  const Problem problem(plan, plan.grids[0]);
  const Correlation<T> c = {problem, row_blocks(problem), chunks(problem), problem.tiles(), nnz, of.list.start,
                            of.list.offset, static_cast<const T*>(of.grad_y), static_cast<const T*>(of.x), of.partial};
  const std::int64_t blocks = std::int64_t{problem.groups} * c.row_blocks * c.chunks;
  if (blocks == 0) return cudaSuccess;
  const std::int64_t bytes = plan.slab_bytes(problem.grid, sizeof(T));
  return with_pixels(plan.tile,
                     [&](auto pixels) { return launch(&correlation_kernel<T, pixels>, blocks, bytes, c, stream); });
}

}  // namespace

int correlate(const ConvShape& shape, std::int64_t nnz, const WeightGradient& of, void* grad_values, Sums& sums,
              void* stream) {
  return with_dtype(of.dtype, [&](auto* number) -> int {
    using T = std::remove_pointer_t<decltype(number)>;
    Plan plan;
    if (!make_plan(shape, false, sizeof(T), plan)) return cudaErrorInvalidValue;
    sums = {of.partial, nnz, chunks(Problem(plan, plan.grids[0])), nullptr, 0, nullptr, grad_values};
    return nnz > 0 ? correlate_taps<T>(plan, nnz, of, stream) : static_cast<int>(cudaSuccess);
  });
}

}  // namespace fedsparse::csr16

using namespace fedsparse;

std::int64_t fedsparse_csr16_partial_size(const ConvShape* shape, std::int64_t dtype, std::int64_t nnz) {
  csr16::Plan plan;
  const int bytes = dtype == FEDSPARSE_FLOAT32 ? 4 : 2;
  if (!csr16::make_plan(*shape, false, bytes, plan)) return 0;
  return csr16::chunks(csr16::Problem(plan, plan.grids[0])) * nnz;
}

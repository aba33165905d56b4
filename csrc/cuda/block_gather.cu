// Forward and gradient of x of a structured product: gathered lines times packed weights.
//
// A warp computes a strip of 32 channels, or two narrower ones in turn, for 8 pixels of 8 samples. Slabs pass
// through two stages of shared memory: while one is multiplied the next is on its way. A step of mma takes, for each
// lane, its lines' distances, its share of the packed weights, and then four (16 bits; 32 bits: two times two) loads
// from shared memory for 4 * width / 8 products. All residues of a strided gradient are one launch, and blocks behind
// those that multiply add up what a weight gradient has left.
#include "block_math.cuh"
#include "block_product.h"

namespace fedsparse::block {
namespace {

constexpr int kMostThreads = 512;
constexpr int kPixels = 8;                // of a warp
constexpr int kSums = 4;                  // fragments of 16 rows for them
constexpr std::int64_t kFullDevice = 132;  // SMs that a block of 512 threads each keeps busy

// Strips of a warp. Registers have room for more of 8 channels, but not for their addresses as well.
template <int kTiles>
constexpr int kStrips = kTiles < 4 ? 2 : 1;

template <typename T>
struct Gather {
  csr16::Grids grids;
  std::int32_t groups, strips, blocks;  // strips and blocks of a group
  std::uint32_t multiplying;            // blocks; others add
  Sums beside;
  const std::uint16_t* offset;
  const T* packed;
  const T* input;
  const T* bias;  // null: none
  T* output;
};

// What a lane needs of one step, on its way from global memory while the step before is computed.
template <int kTiles, bool kWide>
struct Step {
  static constexpr int kLines = step_lines(kWide), kFragments = kTiles > 1 ? 2 : 1;
  static constexpr int kNumbers = kFragments * (kWide ? 2 : 4);  // of an access

  std::int32_t distance[kWide ? 2 : 1];
  Words<2 * kFragments> weights[kTiles / kFragments];

  // Of a lane inside the arrays of a step. 16 bits: lanes 8 m to 8 m + 7 name the rows of matrix m.
  static __device__ __forceinline__ std::int32_t first_offset() {
    const auto lane = static_cast<std::int32_t>(threadIdx.x % 32);
    return kWide ? lane % 4 * 2 : lane / 16 * 8 + lane % 8;
  }
  static __device__ __forceinline__ std::int32_t first_number() {
    return static_cast<std::int32_t>(threadIdx.x % 32) * kNumbers;
  }

  template <typename T>
  __device__ __forceinline__ void load(const std::uint16_t* offset, const T* packed) {
    if constexpr (kWide) {
      const unsigned both = load_words<1>(offset).word[0];
      distance[0] = static_cast<std::int32_t>(both & 0xffff);
      distance[1] = static_cast<std::int32_t>(both >> 16);
    } else {
      distance[0] = *offset;
    }
#pragma unroll
    for (int i = 0; i < kTiles / kFragments; ++i)
      weights[i] = load_words<2 * kFragments>(packed + i * 32 * kNumbers);
  }

  template <typename A>
  __device__ __forceinline__ typename A::Right right(int tile) const {
    const auto& w = weights[tile / kFragments].word;
    return A::right(w[tile % kFragments * 2], w[tile % kFragments * 2 + 1]);
  }
};

// The loads of a lane and their place in the tile.
//   16 bits: load i names a line of pixel 2 i or 2 i + 1; rows of a fragment are those pixels' samples.
//   32 bits: load i is half a line of pixel 4 i + group / 2; of two fragments, row `group` and row `group` + 8 are
//            samples 0 and 1, then 2 and 3, of that half.
template <bool kWide>
struct Views {
  static constexpr int kCount = kWide ? 2 : 4;
  std::int32_t number[kCount];  // distance in numbers

  __device__ __forceinline__ Views(const Pixels& pixels, std::int32_t first) {
    const auto lane = static_cast<std::int32_t>(threadIdx.x % 32);
#pragma unroll
    for (int i = 0; i < kCount; ++i)
      number[i] = pixels.distance(first + (kWide ? 4 * i + lane / 8 : 2 * i + lane / 8 % 2)) * kBatch +
                  (kWide ? lane / 4 % 2 * 4 : 0);
  }
};

template <typename A, int kTiles>
__device__ __forceinline__ void multiply(float (&sum)[kSums][kTiles][4], const Step<kTiles, A::kWide>& step,
                                         const typename A::Number* stage, const Views<A::kWide>& views) {
  typename A::Right b[kTiles];
#pragma unroll
  for (int t = 0; t < kTiles; ++t) b[t] = step.template right<A>(t);
#pragma unroll
  for (int i = 0; i < Views<A::kWide>::kCount; ++i) {
    if constexpr (A::kWide) {
      const auto x = load_words<4>(stage + step.distance[0] * kBatch + views.number[i]);
      const auto y = load_words<4>(stage + step.distance[1] * kBatch + views.number[i]);
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const auto a = A::left({x.word[2 * j], x.word[2 * j + 1], y.word[2 * j], y.word[2 * j + 1]});
#pragma unroll
        for (int t = 0; t < kTiles; ++t) A::multiply_add(sum[2 * i + j][t], a, b[t]);
      }
    } else {
      unsigned a[4];
      ptx::load_matrices_transposed(a, stage + step.distance[0] * kBatch + views.number[i]);
#pragma unroll
      for (int t = 0; t < kTiles; ++t) A::multiply_add(sum[i][t], A::left(a), b[t]);
    }
  }
}

// Adds the chunks [first, last). A step is fetched while the one before is computed where 128 registers allow that; the
// strips of 32-bit numbers that are widest, or take three products, have so much to compute in a step that other warps
// fill the wait.
template <typename A, int kTiles>
__device__ __forceinline__ void accumulate(float (&sum)[kSums][kTiles][4], const Gather<typename A::Number>& g,
                                           std::int32_t first, std::int32_t last, const typename A::Number* stage,
                                           const Views<A::kWide>& views) {
  using Taken = Step<kTiles, A::kWide>;
  const std::uint16_t* offset = g.offset + std::int64_t{first} * kChunk + Taken::first_offset();
  const typename A::Number* packed = g.packed + std::int64_t{first} * kChunk * kTiles * 8 + Taken::first_number();
  constexpr bool kAhead = !A::kWide || kTiles * A::kProducts < 4;
  Taken next;
  if (kAhead && first < last) next.load(offset, packed);
  for (std::int32_t left = (last - first) * (kChunk / Taken::kLines); left > 0; --left) {
    if (!kAhead) next.load(offset, packed);
    const Taken step = next;
    offset += Taken::kLines;
    packed += Taken::kLines * kTiles * 8;
    if (kAhead && left > 1) next.load(offset, packed);
    multiply<A>(sum, step, stage, views);
  }
}

// Sums to numbers: columns of a fragment are channels, and a lane holds neighbouring samples of one, or in 16 bits has
// them after an exchange with the lane of the next or previous sample.
template <typename A, int kTiles>
__device__ __forceinline__ void store(const float (&sum)[kSums][kTiles][4], const Gather<typename A::Number>& g,
                                      const csr16::Problem& problem, const csr16::Place& place, const Pixels& pixels,
                                      std::int32_t first_pixel, std::int32_t first_channel, std::int32_t rows) {
  using T = typename A::Number;
  const auto group = static_cast<std::int32_t>(threadIdx.x % 32 / 4), member = static_cast<std::int32_t>(threadIdx.x % 4);
  const auto put = [&](std::int32_t pixel, std::int32_t row, std::int32_t sample, auto numbers) {
    if (row >= rows || !pixels.live(problem, place, pixel)) return;
    const std::int64_t channel = first_channel + row;
    const float bias = g.bias ? widen(g.bias[channel]) : 0.0f;
    constexpr int kCount = sizeof(numbers) / sizeof(float);
    struct alignas(kCount * sizeof(T)) Stored {
      T number[kCount];
    } stored;
#pragma unroll
    for (int i = 0; i < kCount; ++i) stored.number[i] = narrow<T>(numbers.number[i] + bias);
    const std::int64_t line = channel * problem.target.channel + pixels.target(problem, place, pixel);
    *reinterpret_cast<Stored*>(g.output + line * kBatch + sample) = stored;
  };
  struct Pair {
    float number[2];
  };
#pragma unroll
  for (int t = 0; t < kTiles; ++t) {
    if constexpr (A::kWide) {
#pragma unroll
      for (int i = 0; i < kSums / 2; ++i)
#pragma unroll
        for (int odd = 0; odd < 2; ++odd) {
          const float(&low)[4] = sum[2 * i][t], (&high)[4] = sum[2 * i + 1][t];
          put(first_pixel + 4 * i + group / 2, 8 * t + 2 * member + odd, group % 2 * 4,
              Quad{{low[odd], low[2 + odd], high[odd], high[2 + odd]}});
        }
    } else {
      const bool odd = group % 2;
#pragma unroll
      for (int i = 0; i < kSums; ++i)
#pragma unroll
        for (int p = 0; p < 2; ++p) {
          const float even_sum = sum[i][t][2 * p], odd_sum = sum[i][t][2 * p + 1];
          const float kept = odd ? odd_sum : even_sum, got = __shfl_xor_sync(0xffffffffu, odd ? even_sum : odd_sum, 4);
          put(first_pixel + 2 * i + p, 8 * t + 2 * member + odd, group - odd,
              odd ? Pair{{got, kept}} : Pair{{kept, got}});
        }
    }
  }
}

template <typename A, int kTiles>
__global__ void __launch_bounds__(kMostThreads, 1)
    block_gather_kernel(const __grid_constant__ Gather<typename A::Number> g) {
  using T = typename A::Number;
  FEDSPARSE_DYNAMIC_SHARED(T, stages);
  if (blockIdx.x >= g.multiplying) return add<T>(g.beside, blockIdx.x - g.multiplying, gridDim.x - g.multiplying);
  const std::int32_t all_blocks = g.groups * g.blocks;
  const std::int64_t tile = blockIdx.x / all_blocks;
  const int which = g.grids.of(tile);
  const csr16::Problem& problem = g.grids.problem[which];
  const std::int32_t warps = blockDim.x / 32, warp = threadIdx.x / 32;
  const std::int32_t pixel_groups = problem.tile.pixels() / kPixels;
  const std::int32_t group = blockIdx.x % all_blocks / g.blocks;
  const std::int32_t strip = (blockIdx.x % g.blocks * (warps / pixel_groups) + warp / pixel_groups) * kStrips<kTiles>;
  const std::int32_t first_pixel = warp % pixel_groups * kPixels;
  const csr16::Place place = csr16::place_by_tile(problem, tile - g.grids.before(which));
  const Pixels pixels(problem);
  const Views<A::kWide> views(pixels, first_pixel);
  const std::int32_t busy = pixels.live(problem, place, first_pixel) ? min(kStrips<kTiles>, g.strips - strip) : 0;
  const std::int32_t entry = (group * g.strips + strip) * problem.slabs;
  const auto stage = [&](std::int32_t slab) { return stages + slab % 2 * stage_numbers(problem); };
  const auto copy = [&](std::int32_t slab) {
    csr16::copy_slab(stage(slab), g.input, problem, place,
                     group * problem.group_sources() + slab * problem.slab_channels,
                     csr16::channels_of(problem, slab), warps);
  };

  float sum[kStrips<kTiles>][kSums][kTiles][4] = {};
  clear_zeros(stage(0), problem);
  if (problem.slabs > 1) clear_zeros(stage(1), problem);
  if (problem.slabs > 0) copy(0);
  for (std::int32_t s = 0; s < problem.slabs; ++s) {
    ptx::wait_copies<0>();
    __syncthreads();  // this slab has arrived, the one before has been read
    if (s + 1 < problem.slabs) copy(s + 1);
#pragma unroll
    for (int i = 0; i < kStrips<kTiles>; ++i) {
      const std::int32_t* start = g.grids.start[which] + entry + i * problem.slabs + s;
      if (i < busy) accumulate<A>(sum[i], g, start[0], start[1], stage(s), views);
    }
  }
#pragma unroll
  for (int i = 0; i < kStrips<kTiles>; ++i) {
    const std::int32_t row = (strip + i) * kTiles * 8;
    if (i < busy)
      store<A>(sum[i], g, problem, place, pixels, first_pixel, group * problem.group_targets() + row,
               min(kTiles * 8, problem.group_targets() - row));
  }
}

// Runs of strips, each a warp's, that a block takes: as many as make 256 threads, or 512 where that leaves no SM without
// a block.
std::int32_t runs_of_a_block(std::int64_t tiles, std::int32_t pixel_groups, std::int32_t runs) {
  const std::int32_t most = kMostThreads / 32 / pixel_groups;
  return runs >= most && tiles * ((runs + most - 1) / most) >= kFullDevice ? most : most / 2;
}

template <typename A, int kTiles>
int launch_grids(Gather<typename A::Number> g, const csr16::Plan& plan, void* stream) {
  using T = typename A::Number;
  const std::int32_t pixel_groups = plan.tile.pixels() / kPixels;
  const std::int32_t runs = (g.strips + kStrips<kTiles> - 1) / kStrips<kTiles>;
  const std::int32_t taken = runs_of_a_block(g.grids.tiles() * g.groups, pixel_groups, runs);
  g.blocks = (runs + taken - 1) / taken;
  const std::int64_t multiplying = g.grids.tiles() * g.groups * g.blocks;
  g.multiplying = static_cast<std::uint32_t>(multiplying);  // a launch of more is refused
  const std::int64_t stages = std::clamp(plan.slabs, 1, 2) * (plan.slab_channels + 1) * g.grids.slab_lines * kBatch;
  return launch(&block_gather_kernel<A, kTiles>, multiplying + g.beside.blocks(), pixel_groups * taken * 32,
                stages * static_cast<std::int64_t>(sizeof(T)), 2 * kStageBytes, g, stream);
}

template <typename A, int kTiles>
int gather_strips(const csr16::Plan& plan, const Operands& o, Sums beside, void* stream) {
  using T = typename A::Number;
  const std::int32_t per_group = strips(plan.group_targets(), kTiles * 8);
  const std::int64_t entries = std::int64_t{plan.groups} * per_group * plan.slabs;
  for (std::size_t next = 0; next < plan.grids.size();) {
    const csr16::Grids grids(plan, next, o.list.start, entries);
    if (grids.tiles() == 0) break;
    const Gather<T> g = {grids, plan.groups, per_group, 0, 0, beside, o.list.offset,
                         static_cast<const T*>(o.packed), static_cast<const T*>(o.input),
                         static_cast<const T*>(o.bias), static_cast<T*>(o.output)};
    const int status = launch_grids<A, kTiles>(g, plan, stream);
    if (status != cudaSuccess) return status;
    beside.out = nullptr;  // done
  }
  return beside.out ? add_sums(beside, o.dtype, stream) : cudaSuccess;
}

}  // namespace

int gather(const ConvShape& shape, bool backward, const Operands& operands, const Sums& beside, void* stream) {
  return with_arithmetic(operands.dtype, operands.tf32, [&](auto arithmetic) {
    return with_tiles(operands.list.width, [&](auto tiles) -> int {
      using A = decltype(arithmetic);
      csr16::Plan plan;
      if (!make_plan(shape, backward, A::kWide, plan)) return cudaErrorInvalidValue;
      return gather_strips<A, tiles>(plan, operands, beside, stream);
    });
  });
}

}  // namespace fedsparse::block

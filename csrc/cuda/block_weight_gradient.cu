// The gradient of the kept values of a structured product.
//
// A block of threads takes a slab and the strips of 64 target channels for a chunk of the tiles and keeps the sums of
// their lines there in registers: 16 lines are the rows of a fragment, a strip's channels its columns, the samples of
// two pixels its depth. Each strip has its warps. They divide its chunks among them and, where these are few, the
// pixels as well; at the end they add up in order, and who comes next adds the chunks of tiles in order. Nothing
// depends on timing. Blocks behind these pack the values for the gradient of x.
#include "block_correlation.cuh"
#include "block_packing.cuh"

namespace fedsparse::block {
namespace {

using csr16::kThreads;
using csr16::kWarps;

// Chunks of a warp. Registers have room for more of strips of 8, but not for their distances as well.
__host__ __device__ constexpr int sets_of(int tiles) { return tiles < 4 ? 8 : 4; }
template <int kTiles>
constexpr int kSets = sets_of(kTiles);

template <typename T>
struct Correlation {
  csr16::Problem problem;
  std::int32_t strips, taken;           // of a group, of a block: a power of 2
  std::int32_t passes, splits;          // over the list of a strip and slab, of the tiles
  std::uint32_t multiplying;            // blocks; others pack
  Packing beside;
  std::int64_t tiles, numbers;          // numbers: that the packed list has room for
  const std::int32_t* start;
  const std::uint16_t* offset;
  const T* slope;   // grad_y
  const T* input;   // x
  float* partial;   // (splits, numbers)
};

// Which chunks of which strip a warp works on.
template <int kTiles>
struct Duty {
  std::int32_t strip, first, count;  // of the block's strips; chunks of the list
  std::int32_t warps;                // of a strip
  bool idle;                         // the whole block has no chunk

  template <typename T>
  __device__ Duty(const Correlation<T>& c, std::int32_t group, std::int32_t first_strip, std::int32_t slab,
                  std::int32_t pass)
      : strip(0), first(0), count(0), warps(kWarps / c.taken), idle(true) {
    const std::int32_t most = warps * kSets<kTiles>;
    strip = static_cast<std::int32_t>(threadIdx.x / 32) / warps;
    for (std::int32_t i = 0; i < min(c.taken, c.strips - first_strip); ++i) {
      const std::int32_t* start = c.start + std::int64_t{group * c.strips + first_strip + i} * c.problem.slabs + slab;
      const std::int32_t begin = start[0] + pass * most, left = start[1] - begin;
      if (left > 0) idle = false;
      if (left > 0 && i == strip) {
        first = begin;
        count = min(most, left);
      }
    }
  }
};

// Adds the sums of each strip's warps and writes them in the order of the packed list.
template <bool kWide, int kTiles>
__device__ __forceinline__ void write_sums(const float (&sum)[kSets<kTiles>][kTiles][4], const Duty<kTiles>& duty,
                                           const Teams& teams, float* shared, float* partial) {
  constexpr std::int32_t kNumbers = kChunk * kTiles * 8;  // of a chunk
  const std::int32_t threads = duty.warps * 32, thread = static_cast<std::int32_t>(threadIdx.x) % threads;
  float* const mine = shared + duty.strip * duty.warps * kSets<kTiles> * kNumbers;
  add_warps(sum, teams, duty.warps, mine, [](std::int32_t chunk, std::int32_t line, std::int32_t channel) {
    return chunk * kNumbers + place_in_chunk(line, channel, kTiles * 8, kWide);
  });
  for (std::int32_t i = thread; i < duty.count * kNumbers; i += threads)
    partial[std::int64_t{duty.first} * kNumbers + i] = mine[i];
}

template <typename A, int kTiles>
__global__ void __launch_bounds__(kThreads, A::kWide ? 1 : 2)
    block_correlation_kernel(const Correlation<typename A::Number> c) {
  using T = typename A::Number;
  FEDSPARSE_DYNAMIC_SHARED(T, stage);
  if (blockIdx.x >= c.multiplying) return pack<T>(c.beside, blockIdx.x - c.multiplying, gridDim.x - c.multiplying);
  const csr16::Problem& problem = c.problem;
  T* const slopes = stage + stage_numbers(problem);
  const std::int32_t of_group = (c.strips + c.taken - 1) / c.taken;
  const std::int32_t pass = blockIdx.x % c.passes, slab = blockIdx.x / c.passes % problem.slabs;
  const std::int32_t block = blockIdx.x / c.passes / problem.slabs % (problem.groups * of_group);
  const std::int32_t group = block / of_group, strip = block % of_group * c.taken, row = strip * kTiles * 8;
  const std::int64_t split = blockIdx.x / c.passes / problem.slabs / (problem.groups * of_group);
  const Duty<kTiles> duty(c, group, strip, slab, pass);
  if (duty.idle) return;

  const Teams teams(duty.count, duty.warps, kSets<kTiles>);
  const Distances<A::kWide, kSets<kTiles>> distance(teams, [&](std::int32_t chunk, std::int32_t line) {
    return c.offset[std::int64_t{duty.first + chunk} * kChunk + place_of_line(line, A::kWide)];
  });
  const Pixels pixels(problem);
  const std::int32_t pairs = problem.tile.pixels() / 2;
  const std::int32_t zeros = problem.slab_channels * problem.grid.pitch;
  const T* const mine = slopes + duty.strip * kTiles * 8 * slope_pitch(problem) * kBatch;
  float sum[kSets<kTiles>][kTiles][4] = {};
  clear_zeros(stage, problem);
  for (std::int64_t tile = split * c.tiles / c.splits; tile < (split + 1) * c.tiles / c.splits; ++tile) {
    const csr16::Place place = csr16::place_by_image(problem, tile);
    __syncthreads();  // the tile before has been read
    csr16::copy_slab(stage, c.input, problem, place, group * problem.group_sources() + slab * problem.slab_channels,
                     csr16::channels_of(problem, slab), kWarps);
    copy_slopes(slopes, c.slope, problem, place, pixels, group * problem.group_targets() + row,
                problem.group_targets() - row, c.taken * kTiles * 8);
    ptx::wait_copies<0>();
    __syncthreads();
    for (std::int32_t pair = teams.part; duty.count > 0 && pair < pairs; pair += teams.parts)
      correlate_pair<A>(sum, teams, distance, stage, mine, slope_pitch(problem), zeros, 2 * pair, pixels, problem,
                        place);
  }
  write_sums<A::kWide>(sum, duty, teams, reinterpret_cast<float*>(stage), c.partial + split * c.numbers);
}

// How the work on a plan is divided: as many splits of the tiles as fill a device, whatever the device, because the
// order of sums must not depend on it.
struct Division {
  std::int32_t strips, taken, passes, splits;
  std::int64_t blocks;

  Division(const csr16::Plan& plan, std::int32_t width, std::int64_t taps) {
    const csr16::Problem problem(plan, plan.grids[0]);
    strips = block::strips(plan.group_targets(), width);
    for (taken = 1; taken < strips && 2 * taken * width <= kTargets;) taken *= 2;
    const std::int64_t of_a_pass = kWarps / taken * sets_of(width / 8) * kChunk;  // lines
    passes = static_cast<std::int32_t>((plan.slab_channels * taps + of_a_pass - 1) / of_a_pass);
    const std::int64_t once = std::int64_t{plan.groups} * ((strips + taken - 1) / taken) * plan.slabs;
    splits = static_cast<std::int32_t>(std::min(problem.tiles(), (kFullDevice + once - 1) / once));
    blocks = once * passes * splits;
  }
};

template <typename A, int kTiles>
int correlate_strips(const csr16::Plan& plan, const Division& division, const WeightGradient& of,
                     const Packing& beside, void* stream) {
  using T = typename A::Number;
  const csr16::Problem problem(plan, plan.grids[0]);
  const std::int64_t multiplying = of.list.room > 0 ? division.blocks : 0;
  const Correlation<T> c = {problem, division.strips, division.taken, division.passes, division.splits,
                            static_cast<std::uint32_t>(multiplying), beside, problem.tiles(),
                            of.list.room * kChunk * of.list.width, of.list.start, of.list.offset,
                            static_cast<const T*>(of.grad_y), static_cast<const T*>(of.x), of.partial};
  constexpr std::int64_t kSums = kWarps * kSets<kTiles> * kChunk * kTiles * 8 * sizeof(float);
  const std::int64_t slopes = std::int64_t{c.taken} * kTiles * 8 * slope_pitch(problem) * kBatch;
  const std::int64_t tiles = (stage_numbers(problem) + slopes) * static_cast<std::int64_t>(sizeof(T));
  const std::int64_t blocks = multiplying + beside.blocks();
  if (blocks == 0) return cudaSuccess;
  return launch(&block_correlation_kernel<A, kTiles>, blocks, kThreads, std::max(kSums, tiles), kMostBytes, c, stream);
}

}  // namespace

int correlate(const ConvShape& shape, const WeightGradient& of, void* grad_values, const Packing& beside, Sums& sums,
              void* stream) {
  return with_arithmetic(of.dtype, of.tf32, [&](auto arithmetic) {
    return with_tiles(of.list.width, [&](auto tiles) -> int {
      using A = decltype(arithmetic);
      csr16::Plan plan;
      if (!make_plan(shape, false, A::kWide, plan)) return cudaErrorInvalidValue;
      const Division division(plan, tiles * 8, shape.taps());
      const StripList& list = of.list;
      const std::int64_t of_chunk = kChunk * list.width;
      sums = {of.partial, list.room * of_chunk, division.splits,
              list.start + std::int64_t{plan.groups} * division.strips * plan.slabs, of_chunk, list.value, grad_values};
      return correlate_strips<A, tiles>(plan, division, of, beside, stream);
    });
  });
}

}  // namespace fedsparse::block

using namespace fedsparse;

std::int64_t fedsparse_block_shared_bytes() { return std::max(block::kMostBytes, 2 * block::kStageBytes); }

std::int64_t fedsparse_block_partial_size(const ConvShape* shape, std::int64_t dtype, std::int64_t width,
                                          std::int64_t room) {
  csr16::Plan plan;
  if (!block::make_plan(*shape, false, block::is_wide(dtype), plan)) return 0;
  return block::Division(plan, static_cast<std::int32_t>(width), shape->taps()).splits * room * block::kChunk * width;
}

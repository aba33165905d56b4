// The smallest values of every layer, in one set of launches. Values are read five times, 20 bytes each: three digits,
// the count and the list, which skips tiles that lose nothing.
#include "../cpu/arena.h"
#include "cuda_api.h"
#include "threshold.cuh"

namespace fedsparse::threshold {
namespace {

__global__ void __launch_bounds__(kThreads)
    list_smallest_kernel(const float* __restrict__ values, const Segments segments, const Cut* __restrict__ cuts,
                         const Counts* __restrict__ counts, const Counts* __restrict__ before,
                         std::int64_t* __restrict__ numbers) {
  const Tile tile(segments, blockIdx.x);
  const Cut cut = cuts[tile.segment];
  const Counts here = counts[blockIdx.x], earlier = before[blockIdx.x];
  if (here.below == 0 && (here.equal == 0 || earlier.equal >= cut.ties)) return;
  Counts all;
  const Counts warps = before_warp(count_own<float, false>(values, tile, cut), all);
  std::uint32_t below = earlier.below + warps.below, equal = earlier.equal + warps.equal;
  std::int64_t* out = numbers + segments.first_wanted(tile.segment);
  const std::int64_t start = segments.begin(tile.segment);
  for (int step = 0; step < kSteps; ++step) {
    const std::int64_t i = tile.first + step * 32 + threadIdx.x % 32;
    const std::uint32_t key = i < tile.end ? key_of<float, false>(values[i]) : ~0u;
    const unsigned less = __ballot_sync(kEveryLane, key < cut.key), ties = __ballot_sync(kEveryLane, key == cut.key);
    const std::uint32_t ties_before = equal + __popc(ties & lanes_before());
    const std::uint32_t to = below + __popc(less & lanes_before()) + min(ties_before, cut.ties);
    if (key < cut.key || (key == cut.key && ties_before < cut.ties)) out[to] = i - start;
    below += __popc(less);
    equal += __popc(ties);
  }
}

struct Room {
  Cut* cuts;
  std::uint32_t* histograms;
  Counts *counts, *before;

  Room(const Segments& segments, Arena& arena)
      : cuts(arena.take<Cut>(segments.count)), histograms(arena.take<std::uint32_t>(segments.count * kBins)),
        counts(arena.take<Counts>(segments.tiles())), before(arena.take<Counts>(segments.tiles())) {}
};

bool possible(std::int64_t layers, std::int64_t n) {
  constexpr std::int64_t kLimit = std::int64_t{1} << 31;
  return layers >= 0 && n >= 0 && n < kLimit && layers < kLimit / kBins;
}

}  // namespace
}  // namespace fedsparse::threshold

using namespace fedsparse;

std::int64_t fedsparse_cuda_smallest_size(std::int64_t layers, std::int64_t n) {
  if (!threshold::possible(layers, n)) return 0;
  Arena arena;
  threshold::Room(threshold::Segments{nullptr, nullptr, layers, n, 0}, arena);
  return std::max<std::int64_t>(arena.used(), Arena::kAlign);
}

int fedsparse_cuda_smallest(const float* values, std::int64_t layers, std::int64_t n, const std::int64_t* layer_start,
                            const std::int64_t* number_start, std::int64_t* numbers, void* workspace, void* stream) {
  if (!threshold::possible(layers, n)) return cudaErrorInvalidValue;
  if (layers == 0) return cudaSuccess;
  const threshold::Segments segments = {layer_start, number_start, layers, n, 0};
  Arena arena(workspace);
  const threshold::Room room(segments, arena);
  int status = threshold::find_cuts<float, false>(values, segments, room.cuts, room.histograms, stream);
  if (status != cudaSuccess) return status;
  status = threshold::count_before<float, false, false>(values, segments, room.cuts, room.counts, room.before, stream);
  if (status != cudaSuccess) return status;
  return FEDSPARSE_LAUNCH(threshold::list_smallest_kernel, static_cast<unsigned>(segments.tiles()), kThreads, 0, stream,
                          values, segments, room.cuts, room.counts, room.before, numbers);
}

// One bit for each element of a tensor, and how many are marked before each group of 512. Tiles are those of threshold.cuh:
// blocks mark one each, and count what they mark until all is known.
#pragma once

#include "threshold.cuh"

namespace fedsparse::threshold {

constexpr std::int64_t kGroup = 512;  // elements to each entry of `starts`
constexpr int kGroupWords = kGroup / 32, kTileGroups = kTile / kGroup;
constexpr int kWarpGroups = 32 * kSteps / kGroup;
static_assert(kWarpGroups == 2 && kSteps == 32, "a lane stores one word, a warp counts two groups");

inline std::int64_t groups_of(std::int64_t n) { return (n + kGroup - 1) / kGroup; }

struct Bitmap {
  std::uint32_t* bits;         // (groups * kGroupWords)
  std::int32_t* starts;        // (groups + 1)
  std::uint32_t* tile_values;  // (tiles) of scratch
  std::int64_t groups;
};

// What a warp marks, 32 elements at a time.
struct Marks {
  std::uint32_t own_word = 0, kept[kWarpGroups] = {};

  __device__ __forceinline__ void add(int step, unsigned word) {
    if (threadIdx.x % 32 == static_cast<unsigned>(step)) own_word = word;
    if (step < kSteps / kWarpGroups)
      kept[0] += __popc(word);
    else
      kept[1] += __popc(word);
  }

  // By all threads of the tile's block; `starts` begin with each tile anew.
  __device__ __forceinline__ void store(const Tile& tile, const Bitmap& map) const {
    const unsigned lane = threadIdx.x % 32;
    const std::int64_t group = tile.first / kGroup;
    if (group * kGroupWords + lane < map.groups * kGroupWords) map.bits[group * kGroupWords + lane] = own_word;
    Counts total;
    const Counts inside = before_warp({kept[0] + kept[1], 0}, total);
    if (lane < kWarpGroups && group + lane < map.groups)
      map.starts[group + lane] = static_cast<std::int32_t>(inside.below + (lane == 0 ? 0 : kept[0]));
    if (threadIdx.x == 0) map.tile_values[blockIdx.x] = total.below;
  }
};

// Makes `starts` count from the tensor's beginning, after every tile has been marked.
int add_up(const Bitmap& map, std::int64_t tiles, void* stream);

// Of a row kept are the elements with a smaller key, and of those with an equal one all up to number `last`.
struct RowCut {
  std::uint32_t key;
  std::int32_t last;
};

// Marks the k first of each row of `size` elements, zeros aside; cuts (rows) is scratch. For every stored type.
template <typename T>
int mark_rows(const T* x, std::int64_t rows, std::int64_t size, std::int64_t k, RowCut* cuts, const Bitmap& map,
              void* stream);

}  // namespace fedsparse::threshold

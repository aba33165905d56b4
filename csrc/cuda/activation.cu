// Pruned activations: the largest elements of a whole tensor or of each of its rows, one bit for each element and the
// packed values.
//
// Marking a whole tensor reads x once for each digit (three of float32, two of 16-bit numbers) and once for the bits,
// and once more where ties have to be split; packing reads what stays. Exact zeros are never stored.
#include "../cpu/arena.h"
#include "bitmap.cuh"
#include "cuda_api.h"

namespace fedsparse::threshold {
namespace {

// Bits of a tile, and its groups' starts within it; without `cuts` all that is not zero stays.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    mark_kernel(const T* __restrict__ x, const Segments whole, const Cut* __restrict__ cuts,
                const Counts* __restrict__ before, const Bitmap map) {
  const Tile tile(whole, blockIdx.x);
  const Cut cut = cuts ? *cuts : Cut{~0u, 0, 0};
  const bool split = cuts && cut.splits_ties();
  Counts all, ties = {};
  if (split) {
    ties = before_warp(count_own<T, true>(x, tile, cut), all);
    ties.equal += before[blockIdx.x].equal;
  }
  Marks marks;
#pragma unroll 4
  for (int step = 0; step < kSteps; ++step) {
    const std::int64_t i = tile.first + step * 32 + threadIdx.x % 32;
    const T number = i < tile.end ? x[i] : narrow<T>(0);
    const std::uint32_t key = key_of<T, true>(number);
    bool tie = key == cut.key;
    if (split) {
      const unsigned equal = __ballot_sync(kEveryLane, tie && i < tile.end);
      tie = tie && ties.equal + __popc(equal & lanes_before()) < cut.ties;
      ties.equal += __popc(equal);
    }
    marks.add(step, __ballot_sync(kEveryLane, (key < cut.key || tie) && widen(number) != 0));
  }
  marks.store(tile, map);
}

// Values of each tile become those of the tiles before it; one block. The sum of all ends the starts.
__global__ void __launch_bounds__(kThreads) sum_tiles_kernel(std::int64_t tiles, const Bitmap map) {
  std::uint32_t carried = 0;
  for (std::int64_t base = 0; base < tiles; base += kThreads) {
    const std::int64_t at = base + threadIdx.x;
    std::uint32_t total;
    const std::uint32_t before = sum_before(at < tiles ? map.tile_values[at] : 0, total);
    if (at < tiles) map.tile_values[at] = carried + before;
    carried += total;
  }
  if (threadIdx.x == 0) map.starts[map.groups] = static_cast<std::int32_t>(carried);
}

__global__ void __launch_bounds__(kThreads) add_tiles_kernel(const Bitmap map) {
  const std::int64_t stride = static_cast<std::int64_t>(gridDim.x) * blockDim.x;
  for (std::int64_t group = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; group < map.groups;
       group += stride)
    map.starts[group] += static_cast<std::int32_t>(map.tile_values[group / kTileGroups]);
}

// Calls visit(element, kept, place among the values) for all elements; a warp takes a group.
template <typename F>
__device__ __forceinline__ void each_element(const std::uint32_t* bits, const std::int32_t* starts, std::int64_t n,
                                             F&& visit) {
  const unsigned lane = threadIdx.x % 32;
  const std::int64_t stride = static_cast<std::int64_t>(gridDim.x) * kWarps;
  for (std::int64_t group = static_cast<std::int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32; group * kGroup < n;
       group += stride) {
    std::int32_t start = starts[group];
    const std::uint32_t own = bits[group * kGroupWords + lane % kGroupWords];
#pragma unroll 4
    for (int i = 0; i < kGroupWords; ++i) {
      const std::uint32_t word = __shfl_sync(kEveryLane, own, i);
      const std::int64_t at = group * kGroup + i * 32 + lane;
      if (at < n) visit(at, (word >> lane & 1) != 0, start + __popc(word & lanes_before()));
      start += __popc(word);
    }
  }
}

template <typename T, typename V>
__global__ void __launch_bounds__(kThreads)
    pack_kernel(const T* __restrict__ x, std::int64_t n, const std::uint32_t* __restrict__ bits,
                const std::int32_t* __restrict__ starts, V* __restrict__ values) {
  each_element(bits, starts, n, [&](std::int64_t at, bool kept, std::int32_t place) {
    if (kept) values[place] = narrow<V>(widen(x[at]));
  });
}

template <typename T, typename V>
__global__ void __launch_bounds__(kThreads)
    unpack_kernel(const V* __restrict__ values, std::int64_t n, const std::uint32_t* __restrict__ bits,
                  const std::int32_t* __restrict__ starts, T* __restrict__ x) {
  each_element(bits, starts, n, [&](std::int64_t at, bool kept, std::int32_t place) {
    x[at] = narrow<T>(kept ? widen(values[place]) : 0.0f);
  });
}

struct Room {
  Cut* cut;
  RowCut* row_cuts;
  std::uint32_t *histogram, *tile_values;
  Counts *counts, *before;

  Room(const Segments& whole, std::int64_t rows, Arena& arena)
      : cut(arena.take<Cut>(1)), row_cuts(arena.take<RowCut>(rows)), histogram(arena.take<std::uint32_t>(kBins)),
        tile_values(arena.take<std::uint32_t>(whole.tiles())), counts(arena.take<Counts>(whole.tiles())),
        before(arena.take<Counts>(whole.tiles())) {}
};

Segments whole(std::int64_t n, std::int64_t k) { return {nullptr, nullptr, 1, n, k}; }

// As many warps as there are groups, up to what fills any device.
unsigned group_blocks(std::int64_t n) { return blocks_for(groups_of(n) * 32); }

template <typename T>
int mark_whole(const T* x, const Segments& all, const Bitmap& map, const Room& room, void* stream) {
  const bool select = all.whole_wanted < all.size;
  if (select) {
    int status = find_cuts<T, true>(x, all, room.cut, room.histogram, stream);
    if (status != cudaSuccess) return status;
    status = count_before<T, true, true>(x, all, room.cut, room.counts, room.before, stream);
    if (status != cudaSuccess) return status;
  }
  const int status = FEDSPARSE_LAUNCH(mark_kernel<T>, static_cast<unsigned>(all.tiles()), kThreads, 0, stream, x, all,
                                      select ? room.cut : nullptr, room.before, map);
  return status == cudaSuccess ? add_up(map, all.tiles(), stream) : status;
}

bool possible(std::int64_t rows, std::int64_t size) {
  constexpr std::int64_t kLimit = std::int64_t{1} << 31;
  return rows >= 0 && size >= 0 && rows < kLimit && size < kLimit && rows * size < kLimit;
}

}  // namespace

int add_up(const Bitmap& map, std::int64_t tiles, void* stream) {
  const int status = FEDSPARSE_LAUNCH(sum_tiles_kernel, 1, kThreads, 0, stream, tiles, map);
  if (status != cudaSuccess) return status;
  return FEDSPARSE_LAUNCH(add_tiles_kernel, blocks_for(map.groups), kThreads, 0, stream, map);
}

}  // namespace fedsparse::threshold

using namespace fedsparse;

std::int64_t fedsparse_cuda_mark_largest_size(std::int64_t rows, std::int64_t size) {
  if (!threshold::possible(rows, size)) return 0;
  Arena arena;
  threshold::Room(threshold::whole(rows * size, 0), rows, arena);
  return arena.used();
}

int fedsparse_cuda_mark_largest(const void* x, std::int64_t rows, std::int64_t size, std::int64_t dtype, std::int64_t k,
                                std::uint32_t* bits, std::int32_t* starts, void* workspace, void* stream) {
  if (!threshold::possible(rows, size) || k < 0 || k > size) return cudaErrorInvalidValue;
  return with_dtype(dtype, [&](auto* number) -> int {
    using T = std::remove_pointer_t<decltype(number)>;
    const std::int64_t n = rows * size;
    const threshold::Segments all = threshold::whole(n, rows == 1 ? k : n);
    Arena arena(workspace);
    const threshold::Room room(all, rows, arena);
    const threshold::Bitmap map = {bits, starts, room.tile_values, threshold::groups_of(n)};
    if (rows <= 1 || k == size) return threshold::mark_whole(static_cast<const T*>(x), all, map, room, stream);
    return threshold::mark_rows(static_cast<const T*>(x), rows, size, k, room.row_cuts, map, stream);
  });
}

int fedsparse_cuda_pack(const void* x, std::int64_t n, std::int64_t dtype, const std::uint32_t* bits,
                        const std::int32_t* starts, void* values, std::int64_t value_dtype, void* stream) {
  return with_dtype(dtype, [&](auto* number) -> int {
    return with_dtype(value_dtype, [&](auto* value) -> int {
      using T = std::remove_pointer_t<decltype(number)>;
      using V = std::remove_pointer_t<decltype(value)>;
      const auto kernel = &threshold::pack_kernel<T, V>;
      return FEDSPARSE_LAUNCH(kernel, threshold::group_blocks(n), kThreads, 0, stream, static_cast<const T*>(x), n,
                              bits, starts, static_cast<V*>(values));
    });
  });
}

int fedsparse_cuda_unpack(const void* values, std::int64_t value_dtype, std::int64_t n, const std::uint32_t* bits,
                          const std::int32_t* starts, void* x, std::int64_t dtype, void* stream) {
  return with_dtype(dtype, [&](auto* number) -> int {
    return with_dtype(value_dtype, [&](auto* value) -> int {
      using T = std::remove_pointer_t<decltype(number)>;
      using V = std::remove_pointer_t<decltype(value)>;
      const auto kernel = &threshold::unpack_kernel<T, V>;
      return FEDSPARSE_LAUNCH(kernel, threshold::group_blocks(n), kThreads, 0, stream, static_cast<const V*>(values), n,
                              bits, starts, static_cast<T*>(x));
    });
  });
}

// What forward, backward and weight gradient share on the device: slabs in shared memory and who computes what.
#pragma once

#include <type_traits>

#include "csr16.h"
#include "launch.cuh"
#include "number.cuh"
#include "ptx.cuh"

namespace fedsparse::csr16 {

// The part of a plan that says what one launch reads.
struct Problem {
  Plane source, target;
  Tile tile;
  Grid grid;
  std::int32_t groups, slab_channels, slabs;
  std::int32_t stacks;  // of images that a tile takes together

  Problem() = default;
  Problem(const Plan& plan, const Grid& grid_)
      : source(plan.source), target(plan.target), tile(plan.tile), grid(grid_), groups(plan.groups),
        slab_channels(plan.slab_channels), slabs(plan.slabs),
        stacks((plan.target.images + plan.tile.images - 1) / plan.tile.images) {}

  __host__ __device__ std::int32_t group_sources() const { return source.channels / groups; }
  __host__ __device__ std::int32_t group_targets() const { return target.channels / groups; }
  std::int64_t tiles() const { return std::int64_t{stacks} * grid.tiles_y * grid.tiles_x; }
};

constexpr int kGrids = 4;  // of a launch: as many residues as a stride of 2 makes

// Grids that one launch computes, their tiles numbered one grid after the other. Kernels take it as a grid constant, so
// that looking one up copies nothing.
struct Grids {
  Problem problem[kGrids] = {};
  const std::int32_t* start[kGrids] = {};  // of the grid's part of the list
  std::int64_t end[kGrids] = {};           // tiles up to the grid's last one
  std::int64_t slab_lines = 0;             // of a channel, at most

  // Of a plan's grids those from `next` on that have pixels, as many as fit; `next` is then the first one left. The list
  // has so many entries for each. What no tap meets has no slabs: it is zero, for which nothing has to be read.
  Grids(const Plan& plan, std::size_t& next, const std::int32_t* list, std::int64_t entries) {
    int count = 0;
    std::int64_t tiles = 0;
    for (; next < plan.grids.size() && count < kGrids; ++next) {
      Problem one(plan, plan.grids[next]);
      if (one.tiles() == 0) continue;
      if (!plan.met_by_taps(next)) one.slabs = 0;
      tiles += one.tiles();
      slab_lines = std::max<std::int64_t>(slab_lines, one.grid.pitch);
      start[count] = list + static_cast<std::int64_t>(next) * entries;
      problem[count] = one;
      end[count++] = tiles;
    }
    for (; count < kGrids; ++count) end[count] = tiles;
  }

  std::int64_t tiles() const { return end[kGrids - 1]; }
  __device__ __forceinline__ int of(std::int64_t tile) const {
    int which = 0;
#pragma unroll
    for (int i = 0; i + 1 < kGrids; ++i) which += tile >= end[i];
    return which;
  }
  // Tiles of the grids before.
  __device__ __forceinline__ std::int64_t before(int which) const { return which > 0 ? end[which - 1] : 0; }
};

// A tile of the target: its first image of 8 samples and the first pixel in the grid. Tiles are numbered with 64 bits,
// or with 32 where a caller knows that they suffice: dividing is much less work then.
struct Place {
  std::int32_t image, row, column;

  template <typename Number>
  __device__ Place(const Problem& p, std::int32_t stack, Number tile)
      : image(stack * p.tile.images),
        row(static_cast<std::int32_t>(tile / p.grid.tiles_x) * p.tile.rows),
        column(static_cast<std::int32_t>(tile % p.grid.tiles_x) * p.tile.columns) {}
};

// Tile `number`, all tiles of a stack of images in turn: the order in which gradients are added up.
template <typename Number>
__device__ __forceinline__ Place place_by_image(const Problem& p, Number number) {
  const Number tiles = Number{p.grid.tiles_y} * p.grid.tiles_x;
  return Place(p, static_cast<std::int32_t>(number / tiles), number % tiles);
}

// Tile `number`, the same of all stacks in turn: blocks that run together then read neighbouring lines of a
// batch-innermost tensor.
__device__ __forceinline__ Place place_by_tile(const Problem& p, std::int64_t number) {
  return Place(p, static_cast<std::int32_t>(number % p.stacks), number / p.stacks);
}

// The pixels of a tile that a lane works on: one column, rows row_step apart through all images, half a line of each.
struct Share {
  std::int32_t half, row, column, row_step;

  __device__ explicit Share(const Tile& tile) {
    const auto lane = static_cast<std::int32_t>(threadIdx.x % 32);
    half = lane % 2 * (kBatch / 2);
    column = lane / 2 % tile.columns;
    row = lane / 2 / tile.columns;
    row_step = 16 / tile.columns;
  }

  // Of its pixel number `pixel`, untouched by any tap, in numbers.
  __device__ std::int32_t distance(const Problem& p, int pixel) const {
    const std::int32_t at = row + pixel * row_step, image = at / p.tile.rows, y = at % p.tile.rows;
    const std::int32_t line = (y * p.grid.source_step_y) * p.grid.halo_columns + column * p.grid.source_step_x;
    return (image * p.grid.plane() + line) * kBatch + half;
  }
};

// Distances of the pixels of a lane: two differ as the first two do, four as two pairs.
struct Steps {
  std::int32_t first, next, pair;

  __device__ Steps(const Share& share, const Problem& p)
      : first(share.distance(p, 0)), next(share.distance(p, 1) - first), pair(share.distance(p, 2) - first) {}

  __device__ __forceinline__ std::int32_t operator[](int pixel) const { return pixel % 2 * next + pixel / 2 * pair; }
};

// Where the lane's pixel number `pixel` lies in the target's channel, in numbers; -1 outside the grid.
__device__ __forceinline__ std::int64_t target_pixel(const Problem& p, const Place& place, const Share& share,
                                                     int pixel) {
  const std::int32_t at = share.row + pixel * share.row_step, image = place.image + at / p.tile.rows;
  const std::int32_t row = place.row + at % p.tile.rows, column = place.column + share.column;
  if (image >= p.target.images || row >= p.grid.rows || column >= p.grid.columns) return -1;
  const std::int64_t y = p.grid.target_y + row * p.grid.target_step_y;
  const std::int64_t x = p.grid.target_x + column * p.grid.target_step_x;
  return (image * p.target.image + y * p.target.row + x * p.target.column) * kBatch + share.half;
}

// Starts copying a slab with all `warps` of the block: `channels` channels of the source from `first` on, all that taps
// of this tile can reach, zeros where there is no picture. Where lines lie is worked out once for all channels; lanes
// take the images of a pixel side by side.
template <typename T>
__device__ __forceinline__ void copy_slab(T* slab, const T* input, const Problem& p, const Place& place,
                                          std::int32_t first, std::int32_t channels, std::int32_t warps) {
  constexpr int kPiece = 16 / sizeof(T), kPieces = kBatch / kPiece;
  const Grid& g = p.grid;
  const std::int32_t warp = threadIdx.x / 32, pieces = g.plane() * p.tile.images * kPieces;
  const std::int64_t channel_step = p.source.channel * kBatch;
  input += first * channel_step;
  for (std::int32_t i = threadIdx.x % 32; i < pieces; i += 32) {
    const std::int32_t part = i % kPieces * kPiece, line = i / kPieces / p.tile.images;
    const std::int32_t plane = i / kPieces % p.tile.images, image = place.image + plane;
    const std::int32_t y = g.source_y + place.row * g.source_step_y + line / g.halo_columns;
    const std::int32_t x = g.source_x + place.column * g.source_step_x + line % g.halo_columns;
    const bool live = image < p.source.images && y >= 0 && y < p.source.height && x >= 0 && x < p.source.width;
    const std::int64_t at = image * p.source.image + y * p.source.row + x * p.source.column;
    const T* from = input + (live ? at * kBatch + part : 0);
    T* to = slab + (plane * g.plane() + line) * kBatch + part;
    for (std::int32_t c = warp; c < channels; c += warps)
      ptx::copy_async16(to + c * g.pitch * kBatch, from + c * channel_step, live);
  }
  ptx::commit_copies();
}

// Copies a slab and ends with a barrier.
template <typename T>
__device__ __forceinline__ void load_slab(T* slab, const T* input, const Problem& p, const Place& place,
                                          std::int32_t first, std::int32_t channels) {
  copy_slab(slab, input, p, place, first, channels, kWarps);
  ptx::wait_copies<0>();
  __syncthreads();
}

// Channels of slab number `slab`.
__device__ __forceinline__ std::int32_t channels_of(const Problem& p, std::int32_t slab) {
  return min(p.slab_channels, p.group_sources() - slab * p.slab_channels);
}

// Calls visit with the pixels of a lane: a pair of lanes shares every 16th of a tile.
template <typename F>
int with_pixels(const Tile& tile, F&& visit) {
  switch (tile.pixels() / 16) {
    case 4: return visit(std::integral_constant<int, 4>{});
    case 2: return visit(std::integral_constant<int, 2>{});
    default: return visit(std::integral_constant<int, 1>{});
  }
}

// Launches a kernel whose dynamic shared memory is one slab.
template <typename Kernel, typename Arguments>
int launch(Kernel* kernel, std::int64_t blocks, std::int64_t slab_bytes, const Arguments& arguments, void* stream) {
  if (blocks > 0x7fffffff) return cudaErrorInvalidConfiguration;
  const auto status = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSlabBytes);
  if (status != cudaSuccess) return status;
  return FEDSPARSE_LAUNCH(kernel, static_cast<unsigned>(blocks), kThreads, static_cast<std::size_t>(slab_bytes), stream,
                          arguments);
}

}  // namespace fedsparse::csr16

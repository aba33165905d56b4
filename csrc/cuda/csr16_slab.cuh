// What forward, backward and weight gradient share on the device: slabs in shared memory and who computes what.
#pragma once

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

  Problem(const Plan& plan, const Grid& grid_)
      : source(plan.source), target(plan.target), tile(plan.tile), grid(grid_), groups(plan.groups),
        slab_channels(plan.slab_channels), slabs(plan.slabs) {}

  __host__ __device__ std::int32_t group_sources() const { return source.channels / groups; }
  __host__ __device__ std::int32_t group_targets() const { return target.channels / groups; }
  std::int64_t tiles() const { return std::int64_t{target.images} * grid.tiles_y * grid.tiles_x; }
};

// A tile of the target: an image of 8 samples and the first pixel in the grid.
struct Place {
  std::int32_t image, row, column;

  __device__ Place(const Problem& p, std::int32_t image_, std::int64_t tile)
      : image(image_),
        row(static_cast<std::int32_t>(tile / p.grid.tiles_x) * p.tile.rows),
        column(static_cast<std::int32_t>(tile % p.grid.tiles_x) * p.tile.columns) {}
};

// Tile `number`, all tiles of an image in turn: the order in which gradients are added up.
__device__ __forceinline__ Place place_by_image(const Problem& p, std::int64_t number) {
  const std::int64_t tiles = std::int64_t{p.grid.tiles_y} * p.grid.tiles_x;
  return Place(p, static_cast<std::int32_t>(number / tiles), number % tiles);
}

// Tile `number`, the same of all images in turn. Blocks that run together then read neighbouring lines of a
// batch-innermost tensor: in 16 bits two of them share a sector of memory.
__device__ __forceinline__ Place place_by_tile(const Problem& p, std::int64_t number) {
  return Place(p, static_cast<std::int32_t>(number % p.target.images), number / p.target.images);
}

// The pixels of a tile that a lane works on: one column, rows row_step apart, half a line of each.
struct Share {
  std::int32_t half, row, column, row_step;

  __device__ explicit Share(const Tile& tile) {
    const auto lane = static_cast<std::int32_t>(threadIdx.x % 32);
    half = lane % 2 * (kBatch / 2);
    column = lane / 2 % tile.columns;
    row = lane / 2 / tile.columns;
    row_step = 16 / tile.columns;
  }

  // Of its first pixel, untouched by any tap; and from one pixel to the next.
  __device__ std::int32_t distance(const Grid& grid) const {
    return (row * grid.source_step_y * grid.halo_columns + column * grid.source_step_x) * kBatch + half;
  }
  __device__ std::int32_t step(const Grid& grid) const {
    return row_step * grid.source_step_y * grid.halo_columns * kBatch;
  }
};

// Where the lane's pixel number `pixel` lies in the target's channel, in numbers; -1 outside the grid.
__device__ __forceinline__ std::int64_t target_pixel(const Problem& p, const Place& place, const Share& share,
                                                     int pixel) {
  const std::int32_t row = place.row + share.row + pixel * share.row_step, column = place.column + share.column;
  if (row >= p.grid.rows || column >= p.grid.columns) return -1;
  const std::int64_t y = p.grid.target_y + row * p.grid.target_step_y;
  const std::int64_t x = p.grid.target_x + column * p.grid.target_step_x;
  return (place.image * p.target.image + y * p.target.row + x * p.target.column) * kBatch + share.half;
}

// Starts copying a slab with all `warps` of the block: `channels` channels of the source from `first` on, all that taps
// of this tile can reach, zeros where there is no picture. Where lines lie is worked out once for all channels.
template <typename T>
__device__ __forceinline__ void copy_slab(T* slab, const T* input, const Problem& p, const Place& place,
                                          std::int32_t first, std::int32_t channels, std::int32_t warps) {
  constexpr int kPiece = 16 / sizeof(T), kPieces = kBatch / kPiece;
  const Grid& g = p.grid;
  const std::int32_t warp = threadIdx.x / 32, pieces = g.halo_rows * g.halo_columns * kPieces;
  const std::int64_t channel_step = p.source.channel * kBatch;
  input += (place.image * p.source.image + first * p.source.channel) * kBatch;
  for (std::int32_t i = threadIdx.x % 32; i < pieces; i += 32) {
    const std::int32_t line = i / kPieces, part = i % kPieces * kPiece;
    const std::int32_t y = g.source_y + place.row * g.source_step_y + line / g.halo_columns;
    const std::int32_t x = g.source_x + place.column * g.source_step_x + line % g.halo_columns;
    const bool live = y >= 0 && y < p.source.height && x >= 0 && x < p.source.width;
    const T* from = input + (live ? (y * p.source.row + x * p.source.column) * kBatch + part : 0);
    T* to = slab + line * kBatch + part;
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

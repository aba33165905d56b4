// csr16: products with a weight whose kept positions follow no structure, and how a problem is cut for the device.
//
// A *line* is one pixel of one channel of 8 samples, which lie side by side. Where 8 divides the batch, activations are
// batch-innermost, [channels][height][width][batch]: to torch an ordinary tensor with strides of its own, so that
// nothing is converted between layers. Otherwise lines are filled up, [images][channels][height][width][8]. A block of
// threads keeps the lines that a tile of pixels may need of some channels, a *slab*, in shared memory, zeros for the
// border included, so that a kept weight is one 16-bit distance inside the slab: its *tap*.
//
//     distance = channel * pitch + row * halo_columns + column        (in lines, channel counted within the slab)
//
// Memory moves sectors of 32 bytes, which a line of float32 fills. Of 16-bit numbers a tile takes two neighbouring
// images, *planes* of the slab, one behind the other: their lines share a sector, and every tap is good for both.
//
// A list holds the taps of each row (target channel) in turn, cut where slabs end: `start` (rows * slabs + 1) and
// `offset` (nnz). The forward list has the order of the values. The backward list is the transposed weight, once for
// each residue of target pixels modulo the stride (a *grid*), with `value` (nnz): where each tap's value stands. Every
// kept weight is in just one grid, so that blocks of each grid write pixels of their own; a launch takes four of them.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

#include <cuda_runtime.h>

#include "fedsparse/shapes.h"

namespace fedsparse::csr16 {

constexpr int kBatch = 8;      // samples of a line
constexpr int kThreads = 256;  // of a block
constexpr int kWarps = kThreads / 32;
constexpr int kSlabBytes = 90 << 10;   // two blocks on an SM of 227 KiB, one where there are 99 KiB
constexpr int kSlabChannels = 64;      // at most
constexpr int kSlabLines = 1 << 16;    // what 16 bits tell apart
constexpr int kTileSizes = 3;

// One side of a product, strides in lines. Where pictures have one pixel, the 8-sample images stand in for the pixels
// of a row: linear layers then fill tiles as well.
struct Plane {
  std::int32_t images, channels, height, width;
  std::int64_t image, channel, row, column;
};

// Pixels of a block of threads, numbered along rows, then images. Of unstructured products a warp takes all of them for
// one channel, half a line a thread.
struct Tile {
  std::int32_t images, rows, columns;

  __host__ __device__ constexpr std::int32_t pixels() const { return images * rows * columns; }
};

// One axis of a grid. Target pixel t of the grid is first_target + t * target_step and, for tap k, reads source pixel
// first_source + t * source_step + shift[k]; the smallest shift is 0.
struct Axis {
  std::int32_t first_target, target_step, count;
  std::int32_t first_source, source_step, reach;  // reach: 1 + the largest shift
  std::vector<std::int32_t> shift;                // -1: the tap is not of this grid
};

// A grid as kernels see it.
struct Grid {
  std::int32_t target_y, target_x, target_step_y, target_step_x, rows, columns;
  std::int32_t source_y, source_x, source_step_y, source_step_x;
  std::int32_t halo_rows, halo_columns;
  std::int32_t pitch;  // of a channel of the slab, all its planes, in lines; odd, to spread over banks
  std::int32_t tiles_y, tiles_x;

  __host__ __device__ std::int32_t plane() const { return halo_rows * halo_columns; }
};

// A product cut into tiles and slabs: forward, or backward with source and target exchanged.
struct Plan {
  Plane source, target;
  Tile tile;
  std::int32_t groups, slab_channels, slabs;  // slabs of each group
  std::vector<Grid> grids;
  std::vector<Axis> vertical, horizontal;  // grid number y * horizontal.size() + x

  std::int32_t group_sources() const { return source.channels / groups; }
  std::int32_t group_targets() const { return target.channels / groups; }
  // Whether any position of the kernel belongs to a grid: with a stride beyond the kernel some have none.
  bool met_by_taps(std::size_t grid) const;
  std::int64_t slab_bytes(const Grid& grid, int number_bytes) const {
    return std::int64_t{slab_channels} * grid.pitch * kBatch * number_bytes;
  }
};

// How large a slab may be. Its channels are a multiple of `multiple` where so many fit, for which tiles are made smaller
// if need be; `spare` channels more have to fit beside them. `tiles` are for numbers of 4 bytes and for those of 2, from
// the largest to the smallest; a picture that fits into the next smaller one takes that.
struct SlabLimit {
  std::int32_t bytes, channels, multiple, spare;
  std::array<Tile, kTileSizes> tiles[2];

  const std::array<Tile, kTileSizes>& tiles_of(int number_bytes) const { return tiles[number_bytes == 4 ? 0 : 1]; }
};
constexpr SlabLimit kSlab = {
    kSlabBytes, kSlabChannels, 1, 0, {{{{1, 8, 8}, {1, 4, 4}, {1, 4, 4}}}, {{{2, 4, 8}, {2, 4, 4}, {1, 4, 4}}}}};

// False where not even one channel of a tile fits in shared memory, or the shape is none.
bool make_plan(const ConvShape& shape, bool backward, int number_bytes, Plan& plan, const SlabLimit& limit = kSlab);

// Where a kept weight goes: the row of the list, counted over grids and then target channels, and its distance
// inside a slab.
struct Kept {
  std::int64_t value, row, slab;
  std::uint16_t distance;
};

// Calls visit for every kept weight in the order of the values.
void each_kept(const Plan& plan, bool backward, const ConvShape& shape, const PatternView& pattern,
               const std::function<void(const Kept&)>& visit);

}  // namespace fedsparse::csr16

// The dense gradient of a weight on tensor cores, tile by tile, so that a large one need not exist.
//
// The gradient of strips (block_weight_gradient.cu) with every line kept: a block of threads takes 64 target channels
// and a slab of the source, whose line number l is the column l of the weight there, at a distance that is computed.
// Its sums end in shared memory, in the order of the weight, and are handed to what the launch is for.
//
// A weight of few tiles has the pixels split as well, so as to fill a device. The sums of all splits are then left in
// memory, 22 MB at most, and added up in order by a launch for each thing that they are wanted for. How a weight is cut
// depends on its shape and dtype alone, so equal arguments give equal bits on every device.
#pragma once

#include <optional>

#include "block_correlation.cuh"
#include "cuda_api.h"

namespace fedsparse::dense {

using csr16::kThreads;
using csr16::kWarps;

constexpr int kSets = 5, kTiles = 4;                          // of a warp: chunks of lines, and 8 target channels
constexpr int kStrip = 8 * kTiles;                            // target channels of a warp
constexpr int kLines = 4 * kSets * block::kChunk;             // of a block at most, shared by four warps
constexpr int kWord = 32;                                     // columns whose flags fill a word
constexpr int kPitch = kLines + 4;                            // of a row of sums; no two lanes then share a bank
static_assert(block::kTargets == 2 * kStrip && kWarps == 8 && kLines % kWord == 0);

struct Shape {
  csr16::Problem problem;
  std::int32_t taps, kernel_w, step_y, step_x;    // steps: lines from one tap to the next
  std::int32_t group_rows, columns;
  std::int32_t taken;                             // strips of a block
  std::int32_t row_tiles, slab_columns, passes;   // of a group; of a slab; over the columns of a slab
  std::int32_t tiles, words;                      // of all groups; of the columns of a tile
  std::int32_t places;                            // tiles of pixels

  Shape(const csr16::Plan& plan, const ConvShape& shape);

  __host__ __device__ std::int32_t tile_rows() const { return taken * kStrip; }
  // Pieces of 32 rows and 32 columns of a tile, and numbers of its sums in memory.
  __host__ __device__ std::int32_t pieces() const { return taken * words; }
  __host__ __device__ std::int64_t numbers() const { return std::int64_t{pieces()} * kStrip * kWord; }

  // Whether the sums of all tiles are left in memory.
  bool left() const { return tiles <= block::kFullDevice; }
  std::int32_t splits() const {
    const auto fill = static_cast<std::int32_t>(left() ? block::kFullDevice / tiles : 1);
    return std::max(std::min(fill, places), 1);
  }
  std::int64_t left_floats() const { return left() ? numbers() * tiles * splits() : 0; }
};

// Nothing where positions have no number of 31 bits, or no plan fits.
std::optional<Shape> cut(const ConvShape& shape, std::int64_t dtype);

// Some of the positions of a group: rows and columns from the first one on.
struct Area {
  std::int32_t group, row, rows, column, columns;
};

struct Tile {
  std::int32_t slab, first_line;
  Area area;

  // The distance in the slab of a line of the tile; that of the zeros where it has none.
  __device__ __forceinline__ std::int32_t distance(const Shape& s, std::int32_t line) const {
    const std::int32_t channel = (first_line + line) / s.taps, tap = (first_line + line) % s.taps;
    if (line >= area.columns) return s.problem.slab_channels * s.problem.grid.pitch;
    return channel * s.problem.grid.pitch + tap / s.kernel_w * s.step_y + tap % s.kernel_w * s.step_x;
  }
};

// Tiles of the same rows follow one another, because they read the same slopes.
__device__ __forceinline__ Tile tile_at(const Shape& s, std::int32_t number) {
  const std::int32_t slab = number / s.passes % s.problem.slabs, first_line = number % s.passes * kLines;
  const std::int32_t row_tile = number / s.passes / s.problem.slabs, row = row_tile % s.row_tiles * s.tile_rows();
  const std::int32_t column = slab * s.slab_columns + first_line;
  return {slab, first_line,
          {row_tile / s.row_tiles, row, min(s.tile_rows(), s.group_rows - row), column,
           min(min(s.slab_columns - first_line, kLines), s.columns - column)}};
}

// Which of `all` a launch takes: every one, or one in `every`.
struct Pick {
  std::int32_t all, every;

  __host__ __device__ std::int32_t count() const { return (all + every - 1) / every; }
  __device__ std::int32_t operator[](std::int32_t number) const {
    const std::int32_t first = number * every;
    return first + number * 7 % min(every, all - first);
  }
};

// What a launch reads and does: End says with wanted() whether there is anything to do, and takes the sums of an area,
// sums(row, column) counted from its first, with operator()(shape, area, sums).
template <typename T, typename End>
struct Launch {
  Shape shape;
  const T* slope;  // grad_y
  const T* input;  // x
  Pick tiles;
  std::int32_t splits;
  End end;
};

template <typename A, typename End>
__global__ void __launch_bounds__(kThreads, A::kWide ? 1 : 2)
    dense_gradient_kernel(const Launch<typename A::Number, End> launch) {
  using T = typename A::Number;
  if (!launch.end.wanted()) return;
  FEDSPARSE_DYNAMIC_SHARED(T, stage);
  FEDSPARSE_SHARED(Tile, tile, 1);  // registers are full of sums
  FEDSPARSE_SHARED(std::int32_t, places, 2);
  const Shape& s = launch.shape;
  const csr16::Problem& problem = s.problem;
  const auto block = static_cast<std::int32_t>(blockIdx.x);
  if (threadIdx.x == 0) {
    const std::int64_t split = block / launch.tiles.count();
    *tile = tile_at(s, launch.tiles[block % launch.tiles.count()]);
    places[0] = static_cast<std::int32_t>(split * s.places / launch.splits);
    places[1] = static_cast<std::int32_t>((split + 1) * s.places / launch.splits);
  }
  block::clear_zeros(stage, problem);
  __syncthreads();

  const std::int32_t warps = kWarps / s.taken, strip = static_cast<std::int32_t>(threadIdx.x / 32) / warps;
  const block::Teams teams((tile->area.columns + block::kChunk - 1) / block::kChunk, warps, kSets);
  const block::Distances<A::kWide, kSets> distance(teams, [&](std::int32_t chunk, std::int32_t line) {
    return tile->distance(s, chunk * block::kChunk + line);
  });
  const block::Pixels pixels(problem);
  const std::int32_t pitch = block::slope_pitch(problem), zeros = problem.slab_channels * problem.grid.pitch;
  T* const slopes = stage + block::stage_numbers(problem);
  float sum[kSets][kTiles][4] = {};
  for (std::int32_t number = places[0]; number < places[1]; ++number) {
    const csr16::Place place = csr16::place_by_image(problem, number);
    const Area& area = tile->area;
    __syncthreads();  // the tile before has been read
    csr16::copy_slab(stage, launch.input, problem, place,
                     area.group * problem.group_sources() + tile->slab * problem.slab_channels,
                     csr16::channels_of(problem, tile->slab), kWarps);
    block::copy_slopes(slopes, launch.slope, problem, place, pixels, area.group * s.group_rows + area.row, area.rows,
                       s.tile_rows());
    ptx::wait_copies<0>();
    __syncthreads();
    const T* const mine = slopes + strip * kStrip * pitch * csr16::kBatch;
    const std::int32_t pairs = strip * kStrip < area.rows ? problem.tile.pixels() / 2 : 0;
    for (std::int32_t pair = teams.part; pair < pairs; pair += teams.parts)
      block::correlate_pair<A>(sum, teams, distance, stage, mine, pitch, zeros, 2 * pair, pixels, problem, place);
  }
  float* const sums = reinterpret_cast<float*>(stage);
  block::add_warps(sum, teams, teams.parts, sums, [&](std::int32_t chunk, std::int32_t line, std::int32_t row) {
    return (strip * kStrip + row) * kPitch + chunk * block::kChunk + line;
  });
  launch.end(s, tile->area, [&](std::int32_t row, std::int32_t column) { return sums[row * kPitch + column]; });
}

// Computes all tiles, or one in `every`, for `end`.
template <typename End>
int compute(const Shape& s, std::int64_t dtype, bool tf32, const void* grad_y, const void* x, std::int32_t every,
            const End& end, void* stream) {
  return block::with_arithmetic(dtype, tf32, [&](auto arithmetic) {
    using A = decltype(arithmetic);
    using T = typename A::Number;
    const std::int64_t slopes = std::int64_t{s.tile_rows()} * block::slope_pitch(s.problem) * csr16::kBatch;
    const std::int64_t staged = (block::stage_numbers(s.problem) + slopes) * static_cast<std::int64_t>(sizeof(T));
    const std::int64_t sums = std::int64_t{s.tile_rows()} * kPitch * static_cast<std::int64_t>(sizeof(float));
    const Pick tiles = {s.tiles, every};
    const Launch<T, End> launch = {s, static_cast<const T*>(grad_y), static_cast<const T*>(x), tiles, s.splits(), end};
    return block::launch(&dense_gradient_kernel<A, End>, std::int64_t{tiles.count()} * s.splits(), kThreads,
                         std::max(staged, sums), block::kMostBytes, launch, stream);
  });
}

// ---- sums that were left in memory
// Leaves those of every tile and split in `sums` (Shape::left_floats).
int leave(const Shape& shape, std::int64_t dtype, bool tf32, const void* grad_y, const void* x, float* sums,
          void* stream);

template <typename End>
struct Joined {
  Shape shape;
  const float* sums;
  Pick pieces;
  std::int32_t splits;
  End end;
};

// A block adds up a piece of a tile.
template <typename End>
__global__ void __launch_bounds__(kThreads) join_kernel(const Joined<End> joined) {
  if (!joined.end.wanted()) return;
  const Shape& s = joined.shape;
  const std::int32_t number = joined.pieces[static_cast<std::int32_t>(blockIdx.x)], tile = number / s.pieces();
  const std::int32_t row = number % s.pieces() / s.words * kStrip, column = number % s.words * kWord;
  const Area whole = tile_at(s, tile).area;
  const Area area = {whole.group, whole.row + row, min(whole.rows - row, kStrip), whole.column + column,
                     min(whole.columns - column, kWord)};
  if (area.rows <= 0 || area.columns <= 0) return;
  const std::int64_t step = s.numbers() * s.tiles;
  const float* const first = joined.sums + s.numbers() * tile + std::int64_t{row} * s.words * kWord + column;
  joined.end(s, area, [&](std::int32_t y, std::int32_t x) {
    const float* from = first + y * s.words * kWord + x;
    float sum = 0;
    for (std::int32_t split = 0; split < joined.splits; ++split, from += step) sum += *from;
    return sum;
  });
}

// Adds up all pieces, or one in `every`.
template <typename End>
int join(const Shape& s, const float* sums, std::int32_t every, const End& end, void* stream) {
  const Pick pieces = {s.tiles * s.pieces(), every};
  return FEDSPARSE_LAUNCH(join_kernel<End>, static_cast<unsigned>(pieces.count()), kThreads, 0, stream,
                          Joined<End>{s, sums, pieces, s.splits(), end});
}

}  // namespace fedsparse::dense

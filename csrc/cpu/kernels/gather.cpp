// The gather of gather.h for one instruction set, compiled once for each: halos, tiles and how threads share them.
#include "../gather.h"

#include <algorithm>
#include <cstring>

#ifdef _OPENMP
#include <omp.h>
#endif

#include "saved.h"
#include "tile_set.h"

namespace {

using fedsparse::Grid;
using fedsparse::Lines;
using fedsparse::Program;
using fedsparse::Split;

// What the slopes of one entry cost in all stripes, in copied lines.
constexpr std::int64_t kSlopeCost = 8;

struct Team {
  int rank, size;

  // This member's slice of [0, count).
  std::int64_t begin(std::int64_t count) const { return count * rank / size; }
  std::int64_t end(std::int64_t count) const { return count * (rank + 1) / size; }
};

// Bounds that give every part about the same number of entries.
std::int64_t balanced_bound(const Program& program, int part, int parts) {
  if (part == parts) return program.targets;
  // One entry's worth of work for every target as well: a target without entries still has to be stored.
  const std::int64_t total = program.load[program.targets] + program.targets;
  const std::int64_t wanted = total * part / parts;
  std::int64_t low = 0, high = program.targets;
  while (low < high) {
    const std::int64_t mid = (low + high) / 2;
    if (program.load[mid] + mid < wanted)
      low = mid + 1;
    else
      high = mid;
  }
  return low;
}

// The tiles of all batch groups, in reading order.
struct Tiling {
  std::int64_t tile_rows, down = 0, across = 0, count = 0;

  explicit Tiling(const Gather& g) : tile_rows(g.tile_rows) {
    std::int64_t rows = 0, columns = 0;
    for (std::int64_t c = 0; c < g.program.classes; ++c) {
      rows = std::max(rows, g.grids[c].rows);
      columns = std::max(columns, g.grids[c].columns);
    }
    down = (rows + g.tile_rows - 1) / g.tile_rows;
    across = (columns + kTileColumns - 1) / kTileColumns;
    count = g.target.groups * down * across;
  }
};

struct Tile {
  std::int64_t group, y, x;  // first pixel, in grid coordinates

  Tile(const Tiling& tiling, std::int64_t number)
      : group(number / (tiling.down * tiling.across)),
        y(number / tiling.across % tiling.down * tiling.tile_rows),
        x(number % tiling.across * kTileColumns) {}
};

// Lines to ask for while a halo is copied: those of the halo that will be copied next. A halo's rows are short and lie
// pages apart, so the processor does not foresee them.
struct Ahead {
  std::int64_t distance = 0;  // numbers from a line of this halo to its counterpart in the next
  std::int64_t first = 0;     // columns before it are in this halo as well

  Ahead(const Gather& g, const Tile& tile, std::int64_t channel, const Tile& next, std::int64_t next_channel)
      : distance(g.source.at(next.group - tile.group, next_channel - channel, (next.y - tile.y) * g.source_step_y,
                             (next.x - tile.x) * g.source_step_x)) {
    const bool beside = next.group == tile.group && next.y == tile.y && next_channel == channel;
    if (beside) first = std::max<std::int64_t>(0, g.halo.columns - (next.x - tile.x) * g.source_step_x);
  }
};

// Copies a tile's halo for source channels [first, last), as the term reads it; zeros outside the picture.
template <typename Number, typename Read>
void pack_halo_of(const Gather& g, const Tile& tile, std::int64_t first, std::int64_t last, const Ahead& ahead,
                  float* to, Read&& reader_of) {
  const Lines& s = g.source;
  const fedsparse::Halo& halo = g.halo;
  const std::int64_t y = halo.first_y + tile.y * g.source_step_y, x = halo.first_x + tile.x * g.source_step_x;
  const std::int64_t left = std::clamp<std::int64_t>(-x, 0, halo.columns);
  const std::int64_t right = std::clamp<std::int64_t>(s.width - x, left, halo.columns);
  const std::int64_t column = s.column;
  for (std::int64_t c = first; c < last; ++c) {
    const auto read = reader_of(c);
    const Number* plane = static_cast<const Number*>(g.x.data) + tile.group * s.group + c * s.channel + x * column;
    for (std::int64_t row = 0; row < halo.rows; ++row, to += halo.columns * kLanes) {
      const Number* from = plane + (y + row) * s.row;
      for (std::int64_t i = ahead.first; i < halo.columns; ++i) __builtin_prefetch(from + ahead.distance + i * column, 0, 2);
      if (y + row < 0 || y + row >= s.height) {
        std::memset(to, 0, static_cast<std::size_t>(halo.columns) * sizeof(Vec));
        continue;
      }
      for (std::int64_t i = 0; i < left; ++i) store(to + i * kLanes, Vec{});
      for (std::int64_t i = left; i < right; ++i) store(to + i * kLanes, read(load(from + i * column)));
      for (std::int64_t i = right; i < halo.columns; ++i) store(to + i * kLanes, Vec{});
    }
  }
}

void pack_halo(const Gather& g, const Tile& tile, std::int64_t first, std::int64_t last, const Ahead& ahead, float* to) {
  with_number(g.half, [&](auto zero) {
    using Number = decltype(zero);
    if (g.x.scale || g.x.shift || g.x.relu)
      pack_halo_of<Number>(g, tile, first, last, ahead, to, [&](std::int64_t c) { return Reader(g.x, c); });
    else
      pack_halo_of<Number>(g, tile, first, last, ahead, to, [](std::int64_t) { return [](Vec v) { return v; }; });
  });
}

// One thread's memory: the halo of a block, and what waits for the next block.
struct Scratch {
  float* halo;
  float* sums;
  float* others;

  static std::int64_t halo_floats(const Gather& g) { return g.program.block_channels * g.halo.lines() * kLanes; }
  static std::int64_t held_floats(const Gather& g) {
    if (g.program.blocks == 1) return 0;
    return g.program.classes * g.program.targets * g.program.width * g.tile_rows * kTileColumns * kLanes;
  }
  // With one block, what was saved is expanded for one piece after the other, in the same place.
  static std::int64_t other_floats(const Gather& g) {
    if (g.saved && g.program.blocks == 1) return g.program.targets * kTileRows * kTileColumns * kLanes;
    return g.correlates() && !g.strips() ? held_floats(g) : 0;
  }
  static std::int64_t floats(const Gather& g) {
    return halo_floats(g) + (g.y ? held_floats(g) : 0) + other_floats(g);
  }

  Scratch(const Gather& g, std::int64_t rank)
      : halo(g.scratch + rank * floats(g)), sums(halo + halo_floats(g)), others(sums + (g.y ? held_floats(g) : 0)) {}
};

// What was saved for a piece's targets, where gather_tile finds it.
void expand_piece(const Gather& g, const Piece& t, int rows, int columns) {
  const Patch patch{t.target / kLanes, g.target.channel / kLanes, t.target_row / kLanes, t.target_col / kLanes, rows,
                    columns};
  expand_patch(*g.saved, patch, t.first, t.last, t.held_other + t.first * patch.size() * kLanes);
}

// One class of one tile for targets [first, last), from the halo in scratch: as few kernel calls as its shape allows.
void walk_class(const Gather& g, const TileSet& tiles, const Tile& tile, std::int64_t class_, std::int64_t block,
                std::int64_t first, std::int64_t last, const Scratch& scratch, float* slope) {
  const Program& program = g.program;
  const Grid& grid = g.grids[class_];
  const std::int64_t rows_end = std::min(grid.rows, tile.y + g.tile_rows);
  const std::int64_t columns_end = std::min<std::int64_t>(grid.columns, tile.x + kTileColumns);
  Piece t;
  t.source_row = g.source_step_y * g.halo.columns * kLanes;
  t.source_col = g.source_step_x * kLanes;
  t.target_row = g.target_step_y * g.target.row;
  t.target_col = g.target_step_x * g.target.column;
  t.segment = program.segment + (class_ * program.blocks + block) * program.targets;
  t.first = first;
  t.last = last;
  t.starts = block == 0;
  t.ends = block + 1 == program.blocks;
  t.reads = t.starts && !g.saved;
  std::int64_t held = class_ * g.tile_rows * kTileColumns;
  for (std::int64_t a = tile.y, rows; a < rows_end; a += rows) {
    const int row_power = g.strips() ? 0 : tile_power(rows_end - a, kTileRows);
    rows = g.strips() ? rows_end - a : std::int64_t{1} << row_power;
    t.rows = static_cast<int>(rows);
    for (std::int64_t b = tile.x, columns; b < columns_end; b += columns) {
      const int column_power = tile_power(columns_end - b, kTileColumns);
      columns = std::int64_t{1} << column_power;
      t.source = scratch.halo + (a - tile.y) * t.source_row + (b - tile.x) * t.source_col;
      t.target = g.target.at(tile.group, 0, grid.y0 + a * g.target_step_y, grid.x0 + b * g.target_step_x);
      t.held_sum = scratch.sums + held * program.targets * program.width * kLanes;
      t.held_other = scratch.others + (program.blocks > 1 ? held * program.targets * kLanes : 0);
      held += rows * columns;
      if (g.saved && t.starts) expand_piece(g, t, static_cast<int>(rows), static_cast<int>(columns));
      tiles.by_shape[row_power][column_power](g, t, slope);
    }
  }
}

void walk_tile(const Gather& g, const TileSet& tiles, const Tile& tile, const Tile& next, std::int64_t first,
               std::int64_t last, const Scratch& scratch, float* slope) {
  const Program& program = g.program;
  for (std::int64_t block = 0; block < program.blocks; ++block) {
    const std::int64_t channel = block * program.block_channels, after = channel + program.block_channels;
    const bool more = block + 1 < program.blocks;
    const Ahead ahead(g, tile, channel, more ? tile : next, more ? after : 0);
    pack_halo(g, tile, channel, std::min(after, g.source.channels), ahead, scratch.halo);
    for (std::int64_t c = 0; c < program.classes; ++c) walk_class(g, tiles, tile, c, block, first, last, scratch, slope);
  }
}

Split split(const Gather& g) {
  const std::int64_t tiles = Tiling(g).count, lines = g.halo.lines() * g.source.channels;
  const int stripes = std::max(4, g.threads);
  const bool even = tiles % stripes == 0 || tiles >= 4 * stripes;
  // Stripes zero, fill and sum slopes of their own; parts copy every halo once a part.
  const bool cheaper = !g.correlates() || kSlopeCost * g.program.count < tiles * lines;
  if (even && cheaper) return {stripes, 1};
  return {1, g.threads};
}

void clear(float* slope, std::int64_t first, std::int64_t last) {
  if (slope) std::memset(slope + first, 0, static_cast<std::size_t>(last - first) * sizeof(float));
}

inline void barrier() {
#ifdef _OPENMP
#pragma omp barrier
#endif
}

// A team may be smaller than asked for: stripes and parts go to its members in turn, so the sums stay the same.
void work(const Gather& g, Team team) {
  const Tiling tiling(g);
  const Program& program = g.program;
  const TileSet tiles(g);
  const Scratch scratch(g, team.rank);
  const Split share = split(g);
  if (share.stripes > 1) {
    for (int s = team.rank; s < share.stripes; s += team.size) {
      float* slope = g.slope ? g.slope + s * program.count : nullptr;
      clear(slope, 0, program.count);
      for (std::int64_t i = tiling.count * s / share.stripes; i < tiling.count * (s + 1) / share.stripes; ++i)
        walk_tile(g, tiles, Tile(tiling, i), Tile(tiling, i + 1), 0, program.targets, scratch, slope);
    }
    return;
  }
  clear(g.slope, team.begin(program.count), team.end(program.count));
  barrier();
  for (int part = team.rank; part < share.parts; part += team.size) {
    const std::int64_t first = balanced_bound(program, part, share.parts);
    const std::int64_t last = balanced_bound(program, part + 1, share.parts);
    for (std::int64_t i = 0; i < tiling.count; ++i)
      walk_tile(g, tiles, Tile(tiling, i), Tile(tiling, i + 1), first, last, scratch, g.slope);
  }
}

std::int64_t scratch(const Gather& g) { return Scratch::floats(g); }

void run(const Gather& g) {
#ifdef _OPENMP
#pragma omp parallel num_threads(g.threads)
  work(g, Team{omp_get_thread_num(), omp_get_num_threads()});
#else
  work(g, Team{0, 1});
#endif
}

}  // namespace

namespace fedsparse::FEDSPARSE_ISA {
extern const GatherKernels gather;
const GatherKernels gather = {kTileRows, kTileColumns, kStripWidth, split, scratch, run};
}  // namespace fedsparse::FEDSPARSE_ISA

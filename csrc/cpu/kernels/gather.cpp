// The gather of gather.h for one instruction set; compiled once for each.
#include "../gather.h"

#include <algorithm>
#include <cstring>
#include <type_traits>

#ifdef _OPENMP
#include <omp.h>
#endif

#include "saved.h"
#include "simd.h"
#include "term.h"

namespace {

using fedsparse::Edge;
using fedsparse::Entry;
using fedsparse::Gather;
using fedsparse::Grid;
using fedsparse::Lines;
using fedsparse::Program;
using fedsparse::Split;

// 16 accumulators of 32 registers with AVX-512, 8 of 16 elsewhere: more would spill.
constexpr int kTileRows = kLanes == 16 ? 4 : 2;
constexpr int kTileColumns = 4;
// What the slopes of one entry cost in all stripes, in copied lines.
constexpr std::int64_t kSlopeCost = 8;
// Entries and slopes of large layers stream from the L3 cache.
constexpr int kEntriesAhead = 48, kSlopesAhead = 64;

// The pixels of one class inside one tile, or the part of them that one kernel call takes.
struct Piece {
  const float* source;                   // halo line of the first pixel's first tap, channel 0 of the block
  std::int64_t source_row, source_col;   // floats from pixel to pixel
  std::int64_t target;                   // floats to the first pixel of channel 0 in tensors laid out as the target
  std::int64_t target_row, target_col;   // floats from pixel to pixel there
  float* held_sum;                       // between the first and the last block: (targets, pixels) lines
  float* held_other;
  const std::int32_t* segment;           // of target 0
  std::int64_t first, last;              // targets
  bool starts, ends;                     // first block: begin from the bias; last block: write the target
  bool reads;                            // `other` from memory, not from held_other
};

// Sums of whole registers wait here until one butterfly finishes kLanes of them at a time.
struct SlopeRing {
  float* slope;  // of the next entry to finish
  Vec waiting[kLanes];
  int held = 0;

  int room() const { return kLanes - held; }

  void settle() {
    if (held < kLanes) return;
    __builtin_prefetch(slope + kSlopesAhead, 1);
    Vec rows[kLanes];  // a copy that can live in registers
    std::copy(waiting, waiting + kLanes, rows);
    store_loose(slope, load_loose(slope) + sum_each(rows));
    slope += kLanes;
    held = 0;
  }

  // The rest one by one: the entries behind belong to another thread.
  void finish() {
    if (held == 0) return;
    for (int i = held; i < kLanes; ++i) waiting[i] = Vec{};
    const Vec sums = sum_each(waiting);
    for (int i = 0; i < held; ++i) slope[i] += sums[i];
  }
};

// Asks for a target's tile while the one before it is computed: its short rows, each in another page, are more than
// the processor foresees, and waiting for them costs as much as the arithmetic of a sparse row.
template <int ROWS, int COLS>
inline void fetch_tile(const float* line, const Piece& t) {
#pragma GCC unroll 16
  for (int i = 0; i < ROWS * COLS; ++i) __builtin_prefetch(line + i / COLS * t.target_row + i % COLS * t.target_col, 1);
}

// Calls f with the edge as a constant.
template <typename F>
__attribute__((always_inline)) inline void on_edge(int edge, F&& f) {
  switch (edge) {
    case 0: return f(std::integral_constant<int, 0>{});
    case 1: return f(std::integral_constant<int, 1>{});
    case 2: return f(std::integral_constant<int, 2>{});
    case 3: return f(std::integral_constant<int, 3>{});
    case 4: return f(std::integral_constant<int, 4>{});
    case 5: return f(std::integral_constant<int, 5>{});
    case 6: return f(std::integral_constant<int, 6>{});
    case 7: return f(std::integral_constant<int, 7>{});
    case 8: return f(std::integral_constant<int, 8>{});
    default: __builtin_unreachable();
  }
}

// ROWS x COLS pixels. STEP is the column step in lines where it is known at compile time (else 0): then every
// load is a base register plus a constant. Small tiles walk several entries at once to hide the FMA latency. With TRIM,
// the pixels that a tap's edge leaves out are not computed.
template <int ROWS, int COLS, int STEP, bool ACCUMULATE, bool CORRELATE, bool TRIM>
void gather_tile(const Gather& g, const Piece& t, float* slope) {
  constexpr int kPixels = ROWS * COLS;
  constexpr int kChains = CORRELATE || kPixels >= 8 ? 1 : kPixels >= 4 ? 2 : 4;
  const std::int64_t step = STEP ? STEP * kLanes : t.source_col;
  const Entry* const entries = g.program.entries;
  // In locals, where stores through vector pointers cannot touch them.
  const char* const source = reinterpret_cast<const char*>(t.source);
  const std::int64_t source_row = t.source_row, target_row = t.target_row, target_col = t.target_col;
  const auto at = [&](int i) __attribute__((always_inline)) { return i / COLS * target_row + i % COLS * target_col; };
  SlopeRing ring;
  if constexpr (CORRELATE) ring.slope = slope + t.segment[t.first];

  for (std::int64_t target = t.first; target < t.last; ++target) {
    const Entry* e = entries + t.segment[target];
    const Entry* const end = entries + t.segment[target + 1];
    const bool moves = ACCUMULATE && (t.starts || t.ends);  // the sums change places even where nothing is added
    if (e == end && !moves && !(CORRELATE && t.reads && !t.ends)) continue;

    const std::int64_t lines = t.target + target * g.target.channel;
    if (target + 1 < t.last) {
      if constexpr (ACCUMULATE)
        if (t.ends) fetch_tile<ROWS, COLS>(g.y + lines + g.target.channel, t);
      if constexpr (CORRELATE)
        if (t.reads) fetch_tile<ROWS, COLS>(g.other.data + lines + g.target.channel, t);
    }
    Vec sum[kChains][kPixels];
    if constexpr (ACCUMULATE) {
      const float* held = t.held_sum + target * kPixels * kLanes;
      const Vec begin = broadcast(g.bias && t.starts ? g.bias[target] : 0.0f);
#pragma GCC unroll 16
      for (int i = 0; i < kPixels; ++i) {
        sum[0][i] = t.starts ? begin : load(held + i * kLanes);
        for (int c = 1; c < kChains; ++c) sum[c][i] = Vec{};
      }
    }
    Vec other[kPixels];
    if constexpr (CORRELATE) {
      float* held = t.held_other + target * kPixels * kLanes;
      if (t.reads) {
        const Reader read(g.other, target);
#pragma GCC unroll 16
        for (int i = 0; i < kPixels; ++i) {
          other[i] = read(load(g.other.data + lines + at(i)));
          if (!t.ends) store(held + i * kLanes, other[i]);
        }
      } else {
#pragma GCC unroll 16
        for (int i = 0; i < kPixels; ++i) other[i] = load(held + i * kLanes);
      }
    }

    const auto visit = [&](const Entry& entry, Vec* acc, auto edge) __attribute__((always_inline)) {
      constexpr int kVertical = decltype(edge)::value / 3, kHorizontal = decltype(edge)::value % 3;
      constexpr int kTop = kVertical == Edge::kFirst, kBottom = ROWS - (kVertical == Edge::kLast);
      constexpr int kLeft = kHorizontal == Edge::kFirst, kRight = COLS - (kHorizontal == Edge::kLast);
      const std::int32_t offset = TRIM ? entry.offset & ~Edge::kMask : entry.offset;
      const float* p = reinterpret_cast<const float*>(source + offset) + kTop * source_row;
      const Vec weight = broadcast(entry.weight);
      Vec part[4] = {};
#pragma GCC unroll 4
      for (int y = kTop; y < kBottom; ++y, p += source_row) {
#pragma GCC unroll 4
        for (int x = kLeft; x < kRight; ++x) {
          Vec s = load(p + x * step);
          if constexpr (ACCUMULATE && CORRELATE) hold(s);
          if constexpr (ACCUMULATE) acc[y * COLS + x] += weight * s;
          if constexpr (CORRELATE) part[(y * COLS + x) % 4] += other[y * COLS + x] * s;
        }
      }
      if constexpr (CORRELATE) ring.waiting[ring.held++] = (part[0] + part[1]) + (part[2] + part[3]);
    };
    constexpr std::integral_constant<int, Edge::kNone> kWhole{};
    if constexpr (kChains > 1) {
      for (; end - e >= kChains; e += kChains)
#pragma GCC unroll 4
        for (int c = 0; c < kChains; ++c) visit(e[c], sum[c], kWhole);
    }
    while (e != end) {
      const Entry* stop = end;
      if constexpr (CORRELATE) {
        stop = std::min(end, e + ring.room());
        __builtin_prefetch(e + kEntriesAhead);
        __builtin_prefetch(e + kEntriesAhead + kLanes / 2);
      }
      if constexpr (TRIM) {
        const int tap_edge = e->offset & Edge::kMask;
        on_edge(tap_edge, [&](auto edge) __attribute__((always_inline)) {
          do visit(*e, sum[0], edge);
          while (++e != stop && (e->offset & Edge::kMask) == tap_edge);
        });
      } else {
        do visit(*e, sum[0], kWhole);
        while (++e != stop);
      }
      if constexpr (CORRELATE) ring.settle();
    }

    if constexpr (ACCUMULATE) {
      float* held = t.held_sum + target * kPixels * kLanes;
#pragma GCC unroll 16
      for (int i = 0; i < kPixels; ++i) {
        Vec total = sum[0][i];
        for (int c = 1; c < kChains; ++c) total += sum[c][i];
        store(t.ends ? g.y + lines + at(i) : held + i * kLanes, total);
      }
    }
  }
  if constexpr (CORRELATE) ring.finish();
}

using TileFn = void (*)(const Gather&, const Piece&, float*);

template <int ROWS, int COLS, bool ACCUMULATE, bool CORRELATE>
TileFn tile_for(std::int64_t step, bool trimmed) {
  constexpr bool kFull = ROWS == kTileRows && COLS == kTileColumns;
  // Backward walks the source pixel by pixel.
  if (CORRELATE || step == 1) {
    if (kFull && trimmed) return gather_tile<ROWS, COLS, 1, ACCUMULATE, CORRELATE, kFull>;
    return gather_tile<ROWS, COLS, 1, ACCUMULATE, CORRELATE, false>;
  }
  if constexpr (!CORRELATE) {
    if (step == 2 && kFull) return gather_tile<ROWS, COLS, 2, ACCUMULATE, CORRELATE, false>;
    return gather_tile<ROWS, COLS, 0, ACCUMULATE, CORRELATE, false>;
  }
}

// A full tile, or the halves that fill a remainder: 4, 2 and 1 in each direction.
struct TileSet {
  TileFn by_shape[3][3];

  explicit TileSet(const Gather& g) {
    if (g.y && g.correlates())
      fill<true, true>(g);
    else if (g.y)
      fill<true, false>(g);
    else
      fill<false, true>(g);
  }

 private:
  template <bool ACCUMULATE, bool CORRELATE>
  void fill(const Gather& g) {
    fill_row<1, 0, ACCUMULATE, CORRELATE>(g);
    fill_row<2, 1, ACCUMULATE, CORRELATE>(g);
    if constexpr (kTileRows == 4) fill_row<4, 2, ACCUMULATE, CORRELATE>(g);
  }

  template <int ROWS, int AT, bool ACCUMULATE, bool CORRELATE>
  void fill_row(const Gather& g) {
    const std::int64_t step = g.source_step_x;
    by_shape[AT][0] = tile_for<ROWS, 1, ACCUMULATE, CORRELATE>(step, g.program.trimmed);
    by_shape[AT][1] = tile_for<ROWS, 2, ACCUMULATE, CORRELATE>(step, g.program.trimmed);
    by_shape[AT][2] = tile_for<ROWS, 4, ACCUMULATE, CORRELATE>(step, g.program.trimmed);
  }
};

// 4, 2 or 1: the largest that fits, as a power.
inline int tile_power(std::int64_t left, int largest) {
  if (left >= 4 && largest == 4) return 2;
  return left >= 2 ? 1 : 0;
}

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
  std::int64_t down = 0, across = 0, count = 0;

  explicit Tiling(const Gather& g) {
    std::int64_t rows = 0, columns = 0;
    for (std::int64_t c = 0; c < g.program.classes; ++c) {
      rows = std::max(rows, g.grids[c].rows);
      columns = std::max(columns, g.grids[c].columns);
    }
    down = (rows + kTileRows - 1) / kTileRows;
    across = (columns + kTileColumns - 1) / kTileColumns;
    count = g.target.groups * down * across;
  }
};

struct Tile {
  std::int64_t group, y, x;  // first pixel, in grid coordinates

  Tile(const Tiling& tiling, std::int64_t number)
      : group(number / (tiling.down * tiling.across)),
        y(number / tiling.across % tiling.down * kTileRows),
        x(number % tiling.across * kTileColumns) {}
};

// Lines to ask for while a halo is copied: those of the halo that will be copied next. A halo's rows are short and lie
// pages apart, so the processor does not foresee them.
struct Ahead {
  std::int64_t distance = 0;  // floats from a line of this halo to its counterpart in the next
  std::int64_t first = 0;     // columns before it are in this halo as well

  Ahead(const Gather& g, const Tile& tile, std::int64_t channel, const Tile& next, std::int64_t next_channel)
      : distance(g.source.at(next.group - tile.group, next_channel - channel, (next.y - tile.y) * g.source_step_y,
                             (next.x - tile.x) * g.source_step_x)) {
    const bool beside = next.group == tile.group && next.y == tile.y && next_channel == channel;
    if (beside) first = std::max<std::int64_t>(0, g.halo.columns - (next.x - tile.x) * g.source_step_x);
  }
};

// Copies a tile's halo for source channels [first, last), as the term reads it; zeros outside the picture.
template <typename Read>
void pack_halo(const Gather& g, const Tile& tile, std::int64_t first, std::int64_t last, const Ahead& ahead, float* to,
               Read&& reader_of) {
  const Lines& s = g.source;
  const fedsparse::Halo& halo = g.halo;
  const std::int64_t y = halo.first_y + tile.y * g.source_step_y, x = halo.first_x + tile.x * g.source_step_x;
  const std::int64_t left = std::clamp<std::int64_t>(-x, 0, halo.columns);
  const std::int64_t right = std::clamp<std::int64_t>(s.width - x, left, halo.columns);
  const std::int64_t column = s.column;
  for (std::int64_t c = first; c < last; ++c) {
    const auto read = reader_of(c);
    const float* plane = g.x.data + tile.group * s.group + c * s.channel + x * column;
    for (std::int64_t row = 0; row < halo.rows; ++row, to += halo.columns * kLanes) {
      const float* from = plane + (y + row) * s.row;
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
  if (g.x.scale || g.x.shift || g.x.relu)
    pack_halo(g, tile, first, last, ahead, to, [&](std::int64_t c) { return Reader(g.x, c); });
  else
    pack_halo(g, tile, first, last, ahead, to, [](std::int64_t) { return [](Vec v) { return v; }; });
}

// One thread's memory: the halo of a block, and what waits for the next block.
struct Scratch {
  float* halo;
  float* sums;
  float* others;

  static std::int64_t halo_floats(const Gather& g) { return g.program.block_channels * g.halo.lines() * kLanes; }
  static std::int64_t held_floats(const Gather& g) {
    if (g.program.blocks == 1) return 0;
    return g.program.classes * g.program.targets * kTileRows * kTileColumns * kLanes;
  }
  // With one block, what was saved is expanded for one piece after the other, in the same place.
  static std::int64_t other_floats(const Gather& g) {
    if (g.saved && g.program.blocks == 1) return g.program.targets * kTileRows * kTileColumns * kLanes;
    return g.correlates() ? held_floats(g) : 0;
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
  const std::int64_t rows_end = std::min<std::int64_t>(grid.rows, tile.y + kTileRows);
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
  std::int64_t held = class_ * kTileRows * kTileColumns;
  for (std::int64_t a = tile.y, rows; a < rows_end; a += rows) {
    const int row_power = tile_power(rows_end - a, kTileRows);
    rows = std::int64_t{1} << row_power;
    for (std::int64_t b = tile.x, columns; b < columns_end; b += columns) {
      const int column_power = tile_power(columns_end - b, kTileColumns);
      columns = std::int64_t{1} << column_power;
      t.source = scratch.halo + (a - tile.y) * t.source_row + (b - tile.x) * t.source_col;
      t.target = g.target.at(tile.group, 0, grid.y0 + a * g.target_step_y, grid.x0 + b * g.target_step_x);
      t.held_sum = scratch.sums + held * program.targets * kLanes;
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
const GatherKernels gather = {kTileRows, kTileColumns, split, scratch, run};
}  // namespace fedsparse::FEDSPARSE_ISA

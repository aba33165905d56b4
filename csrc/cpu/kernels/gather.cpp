// The gather of gather.h for one instruction set; compiled once for each.
#include "../gather.h"

#include <algorithm>
#include <cstring>

#ifdef _OPENMP
#include <omp.h>
#endif

#include "planes.h"
#include "simd.h"

namespace {

using fedsparse::Entry;
using fedsparse::Gather;
using fedsparse::Grid;
using fedsparse::Program;
using fedsparse::Storage;

// 16 accumulators of 32 registers with AVX-512, 8 of 16 elsewhere: more would spill.
constexpr int kTileRows = kLanes == 16 ? 4 : 2;
constexpr int kTileColumns = 4;

// Where one tile sits, for the targets of one (class, block).
struct Tile {
  const float* source;      // line of the tile's first pixel in source channel 0
  std::int64_t source_row;  // floats from tile row to tile row
  std::int64_t source_col;  // floats from tile column to tile column
  std::int64_t target;      // floats to the tile's first pixel inside a target plane
  std::int64_t target_row, target_col;
  const std::int32_t* segment;  // of target 0
  std::int64_t first, last;     // targets
  bool starts;                  // first block: begin from the bias
};

// Sums of whole registers wait here until one butterfly finishes kLanes of them at a time.
struct SlopeRing {
  float* slope;  // of the next entry to finish
  Vec waiting[kLanes];
  int held = 0;

  void push(Vec partial) {
    waiting[held] = partial;
    if (++held < kLanes) return;
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
inline void fetch_tile(const fedsparse::Planes& planes, std::int64_t target, const Tile& t) {
  const float* line = planes.data + target * planes.lines * kLanes + t.target;
#pragma GCC unroll 16
  for (int i = 0; i < ROWS * COLS; ++i) __builtin_prefetch(line + i / COLS * t.target_row + i % COLS * t.target_col, 1);
}

// ROWS x COLS pixels. STEP is the column step in lines where it is known at compile time (else 0): then every
// load is a base register plus a constant. Small tiles walk several entries at once to hide the FMA latency.
template <int ROWS, int COLS, int STEP, bool ACCUMULATE, bool CORRELATE>
void gather_tile(const Gather& g, const Tile& t, float* slope) {
  constexpr int kPixels = ROWS * COLS;
  constexpr int kChains = CORRELATE || kPixels >= 8 ? 1 : kPixels >= 4 ? 2 : 4;
  const std::int64_t step = STEP ? STEP * kLanes : t.source_col;
  const Entry* const entries = g.program.entries;
  // In locals, where stores through vector pointers cannot touch them.
  const float* const source = t.source;
  const std::int64_t source_row = t.source_row, target_row = t.target_row, target_col = t.target_col;
  SlopeRing ring;
  if constexpr (CORRELATE) ring.slope = slope + t.segment[t.first];

  for (std::int64_t target = t.first; target < t.last; ++target) {
    const Entry* e = entries + t.segment[target];
    const Entry* const end = entries + t.segment[target + 1];
    if (e == end && !(ACCUMULATE && t.starts)) continue;

    if (target + 1 < t.last) {
      if constexpr (ACCUMULATE) fetch_tile<ROWS, COLS>(g.target, target + 1, t);
      if constexpr (CORRELATE) fetch_tile<ROWS, COLS>(g.other, target + 1, t);
    }
    float* out = nullptr;
    Vec sum[kChains][kPixels];
    if constexpr (ACCUMULATE) {
      out = g.target.data + target * g.target.lines * kLanes + t.target;
      const Vec begin = broadcast(g.bias && t.starts ? g.bias[target] : 0.0f);
#pragma GCC unroll 16
      for (int i = 0; i < kPixels; ++i) {
        sum[0][i] = t.starts ? begin : load(out + i / COLS * target_row + i % COLS * target_col);
        for (int c = 1; c < kChains; ++c) sum[c][i] = Vec{};
      }
    }
    Vec other[kPixels];
    if constexpr (CORRELATE) {
      const float* at = g.other.data + target * g.other.lines * kLanes + t.target;
#pragma GCC unroll 16
      for (int i = 0; i < kPixels; ++i) other[i] = load(at + i / COLS * target_row + i % COLS * target_col);
    }

    const auto visit = [&](const Entry& entry, Vec* acc) __attribute__((always_inline)) {
      const float* p = source + entry.offset;
      const Vec weight = broadcast(entry.weight);
      Vec part[4] = {};
#pragma GCC unroll 4
      for (int y = 0; y < ROWS; ++y, p += source_row) {
#pragma GCC unroll 4
        for (int x = 0; x < COLS; ++x) {
          Vec s = load(p + x * step);
          if constexpr (ACCUMULATE && CORRELATE) hold(s);
          if constexpr (ACCUMULATE) acc[y * COLS + x] += weight * s;
          if constexpr (CORRELATE) part[(y * COLS + x) % 4] += other[y * COLS + x] * s;
        }
      }
      if constexpr (CORRELATE) ring.push((part[0] + part[1]) + (part[2] + part[3]));
    };
    if constexpr (kChains > 1) {
      for (; end - e >= kChains; e += kChains)
#pragma GCC unroll 4
        for (int c = 0; c < kChains; ++c) visit(e[c], sum[c]);
    }
    for (; e != end; ++e) visit(*e, sum[0]);

    if constexpr (ACCUMULATE) {
#pragma GCC unroll 16
      for (int i = 0; i < kPixels; ++i) {
        Vec total = sum[0][i];
        for (int c = 1; c < kChains; ++c) total += sum[c][i];
        store(out + i / COLS * target_row + i % COLS * target_col, total);
      }
    }
  }
  if constexpr (CORRELATE) ring.finish();
}

using TileFn = void (*)(const Gather&, const Tile&, float*);

template <int ROWS, int COLS, bool ACCUMULATE, bool CORRELATE>
TileFn tile_for_step(std::int64_t step) {
  if constexpr (CORRELATE) {  // backward walks the source pixel by pixel
    return gather_tile<ROWS, COLS, 1, ACCUMULATE, CORRELATE>;
  } else {
    if (step == 1) return gather_tile<ROWS, COLS, 1, ACCUMULATE, CORRELATE>;
    if (step == 2 && ROWS * COLS == kTileRows * kTileColumns) return gather_tile<ROWS, COLS, 2, ACCUMULATE, CORRELATE>;
    return gather_tile<ROWS, COLS, 0, ACCUMULATE, CORRELATE>;
  }
}

// A full tile, or the halves that fill a remainder: 4, 2 and 1 in each direction.
struct TileSet {
  TileFn by_shape[3][3];

  template <bool ACCUMULATE, bool CORRELATE>
  void fill(std::int64_t step) {
    fill_row<1, 0, ACCUMULATE, CORRELATE>(step);
    fill_row<2, 1, ACCUMULATE, CORRELATE>(step);
    if constexpr (kTileRows == 4) fill_row<4, 2, ACCUMULATE, CORRELATE>(step);
  }

  TileSet(std::int64_t step, bool accumulate, bool correlate) {
    if (accumulate && correlate)
      fill<true, true>(step);
    else if (accumulate)
      fill<true, false>(step);
    else
      fill<false, true>(step);
  }

 private:
  template <int ROWS, int AT, bool ACCUMULATE, bool CORRELATE>
  void fill_row(std::int64_t step) {
    by_shape[AT][0] = tile_for_step<ROWS, 1, ACCUMULATE, CORRELATE>(step);
    by_shape[AT][1] = tile_for_step<ROWS, 2, ACCUMULATE, CORRELATE>(step);
    by_shape[AT][2] = tile_for_step<ROWS, 4, ACCUMULATE, CORRELATE>(step);
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

void pack(const Gather& g, const Planes& planes, const float* tensor, std::int64_t first_channel,
          std::int64_t total_channels, std::int64_t group, Team team) {
  const std::int64_t pixels = planes.height * planes.width;
  if (g.storage == Storage::images) {
    const std::int64_t picture = total_channels * pixels;
    const float* base = tensor + group * kLanes * picture + first_channel * pixels;
    const std::int64_t images = std::min<std::int64_t>(kLanes, g.batch - group * kLanes);
    for (std::int64_t c = team.begin(planes.channels); c < team.end(planes.channels); ++c) {
      if (group == 0) clear_plane(planes, c);  // the border; pictures of later groups overwrite the rest
      pack_picture(base + c * pixels, picture, images, planes, c);
    }
    return;
  }
  const std::int64_t blocks = (planes.channels + kLanes - 1) / kLanes;
  for (std::int64_t b = team.begin(blocks); b < team.end(blocks); ++b) {
    const std::int64_t c = b * kLanes;
    pack_rows(tensor, total_channels, group * kLanes * pixels, g.batch, planes, first_channel + c, c,
              std::min<std::int64_t>(kLanes, planes.channels - c));
  }
}

void unpack(const Gather& g, const Planes& planes, float* tensor, std::int64_t group, Team team) {
  const std::int64_t pixels = planes.height * planes.width;
  if (g.storage == Storage::images) {
    const std::int64_t picture = planes.channels * pixels;
    const std::int64_t images = std::min<std::int64_t>(kLanes, g.batch - group * kLanes);
    for (std::int64_t c = team.begin(planes.channels); c < team.end(planes.channels); ++c)
      unpack_picture(planes, c, tensor + group * kLanes * picture + c * pixels, picture, images);
    return;
  }
  const std::int64_t blocks = (planes.channels + kLanes - 1) / kLanes;
  for (std::int64_t b = team.begin(blocks); b < team.end(blocks); ++b) {
    const std::int64_t c = b * kLanes;
    unpack_rows(planes, c, std::min<std::int64_t>(kLanes, planes.channels - c), tensor, planes.channels,
                group * kLanes * pixels, g.batch);
  }
}

// All tiles of one batch group for targets [first, last); with stripes, every stripes-th tile.
void walk_tiles(const Gather& g, const TileSet& tiles, std::int64_t first, std::int64_t last, int stripe, int stripes,
                float* slope) {
  const Program& program = g.program;
  const Planes& planes = g.target_tensor ? g.target : g.other;
  std::int64_t number = 0;
  for (std::int64_t c = 0; c < program.classes; ++c) {
    const Grid& grid = g.grids[c];
    for (std::int64_t a = 0, rows; a < grid.rows; a += rows) {
      const int row_power = tile_power(grid.rows - a, kTileRows);
      rows = std::int64_t{1} << row_power;
      for (std::int64_t b = 0, columns; b < grid.columns; b += columns) {
        const int column_power = tile_power(grid.columns - b, kTileColumns);
        columns = std::int64_t{1} << column_power;
        if (number++ % stripes != stripe) continue;
        Tile t;
        t.source_row = g.source_step_y * g.source.pitch * kLanes;
        t.source_col = g.source_step_x * kLanes;
        t.source = g.source.data + a * t.source_row + b * t.source_col;
        t.target_row = g.target_step_y * planes.pitch * kLanes;
        t.target_col = g.target_step_x * kLanes;
        t.target = line_of(planes, 0, grid.y0 + a * g.target_step_y, grid.x0 + b * g.target_step_x) - planes.data;
        t.first = first;
        t.last = last;
        for (std::int64_t block = 0; block < program.blocks; ++block) {
          t.segment = program.segment + (c * program.blocks + block) * program.targets;
          t.starts = block == 0;
          tiles.by_shape[row_power][column_power](g, t, slope);
        }
      }
    }
  }
}

inline void barrier() {
#ifdef _OPENMP
#pragma omp barrier
#endif
}

void work(const Gather& g, Team team) {
  const std::int64_t stripes = fedsparse::gather_stripes(g.program.targets, g.threads);
  const bool striped = stripes > 1;
  const std::int64_t first = striped ? 0 : balanced_bound(g.program, team.rank, team.size);
  const std::int64_t last = striped ? g.program.targets : balanced_bound(g.program, team.rank + 1, team.size);
  const TileSet tiles(g.source_step_x, g.target_tensor != nullptr, g.other_tensor != nullptr);
  const Planes& planes = g.target_tensor ? g.target : g.other;
  const std::int64_t pixels = g.storage == Storage::rows ? planes.height * planes.width : 1;
  const std::int64_t groups = (g.batch + pixels * kLanes - 1) / (pixels * kLanes);

  // A team smaller than asked for leaves stripes to its members in turn, so the sums stay the same.
  float* slope = g.slope;
  if (slope)
    for (std::int64_t s = team.rank; s < stripes; s += team.size)
      std::memset(slope + s * g.program.count, 0, static_cast<std::size_t>(g.program.count) * sizeof(float));
  for (std::int64_t group = 0; group < groups; ++group) {
    pack(g, g.source, g.source_tensor, g.source_first, g.source_total, group, team);
    if (g.other_tensor) pack(g, g.other, g.other_tensor, 0, g.other.channels, group, team);
    barrier();
    if (striped)
      for (std::int64_t s = team.rank; s < stripes; s += team.size)
        walk_tiles(g, tiles, first, last, static_cast<int>(s), static_cast<int>(stripes),
                   slope ? slope + s * g.program.count : nullptr);
    else
      walk_tiles(g, tiles, first, last, 0, 1, slope);
    barrier();
    if (g.target_tensor) unpack(g, g.target, g.target_tensor, group, team);
  }
}

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
const GatherKernels gather = {kTileRows, kTileColumns, run};
}  // namespace fedsparse::FEDSPARSE_ISA

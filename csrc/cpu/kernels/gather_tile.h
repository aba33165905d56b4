// The inner loop of gather.h: one tile of pixels for a range of targets, with the tile in registers.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "../gather.h"
#include "number.h"
#include "term.h"

namespace {

using fedsparse::Edge;
using fedsparse::Entry;
using fedsparse::Gather;

// 16 accumulators of 32 registers with AVX-512, 8 of 16 elsewhere: more would spill.
constexpr int kTileRows = kLanes == 16 ? 4 : 2;
constexpr int kTileColumns = 4;
// Entries and slopes of large layers stream from the L3 cache.
constexpr int kEntriesAhead = 48, kSlopesAhead = 64;

// The pixels of one class inside one tile, or the part of them that one kernel call takes.
struct Piece {
  const float* source;                   // halo line of the first pixel's first tap, channel 0 of the block
  std::int64_t source_row, source_col;   // floats from pixel to pixel
  std::int64_t target;                   // numbers to the first pixel of channel 0 in tensors laid out as the target
  std::int64_t target_row, target_col;   // numbers from pixel to pixel there
  float* held_sum;                       // between the first and the last block: (targets, pixels) lines
  float* held_other;
  const std::int32_t* segment;           // of target 0
  std::int64_t first, last;              // targets
  bool starts, ends;                     // first block: begin from the bias; last block: write the target
  bool reads;                            // `other` from memory, not from held_other
  int rows;                              // pixels down; only strips ask, other loops are made for theirs
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
template <int ROWS, int COLS, typename Number>
inline void fetch_tile(const Number* line, const Piece& t) {
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

// ROWS x COLS pixels of a target of Numbers. STEP is the column step in lines where it is known at compile time (else
// 0): then every load is a base register plus a constant. Small tiles walk several entries at once to hide the FMA
// latency. With TRIM, the pixels that a tap's edge leaves out are not computed.
template <typename Number, int ROWS, int COLS, int STEP, bool ACCUMULATE, bool CORRELATE, bool TRIM>
void gather_tile(const Gather& g, const Piece& t, float* slope) {
  constexpr int kPixels = ROWS * COLS;
  constexpr int kChains = CORRELATE || kPixels >= 8 ? 1 : kPixels >= 4 ? 2 : 4;
  const std::int64_t step = STEP ? STEP * kLanes : t.source_col;
  const Entry* const entries = g.program.entries;
  // In locals, where stores through vector pointers cannot touch them.
  const char* const source = reinterpret_cast<const char*>(t.source);
  Number* const out = static_cast<Number*>(g.y);
  const Number* const others = static_cast<const Number*>(g.other.data);
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
        if (t.ends) fetch_tile<ROWS, COLS>(out + lines + g.target.channel, t);
      if constexpr (CORRELATE)
        if (t.reads) fetch_tile<ROWS, COLS>(others + lines + g.target.channel, t);
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
          other[i] = read(load(others + lines + at(i)));
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
        if (t.ends)
          store(out + lines + at(i), total);
        else
          store(held + i * kLanes, total);
      }
    }
  }
  if constexpr (CORRELATE) ring.finish();
}

using TileFn = void (*)(const Gather&, const Piece&, float*);

template <typename Number, int ROWS, int COLS, bool ACCUMULATE, bool CORRELATE>
TileFn tile_for(std::int64_t step, bool trimmed) {
  constexpr bool kFull = ROWS == kTileRows && COLS == kTileColumns;
  // Backward walks the source pixel by pixel.
  if (CORRELATE || step == 1) {
    if (kFull && trimmed) return gather_tile<Number, ROWS, COLS, 1, ACCUMULATE, CORRELATE, kFull>;
    return gather_tile<Number, ROWS, COLS, 1, ACCUMULATE, CORRELATE, false>;
  }
  if constexpr (!CORRELATE) {
    if (step == 2 && kFull) return gather_tile<Number, ROWS, COLS, 2, ACCUMULATE, CORRELATE, false>;
    return gather_tile<Number, ROWS, COLS, 0, ACCUMULATE, CORRELATE, false>;
  }
}

}  // namespace

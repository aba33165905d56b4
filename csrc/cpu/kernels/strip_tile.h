// The inner loops of gather.h for strips: several targets that meet the same source lines (../strips.h).
//
// Sums take a strip by a few neighbouring pixels into registers: a line that is loaded serves every target, and a
// weight every pixel, where gather_tile.h loads a line for every product. Slopes take a strip by a few of its entries,
// and walk the pixels of the tile: one butterfly finishes all of them. The two share a halo, but no loads of it. Each
// loads about half as often as it multiplies, and what it loads from far, the lines of the source, an eighth as often.
#pragma once

#include "gather_tile.h"

namespace {

// Sums in registers: 16 of 32 with AVX-512, 8 of 16 elsewhere, enough to hide the latency of a multiply-add.
constexpr int kStripWidth = kLanes == 16 ? 8 : 4;
constexpr int kStripColumns = 2;
constexpr int kStripEntries = 2;

// Calls run(first, last, edge) for every run of entries of a segment under taps of one edge, a constant.
template <bool TRIM, typename Run>
__attribute__((always_inline)) inline void each_run(const std::int32_t* offsets, std::int32_t first, std::int32_t last,
                                                    Run&& run) {
  if constexpr (TRIM) {
    for (std::int32_t e = first, end; e < last; e = end) {
      const int tap_edge = offsets[e] & Edge::kMask;
      for (end = e + 1; end < last && (offsets[end] & Edge::kMask) == tap_edge;) ++end;
      on_edge(tap_edge, [&](auto edge) __attribute__((always_inline)) { run(e, end, edge); });
    }
  } else {
    run(first, last, std::integral_constant<int, Edge::kNone>{});
  }
}

template <bool TRIM>
inline const float* line_at(const Piece& t, std::int32_t offset) {
  const char* const source = reinterpret_cast<const char*>(t.source);
  return reinterpret_cast<const float*>(source + (TRIM ? offset & ~Edge::kMask : offset));
}

// The sums of a strip at WIDE neighbouring pixels of a row.
template <typename Number, int WIDE>
struct StripSums {
  Vec sum[kStripWidth][WIDE];

  void begin(const Gather& g, const Piece& t, const std::int32_t* member, const float* held) {
#pragma GCC unroll 8
    for (int w = 0; w < kStripWidth; ++w) {
      const Vec begin = broadcast(g.bias && t.starts && member[w] >= 0 ? g.bias[member[w]] : 0.0f);
#pragma GCC unroll 2
      for (int x = 0; x < WIDE; ++x) sum[w][x] = t.starts ? begin : load(held + (w * WIDE + x) * kLanes);
    }
  }

  // One entry, for pixels [BEGIN, END).
  template <int BEGIN, int END>
  void add(const float* line, std::int64_t step, const float* weight) {
    Vec pixel[WIDE];
#pragma GCC unroll 2
    for (int x = BEGIN; x < END; ++x) pixel[x] = load(line + x * step);
#pragma GCC unroll 8
    for (int w = 0; w < kStripWidth; ++w) {
      const Vec factor = broadcast(weight[w]);
#pragma GCC unroll 2
      for (int x = BEGIN; x < END; ++x) sum[w][x] += factor * pixel[x];
    }
  }

  void end(const Gather& g, const Piece& t, const std::int32_t* member, std::int64_t target, float* held) const {
    Number* const out = static_cast<Number*>(g.y) + target;
#pragma GCC unroll 8
    for (int w = 0; w < kStripWidth; ++w)
#pragma GCC unroll 2
      for (int x = 0; x < WIDE; ++x) {
        if (!t.ends)
          store(held + (w * WIDE + x) * kLanes, sum[w][x]);
        else if (member[w] >= 0)
          store(out + member[w] * g.target.channel + x * t.target_col, sum[w][x]);
      }
  }
};

// t.rows x COLS pixels of every strip. STEP as in gather_tile.
template <typename Number, int COLS, int STEP, bool TRIM>
struct Sums {
  static void walk(const Gather& g, const Piece& t, float*) {
    constexpr int kWide = std::min(COLS, kStripColumns), kSums = kStripWidth * kWide * kLanes;
    const std::int64_t step = STEP ? STEP * kLanes : t.source_col;
    const std::int32_t* const offsets = g.program.offsets;
    const float* const weights = g.program.weights;
    for (std::int64_t strip = t.first; strip < t.last; ++strip) {
      const std::int32_t first = t.segment[strip], last = t.segment[strip + 1];
      const std::int32_t* const member = g.program.members + strip * kStripWidth;
      float* held = t.held_sum + strip * kStripWidth * t.rows * COLS * kLanes;
      for (int y = 0; y < t.rows; ++y)
        for (int x = 0; x < COLS; x += kWide, held += kSums) {
          const std::int64_t source = y * t.source_row + x * step, target = y * t.target_row + x * t.target_col;
          if (t.ends) fetch<kWide>(g, t, member, t.target + target);
          StripSums<Number, kWide> sums;
          sums.begin(g, t, member, held);
          each_run<TRIM>(offsets, first, last, [&](auto e, auto end, auto edge) __attribute__((always_inline)) {
            constexpr int kVertical = decltype(edge)::value / 3, kHorizontal = decltype(edge)::value % 3;
            if ((kVertical == Edge::kFirst && y == 0) || (kVertical == Edge::kLast && y + 1 == t.rows)) return;
            const auto add = [&](auto from, auto to) __attribute__((always_inline)) {
              for (std::int32_t i = e; i < end; ++i)
                sums.template add<decltype(from)::value, decltype(to)::value>(
                    line_at<TRIM>(t, offsets[i]) + source, step, weights + std::int64_t{i} * kStripWidth);
            };
            constexpr std::integral_constant<int, 0> kBegin{};
            constexpr std::integral_constant<int, kWide> kEnd{};
            if (kHorizontal == Edge::kFirst && x == 0)
              add(std::integral_constant<int, 1>{}, kEnd);
            else if (kHorizontal == Edge::kLast && x + kWide == COLS)
              add(kBegin, std::integral_constant<int, kWide - 1>{});
            else
              add(kBegin, kEnd);
          });
          sums.end(g, t, member, t.target + target, held);
        }
    }
  }

 private:
  // Asks for what is written after the entries. Lines of a whole strip, equally far apart, would not fit the L1.
  template <int WIDE>
  static void fetch(const Gather& g, const Piece& t, const std::int32_t* member, std::int64_t target) {
    const Number* const out = static_cast<const Number*>(g.y) + target;
#pragma GCC unroll 8
    for (int w = 0; w < kStripWidth; ++w)
#pragma GCC unroll 2
      for (int x = 0; x < WIDE; ++x)
        __builtin_prefetch(out + std::max(member[w], 0) * g.target.channel + x * t.target_col, 1);
  }
};

// The slopes of a strip at t.rows x COLS pixels.
template <typename Number, int COLS, int STEP, bool TRIM>
struct Slopes {
  static void walk(const Gather& g, const Piece& t, float* slope) {
    const std::int32_t* const offsets = g.program.offsets;
    alignas(sizeof(Vec)) float others[2 * kTileRows * COLS * kStripWidth * kLanes];
    for (std::int64_t strip = t.first; strip < t.last; ++strip) {
      const std::int32_t first = t.segment[strip], last = t.segment[strip + 1];
      if (first == last) continue;
      copy_targets(g, t, g.program.members + strip * kStripWidth, others);
      each_run<TRIM>(offsets, first, last, [&](auto e, auto end, auto edge) __attribute__((always_inline)) {
        for (; e < end; e += kStripEntries)
          visit<decltype(edge)::value>(t, others, offsets + e, std::min(kStripEntries, end - e),
                                       slope + std::int64_t{e} * kStripWidth);
      });
    }
  }

 private:
  static constexpr int kSums = kStripWidth * kStripEntries;
  static_assert(kSums % kLanes == 0, "slopes are finished a register at a time");

  // The targets' lines, pixel by pixel; zeros for targets that are not there.
  static void copy_targets(const Gather& g, const Piece& t, const std::int32_t* member, float* to) {
    for (int w = 0; w < kStripWidth; ++w) {
      const Reader read(g.other, std::max(member[w], 0));
      const Number* from = static_cast<const Number*>(g.other.data) + t.target + member[w] * g.target.channel;
      for (int y = 0; y < t.rows; ++y)
#pragma GCC unroll 4
        for (int x = 0; x < COLS; ++x)
          store(to + ((y * COLS + x) * kStripWidth + w) * kLanes,
                member[w] < 0 ? Vec{} : read(load(from + y * t.target_row + x * t.target_col)));
    }
  }

  // Adds to the slopes of `some` entries, at most kStripEntries.
  template <int EDGE>
  __attribute__((always_inline)) static void visit(const Piece& t, const float* others, const std::int32_t* offset,
                                                   int some, float* slope) {
    constexpr int kLeft = EDGE % 3 == Edge::kFirst, kRight = COLS - (EDGE % 3 == Edge::kLast);
    const std::int64_t step = STEP ? STEP * kLanes : t.source_col;
    const int top = EDGE / 3 == Edge::kFirst, bottom = t.rows - (EDGE / 3 == Edge::kLast);
    const float* line[kStripEntries];
#pragma GCC unroll 2
    for (int i = 0; i < kStripEntries; ++i)
      line[i] = line_at<TRIM>(t, offset[std::min(i, some - 1)]) + top * t.source_row;
    Vec sum[kSums] = {};
    const float* other = others + top * COLS * kStripWidth * kLanes;
    for (int y = top; y < bottom; ++y, other += COLS * kStripWidth * kLanes) {
#pragma GCC unroll 4
      for (int x = kLeft; x < kRight; ++x) {
        Vec pixel[kStripEntries];
#pragma GCC unroll 2
        for (int i = 0; i < kStripEntries; ++i) pixel[i] = load(line[i] + x * step);
#pragma GCC unroll 8
        for (int w = 0; w < kStripWidth; ++w) {
          const Vec target = load(other + (x * kStripWidth + w) * kLanes);
#pragma GCC unroll 2
          for (int i = 0; i < kStripEntries; ++i) sum[i * kStripWidth + w] += target * pixel[i];
        }
      }
#pragma GCC unroll 2
      for (int i = 0; i < kStripEntries; ++i) line[i] += t.source_row;
    }
#pragma GCC unroll 4
    for (int i = 0; i < kSums; i += kLanes) {
      const Vec sums = sum_each(sum + i);
      const int left = some * kStripWidth - i;
      if (left >= kLanes)
        store_loose(slope + i, load_loose(slope + i) + sums);
      else
        for (int j = 0; j < left; ++j) slope[i + j] += sums[j];  // what is behind belongs to others
    }
  }
};

template <typename Number, int COLS, int STEP, bool TRIM>
struct SumsAndSlopes {
  static void walk(const Gather& g, const Piece& t, float* slope) {
    Sums<Number, COLS, STEP, TRIM>::walk(g, t, slope);
    Slopes<Number, COLS, STEP, TRIM>::walk(g, t, slope);
  }
};

// Where the source is walked pixel by pixel, as backward does.
template <template <typename, int, int, bool> typename Walk, typename Number, int COLS>
TileFn strip_beside(bool trimmed) {
  constexpr bool kFull = COLS == kTileColumns;
  return trimmed && kFull ? Walk<Number, COLS, 1, kFull>::walk : Walk<Number, COLS, 1, false>::walk;
}

template <typename Number, int COLS>
TileFn strip_for(const Gather& g) {
  const std::int64_t step = g.source_step_x;
  const bool trimmed = g.program.trimmed;
  if (g.y && g.correlates()) return strip_beside<SumsAndSlopes, Number, COLS>(trimmed);
  if (!g.y) return strip_beside<Slopes, Number, COLS>(trimmed);
  if (step == 1) return strip_beside<Sums, Number, COLS>(trimmed);
  if (step == 2 && COLS == kTileColumns) return Sums<Number, COLS, 2, false>::walk;
  return Sums<Number, COLS, 0, false>::walk;
}

}  // namespace

// Which loop walks a tile, or the halves that fill a remainder: 4, 2 and 1 in each direction.
#pragma once

#include "gather_tile.h"
#include "strip_tile.h"

namespace {

struct TileSet {
  TileFn by_shape[3][3] = {};  // of strips the first row, for any number of rows

  explicit TileSet(const Gather& g) {
    with_number(g.half, [&](auto zero) {
      using Number = decltype(zero);
      fill_row<Number, 1>(g, by_shape[0]);
      if (g.strips()) return;
      fill_row<Number, 2>(g, by_shape[1]);
      if constexpr (kTileRows == 4) fill_row<Number, 4>(g, by_shape[2]);
    });
  }

 private:
  template <typename Number, int ROWS>
  static void fill_row(const Gather& g, TileFn* row) {
    row[0] = choose<Number, ROWS, 1>(g);
    row[1] = choose<Number, ROWS, 2>(g);
    row[2] = choose<Number, ROWS, 4>(g);
  }

  template <typename Number, int ROWS, int COLS>
  static TileFn choose(const Gather& g) {
    const std::int64_t step = g.source_step_x;
    const bool trimmed = g.program.trimmed;
    if (ROWS == 1 && g.strips()) return strip_for<Number, COLS>(g);
    if (g.y && g.correlates()) return tile_for<Number, ROWS, COLS, true, true>(step, trimmed);
    if (g.y) return tile_for<Number, ROWS, COLS, true, false>(step, trimmed);
    return tile_for<Number, ROWS, COLS, false, true>(step, trimmed);
  }
};

// 4, 2 or 1: the largest that fits, as a power.
inline int tile_power(std::int64_t left, int largest) {
  if (left >= 4 && largest == 4) return 2;
  return left >= 2 ? 1 : 0;
}

}  // namespace

// Which targets of a gather meet the same source lines, and are walked together as a strip (gather.h).
//
// Rows of a pattern are strips where neighbours keep the same columns (granularities `vector:G`, `block:B`, `channel`),
// inputs where neighbours are kept by the same rows under the same taps (`block:B`, `channel`). Only the kept positions
// are asked, whatever the granularity is called. Targets without any stand in strips of their own and part no others:
// what `channel` keeps may lie far apart.
#pragma once

#include <cstdint>
#include <vector>

#include "fedsparse/shapes.h"

namespace fedsparse {

struct Strips {
  std::int64_t width = 1;             // most targets of a strip; at 1 targets are walked one by one
  std::int64_t count = 0;             // strips
  std::int64_t entries = 0;           // kept positions of a member, of all strips together
  std::vector<std::int32_t> members;  // (count, width) targets, ascending, and -1 behind them; empty at width 1

  bool shared() const { return width > 1; }
  const std::int32_t* of(std::int64_t strip) const { return members.data() + strip * width; }
  // The target whose kept positions stand for those of the whole strip.
  std::int64_t leader(std::int64_t strip) const { return shared() ? *of(strip) : strip; }
};

// Strips of a pattern's rows, each inside one of the convolution's groups, where they pay; single rows elsewhere.
Strips row_strips(const PatternView& pattern, std::int64_t groups, std::int64_t width);
// Strips of its inputs where they pay; single inputs elsewhere.
Strips input_strips(const PatternView& pattern, std::int64_t width);

}  // namespace fedsparse

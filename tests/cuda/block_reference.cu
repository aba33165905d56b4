// Lists of the lines that strips keep, made on the host by sorting: what those of the device are compared with.
#include <cuda_runtime.h>

#include <algorithm>
#include <array>

#include "../../csrc/cuda/block.h"  // not the shim's
#include "cuda_api.h"

namespace fedsparse::block {
namespace {

// A kept weight in the order of a list: of a strip and slab, by line, then by row of the strip.
struct Weight {
  std::int64_t entry;  // of `start`
  std::uint16_t distance;
  std::int16_t row;
  std::int32_t value;

  bool operator<(const Weight& other) const {
    if (entry != other.entry) return entry < other.entry;
    return distance != other.distance ? distance < other.distance : row < other.row;
  }
};

// The weights of one line of a strip.
struct Line {
  const Weight *first, *last;

  std::uint16_t distance() const { return first->distance; }
};

struct Layout {
  csr16::Plan plan;
  std::int32_t width, strips;  // strips of a group
  bool wide;

  std::int64_t entries() const {
    return static_cast<std::int64_t>(plan.grids.size()) * plan.groups * strips * plan.slabs;
  }
  std::int32_t rows(std::int64_t entry) const {
    const auto strip = static_cast<std::int32_t>(entry / plan.slabs % strips);
    return std::min(width, plan.group_targets() - strip * width);
  }
  // Distance of the zeros behind a slab.
  std::uint16_t zeros(std::int64_t entry) const {
    const std::int64_t grid = entry / plan.slabs / strips / plan.groups;
    return static_cast<std::uint16_t>(plan.slab_channels * plan.grids[static_cast<std::size_t>(grid)].pitch);
  }
};

bool make_layout(const ConvShape& shape, bool backward, std::int64_t dtype, std::int64_t width, Layout& layout) {
  if ((width != 8 && width != 16 && width != 32) || !make_plan(shape, backward, is_wide(dtype), layout.plan))
    return false;
  layout.width = static_cast<std::int32_t>(width);
  layout.strips = strips(layout.plan.group_targets(), layout.width);
  layout.wide = is_wide(dtype);
  return true;
}

std::vector<Weight> sorted_weights(const Layout& layout, bool backward, const ConvShape& shape,
                                   const PatternView& pattern) {
  const csr16::Plan& plan = layout.plan;
  std::vector<Weight> weights;
  weights.reserve(static_cast<std::size_t>(pattern.nnz));
  csr16::each_kept(plan, backward, shape, pattern, [&](const csr16::Kept& kept) {
    const std::int64_t group = kept.row / plan.group_targets(), target = kept.row % plan.group_targets();
    const std::int64_t strip = group * layout.strips + target / layout.width;
    weights.push_back({strip * plan.slabs + kept.slab, kept.distance, static_cast<std::int16_t>(target % layout.width),
                       static_cast<std::int32_t>(kept.value)});
  });
  std::sort(weights.begin(), weights.end());
  return weights;
}

// Calls visit(entry, its lines by distance) for every entry that keeps any.
template <typename F>
void each_entry(const std::vector<Weight>& weights, F&& visit) {
  std::vector<Line> lines;
  const Weight* const end = weights.data() + weights.size();
  for (const Weight* at = weights.data(); at != end;) {
    const std::int64_t entry = at->entry;
    lines.clear();
    while (at != end && at->entry == entry) {
      const Weight* const first = at;
      while (at != end && at->entry == entry && at->distance == first->distance) ++at;
      lines.push_back({first, at});
    }
    visit(entry, lines);
  }
}

// Lines in an order in which 8 neighbours, a matrix of one load, lie in different banks as far as they can: one of each
// of the 8 colours, distance modulo 8, in turn; where colours have run out, more of the fullest.
std::vector<Line> spread_over_banks(const std::vector<Line>& lines) {
  std::array<std::vector<Line>, 8> colours;
  for (auto line = lines.rbegin(); line != lines.rend(); ++line) colours[line->distance() % 8].push_back(*line);
  std::vector<Line> order;
  const auto take = [&order](std::vector<Line>& from) {
    order.push_back(from.back());
    from.pop_back();
  };
  while (order.size() < lines.size()) {
    const std::size_t end = std::min(order.size() + 8, lines.size());
    for (auto& colour : colours)
      if (!colour.empty()) take(colour);
    while (order.size() < end)
      take(*std::max_element(colours.begin(), colours.end(),
                             [](const auto& a, const auto& b) { return a.size() < b.size(); }));
  }
  return order;
}

// Fills the chunks of one entry.
void fill(const Layout& layout, const std::vector<Line>& lines, std::uint16_t* offset, std::int32_t* value) {
  for (std::size_t i = 0; i < lines.size(); ++i) {
    const std::size_t chunk = i / kChunk;
    const auto k = static_cast<int>(i % kChunk);
    offset[chunk * kChunk + place_of_line(k, layout.wide)] = lines[i].distance();
    for (const Weight* w = lines[i].first; w != lines[i].last; ++w)
      value[chunk * kChunk * layout.width + place_in_chunk(k, w->row, layout.width, layout.wide)] = w->value;
  }
}

// Whether the lines of all strips have a weight in every row.
bool full(const Layout& layout, const std::vector<Weight>& weights) {
  bool all = true;
  each_entry(weights, [&](std::int64_t entry, const std::vector<Line>& lines) {
    for (const Line& line : lines) all = all && line.last - line.first == layout.rows(entry);
  });
  return all;
}

// Whether strips of `width` rows keep the same columns each.
bool same_columns(const PatternView& pattern, std::int64_t width) {
  for (std::int64_t row = 0; row < pattern.rows; ++row) {
    const std::int32_t *first = pattern.row_start + row / width * width, *mine = pattern.row_start + row;
    if (mine[1] - mine[0] != first[1] - first[0]) return false;
    for (std::int32_t i = 0; i < mine[1] - mine[0]; ++i)
      if (pattern.column[mine[0] + i] != pattern.column[first[0] + i]) return false;
  }
  return true;
}

// A strip may end with the weight, but not reach into the next group; half of it has to be used.
std::int64_t forward_width(const ConvShape& shape, const PatternView& pattern) {
  const std::int64_t outputs = shape.out_channels / shape.groups;
  for (const std::int64_t width : {32, 16, 8})
    if (width < 2 * outputs && (shape.groups == 1 || outputs % width == 0) && same_columns(pattern, width))
      return width;
  return 0;
}

// 32 for blocks of so many inputs. Strips of 16 cost vectors the least: their union is nearer to what is kept than that
// of 32, while strips of 8 read each line from shared memory twice as often.
std::int64_t backward_width(const ConvShape& shape, std::int64_t dtype, const PatternView& pattern) {
  Layout layout;
  const std::int64_t inputs = shape.in_channels / shape.groups;
  if (inputs > 16 && make_layout(shape, true, dtype, 32, layout) &&
      full(layout, sorted_weights(layout, true, shape, pattern)))
    return 32;
  return inputs <= 8 ? 8 : 16;
}

}  // namespace
}  // namespace fedsparse::block

using namespace fedsparse;
using namespace fedsparse::block;

extern "C" {

// The widest strip (32, 16 or 8) of the pattern's structure: forward, the output channels that keep the same columns;
// backward, the input channels whose list costs least. 0 where the pattern has no such structure.
std::int64_t reference_block_width(const ConvShape* shape, bool backward, std::int64_t dtype,
                                   const PatternView* pattern) {
  csr16::Plan plan;
  if (!make_plan(*shape, backward, is_wide(dtype), plan) || forward_width(*shape, *pattern) == 0) return 0;
  return backward ? backward_width(*shape, dtype, *pattern) : forward_width(*shape, *pattern);
}

// Fills `start`; its last entry is the number of chunks. Fails in the forward direction where rows of a strip keep
// different columns.
int reference_block_start(const ConvShape* shape, bool backward, std::int64_t dtype, std::int64_t width,
                          const PatternView* pattern, std::int32_t* start) {
  Layout layout;
  if (!make_layout(*shape, backward, dtype, width, layout)) return cudaErrorInvalidValue;
  const std::vector<Weight> weights = sorted_weights(layout, backward, *shape, *pattern);
  if (!backward && !full(layout, weights)) return cudaErrorInvalidValue;
  std::fill(start, start + layout.entries() + 1, 0);
  each_entry(weights, [&](std::int64_t entry, const std::vector<Line>& lines) {
    start[entry + 1] = static_cast<std::int32_t>((lines.size() + kChunk - 1) / kChunk);
  });
  for (std::int64_t entry = 0; entry < layout.entries(); ++entry) start[entry + 1] += start[entry];
  return cudaSuccess;
}

// Fills the list: offset (chunks * 16) and value (chunks * 16 * width).
int reference_block_list(const ConvShape* shape, bool backward, std::int64_t dtype, std::int64_t width,
                         const PatternView* pattern, const std::int32_t* start, std::uint16_t* offset,
                         std::int32_t* value) {
  Layout layout;
  if (!make_layout(*shape, backward, dtype, width, layout)) return cudaErrorInvalidValue;
  for (std::int64_t entry = 0; entry < layout.entries(); ++entry)
    std::fill(offset + std::int64_t{start[entry]} * kChunk, offset + std::int64_t{start[entry + 1]} * kChunk,
              layout.zeros(entry));
  std::fill(value, value + start[layout.entries()] * std::int64_t{kChunk} * layout.width, -1);
  each_entry(sorted_weights(layout, backward, *shape, *pattern),
             [&](std::int64_t entry, const std::vector<Line>& lines) {
               const std::int64_t first = std::int64_t{start[entry]} * kChunk;
               fill(layout, spread_over_banks(lines), offset + first, value + first * layout.width);
             });
  return cudaSuccess;
}

}  // extern "C"

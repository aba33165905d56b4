#include "program.h"

#include <algorithm>
#include <cstring>

namespace fedsparse {
namespace {

// Budgets of one core, a little under the sizes of current server and laptop cores (48 KB and 1 MB).
constexpr std::int64_t kL1Bytes = 36 * 1024;
constexpr std::int64_t kL2Bytes = 640 * 1024;
// Entries a segment needs to pay for moving its tiles in and out of memory: one going forward, three going backward.
constexpr std::int64_t kEntriesForward = 12, kEntriesBackward = 40;

template <typename F>
void with_type(const Index& index, F&& f) {
  if (index.wide)
    f(static_cast<const std::int32_t*>(index.data));
  else
    f(static_cast<const std::uint16_t*>(index.data));
}

Program take(Arena& arena, std::int64_t count, std::int64_t targets, std::int64_t blocks, std::int64_t classes,
             bool with_origin) {
  Program p;
  p.count = count;
  p.targets = targets;
  p.blocks = blocks;
  p.classes = classes;
  p.entries = arena.take<Entry>(count);
  p.origin = with_origin ? arena.take<std::int32_t>(count) : nullptr;
  p.segment = arena.take<std::int32_t>(classes * blocks * targets + 1);
  p.load = arena.take<std::int32_t>(targets + 1);
  return p;
}

// Counts, standing one place late, become starts.
void accumulate(std::int32_t* counts, std::int64_t n) {
  for (std::int64_t i = 0; i < n; ++i) counts[i + 1] += counts[i];
}

void sum_loads(Program& p) {
  const std::int64_t slots = p.classes * p.blocks;
  p.load[0] = 0;
  for (std::int64_t t = 0; t < p.targets; ++t) {
    std::int32_t entries = 0;
    for (std::int64_t s = 0; s < slots; ++s)
      entries += p.segment[s * p.targets + t + 1] - p.segment[s * p.targets + t];
    p.load[t + 1] = p.load[t] + entries;
  }
}

std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

}  // namespace

std::int64_t choose_blocks(const Kernels& k, const Geometry& g, const PatternView& pattern, std::int64_t channels,
                           std::int64_t targets, std::int64_t entries_per_segment) {
  std::int64_t reach_y = 0, reach_x = 0;  // lines the taps of one pixel span
  for (const std::int64_t line : g.tap_line)
    for (const std::int64_t from : g.tap_line) {
      reach_y = std::max(reach_y, line / g.source.pitch - from / g.source.pitch + 1);
      reach_x = std::max(reach_x, line % g.source.pitch - from % g.source.pitch + 1);
    }
  const std::int64_t tile_y = std::min<std::int64_t>(k.gather.tile_rows, g.grids[0].rows);
  const std::int64_t tile_x = std::min<std::int64_t>(k.gather.tile_columns, g.grids[0].columns);
  const std::int64_t lines = ((tile_y - 1) * g.source_step_y + reach_y) *
                             std::min(g.source.pitch, (tile_x - 1) * g.source_step_x + reach_x);
  const std::int64_t bytes = channels * lines * k.lanes * static_cast<std::int64_t>(sizeof(float));
  const std::int64_t segments = targets * static_cast<std::int64_t>(g.grids.size());
  const std::int64_t fill_l1 = ceil_div(bytes, kL1Bytes), fill_l2 = ceil_div(bytes, kL2Bytes);
  const std::int64_t affordable = pattern.nnz / (segments * entries_per_segment);
  const std::int64_t blocks = affordable * 2 >= fill_l1 ? std::min(fill_l1, std::max<std::int64_t>(affordable, 1)) : fill_l2;
  return std::clamp<std::int64_t>(blocks, 1, channels);
}

Program forward_program(const Kernels& kernels, const ConvShape& shape, const Geometry& g, const PatternView& pattern,
                        const float* values, int threads, Arena& arena) {
  const std::int64_t rows = pattern.rows, inputs = pattern.inputs, taps = pattern.taps;
  const std::int64_t blocks = choose_blocks(kernels, g, pattern, inputs, rows, kEntriesForward);
  const std::int64_t block_columns = ceil_div(inputs, blocks) * taps;
  Program p = take(arena, pattern.nnz, rows, blocks, 1, false);
  std::int32_t* offset = arena.take<std::int32_t>(inputs * taps);
  if (!p.load) return p;

  for (std::int64_t j = 0; j < inputs; ++j)
    for (std::int64_t tap = 0; tap < taps; ++tap)
      offset[j * taps + tap] = static_cast<std::int32_t>((j * g.source.lines + g.tap_line[static_cast<std::size_t>(tap)]) * kernels.lanes);

  const std::int64_t rows_per_group = rows / shape.groups;
  with_type(pattern.column, [&](const auto* column) {
    std::memset(p.segment, 0, static_cast<std::size_t>(blocks * rows + 1) * sizeof(std::int32_t));
#pragma omp parallel for num_threads(threads) schedule(static) if (blocks > 1)
    for (std::int64_t row = 0; row < rows; ++row) {
      std::int64_t i = pattern.row_start[row];
      const std::int64_t end = pattern.row_start[row + 1];
      for (std::int64_t b = 0; b < blocks; ++b) {
        const std::int64_t begin = i;
        if (b + 1 == blocks)
          i = end;
        else
          while (i < end && column[i] < (b + 1) * block_columns) ++i;
        p.segment[b * rows + row + 1] = static_cast<std::int32_t>(i - begin);
      }
    }
    accumulate(p.segment, blocks * rows);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (std::int64_t row = 0; row < rows; ++row) {
      const std::int32_t base =
          static_cast<std::int32_t>(row / rows_per_group * inputs * g.source.lines * kernels.lanes);
      std::int64_t i = pattern.row_start[row];
      for (std::int64_t b = 0; b < blocks; ++b) {
        const std::int64_t end = p.segment[b * rows + row + 1];
        for (std::int64_t at = p.segment[b * rows + row]; at < end; ++at, ++i)
          p.entries[at] = {values[i], offset[column[i]] + base};
      }
    }
  });
  sum_loads(p);
  return p;
}

Program backward_program(const Kernels& kernels, const ConvShape& shape, const Geometry& g,
                         const PatternView& pattern, const float* values, int threads, Arena& arena) {
  const std::int64_t rows = pattern.rows, inputs = pattern.inputs, taps = pattern.taps;
  const std::int64_t rows_per_group = rows / shape.groups, targets = inputs * shape.groups;
  const std::int64_t classes = static_cast<std::int64_t>(g.grids.size());
  const std::int64_t blocks = choose_blocks(kernels, g, pattern, rows_per_group, targets, kEntriesBackward);
  const std::int64_t block_rows = ceil_div(rows_per_group, blocks);
  // What a transposed entry (row, tap) becomes, looked up instead of divided out.
  struct Place {
    std::int32_t offset, row_start, slot;
  };
  Program p = take(arena, pattern.nnz, targets, blocks, classes, true);
  Place* places = arena.take<Place>(rows * taps);
  std::int32_t* next = arena.take<std::int32_t>(classes * blocks * targets);
  if (!p.load) return p;

  for (std::int64_t row = 0; row < rows; ++row)
    for (std::int64_t tap = 0; tap < taps; ++tap) {
      const std::int64_t group = row / rows_per_group, block = row % rows_per_group / block_rows;
      Place& place = places[row * taps + tap];
      place.offset = static_cast<std::int32_t>((row * g.source.lines + g.tap_line[static_cast<std::size_t>(tap)]) * kernels.lanes);
      place.row_start = pattern.row_start[row];
      place.slot = static_cast<std::int32_t>((g.tap_class[static_cast<std::size_t>(tap)] * blocks + block) * targets + group * inputs);
    }

  with_type(pattern.entry, [&](const auto* entry) {
    std::memset(p.segment, 0, static_cast<std::size_t>(classes * blocks * targets + 1) * sizeof(std::int32_t));
    if (classes * blocks * shape.groups == 1) {
      std::memcpy(p.segment, pattern.column_start, static_cast<std::size_t>(inputs + 1) * sizeof(std::int32_t));
    } else {
#pragma omp parallel for num_threads(threads) schedule(static)
      for (std::int64_t j = 0; j < inputs; ++j)
        for (std::int64_t i = pattern.column_start[j]; i < pattern.column_start[j + 1]; ++i)
          ++p.segment[places[entry[i]].slot + j + 1];
      accumulate(p.segment, classes * blocks * targets);
    }
    std::memcpy(next, p.segment, static_cast<std::size_t>(classes * blocks * targets) * sizeof(std::int32_t));
    with_type(pattern.rank, [&](const auto* rank) {
#pragma omp parallel for num_threads(threads) schedule(static)
      for (std::int64_t j = 0; j < inputs; ++j)
        for (std::int64_t i = pattern.column_start[j]; i < pattern.column_start[j + 1]; ++i) {
          const Place& place = places[entry[i]];
          const std::int32_t at = next[place.slot + j]++, value = place.row_start + rank[i];
          p.entries[at] = {values[value], place.offset};
          p.origin[at] = value;
        }
    });
  });
  sum_loads(p);
  return p;
}

Program pruned_program(const Kernels& kernels, const ConvShape& shape, const Geometry& g, const PatternView& pattern,
                       std::int64_t first, std::int64_t last, std::int64_t capacity, Arena& arena) {
  const std::int64_t inputs = pattern.inputs, taps = pattern.taps, columns = inputs * taps;
  const std::int64_t rows_per_group = pattern.rows / shape.groups, targets = inputs * shape.groups;
  const std::int64_t classes = static_cast<std::int64_t>(g.grids.size()), slots = classes * targets;
  Program p = take(arena, capacity, targets, 1, classes, true);
  std::uint8_t* kept = arena.take<std::uint8_t>((last - first) * columns);
  std::int32_t* next = arena.take<std::int32_t>(slots);
  if (!p.load) return p;

  std::memset(kept, 0, static_cast<std::size_t>((last - first) * columns));
  for (std::int64_t row = first; row < last; ++row)
    for (std::int64_t i = pattern.row_start[row]; i < pattern.row_start[row + 1]; ++i)
      kept[(row - first) * columns + pattern.column[i]] = 1;

  const auto each_pruned = [&](auto&& visit) {
    for (std::int64_t row = first; row < last; ++row)
      for (std::int64_t j = 0; j < inputs; ++j)
        for (std::int64_t tap = 0; tap < taps; ++tap) {
          const std::int64_t flat = (row - first) * columns + j * taps + tap;
          if (kept[flat]) continue;
          const std::size_t t = static_cast<std::size_t>(tap);
          visit(g.tap_class[t] * targets + row / rows_per_group * inputs + j, flat,
                ((row - first) * g.source.lines + g.tap_line[t]) * kernels.lanes);
        }
  };
  std::memset(p.segment, 0, static_cast<std::size_t>(slots + 1) * sizeof(std::int32_t));
  each_pruned([&](std::int64_t slot, std::int64_t, std::int64_t) { ++p.segment[slot + 1]; });
  accumulate(p.segment, slots);
  p.count = p.segment[slots];
  std::memcpy(next, p.segment, static_cast<std::size_t>(slots) * sizeof(std::int32_t));
  each_pruned([&](std::int64_t slot, std::int64_t flat, std::int64_t offset) {
    const std::int32_t at = next[slot]++;
    p.entries[at] = {0.0f, static_cast<std::int32_t>(offset)};
    p.origin[at] = static_cast<std::int32_t>(flat);
  });
  sum_loads(p);
  return p;
}

}  // namespace fedsparse

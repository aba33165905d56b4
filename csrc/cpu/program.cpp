#include "program.h"

#include <algorithm>
#include <cstring>
#include <utility>

#ifdef _OPENMP
#include <omp.h>
#endif

namespace fedsparse {
namespace {

// Budgets of one core, a little under the sizes of current server and laptop cores (48 KB and 1 MB).
constexpr std::int64_t kL1Bytes = 36 * 1024;
constexpr std::int64_t kL2Bytes = 640 * 1024;
// Entries a segment needs to pay for moving its tiles in and out of memory: one going forward, three going backward,
// which the prefetcher mostly hides.
constexpr std::int64_t kEntriesForward = 12, kEntriesBackward = 20;
// Where taps are told apart, a segment also pays for every change of tap.
constexpr std::int64_t kEntriesTrimmed = 100;
// Numbers of two cache lines, which processors fetch together: what threads count must not share them.
constexpr std::int64_t kApart = 128 / sizeof(std::int32_t);

template <typename F>
void with_type(const Index& index, F&& f) {
  if (index.wide)
    f(static_cast<const std::int32_t*>(index.data));
  else
    f(static_cast<const std::uint16_t*>(index.data));
}

Program take(Arena& arena, const Strips& strips, std::int64_t groups, std::int64_t blocks, std::int64_t classes,
             bool with_origin) {
  Program p;
  const std::int64_t entries = strips.entries, targets = strips.count * groups;
  p.count = entries * strips.width;
  p.targets = targets;
  p.width = strips.width;
  p.blocks = blocks;
  p.classes = classes;
  if (strips.shared()) {
    p.offsets = arena.take<std::int32_t>(entries);
    p.weights = arena.take<float>(p.count);
  } else {
    p.entries = arena.take<Entry>(entries);
  }
  p.origin = with_origin ? arena.take<std::int32_t>(p.count) : nullptr;
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

int rank_in_team() {
#ifdef _OPENMP
  return omp_get_thread_num();
#else
  return 0;
#endif
}

std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

// How many ranges to cut the source channels into. A block's halo should stay in the L1 cache while all targets
// walk it, but every segment costs loading and storing the tile's accumulators, so it must hold enough entries.
std::int64_t choose_blocks(const Problem& problem, const Geometry& g, const Strips& strips, std::int64_t channels,
                           std::int64_t targets, std::int64_t entries_per_segment) {
  if (problem.shape.groups > 1) return 1;  // a target sees few of the channels
  const std::int64_t bytes = channels * g.halo.lines() * problem.kernels->lanes * static_cast<std::int64_t>(sizeof(float));
  const std::int64_t segments = targets * static_cast<std::int64_t>(g.grids.size());
  const std::int64_t fill_l1 = ceil_div(bytes, kL1Bytes), fill_l2 = ceil_div(bytes, kL2Bytes);
  if (strips.shared()) return std::clamp<std::int64_t>(fill_l2, 1, channels);  // they load too little to ask for the L1
  const std::int64_t affordable = problem.pattern.nnz / (segments * entries_per_segment);
  const std::int64_t blocks = affordable * 2 >= fill_l1 ? std::min(fill_l1, std::max<std::int64_t>(affordable, 1)) : fill_l2;
  return std::clamp<std::int64_t>(blocks, 1, channels);
}

// What an entry of the pattern becomes, looked up instead of divided out.
struct Place {
  std::int32_t offset, bin;
  std::int32_t row_start = 0;
};

std::int64_t line_bytes(const Problem& problem) { return problem.kernels->lanes * static_cast<std::int64_t>(sizeof(float)); }

// From a pixel's place in a block's halo to the line of a tap, with the tap's edge.
std::int32_t offset_of(const Problem& problem, const Geometry& g, std::int64_t channel, std::int64_t tap) {
  const auto t = static_cast<std::size_t>(tap);
  const std::int64_t bytes = (channel * g.halo.lines() + g.tap_line[t]) * line_bytes(problem);
  return static_cast<std::int32_t>(bytes + (g.trimmed ? g.tap_edge[t] : 0));
}

// Segments (block, strip) of rows whose columns ascend.
template <typename C>
void cut_rows(const PatternView& pattern, const Strips& strips, const C* column, std::int64_t blocks,
              std::int64_t block_columns, int threads, std::int32_t* segment) {
  segment[0] = 0;
#pragma omp parallel for num_threads(threads) schedule(static)
  for (std::int64_t s = 0; s < strips.count; ++s) {
    const std::int64_t row = strips.leader(s), end = pattern.row_start[row + 1];
    std::int64_t i = pattern.row_start[row];
    for (std::int64_t b = 0; b < blocks; ++b) {
      const std::int64_t begin = i;
      if (blocks == 1) i = end;
      while (i < end && column[i] < (b + 1) * block_columns) ++i;
      segment[b * strips.count + s + 1] = static_cast<std::int32_t>(i - begin);
    }
  }
  accumulate(segment, blocks * strips.count);
}

// Entry `at`, which belongs to a strip. value_of(member): the index of its value.
template <typename ValueOf>
inline void put_strip(const Program& p, const Strips& strips, std::int64_t at, std::int64_t strip, std::int32_t offset,
                      const float* values, ValueOf&& value_of) {
  const std::int32_t* const member = strips.of(strip);
  p.offsets[at] = offset;
  for (std::int64_t w = 0; w < strips.width; ++w) {
    const std::int64_t value = member[w] < 0 ? -1 : static_cast<std::int64_t>(value_of(member[w]));
    p.weights[at * strips.width + w] = value < 0 ? 0.0f : values[value];
    if (p.origin) p.origin[at * strips.width + w] = static_cast<std::int32_t>(value);
  }
}

}  // namespace

Program forward_program(const Problem& problem, const Geometry& g, const Strips& strips, const float* values,
                        Arena& arena) {
  const PatternView& pattern = problem.pattern;
  const std::int64_t rows = pattern.rows, inputs = pattern.inputs, taps = pattern.taps;
  const std::int64_t blocks =
      choose_blocks(problem, g, strips, inputs, rows, g.trimmed ? kEntriesTrimmed : kEntriesForward);
  const std::int64_t block_inputs = ceil_div(inputs, blocks);
  // A row lists its channels in turn. Where taps have edges, those of a tap shall stand together within a block.
  const std::int64_t block_bins = g.trimmed ? taps : 1, bins = blocks * block_bins;
  Program p = take(arena, strips, 1, blocks, 1, false);
  p.members = strips.members.data();
  p.block_channels = blocks > 1 ? block_inputs : g.source.channels;
  p.trimmed = g.trimmed;
  Place* places = arena.take<Place>(inputs * taps);
  const std::int64_t own_bins = ceil_div(bins, kApart) * kApart;
  std::int32_t* counts = arena.take<std::int32_t>(problem.threads * own_bins);
  if (!p.load) return p;

  for (std::int64_t j = 0; j < inputs; ++j)
    for (std::int64_t tap = 0; tap < taps; ++tap) {
      const std::int64_t bin = j / block_inputs * block_bins + tap % block_bins;
      places[j * taps + tap] = {offset_of(problem, g, j % block_inputs, tap), static_cast<std::int32_t>(bin)};
    }

  const std::int64_t group_bytes = inputs * g.halo.lines() * line_bytes(problem);
  const std::int32_t* const row_start = pattern.row_start;
  const auto fill = [&](const auto* column, auto put) {
#pragma omp parallel num_threads(problem.threads)
    {
      std::int32_t* const next = counts + rank_in_team() * own_bins;
#pragma omp for schedule(static)
      for (std::int64_t s = 0; s < strips.count; ++s) {
        const std::int64_t row = strips.leader(s), begin = row_start[row], end = row_start[row + 1];
        std::fill(next, next + bins, 0);
        if (g.trimmed)
          for (std::int64_t i = begin; i < end; ++i) ++next[places[column[i]].bin];
        for (std::int64_t b = 0; b < blocks; ++b) {
          std::int32_t at = p.segment[b * strips.count + s];
          for (std::int64_t k = b * block_bins; k < (b + 1) * block_bins; ++k) at += std::exchange(next[k], at);
        }
        const std::int32_t base = static_cast<std::int32_t>(row / (rows / problem.shape.groups) * group_bytes);
        for (std::int64_t i = begin; i < end; ++i) {
          const Place& place = places[column[i]];
          put(next[place.bin]++, s, i - begin, place.offset + base);
        }
      }
    }
  };
  with_type(pattern.column, [&](const auto* column) {
    cut_rows(pattern, strips, column, blocks, block_inputs * taps, problem.threads, p.segment);
    if (strips.shared())
      fill(column, [&](std::int64_t at, std::int64_t strip, std::int64_t place, std::int32_t offset) {
        put_strip(p, strips, at, strip, offset, values, [&](std::int64_t row) { return row_start[row] + place; });
      });
    else
      fill(column, [&](std::int64_t at, std::int64_t row, std::int64_t place, std::int32_t offset) {
        p.entries[at] = {values[row_start[row] + place], offset};
      });
  });
  sum_loads(p);
  return p;
}

Program backward_program(const Problem& problem, const Geometry& g, const Strips& strips, const float* values,
                         Arena& arena) {
  const PatternView& pattern = problem.pattern;
  const std::int64_t groups = problem.shape.groups;
  const std::int64_t rows = pattern.rows, inputs = pattern.inputs, taps = pattern.taps;
  const std::int64_t each = strips.count, targets = each * groups;
  const std::int64_t classes = static_cast<std::int64_t>(g.grids.size());
  const std::int64_t blocks =
      choose_blocks(problem, g, strips, rows, inputs * groups, g.trimmed ? kEntriesTrimmed : kEntriesBackward);
  const std::int64_t block_rows = ceil_div(rows, blocks);
  Program p = take(arena, strips, groups, blocks, classes, true);
  std::int32_t* members = arena.take<std::int32_t>(strips.shared() ? targets * strips.width : 0);
  p.members = members;
  p.block_channels = block_rows;
  p.trimmed = g.trimmed;
  Place* places = arena.take<Place>(rows * taps);
  std::int32_t* next = arena.take<std::int32_t>(classes * blocks * targets);
  if (!p.load) return p;

  for (std::int64_t tap = 0; tap < taps; ++tap)
    for (std::int64_t row = 0; row < rows; ++row) {
      const std::int64_t group = row / (rows / groups), block = row / block_rows;
      const std::int64_t segments = g.tap_class[static_cast<std::size_t>(tap)] * blocks + block;
      places[tap * rows + row] = {offset_of(problem, g, row % block_rows, tap),
                                  static_cast<std::int32_t>(segments * targets + group * each), pattern.row_start[row]};
    }
  for (std::size_t i = 0; i < strips.members.size(); ++i)
    for (std::int64_t group = 0; group < groups; ++group) {
      const std::int32_t input = strips.members[i];
      members[group * each * strips.width + static_cast<std::int64_t>(i)] =
          input < 0 ? input : static_cast<std::int32_t>(group * inputs + input);
    }

  const std::int32_t* const start = pattern.column_start;
  const auto fill = [&](const auto* entry, auto put) {
#pragma omp parallel for num_threads(problem.threads) schedule(static)
    for (std::int64_t s = 0; s < each; ++s) {
      const std::int64_t j = strips.leader(s);
      for (std::int64_t i = start[j]; i < start[j + 1]; ++i) {
        const Place& place = places[entry[i]];
        put(next[place.bin + s]++, s, i - start[j], place);
      }
    }
  };
  with_type(pattern.entry, [&](const auto* entry) {
    std::memset(p.segment, 0, static_cast<std::size_t>(classes * blocks * targets + 1) * sizeof(std::int32_t));
#pragma omp parallel for num_threads(problem.threads) schedule(static)
    for (std::int64_t s = 0; s < each; ++s)
      for (std::int64_t j = strips.leader(s), i = start[j]; i < start[j + 1]; ++i)
        ++p.segment[places[entry[i]].bin + s + 1];
    accumulate(p.segment, classes * blocks * targets);
    std::memcpy(next, p.segment, static_cast<std::size_t>(classes * blocks * targets) * sizeof(std::int32_t));
    with_type(pattern.rank, [&](const auto* rank) {
      if (strips.shared())
        fill(entry, [&](std::int64_t at, std::int64_t strip, std::int64_t i, const Place& place) {
          put_strip(p, strips, at, strip, place.offset, values,
                    [&](std::int64_t input) { return place.row_start + rank[start[input] + i]; });
        });
      else
        fill(entry, [&](std::int64_t at, std::int64_t input, std::int64_t i, const Place& place) {
          const std::int32_t value = place.row_start + rank[start[input] + i];
          p.entries[at] = {values[value], place.offset};
          p.origin[at] = value;
        });
    });
  });
  sum_loads(p);
  return p;
}

}  // namespace fedsparse

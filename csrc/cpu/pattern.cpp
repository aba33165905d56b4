// Patterns from masks and lists, their transposed lists, exchanged positions, and where values go then.
#include <algorithm>
#include <cstring>
#include <limits>
#include <type_traits>

#include "arena.h"
#include "fedsparse/api.h"

namespace fedsparse {
namespace {

constexpr std::int64_t kGrain = 1 << 13;  // list entries that a thread is worth starting for

int workers(std::int64_t entries, int threads) {
  return static_cast<int>(std::clamp<std::int64_t>(entries / kGrain, 1, threads));
}

// Calls visit with a pointer of the array's own type, so that loops do not ask for it at every entry.
template <typename F>
void typed(void* array, bool wide, F&& visit) {
  if (wide)
    visit(static_cast<std::int32_t*>(array));
  else
    visit(static_cast<std::uint16_t*>(array));
}

template <typename F>
void typed(const Index& index, F&& visit) {
  if (index.wide)
    visit(static_cast<const std::int32_t*>(index.data));
  else
    visit(static_cast<const std::uint16_t*>(index.data));
}

// Eight mask bytes at a time: at low density most words are zero and cost one comparison. The others are written
// without a branch on each byte, except near the end, where the entry after the last one is the next row's.
template <typename T>
void write_columns(const std::uint8_t* mask, std::int64_t columns, T* out, const T* end) {
  std::int64_t c = 0;
  for (; c + 8 <= columns && out + 8 <= end; c += 8) {
    std::uint64_t word;
    std::memcpy(&word, mask + c, sizeof word);
    if (word == 0) continue;
    for (std::int64_t b = 0; b < 8; ++b) {
      *out = static_cast<T>(c + b);
      out += mask[c + b] != 0;
    }
  }
  for (; out < end; ++c)
    if (mask[c]) *out++ = static_cast<T>(c);
}

// ---- transposition: a counting sort by column whose rows are split into parts, each with places of its own
struct Parts {
  std::int64_t rows, count;

  std::int64_t first(std::int64_t part) const { return rows * part / count; }
};

// The commonest kernels get a division by a constant.
template <typename F>
void with_taps(std::int64_t taps, F&& visit) {
  if (taps == 1)
    visit([](std::uint32_t) { return 0u; });
  else if (taps == 9)
    visit([](std::uint32_t column) { return column % 9; });
  else
    visit([taps = static_cast<std::uint32_t>(taps)](std::uint32_t column) { return column % taps; });
}

template <typename C>
void count_columns(const PatternView& p, const Parts& parts, const C* column, std::int32_t* places) {
  const std::int64_t columns = p.inputs * p.taps;
#pragma omp parallel for num_threads(parts.count) schedule(static)
  for (std::int64_t part = 0; part < parts.count; ++part) {
    std::int32_t* count = places + part * columns;
    std::memset(count, 0, static_cast<std::size_t>(columns) * sizeof(std::int32_t));
    for (std::int64_t i = p.row_start[parts.first(part)]; i < p.row_start[parts.first(part + 1)]; ++i) ++count[column[i]];
  }
}

// Counts become the place where each part's first entry of each column goes.
void place_columns(const PatternView& p, const Parts& parts, std::int32_t* places, std::int32_t* column_start) {
  const std::int64_t columns = p.inputs * p.taps;
  std::int32_t at = 0;
  for (std::int64_t column = 0; column < columns; ++column) {
    if (column % p.taps == 0) column_start[column / p.taps] = at;
    for (std::int64_t part = 0; part < parts.count; ++part) {
      std::int32_t& place = places[part * columns + column];
      const std::int32_t count = place;
      place = at;
      at += count;
    }
  }
  column_start[p.inputs] = at;
}

template <typename C, typename D, typename E, typename R>
void write_columns(const PatternView& p, const Parts& parts, const C* column, D&& tap_of, std::int32_t* places,
                   E* entry, R* rank) {
#pragma omp parallel for num_threads(parts.count) schedule(static)
  for (std::int64_t part = 0; part < parts.count; ++part) {
    std::int32_t* next = places + part * p.inputs * p.taps;
    for (std::int64_t row = parts.first(part); row < parts.first(part + 1); ++row)
      for (std::int32_t first = p.row_start[row], i = first; i < p.row_start[row + 1]; ++i) {
        const std::int32_t at = next[column[i]]++;
        entry[at] = static_cast<E>(tap_of(column[i]) * p.rows + row);
        rank[at] = static_cast<R>(i - first);
      }
  }
}

// ---- exchange
// One row merged from what stays of it and what is grown. `dropped` is the first dropped place at or after `at`.
template <typename C>
void merge_row(const C* column, std::int64_t at, std::int64_t end, const std::int64_t* dropped,
               const std::int64_t* dropped_end, const std::int64_t* grown, const std::int64_t* grown_end,
               std::int64_t base, C* out) {
  for (; at < end; ++at) {
    if (dropped < dropped_end && *dropped == at) {
      ++dropped;
      continue;
    }
    for (; grown < grown_end && *grown - base < column[at]; ++grown) *out++ = static_cast<C>(*grown - base);
    *out++ = column[at];
  }
  for (; grown < grown_end; ++grown) *out++ = static_cast<C>(*grown - base);
}

// ---- carry
template <typename A, typename B>
void carry_row(const A* from, std::int64_t old, std::int64_t old_end, const B* to, std::int64_t i, std::int64_t end,
               std::int32_t* places) {
  // Both lists advance without a branch on which is ahead, which nothing could predict.
  while (i < end && old < old_end) {
    const std::int32_t a = from[old], b = to[i];
    places[i] = a == b ? static_cast<std::int32_t>(old) : -1;
    i += a >= b;
    old += a <= b;
  }
  std::fill(places + i, places + end, -1);
}

}  // namespace

std::int64_t count_kept(const std::uint8_t* mask, std::int64_t rows, std::int64_t columns, std::int32_t* row_start,
                        int threads) {
  row_start[0] = 0;
#pragma omp parallel for num_threads(workers(rows * columns / 16, threads)) schedule(static)
  for (std::int64_t row = 0; row < rows; ++row) {
    std::int32_t kept = 0;
    const std::uint8_t* m = mask + row * columns;
    for (std::int64_t c = 0; c < columns; ++c) kept += m[c] != 0;
    row_start[row + 1] = kept;
  }
  for (std::int64_t row = 0; row < rows; ++row) row_start[row + 1] += row_start[row];
  return row_start[rows];
}

void list_columns(const std::uint8_t* mask, std::int64_t rows, std::int64_t columns, const std::int32_t* row_start,
                  void* column, bool wide, int threads) {
  typed(column, wide, [&](auto* out) {
#pragma omp parallel for num_threads(workers(rows * columns / 8, threads)) schedule(static)
    for (std::int64_t row = 0; row < rows; ++row)
      write_columns(mask + row * columns, columns, out + row_start[row], out + row_start[row + 1]);
  });
}

bool list_flat(const std::int64_t* flat, std::int64_t nnz, std::int64_t rows, std::int64_t columns,
               std::int32_t* row_start, void* column, bool wide) {
  bool ascending = true;
  typed(column, wide, [&](auto* out) {
    std::int64_t row = 0, base = 0, last = -1;
    row_start[0] = 0;
    for (std::int64_t i = 0; i < nnz && ascending; ++i) {
      ascending = flat[i] > last && flat[i] < rows * columns;
      last = flat[i];
      for (; ascending && last - base >= columns; base += columns) row_start[++row] = static_cast<std::int32_t>(i);
      out[i] = static_cast<std::remove_reference_t<decltype(*out)>>(last - base);
    }
    std::fill(row_start + row + 1, row_start + rows + 1, static_cast<std::int32_t>(nnz));
  });
  return ascending;
}

void transpose_pattern(const PatternView& p, std::int32_t* column_start, void* entry, bool entry_wide, void* rank,
                       bool rank_wide, std::int32_t* scratch, int threads) {
  const Parts parts{p.rows, workers(p.nnz, threads)};
  with_taps(p.taps, [&](auto tap_of) {
    typed(p.column, [&](const auto* column) {
      count_columns(p, parts, column, scratch);
      place_columns(p, parts, scratch, column_start);
      typed(entry, entry_wide, [&](auto* entries) {
        typed(rank, rank_wide,
              [&](auto* ranks) { write_columns(p, parts, column, tap_of, scratch, entries, ranks); });
      });
    });
  });
}

void carry(const PatternView& from, const PatternView& to, std::int32_t* places, int threads) {
  typed(from.column, [&](const auto* old) {
    typed(to.column, [&](const auto* column) {
#pragma omp parallel for num_threads(workers(to.nnz, threads)) schedule(static)
      for (std::int64_t row = 0; row < to.rows; ++row)
        carry_row(old, from.row_start[row], from.row_start[row + 1], column, to.row_start[row], to.row_start[row + 1],
                  places);
    });
  });
}

void carry_words(const std::uint32_t* words, const std::int32_t* places, std::int64_t count, std::uint32_t fill,
                 std::uint32_t* out, int threads) {
#pragma omp parallel for num_threads(workers(count, threads)) schedule(static)
  for (std::int64_t i = 0; i < count; ++i) out[i] = places[i] < 0 ? fill : words[places[i]];
}

void exchange(const PatternView& p, const std::int64_t* dropped, std::int64_t drops, const std::int64_t* grown,
              std::int64_t grows, std::int32_t* row_start, void* column, int threads) {
  const std::int64_t columns = p.inputs * p.taps;
  const std::int64_t *dropped_end = dropped + drops, *grown_end = grown + grows;
  const auto first_dropped = [&](std::int64_t row) { return std::lower_bound(dropped, dropped_end, p.row_start[row]); };
  const auto first_grown = [&](std::int64_t row) { return std::lower_bound(grown, grown_end, row * columns); };
  for (std::int64_t row = 0; row <= p.rows; ++row)
    row_start[row] = p.row_start[row] +
                     static_cast<std::int32_t>((first_grown(row) - grown) - (first_dropped(row) - dropped));
  typed(p.column, [&](const auto* old) {
    auto* out = static_cast<std::remove_const_t<std::remove_reference_t<decltype(*old)>>*>(column);
#pragma omp parallel for num_threads(workers(p.nnz + grows, threads)) schedule(static)
    for (std::int64_t row = 0; row < p.rows; ++row)
      merge_row(old, p.row_start[row], p.row_start[row + 1], first_dropped(row), dropped_end, first_grown(row),
                first_grown(row + 1), row * columns, out + row_start[row]);
  });
}

std::int64_t first_kept(const PatternView& p, const std::int64_t* flat, std::int64_t count, int threads) {
  constexpr std::int64_t kNone = std::numeric_limits<std::int64_t>::max();
  const std::int64_t columns = p.inputs * p.taps;
  std::int64_t first = kNone;
  typed(p.column, [&](const auto* column) {
#pragma omp parallel for num_threads(workers(p.nnz + count, threads)) schedule(static) reduction(min : first)
    for (std::int64_t row = 0; row < p.rows; ++row) {
      const std::int64_t base = row * columns;
      const std::int64_t* at = std::lower_bound(flat, flat + count, base);
      const std::int64_t* end = std::lower_bound(at, flat + count, base + columns);
      for (std::int64_t i = p.row_start[row]; i < p.row_start[row + 1] && at < end;) {
        const std::int64_t a = base + column[i], b = *at;
        if (a == b) first = std::min(first, b);
        i += a <= b;
        at += a >= b;
      }
    }
  });
  return first == kNone ? -1 : first;
}

std::int64_t sort_positions(std::int64_t* positions, std::int64_t* order, std::int64_t count, std::int64_t size,
                            void* workspace) {
  constexpr int kBits = 11;
  Arena arena(workspace);
  auto* buffer = arena.take<std::int64_t>(2 * count);
  auto* start = arena.take<std::int64_t>((1 << kBits) + 1);
  if (!workspace) return arena.used();
  for (std::int64_t i = 0; i < count; ++i) order[i] = i;
  for (int shift = 0; (size - 1) >> shift; shift += kBits) {
    const auto digit = [shift](std::int64_t position) { return (position >> shift) & ((1 << kBits) - 1); };
    std::fill(start, start + (1 << kBits) + 1, 0);
    for (std::int64_t i = 0; i < count; ++i) ++start[digit(positions[i]) + 1];
    for (std::int64_t d = 0; d < 1 << kBits; ++d) start[d + 1] += start[d];
    for (std::int64_t i = 0; i < count; ++i) {
      const std::int64_t at = start[digit(positions[i])]++;
      buffer[2 * at] = positions[i];
      buffer[2 * at + 1] = order[i];
    }
    for (std::int64_t i = 0; i < count; ++i) {
      positions[i] = buffer[2 * i];
      order[i] = buffer[2 * i + 1];
    }
  }
  return 0;
}

void scatter_words(const PatternView& p, const std::uint32_t* values, std::uint32_t* dense) {
  const std::int64_t columns = p.inputs * p.taps;
  std::memset(dense, 0, static_cast<std::size_t>(p.rows * columns) * sizeof(std::uint32_t));
  for (std::int64_t row = 0; row < p.rows; ++row)
    for (std::int64_t i = p.row_start[row]; i < p.row_start[row + 1]; ++i)
      dense[row * columns + p.column[i]] = values[i];
}

void gather_words(const PatternView& p, const std::uint32_t* dense, std::uint32_t* values) {
  const std::int64_t columns = p.inputs * p.taps;
  for (std::int64_t row = 0; row < p.rows; ++row)
    for (std::int64_t i = p.row_start[row]; i < p.row_start[row + 1]; ++i)
      values[i] = dense[row * columns + p.column[i]];
}

}  // namespace fedsparse

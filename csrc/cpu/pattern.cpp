// Patterns from masks, their transposed lists, and where values go when a pattern changes.
#include <cstring>

#include "fedsparse/api.h"

namespace fedsparse {
namespace {

// Eight mask bytes at a time: at low density most words are zero and cost one comparison.
template <typename F>
void each_kept(const std::uint8_t* mask, std::int64_t count, F&& visit) {
  std::int64_t i = 0;
  for (; i + 8 <= count; i += 8) {
    std::uint64_t word;
    std::memcpy(&word, mask + i, sizeof word);
    if (word == 0) continue;
    for (std::int64_t b = 0; b < 8; ++b)
      if (mask[i + b]) visit(i + b);
  }
  for (; i < count; ++i)
    if (mask[i]) visit(i);
}

template <typename T>
void write_columns(const std::uint8_t* mask, std::int64_t rows, std::int64_t columns, T* out) {
  for (std::int64_t row = 0; row < rows; ++row)
    each_kept(mask + row * columns, columns, [&](std::int64_t c) { *out++ = static_cast<T>(c); });
}

void put(void* array, bool wide, std::int64_t at, std::int64_t value) {
  if (wide)
    static_cast<std::int32_t*>(array)[at] = static_cast<std::int32_t>(value);
  else
    static_cast<std::uint16_t*>(array)[at] = static_cast<std::uint16_t>(value);
}

}  // namespace

std::int64_t count_kept(const std::uint8_t* mask, std::int64_t rows, std::int64_t columns, std::int32_t* row_start) {
  row_start[0] = 0;
  for (std::int64_t row = 0; row < rows; ++row) {
    std::int32_t kept = 0;
    const std::uint8_t* m = mask + row * columns;
    for (std::int64_t c = 0; c < columns; ++c) kept += m[c] != 0;
    row_start[row + 1] = row_start[row] + kept;
  }
  return row_start[rows];
}

void list_columns(const std::uint8_t* mask, std::int64_t rows, std::int64_t columns, void* column, bool wide) {
  if (wide)
    write_columns(mask, rows, columns, static_cast<std::int32_t*>(column));
  else
    write_columns(mask, rows, columns, static_cast<std::uint16_t*>(column));
}

void transpose_pattern(const PatternView& p, std::int32_t* column_start, void* entry, bool entry_wide, void* rank,
                       bool rank_wide, std::int32_t* next) {
  std::memset(column_start, 0, static_cast<std::size_t>(p.inputs + 1) * sizeof(std::int32_t));
  for (std::int64_t i = 0; i < p.nnz; ++i) ++column_start[p.column[i] / p.taps + 1];
  for (std::int64_t j = 0; j < p.inputs; ++j) column_start[j + 1] += column_start[j];
  std::memcpy(next, column_start, static_cast<std::size_t>(p.inputs) * sizeof(std::int32_t));
  for (std::int64_t row = 0; row < p.rows; ++row)
    for (std::int64_t i = p.row_start[row]; i < p.row_start[row + 1]; ++i) {
      const std::int64_t column = p.column[i], input = column / p.taps, at = next[input]++;
      put(entry, entry_wide, at, row * p.taps + column - input * p.taps);
      put(rank, rank_wide, at, i - p.row_start[row]);
    }
}

void carry(const PatternView& from, const PatternView& to, std::int32_t* places) {
  for (std::int64_t row = 0; row < to.rows; ++row) {
    std::int64_t old = from.row_start[row];
    const std::int64_t end = from.row_start[row + 1];
    for (std::int64_t i = to.row_start[row]; i < to.row_start[row + 1]; ++i) {
      while (old < end && from.column[old] < to.column[i]) ++old;
      places[i] = old < end && from.column[old] == to.column[i] ? static_cast<std::int32_t>(old) : -1;
    }
  }
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

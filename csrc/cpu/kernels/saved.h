// Lines of saved activations (activation.h), one by one.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>

#include "../activation.h"
#include "compress.h"
#include "term.h"

namespace {

// |v| as an integer; NaN is above all.
inline IntVec magnitude(Vec v) { return reinterpret_cast<IntVec>(v) & std::numeric_limits<std::int32_t>::max(); }

// The cuts of one group of images.
struct GroupCuts {
  IntVec key = {}, last = IntVec{} - 1;

  GroupCuts(const fedsparse::Cuts& cuts, std::int64_t group) {
    if (!cuts.key) return;
    std::memcpy(&key, cuts.key + group * kLanes, sizeof key);
    std::memcpy(&last, cuts.last + group * kLanes, sizeof last);
  }

  // What the magnitudes of a line that stay are above, at a position of its images.
  IntVec floor(std::int64_t position) const { return key + (last >= static_cast<std::int32_t>(position)); }

  // The first position behind `position` with another floor, or `end`.
  std::int64_t floor_changes(std::int64_t position, std::int64_t end) const {
    for (int i = 0; i < kLanes; ++i)
      if (last[i] >= position) end = std::min<std::int64_t>(end, std::int64_t{last[i]} + 1);
    return end;
  }

  // The lanes that stay of a line.
  IntVec operator()(Vec v, std::int64_t position) const { return magnitude(v) > floor(position); }
};

// Values before a line.
inline std::int64_t values_before(const fedsparse::Packed& packed, std::int64_t line) {
  const std::int64_t element = line * kLanes, chunk = element / fedsparse::Packed::kChunk;
  const std::uint8_t* words = packed.bits + chunk * (fedsparse::Packed::kChunk / 8);
  const std::int64_t inside = element % fedsparse::Packed::kChunk;
  std::int64_t sum = packed.starts[chunk];
  std::uint64_t word;
  for (std::int64_t i = 0; i < inside / 64; ++i) {
    std::memcpy(&word, words + i * 8, sizeof word);
    sum += __builtin_popcountll(word);
  }
  if (inside % 64 == 0) return sum;
  std::memcpy(&word, words + inside / 64 * 8, sizeof word);
  return sum + __builtin_popcountll(word & ((std::uint64_t{1} << inside % 64) - 1));
}

// Lines `row` and `column` apart, of several channels `channel` apart.
struct Patch {
  std::int64_t first, channel, row, column;
  int rows, columns;

  int size() const { return rows * columns; }
  std::int64_t line(int i) const { return first + i / columns * row + i % columns * column; }
};

template <typename Number>
void expand_packed(const fedsparse::Packed& packed, const Patch& patch, std::int64_t begin, std::int64_t end,
                   float* to) {
  const Number* values = static_cast<const Number*>(packed.values);
  for (std::int64_t c = begin; c < end; ++c)
    for (int y = 0; y < patch.rows; ++y) {
      std::int64_t line = patch.first + c * patch.channel + y * patch.row, at = 0;
      for (int x = 0; x < patch.columns; ++x, line += patch.column, to += kLanes) {
        if (x == 0 || patch.column != 1) at = values_before(packed, line);
        const LaneBits bits = bits_at(packed.bits, line);
        store(to, expand(load_loose(values + at), bits));
        at += count(bits);
      }
    }
}

template <typename Number>
void expand_held(const fedsparse::Saved& saved, const Patch& patch, std::int64_t begin, std::int64_t end, float* to) {
  const Number* numbers = static_cast<const Number*>(saved.held.term.data);
  constexpr int kMost = 16;
  std::int64_t group[kMost], position[kMost];  // of a pixel's image; channels follow each other inside it
  for (int i = 0; i < patch.size(); ++i) {
    group[i] = patch.line(i) / saved.image_lines;
    position[i] = patch.line(i) % saved.image_lines;
  }
  for (std::int64_t c = begin; c < end; ++c) {
    const Reader read(saved.held.term, c);
    for (int i = 0; i < patch.size(); ++i, to += kLanes) {
      const Vec v = read(load(numbers + (patch.line(i) + c * patch.channel) * kLanes));
      const IntVec stays = GroupCuts(saved.cuts, group[i])(v, position[i] + c * patch.channel);
      store(to, reinterpret_cast<Vec>(reinterpret_cast<IntVec>(v) & stays));
    }
  }
}

// Channels [begin, end) of a patch of at most 16 pixels, as (channels, pixels) lines.
inline void expand_patch(const fedsparse::Saved& saved, const Patch& patch, std::int64_t begin, std::int64_t end,
                         float* to) {
  if (saved.packed.bits)
    (saved.packed.half ? expand_packed<Half> : expand_packed<float>)(saved.packed, patch, begin, end, to);
  else
    (saved.held.half ? expand_held<Half> : expand_held<float>)(saved, patch, begin, end, to);
}

}  // namespace

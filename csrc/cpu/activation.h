// What a backward pass is left of activations: the largest of them, packed (scaled activation pruning).
//
// Positions are counted inside an image in reading order (channel, row, column), so what is kept depends neither on
// the number of lanes nor on the layout. Zeros are never stored; lanes without an image hold none.
#pragma once

#include <cstdint>

#include "blocked.h"

namespace fedsparse {

// Blocked activations as they are held. A layer may compute in float32 and hold bfloat16.
struct Held {
  Term term;
  bool half = false;  // bfloat16
};

// Which elements of image n stay: those with |x|, read as an integer, above key[n], and of those equal to it the ones
// up to position last[n]. (groups * lanes) each; null: all that are not zero.
struct Cuts {
  const std::int32_t* key = nullptr;
  const std::int32_t* last = nullptr;
};

// The elements that stay, in order of memory. A chunk's bits fill one cache line, and to reach an element takes no more
// than counting inside it.
struct Packed {
  static constexpr std::int64_t kChunk = 512;  // elements

  const std::uint8_t* bits = nullptr;     // (chunks * kChunk / 8) one bit for each element
  const std::int32_t* starts = nullptr;   // (chunks + 1) values before each chunk
  const void* values = nullptr;           // float32 or bfloat16, with room for one more register to be read
  bool half = false;
};

// The x of a backward pass: packed, or read through `held` and, where they are set, its cuts.
struct Saved {
  Held held;
  Cuts cuts;
  Packed packed;
  std::int64_t image_lines = 0;  // of one image

  // Whether it is read like any term of activations that are bfloat16, or float32.
  bool is_term(bool as_half) const { return !packed.bits && !cuts.key && held.half == as_half; }
};

// The k largest: of every image, or of all together.
struct Choice {
  std::int64_t k = 0;
  bool together = false;
};

struct ActivationKernels {
  // Cuts that keep exactly the k largest magnitudes, ties to the lowest position (of the lowest image); NaN is above
  // all. Returns how many elements stay: k each, or k, but for zeros. Workspace as in api.h.
  std::int64_t (*select)(const Blocked& shape, const Held& x, const Choice& choice, std::int32_t* key,
                         std::int32_t* last, void* workspace, int threads);
  // Bits and starts of what stays; returns the number of values. In the same walk, values are packed, as `pack` does,
  // where there is `room` for all of them; otherwise they are void.
  std::int64_t (*mark)(const Blocked& shape, const Held& x, const Cuts& cuts, std::uint8_t* bits, std::int32_t* starts,
                       void* values, bool half, std::int64_t room, int threads);
  // The values that are marked.
  void (*pack)(const Blocked& shape, const Held& x, const std::uint8_t* bits, const std::int32_t* starts, void* values,
               bool half, int threads);
  // All `lines`, zeros where nothing was kept.
  void (*unpack)(std::int64_t lines, const Packed& packed, float* x, int threads);
};

}  // namespace fedsparse

// The layout of activations inside the CPU engine, shared by every kernel.
//
// A *line* holds one pixel of one channel of `lanes` images (one SIMD register). A *plane* is the lines of one channel
// in reading order. Blocked activations are [groups][channels][height][width][lanes], contiguous and 64-byte aligned;
// image n sits in group n / lanes, lane n % lanes. There is no border. Features (batch, features) are the same array
// with one-pixel pictures, so flattening pictures costs nothing.
//
// Their numbers are float32 or bfloat16, for all tensors of a call alike unless it says otherwise. Arithmetic and sums
// are float32 at least: bfloat16 is widened where a line is read and rounded to nearest even where one is written.
// Parameters, statistics and gradients of parameters are float32 throughout.
//
// The last group may have lanes without an image. In activations they hold finite numbers nobody reads; in gradients
// they hold zeros, so that sums over lanes need no mask.
#pragma once

#include <cstdint>

namespace fedsparse {

using Half = std::uint16_t;  // the bits of a bfloat16

struct Blocked {
  std::int64_t batch = 0, channels = 0, height = 1, width = 1;
  bool half = false;  // bfloat16

  std::int64_t groups(int lanes) const { return (batch + lanes - 1) / lanes; }
  std::int64_t pixels() const { return height * width; }
};

// What a reader makes of a stored x of channel c: scale[c] * x + shift[c], then max(., 0) with relu. Null vectors stand
// for 1 and 0. Batch norm and ReLU are applied this way, where a tensor is read, so their results are never stored.
struct Term {
  const void* data = nullptr;
  const float* scale = nullptr;
  const float* shift = nullptr;
  bool relu = false;
};

}  // namespace fedsparse

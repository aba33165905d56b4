// What a Term (blocked.h) makes of the lines of one channel.
#pragma once

#include <cstdint>

#include "../blocked.h"
#include "simd.h"

namespace {

// A Term for one channel.
struct Reader {
  Vec scale, shift;
  bool affine, relu;

  Reader(const fedsparse::Term& term, std::int64_t channel)
      : scale(broadcast(term.scale ? term.scale[channel] : 1.0f)),
        shift(broadcast(term.shift ? term.shift[channel] : 0.0f)),
        affine(term.scale || term.shift),
        relu(term.relu) {}

  Vec operator()(Vec v) const {
    if (affine) v = v * scale + shift;
    return relu ? (v < Vec{} ? Vec{} : v) : v;
  }
};

}  // namespace

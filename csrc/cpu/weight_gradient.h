// The dense weight gradient of a convolution, a rectangle of the weight at a time (blocked.h activations).
#pragma once

#include <cstdint>

#include "blocked.h"
#include "fedsparse/shapes.h"

namespace fedsparse {

struct WeightGradientKernels {
  // Gradient of weight rows [first, last), all of one group, for all inputs and taps of that group:
  // out (last - first, inputs * taps), overwritten. Workspace as in api.h: null asks for its size in bytes.
  std::int64_t (*rows)(const ConvShape& shape, const float* grad_y, const Term& x, std::int64_t first, std::int64_t last,
                       float* out, void* workspace, int threads);
};

}  // namespace fedsparse

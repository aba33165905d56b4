// The dense weight gradient of a convolution, a range of its rows at a time (blocked.h activations).
#pragma once

#include <cstdint>

#include "blocked.h"
#include "fedsparse/shapes.h"

namespace fedsparse {

struct WeightGradientKernels {
  // Gradient of weight rows [first, last), of one conv group or several, for all inputs and taps of their group:
  // out (last - first, inputs * taps), overwritten; the same bits for any range that holds the row and any number of
  // threads. A linear layer is a 1x1 kernel on 1x1 pictures. Workspace as in api.h: null asks for its size in bytes,
  // which also serves any shorter range. With `half`, grad_y and x are bfloat16.
  std::int64_t (*rows)(const ConvShape& shape, bool half, const void* grad_y, const Term& x, std::int64_t first,
                       std::int64_t last, float* out, void* workspace, int threads);
};

}  // namespace fedsparse

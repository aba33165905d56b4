// Linear layers walk the lists of the pattern as they are. A convolution visits every weight once for each tile of a
// picture, which pays for a Program (gather.h); a linear layer visits it once for some hundred images.
//
// The lines of a feature are packed next to each other, one for each batch group of a *slice* that fits the registers.
// A target's sums stay there while its entries are walked: rows forward, inputs backward, where the same lines are also
// correlated with the input, which gives the gradient of the values (see gather.h for the two words).
#pragma once

#include <cstdint>

#include "activation.h"
#include "blocked.h"
#include "fedsparse/shapes.h"

namespace fedsparse {

struct Linear {
  PatternView pattern;
  std::int64_t groups = 0;  // of the batch
  bool half = false;  // x, y and their gradients are bfloat16
  const float* values = nullptr;
  Term x;                         // (groups, inputs, lanes)
  const float* bias = nullptr;    // (rows), optional
  void* y = nullptr;              // (groups, rows, lanes), written forward
  const Saved* saved = nullptr;   // in place of x where that is not simply a term, read backward
  const void* grad_y = nullptr;   // (groups, rows, lanes), read backward
  void* grad_x = nullptr;         // (groups, inputs, lanes); null: not wanted
  float* grad_values = nullptr;   // (nnz), null: not wanted, and x is not read
  float* packed = nullptr;        // workspace (features of what is gathered, packed_width lines)
  int threads = 1;
};

struct LinearKernels {
  std::int64_t (*packed_width)(std::int64_t groups);
  void (*forward)(const Linear&);
  void (*backward)(const Linear&);
};

}  // namespace fedsparse

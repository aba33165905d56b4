// The two kernels that products with unstructured weights are made of.
#pragma once

#include "csr16.h"
#include "cuda_api.h"
#include "sums.cuh"

namespace fedsparse::csr16 {

// What a gather multiplies, and where its output goes.
struct Operands {
  std::int64_t dtype;
  TapList list;
  const void *values, *input, *bias;  // bias may be null
  void* output;
};

// The output of the input, or backward the gradient of x of that of y; other blocks add `beside`.
int gather(const ConvShape& shape, bool backward, const Operands& operands, const Sums& beside, void* stream);

// What a weight gradient is made of. Parts of it are written to `partial`.
struct WeightGradient {
  std::int64_t dtype;
  TapList list;
  const void *grad_y, *x;
  float* partial;
};

// Parts of the gradient of the kept values; `sums`: what is left to be done with them.
int correlate(const ConvShape& shape, std::int64_t nnz, const WeightGradient& of, void* grad_values, Sums& sums,
              void* stream);

}  // namespace fedsparse::csr16

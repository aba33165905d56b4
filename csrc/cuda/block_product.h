// The two kernels that products with structured weights are made of, and what other blocks of threads do beside them.
#pragma once

#include "block.h"
#include "cuda_api.h"
#include "sums.cuh"

namespace fedsparse::block {

// Values put into the order of a list, `of_chunk` to each of its chunks, whose number is on the device; zeros where no
// value stands.
struct Packing {
  const std::int32_t* chunks;
  std::int64_t of_chunk, numbers;  // numbers: that there is room for
  const std::int32_t* value;
  const void* values;
  void* packed;  // null: there is nothing to pack

  std::int64_t blocks() const { return packed ? blocks_beside(numbers) : 0; }
};

// What a gather multiplies, and where its output goes.
struct Operands {
  std::int64_t dtype;
  bool tf32;
  StripList list;
  const void *packed, *input, *bias;  // bias may be null
  void* output;
};

// The output of the input, or backward the gradient of x of that of y; other blocks add `beside`.
int gather(const ConvShape& shape, bool backward, const Operands& operands, const Sums& beside, void* stream);

// What a weight gradient is made of. Parts of it are written to `partial`.
struct WeightGradient {
  std::int64_t dtype;
  bool tf32;
  StripList list;
  const void *grad_y, *x;
  float* partial;
};

// Parts of the gradient of the kept values; other blocks pack `beside`. `sums`: what is left to be done with the parts.
int correlate(const ConvShape& shape, const WeightGradient& of, void* grad_values, const Packing& beside, Sums& sums,
              void* stream);

}  // namespace fedsparse::block

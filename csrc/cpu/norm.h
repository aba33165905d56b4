// Batch norm, ReLU and residual sums on blocked activations (blocked.h); one pass over memory each where possible.
#pragma once

#include <cstdint>

#include "blocked.h"

namespace fedsparse {

// Backward of z = relu?(scale * x + shift + ...), per channel. With `mean`, scale and shift came from the batch's own
// statistics: scale = weight * inv_std, shift = bias - mean * scale, and x gets their share of the gradient as well.
struct NormBackward {
  const void* grad = nullptr;    // of z
  const void* gate = nullptr;    // z: gradient passes where z > 0. Null: everywhere, or see gate_by_x
  const std::uint8_t* gate_bits = nullptr;  // in place of gate: one bit for each element, as activation.h packs them
  bool gate_by_x = false;        // gradient passes where scale * x + shift > 0
  Term x;
  const Half* x_hat = nullptr;     // in place of x.data where that is float32: (x - center) * inv_std as bfloat16
  const float* mean = nullptr;     // (channels); null: statistics are constants, or there is no norm at all
  const float* inv_std = nullptr;  // (channels); null: no norm, grad_scale is not wanted
  const float* center = nullptr;   // (channels) what x_hat subtracts: the mean, batch's own or running
  void* grad_x = nullptr;          // may be `grad` itself; null: not wanted
  void* grad_gated = nullptr;      // gradient past the gate, for the other terms of the sum; null: not wanted
  float* grad_weight = nullptr;    // (channels) sum of gated grad * (x - center) * inv_std; null: not wanted
  float* grad_bias = nullptr;      // (channels) sum of gated grad; null: not wanted
};

struct NormKernels {
  // Mean and biased variance (channels each) over all images and pixels; exact to float32 for any mean.
  void (*moments)(const Blocked& shape, const void* x, float* mean, float* variance, int threads);
  // z = relu?(x + r), both read as Terms (their own relu flags unused); r.data may be null. z may be x.data.
  void (*combine)(const Blocked& shape, const Term& x, const Term& r, bool relu, void* z, int threads);
  void (*backward)(const Blocked& shape, const NormBackward& arguments, int threads);
  // Sum over images and pixels of a gradient (channels): the gradient of a bias.
  void (*sums)(const Blocked& shape, const void* grad, float* sums, int threads);
};

// Group norm: statistics of each image over the channels and pixels of `parts` equal ranges of channels.
// mean and inv_std: (groups, parts, lanes), 0 in lanes without an image. weight and bias (channels) may be null.
struct GroupNormKernels {
  // z may be x.
  void (*forward)(const Blocked& shape, std::int64_t parts, const void* x, const float* weight, const float* bias,
                  float eps, void* z, float* mean, float* inv_std, int threads);
  // grad_x may be grad; grad_weight and grad_bias (channels) may be null: not wanted.
  void (*backward)(const Blocked& shape, std::int64_t parts, const void* grad, const void* x, const float* weight,
                   const float* mean, const float* inv_std, void* grad_x, float* grad_weight, float* grad_bias,
                   int threads);
};

}  // namespace fedsparse

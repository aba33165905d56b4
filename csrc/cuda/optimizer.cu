// Optimiser steps over flat values: 20 bytes of traffic for each value with momentum, one launch for all layers.
#include "cuda_api.h"
#include "launch.cuh"

namespace {

using fedsparse::blocks_for;
using fedsparse::kThreads;

struct SgdRule {
  float lr, mu, weight_decay, fresh;  // fresh: share of the new gradient that enters the momentum, 1 - dampening
  bool nesterov, first_step;
};

// One value. Without momentum `momentum` is neither read nor written.
template <bool kMomentum>
__host__ __device__ __forceinline__ void sgd_step(const SgdRule& rule, float& value, float grad, float& momentum) {
  float direction = grad + rule.weight_decay * value;
  if constexpr (kMomentum) {
    momentum = rule.first_step ? direction : rule.mu * momentum + rule.fresh * direction;
    direction = rule.nesterov ? direction + rule.mu * momentum : momentum;
  }
  value -= rule.lr * direction;
}

// kWidth floats move as one 4- or 16-byte access; kWidth == 4 asks for pointers aligned to 16 bytes.
template <int kWidth>
struct alignas(kWidth * sizeof(float)) Pack {
  float lane[kWidth];
};

template <int kWidth, bool kMomentum>
__device__ __forceinline__ void sgd_pack(const SgdRule& rule, float* values, const float* grad, float* momentum,
                                         std::int64_t at) {
  using P = Pack<kWidth>;
  P value = *reinterpret_cast<const P*>(values + at);
  const P slope = *reinterpret_cast<const P*>(grad + at);
  P buffer = {};
  if (kMomentum && !rule.first_step) buffer = *reinterpret_cast<const P*>(momentum + at);
#pragma unroll
  for (int i = 0; i < kWidth; ++i) sgd_step<kMomentum>(rule, value.lane[i], slope.lane[i], buffer.lane[i]);
  *reinterpret_cast<P*>(values + at) = value;
  if (kMomentum) *reinterpret_cast<P*>(momentum + at) = buffer;
}

template <int kWidth, bool kMomentum>
__global__ void __launch_bounds__(kThreads)
    sgd_kernel(float* __restrict__ values, const float* __restrict__ grad, float* __restrict__ momentum,
               std::int64_t n, SgdRule rule) {
  const std::int64_t first = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  const std::int64_t stride = static_cast<std::int64_t>(gridDim.x) * blockDim.x;
  const std::int64_t packed = n / kWidth * kWidth;
  for (std::int64_t at = first * kWidth; at < packed; at += stride * kWidth)
    sgd_pack<kWidth, kMomentum>(rule, values, grad, momentum, at);
  for (std::int64_t at = packed + first; at < n; at += stride)
    sgd_pack<1, kMomentum>(rule, values, grad, momentum, at);
}

template <int kWidth>
int launch_sgd(float* values, const float* grad, float* momentum, std::int64_t n, const SgdRule& rule, void* stream) {
  const auto kernel = rule.mu == 0 ? &sgd_kernel<kWidth, false> : &sgd_kernel<kWidth, true>;
  return FEDSPARSE_LAUNCH(kernel, blocks_for(n / kWidth), kThreads, 0, stream, values, grad, momentum, n, rule);
}

bool aligned(const void* pointer) { return reinterpret_cast<std::uintptr_t>(pointer) % sizeof(Pack<4>) == 0; }

}  // namespace

int fedsparse_cuda_sgd_momentum(float* values, const float* grad, float* momentum, std::int64_t n, float lr, float mu,
                                float weight_decay, float dampening, bool nesterov, bool first_step, void* stream) {
  if (n == 0) return cudaSuccess;
  const SgdRule rule = {lr, mu, weight_decay, 1.0f - dampening, nesterov, first_step};
  // Slices of a larger buffer may start anywhere.
  if (aligned(values) && aligned(grad) && aligned(momentum))
    return launch_sgd<4>(values, grad, momentum, n, rule, stream);
  return launch_sgd<1>(values, grad, momentum, n, rule, stream);
}

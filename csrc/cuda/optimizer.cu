// Optimiser steps over flat values, one launch for all layers: 20 bytes of traffic for each value with momentum, 28
// with AdamW.
#include <cmath>

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

struct AdamwRule {
  float decay, lr, eps;               // decay: what weight decay leaves of a value; lr: over the correction of the mean
  float keep_mean, keep_square;       // the betas
  float fresh_mean, fresh_square;     // 1 - beta, rounded once
  float square_correction;            // 1 / sqrt(1 - beta2^step)
  bool first_step;
};

template <int kWidth>
__device__ __forceinline__ void adamw_pack(const AdamwRule& rule, float scale, float* values, const float* grad,
                                           float* mean, float* square, std::int64_t at) {
  using P = Pack<kWidth>;
  P value = *reinterpret_cast<const P*>(values + at), m = {}, v = {};
  const P slope = *reinterpret_cast<const P*>(grad + at);
  if (!rule.first_step) {
    m = *reinterpret_cast<const P*>(mean + at);
    v = *reinterpret_cast<const P*>(square + at);
  }
#pragma unroll
  for (int i = 0; i < kWidth; ++i) {
    const float g = scale * slope.lane[i];
    m.lane[i] = rule.keep_mean * m.lane[i] + rule.fresh_mean * g;
    v.lane[i] = rule.keep_square * v.lane[i] + rule.fresh_square * g * g;
    const float size = sqrtf(v.lane[i]) * rule.square_correction + rule.eps;
    value.lane[i] = rule.decay * value.lane[i] - rule.lr * m.lane[i] / size;
  }
  *reinterpret_cast<P*>(values + at) = value;
  *reinterpret_cast<P*>(mean + at) = m;
  *reinterpret_cast<P*>(square + at) = v;
}

template <int kWidth>
__global__ void __launch_bounds__(kThreads)
    adamw_kernel(float* __restrict__ values, const float* __restrict__ grad, float* __restrict__ mean,
                 float* __restrict__ square, std::int64_t n, AdamwRule rule, const float* __restrict__ grad_scale) {
  const float scale = grad_scale ? *grad_scale : 1.0f;
  const std::int64_t first = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  const std::int64_t stride = static_cast<std::int64_t>(gridDim.x) * blockDim.x;
  const std::int64_t packed = n / kWidth * kWidth;
  for (std::int64_t at = first * kWidth; at < packed; at += stride * kWidth)
    adamw_pack<kWidth>(rule, scale, values, grad, mean, square, at);
  for (std::int64_t at = packed + first; at < n; at += stride)
    adamw_pack<1>(rule, scale, values, grad, mean, square, at);
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

int fedsparse_cuda_adamw(float* values, const float* grad, float* mean, float* square, std::int64_t n,
                         const float* grad_scale, double lr, double beta1, double beta2, double eps,
                         double weight_decay, std::int64_t step, void* stream) {
  if (n == 0) return cudaSuccess;
  if (step < 1) return cudaErrorInvalidValue;
  const auto narrow = [](double x) { return static_cast<float>(x); };
  const double steps = static_cast<double>(step);
  const AdamwRule rule = {narrow(1 - lr * weight_decay),
                          narrow(lr / (1 - std::pow(beta1, steps))),
                          narrow(eps),
                          narrow(beta1),
                          narrow(beta2),
                          narrow(1 - beta1),
                          narrow(1 - beta2),
                          narrow(1 / std::sqrt(1 - std::pow(beta2, steps))),
                          step == 1};
  const bool wide = aligned(values) && aligned(grad) && aligned(mean) && aligned(square);
  const auto kernel = wide ? &adamw_kernel<4> : &adamw_kernel<1>;
  return FEDSPARSE_LAUNCH(kernel, blocks_for(wide ? n / 4 : n), kThreads, 0, stream, values, grad, mean, square, n,
                          rule, grad_scale);
}

// Optimiser steps over the values of many parameters in one launch: 20 bytes of traffic for each value with momentum,
// 28 with AdamW.
#include <cmath>

#include "cuda_api.h"
#include "launch.cuh"

namespace {

using fedsparse::kThreads;

// ---- the parameters of a launch
constexpr int kTile = kThreads * 8;  // values of a block: two packs for each thread

// Up to kCount parameters. Travels by value as part of the launch: nothing is copied to the device before it, and a
// captured graph holds the table itself.
template <int kChanged, int kCount>
struct Table {
  static constexpr std::int64_t kMost = kCount;

  const float* grad[kCount];
  float* changed[kCount][kChanged];
  std::int64_t size[kCount];
  std::uint32_t first_tile[kCount + 1];  // tiles do not cross parameters
  int count;

  std::uint32_t tiles() const { return first_tile[count]; }
};

using SgdTable = Table<2, 100>;  // values, momentum

struct AdamwTable : Table<3, 70> {  // values, mean, square
  float* counter[kMost];
  float step[kMost];  // number of this step where there is no counter
};

// A block's values: n from number `first` of a parameter on.
struct Tile {
  int parameter, n;
  std::int64_t first;

  template <int kChanged, int kCount>
  __device__ __forceinline__ Tile(const Table<kChanged, kCount>& table, std::uint32_t number) {
    int low = 0, high = table.count;  // the last parameter whose first tile is not behind this one; it is not empty
    while (high - low > 1) {
      const int middle = (low + high) / 2;
      if (table.first_tile[middle] <= number)
        low = middle;
      else
        high = middle;
    }
    parameter = low;
    first = static_cast<std::int64_t>(number - table.first_tile[low]) * kTile;
    n = static_cast<int>(min(std::int64_t{kTile}, table.size[low] - first));
  }
};

// Calls `launch` with tables of `count` parameters, each one's arrays filled in by `fill(table, its place, parameter)`.
template <typename Table, typename Fill, typename Launch>
int for_tables(std::int64_t count, const std::int64_t* sizes, const Fill& fill, const Launch& launch) {
  for (std::int64_t first = 0; first < count; first += Table::kMost) {
    Table table = {};
    for (std::int64_t i = first; i < std::min(first + Table::kMost, count); ++i) {
      const int at = table.count++;
      fill(table, at, i);
      table.size[at] = sizes[i];
      table.first_tile[at + 1] = table.first_tile[at] + static_cast<std::uint32_t>((sizes[i] + kTile - 1) / kTile);
    }
    const int status = launch(table);
    if (status != cudaSuccess) return status;
  }
  return cudaSuccess;
}

// kWidth floats move as one 4- or 16-byte access; kWidth == 4 asks for pointers aligned to 16 bytes.
template <int kWidth>
struct alignas(kWidth * sizeof(float)) Pack {
  float lane[kWidth];
};

__device__ __forceinline__ bool aligned(const void* pointer) {
  return reinterpret_cast<std::uintptr_t>(pointer) % sizeof(Pack<4>) == 0;
}

// Calls `step.at<width>(number)` so that every one of a tile's n values is in one pack.
template <int kWidth, typename Step>
__device__ __forceinline__ void for_packs(int n, const Step& step) {
  const int thread = static_cast<int>(threadIdx.x), packed = n / kWidth * kWidth;
#pragma unroll 1  // more turns at once cost registers, and so blocks
  for (int at = thread * kWidth; at < packed; at += kThreads * kWidth) step.template at<kWidth>(at);
#pragma unroll 1
  for (int at = packed + thread; at < n; at += kThreads) step.template at<1>(at);
}

// ---- SGD
struct SgdRule {
  float lr, mu, weight_decay, fresh;  // fresh: share of the new gradient that enters the momentum, 1 - dampening
  bool nesterov, first_step;
};

// One value. Without momentum `momentum` is neither read nor written.
template <bool kMomentum>
__device__ __forceinline__ void sgd_step(const SgdRule& rule, float& value, float grad, float& momentum) {
  float direction = grad + rule.weight_decay * value;
  if constexpr (kMomentum) {
    momentum = rule.first_step ? direction : rule.mu * momentum + rule.fresh * direction;
    direction = rule.nesterov ? direction + rule.mu * momentum : momentum;
  }
  value -= rule.lr * direction;
}

template <bool kMomentum>
struct SgdStep {
  const SgdRule& rule;
  const float* grad;
  float *values, *momentum;

  template <int kWidth>
  __device__ __forceinline__ void at(int i) const {
    using P = Pack<kWidth>;
    P value = *reinterpret_cast<const P*>(values + i);
    const P slope = *reinterpret_cast<const P*>(grad + i);
    P buffer = {};
    if (kMomentum && !rule.first_step) buffer = *reinterpret_cast<const P*>(momentum + i);
#pragma unroll
    for (int k = 0; k < kWidth; ++k) sgd_step<kMomentum>(rule, value.lane[k], slope.lane[k], buffer.lane[k]);
    *reinterpret_cast<P*>(values + i) = value;
    if (kMomentum) *reinterpret_cast<P*>(momentum + i) = buffer;
  }
};

template <bool kMomentum>
__global__ void __launch_bounds__(kThreads) sgd_kernel(const __grid_constant__ SgdTable table, const SgdRule rule) {
  const Tile tile(table, blockIdx.x);
  const int p = tile.parameter;
  const SgdStep<kMomentum> step = {rule, table.grad[p] + tile.first, table.changed[p][0] + tile.first,
                                   kMomentum ? table.changed[p][1] + tile.first : nullptr};
  // Slices of a larger buffer may start anywhere.
  if (aligned(step.grad) && aligned(step.values) && aligned(step.momentum))
    for_packs<4>(tile.n, step);
  else
    for_packs<1>(tile.n, step);
}

// ---- AdamW
struct AdamwRule {
  float decay, lr, eps;            // decay: what weight decay leaves of a value
  float keep_mean, keep_square;    // the betas
  float fresh_mean, fresh_square;  // 1 - beta, rounded once
  float log_mean, log_square;      // logarithms of the betas
  const float* grad_scale;
};

struct AdamwStep {
  const AdamwRule& rule;
  float scale, lr, square_correction;  // lr: over the correction of the mean; 1 / sqrt(1 - beta2^step)
  const float* grad;
  float *values, *mean, *square;

  template <int kWidth>
  __device__ __forceinline__ void at(int i) const {
    using P = Pack<kWidth>;
    P value = *reinterpret_cast<const P*>(values + i), m = *reinterpret_cast<const P*>(mean + i),
      v = *reinterpret_cast<const P*>(square + i);
    const P slope = *reinterpret_cast<const P*>(grad + i);
#pragma unroll
    for (int k = 0; k < kWidth; ++k) {
      const float g = scale * slope.lane[k];
      m.lane[k] = rule.keep_mean * m.lane[k] + rule.fresh_mean * g;
      v.lane[k] = rule.keep_square * v.lane[k] + rule.fresh_square * g * g;
      const float size = sqrtf(v.lane[k]) * square_correction + rule.eps;
      value.lane[k] = rule.decay * value.lane[k] - lr * m.lane[k] / size;
    }
    *reinterpret_cast<P*>(values + i) = value;
    *reinterpret_cast<P*>(mean + i) = m;
    *reinterpret_cast<P*>(square + i) = v;
  }
};

// Before the step and not in it: its blocks would have to agree on who counts last.
__global__ void __launch_bounds__(kThreads) count_steps_kernel(const __grid_constant__ AdamwTable table) {
  const int p = static_cast<int>(threadIdx.x);
  if (p < table.count && table.counter[p]) *table.counter[p] += 1;
}

__global__ void __launch_bounds__(kThreads)
    adamw_kernel(const __grid_constant__ AdamwTable table, const AdamwRule rule) {
  const Tile tile(table, blockIdx.x);
  const int p = tile.parameter;
  const float number = table.counter[p] ? *table.counter[p] : table.step[p];
  // expm1: 1 - beta^number has lost half its digits to rounding where beta is close to 1.
  const AdamwStep step = {rule,
                          rule.grad_scale ? *rule.grad_scale : 1.0f,
                          rule.lr / -expm1f(number * rule.log_mean),
                          1.0f / sqrtf(-expm1f(number * rule.log_square)),
                          table.grad[p] + tile.first,
                          table.changed[p][0] + tile.first,
                          table.changed[p][1] + tile.first,
                          table.changed[p][2] + tile.first};
  if (aligned(step.grad) && aligned(step.values) && aligned(step.mean) && aligned(step.square))
    for_packs<4>(tile.n, step);
  else
    for_packs<1>(tile.n, step);
}

// What drivers of every age take with a launch.
static_assert(sizeof(SgdTable) + sizeof(SgdRule) <= 4096 && sizeof(AdamwTable) + sizeof(AdamwRule) <= 4096);
static_assert(AdamwTable::kMost <= kThreads, "one block counts");

int launch_adamw(const AdamwTable& table, const AdamwRule& rule, bool counted_there, void* stream) {
  if (counted_there) {
    const int status = FEDSPARSE_LAUNCH(count_steps_kernel, 1, kThreads, 0, stream, table);
    if (status != cudaSuccess) return status;
  }
  if (table.tiles() == 0) return cudaSuccess;
  return FEDSPARSE_LAUNCH(adamw_kernel, table.tiles(), kThreads, 0, stream, table, rule);
}

}  // namespace

int fedsparse_cuda_sgd_momentum(std::int64_t count, float* const* values, const float* const* grad,
                                float* const* momentum, const std::int64_t* sizes, float lr, float mu,
                                float weight_decay, float dampening, bool nesterov, bool first_step, void* stream) {
  const SgdRule rule = {lr, mu, weight_decay, 1.0f - dampening, nesterov, first_step};
  const auto kernel = mu == 0 ? &sgd_kernel<false> : &sgd_kernel<true>;
  const auto fill = [&](SgdTable& table, int at, std::int64_t i) {
    table.grad[at] = grad[i];
    table.changed[at][0] = values[i];
    table.changed[at][1] = momentum[i];
  };
  return for_tables<SgdTable>(count, sizes, fill, [&](const SgdTable& table) {
    if (table.tiles() == 0) return static_cast<int>(cudaSuccess);
    return FEDSPARSE_LAUNCH(kernel, table.tiles(), kThreads, 0, stream, table, rule);
  });
}

int fedsparse_cuda_adamw(std::int64_t count, float* const* values, const float* const* grad, float* const* mean,
                         float* const* square, const std::int64_t* sizes, float* const* counters,
                         const std::int64_t* steps, const float* grad_scale, double lr, double beta1, double beta2,
                         double eps, double weight_decay, void* stream) {
  for (std::int64_t i = 0; steps && i < count; ++i)
    if (steps[i] < 1) return cudaErrorInvalidValue;
  const auto narrow = [](double x) { return static_cast<float>(x); };
  const AdamwRule rule = {narrow(1 - lr * weight_decay), narrow(lr),
                          narrow(eps),                   narrow(beta1),
                          narrow(beta2),                 narrow(1 - beta1),
                          narrow(1 - beta2),             narrow(std::log(beta1)),
                          narrow(std::log(beta2)),       grad_scale};
  const auto fill = [&](AdamwTable& table, int at, std::int64_t i) {
    table.grad[at] = grad[i];
    table.changed[at][0] = values[i];
    table.changed[at][1] = mean[i];
    table.changed[at][2] = square[i];
    table.counter[at] = steps ? nullptr : counters[i];
    table.step[at] = steps ? static_cast<float>(steps[i]) : 0;
  };
  return for_tables<AdamwTable>(
      count, sizes, fill, [&](const AdamwTable& table) { return launch_adamw(table, rule, !steps, stream); });
}

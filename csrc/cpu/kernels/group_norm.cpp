// Group norm of norm.h for one instruction set. Images share no statistics, so every lane keeps its own; a thread owns
// whole ranges of channels of one group of images.
#include <cmath>
#include <vector>

#include "../norm.h"
#include "lines.h"

namespace {

// The ranges of channels that share statistics, over all groups of images.
struct Ranges {
  const Blocked& shape;
  std::int64_t parts;

  std::int64_t count() const { return shape.groups(kLanes) * parts; }
  std::int64_t channels() const { return shape.channels / parts; }
  std::int64_t lines() const { return channels() * shape.pixels(); }
  std::int64_t group(std::int64_t range) const { return range / parts; }
  std::int64_t first_channel(std::int64_t range) const { return range % parts * channels(); }
};

// Lanes without an image get inv_std 0: their own may be infinite.
void statistics(const LaneMoments& moments, int images, float eps, float* mean, float* inv_std) {
  for (int i = 0; i < kLanes; ++i) {
    const double variance = std::max(moments.squares[i] / moments.count, 0.0);
    mean[i] = i < images ? static_cast<float>(moments.mean[i]) : 0.0f;
    inv_std[i] = i < images ? static_cast<float>(1.0 / std::sqrt(variance + static_cast<double>(eps))) : 0.0f;
  }
}

template <typename Number>
void forward_of(const Blocked& shape, std::int64_t parts, const Number* x, const float* weight, const float* bias,
                float eps, Number* z, float* mean, float* inv_std, int threads) {
  const Ranges ranges{shape, parts};
#pragma omp parallel for num_threads(threads) schedule(static)
  for (std::int64_t range = 0; range < ranges.count(); ++range) {
    const std::int64_t group = ranges.group(range), first = ranges.first_channel(range);
    LaneMoments moments;
    moments.add(x, plane_at(shape, group, first), ranges.lines());
    statistics(moments, images_in(shape, group), eps, mean + range * kLanes, inv_std + range * kLanes);
    const Vec center = load(mean + range * kLanes), inverse = load(inv_std + range * kLanes);
    for (std::int64_t c = first; c < first + ranges.channels(); ++c) {
      const std::int64_t plane = plane_at(shape, group, c);
      const Vec scale = inverse * of_channel(weight, c, 1.0f), shift = of_channel(bias, c, 0.0f);
      each_line(shape.pixels(), [=](std::int64_t i, int) __attribute__((always_inline)) {
        store(z + plane + i * kLanes, (load(x + plane + i * kLanes) - center) * scale + shift);
      });
    }
  }
}

void forward(const Blocked& shape, std::int64_t parts, const void* x, const float* weight, const float* bias, float eps,
             void* z, float* mean, float* inv_std, int threads) {
  with_number(shape.half, [&](auto zero) {
    using Number = decltype(zero);
    forward_of(shape, parts, static_cast<const Number*>(x), weight, bias, eps, static_cast<Number*>(z), mean, inv_std,
               threads);
  });
}

// What one channel of one group of images adds to the gradients of weight and bias.
struct AffineShare {
  double weight = 0.0, bias = 0.0;
};

// Of each lane, over a range: sums of weight * gradient, plain and times (x - mean).
struct RangeSums {
  LaneSums plain, centered;
};

template <typename Number>
AffineShare sum_plane(const Number* grad, const Number* x, std::int64_t plane, std::int64_t lines, Vec mean,
                      Vec inv_std, Vec weight, RangeSums& sums) {
  LaneSums plain, centered;
  each_chunk(plane, lines, [&](std::int64_t first, std::int64_t some) {
    Vec sum[kChains] = {}, product[kChains] = {};
    each_line(some, [&](std::int64_t i, int c) __attribute__((always_inline)) {
      const Vec g = load(grad + first + i * kLanes);
      sum[c] += g;
      product[c] += g * (load(x + first + i * kLanes) - mean);
    });
    plain.add(add_chains(sum));
    centered.add(add_chains(product));
  });
  AffineShare share;
  for (int i = 0; i < kLanes; ++i) {
    share.weight += centered.lane[i] * static_cast<double>(inv_std[i]);
    share.bias += plain.lane[i];
    sums.plain.lane[i] += plain.lane[i] * static_cast<double>(weight[i]);
    sums.centered.lane[i] += centered.lane[i] * static_cast<double>(weight[i]);
  }
  return share;
}

// grad_x = inv_std * weight * g + constant + slope * (x - mean); the last two are what x owes to the statistics.
template <typename Number>
void write_range(const Ranges& ranges, std::int64_t range, const Number* grad, const Number* x, const float* weight,
                 Vec mean, Vec inv_std, const RangeSums& sums, Number* grad_x) {
  const Blocked& shape = ranges.shape;
  const std::int64_t group = ranges.group(range), first = ranges.first_channel(range);
  Vec constant = {}, slope = {};
  for (int i = 0; i < kLanes; ++i) {
    const double inverse = inv_std[i], share = -inverse / static_cast<double>(ranges.lines());
    constant[i] = static_cast<float>(share * sums.plain.lane[i]);
    slope[i] = static_cast<float>(share * sums.centered.lane[i] * inverse * inverse);
  }
  for (std::int64_t c = first; c < first + ranges.channels(); ++c) {
    const std::int64_t plane = plane_at(shape, group, c);
    const Vec scale = inv_std * of_channel(weight, c, 1.0f);
    each_line(shape.pixels(), [=](std::int64_t i, int) __attribute__((always_inline)) {
      const std::int64_t at = plane + i * kLanes;
      store(grad_x + at, load(grad + at) * scale + slope * (load(x + at) - mean) + constant);
    });
  }
}

// Over the groups of images, in their order.
void sum_shares(const Blocked& shape, const std::vector<AffineShare>& shares, float* grad_weight, float* grad_bias) {
  for (std::int64_t c = 0; c < shape.channels; ++c) {
    AffineShare total;
    for (std::int64_t group = 0; group < shape.groups(kLanes); ++group) {
      const AffineShare& share = shares[static_cast<std::size_t>(group * shape.channels + c)];
      total.weight += share.weight;
      total.bias += share.bias;
    }
    if (grad_weight) grad_weight[c] = static_cast<float>(total.weight);
    if (grad_bias) grad_bias[c] = static_cast<float>(total.bias);
  }
}

template <typename Number>
void backward_of(const Blocked& shape, std::int64_t parts, const Number* grad, const Number* x, const float* weight,
                 const float* mean, const float* inv_std, Number* grad_x, float* grad_weight, float* grad_bias,
                 int threads) {
  const Ranges ranges{shape, parts};
  std::vector<AffineShare> shares(static_cast<std::size_t>(shape.groups(kLanes) * shape.channels));
#pragma omp parallel for num_threads(threads) schedule(static)
  for (std::int64_t range = 0; range < ranges.count(); ++range) {
    const std::int64_t group = ranges.group(range), first = ranges.first_channel(range);
    const Vec center = load(mean + range * kLanes), inverse = load(inv_std + range * kLanes);
    RangeSums sums;
    for (std::int64_t c = first; c < first + ranges.channels(); ++c)
      shares[static_cast<std::size_t>(group * shape.channels + c)] =
          sum_plane(grad, x, plane_at(shape, group, c), shape.pixels(), center, inverse,
                    of_channel(weight, c, 1.0f), sums);
    write_range(ranges, range, grad, x, weight, center, inverse, sums, grad_x);
  }
  sum_shares(shape, shares, grad_weight, grad_bias);
}

void backward(const Blocked& shape, std::int64_t parts, const void* grad, const void* x, const float* weight,
              const float* mean, const float* inv_std, void* grad_x, float* grad_weight, float* grad_bias,
              int threads) {
  with_number(shape.half, [&](auto zero) {
    using Number = decltype(zero);
    backward_of(shape, parts, static_cast<const Number*>(grad), static_cast<const Number*>(x), weight, mean, inv_std,
                static_cast<Number*>(grad_x), grad_weight, grad_bias, threads);
  });
}

}  // namespace

namespace fedsparse::FEDSPARSE_ISA {
extern const GroupNormKernels group_norm;
const GroupNormKernels group_norm = {forward, backward};
}  // namespace fedsparse::FEDSPARSE_ISA

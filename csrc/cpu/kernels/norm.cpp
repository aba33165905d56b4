// Batch norm, ReLU and residual sums of norm.h for one instruction set. A thread owns whole channels: sums have one
// order whatever the number of threads, and the second look at a channel finds it in the cache.
#include "../norm.h"

#include "compress.h"
#include "lines.h"

namespace {

using fedsparse::NormBackward;
using fedsparse::Term;

template <typename Number>
void moments_of(const Blocked& shape, const Number* x, float* mean, float* variance, int threads) {
  const std::int64_t last = shape.groups(kLanes) - 1;
#pragma omp parallel for num_threads(threads) schedule(static)
  for (std::int64_t c = 0; c < shape.channels; ++c) {
    LaneMoments full, tail;  // the last group apart: only some of its lanes count
    for (std::int64_t group = 0; group < last; ++group) full.add(x, plane_at(shape, group, c), shape.pixels());
    tail.add(x, plane_at(shape, last, c), shape.pixels());
    Moments all;
    if (last > 0) full.merge_into(all, kLanes);
    tail.merge_into(all, images_in(shape, last));
    mean[c] = static_cast<float>(all.mean);
    variance[c] = static_cast<float>(all.variance());
  }
}

void moments(const Blocked& shape, const void* x, float* mean, float* variance, int threads) {
  with_number(shape.half, [&](auto zero) {
    moments_of(shape, static_cast<const decltype(zero)*>(x), mean, variance, threads);
  });
}

template <typename Number, bool SUM, bool RELU>
void combine_planes(const Blocked& shape, const Term& x, const Term& r, Number* z, int threads) {
  const std::int64_t planes = shape.groups(kLanes) * shape.channels, lines = shape.pixels();
#pragma omp parallel for num_threads(threads) schedule(static)
  for (std::int64_t plane = 0; plane < planes; ++plane) {
    const std::int64_t c = plane % shape.channels, first = plane * lines * kLanes;
    const Vec scale = of_channel(x.scale, c, 1.0f), shift = of_channel(x.shift, c, 0.0f);
    const Vec r_scale = of_channel(r.scale, c, 1.0f), r_shift = of_channel(r.shift, c, 0.0f);
    const Number* const from = static_cast<const Number*>(x.data) + first;
    const Number* const other = SUM ? static_cast<const Number*>(r.data) + first : nullptr;
    Number* const to = z + first;
    each_line(lines, [=](std::int64_t i, int) __attribute__((always_inline)) {
      Vec v = load(from + i * kLanes) * scale + shift;
      if constexpr (SUM) v += load(other + i * kLanes) * r_scale + r_shift;
      if constexpr (RELU) v = v < 0.0f ? Vec{} : v;  // this way round NaN stays NaN
      store(to + i * kLanes, v);
    });
  }
}

template <typename Number>
void combine_of(const Blocked& shape, const Term& x, const Term& r, bool relu, Number* z, int threads) {
  if (r.data)
    (relu ? combine_planes<Number, true, true> : combine_planes<Number, true, false>)(shape, x, r, z, threads);
  else
    (relu ? combine_planes<Number, false, true> : combine_planes<Number, false, false>)(shape, x, r, z, threads);
}

void combine(const Blocked& shape, const Term& x, const Term& r, bool relu, void* z, int threads) {
  with_number(shape.half,
              [&](auto zero) { combine_of(shape, x, r, relu, static_cast<decltype(zero)*>(z), threads); });
}

enum class Gate { open, by_value, by_bit, by_x };

// x as it is held: itself, or for float32 gradients x_hat as bfloat16.
template <typename Number>
struct OwnInput {
  const Number* x;

  OwnInput(const NormBackward& a, std::int64_t) : x(static_cast<const Number*>(a.x.data)) {}
  inline __attribute__((always_inline)) Vec operator()(std::int64_t at) const { return load(x + at); }
};

struct NormedInput {
  const Half* x_hat;
  Vec spread, center;

  NormedInput(const NormBackward& a, std::int64_t channel)
      : x_hat(a.x_hat), spread(broadcast(1.0f / a.inv_std[channel])), center(broadcast(a.center[channel])) {}
  inline __attribute__((always_inline)) Vec operator()(std::int64_t at) const {
    return load(x_hat + at) * spread + center;
  }
};

// The gradient of one channel past its gate.
template <typename Number, Gate GATE, typename Input>
struct GatedGradient {
  const Number *grad, *gate;
  const std::uint8_t* bits;
  Input x;
  Vec scale, shift;

  GatedGradient(const NormBackward& a, std::int64_t channel)
      : grad(static_cast<const Number*>(a.grad)), gate(static_cast<const Number*>(a.gate)), bits(a.gate_bits),
        x(a, channel), scale(of_channel(a.x.scale, channel, 1.0f)), shift(of_channel(a.x.shift, channel, 0.0f)) {}

  inline __attribute__((always_inline)) Vec operator()(std::int64_t at) const {
    const Vec g = load(grad + at);
    if constexpr (GATE == Gate::by_value) return load(gate + at) > 0.0f ? g : Vec{};
    if constexpr (GATE == Gate::by_bit) return lanes_of(bits_at(bits, at / kLanes)) ? g : Vec{};
    if constexpr (GATE == Gate::by_x) return x(at) * scale + shift > 0.0f ? g : Vec{};
    return g;
  }
};

// Over the images and pixels of one channel.
struct GradientSums {
  double plain = 0.0;     // of the gated gradient
  double centered = 0.0;  // of gated gradient * (x - center)
};

template <typename Number, Gate GATE, typename Input, bool CENTERED>
GradientSums sum_channel(const Blocked& shape, const NormBackward& a, std::int64_t channel) {
  const GatedGradient<Number, GATE, Input> gated(a, channel);
  const Vec center = of_channel(a.center, channel, 0.0f);
  LaneSums plain, centered;
  for (std::int64_t group = 0; group < shape.groups(kLanes); ++group)
    each_chunk(plane_at(shape, group, channel), shape.pixels(), [&](std::int64_t first, std::int64_t lines) {
      Vec sum[kChains] = {}, product[kChains] = {};
      each_line(lines, [&](std::int64_t i, int c) __attribute__((always_inline)) {
        const std::int64_t at = first + i * kLanes;
        const Vec g = gated(at);
        sum[c] += g;
        if constexpr (CENTERED) product[c] += g * (gated.x(at) - center);
      });
      plain.add(add_chains(sum));
      if constexpr (CENTERED) centered.add(add_chains(product));
    });
  return {plain.total(), centered.total()};
}

// grad_x = scale * g + constant + slope * (x - mean), the last two being what x owes to the batch's statistics.
template <typename Number, Gate GATE, typename Input, bool STATISTICS>
void write_channel(const Blocked& shape, const NormBackward& a, std::int64_t channel, GradientSums sums) {
  const GatedGradient<Number, GATE, Input> gated(a, channel);
  const Vec mean = of_channel(a.mean, channel, 0.0f);
  const double scale = a.x.scale ? a.x.scale[channel] : 1.0;
  const double share = -scale / static_cast<double>(shape.batch * shape.pixels());
  const double inv_std = a.inv_std ? a.inv_std[channel] : 0.0;
  const float constant = static_cast<float>(share * sums.plain);
  const float slope = static_cast<float>(share * sums.centered * inv_std * inv_std);
  Number *const grad_x = static_cast<Number*>(a.grad_x), *const grad_gated = static_cast<Number*>(a.grad_gated);
  for (std::int64_t group = 0; group < shape.groups(kLanes); ++group) {
    const std::int64_t first = plane_at(shape, group, channel);
    const Vec constants = first_lanes(broadcast(constant), images_in(shape, group));
    const Vec slopes = first_lanes(broadcast(slope), images_in(shape, group));
    each_line(shape.pixels(), [=](std::int64_t i, int) __attribute__((always_inline)) {
      const std::int64_t at = first + i * kLanes;
      const Vec g = gated(at);
      if (grad_gated) store(grad_gated + at, g);
      if (!grad_x) return;
      Vec out = g * gated.scale;
      if constexpr (STATISTICS) out += slopes * (gated.x(at) - mean) + constants;
      store(grad_x + at, out);
    });
  }
}

template <typename Number, Gate GATE, typename Input>
void backward_gated(const Blocked& shape, const NormBackward& a, int threads) {
  const bool statistics = a.mean && a.grad_x;
  const bool centered = statistics || a.grad_weight;
#pragma omp parallel for num_threads(threads) schedule(static)
  for (std::int64_t c = 0; c < shape.channels; ++c) {
    GradientSums sums;
    if (centered)
      sums = sum_channel<Number, GATE, Input, true>(shape, a, c);
    else if (a.grad_bias)
      sums = sum_channel<Number, GATE, Input, false>(shape, a, c);
    if (a.grad_weight) a.grad_weight[c] = static_cast<float>(sums.centered * static_cast<double>(a.inv_std[c]));
    if (a.grad_bias) a.grad_bias[c] = static_cast<float>(sums.plain);
    if (statistics)
      write_channel<Number, GATE, Input, true>(shape, a, c, sums);
    else if (a.grad_x || a.grad_gated)
      write_channel<Number, GATE, Input, false>(shape, a, c, sums);
  }
}

template <typename Number, typename Input>
void backward_from(const Blocked& shape, const NormBackward& a, int threads) {
  if (a.gate)
    backward_gated<Number, Gate::by_value, Input>(shape, a, threads);
  else if (a.gate_bits)
    backward_gated<Number, Gate::by_bit, Input>(shape, a, threads);
  else if (a.gate_by_x)
    backward_gated<Number, Gate::by_x, Input>(shape, a, threads);
  else
    backward_gated<Number, Gate::open, Input>(shape, a, threads);
}

void backward(const Blocked& shape, const NormBackward& a, int threads) {
  if (a.x_hat) return backward_from<float, NormedInput>(shape, a, threads);
  with_number(shape.half, [&](auto zero) {
    using Number = decltype(zero);
    backward_from<Number, OwnInput<Number>>(shape, a, threads);
  });
}

void sums(const Blocked& shape, const void* grad, float* sums, int threads) {
  NormBackward a;
  a.grad = grad;
  a.grad_bias = sums;
  with_number(shape.half, [&](auto zero) {
    using Number = decltype(zero);
    backward_gated<Number, Gate::open, OwnInput<Number>>(shape, a, threads);
  });
}

}  // namespace

namespace fedsparse::FEDSPARSE_ISA {
extern const NormKernels norm;
const NormKernels norm = {moments, combine, backward, sums};
}  // namespace fedsparse::FEDSPARSE_ISA

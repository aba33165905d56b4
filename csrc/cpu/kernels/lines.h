// Walks over the lines of blocked activations (blocked.h) and sums that stay exact over long walks.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../blocked.h"
#include "number.h"

namespace {

using fedsparse::Blocked;

// Independent sums of one walk: enough to hide the latency of an addition.
constexpr int kChains = 4;
// Lines summed in float32 before the sums move to float64; they also fit the L1 cache for a second look.
constexpr std::int64_t kChunk = 128;

// visit(line, chain) for every line.
template <typename Visit>
inline void each_line(std::int64_t lines, Visit visit) {
  std::int64_t i = 0;
  for (; lines - i >= kChains; i += kChains)
#pragma GCC unroll 4
    for (int c = 0; c < kChains; ++c) visit(i + c, c);
  for (; i < lines; ++i) visit(i, 0);
}

// visit(place of the first number, lines) for every chunk of `lines` neighbouring lines.
template <typename Visit>
inline void each_chunk(std::int64_t first, std::int64_t lines, Visit visit) {
  for (std::int64_t at = 0; at < lines; at += kChunk) visit(first + at * kLanes, std::min(kChunk, lines - at));
}

inline std::int64_t plane_at(const Blocked& shape, std::int64_t group, std::int64_t channel) {
  return (group * shape.channels + channel) * shape.pixels() * kLanes;
}

// Images in a group: kLanes in all but the last.
inline int images_in(const Blocked& shape, std::int64_t group) {
  return static_cast<int>(std::min<std::int64_t>(kLanes, shape.batch - group * kLanes));
}

// The first lanes of v, zeros behind: what would be NaN in a lane without an image must not come out.
inline Vec first_lanes(Vec v, int lanes) {
  for (int i = lanes; i < kLanes; ++i) v[i] = 0.0f;
  return v;
}

// A channel's entry of a vector that may be missing, in every lane.
inline Vec of_channel(const float* vector, std::int64_t channel, float otherwise) {
  return broadcast(vector ? vector[channel] : otherwise);
}

inline Vec add_chains(const Vec* chain) { return (chain[0] + chain[1]) + (chain[2] + chain[3]); }

// Each lane's sum in float64.
struct LaneSums {
  double lane[kLanes] = {};

  void add(Vec partial) {
    for (int i = 0; i < kLanes; ++i) lane[i] += static_cast<double>(partial[i]);
  }

  double total() const {
    double sum = 0.0;
    for (double l : lane) sum += l;
    return sum;
  }
};

// Count, mean and sum of squared distances from it, merged as Chan, Golub and LeVeque do: nothing cancels.
struct Moments {
  double count = 0.0, mean = 0.0, squares = 0.0;

  void merge(double other_count, double other_mean, double other_squares) {
    const double sum = count + other_count, distance = other_mean - mean;
    mean += distance * (other_count / sum);
    squares += other_squares + distance * distance * (count * other_count / sum);
    count = sum;
  }

  // Rounding can leave the squares of equal numbers a little below zero.
  double variance() const { return std::max(squares / count, 0.0); }
};

// The same for each lane; the lanes share their count, so that no lane divides.
class LaneMoments {
 public:
  double count = 0.0, mean[kLanes] = {}, squares[kLanes] = {};

  // Sums distances from about the mean so far; where a chunk lies far from it, the distance itself makes the variance,
  // so nothing cancels. The first chunk has to be looked at twice.
  template <typename Number>
  void add(const Number* x, std::int64_t first, std::int64_t lines) {
    each_chunk(first, lines, [&](std::int64_t at, std::int64_t some) {
      if (count == 0.0) center_ = mean_of(x + at, some);
      add_chunk(x + at, some);
    });
  }

  void merge_into(Moments& all, int lanes) const {
    for (int i = 0; i < lanes; ++i) all.merge(count, mean[i], squares[i]);
  }

 private:
  Vec center_ = {};

  template <typename Number>
  static Vec mean_of(const Number* x, std::int64_t lines) {
    Vec sum[kChains] = {};
    each_line(lines, [&](std::int64_t i, int c) __attribute__((always_inline)) { sum[c] += load(x + i * kLanes); });
    return add_chains(sum) / static_cast<float>(lines);
  }

  template <typename Number>
  void add_chunk(const Number* x, std::int64_t lines) {
    const Vec center = center_;
    Vec sum[kChains] = {}, square[kChains] = {};
    each_line(lines, [&](std::int64_t i, int c) __attribute__((always_inline)) {
      const Vec distance = load(x + i * kLanes) - center;
      sum[c] += distance;
      square[c] += distance * distance;
    });
    merge_chunk(static_cast<double>(lines), add_chains(sum), add_chains(square));
  }

  void merge_chunk(double lines, Vec sum, Vec square) {
    const double total = count + lines, share = lines / total, weight = count * share, each = 1.0 / lines;
    for (int i = 0; i < kLanes; ++i) {
      const double off = static_cast<double>(sum[i]) * each;
      const double distance = static_cast<double>(center_[i]) + off - mean[i];
      mean[i] += distance * share;
      squares[i] += static_cast<double>(square[i]) - off * off * lines + distance * distance * weight;
      center_[i] = static_cast<float>(mean[i]);
    }
    count = total;
  }
};

}  // namespace

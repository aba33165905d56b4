// Streaming top-k: rows of the dense gradient a chunk at a time, and the best k positions seen so far.
#include "topk.h"

#include <algorithm>
#include <cstring>

#include "arena.h"
#include "kernels.h"

namespace fedsparse {
namespace {

// Positions whose gradients are computed at a time: enough rows to amortise packing the activations.
constexpr std::int64_t kChunk = 64 * 1024;
// Candidates gathered beyond 2k before the worst are dropped: makes that rare where k is small.
constexpr std::int64_t kSlack = 4096;
// Gradients that one test passes over when none is large enough.
constexpr std::int64_t kGlance = 64;

// Orders gradients by magnitude, NaN first: the bits without the sign.
std::int32_t magnitude_of(float gradient) {
  std::int32_t bits;
  std::memcpy(&bits, &gradient, sizeof bits);
  return bits & 0x7fffffff;
}

struct Candidate {
  std::int32_t magnitude;
  float gradient;
  std::int64_t position;

  bool operator<(const Candidate& b) const {  // "comes before"
    return magnitude != b.magnitude ? magnitude > b.magnitude : position < b.position;
  }
};

// The best k of the positions offered, which must come in rising order.
class BestK {
 public:
  // `room` holds room_for(k, positions) candidates.
  BestK(Candidate* room, std::int64_t k, std::int64_t positions)
      : held_(room), k_(k), room_(room_for(k, positions)) {}

  // k >= 1 and all there will be, or enough that each drop of the worst is paid for by as many offers.
  static std::int64_t room_for(std::int64_t k, std::int64_t positions) { return std::min(2 * k + kSlack, positions); }

  // Whether gradients of zero are turned away from now on.
  bool picky() const { return floor_ >= 0; }

  void offer(const float* gradient, std::int64_t count, std::int64_t position) {
    std::int64_t i = 0;
    for (; i + kGlance <= count; i += kGlance)
      if (any_above(gradient + i))
        for (std::int64_t j = i; j < i + kGlance; ++j) offer_one(gradient[j], position + j);
    for (; i < count; ++i) offer_one(gradient[i], position + i);
  }

  // The best k, best first.
  void finish(std::int64_t* positions, float* gradients) {
    drop_worst();
    std::sort(held_, held_ + count_);
    for (std::int64_t i = 0; i < count_; ++i) {
      positions[i] = held_[i].position;
      gradients[i] = held_[i].gradient;
    }
  }

 private:
  bool any_above(const float* gradient) const {
    std::int32_t above = 0;
    for (std::int64_t i = 0; i < kGlance; ++i) above |= magnitude_of(gradient[i]) > floor_;
    return above != 0;
  }
  void offer_one(float gradient, std::int64_t position) {
    const std::int32_t magnitude = magnitude_of(gradient);
    if (magnitude <= floor_) return;
    held_[count_++] = {magnitude, gradient, position};
    if (count_ == room_) drop_worst();
  }
  void drop_worst() {
    if (count_ < k_) return;
    std::nth_element(held_, held_ + k_ - 1, held_ + count_);
    count_ = k_;
    floor_ = held_[k_ - 1].magnitude;
  }

  Candidate* const held_;
  const std::int64_t k_, room_;
  std::int64_t count_ = 0;
  // Magnitude of the k-th best. A later position needs more than that, for it loses ties.
  std::int32_t floor_ = -1;
};

// Offers the pruned positions of one row and may overwrite the kept ones.
void offer_row(const PatternView& pattern, std::int64_t row, std::int64_t columns, float* gradient, BestK& best) {
  const std::int64_t begin = pattern.row_start[row], end = pattern.row_start[row + 1];
  if (best.picky()) {
    for (std::int64_t e = begin; e < end; ++e) gradient[pattern.column[e]] = 0;
    best.offer(gradient, columns, row * columns);
    return;
  }
  std::int64_t at = 0;
  for (std::int64_t e = begin; e <= end; ++e) {
    const std::int64_t kept = e < end ? pattern.column[e] : columns;
    best.offer(gradient + at, kept - at, row * columns + at);
    at = kept + 1;
  }
}

// Features are channels of one-pixel pictures.
ConvShape blocked_shape(const Problem& problem) {
  const ConvShape& s = problem.shape;
  return problem.linear ? ConvShape{s.batch, s.in_channels, 1, 1, s.out_channels, 1, 1, 1, 1, 0, 0, 1, 1, 1} : s;
}

// (batch, channels, height, width) to the layout of blocked.h, zeros in lanes without an image.
void block(const Blocked& shape, const float* from, int lanes, float* to, int threads) {
  const std::int64_t pixels = shape.pixels(), picture = shape.channels * pixels;
  const std::int64_t planes = shape.groups(lanes) * shape.channels;
#pragma omp parallel for num_threads(threads) schedule(static)
  for (std::int64_t plane = 0; plane < planes; ++plane) {
    const std::int64_t first = plane / shape.channels * lanes;
    const std::int64_t images = std::min<std::int64_t>(shape.batch - first, lanes);
    const float* source = from + first * picture + plane % shape.channels * pixels;
    float* line = to + plane * pixels * lanes;
    for (std::int64_t p = 0; p < pixels; ++p, line += lanes)
      for (std::int64_t i = 0; i < lanes; ++i) line[i] = i < images ? source[i * picture + p] : 0.0f;
  }
}

float* take_blocked(const Blocked& shape, int lanes, Arena& arena) {
  return arena.take<float>(shape.groups(lanes) * shape.channels * shape.pixels() * lanes);
}

}  // namespace

std::int64_t topk_pruned_blocked(const Problem& problem, const float* grad_y, const Term& x, std::int64_t k,
                                 std::int64_t* positions, float* gradients, void* workspace) {
  const ConvShape shape = blocked_shape(problem);
  const PatternView& pattern = problem.pattern;
  const WeightGradientKernels& kernels = problem.kernels->weight_gradient;
  const std::int64_t columns = pattern.inputs * pattern.taps, pruned = pattern.rows * columns - pattern.nnz;
  const std::int64_t chunk_rows = std::clamp<std::int64_t>(std::max(kChunk, k) / columns, 1, pattern.rows);

  Arena arena(workspace);
  float* const chunk = arena.take<float>(chunk_rows * columns);
  BestK best(arena.take<Candidate>(BestK::room_for(k, pruned)), k, pruned);
  std::byte* const scratch = arena.take<std::byte>(
      kernels.rows(shape, grad_y, x, 0, chunk_rows, chunk, nullptr, problem.threads));
  if (!workspace || k == 0) return arena.used();

  for (std::int64_t first = 0; first < pattern.rows; first += chunk_rows) {
    const std::int64_t last = std::min(first + chunk_rows, pattern.rows);
    kernels.rows(shape, grad_y, x, first, last, chunk, scratch, problem.threads);
    for (std::int64_t row = first; row < last; ++row)
      offer_row(pattern, row, columns, chunk + (row - first) * columns, best);
  }
  best.finish(positions, gradients);
  return arena.used();
}

std::int64_t topk_pruned(const Problem& problem, const float* grad_y, const float* x, std::int64_t k,
                         std::int64_t* positions, float* gradients, void* workspace) {
  const ConvShape s = blocked_shape(problem);
  const int lanes = problem.kernels->lanes;
  const Blocked in{s.batch, s.in_channels, s.height, s.width};
  const Blocked out{s.batch, s.out_channels, s.out_height(), s.out_width()};
  Arena arena(workspace);
  float* const blocked_x = take_blocked(in, lanes, arena);
  float* const blocked_grad = take_blocked(out, lanes, arena);
  Term term;
  term.data = blocked_x;
  void* const rest = arena.take<std::byte>(
      topk_pruned_blocked(problem, blocked_grad, term, k, positions, gradients, nullptr));
  if (!workspace || k == 0) return arena.used();
  block(in, x, lanes, blocked_x, problem.threads);
  block(out, grad_y, lanes, blocked_grad, problem.threads);
  topk_pruned_blocked(problem, blocked_grad, term, k, positions, gradients, rest);
  return arena.used();
}

}  // namespace fedsparse

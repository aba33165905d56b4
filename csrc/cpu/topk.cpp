// Streaming top-k: rows of the dense gradient a chunk at a time, and the best k positions seen so far.
#include <algorithm>
#include <cstring>
#include <utility>

#include "arena.h"
#include "fedsparse/api.h"
#include "gradient_chunks.h"

namespace fedsparse {
namespace {

// Candidates gathered beyond 2k before the worst are dropped: makes that rare where k is small.
constexpr std::int64_t kSlack = 4096;
// Gradients that one test passes over when none is large enough.
constexpr std::int64_t kGlance = 32;

// Orders gradients by magnitude, NaN first: the bits without the sign.
std::int32_t magnitude_of(float gradient) {
  std::int32_t bits;
  std::memcpy(&bits, &gradient, sizeof bits);
  return bits & 0x7fffffff;
}

struct Candidate {
  float gradient;
  std::int64_t position;

  std::int32_t magnitude() const { return magnitude_of(gradient); }
};

// How many candidates have each value of a digit of their magnitudes. Those have three digits: 10 bits, 10 bits, and
// the highest 11, so that a value of the last one is shared by few.
struct Histogram {
  static constexpr int kBits = 10, kTop = 2, kSize = 2 << kBits;
  std::int64_t count[kSize] = {};

  static int digit(std::int32_t magnitude, int which) {
    const std::int32_t from = magnitude >> (which * kBits);
    return which == kTop ? from : from & ((1 << kBits) - 1);
  }
};

// Magnitude of the k-th largest of some candidates, 1 <= k <= count.
std::int32_t kth_magnitude(const Candidate* candidates, std::int64_t count, std::int64_t k) {
  std::int32_t known = 0;  // digits found so far, the others zero
  for (int d = Histogram::kTop; d >= 0; --d) {
    Histogram h;
    const int above = (d + 1) * Histogram::kBits;
    for (std::int64_t i = 0; i < count; ++i) {
      const std::int32_t m = candidates[i].magnitude();
      if (d == Histogram::kTop || m >> above == known >> above) ++h.count[Histogram::digit(m, d)];
    }
    int value = Histogram::kSize - 1;
    while (h.count[value] < k) k -= h.count[value--];
    known |= value << (d * Histogram::kBits);
  }
  return known;
}

// One pass of a radix sort: larger digits first, otherwise in the order they were.
void sort_by_digit(const Candidate* from, std::int64_t count, int which, Candidate* to) {
  Histogram h;
  for (std::int64_t i = 0; i < count; ++i) ++h.count[Histogram::digit(from[i].magnitude(), which)];
  std::int64_t before = 0;
  for (int value = Histogram::kSize - 1; value >= 0; --value) before += std::exchange(h.count[value], before);
  for (std::int64_t i = 0; i < count; ++i) to[h.count[Histogram::digit(from[i].magnitude(), which)]++] = from[i];
}

// The best k of the positions offered. They must come in rising order and are held in that order, so every tie goes to
// the lower position.
class BestK {
 public:
  // `room` holds room_for(k) candidates.
  BestK(Candidate* room, std::int64_t k) : held_(room), k_(k) {}

  // Twice k: each drop of the worst is paid for by as many offers, and the final sort has somewhere to go.
  static std::int64_t room_for(std::int64_t k) { return 2 * k + kSlack; }

  // Whether gradients of zero are turned away from now on.
  bool picky() const { return floor_ >= 0; }

  void offer(const float* gradient, std::int64_t count, std::int64_t position) {
    std::int64_t i = 0;
    for (; i + kGlance <= count; i += kGlance)
      if (any_above(gradient + i)) take(gradient + i, kGlance, position + i);
    take(gradient + i, count - i, position + i);
  }

  // The best k, best first.
  void finish(std::int64_t* positions, float* gradients) {
    drop_worst();
    Candidate *from = held_, *to = held_ + k_;
    for (int d = 0; d <= Histogram::kTop; ++d, std::swap(from, to)) sort_by_digit(from, count_, d, to);
    for (std::int64_t i = 0; i < count_; ++i) {
      positions[i] = from[i].position;
      gradients[i] = from[i].gradient;
    }
  }

 private:
  bool any_above(const float* gradient) const {
    std::int32_t above = 0;
    for (std::int64_t i = 0; i < kGlance; ++i) above |= magnitude_of(gradient[i]) > floor_;
    return above != 0;
  }
  // At most kGlance. Without branches, which would be mispredicted often where k is large.
  void take(const float* gradient, std::int64_t count, std::int64_t position) {
    if (count_ + count > room_for(k_)) drop_worst();
    std::int64_t end = count_;
    for (std::int64_t i = 0; i < count; ++i) {
      held_[end] = {gradient[i], position + i};
      end += magnitude_of(gradient[i]) > floor_;
    }
    count_ = end;
  }
  void drop_worst() {
    if (count_ < k_) return;
    floor_ = kth_magnitude(held_, count_, k_);
    std::int64_t ties = k_;
    for (std::int64_t i = 0; i < count_; ++i) ties -= held_[i].magnitude() > floor_;
    std::int64_t end = 0;
    for (std::int64_t i = 0; i < count_; ++i) {  // without branches, as above
      const int equal = held_[i].magnitude() == floor_;
      held_[end] = held_[i];
      end += static_cast<int>(held_[end].magnitude() > floor_) | (equal & static_cast<int>(ties > 0));
      ties -= equal;
    }
    count_ = end;
  }

  Candidate* const held_;
  const std::int64_t k_;
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

}  // namespace

std::int64_t topk_pruned(const Problem& problem, const void* grad_y, const Term& x, const RowLines& lines,
                         std::int64_t k, std::int64_t* positions, float* gradients, void* workspace) {
  const PatternView& pattern = problem.pattern;
  const std::int64_t columns = pattern.inputs * pattern.taps;
  Arena arena(workspace);
  const GradientChunks chunks(problem, grad_y, x, lines, k, 1, arena);
  BestK best(arena.take<Candidate>(BestK::room_for(k)), k);
  if (!workspace || k == 0) return arena.used();
  chunks.each([&](std::int64_t first, std::int64_t rows, float* gradient) {
    for (std::int64_t row = 0; row < rows; ++row)
      offer_row(pattern, first + row, columns, gradient + row * columns, best);
  });
  best.finish(positions, gradients);
  return arena.used();
}

}  // namespace fedsparse

// The dense weight gradient a chunk of rows at a time, for those who look for its largest entries.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "arena.h"
#include "fedsparse/api.h"
#include "kernels.h"

namespace fedsparse {

class GradientChunks {
 public:
  // Chunks of about max(kPositions, k) positions, and of whole runs of `high` rows but for the last.
  GradientChunks(const Problem& problem, const void* grad_y, const Term& x, const RowLines& lines, std::int64_t k,
                 std::int64_t high, Arena& arena)
      : problem_(problem), grad_y_(grad_y), x_(x), lines_(lines), columns_(problem.pattern.inputs * problem.pattern.taps) {
    const std::int64_t runs = std::max<std::int64_t>(std::max(kPositions, k) / (columns_ * high), 1);
    rows_ = std::min(runs * high, problem.pattern.rows);
    chunk_ = arena.take<float>(rows_ * columns_);
    scratch_ = arena.take<std::byte>(compute(0, rows_));
  }

  // Calls visit(row, rows, gradient (rows, columns)) for every chunk in turn, which may overwrite the gradient.
  template <typename Visit>
  void each(Visit&& visit) const {
    for (std::int64_t first = 0; first < problem_.pattern.rows; first += rows_) {
      const std::int64_t last = std::min(first + rows_, problem_.pattern.rows);
      compute(first, last);
      for (std::int64_t row = first; row < last; ++row) follow_line(row, chunk_ + (row - first) * columns_);
      visit(first, last - first, chunk_);
    }
  }

 private:
  // Enough rows to amortise packing the activations.
  static constexpr std::int64_t kPositions = 64 * 1024;

  std::int64_t compute(std::int64_t first, std::int64_t last) const {
    return problem_.kernels->weight_gradient.rows(problem_.shape, problem_.half, grad_y_, x_, first, last, chunk_,
                                                  scratch_, problem_.threads);
  }

  void follow_line(std::int64_t row, float* gradient) const {
    if (!lines_.slope) return;
    const float slope = lines_.slope[row], offset = lines_.offset[row];
    for (std::int64_t i = 0; i < columns_; ++i) gradient[i] = slope * gradient[i] + offset;
  }

  const Problem& problem_;
  const void* const grad_y_;
  const Term& x_;
  const RowLines& lines_;
  const std::int64_t columns_;
  std::int64_t rows_ = 0;
  float* chunk_ = nullptr;
  std::byte* scratch_ = nullptr;
};

}  // namespace fedsparse

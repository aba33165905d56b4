// Streaming top-k of units: whole bands of units of the dense gradient at a time, and the best units seen so far.
#include <algorithm>
#include <cstring>

#include "arena.h"
#include "fedsparse/api.h"
#include "gradient_chunks.h"

namespace fedsparse {
namespace {

// Gradients gathered beyond twice what may stay, before the worst are dropped: makes that rare where k is small.
constexpr std::int64_t kSlack = 16 * 1024;
// Units that one test passes over when none is good enough.
constexpr std::int64_t kGlance = 16;
// A sum of squares below this share of the worst score times the size has a lower score, however either is rounded.
constexpr double kBelow = 1 - 1e-12;

// How units lie in the matrix of the weight. A band of `high` rows is cut into runs of span * width columns, and a run
// into `width` units, each with every width-th column of the run.
struct UnitGrid {
  std::int64_t rows, columns, high, span, width, across;
  std::int64_t whole;  // units of a band, its first ones, that no edge makes narrower

  UnitGrid(const PatternView& p, const Unit& unit)
      : rows(p.rows), columns(p.inputs * p.taps), high(unit.rows) {
    const bool every_tap = unit.taps == p.taps;
    span = every_tap ? unit.inputs * p.taps : unit.inputs;
    width = every_tap ? 1 : p.taps;
    if (span == 1) width = columns;
    across = (columns + span * width - 1) / (span * width) * width;
    whole = last_columns() < span ? across - width : across;
  }

  std::int64_t count() const { return (rows + high - 1) / high * across; }
  // Weights of the largest unit, and of the smallest.
  std::int64_t most() const { return std::min(high, rows) * std::min(span, columns / width); }
  std::int64_t fewest() const { return last(rows, high) * last_columns(); }
  std::int64_t rows_at(std::int64_t row) const { return std::min(high, rows - row); }
  std::int64_t columns_at(std::int64_t i) const { return i < whole ? span : last_columns(); }

 private:
  std::int64_t last_columns() const { return last(columns / width, span); }
  static std::int64_t last(std::int64_t size, std::int64_t step) { return size % step ? size % step : step; }
};

// Where one unit lies: the flat position of its first weight, and how many rows and columns it has.
struct Place {
  std::int64_t first, rows, columns;

  Place(const UnitGrid& g, std::int64_t unit) {
    const std::int64_t row = unit / g.across * g.high, across = unit % g.across;
    const std::int64_t column = across / g.width * g.span * g.width + across % g.width;
    first = row * g.columns + column;
    rows = g.rows_at(row);
    columns = g.columns_at(across);
  }

  // Calls visit(flat position) for each of its weights, ascending.
  template <typename Visit>
  void each(const UnitGrid& g, Visit&& visit) const {
    for (std::int64_t r = 0; r < rows; ++r)
      for (std::int64_t c = 0; c < columns; ++c) visit(first + r * g.columns + c * g.width);
  }
};

// ---- scores
double square(float x) { return static_cast<double>(x) * static_cast<double>(x); }

// In eight chains of additions, so that none waits for the last one.
double sum_of_squares(const float* x, std::int64_t count) {
  double part[8] = {};
  std::int64_t i = 0;
  for (; i + 8 <= count; i += 8)
    for (std::int64_t j = 0; j < 8; ++j) part[j] += square(x[i + j]);
  for (; i < count; ++i) part[i % 8] += square(x[i]);
  return ((part[0] + part[1]) + (part[2] + part[3])) + ((part[4] + part[5]) + (part[6] + part[7]));
}

// Adds the squares of one row to the sums (across) of its band.
void add_squares(const UnitGrid& g, const float* gradient, double* sums) {
  const std::int64_t run = g.span * g.width;
  for (std::int64_t begin = 0; begin < g.columns; begin += run, sums += g.width) {
    const std::int64_t end = std::min(begin + run, g.columns);
    if (g.width == 1) {
      sums[0] += sum_of_squares(gradient + begin, end - begin);
      continue;
    }
    for (std::int64_t c = begin; c < end; c += g.width)
      for (std::int64_t w = 0; w < g.width; ++w) sums[w] += square(gradient[c + w]);
  }
}

// Sums of squares that no pruned unit has, for the kept units of a band, which its first row tells.
void bar_kept(const UnitGrid& g, const PatternView& pattern, std::int64_t row, double* sums) {
  for (std::int64_t i = pattern.row_start[row]; i < pattern.row_start[row + 1]; ++i) {
    const std::int64_t column = pattern.column[i];
    sums[column / (g.span * g.width) * g.width + column % g.width] = -1;
  }
}

// Orders scores, NaN first and those of kept units, which are negative, last: the bits.
std::int64_t key_of(double score) {
  if (score != score) return INT64_MAX;
  std::int64_t bits;
  std::memcpy(&bits, &score, sizeof bits);
  return bits;
}

double score_of(std::int64_t key) {
  double score;
  std::memcpy(&score, &key, sizeof score);
  return score;
}

// ---- the best
struct Candidate {
  std::int64_t key, unit, size;
  std::int64_t at;  // of its gradients
};

// A key, and how many positions units of that very key are to give.
struct Cut {
  std::int64_t key, ties;
};

// Of the candidate that the k-th position belongs to, largest keys first; they have k positions or more.
Cut find_cut(const Candidate* candidates, std::int64_t count, std::int64_t k) {
  constexpr int kBits = 11;
  Cut cut{0, k};
  for (int shift = 5 * kBits; shift >= 0; shift -= kBits) {  // 63 bits; the highest digit has eight
    std::int64_t positions[1 << kBits] = {};
    for (std::int64_t i = 0; i < count; ++i)
      if (candidates[i].key >> shift >> kBits == cut.key >> shift >> kBits)
        positions[(candidates[i].key >> shift) & ((1 << kBits) - 1)] += candidates[i].size;
    std::int64_t digit = (1 << kBits) - 1;
    while (positions[digit] < cut.ties) cut.ties -= positions[digit--];
    cut.key |= digit << shift;
  }
  return cut;
}

// The best units that have k positions or more, but for the last one fewer. They must be offered by rising number and
// are held in that order, so every tie goes to the lower number.
class BestUnits {
 public:
  BestUnits(const UnitGrid& grid, std::int64_t k, Arena& arena)
      : grid_(grid),
        k_(k),
        room_(2 * (k + grid.most()) + kSlack),
        held_(arena.take<Candidate>(std::min(grid.count(), room_ / grid.fewest()))),
        gradients_(arena.take<float>(room_)) {}

  // The units of the band that begins with row number `row`.
  void offer(std::int64_t row, const float* gradient, const double* sums) {
    const std::int64_t first = row / grid_.high * grid_.across, rows = grid_.rows_at(row);
    for (std::int64_t i = 0; i < grid_.across;) {
      if (i + kGlance <= grid_.whole && !any_above(sums + i, rows * grid_.span)) {
        i += kGlance;
        continue;
      }
      for (const std::int64_t end = std::min(i + kGlance, grid_.across); i < end; ++i) {
        const std::int64_t size = rows * grid_.columns_at(i);
        if (sums[i] < bound(size)) continue;
        const std::int64_t key = key_of(sums[i] / static_cast<double>(size));
        if (key <= floor_) continue;
        if (used_ + size > room_) drop_worst();
        if (key <= floor_) continue;
        held_[count_++] = {key, first + i, size, used_};
        Place(grid_, first + i).each(grid_, [&](std::int64_t position) {
          gradients_[used_++] = gradient[position - row * grid_.columns];
        });
      }
    }
  }

  // From the best on those that have at most k positions together; returns how many these are.
  std::int64_t finish(std::int64_t* positions, float* gradients) {
    if (used_ >= k_) drop_worst();
    std::sort(held_, held_ + count_, [](const Candidate& a, const Candidate& b) {
      return a.key != b.key ? a.key > b.key : a.unit < b.unit;
    });
    std::int64_t out = 0;
    for (const Candidate* c = held_; c < held_ + count_ && out + c->size <= k_; ++c) {
      std::copy_n(gradients_ + c->at, c->size, gradients + out);
      Place(grid_, c->unit).each(grid_, [&](std::int64_t position) { positions[out++] = position; });
    }
    return out;
  }

 private:
  // Units of `size` weights are worth a division where their sum of squares is not below this, or NaN.
  double bound(std::int64_t size) const { return floor_score_ * static_cast<double>(size) * kBelow; }

  bool any_above(const double* sums, std::int64_t size) const {
    const double least = bound(size);
    std::int64_t above = 0;
    for (std::int64_t i = 0; i < kGlance; ++i) above |= !(sums[i] < least);
    return above != 0;
  }

  void drop_worst() {
    Cut cut = find_cut(held_, count_, k_);
    std::int64_t kept = 0;
    used_ = 0;
    for (std::int64_t i = 0; i < count_; ++i) {
      const Candidate c = held_[i];
      if (c.key < cut.key || (c.key == cut.key && cut.ties <= 0)) continue;
      if (c.key == cut.key) cut.ties -= c.size;
      std::memmove(gradients_ + used_, gradients_ + c.at, static_cast<std::size_t>(c.size) * sizeof(float));
      held_[kept++] = {c.key, c.unit, c.size, used_};
      used_ += c.size;
    }
    count_ = kept;
    floor_ = cut.key;
    floor_score_ = score_of(floor_);
  }

  const UnitGrid& grid_;
  const std::int64_t k_, room_;
  Candidate* const held_;
  float* const gradients_;
  std::int64_t count_ = 0, used_ = 0;  // units, and their positions
  // Key of the worst that may stay. A later unit needs more than that, for it loses ties.
  std::int64_t floor_ = -1;
  double floor_score_ = -1;
};

}  // namespace

std::int64_t topk_pruned_units(const Problem& problem, const void* grad_y, const Term& x, const RowLines& lines,
                               const Unit& unit, std::int64_t k, std::int64_t* positions, float* gradients,
                               void* workspace) {
  const UnitGrid grid(problem.pattern, unit);
  Arena arena(workspace);
  const GradientChunks chunks(problem, grad_y, x, lines, k, grid.high, arena);
  BestUnits best(grid, k, arena);
  double* const sums = arena.take<double>(grid.across);
  if (!workspace) return arena.used();
  if (k == 0) return 0;
  chunks.each([&](std::int64_t first, std::int64_t rows, const float* gradient) {
    for (std::int64_t band = 0; band < rows; band += grid.high) {
      std::fill_n(sums, grid.across, 0.0);
      for (std::int64_t row = band; row < std::min(band + grid.high, rows); ++row)
        add_squares(grid, gradient + row * grid.columns, sums);
      bar_kept(grid, problem.pattern, first + band, sums);
      best.offer(first + band, gradient + band * grid.columns, sums);
    }
  });
  return best.finish(positions, gradients);
}

}  // namespace fedsparse

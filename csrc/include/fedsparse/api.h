// The CPU engine behind one header. Pointers in, numbers out; every array lives with the caller.
//
// Functions that need scratch take it as (workspace). With workspace == nullptr they touch nothing and return the
// bytes they want, 64-byte aligned. Activations and their gradients are float32 or bfloat16 (cpu/blocked.h), all other
// numbers float32.
#pragma once

#include <cstdint>

#include "fedsparse/shapes.h"

namespace fedsparse {

struct Kernels;
struct Saved;
struct Strips;
struct Term;

// ---- patterns
// Kept positions of `mask` (rows * inputs * taps bytes, 0 or not): counts per row into row_start (rows + 1).
std::int64_t count_kept(const std::uint8_t* mask, std::int64_t rows, std::int64_t columns, std::int32_t* row_start,
                        int threads);
// The columns of a mask whose row_start is known.
void list_columns(const std::uint8_t* mask, std::int64_t rows, std::int64_t columns, const std::int32_t* row_start,
                  void* column, bool wide, int threads);
// column_start, entry and rank of `pattern` from its row_start and column. `scratch` (threads * inputs * taps).
void transpose_pattern(const PatternView& pattern, std::int32_t* column_start, void* entry, bool entry_wide,
                       void* rank, bool rank_wide, std::int32_t* scratch, int threads);
// For each kept position of `to`, its place among the values of `from`, or -1. Same shape.
void carry(const PatternView& from, const PatternView& to, std::int32_t* places, int threads);
// Between values and a dense weight of 4-byte numbers; scatter writes zeros elsewhere.
void scatter_words(const PatternView& pattern, const std::uint32_t* values, std::uint32_t* dense);
void gather_words(const PatternView& pattern, const std::uint32_t* dense, std::uint32_t* values);

// ---- products
struct Problem {
  const Kernels* kernels;
  ConvShape shape;
  bool linear;
  PatternView pattern;
  int threads;
  bool half = false;  // activations and their gradients are bfloat16
};
// What a linear layer looks like to the kernels: a 1x1 convolution of one-pixel pictures.
ConvShape linear_shape(std::int64_t batch, std::int64_t inputs, std::int64_t outputs);

// Which channels, kept alike, a call takes together (cpu/strips.h): found once, for the size of its workspace and for
// its run. A linear layer has none.
Strips forward_strips(const Problem& problem);
Strips backward_strips(const Problem& problem, const Saved& x, bool wants_values);

// Activations are blocked (cpu/blocked.h); x is read through its term, so that a norm and a ReLU need no pass of their own.
std::int64_t forward(const Problem& problem, const Strips& strips, const Term& x, const float* values,
                     const float* bias, void* y, void* workspace);
// grad_x (of what the term makes of x) and grad_values may be null (not both): what is null is not computed. Pruned x
// (cpu/activation.h) changes grad_values only.
std::int64_t backward(const Problem& problem, const Strips& strips, const void* grad_y, const Saved& x,
                      const float* values, void* grad_x, float* grad_values, void* workspace);

// What takes the gradients of a row to those that are ranked, `slope[row] * gradient + offset[row]`; null: themselves.
struct RowLines {
  const float* slope = nullptr;
  const float* offset = nullptr;
};

// The k pruned positions with the largest |dL/dw|, larger first, ties to the lower flat position, NaN before all: flat
// positions and signed gradients (k each). k must not exceed the number of pruned positions. The dense gradient is never
// held: memory grows with k, not with the weight.
std::int64_t topk_pruned(const Problem& problem, const void* grad_y, const Term& x, const RowLines& lines,
                         std::int64_t k, std::int64_t* positions, float* gradients, void* workspace);

// Boxes of a weight that are kept or pruned as a whole, numbered in row order. Where an axis is no multiple of theirs,
// the last ones are smaller.
struct Unit {
  std::int64_t rows = 1, inputs = 1;
  std::int64_t taps = 1;  // one or all
};

// The pruned units with the largest mean square of dL/dw, larger first, ties to the lower number, NaN before all: from
// the first on as many as have at most k positions together. Writes their flat positions, ascending within a unit, and
// signed gradients, and returns the number of positions. Memory grows with k and with the rows of one unit.
std::int64_t topk_pruned_units(const Problem& problem, const void* grad_y, const Term& x, const RowLines& lines,
                               const Unit& unit, std::int64_t k, std::int64_t* positions, float* gradients,
                               void* workspace);

// Between (batch, size) rows, a batch of contiguous pictures say, and blocked (groups, size, lanes).
void to_blocked(const Kernels& kernels, std::int64_t batch, std::int64_t size, bool half, const void* rows,
                void* blocked, int threads);
void from_blocked(const Kernels& kernels, std::int64_t batch, std::int64_t size, bool half, const void* blocked,
                  void* rows, int threads);

// ---- selection
struct Scores {
  const float* data;          // (size), size < 2^31
  const std::uint8_t* among;  // (size) 0 where a position may not be taken; null when all may
  std::int64_t size;
  std::int64_t candidates;  // positions that may be taken
};
enum class SelectOrder { largest, largest_magnitude, smallest_magnitude };
// Ascending positions of the k scores that come first in `order`, ties to the lowest position; the same for any
// number of threads. k must not exceed the candidates. Returns how many candidates are NaN: if any, none is taken.
std::int64_t select_top(const Scores& scores, std::int64_t k, SelectOrder order, int threads, std::int64_t* positions,
                        void* workspace);

// ---- changes of a pattern
// row_start (rows + 1) and column (nnz) of flat positions; false, and the lists void, unless these ascend without
// repetition inside [0, rows * columns).
bool list_flat(const std::int64_t* flat, std::int64_t nnz, std::int64_t rows, std::int64_t columns,
               std::int32_t* row_start, void* column, bool wide);
// Ascending order of positions inside [0, size), in place, and where each stood before.
std::int64_t sort_positions(std::int64_t* positions, std::int64_t* order, std::int64_t count, std::int64_t size,
                            void* workspace);
// The lowest of ascending flat positions that `pattern` keeps, -1 where it keeps none.
std::int64_t first_kept(const PatternView& pattern, const std::int64_t* flat, std::int64_t count, int threads);
// row_start and column (as wide as the pattern's) without the values number `dropped` and with the flat positions
// `grown`. Both ascend; a grown position is not kept.
void exchange(const PatternView& pattern, const std::int64_t* dropped, std::int64_t drops, const std::int64_t* grown,
              std::int64_t grows, std::int32_t* row_start, void* column, int threads);
// out[i] = words[places[i]], or `fill` where the place is -1.
void carry_words(const std::uint32_t* words, const std::int32_t* places, std::int64_t count, std::uint32_t fill,
                 std::uint32_t* out, int threads);

}  // namespace fedsparse

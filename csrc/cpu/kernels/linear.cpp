// The walks of linear.h for one instruction set; compiled once for each.
#include "../linear.h"

#include <algorithm>
#include <cstring>

#include "saved.h"

namespace {

using fedsparse::Index;
using fedsparse::Linear;
using fedsparse::PatternView;
using fedsparse::Term;

// Batch groups of a slice: their sums and what they are correlated with fill half the registers of AVX-512.
constexpr std::int64_t kSlice = 8;
// How many entries ahead backward asks for a value, and for the place of its gradient. In the order of inputs each stands
// in another row, which is another cache line and, in large layers, another page.
constexpr std::int64_t kAhead = 64;

struct Slice {
  std::int64_t first, groups, width;  // batch groups from `first` on; width is theirs rounded up to a power of two

  static std::int64_t width_of(std::int64_t groups) {
    std::int64_t width = 1;
    while (width < std::min(groups, kSlice)) width *= 2;
    return width;
  }

  Slice(std::int64_t first, std::int64_t all)
      : first(first), groups(std::min(kSlice, all - first)), width(width_of(groups)) {}
};

// The lists are uint16 nearly always. With NARROW the compiler knows.
template <bool NARROW>
inline std::int64_t item(const Index& index, std::int64_t i) {
  return NARROW ? static_cast<const std::uint16_t*>(index.data)[i] : index[i];
}

// Bounds that give every part about the same number of entries, and of targets that have to be stored.
std::int64_t bound(const std::int32_t* start, std::int64_t targets, std::int64_t part, std::int64_t parts) {
  const std::int64_t wanted = (start[targets] + targets) * part / parts;
  std::int64_t low = 0, high = targets;
  while (low < high) {
    const std::int64_t middle = (low + high) / 2;
    if (start[middle] + middle < wanted)
      low = middle + 1;
    else
      high = middle;
  }
  return low;
}

// (groups, features, lanes) -> (features, width, lanes), zeros for the groups that are not there.
template <typename Number>
void pack_lines(const Term& from, std::int64_t features, const Slice& slice, float* to, int threads) {
  const Number* const numbers = static_cast<const Number*>(from.data);
#pragma omp parallel for num_threads(threads) schedule(static)
  for (std::int64_t j = 0; j < features; ++j) {
    const Reader read(from, j);
    float* lines = to + j * slice.width * kLanes;
    for (std::int64_t g = 0; g < slice.groups; ++g)
      store(lines + g * kLanes, read(load(numbers + ((slice.first + g) * features + j) * kLanes)));
    for (std::int64_t g = slice.groups; g < slice.width; ++g) store(lines + g * kLanes, Vec{});
  }
}

void pack(const Term& from, bool half, std::int64_t features, const Slice& slice, float* to, int threads) {
  (half ? pack_lines<Half> : pack_lines<float>)(from, features, slice, to, threads);
}

// Sums of whole registers, and the places they go to, wait here until one butterfly finishes kLanes of them at a time.
struct ScatterRing {
  float* to;
  bool adds;
  Vec waiting[kLanes];
  std::int64_t place[kLanes];
  int held = 0;

  void push(Vec partial, std::int64_t at) {
    waiting[held] = partial;
    place[held] = at;
    if (++held == kLanes) flush();
  }

  void flush() {
    for (int i = held; i < kLanes; ++i) waiting[i] = Vec{};
    Vec rows[kLanes];  // a copy that can live in registers
    std::copy(waiting, waiting + kLanes, rows);
    const Vec sums = sum_each(rows);
    for (int i = 0; i < held; ++i) to[place[i]] = adds ? to[place[i]] + sums[i] : sums[i];
    held = 0;
  }
};

// What one thread does of a slice.
struct Walk {
  const Linear& layer;
  Slice slice;
  float* gathered;  // packed
};

template <typename Number, int WIDTH, bool NARROW>
void forward_rows(const Walk& w, std::int64_t first, std::int64_t last) {
  // As many chains as hide the latency of a multiply-add.
  constexpr int kChains = WIDTH >= 8 ? 1 : 8 / WIDTH;
  const Linear& a = w.layer;
  const PatternView& p = a.pattern;
  const std::int64_t stride = p.rows * kLanes;
  const float *const x = w.gathered, *const values = a.values;
  for (std::int64_t row = first; row < last; ++row) {
    Vec sum[kChains][WIDTH] = {};
    const Vec begin = broadcast(a.bias ? a.bias[row] : 0.0f);
#pragma GCC unroll 8
    for (int g = 0; g < WIDTH; ++g) sum[0][g] = begin;
    const auto visit = [&](std::int64_t i, Vec* total) __attribute__((always_inline)) {
      const float* lines = x + item<NARROW>(p.column, i) * (WIDTH * kLanes);
      const Vec weight = broadcast(values[i]);
#pragma GCC unroll 8
      for (int g = 0; g < WIDTH; ++g) total[g] += weight * load(lines + g * kLanes);
    };
    std::int64_t i = p.row_start[row];
    const std::int64_t end = p.row_start[row + 1];
    for (; end - i >= kChains; i += kChains)
#pragma GCC unroll 8
      for (int c = 0; c < kChains; ++c) visit(i + c, sum[c]);
    for (; i < end; ++i) visit(i, sum[0]);
    Number* y = static_cast<Number*>(a.y) + w.slice.first * stride + row * kLanes;
#pragma GCC unroll 8
    for (int g = 0; g < WIDTH; ++g) {
      for (int c = 1; c < kChains; ++c) sum[0][g] += sum[c][g];
      if (g < w.slice.groups) store(y + g * stride, sum[0][g]);
    }
  }
}

// The lines of input j in all groups of a slice, zeros for the groups that are not there.
void read_saved(const fedsparse::Saved& saved, const Slice& slice, std::int64_t inputs, std::int64_t j, Vec* lines) {
  const Patch patch{slice.first * inputs, 1, 0, inputs, 1, static_cast<int>(slice.groups)};
  expand_patch(saved, patch, j, j + 1, reinterpret_cast<float*>(lines));
  for (std::int64_t g = slice.groups; g < slice.width; ++g) lines[g] = Vec{};
}

template <typename Number, int WIDTH, bool NARROW, bool ACCUMULATE, bool CORRELATE>
void backward_inputs(const Walk& w, std::int64_t first, std::int64_t last) {
  // In locals, where stores through vector pointers cannot touch them.
  const Linear& a = w.layer;
  const PatternView& p = a.pattern;
  const float *const grad_y = w.gathered, *const values = a.values;
  const Number* const x = static_cast<const Number*>(a.x.data);
  Number* const grad_x = static_cast<Number*>(a.grad_x);
  const std::int32_t* const row_start = p.row_start;
  const Index entries = p.entry, ranks = p.rank;
  const std::int64_t stride = p.inputs * kLanes;
  ScatterRing ring{a.grad_values, w.slice.first > 0, {}, {}};
  const auto value_of = [&](std::int64_t i) __attribute__((always_inline)) {
    return row_start[item<NARROW>(entries, i)] + item<NARROW>(ranks, i);
  };
  for (std::int64_t j = first; j < last; ++j) {
    const std::int64_t target = w.slice.first * stride + j * kLanes;
    Vec sum[WIDTH] = {}, other[WIDTH];
    if constexpr (CORRELATE) {
      if (a.saved) {
        read_saved(*a.saved, w.slice, p.inputs, j, other);
      } else {
        const Reader read(a.x, j);
#pragma GCC unroll 8
        for (int g = 0; g < WIDTH; ++g)
          other[g] = g < w.slice.groups ? read(load(x + target + g * stride)) : Vec{};
      }
    }
    const std::int64_t end = p.column_start[j + 1];
    for (std::int64_t i = p.column_start[j]; i < end; ++i) {
      const std::int64_t soon = value_of(std::min(i + kAhead, p.nnz - 1));
      if (ACCUMULATE) __builtin_prefetch(values + soon);
      if (CORRELATE) __builtin_prefetch(a.grad_values + soon, 1);
      const float* lines = grad_y + item<NARROW>(entries, i) * (WIDTH * kLanes);
      const std::int64_t value = value_of(i);
      const Vec weight = ACCUMULATE ? broadcast(values[value]) : Vec{};
      Vec part[2] = {};
#pragma GCC unroll 8
      for (int g = 0; g < WIDTH; ++g) {
        Vec s = load(lines + g * kLanes);
        if constexpr (ACCUMULATE && CORRELATE) hold(s);
        if constexpr (ACCUMULATE) sum[g] += weight * s;
        if constexpr (CORRELATE) part[g % 2] += other[g] * s;
      }
      if constexpr (CORRELATE) ring.push(part[0] + part[1], value);
    }
    if constexpr (ACCUMULATE)
#pragma GCC unroll 8
      for (int g = 0; g < WIDTH; ++g)
        if (g < w.slice.groups) store(grad_x + target + g * stride, sum[g]);
  }
  if constexpr (CORRELATE) ring.flush();
}

struct Walkers {
  void (*forward)(const Walk&, std::int64_t first, std::int64_t last);
  void (*backward)(const Walk&, std::int64_t first, std::int64_t last);
};

template <typename Number, int WIDTH, bool NARROW>
Walkers walkers(const Linear& a) {
  return {forward_rows<Number, WIDTH, NARROW>, !a.grad_values ? backward_inputs<Number, WIDTH, NARROW, true, false>
                                       : !a.grad_x    ? backward_inputs<Number, WIDTH, NARROW, false, true>
                                                      : backward_inputs<Number, WIDTH, NARROW, true, true>};
}

template <typename Number, bool NARROW>
Walkers walkers(const Linear& a, std::int64_t width) {
  switch (width) {
    case 1: return walkers<Number, 1, NARROW>(a);
    case 2: return walkers<Number, 2, NARROW>(a);
    case 4: return walkers<Number, 4, NARROW>(a);
    default: return walkers<Number, kSlice, NARROW>(a);
  }
}

template <typename Number>
Walkers walkers(const Linear& a, std::int64_t width) {
  const PatternView& p = a.pattern;
  const bool wide = p.column.wide || p.entry.wide || p.rank.wide;
  return wide ? walkers<Number, false>(a, width) : walkers<Number, true>(a, width);
}

// One slice after the other.
template <typename Visit>
void each_slice(const Linear& a, Visit&& visit) {
  for (std::int64_t group = 0; group < a.groups; group += kSlice) {
    const Slice slice(group, a.groups);
    visit(Walk{a, slice, a.packed}, a.half ? walkers<Half>(a, slice.width) : walkers<float>(a, slice.width));
  }
}

std::int64_t packed_width(std::int64_t groups) { return Slice::width_of(groups); }

void forward(const Linear& a) {
  const PatternView& p = a.pattern;
  each_slice(a, [&](const Walk& w, const Walkers& walk) {
    pack(a.x, a.half, p.inputs, w.slice, w.gathered, a.threads);
#pragma omp parallel for num_threads(a.threads) schedule(static)
    for (int part = 0; part < a.threads; ++part)
      walk.forward(w, bound(p.row_start, p.rows, part, a.threads), bound(p.row_start, p.rows, part + 1, a.threads));
  });
}

void backward(const Linear& a) {
  const PatternView& p = a.pattern;
  if (!a.grad_x && !a.grad_values) return;  // gradients of no values have no address
  each_slice(a, [&](const Walk& w, const Walkers& walk) {
    Term grad;
    grad.data = a.grad_y;
    pack(grad, a.half, p.rows, w.slice, w.gathered, a.threads);
#pragma omp parallel for num_threads(a.threads) schedule(static)
    for (int part = 0; part < a.threads; ++part)
      walk.backward(w, bound(p.column_start, p.inputs, part, a.threads),
                    bound(p.column_start, p.inputs, part + 1, a.threads));
  });
}

}  // namespace

namespace fedsparse::FEDSPARSE_ISA {
extern const LinearKernels linear;
const LinearKernels linear = {packed_width, forward, backward};
}  // namespace fedsparse::FEDSPARSE_ISA

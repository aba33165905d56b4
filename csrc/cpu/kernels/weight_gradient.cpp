// The dense weight gradient as a matrix product: rows are output channels, columns are inputs, and the sum goes over
// images and pixels, once for every tap. Columns fill the lanes, so sums end up where they belong and no lanes are
// added. x is therefore packed: transposed, 16 images by 16 columns at a time, a band of picture rows after the other,
// with its Term applied. Every tap reads the same packed band at its own offset, and only where it meets the picture:
// there is no border, and no product with a zero of one.
#include "../weight_gradient.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <numeric>

#include "../arena.h"
#include "number.h"

namespace {

using fedsparse::Arena;
using fedsparse::ConvShape;
using fedsparse::Term;

// Two blocks of columns times these rows are the sums in registers: 24 of 32, or 12 of 16.
constexpr int kBlocks = 2;
constexpr int kTileRows = kLanes == 16 ? 12 : 6;
constexpr std::int64_t kBlockFloats = kLanes * kLanes;  // a packed pixel of one block: kLanes images, then columns

// What one core keeps in its L2 cache: a packed band, and the sums of one task.
constexpr std::int64_t kBandFloats = 64 * 1024;
constexpr std::int64_t kSumFloats = 64 * 1024;
// Output pixels of a band. They also bound the length of a chain of additions, and so its rounding error.
constexpr std::int64_t kBandPixels = 128;

std::int64_t divide_up(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

struct Range {
  std::int64_t begin, end;

  std::int64_t size() const { return std::max<std::int64_t>(end - begin, 0); }
};

// One axis of the convolution as the product walks it.
struct Axis {
  std::int64_t size, out, kernel, stride, pad, dilation;

  // Input positions that the outputs of a range touch.
  Range inputs(Range outputs) const {
    return {std::max<std::int64_t>(outputs.begin * stride - pad, 0),
            std::min((outputs.end - 1) * stride - pad + (kernel - 1) * dilation + 1, size)};
  }
  // Outputs of a range whose tap k falls inside the picture.
  Range outputs(std::int64_t k, Range among) const {
    const std::int64_t before = pad - k * dilation;  // output o meets input o * stride - before
    const std::int64_t first = before > 0 ? divide_up(before, stride) : 0;
    const std::int64_t last = size + before > 0 ? divide_up(size + before, stride) : 0;
    return {std::max(among.begin, first), std::min(among.end, last)};
  }
};

// Sizes of the product. `gathered`: packed pixels are output pixels and columns are (input, tap) pairs, so that few
// inputs still fill the lanes; otherwise packed pixels are input pixels and columns are inputs.
struct Plan {
  ConvShape shape;
  bool gathered;
  Axis y, x;  // of the packed pixels
  std::int64_t inputs, rows_of_group, columns, taps;
  std::int64_t blocks, panels, batch_groups, band_rows;

  explicit Plan(const ConvShape& s)
      : shape(s),
        gathered(gathers(s)),
        y(axis(s.height, s.out_height(), s.kernel_h, s.stride_h, s.pad_h, s.dilation_h)),
        x(axis(s.width, s.out_width(), s.kernel_w, s.stride_w, s.pad_w, s.dilation_w)),
        inputs(s.in_channels / s.groups),
        rows_of_group(s.out_channels / s.groups),
        columns(gathered ? inputs * s.taps() : inputs),
        taps(gathered ? 1 : s.taps()),
        blocks(divide_up(columns, kLanes)),
        panels(divide_up(blocks, kBlocks)),
        batch_groups(divide_up(s.batch, kLanes)) {
    const std::int64_t line = x.size * std::min<std::int64_t>(blocks, kBlocks) * kBlockFloats;
    const std::int64_t packed = std::max<std::int64_t>(kBandFloats / line, 1) - (y.kernel - 1) * y.dilation - 1;
    band_rows = std::min(std::max<std::int64_t>(packed, 0) / y.stride + 1,
                         std::max<std::int64_t>(kBandPixels / x.out, 1));
    band_rows = std::min(band_rows, y.out);
  }

  std::int64_t band_floats() const {
    const std::int64_t high = (band_rows - 1) * y.stride + (y.kernel - 1) * y.dilation + 1;
    return std::min(high, y.size) * x.size * std::min<std::int64_t>(blocks, kBlocks) * kBlockFloats;
  }

 private:
  static bool gathers(const ConvShape& s) {
    const std::int64_t inputs = s.in_channels / s.groups;
    return s.taps() == 1 || 4 * divide_up(inputs * s.taps(), kLanes) <= 3 * divide_up(inputs, kLanes) * s.taps();
  }
  Axis axis(std::int64_t size, std::int64_t out, std::int64_t kernel, std::int64_t stride, std::int64_t pad,
            std::int64_t dilation) const {
    return gathered ? Axis{out, out, 1, 1, 0, 1} : Axis{size, out, kernel, stride, pad, dilation};
  }
};

// ---- packing

// Where the lines of one column come from.
template <typename Number>
struct Column {
  const Number* plane = nullptr;  // null: no such column, zeros
  float scale = 1, shift = 0;
  std::int64_t dy = 0, dx = 0;  // pixels from the packed pixel, times the stride, to the one it holds
};

template <typename Number>
struct Packer {
  std::int64_t height, width, step_y, step_x;
  bool inside;  // no column leaves the picture
  bool affine, relu;
  int blocks;
  Column<Number> column[kBlocks * kLanes];

  Packer(const Plan& plan, const Term& term, std::int64_t conv_group, std::int64_t panel, std::int64_t batch_group)
      : height(plan.shape.height),
        width(plan.shape.width),
        step_y(plan.gathered ? plan.shape.stride_h : 1),
        step_x(plan.gathered ? plan.shape.stride_w : 1),
        inside(!plan.gathered || (plan.shape.pad_h == 0 && plan.shape.pad_w == 0)),
        affine(term.scale || term.shift),
        relu(term.relu),
        blocks(static_cast<int>(std::min<std::int64_t>(plan.blocks - panel * kBlocks, kBlocks))) {
    const ConvShape& s = plan.shape;
    const std::int64_t first = panel * kBlocks * kLanes;
    for (std::int64_t i = 0; i < std::min<std::int64_t>(plan.columns - first, kBlocks * kLanes); ++i) {
      const std::int64_t taps = plan.gathered ? s.taps() : 1, tap = (first + i) % taps;
      const std::int64_t channel = conv_group * plan.inputs + (first + i) / taps;
      Column<Number>& c = column[i];
      const std::int64_t plane = batch_group * s.in_channels + channel;
      c.plane = static_cast<const Number*>(term.data) + plane * height * width * kLanes;
      if (term.scale) c.scale = term.scale[channel];
      if (term.shift) c.shift = term.shift[channel];
      if (!plan.gathered) continue;
      c.dy = tap / s.kernel_w * s.dilation_h - s.pad_h;
      c.dx = tap % s.kernel_w * s.dilation_w - s.pad_w;
    }
  }

  // The packed pixels (y, 0 .. pixels) for y in `rows`.
  void pack(Range rows, std::int64_t pixels, float* to) const {
    for (std::int64_t y = rows.begin; y < rows.end; ++y)
      for (std::int64_t x = 0; x < pixels; ++x)
        for (int b = 0; b < blocks; ++b, to += kBlockFloats)
          inside ? pack_block<true>(column + b * kLanes, y * step_y, x * step_x, to)
                 : pack_block<false>(column + b * kLanes, y * step_y, x * step_x, to);
  }

 private:
  template <bool INSIDE>
  void pack_block(const Column<Number>* from, std::int64_t y, std::int64_t x, float* to) const {
    Vec block[kLanes];
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) block[i] = line<INSIDE>(from[i], y, x);
    transpose(block);
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) store(to + i * kLanes, block[i]);
  }

  template <bool INSIDE>
  Vec line(const Column<Number>& c, std::int64_t y, std::int64_t x) const {
    y += c.dy;
    x += c.dx;
    const bool meets = INSIDE || (0 <= y && y < height && 0 <= x && x < width);
    if (!c.plane || !meets) return Vec{};
    Vec v = load(c.plane + (y * width + x) * kLanes);
    if (affine) v = v * broadcast(c.scale) + broadcast(c.shift);
    if (relu) v = v < Vec{} ? Vec{} : v;  // NaN stays
    return v;
  }
};

// Gradient lines of `tile` rows, next to each other for every pixel.
template <typename Number>
void pack_gradient(const Number* plane, std::int64_t plane_size, std::int64_t pixels, std::int64_t tile, float* to) {
  for (std::int64_t r = 0; r < tile; ++r, plane += plane_size)
    for (std::int64_t p = 0; p < pixels; ++p) store(to + (p * tile + r) * kLanes, load(plane + p * kLanes));
}

// ---- the product

// The pixels of a band that one tap meets, in both packed arrays.
struct Run {
  const float* grad;
  const float* x;
  std::int64_t rows, columns;                   // pixels
  std::int64_t grad_row_step, x_row_step, x_step;  // floats
  int images;
};

template <int ROWS, int BLOCKS>
void multiply(const Run& run, float* sums) {
  Vec sum[ROWS][BLOCKS] = {};
  for (std::int64_t y = 0; y < run.rows; ++y) {
    const float* grad = run.grad + y * run.grad_row_step;
    const float* x = run.x + y * run.x_row_step;
    for (std::int64_t p = 0; p < run.columns; ++p, grad += ROWS * kLanes, x += run.x_step) {
#pragma GCC unroll 4
      for (int i = 0; i < run.images; ++i) {
        Vec column[BLOCKS];
#pragma GCC unroll 2
        for (int b = 0; b < BLOCKS; ++b) column[b] = load(x + b * kBlockFloats + i * kLanes);
#pragma GCC unroll 12
        for (int r = 0; r < ROWS; ++r) {
          const Vec factor = broadcast(grad[r * kLanes + i]);
#pragma GCC unroll 2
          for (int b = 0; b < BLOCKS; ++b) sum[r][b] += factor * column[b];
        }
      }
    }
  }
#pragma GCC unroll 12
  for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 2
    for (int b = 0; b < BLOCKS; ++b) {
      float* to = sums + (r * BLOCKS + b) * kLanes;
      store(to, load(to) + sum[r][b]);
    }
}

using MultiplyFn = void (*)(const Run&, float*);

template <int BLOCKS, std::size_t... I>
constexpr std::array<MultiplyFn, kTileRows> multiply_rows(std::index_sequence<I...>) {
  return {multiply<static_cast<int>(I) + 1, BLOCKS>...};
}

constexpr auto kEveryRow = std::make_index_sequence<kTileRows>{};
constexpr std::array<MultiplyFn, kTileRows> kMultiply[kBlocks] = {multiply_rows<1>(kEveryRow),
                                                                  multiply_rows<2>(kEveryRow)};

// ---- tasks: some rows times a panel of columns

struct Scratch {
  float *band, *grad, *sums;

  Scratch(const Plan& plan, std::int64_t task_rows, Arena& arena)
      : band(arena.take<float>(plan.band_floats())),
        grad(arena.take<float>(plan.band_rows * plan.x.out * kTileRows * kLanes)),
        sums(arena.take<float>(task_rows * plan.taps * kBlocks * kLanes)) {}
};

// Rows, all of one conv group, in tiles of about equal size.
struct Task {
  const Plan& plan;
  std::int64_t conv_group, panel;
  Range rows;

  int blocks() const { return static_cast<int>(std::min<std::int64_t>(plan.blocks - panel * kBlocks, kBlocks)); }
  std::int64_t tiles() const { return divide_up(rows.size(), kTileRows); }
  Range tile(std::int64_t i) const {
    return {rows.begin + rows.size() * i / tiles(), rows.begin + rows.size() * (i + 1) / tiles()};
  }
  // Sums are (rows of the tile, blocks, lanes) for every tap of every tile.
  std::int64_t tap_floats(Range tile) const { return tile.size() * blocks() * kLanes; }
  float* tile_sums(const Scratch& scratch, Range tile) const {
    return scratch.sums + (tile.begin - rows.begin) * plan.taps * blocks() * kLanes;
  }
};

void add_taps(const Task& task, const Scratch& scratch, Range band, Range tile, int images) {
  const Plan& plan = task.plan;
  const std::int64_t pixel = task.blocks() * kBlockFloats, grad_pixel = tile.size() * kLanes;
  const Range packed = plan.y.inputs(band), every{0, plan.x.out};
  const MultiplyFn multiply = kMultiply[task.blocks() - 1][static_cast<std::size_t>(tile.size() - 1)];
  float* sums = task.tile_sums(scratch, tile);
  for (std::int64_t ky = 0; ky < plan.y.kernel; ++ky) {
    const Range high = plan.y.outputs(ky, band);
    for (std::int64_t kx = 0; kx < plan.x.kernel; ++kx, sums += task.tap_floats(tile)) {
      const Range wide = plan.x.outputs(kx, every);
      if (high.size() == 0 || wide.size() == 0) continue;
      const std::int64_t from_y = high.begin * plan.y.stride - plan.y.pad + ky * plan.y.dilation - packed.begin;
      const std::int64_t from_x = wide.begin * plan.x.stride - plan.x.pad + kx * plan.x.dilation;
      multiply({scratch.grad + ((high.begin - band.begin) * plan.x.out + wide.begin) * grad_pixel,
                scratch.band + (from_y * plan.x.size + from_x) * pixel, high.size(), wide.size(),
                plan.x.out * grad_pixel, plan.y.stride * plan.x.size * pixel, plan.x.stride * pixel, images},
               sums);
    }
  }
}

void deliver(const Task& task, const Scratch& scratch, float* out) {
  const Plan& plan = task.plan;
  const std::int64_t first = task.panel * kBlocks * kLanes;
  const std::int64_t some = std::min<std::int64_t>(plan.columns - first, kBlocks * kLanes);
  for (std::int64_t i = 0; i < task.tiles(); ++i) {
    const Range tile = task.tile(i);
    for (std::int64_t row = tile.begin; row < tile.end; ++row) {
      const float* sums = task.tile_sums(scratch, tile) + (row - tile.begin) * task.blocks() * kLanes;
      float* to = out + ((row - task.rows.begin) * plan.columns + first) * plan.taps;
      for (std::int64_t c = 0; c < some; ++c)
        for (std::int64_t tap = 0; tap < plan.taps; ++tap) *to++ = sums[tap * task.tap_floats(tile) + c];
    }
  }
}

// To `out`, where the first row of the task is.
template <typename Number>
void run_task(const Task& task, const Number* grad_y, const Term& x, const Scratch& scratch, float* out) {
  if (task.rows.size() == 0) return;
  const Plan& plan = task.plan;
  const std::int64_t out_channels = plan.shape.out_channels, plane = plan.y.out * plan.x.out * kLanes;
  std::fill_n(scratch.sums, task.rows.size() * plan.taps * task.blocks() * kLanes, 0.0f);
  for (std::int64_t g = 0; g < plan.batch_groups; ++g) {
    const Packer<Number> packer(plan, x, task.conv_group, task.panel, g);
    const int images = static_cast<int>(std::min<std::int64_t>(plan.shape.batch - g * kLanes, kLanes));
    for (std::int64_t y = 0; y < plan.y.out; y += plan.band_rows) {
      const Range band{y, std::min(y + plan.band_rows, plan.y.out)};
      packer.pack(plan.y.inputs(band), plan.x.size, scratch.band);
      for (std::int64_t i = 0; i < task.tiles(); ++i) {
        const Range tile = task.tile(i);
        pack_gradient(grad_y + (g * out_channels + tile.begin) * plane + y * plan.x.out * kLanes, plane,
                      band.size() * plan.x.out, tile.size(), scratch.grad);
        add_taps(task, scratch, band, tile, images);
      }
    }
  }
  deliver(task, scratch, out);
}

// Tasks of rows [first, last): every conv group, in `parts` of its rows, times every panel of columns. Which rows
// share a task or a tile decides nothing about the order in which a sum is taken.
struct Schedule {
  std::int64_t first, last, group_begin, groups, parts;
  std::int64_t most_rows;  // of a task; never more for a shorter range, and so is the workspace

  Schedule(const Plan& plan, std::int64_t from, std::int64_t to, int threads)
      : first(from), last(to), group_begin(from / plan.rows_of_group) {
    groups = divide_up(to, plan.rows_of_group) - group_begin;
    const std::int64_t rows = std::min(to - from, plan.rows_of_group), whole = groups * plan.panels;
    const std::int64_t fit = std::max<std::int64_t>(kSumFloats / (plan.taps * kBlocks * kLanes), kTileRows);
    const std::int64_t even = whole >= 4 * threads ? 1 : threads / std::gcd<std::int64_t>(whole, threads);
    parts = std::max(divide_up(rows, fit), std::min(even, divide_up(rows, kTileRows)));
    most_rows = std::min(rows, fit);
  }

  std::int64_t tasks(const Plan& plan) const { return groups * plan.panels * parts; }
  Task task(const Plan& plan, std::int64_t i) const {
    const std::int64_t group = group_begin + i / parts / plan.panels;
    const Range rows{std::max(first, group * plan.rows_of_group), std::min(last, (group + 1) * plan.rows_of_group)};
    const std::int64_t part = i % parts;
    return {plan, group, i / parts % plan.panels,
            {rows.begin + rows.size() * part / parts, rows.begin + rows.size() * (part + 1) / parts}};
  }
};

std::int64_t rows(const ConvShape& shape, bool half, const void* grad_y, const Term& x, std::int64_t first,
                  std::int64_t last, float* out, void* workspace, int threads) {
  const Plan plan(shape);
  const Schedule schedule(plan, first, last, threads);
  Arena measure;
  Scratch(plan, schedule.most_rows, measure);
  const std::int64_t size = measure.used();
  if (!workspace) return size * threads;
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int t = 0; t < threads; ++t) {
    Arena own(static_cast<std::byte*>(workspace) + size * t);
    const Scratch scratch(plan, schedule.most_rows, own);
    for (std::int64_t i = t; i < schedule.tasks(plan); i += threads) {
      const Task task = schedule.task(plan, i);
      with_number(half, [&](auto zero) {
        run_task(task, static_cast<const decltype(zero)*>(grad_y), x, scratch,
                 out + (task.rows.begin - first) * plan.columns * plan.taps);
      });
    }
  }
  return size * threads;
}

}  // namespace

namespace fedsparse::FEDSPARSE_ISA {
extern const WeightGradientKernels weight_gradient;
const WeightGradientKernels weight_gradient = {rows};
}  // namespace fedsparse::FEDSPARSE_ISA

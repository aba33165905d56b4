// The loop of sparse convolutions: forward and backward are gathers over blocked activations (blocked.h).
//
// The target's pixels are cut into tiles that fit the registers. For each tile, the source lines its pixels can reach
// (the *halo*: the tile and what the kernel spans around it, zeros outside the picture) are copied next to each
// other, so that every tap of every pixel is a constant distance away, no test for the picture's edge is left, and
// the caches see one dense array. A kept weight is an Entry: a number and the distance, in floats, from a pixel's
// place in the halo to the line it multiplies. Walking a target channel's entries with the tile in registers computes
//     accumulate:  target[pixel] += weight * halo[pixel + offset]
//     correlate :  slope[entry]  += sum over pixels of other[pixel] * halo[pixel + offset]
// Forward accumulates x into y. Backward accumulates dY into dX and, with the same loads, correlates dY with x,
// which is the gradient of the values.
//
// Where neighbouring targets meet the same lines, they are walked as a *strip* (strips.h): one entry holds a weight for
// each of them, and a line that is loaded serves them all.
#pragma once

#include <cstdint>

#include "activation.h"
#include "blocked.h"

namespace fedsparse {

struct Entry {
  float weight;
  std::int32_t offset;  // bytes, a multiple of 16, plus the tap's Edge
};

// Which pixels a tap leaves out where the tile is the whole picture, because they would read outside: along each axis
// none, the first or the last. That is a third of all products of a 3x3 kernel on 4x4 pixels. In pictures of more
// tiles it is too little to pay for telling the taps apart.
struct Edge {
  static constexpr int kNone = 0, kFirst = 1, kLast = 2;
  static constexpr int kCount = 9, kMask = 15;
  static constexpr int of(int vertical, int horizontal) { return vertical * 3 + horizontal; }
};

// Entries of all targets. Segment (class, block, target) is contiguous and found in `segment`; a block is a range
// of source channels whose halo fits a cache, a class is a residue of the stride (see program.h). With strips,
// `targets` counts them, and in place of entries there are offsets, and `width` weights or slopes to each.
struct Program {
  Entry* entries = nullptr;         // (count)
  float* weights = nullptr;         // (count) of strips
  std::int32_t* offsets = nullptr;  // (count / width) of strips, as an Entry's
  std::int32_t* origin = nullptr;   // (count) where the weight came from and its slope goes to; -1: nowhere
  std::int32_t* segment = nullptr;  // (classes * blocks * targets + 1)
  std::int32_t* load = nullptr;     // (targets + 1) running number of entries a target has, to share out the work
  const std::int32_t* members = nullptr;  // (targets, width) targets of each strip, -1 where there are fewer
  std::int64_t count = 0, targets = 0, blocks = 1, classes = 1, width = 1;
  std::int64_t block_channels = 0;  // source channels of a block
  bool trimmed = false;             // entries carry their tap's edge, and those of a tap stand together in a segment
};

// How the lines of pictures lie in memory (blocked.h), distances in numbers.
struct Lines {
  std::int64_t groups = 0, channels = 0, height = 0, width = 0;
  std::int64_t group = 0, channel = 0, row = 0, column = 0;

  std::int64_t at(std::int64_t g, std::int64_t c, std::int64_t y, std::int64_t x) const {
    return g * group + c * channel + y * row + x * column;
  }
};

// The target pixels of one stride class: (y0 + a * step_y, x0 + b * step_x) for a < rows, b < columns.
struct Grid {
  std::int64_t rows = 0, columns = 0, y0 = 0, x0 = 0;
};

// Source lines a tile reaches: rows * columns lines for each channel, from source pixel (first + tile * step).
struct Halo {
  std::int64_t first_y = 0, first_x = 0;
  std::int64_t rows = 0, columns = 0;

  std::int64_t lines() const { return rows * columns; }
};

struct Gather {
  Program program;
  Lines source, target;
  const Grid* grids = nullptr;                        // (classes)
  std::int64_t source_step_y = 1, source_step_x = 1;  // source pixels from target pixel to target pixel of a grid
  std::int64_t target_step_y = 1, target_step_x = 1;  // and target pixels
  Halo halo;
  std::int64_t tile_rows = 1;  // pixels of a grid that a tile is high
  bool half = false;             // x, other and y are bfloat16; halos and tiles are float32
  Term x;                        // what is gathered, laid out as `source`
  Term other;                    // laid out as `target`; correlate when its data is set
  const Saved* saved = nullptr;  // in place of `other` where that is not simply a term: expanded a tile at a time
  void* y = nullptr;             // laid out as `target`; accumulate when set
  const float* bias = nullptr;   // (targets), optional
  float* slope = nullptr;        // (stripes, count), zeroed and filled when correlating
  float* scratch = nullptr;      // (threads, gather_scratch)
  int threads = 1;

  bool correlates() const { return other.data || saved; }
  bool strips() const { return program.width > 1; }
};

// Work is shared out by tiles (stripes), each stripe with its own slopes, where there are enough tiles; else by
// targets (parts). The number of stripes does not follow the number of threads up to four, nor do the sums' bits.
struct Split {
  int stripes = 1, parts = 1;
};

struct GatherKernels {
  int tile_rows, tile_columns;  // of single targets; tiles of strips may be higher
  int strip_width;
  Split (*split)(const Gather&);
  std::int64_t (*scratch)(const Gather&);  // floats for each thread
  void (*run)(const Gather&);
};

}  // namespace fedsparse

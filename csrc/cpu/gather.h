// The one loop of the CPU engine: every sparse op is a gather over planes of batch-innermost lines.
//
// A *line* holds `lanes` images of one pixel (one SIMD register). A *plane* holds the lines of one channel. A
// kept weight is an Entry: a number and the distance, in floats, from a target pixel to the source pixel it
// multiplies. Walking a target channel's entries with a tile of pixels in registers computes
//     accumulate:  target[pixel] += weight * source[pixel + offset]
//     correlate :  slope[entry]  += sum over pixels of other[pixel] * source[pixel + offset]
// Forward accumulates x into y. Backward accumulates dY into dX and, with the same loads, correlates dY with x,
// which is the gradient of the values. The streaming top-k correlates only, over pruned positions.
#pragma once

#include <cstdint>

namespace fedsparse {

struct Entry {
  float weight;
  std::int32_t offset;  // floats
};

// Entries of all targets. Segment (class, block, target) is contiguous and found in `segment`; a block is a range
// of source channels whose tile fits the L1 cache, a class is a residue of the stride (see program.h).
struct Program {
  Entry* entries = nullptr;         // (entries)
  std::int32_t* origin = nullptr;   // (entries) where the entry's weight came from and its slope goes to
  std::int32_t* segment = nullptr;  // (classes * blocks * targets + 1)
  std::int32_t* load = nullptr;     // (targets + 1) running number of entries a target has, to share out the work
  std::int64_t count = 0, targets = 0, blocks = 1, classes = 1;
};

// Planes of one batch group. Lines of a border around the picture stay zero.
struct Planes {
  float* data = nullptr;
  std::int64_t channels = 0, height = 0, width = 0;  // the picture
  std::int64_t top = 0, left = 0;                    // border before it
  std::int64_t pitch = 0;                            // lines from row to row
  std::int64_t lines = 0;                            // lines from channel to channel
};

// The target pixels of one stride class: (y0 + a * step_y, x0 + b * step_x) for a < rows, b < columns.
struct Grid {
  std::int64_t rows = 0, columns = 0, y0 = 0, x0 = 0;
};

enum class Storage {
  images,  // (batch, channels, height, width): a line holds neighbouring images
  rows,    // (batch, channels): a group's batch entries are spread over the pixels of the plane, then over lanes
};

struct Gather {
  Program program;
  Storage storage = Storage::images;
  std::int64_t batch = 0;
  Planes source, target, other;  // `other` has the geometry of `target`
  const Grid* grids = nullptr;   // (classes)
  std::int64_t source_step_y = 1, source_step_x = 1;  // source pixels from target pixel to target pixel of a grid
  std::int64_t target_step_y = 1, target_step_x = 1;  // and target pixels
  const float* source_tensor = nullptr;
  std::int64_t source_first = 0;  // first channel of source_tensor that the planes hold
  std::int64_t source_total = 0;  // channels of source_tensor
  const float* other_tensor = nullptr;  // correlate when set
  float* target_tensor = nullptr;       // accumulate when set
  const float* bias = nullptr;          // (targets), optional
  float* slope = nullptr;               // (stripes, count), zeroed and filled when correlating
  int threads = 1;
};

// How many targets' work is split over threads (parts) and how many over tiles (stripes): few targets mean stripes.
inline std::int64_t gather_stripes(std::int64_t targets, int threads) { return targets >= 4 * threads ? 1 : threads; }

struct GatherKernels {
  int tile_rows, tile_columns;
  void (*run)(const Gather&);
};

}  // namespace fedsparse

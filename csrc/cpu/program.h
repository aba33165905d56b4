// Turns a pattern and a convolution's geometry into the Program that a gather runs.
// Built afresh for every call from the compact pattern: O(nnz) work and scratch, nothing kept.
#pragma once

#include <vector>

#include "arena.h"
#include "fedsparse/shapes.h"
#include "kernels.h"

namespace fedsparse {

// Offsets of the taps and the grids of the stride classes, for one direction.
struct Geometry {
  Planes source, target;
  std::vector<Grid> grids;
  std::vector<std::int64_t> tap_line;   // (taps) lines from a target pixel's source line to the tap's
  std::vector<std::int32_t> tap_class;  // (taps)
  std::int64_t source_step_y, source_step_x, target_step_y, target_step_x;
};

// y from x: one class, the stride is in the source.
Geometry forward_geometry(const ConvShape& shape);
// dX from dY: input pixels of one residue modulo the stride see the same taps, so each residue is a class.
Geometry backward_geometry(const ConvShape& shape);

// How many ranges to cut the source channels into. A block's tile should stay in the L1 cache while all targets
// walk it, but every segment costs loading and storing the tile's accumulators, so it must hold enough entries.
std::int64_t choose_blocks(const Kernels& kernels, const Geometry& geometry, const PatternView& pattern,
                           std::int64_t channels, std::int64_t targets, std::int64_t entries_per_segment);

Program forward_program(const Kernels& kernels, const ConvShape& shape, const Geometry& geometry,
                        const PatternView& pattern, const float* values, int threads, Arena& arena);
// `origin` of an entry is the index of its value.
Program backward_program(const Kernels& kernels, const ConvShape& shape, const Geometry& geometry,
                         const PatternView& pattern, const float* values, int threads, Arena& arena);
// The pruned positions of rows [first, last) with weight 0; `origin` is the flat position minus first * columns.
// `capacity` bounds the number of positions.
Program pruned_program(const Kernels& kernels, const ConvShape& shape, const Geometry& geometry,
                       const PatternView& pattern, std::int64_t first, std::int64_t last, std::int64_t capacity,
                       Arena& arena);

}  // namespace fedsparse

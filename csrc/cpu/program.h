// Turns a pattern and a convolution's geometry into the Program that a gather runs.
// Built afresh for every call from the compact pattern: O(nnz) work and scratch, nothing kept.
#pragma once

#include <vector>

#include "arena.h"
#include "fedsparse/api.h"
#include "kernels.h"
#include "strips.h"

namespace fedsparse {

// Where a gather finds things, in one direction.
struct Geometry {
  Lines source, target;
  std::vector<Grid> grids;
  std::vector<std::int32_t> tap_line;   // (taps) lines from a pixel's first halo line to the tap's
  std::vector<std::int32_t> tap_class;  // (taps)
  bool trimmed = false;                 // the picture is one tile, and the halo has no border
  std::vector<std::int32_t> tap_edge;   // (taps) where trimmed
  std::int64_t source_step_y, source_step_x, target_step_y, target_step_x;
  Halo halo;
  std::int64_t tile_rows = 1;  // pixels of a grid that a tile is high
};

// Strips walk a tile row by row, so theirs may be higher than what registers hold: less of the source is copied twice,
// and slopes are finished less often.
//
// y from x: one class, the stride is in the source.
Geometry forward_geometry(const Problem& problem, bool strips);
// dX from dY: input pixels of one residue modulo the stride see the same taps, so each residue is a class.
Geometry backward_geometry(const Problem& problem, bool strips);

// Targets are rows. `strips`, here and below, must outlive the program.
Program forward_program(const Problem& problem, const Geometry& geometry, const Strips& strips, const float* values,
                        Arena& arena);
// Targets are inputs, those of every group of the convolution in turn. `origin` is the index of a value.
Program backward_program(const Problem& problem, const Geometry& geometry, const Strips& strips, const float* values,
                         Arena& arena);

}  // namespace fedsparse

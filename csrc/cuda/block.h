// block: products with a weight whose kept positions follow a structure, on tensor cores.
//
// A *strip* is `width` (8, 16 or 32) neighbouring target channels of a group. It keeps *lines*: of a slab of the source
// (csr16.h), the line at the distance of one source channel and kernel position. A list holds the lines of each strip
// and slab, in chunks of 16; `start` counts chunks. A chunk's weights are a 16 x width matrix, and its product with the
// gathered lines of a tile's pixels is what tensor cores compute: two pixels of 8 samples are the 16 rows of an
// mma.m16n8, 8 target channels its columns.
//
//   forward, vector:G    the rows of a strip of G output channels keep the same lines
//   forward, block:B     the same, and lines come in runs of B channels
//   backward, block:B    strips of B input channels keep the same lines
//   backward, vector:G   the union of what the input channels of a strip keep, zeros where one does not
//
// Any pattern has such lists; forward, only those are used whose rows of a strip keep the same lines.
//
// `offset` has 16 distances of every chunk. Where a chunk is not full they are those of a channel of zeros that follows
// the slab, so that an infinite number in x never meets a zero that no weight stands for. `value` has, for every number
// of every matrix, the place among the values or -1, in the order in which lanes want them (place_in_chunk): packing
// the values into that order once a step makes each operand one load, and both directions and every structure one
// kernel.
#pragma once

#include <cuda_runtime.h>

#include "csr16.h"

namespace fedsparse::block {

constexpr int kChunk = 16;  // lines
constexpr int kWidest = 32;

// Two stages of 56 KiB for each of two blocks on an SM of 227 KiB. Slabs of whole chunks keep the runs of a block
// together; the spare channel is that of zeros. Tiles are as small as four warps of the gather allow: what they reach
// beyond their pixels is more than of large ones, but a block then has room for twice the target channels.
constexpr int kStageBytes = 56 << 10;
constexpr csr16::SlabLimit kSlab = {
    kStageBytes, 256, kChunk, 1, {{{{1, 4, 8}, {1, 4, 4}, {1, 4, 4}}}, {{{2, 4, 4}, {1, 4, 4}, {1, 4, 4}}}}};

// Numbers of 16 bits: mma steps of 16 lines, of which a lane holds pairs. Numbers of 32: steps of 8.
__host__ __device__ constexpr int step_lines(bool wide) { return wide ? 8 : 16; }

// Where the weight of line k and target channel n of a chunk stands in its packed matrix: [step][part][lane][number],
// a lane's numbers being two fragments of b, 16 bytes (one, 8 bytes, in strips of 8).
__host__ __device__ constexpr int place_in_chunk(int k, int n, int width, bool wide) {
  const int lines = step_lines(wide), pair = wide ? 1 : 2, fragments = width > 8 ? 2 : 1;
  const int step = k / lines, line = k % lines, tile = n / 8;
  const int lane = n % 8 * 4 + line % (4 * pair) / pair;
  const int number = tile % fragments * 2 * pair + line / (4 * pair) * pair + line % pair;
  return step * lines * width + (tile / fragments * 32 + lane) * fragments * 2 * pair + number;
}

// Where the distance of line k of a chunk stands: a lane's two lines of a step of 8 are neighbours.
__host__ __device__ constexpr int place_of_line(int k, bool wide) { return wide ? k / 8 * 8 + k % 4 * 2 + k % 8 / 4 : k; }

inline bool is_wide(std::int64_t dtype) { return dtype == 0; }

inline bool make_plan(const ConvShape& shape, bool backward, bool wide, csr16::Plan& plan) {
  return csr16::make_plan(shape, backward, wide ? 4 : 2, plan, kSlab);
}

// Strips of one group.
inline std::int32_t strips(std::int32_t group_targets, std::int32_t width) {
  return (group_targets + width - 1) / width;
}

}  // namespace fedsparse::block

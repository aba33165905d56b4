// The dense gradient of a weight, tile by tile: a block computes 32 x 32 positions and hands them to an epilogue, so
// that the whole gradient need not exist.
//
//     dW[row][input, ky, kx] = sum over samples and output pixels of dY[row] * X[input] at the pixel that the tap meets
//
// The sums run over samples and pixels in the order of memory. A block stages 32 terms at a time; its four groups of 64
// threads take eight each and are added in order. Where there are too few tiles to fill a device, the terms are split
// into runs; whichever block of a tile comes last adds the runs, in order. How the sums are cut depends on the shape
// alone, so equal arguments give equal bits on every device. Padding is a factor of zero like any other.
#pragma once

#include "collective.cuh"
#include "cuda_api.h"
#include "number.cuh"

namespace fedsparse::dense {

constexpr int kTile = 32, kDepth = 32, kGroups = 4;
constexpr int kPitch = kTile + 4;  // floats of a staged term; keeps four of them aligned to 16 bytes
constexpr int kPositions = kTile * kTile, kEach = kPositions / kThreads;
constexpr std::int64_t kFullDevice = 264;  // blocks that keep 132 SMs busy, two each
constexpr std::int64_t kShortest = 512;    // terms of a run
static_assert(kThreads == 256 && kEach == 4 && 2 * kDepth * kPitch <= kGroups * kPositions);

struct Shape {
  std::int32_t in_channels, height, width, out_channels, out_width;
  std::int32_t kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w;
  std::int32_t pixels, depth;                     // of an output picture; terms of each sum
  std::int32_t group_rows, group_inputs, taps, columns;
  std::int32_t row_tiles, column_tiles, tiles;    // of a group twice, of all
  std::int32_t runs, run_depth;

  explicit Shape(const ConvShape& s);
  std::int64_t partial_floats() const { return runs == 1 ? 0 : std::int64_t{tiles} * runs * kPositions; }
};

// False where a number of Shape, of a position or of an element of one image has no place in 31 bits.
bool fits(const ConvShape& shape);

template <typename T>
struct Operands {
  const T* slope;  // (samples, out_channels, pixels)
  const T* input;  // (samples, in_channels, height, width)
  float* partial;          // (tiles, runs, kPositions), where there are several runs
  std::uint32_t* arrived;  // (tiles) zeros, and zeros again at the end
};

struct Tile {
  std::int32_t number, group, row, column;  // row and column of the group

  __device__ Tile(const Shape& s, std::int32_t number_)
      : number(number_), group(number_ / (s.row_tiles * s.column_tiles)),
        row(number_ / s.column_tiles % s.row_tiles * kTile), column(number_ % s.column_tiles * kTile) {}
};

// What a thread copies: four numbers of either operand at a time. Lanes follow the pixels, or, where an output picture
// has one, rows and columns, whichever lie next to each other in memory.
template <typename T, bool kPixels>
class Copier {
 public:
  __device__ __forceinline__ Copier(const Shape& s, const Operands<T>& operands, const Tile& tile)
      : s_(s), operands_(operands), row_(tile.group * s.group_rows), rows_(s.group_rows - tile.row) {
    row_ += tile.row;
#pragma unroll
    for (int i = 0; i < kLines; ++i) {
      const std::int32_t column = tile.column + line(i), tap = column % s.taps;
      const std::int32_t input = tile.group * s.group_inputs + column / s.taps;
      y_[i] = tap / s.kernel_w * s.dilation_h - s.pad_h;
      x_[i] = tap % s.kernel_w * s.dilation_w - s.pad_w;
      channel_[i] = column < s.columns ? input * s.height * s.width : -1;
    }
  }

  // The terms [first, first + kDepth), zeros from `end` on.
  __device__ __forceinline__ void load(std::int32_t first, std::int32_t end) {
    Place at = place(first + depth(0));  // a thread's four are of one term where lanes follow the pixels
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      slope_[i] = input_[i] = 0;
      const std::int32_t term = first + depth(i);
      if (term >= end) continue;
      if (!kPixels) at = place(term);
      if (line(i) < rows_) slope_[i] = widen(operands_.slope[at.slope + std::int64_t{row_ + line(i)} * s_.pixels]);
      const int own = i % kLines;
      const std::int32_t y = at.y + y_[own], x = at.x + x_[own];
      const bool inside = y >= 0 && y < s_.height && x >= 0 && x < s_.width;
      if (channel_[own] < 0 || !inside) continue;
      input_[i] = widen(operands_.input[at.image + channel_[own] + y * s_.width + x]);
    }
  }

  __device__ __forceinline__ void store(float* slopes, float* inputs) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      slopes[depth(i) * kPitch + line(i)] = slope_[i];
      inputs[depth(i) * kPitch + line(i)] = input_[i];
    }
  }

 private:
  static constexpr int kLines = kPixels ? 4 : 1;  // different ones

  // Of a term: where the slopes of its pixel and the input's picture begin, and the pixel that the tap (0, 0) meets
  // without padding.
  struct Place {
    std::int64_t slope, image;
    std::int32_t y, x;
  };

  __device__ __forceinline__ Place place(std::int32_t term) const {
    const std::int32_t sample = kPixels ? term / s_.pixels : term, pixel = kPixels ? term % s_.pixels : 0;
    return {std::int64_t{sample} * s_.out_channels * s_.pixels + pixel,
            std::int64_t{sample} * s_.in_channels * s_.height * s_.width, pixel / s_.out_width * s_.stride_h,
            pixel % s_.out_width * s_.stride_w};
  }

  static __device__ std::int32_t line(int i) {
    return static_cast<std::int32_t>(kPixels ? threadIdx.x / 32 + 8 * i : threadIdx.x % 32);
  }
  static __device__ std::int32_t depth(int i) {
    return static_cast<std::int32_t>(kPixels ? threadIdx.x % 32 : threadIdx.x / 32 + 8 * i);
  }

  const Shape& s_;
  const Operands<T>& operands_;
  std::int32_t row_, rows_;
  std::int32_t channel_[kLines], y_[kLines], x_[kLines];
  float slope_[4], input_[4];
};

// Sums over the terms [first, end): those of the positions threadIdx.x + i * kThreads of the tile.
template <typename T, bool kPixels>
__device__ __forceinline__ Quad sum_run(const Shape& s, const Operands<T>& operands, const Tile& tile,
                                        std::int32_t first, std::int32_t end) {
  FEDSPARSE_SHARED(float, room, kGroups * kPositions);
  float *slopes = room, *inputs = room + kDepth * kPitch;
  const unsigned group = threadIdx.x / 64, row = threadIdx.x % 64 / 8 * 4, column = threadIdx.x % 8 * 4;
  Copier<T, kPixels> copier(s, operands, tile);
  float sum[4][4] = {};
  copier.load(first, end);
  for (std::int32_t at = first; at < end; at += kDepth) {
    __syncthreads();  // the terms before have been read
    copier.store(slopes, inputs);
    __syncthreads();
    copier.load(at + kDepth, end);  // under way while these are multiplied
#pragma unroll
    for (unsigned k = 0; k < kDepth / kGroups; ++k) {
      const unsigned term = (group * (kDepth / kGroups) + k) * kPitch;
      const Quad a = load4(slopes + term + row), b = load4(inputs + term + column);
#pragma unroll
      for (int i = 0; i < 4; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) sum[i][j] += a.number[i] * b.number[j];
    }
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < 4; ++i)
    store4(room + group * kPositions + (row + i) * kTile + column, Quad{{sum[i][0], sum[i][1], sum[i][2], sum[i][3]}});
  __syncthreads();
  Quad whole;
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const float* part = room + threadIdx.x + i * kThreads;
    whole.number[i] = part[0] + part[kPositions] + part[2 * kPositions] + part[3 * kPositions];
  }
  return whole;
}

// Leaves a run's sums; true, and the whole sums in their place, in the block of the tile that comes last.
template <typename T>
__device__ __forceinline__ bool join_runs(const Shape& s, const Operands<T>& operands, const Tile& tile,
                                          std::int32_t run, Quad& sums) {
  FEDSPARSE_SHARED(bool, last, 1);
  float* partial = operands.partial + std::int64_t{tile.number} * s.runs * kPositions + threadIdx.x;
#pragma unroll
  for (int i = 0; i < kEach; ++i) partial[run * kPositions + i * kThreads] = sums.number[i];
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0)
    *last = atomicAdd(operands.arrived + tile.number, 1u) == static_cast<std::uint32_t>(s.runs - 1);
  __syncthreads();
  if (!*last) return false;
  __threadfence();
  if (threadIdx.x == 0) operands.arrived[tile.number] = 0;
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    sums.number[i] = 0;
    for (std::int32_t r = 0; r < s.runs; ++r) sums.number[i] += partial[r * kPositions + i * kThreads];
  }
  return true;
}

// Epilogue: wanted() says whether the launch has anything to do, tile(n) which tile the block number n computes, and
// operator()(shape, tile, sums) takes the sums.
template <typename T, bool kPixels, typename Epilogue>
__global__ void __launch_bounds__(kThreads, 2)
    dense_gradient_kernel(const Shape s, const Operands<T> operands, const Epilogue epilogue) {
  if (!epilogue.wanted()) return;
  const auto block = static_cast<std::int32_t>(blockIdx.x);
  const Tile tile(s, epilogue.tile(s, block / s.runs));
  const std::int32_t run = block % s.runs, first = run * s.run_depth;
  Quad sums = sum_run<T, kPixels>(s, operands, tile, first, min(first + s.run_depth, s.depth));
  if (s.runs > 1 && !join_runs(s, operands, tile, run, sums)) return;
  epilogue(s, tile, sums);
}

template <typename T, typename Epilogue>
int launch(const Shape& s, const Operands<T>& operands, std::int32_t tiles, const Epilogue& epilogue, void* stream) {
  const auto kernel =
      s.pixels == 1 ? &dense_gradient_kernel<T, false, Epilogue> : &dense_gradient_kernel<T, true, Epilogue>;
  return FEDSPARSE_LAUNCH(kernel, static_cast<unsigned>(tiles * s.runs), kThreads, 0, stream, s, operands, epilogue);
}

}  // namespace fedsparse::dense

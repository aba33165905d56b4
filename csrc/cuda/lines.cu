// Between rows (batch, size) and lines of 8 samples (ceil(batch / 8), size, 8): transpositions of 8 x 32 pieces through
// shared memory, so that both sides are read and written in whole sectors.
#include "csr16.h"
#include "cuda_api.h"
#include "launch.cuh"
#include "number.cuh"

namespace {

using fedsparse::csr16::kBatch;
constexpr int kWidth = 32, kPitch = kWidth + 1;  // an odd pitch keeps columns in different banks
static_assert(kBatch * kWidth == fedsparse::kThreads);

struct Piece {
  std::int64_t group, first;  // 8 samples, 32 positions from `first` on

  __device__ Piece(std::int64_t number, std::int64_t size)
      : group(number / ((size + kWidth - 1) / kWidth)), first(number % ((size + kWidth - 1) / kWidth) * kWidth) {}
};

template <typename T, bool kToLines>
__global__ void __launch_bounds__(fedsparse::kThreads)
    lines_kernel(const T* __restrict__ in, T* __restrict__ out, std::int64_t batch, std::int64_t size,
                 std::int64_t pieces) {
  FEDSPARSE_SHARED(T, tile, kBatch * kPitch);
  const int row_sample = threadIdx.x / kWidth, row_place = threadIdx.x % kWidth;
  const int line_sample = threadIdx.x % kBatch, line_place = threadIdx.x / kBatch;
  for (std::int64_t number = blockIdx.x; number < pieces; number += gridDim.x) {
    const Piece piece(number, size);
    const std::int64_t sample = piece.group * kBatch + row_sample, row = sample * size + piece.first + row_place;
    const std::int64_t line = (piece.group * size + piece.first + line_place) * kBatch + line_sample;
    const bool row_live = sample < batch && piece.first + row_place < size, line_live = piece.first + line_place < size;
    T* const at_row = tile + row_sample * kPitch + row_place;
    T* const at_line = tile + line_sample * kPitch + line_place;
    if (kToLines)
      *at_row = row_live ? in[row] : fedsparse::narrow<T>(0);
    else if (line_live)
      *at_line = in[line];
    __syncthreads();
    if (kToLines && line_live) out[line] = *at_line;
    if (!kToLines && row_live) out[row] = *at_row;
    __syncthreads();  // the tile has been read
  }
}

template <bool kToLines>
int move(const void* in, void* out, std::int64_t batch, std::int64_t size, std::int64_t dtype, void* stream) {
  const std::int64_t pieces = (batch + kBatch - 1) / kBatch * ((size + kWidth - 1) / kWidth);
  if (pieces == 0) return cudaSuccess;
  return fedsparse::with_dtype(dtype, [&](auto* number) {
    using T = std::remove_pointer_t<decltype(number)>;
    const auto kernel = &lines_kernel<T, kToLines>;
    // Eight pieces to a block: one is over before the block has paid for its start.
    return FEDSPARSE_LAUNCH(kernel, fedsparse::blocks_for(pieces * kWidth), fedsparse::kThreads, 0, stream,
                            static_cast<const T*>(in), static_cast<T*>(out), batch, size, pieces);
  });
}

}  // namespace

int fedsparse_cuda_to_lines(const void* rows, void* lines, std::int64_t batch, std::int64_t size, std::int64_t dtype,
                            void* stream) {
  return move<true>(rows, lines, batch, size, dtype, stream);
}

int fedsparse_cuda_from_lines(const void* lines, void* rows, std::int64_t batch, std::int64_t size, std::int64_t dtype,
                              void* stream) {
  return move<false>(lines, rows, batch, size, dtype, stream);
}

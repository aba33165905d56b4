// Transposition of a matrix: how a batch that lies outermost comes to lie innermost, and back.
//
// Tiles pass through shared memory, so that either side is read and written along its rows. Where a side is short, a
// batch of 8 say, the tile is that short and longer the other way.
#include "cuda_api.h"
#include "launch.cuh"
#include "number.cuh"

namespace {

constexpr int kUsual = 6, kLongest = 8;  // sides of a tile, as powers of 2: a row is not longer than a block

struct Transposition {
  std::int64_t rows, columns;
  int high, wide;  // the tile's sides, as powers of 2

  __host__ __device__ std::int64_t tiles_down() const { return (rows + (1 << high) - 1) >> high; }
  __host__ __device__ std::int64_t tiles_across() const { return (columns + (1 << wide) - 1) >> wide; }

  // Numbers from one row of the tile to the next: columns start in different banks, of 4 bytes.
  template <typename T>
  __host__ __device__ int pitch() const {
    return (1 << wide) + 4 / static_cast<int>(sizeof(T));
  }
};

template <typename T>
__global__ void __launch_bounds__(fedsparse::kThreads)
    transpose_kernel(const T* __restrict__ in, T* __restrict__ out, const Transposition t) {
  FEDSPARSE_DYNAMIC_SHARED(T, tile);
  const int pitch = t.pitch<T>(), thread = threadIdx.x;
  const int read_column = thread & ((1 << t.wide) - 1), read_row = thread >> t.wide, read_step = blockDim.x >> t.wide;
  const int put_row = thread & ((1 << t.high) - 1), put_column = thread >> t.high, put_step = blockDim.x >> t.high;
  for (std::int64_t number = blockIdx.x; number < t.tiles_down() * t.tiles_across(); number += gridDim.x) {
    const std::int64_t row = number / t.tiles_across() << t.high, column = number % t.tiles_across() << t.wide;
    if (column + read_column < t.columns)
      for (int r = read_row; r < 1 << t.high && row + r < t.rows; r += read_step)
        tile[r * pitch + read_column] = in[(row + r) * t.columns + column + read_column];
    __syncthreads();
    if (row + put_row < t.rows)
      for (int c = put_column; c < 1 << t.wide && column + c < t.columns; c += put_step)
        out[(column + c) * t.rows + row + put_row] = tile[put_row * pitch + c];
    __syncthreads();  // the tile has been read
  }
}

// The power of 2 that reaches `size`, at most the usual side.
int side(std::int64_t size) {
  int power = 0;
  while (power < kUsual && std::int64_t{1} << power < size) ++power;
  return power;
}

Transposition cut(std::int64_t rows, std::int64_t columns) {
  const int high = side(rows), wide = side(columns);
  const auto beside = [](int power, int other) {
    return power < kUsual ? power : std::min(2 * kUsual - other, kLongest);
  };
  return {rows, columns, beside(high, wide), beside(wide, high)};
}

}  // namespace

int fedsparse_cuda_transpose(const void* in, void* out, std::int64_t rows, std::int64_t columns, std::int64_t dtype,
                             void* stream) {
  return fedsparse::with_dtype(dtype, [&](auto* number) -> int {
    using T = std::remove_pointer_t<decltype(number)>;
    if (rows == 0 || columns == 0) return cudaSuccess;
    const Transposition t = cut(rows, columns);
    const auto bytes = static_cast<std::size_t>((1 << t.high) * t.pitch<T>()) * sizeof(T);
    const auto kernel = &transpose_kernel<T>;
    return FEDSPARSE_LAUNCH(kernel, fedsparse::blocks_for(t.tiles_down() * t.tiles_across() * fedsparse::kThreads),
                            fedsparse::kThreads, bytes, stream, static_cast<const T*>(in), static_cast<T*>(out), t);
  });
}

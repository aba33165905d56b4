// Products of fragments on tensor cores in each arithmetic, and how lanes take lines and weights from memory.
//
// In fragments of mma.m16n8 a lane is (group, member) = (lane / 4, lane % 4). Which numbers share a row, a column or a
// depth is free as long as both operands agree, so rows and depths are dealt such that lanes read whole words.
#pragma once

#include <cstring>

#include "block.h"
#include "csr16_slab.cuh"

namespace fedsparse::block {

using csr16::kBatch;

// `count` 32-bit registers moved as one access.
template <int count>
struct alignas(4 * count) Words {
  unsigned word[count];
};

template <int count, typename T>
__device__ __forceinline__ Words<count> load_words(const T* address) {
  return *reinterpret_cast<const Words<count>*>(address);
}

__device__ __forceinline__ unsigned bits(float x) {
  unsigned word;
  memcpy(&word, &x, sizeof word);
  return word;
}
__device__ __forceinline__ float from_bits(unsigned word) {
  float x;
  memcpy(&x, &word, sizeof x);
  return x;
}

// ---- arithmetic: how operands enter the tensor cores. Left and Right are fragments ready for use.
template <typename T>
struct Sixteen {
  using Number = T;
  using Left = Words<4>;
  using Right = Words<2>;
  static constexpr bool kWide = false;
  static constexpr int kProducts = 1;

  static __device__ __forceinline__ Left left(const unsigned (&a)[4]) { return {{a[0], a[1], a[2], a[3]}}; }
  static __device__ __forceinline__ Right right(unsigned b0, unsigned b1) { return {{b0, b1}}; }
  static __device__ __forceinline__ void multiply_add(float (&d)[4], const Left& a, const Right& b);
};

template <>
__device__ __forceinline__ void Sixteen<__nv_bfloat16>::multiply_add(float (&d)[4], const Left& a, const Right& b) {
  ptx::mma_bf16(d, a.word, b.word);
}
template <>
__device__ __forceinline__ void Sixteen<__half>::multiply_add(float (&d)[4], const Left& a, const Right& b) {
  ptx::mma_fp16(d, a.word, b.word);
}

// Operands of 11 bits. The tensor core cuts off the others, on average half a unit of the 11th. One multiplication before
// adds as much to numbers of all magnitudes together, ln 2 / 2 of a unit at 1 and twice that below 2. Numbers that fit
// stay what they are, as do infinities and NaN, which an addition to the bits would have to spare with three
// instructions.
struct Tf32 {
  using Number = float;
  using Left = Words<4>;
  using Right = Words<2>;
  static constexpr bool kWide = true;
  static constexpr int kProducts = 1;  // of fragments

  static __device__ __forceinline__ unsigned rounded(unsigned word) {
    return bits(from_bits(word) * (1.0f + 0.34657359f / 1024));
  }
  static __device__ __forceinline__ Left left(const unsigned (&a)[4]) {
    return {{rounded(a[0]), rounded(a[1]), rounded(a[2]), rounded(a[3])}};
  }
  static __device__ __forceinline__ Right right(unsigned b0, unsigned b1) { return {{rounded(b0), rounded(b1)}}; }
  static __device__ __forceinline__ void multiply_add(float (&d)[4], const Left& a, const Right& b) {
    ptx::mma_tf32(d, a.word, b.word);
  }
};

// Operands in two parts of 11 bits; the product of both second parts is below the last bit of float32. An infinite
// operand gives NaN: its second part is infinity minus infinity.
struct ThreeTf32 {
  using Number = float;
  struct Left {
    unsigned high[4], low[4];
  };
  struct Right {
    unsigned high[2], low[2];
  };
  static constexpr bool kWide = true;
  static constexpr int kProducts = 3;

  static __device__ __forceinline__ void split(unsigned word, unsigned& high, unsigned& low) {
    high = word & ~0x1fffu;
    low = bits(from_bits(word) - from_bits(high));  // exact
  }
  static __device__ __forceinline__ Left left(const unsigned (&a)[4]) {
    Left parts;
#pragma unroll
    for (int i = 0; i < 4; ++i) split(a[i], parts.high[i], parts.low[i]);
    return parts;
  }
  static __device__ __forceinline__ Right right(unsigned b0, unsigned b1) {
    Right parts;
    split(b0, parts.high[0], parts.low[0]);
    split(b1, parts.high[1], parts.low[1]);
    return parts;
  }
  static __device__ __forceinline__ void multiply_add(float (&d)[4], const Left& a, const Right& b) {
    ptx::mma_tf32(d, a.low, b.high);
    ptx::mma_tf32(d, a.high, b.low);
    ptx::mma_tf32(d, a.high, b.high);
  }
};

// Calls visit with the arithmetic for numbers of a dtype.
template <typename F>
int with_arithmetic(std::int64_t dtype, bool tf32, F&& visit) {
  switch (dtype) {
    case FEDSPARSE_FLOAT32: return tf32 ? visit(Tf32{}) : visit(ThreeTf32{});
    case FEDSPARSE_BFLOAT16: return visit(Sixteen<__nv_bfloat16>{});
    case FEDSPARSE_FLOAT16: return visit(Sixteen<__half>{});
  }
  return cudaErrorInvalidValue;
}

// Calls visit with the columns of mma, 8 target channels each, of a strip.
template <typename F>
int with_tiles(std::int64_t width, F&& visit) {
  switch (width) {
    case 8: return visit(std::integral_constant<int, 1>{});
    case 16: return visit(std::integral_constant<int, 2>{});
    case 32: return visit(std::integral_constant<int, 4>{});
  }
  return cudaErrorInvalidValue;
}

// ---- tiles of pixels
// Pixels of a tile are numbered along its rows and then its images; rows and columns are powers of 2.
struct Pixels {
  std::int32_t log_columns, log_image, step_y, step_x, plane;

  __device__ explicit Pixels(const csr16::Problem& p)
      : log_columns(0), log_image(0), step_y(p.grid.source_step_y * p.grid.halo_columns), step_x(p.grid.source_step_x),
        plane(p.grid.plane()) {
    log_columns = 31 - __clz(p.tile.columns);  // here, because nvcc gives initialisers to the host's compiler as well
    log_image = 31 - __clz(p.tile.rows * p.tile.columns);
  }

  __device__ __forceinline__ std::int32_t image(std::int32_t pixel) const { return pixel >> log_image; }
  __device__ __forceinline__ std::int32_t row(std::int32_t pixel) const {
    return (pixel & ((1 << log_image) - 1)) >> log_columns;
  }
  __device__ __forceinline__ std::int32_t column(std::int32_t pixel) const { return pixel & ((1 << log_columns) - 1); }
  // Of a pixel, untouched by any tap, in lines.
  __device__ __forceinline__ std::int32_t distance(std::int32_t pixel) const {
    return image(pixel) * plane + row(pixel) * step_y + column(pixel) * step_x;
  }
  __device__ __forceinline__ bool live(const csr16::Problem& p, const csr16::Place& place, std::int32_t pixel) const {
    return place.image + image(pixel) < p.target.images && place.row + row(pixel) < p.grid.rows &&
           place.column + column(pixel) < p.grid.columns;
  }
  // Where the pixel's line lies in a channel of the target.
  __device__ __forceinline__ std::int64_t target(const csr16::Problem& p, const csr16::Place& place,
                                                 std::int32_t pixel) const {
    const std::int64_t y = p.grid.target_y + (place.row + row(pixel)) * p.grid.target_step_y;
    const std::int64_t x = p.grid.target_x + (place.column + column(pixel)) * p.grid.target_step_x;
    return (place.image + image(pixel)) * p.target.image + y * p.target.row + x * p.target.column;
  }
};

// Numbers of a stage: a slab and the channel of zeros behind it.
__host__ __device__ inline std::int32_t stage_numbers(const csr16::Problem& p) {
  return (p.slab_channels + 1) * p.grid.pitch * kBatch;
}

// Visible after the next barrier.
template <typename T>
__device__ __forceinline__ void clear_zeros(T* stage, const csr16::Problem& p) {
  T* const zeros = stage + p.slab_channels * p.grid.pitch * kBatch;
  for (std::int32_t i = threadIdx.x; i < p.grid.pitch * kBatch; i += blockDim.x) zeros[i] = narrow<T>(0);
}

// Launches with dynamic shared memory. The attribute belongs to the kernel, not to the launch, and other host threads
// may set it too: it is always the same.
template <typename Kernel, typename Arguments>
int launch(Kernel* kernel, std::int64_t blocks, std::int32_t threads, std::int64_t bytes, int most,
           const Arguments& arguments, void* stream) {
  if (blocks > 0x7fffffff) return cudaErrorInvalidConfiguration;
  const auto status = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most);
  if (status != cudaSuccess) return status;
  return FEDSPARSE_LAUNCH(kernel, static_cast<unsigned>(blocks), static_cast<unsigned>(threads),
                          static_cast<std::size_t>(bytes), stream, arguments);
}

}  // namespace fedsparse::block

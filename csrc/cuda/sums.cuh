// Parts of a weight gradient added in order: few numbers and much waiting, so blocks of threads of their own do it
// beside a product that does not need them, or a launch of its own where there is none.
#pragma once

#include "launch.cuh"
#include "number.cuh"

namespace fedsparse {

// Blocks that work beside a product on so many numbers.
inline std::int64_t blocks_beside(std::int64_t numbers) {
  constexpr std::int64_t kOfBlock = 2048, kMost = 132;  // one for each SM: they take the room of a product's block
  return std::clamp<std::int64_t>((numbers + kOfBlock - 1) / kOfBlock, 1, kMost);
}

// What is added: number i of each of `splits` parts, `numbers` apart.
struct Sums {
  const float* partial;
  std::int64_t numbers;
  std::int32_t splits;
  const std::int32_t* chunks;  // on the device, how many of these there are of `of_chunk` numbers; null: all numbers
  std::int64_t of_chunk;
  const std::int32_t* value;  // where a sum goes, -1: nowhere; null: in order
  void* out;                  // null: there is nothing to add

  std::int64_t blocks() const { return out ? blocks_beside(numbers) : 0; }
};

// The share of block number `block` of so many.
template <typename T>
__device__ __forceinline__ void add(const Sums& s, std::int64_t block, std::int64_t blocks) {
  const std::int64_t count = s.chunks ? *s.chunks * s.of_chunk : s.numbers;
  for (std::int64_t i = block * blockDim.x + threadIdx.x; i < count; i += blocks * blockDim.x) {
    const std::int64_t to = s.value ? s.value[i] : i;
    if (to < 0) continue;
    float sum = 0;
    for (std::int32_t split = 0; split < s.splits; ++split) sum += s.partial[split * s.numbers + i];
    static_cast<T*>(s.out)[to] = narrow<T>(sum);
  }
}

// In a launch of its own.
int add_sums(const Sums& sums, std::int64_t dtype, void* stream);

}  // namespace fedsparse

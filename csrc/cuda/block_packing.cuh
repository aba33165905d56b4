// Values put into the order of a list.
#pragma once

#include "block_product.h"

namespace fedsparse::block {

// The share of block number `block` of so many.
template <typename T>
__device__ __forceinline__ void pack(const Packing& p, std::int64_t block, std::int64_t blocks) {
  const auto* const values = static_cast<const T*>(p.values);
  const std::int64_t count = *p.chunks * p.of_chunk;
  for (std::int64_t i = block * blockDim.x + threadIdx.x; i < count; i += blocks * blockDim.x)
    static_cast<T*>(p.packed)[i] = p.value[i] >= 0 ? values[p.value[i]] : narrow<T>(0);
}

}  // namespace fedsparse::block

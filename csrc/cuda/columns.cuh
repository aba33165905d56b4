// Sorted lists on the device.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace fedsparse {

// Columns of kept positions, as narrow as the weight allows.
struct Columns {
  const void* data;
  bool wide;  // int32 when true, uint16 otherwise

  __device__ __forceinline__ std::int32_t operator[](std::int64_t i) const {
    return wide ? static_cast<const std::int32_t*>(data)[i] : static_cast<const std::uint16_t*>(data)[i];
  }
};

// The same to be written.
struct NewColumns {
  void* data;
  bool wide;

  __device__ __forceinline__ void put(std::int64_t i, std::int64_t column) const {
    if (wide)
      static_cast<std::int32_t*>(data)[i] = static_cast<std::int32_t>(column);
    else
      static_cast<std::uint16_t*>(data)[i] = static_cast<std::uint16_t>(column);
  }
};

// The first of the places [low, high) of a rising list that holds `least` or more; `high` where none does.
template <typename List>
__device__ __forceinline__ std::int64_t first_from(const List& list, std::int64_t low, std::int64_t high,
                                                   std::int64_t least) {
  while (low < high) {
    const std::int64_t middle = low + (high - low) / 2;
    if (static_cast<std::int64_t>(list[middle]) < least)
      low = middle + 1;
    else
      high = middle;
  }
  return low;
}

// The last of `count` places whose number, number(place), is `most` or less, in a rising list that begins with one.
template <typename F>
__device__ __forceinline__ std::int32_t last_up_to(std::int32_t count, std::uint32_t most, F&& number) {
  std::int32_t low = 0, high = count;
  while (high - low > 1) {
    const std::int32_t middle = (low + high) / 2;
    (number(middle) <= most ? low : high) = middle;
  }
  return low;
}

}  // namespace fedsparse

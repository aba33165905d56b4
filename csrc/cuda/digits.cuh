// Exact selection by counting: the k-th smallest key is found digit by digit, from the highest down, each digit from a
// histogram of the keys that share the ones before it.
#pragma once

#include "collective.cuh"

namespace fedsparse {

using Key = std::uint64_t;

constexpr int kDigitBits = 11;  // sign, exponent and three bits of the fraction of a float, were it not for the sign
constexpr int kBins = 1 << kDigitBits;
constexpr std::uint32_t kMostMagnitude = 0x7fffffffu;

// |x| as a whole number of the same order. NaN is above infinity, all NaNs alike.
__device__ __forceinline__ std::uint32_t magnitude(float x) {
  const std::uint32_t bits = __float_as_uint(x) & kMostMagnitude;
  return bits > 0x7f800000u ? kMostMagnitude : bits;
}

// The bits [low, high) of a key.
struct Digit {
  int low, high;

  // Number `which`, counted from the highest, of keys below 2^bits.
  __host__ __device__ Digit(int bits, int which)
      : low(bits > (which + 1) * kDigitBits ? bits - (which + 1) * kDigitBits : 0), high(bits - which * kDigitBits) {}

  __device__ bool shares_higher(Key key, Key known) const { return key >> high == known >> high; }
  __device__ std::uint32_t of(Key key) const {
    return static_cast<std::uint32_t>(key >> low) & ((1u << (high - low)) - 1);
  }
};

__host__ __device__ constexpr int digits_of(int bits) { return (bits + kDigitBits - 1) / kDigitBits; }

// The bin in which the key number `rank`, counted from 1, falls, how many keys are in bins before it and in itself.
struct Found {
  std::uint32_t bin, before, inside;
};

// All threads of a block get the same answer; the last bin where there are fewer keys. Begins and ends with a barrier.
__device__ __forceinline__ Found find_bin(const std::uint32_t* histogram, std::uint32_t rank) {
  FEDSPARSE_SHARED(Found, answer, 1);
  constexpr int kEach = kBins / kThreads;
  std::uint32_t counts[kEach], sum = 0, total;
#pragma unroll
  for (int i = 0; i < kEach; ++i) sum += counts[i] = histogram[threadIdx.x * kEach + i];
  std::uint32_t before = sum_before(sum, total);
  rank = min(rank, total);
  if ((before < rank && rank <= before + sum) || (rank == 0 && threadIdx.x == 0)) {
    std::uint32_t bin = 0;
#pragma unroll
    for (int i = 0; i + 1 < kEach; ++i) {
      if (bin < static_cast<std::uint32_t>(i) || before + counts[i] >= rank) continue;
      before += counts[i];
      bin = i + 1;
    }
    std::uint32_t inside = counts[0];
#pragma unroll
    for (int i = 1; i < kEach; ++i) inside = bin == static_cast<std::uint32_t>(i) ? counts[i] : inside;
    *answer = {threadIdx.x * kEach + bin, before, inside};
  }
  __syncthreads();
  const Found found = *answer;
  __syncthreads();  // it has been read
  return found;
}

}  // namespace fedsparse

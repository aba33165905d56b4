// A loop that does nothing but multiply and add in registers.
#include "../peak.h"
#include "simd.h"

namespace fedsparse::FEDSPARSE_ISA {

namespace {

// Sums in flight: more than two adders that take four cycles each can hold, and few enough for 16 registers.
constexpr int kSums = 12;

// Kept apart from the parallel region, so that the sums are this function's own and stay in registers.
inline void multiply_add_once(Vec* sums, Vec& x, Vec y) {
#pragma GCC unroll 16
  for (int i = 0; i < kSums; ++i) {
    hold(x);  // the product cannot be shared among the sums, or computed before the loop
    sums[i] = x * y + sums[i];
  }
}

std::int64_t multiply_add(std::int64_t rounds, int threads) {
#pragma omp parallel num_threads(threads)
  {
    Vec sums[kSums] = {}, x = broadcast(1.0f), y = broadcast(0.5f);
    for (std::int64_t r = 0; r < rounds; ++r) multiply_add_once(sums, x, y);
    for (Vec& sum : sums) hold(sum);
  }
  return rounds * kSums * kLanes * 2 * threads;
}

}  // namespace

extern const PeakKernels peak;
const PeakKernels peak = {multiply_add};

}  // namespace fedsparse::FEDSPARSE_ISA

// The most floating-point operations a processor does: what measured kernels are compared with.
#pragma once

#include <cstdint>

namespace fedsparse {

struct PeakKernels {
  // Multiplies and adds registers `rounds` times on each of `threads` threads and touches no memory. Returns the
  // floating-point operations done by all threads together.
  std::int64_t (*multiply_add)(std::int64_t rounds, int threads);
};

}  // namespace fedsparse

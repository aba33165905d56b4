// Between torch's layouts and blocked activations (blocked.h).
#pragma once

#include <cstdint>

namespace fedsparse {

// Every contiguous batch is (batch, size) rows, and blocked activations are (groups, size, lanes): one transposition
// serves pictures and features alike. Rows and lines are both float32 or, with `half`, both bfloat16. Lanes without an
// image become zero; they are not read back.
struct LayoutKernels {
  void (*to_blocked)(std::int64_t batch, std::int64_t size, bool half, const void* rows, void* blocked, int threads);
  void (*from_blocked)(std::int64_t batch, std::int64_t size, bool half, const void* blocked, void* rows, int threads);
};

}  // namespace fedsparse

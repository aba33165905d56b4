#include "sums.cuh"

namespace fedsparse {
namespace {

template <typename T>
__global__ void __launch_bounds__(kThreads) add_kernel(const Sums sums) {
  add<T>(sums, blockIdx.x, gridDim.x);
}

}  // namespace

int add_sums(const Sums& sums, std::int64_t dtype, void* stream) {
  return with_dtype(dtype, [&](auto* number) {
    using T = std::remove_pointer_t<decltype(number)>;
    return FEDSPARSE_LAUNCH(add_kernel<T>, blocks_for(sums.numbers), kThreads, 0, stream, sums);
  });
}

}  // namespace fedsparse

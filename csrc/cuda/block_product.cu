// Products with structured weights: what is launched for one.
#include "block_packing.cuh"

namespace fedsparse::block {
namespace {

template <typename T>
__global__ void __launch_bounds__(fedsparse::kThreads) block_pack_kernel(const Packing packing) {
  pack<T>(packing, blockIdx.x, gridDim.x);
}

int pack_values(const Packing& packing, std::int64_t dtype, void* stream) {
  return with_dtype(dtype, [&](auto* number) {
    using T = std::remove_pointer_t<decltype(number)>;
    return FEDSPARSE_LAUNCH(block_pack_kernel<T>, blocks_for(packing.numbers), fedsparse::kThreads, 0, stream, packing);
  });
}

// Of the values for products with `list`.
Packing packing_of(const ConvShape& shape, bool backward, std::int64_t dtype, const StripList& list, const void* values,
                   void* packed) {
  const std::int64_t of_chunk = kChunk * list.width;
  const std::int64_t entries = fedsparse_block_start_size(&shape, backward, dtype, list.width) - 1;
  return {list.start + entries, of_chunk, list.room * of_chunk, list.value, values, packed};
}

}  // namespace
}  // namespace fedsparse::block

using namespace fedsparse;
using namespace fedsparse::block;

int fedsparse_cuda_block_forward(const ConvShape* shape, std::int64_t dtype, bool tf32, const StripList* forward,
                                 const void* values, void* packed, const void* x, const void* bias, void* y,
                                 void* stream) {
  const Packing packing = packing_of(*shape, false, dtype, *forward, values, packed);
  const int status = pack_values(packing, dtype, stream);
  if (status != cudaSuccess) return status;
  return gather(*shape, false, {dtype, tf32, *forward, packed, x, bias, y}, {}, stream);
}

int fedsparse_cuda_block_backward(const ConvShape* shape, std::int64_t dtype, bool tf32, const StripList* forward,
                                  const StripList* backward, const void* values, void* packed, const void* grad_y,
                                  const void* x, float* partial, void* grad_x, void* grad_values, void* stream) {
  const Packing packing = grad_x ? packing_of(*shape, true, dtype, *backward, values, packed) : Packing{};
  Sums sums = {};
  int status = cudaSuccess;
  if (grad_values) {
    status = correlate(*shape, {dtype, tf32, *forward, grad_y, x, partial}, grad_values, packing, sums, stream);
  } else if (grad_x) {
    status = pack_values(packing, dtype, stream);
  }
  if (status != cudaSuccess) return status;
  if (grad_x) return gather(*shape, true, {dtype, tf32, *backward, packed, grad_y, nullptr, grad_x}, sums, stream);
  return grad_values ? add_sums(sums, dtype, stream) : cudaSuccess;
}

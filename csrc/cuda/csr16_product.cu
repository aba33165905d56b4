// Products with unstructured weights: what is launched for one.
#include "csr16_product.h"

using namespace fedsparse;
using namespace fedsparse::csr16;

int fedsparse_cuda_csr16_forward(const ConvShape* shape, std::int64_t dtype, const TapList* forward, const void* values,
                                 const void* x, const void* bias, void* y, void* stream) {
  return gather(*shape, false, {dtype, *forward, values, x, bias, y}, {}, stream);
}

int fedsparse_cuda_csr16_backward(const ConvShape* shape, std::int64_t dtype, std::int64_t nnz, const TapList* forward,
                                  const TapList* backward, const void* values, const void* grad_y, const void* x,
                                  float* partial, void* grad_x, void* grad_values, void* stream) {
  Sums sums = {};
  if (grad_values) {
    const int status = correlate(*shape, nnz, {dtype, *forward, grad_y, x, partial}, grad_values, sums, stream);
    if (status != cudaSuccess) return status;
  }
  if (grad_x) return gather(*shape, true, {dtype, *backward, values, grad_y, nullptr, grad_x}, sums, stream);
  return grad_values ? add_sums(sums, dtype, stream) : cudaSuccess;
}

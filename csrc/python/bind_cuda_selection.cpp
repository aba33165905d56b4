// Python's way to what the CUDA kernels select; as in bind_cuda.cpp. Names that end with _size return bytes.
#include "bind.h"

#ifdef FEDSPARSE_WITH_CUDA

#include "bind_cuda.h"

namespace py = pybind11;

using fedsparse::ConvShape;

namespace {

void bind_gradients(py::module_& m) {
  m.def("cuda_dense_gradient_size", [](const Sizes& sizes, std::int64_t dtype) {
    const ConvShape shape = conv_shape(sizes);
    return fedsparse_cuda_dense_gradient_size(&shape, dtype);
  });
  m.def(
      "cuda_dense_gradient",
      [](const Sizes& sizes, std::int64_t dtype, bool tf32, Address grad_y, Address x, Address gradient,
         Address workspace, Address stream) {
        const ConvShape shape = conv_shape(sizes);
        return fedsparse_cuda_dense_gradient(&shape, dtype, tf32, at<const void>(grad_y), at<const void>(x),
                                             at<float>(gradient), at<void>(workspace), at<void>(stream));
      },
      release());
  m.def("cuda_topk_pruned_size", [](const Sizes& sizes, std::int64_t dtype, std::int64_t nnz, std::int64_t k) {
    const ConvShape shape = conv_shape(sizes);
    return fedsparse_cuda_topk_pruned_size(&shape, dtype, nnz, k);
  });
  m.def(
      "cuda_topk_pruned",
      [](const Sizes& sizes, std::int64_t dtype, bool tf32, std::int64_t nnz, const RowsView& rows, Address grad_y,
         Address x, std::int64_t k, Address positions, Address gradients, Address workspace, Address stream) {
        const ConvShape shape = conv_shape(sizes);
        const auto& [row_start, column, wide] = rows;
        return fedsparse_cuda_topk_pruned(&shape, dtype, tf32, nnz, at<const std::int32_t>(row_start),
                                          at<const void>(column), wide, at<const void>(grad_y), at<const void>(x), k,
                                          at<std::int64_t>(positions), at<float>(gradients), at<void>(workspace),
                                          at<void>(stream));
      },
      release());
}

void bind_smallest(py::module_& m) {
  m.def("cuda_smallest_size", &fedsparse_cuda_smallest_size);
  m.def(
      "cuda_smallest",
      [](Address values, std::int64_t layers, std::int64_t n, Address layer_start, Address number_start,
         Address numbers, Address workspace, Address stream) {
        return fedsparse_cuda_smallest(at<const float>(values), layers, n, at<const std::int64_t>(layer_start),
                                       at<const std::int64_t>(number_start), at<std::int64_t>(numbers),
                                       at<void>(workspace), at<void>(stream));
      },
      release());
}

void bind_packing(py::module_& m) {
  m.def("cuda_mark_largest_size", &fedsparse_cuda_mark_largest_size);
  m.def(
      "cuda_mark_largest",
      [](Address x, std::int64_t rows, std::int64_t size, std::int64_t dtype, std::int64_t k, Address bits,
         Address starts, Address workspace, Address stream) {
        return fedsparse_cuda_mark_largest(at<const void>(x), rows, size, dtype, k, at<std::uint32_t>(bits),
                                           at<std::int32_t>(starts), at<void>(workspace), at<void>(stream));
      },
      release());
  m.def(
      "cuda_pack",
      [](Address x, std::int64_t n, std::int64_t dtype, Address bits, Address starts, Address values,
         std::int64_t value_dtype, Address stream) {
        return fedsparse_cuda_pack(at<const void>(x), n, dtype, at<const std::uint32_t>(bits),
                                   at<const std::int32_t>(starts), at<void>(values), value_dtype, at<void>(stream));
      },
      release());
  m.def(
      "cuda_unpack",
      [](Address values, std::int64_t value_dtype, std::int64_t n, Address bits, Address starts, Address x,
         std::int64_t dtype, Address stream) {
        return fedsparse_cuda_unpack(at<const void>(values), value_dtype, n, at<const std::uint32_t>(bits),
                                     at<const std::int32_t>(starts), at<void>(x), dtype, at<void>(stream));
      },
      release());
}

}  // namespace

void bind_cuda_selection(py::module_& m) {
  bind_gradients(m);
  bind_smallest(m);
  bind_packing(m);
}

#endif

// Python's way to the kernels for structured weights; as in bind_cuda.cpp.
#include "bind.h"

#ifdef FEDSPARSE_WITH_CUDA

#include <pybind11/stl.h>

#include "../cuda/cuda_api.h"

namespace py = pybind11;

using fedsparse::ConvShape;
using Sizes = std::array<std::int64_t, 14>;  // of a ConvShape
using release = py::call_guard<py::gil_scoped_release>;

namespace {

void bind_strips(py::module_& m) {
  m.def("block_width", [](const Sizes& sizes, bool backward, std::int64_t dtype, std::int64_t rows_alike,
                          std::int64_t inputs_alike) {
    const ConvShape shape = conv_shape(sizes);
    return fedsparse_block_width(&shape, backward, dtype, rows_alike, inputs_alike);
  });
  m.def("block_start_size", [](const Sizes& sizes, bool backward, std::int64_t dtype, std::int64_t width) {
    const ConvShape shape = conv_shape(sizes);
    return fedsparse_block_start_size(&shape, backward, dtype, width);
  });
  m.def("block_room", [](const Sizes& sizes, bool backward, std::int64_t dtype, std::int64_t width, std::int64_t nnz,
                         std::int64_t rows_alike, std::int64_t inputs_alike) {
    const ConvShape shape = conv_shape(sizes);
    return fedsparse_block_room(&shape, backward, dtype, width, nnz, rows_alike, inputs_alike);
  });
  m.def("block_partial_size", [](const Sizes& sizes, std::int64_t dtype, std::int64_t width, std::int64_t room) {
    const ConvShape shape = conv_shape(sizes);
    return fedsparse_block_partial_size(&shape, dtype, width, room);
  });
}

void bind_products(py::module_& m) {
  m.def(
      "cuda_block_pack",
      [](std::int64_t dtype, std::int64_t width, std::int64_t room, Address chunks, Address value, Address values,
         Address packed, Address stream) {
        return fedsparse_cuda_block_pack(dtype, width, room, at<const std::int32_t>(chunks),
                                         at<const std::int32_t>(value), at<const void>(values), at<void>(packed),
                                         at<void>(stream));
      },
      release());
  m.def(
      "cuda_block_forward",
      [](const Sizes& sizes, std::int64_t dtype, std::int64_t width, bool tf32, Address start, Address offset,
         Address packed, Address x, Address bias, Address y, Address stream) {
        const ConvShape shape = conv_shape(sizes);
        return fedsparse_cuda_block_forward(&shape, dtype, width, tf32, at<const std::int32_t>(start),
                                            at<const std::uint16_t>(offset), at<const void>(packed),
                                            at<const void>(x), at<const void>(bias), at<void>(y), at<void>(stream));
      },
      release());
  m.def(
      "cuda_block_grad_x",
      [](const Sizes& sizes, std::int64_t dtype, std::int64_t width, bool tf32, Address start, Address offset,
         Address packed, Address grad_y, Address grad_x, Address stream) {
        const ConvShape shape = conv_shape(sizes);
        return fedsparse_cuda_block_grad_x(&shape, dtype, width, tf32, at<const std::int32_t>(start),
                                           at<const std::uint16_t>(offset), at<const void>(packed),
                                           at<const void>(grad_y), at<void>(grad_x), at<void>(stream));
      },
      release());
  m.def(
      "cuda_block_grad_values",
      [](const Sizes& sizes, std::int64_t dtype, std::int64_t width, bool tf32, std::int64_t room, Address start,
         Address offset, Address value, Address grad_y, Address x, Address partial, Address grad_values,
         Address stream) {
        const ConvShape shape = conv_shape(sizes);
        return fedsparse_cuda_block_grad_values(
            &shape, dtype, width, tf32, room, at<const std::int32_t>(start), at<const std::uint16_t>(offset),
            at<const std::int32_t>(value), at<const void>(grad_y), at<const void>(x), at<float>(partial),
            at<void>(grad_values), at<void>(stream));
      },
      release());
}

}  // namespace

void bind_cuda_block(py::module_& m) {
  bind_strips(m);
  bind_products(m);
}

#endif

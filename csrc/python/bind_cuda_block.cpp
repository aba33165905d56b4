// Python's way to the kernels for structured weights; as in bind_cuda.cpp.
#include "bind.h"

#ifdef FEDSPARSE_WITH_CUDA

#include <optional>

#include "bind_cuda.h"

namespace py = pybind11;

using fedsparse::ConvShape;

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

// Width and room, then addresses of start, offset and value. A list that nothing reads is None.
using StripsView = std::tuple<std::int64_t, std::int64_t, Address, Address, Address>;

fedsparse::StripList strips(const StripsView& v) {
  return {std::get<0>(v), std::get<1>(v), at<const std::int32_t>(std::get<2>(v)),
          at<const std::uint16_t>(std::get<3>(v)), at<const std::int32_t>(std::get<4>(v))};
}

void bind_products(py::module_& m) {
  m.def(
      "cuda_block_forward",
      [](const Sizes& sizes, std::int64_t dtype, bool tf32, const StripsView& forward, Address values, Address packed,
         Address x, Address bias, Address y, Address stream) {
        const ConvShape shape = conv_shape(sizes);
        const fedsparse::StripList list = strips(forward);
        return fedsparse_cuda_block_forward(&shape, dtype, tf32, &list, at<const void>(values), at<void>(packed),
                                            at<const void>(x), at<const void>(bias), at<void>(y), at<void>(stream));
      },
      release());
  m.def(
      "cuda_block_backward",
      [](const Sizes& sizes, std::int64_t dtype, bool tf32, const std::optional<StripsView>& forward,
         const std::optional<StripsView>& backward, Address values, Address packed, Address grad_y, Address x, Address partial, Address grad_x,
         Address grad_values, Address stream) {
        const ConvShape shape = conv_shape(sizes);
        const fedsparse::StripList lists[] = {strips(forward.value_or(StripsView{})),
                                              strips(backward.value_or(StripsView{}))};
        return fedsparse_cuda_block_backward(&shape, dtype, tf32, &lists[0], &lists[1], at<const void>(values),
                                             at<void>(packed), at<const void>(grad_y), at<const void>(x),
                                             at<float>(partial), at<void>(grad_x), at<void>(grad_values),
                                             at<void>(stream));
      },
      release());
}

}  // namespace

void bind_cuda_block(py::module_& m) {
  bind_strips(m);
  bind_products(m);
}

#endif

// Python's way to the CUDA kernels, where there are any. Addresses are of device memory unless said otherwise; numbers
// returned are a status, 0 or a cudaError_t, unless their name says what else they are.
#include "bind.h"

#include <optional>

#ifdef FEDSPARSE_WITH_CUDA
#include "bind_cuda.h"
#endif

namespace py = pybind11;

#ifdef FEDSPARSE_WITH_CUDA

using fedsparse::ConvShape;

namespace {

// Addresses of one array of each parameter.
using Arrays = std::vector<Address>;

template <typename T>
std::vector<T*> each(const Arrays& arrays) {
  std::vector<T*> pointers;
  for (const Address address : arrays) pointers.push_back(at<T>(address));
  return pointers;
}

void bind_optimizer(py::module_& m) {
  m.def(
      "cuda_sgd_momentum",
      [](const Arrays& values, const Arrays& grad, const Arrays& momentum, const std::vector<std::int64_t>& sizes,
         float lr, float mu, float weight_decay, float dampening, bool nesterov, bool first_step, Address stream) {
        return fedsparse_cuda_sgd_momentum(static_cast<std::int64_t>(sizes.size()), each<float>(values).data(),
                                           each<const float>(grad).data(), each<float>(momentum).data(), sizes.data(),
                                           lr, mu, weight_decay, dampening, nesterov, first_step, at<void>(stream));
      },
      release());
  // One of counters and steps is empty.
  m.def(
      "cuda_adamw",
      [](const Arrays& values, const Arrays& grad, const Arrays& mean, const Arrays& square,
         const std::vector<std::int64_t>& sizes, const Arrays& counters, const std::vector<std::int64_t>& steps,
         Address grad_scale, double lr, double beta1, double beta2, double eps, double weight_decay, Address stream) {
        return fedsparse_cuda_adamw(static_cast<std::int64_t>(sizes.size()), each<float>(values).data(),
                                    each<const float>(grad).data(), each<float>(mean).data(),
                                    each<float>(square).data(), sizes.data(), each<float>(counters).data(),
                                    steps.empty() ? nullptr : steps.data(), at<const float>(grad_scale), lr, beta1,
                                    beta2, eps, weight_decay, at<void>(stream));
      },
      release());
}

void bind_lines(py::module_& m) {
  m.def(
      "cuda_transpose",
      [](Address in, Address out, std::int64_t rows, std::int64_t columns, std::int64_t dtype, Address stream) {
        return fedsparse_cuda_transpose(at<const void>(in), at<void>(out), rows, columns, dtype, at<void>(stream));
      },
      release());
  m.def(
      "cuda_to_lines",
      [](Address rows, Address lines, std::int64_t batch, std::int64_t size, std::int64_t dtype, Address stream) {
        return fedsparse_cuda_to_lines(at<const void>(rows), at<void>(lines), batch, size, dtype, at<void>(stream));
      },
      release());
  m.def(
      "cuda_from_lines",
      [](Address lines, Address rows, std::int64_t batch, std::int64_t size, std::int64_t dtype, Address stream) {
        return fedsparse_cuda_from_lines(at<const void>(lines), at<void>(rows), batch, size, dtype, at<void>(stream));
      },
      release());
}

void bind_csr16_sizes(py::module_& m) {
  m.def("csr16_start_size", [](const Sizes& sizes, bool backward, std::int64_t dtype) {
    const ConvShape shape = conv_shape(sizes);
    return fedsparse_csr16_start_size(&shape, backward, dtype);
  });
  m.def("csr16_partial_size", [](const Sizes& sizes, std::int64_t dtype, std::int64_t nnz) {
    const ConvShape shape = conv_shape(sizes);
    return fedsparse_csr16_partial_size(&shape, dtype, nnz);
  });
}

// Addresses of start, offset and value. A list that nothing reads is None.
using TapsView = std::tuple<Address, Address, Address>;

fedsparse::TapList taps(const TapsView& v) {
  return {at<const std::int32_t>(std::get<0>(v)), at<const std::uint16_t>(std::get<1>(v)),
          at<const std::int32_t>(std::get<2>(v))};
}

void bind_csr16_products(py::module_& m) {
  m.def(
      "cuda_csr16_forward",
      [](const Sizes& sizes, std::int64_t dtype, const TapsView& forward, Address values, Address x, Address bias,
         Address y, Address stream) {
        const ConvShape shape = conv_shape(sizes);
        const fedsparse::TapList list = taps(forward);
        return fedsparse_cuda_csr16_forward(&shape, dtype, &list, at<const void>(values), at<const void>(x),
                                            at<const void>(bias), at<void>(y), at<void>(stream));
      },
      release());
  m.def(
      "cuda_csr16_backward",
      [](const Sizes& sizes, std::int64_t dtype, std::int64_t nnz, const std::optional<TapsView>& forward,
         const std::optional<TapsView>& backward, Address values, Address grad_y, Address x, Address partial, Address grad_x, Address grad_values,
         Address stream) {
        const ConvShape shape = conv_shape(sizes);
        const fedsparse::TapList lists[] = {taps(forward.value_or(TapsView{})), taps(backward.value_or(TapsView{}))};
        return fedsparse_cuda_csr16_backward(&shape, dtype, nnz, &lists[0], &lists[1], at<const void>(values),
                                             at<const void>(grad_y), at<const void>(x), at<float>(partial),
                                             at<void>(grad_x), at<void>(grad_values), at<void>(stream));
      },
      release());
}

}  // namespace

void bind_cuda(py::module_& m) {
  m.attr("built_with_cuda") = true;
  m.def("cuda_device_count", &fedsparse_cuda_device_count);
  m.def("cuda_shared_limit", &fedsparse_cuda_shared_limit);
  m.def("csr16_shared_bytes", &fedsparse_csr16_shared_bytes);
  m.def("block_shared_bytes", &fedsparse_block_shared_bytes);
  m.def("cuda_status_text", &fedsparse_cuda_status_text);
  bind_optimizer(m);
  bind_lines(m);
  bind_csr16_sizes(m);
  bind_csr16_products(m);
  bind_cuda_selection(m);
  bind_cuda_rebuilding(m);
  bind_cuda_block(m);
  bind_cuda_lists(m);
}

#else

void bind_cuda(py::module_& m) { m.attr("built_with_cuda") = false; }

#endif

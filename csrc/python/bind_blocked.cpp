// Python's way to the kernels on blocked activations: sizes are (batch, channels, height, width) and whether the
// activations are bfloat16, an address of 0 stands for a tensor that is not there.
#include "bind.h"

#include <pybind11/stl.h>

#include <array>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "../cpu/kernels.h"

namespace py = pybind11;
using namespace fedsparse;

namespace {

using Sizes = std::tuple<std::int64_t, std::int64_t, std::int64_t, std::int64_t, bool>;

Blocked blocked(const Sizes& s) {
  return std::apply([](auto... field) { return Blocked{field...}; }, s);
}

// (data, scale, shift)
Term term(const std::array<Address, 3>& a) {
  return {at<const void>(a[0]), at<const float>(a[1]), at<const float>(a[2]), false};
}

// The order of Window's fields.
Window window(const std::array<std::int64_t, 10>& w) {
  return {w[0], w[1], w[2], w[3], w[4], w[5], w[6], w[7], w[8], w[9]};
}

const PoolKernels& pool_of(const std::string& isa) { return kernels_named(isa.c_str()).pool; }

const NormKernels& norm_of(const std::string& isa) { return kernels_named(isa.c_str()).norm; }

// inputs: grad, gate, bits of the gate, x_hat, mean, inv_std, center.
// outputs: grad_x, grad_gated, grad_weight, grad_bias.
void norm_backward(const std::string& isa, const Sizes& sizes, const std::array<Address, 3>& x, bool gate_by_x,
                   const std::array<Address, 7>& inputs, const std::array<Address, 4>& outputs, int threads) {
  NormBackward a;
  a.grad = at<const void>(inputs[0]);
  a.gate = at<const void>(inputs[1]);
  a.gate_by_x = gate_by_x;
  a.x = term(x);
  a.gate_bits = at<const std::uint8_t>(inputs[2]);
  a.x_hat = at<const Half>(inputs[3]);
  a.mean = at<const float>(inputs[4]);
  a.inv_std = at<const float>(inputs[5]);
  a.center = at<const float>(inputs[6]);
  a.grad_x = at<void>(outputs[0]);
  a.grad_gated = at<void>(outputs[1]);
  a.grad_weight = at<float>(outputs[2]);
  a.grad_bias = at<float>(outputs[3]);
  norm_of(isa).backward(blocked(sizes), a, threads);
}

void bind_norm(py::module_& m) {
  using release = py::call_guard<py::gil_scoped_release>;
  m.def(
      "moments",
      [](const std::string& isa, const Sizes& sizes, Address x, Address mean, Address variance, int threads) {
        norm_of(isa).moments(blocked(sizes), at<const void>(x), at<float>(mean), at<float>(variance), threads);
      },
      release());
  m.def(
      "combine",
      [](const std::string& isa, const Sizes& sizes, const std::array<Address, 3>& x, const std::array<Address, 3>& r,
         bool relu, Address z, int threads) {
        norm_of(isa).combine(blocked(sizes), term(x), term(r), relu, at<void>(z), threads);
      },
      release());
  m.def("norm_backward", &norm_backward, release());
  m.def(
      "channel_sums",
      [](const std::string& isa, const Sizes& sizes, Address grad, Address sums, int threads) {
        norm_of(isa).sums(blocked(sizes), at<const void>(grad), at<float>(sums), threads);
      },
      release());
}

void bind_group_norm(py::module_& m) {
  using release = py::call_guard<py::gil_scoped_release>;
  m.def(
      "group_norm",
      [](const std::string& isa, const Sizes& sizes, std::int64_t parts, const std::array<Address, 3>& x, float eps,
         Address z, Address mean, Address inv_std, int threads) {
        const Term affine = term(x);
        kernels_named(isa.c_str())
            .group_norm.forward(blocked(sizes), parts, affine.data, affine.scale, affine.shift, eps, at<void>(z),
                                at<float>(mean), at<float>(inv_std), threads);
      },
      release());
  // inputs: grad, x, weight, mean, inv_std. outputs: grad_x, grad_weight, grad_bias.
  m.def(
      "group_norm_backward",
      [](const std::string& isa, const Sizes& sizes, std::int64_t parts, const std::array<Address, 5>& inputs,
         const std::array<Address, 3>& outputs, int threads) {
        const auto vector = [&](int i) { return at<const float>(inputs[i]); };
        kernels_named(isa.c_str())
            .group_norm.backward(blocked(sizes), parts, at<const void>(inputs[0]), at<const void>(inputs[1]), vector(2),
                                 vector(3), vector(4), at<void>(outputs[0]), at<float>(outputs[1]),
                                 at<float>(outputs[2]), threads);
      },
      release());
}

void bind_pool(py::module_& m) {
  using release = py::call_guard<py::gil_scoped_release>;
  using WindowSizes = std::array<std::int64_t, 10>;
  m.def(
      "max_pool",
      [](const std::string& isa, const Sizes& sizes, const WindowSizes& w, Address x, Address y, Address winner,
         int threads) {
        pool_of(isa).max_pool(blocked(sizes), window(w), at<const void>(x), at<void>(y), at<std::uint8_t>(winner),
                              threads);
      },
      release());
  m.def(
      "max_pool_backward",
      [](const std::string& isa, const Sizes& sizes, const WindowSizes& w, Address grad, Address winner,
         Address grad_x, int threads) {
        pool_of(isa).max_pool_backward(blocked(sizes), window(w), at<const void>(grad),
                                       at<const std::uint8_t>(winner), at<void>(grad_x), threads);
      },
      release());
  m.def(
      "average_pool",
      [](const std::string& isa, const Sizes& sizes, const WindowSizes& w, std::int64_t divisor, Address x, Address y,
         int threads) {
        pool_of(isa).average_pool(blocked(sizes), window(w), divisor, at<const void>(x), at<void>(y), threads);
      },
      release());
  m.def(
      "average_pool_backward",
      [](const std::string& isa, const Sizes& sizes, const WindowSizes& w, std::int64_t divisor, Address grad,
         Address grad_x, int threads) {
        pool_of(isa).average_pool_backward(blocked(sizes), window(w), divisor, at<const void>(grad),
                                           at<void>(grad_x), threads);
      },
      release());
}

}  // namespace

void bind_blocked(py::module_& m) {
  bind_norm(m);
  bind_group_norm(m);
  bind_pool(m);
}

// Python's way to the kernels on blocked activations: sizes are (batch, channels, height, width), an address of 0
// stands for a tensor that is not there.
#include "bind_blocked.h"

#include <pybind11/stl.h>

#include <array>
#include <string>
#include <utility>
#include <vector>

#include "../cpu/kernels.h"

namespace py = pybind11;
using namespace fedsparse;

namespace {

using Address = std::uintptr_t;
using Sizes = std::array<std::int64_t, 4>;

template <typename T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

Blocked blocked(const Sizes& s) { return {s[0], s[1], s[2], s[3]}; }

// (data, scale, shift)
Term term(const std::array<Address, 3>& a) {
  return {at<const float>(a[0]), at<const float>(a[1]), at<const float>(a[2]), false};
}

const NormKernels& norm_of(const std::string& isa) { return kernels_named(isa.c_str()).norm; }

std::vector<std::pair<std::string, int>> available_lanes() {
  int count = 0;
  const Kernels* const* list = instruction_sets(&count);
  std::vector<std::pair<std::string, int>> sets;
  for (int i = 0; i < count; ++i) sets.emplace_back(list[i]->name, list[i]->lanes);
  return sets;
}

// inputs: grad, gate, mean, inv_std, center. outputs: grad_x, grad_gated, grad_weight, grad_bias.
void norm_backward(const std::string& isa, const Sizes& sizes, const std::array<Address, 3>& x, bool gate_by_x,
                   const std::array<Address, 5>& inputs, const std::array<Address, 4>& outputs, int threads) {
  NormBackward a;
  a.grad = at<const float>(inputs[0]);
  a.gate = at<const float>(inputs[1]);
  a.gate_by_x = gate_by_x;
  a.x = term(x);
  a.mean = at<const float>(inputs[2]);
  a.inv_std = at<const float>(inputs[3]);
  a.center = at<const float>(inputs[4]);
  a.grad_x = at<float>(outputs[0]);
  a.grad_gated = at<float>(outputs[1]);
  a.grad_weight = at<float>(outputs[2]);
  a.grad_bias = at<float>(outputs[3]);
  norm_of(isa).backward(blocked(sizes), a, threads);
}

void bind_norm(py::module_& m) {
  using release = py::call_guard<py::gil_scoped_release>;
  m.def(
      "moments",
      [](const std::string& isa, const Sizes& sizes, Address x, Address mean, Address variance, int threads) {
        norm_of(isa).moments(blocked(sizes), at<const float>(x), at<float>(mean), at<float>(variance), threads);
      },
      release());
  m.def(
      "combine",
      [](const std::string& isa, const Sizes& sizes, const std::array<Address, 3>& x, const std::array<Address, 3>& r,
         bool relu, Address z, int threads) {
        norm_of(isa).combine(blocked(sizes), term(x), term(r), relu, at<float>(z), threads);
      },
      release());
  m.def("norm_backward", &norm_backward, release());
  m.def(
      "channel_sums",
      [](const std::string& isa, const Sizes& sizes, Address grad, Address sums, int threads) {
        norm_of(isa).sums(blocked(sizes), at<const float>(grad), at<float>(sums), threads);
      },
      release());
}

}  // namespace

void bind_blocked(py::module_& m) {
  m.def("lanes", &available_lanes, "(instruction set, lanes) of the sets that run here, best first.");
  bind_norm(m);
}

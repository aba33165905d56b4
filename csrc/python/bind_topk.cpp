// Python's way to the dense weight gradient and the streaming top-k on blocked activations. An address of 0 stands
// for an array that is not there.
#include "bind.h"

#include <pybind11/stl.h>

#include <array>
#include <string>

#include "../cpu/kernels.h"
#include "fedsparse/api.h"

namespace py = pybind11;
using namespace fedsparse;

namespace {

// (data, scale, shift)
Term term(const std::array<Address, 3>& a, bool relu) {
  return {at<const void>(a[0]), at<const float>(a[1]), at<const float>(a[2]), relu};
}

}  // namespace

void bind_topk(py::module_& m) {
  using release = py::call_guard<py::gil_scoped_release>;
  m.def(
      "weight_gradient_rows",
      [](const std::string& isa, const std::array<std::int64_t, 14>& shape, bool half,
         Address grad_y, const std::array<Address, 3>& x, bool relu, std::int64_t first, std::int64_t last, Address out,
         Address workspace, int threads) {
        return kernels_named(isa.c_str())
            .weight_gradient.rows(conv_shape(shape), half, at<const void>(grad_y), term(x, relu), first, last,
                                  at<float>(out), at<void>(workspace), threads);
      },
      release());
  m.def(
      "topk_pruned",
      [](const Problem& problem, Address grad_y, const std::array<Address, 3>& x, bool relu,
         const std::array<Address, 2>& lines, std::int64_t k, Address positions, Address gradients, Address workspace) {
        const RowLines by_row{at<const float>(lines[0]), at<const float>(lines[1])};
        return topk_pruned(problem, at<const void>(grad_y), term(x, relu), by_row, k, at<std::int64_t>(positions),
                           at<float>(gradients), at<void>(workspace));
      },
      release());
  m.def(
      "topk_pruned_units",
      [](const Problem& problem, Address grad_y, const std::array<Address, 3>& x, bool relu,
         const std::array<Address, 2>& lines, const std::array<std::int64_t, 3>& unit, std::int64_t k,
         Address positions, Address gradients, Address workspace) {
        const RowLines by_row{at<const float>(lines[0]), at<const float>(lines[1])};
        return topk_pruned_units(problem, at<const void>(grad_y), term(x, relu), by_row, {unit[0], unit[1], unit[2]}, k,
                                 at<std::int64_t>(positions), at<float>(gradients), at<void>(workspace));
      },
      release());
}

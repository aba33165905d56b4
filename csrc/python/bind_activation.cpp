// Pruned and packed activations, for Python; sizes are (batch, channels, height, width), and what is held says itself
// whether it is bfloat16.
#include "bind.h"

#include <pybind11/stl.h>

#include <string>

#include "../cpu/kernels.h"

namespace py = pybind11;
using namespace fedsparse;

namespace {

using Sizes = std::array<std::int64_t, 4>;

Blocked blocked(const Sizes& s) { return {s[0], s[1], s[2], s[3]}; }

const ActivationKernels& kernels_of(const std::string& isa) { return kernels_named(isa.c_str()).activation; }

}  // namespace

void bind_activation(py::module_& m) {
  using release = py::call_guard<py::gil_scoped_release>;
  m.def(
      "select_activations",
      [](const std::string& isa, const Sizes& sizes, const HeldView& x, std::int64_t k, bool together, Address key,
         Address last, int threads, Address workspace) {
        return kernels_of(isa).select(blocked(sizes), held(x), {k, together}, at<std::int32_t>(key),
                                      at<std::int32_t>(last), at<void>(workspace), threads);
      },
      release());
  m.def(
      "mark_activations",
      [](const std::string& isa, const Sizes& sizes, const HeldView& x, const CutsView& stays, const PackedView& to,
         std::int64_t room, int threads) {
        return kernels_of(isa).mark(blocked(sizes), held(x), cuts(stays), at<std::uint8_t>(std::get<0>(to)),
                                    at<std::int32_t>(std::get<1>(to)), at<void>(std::get<2>(to)), std::get<3>(to), room,
                                    threads);
      },
      release());
  m.def(
      "pack_activations",
      [](const std::string& isa, const Sizes& sizes, const HeldView& x, const PackedView& to, int threads) {
        kernels_of(isa).pack(blocked(sizes), held(x), at<const std::uint8_t>(std::get<0>(to)),
                             at<const std::int32_t>(std::get<1>(to)), at<void>(std::get<2>(to)), std::get<3>(to),
                             threads);
      },
      release());
  m.def(
      "unpack_activations",
      [](const std::string& isa, std::int64_t lines, const PackedView& from, Address x, int threads) {
        kernels_of(isa).unpack(lines, packed(from), at<float>(x), threads);
      },
      release());
}

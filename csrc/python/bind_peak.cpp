#include "bind.h"

#include <cstdint>
#include <string>

#include "../cpu/kernels.h"

void bind_peak(pybind11::module_& m) {
  m.def(
      "multiply_add",
      [](const std::string& isa, std::int64_t rounds, int threads) {
        return fedsparse::kernels_named(isa.c_str()).peak.multiply_add(rounds, threads);
      },
      pybind11::call_guard<pybind11::gil_scoped_release>(),
      "Multiplies and adds in registers; returns the floating-point operations done.");
}

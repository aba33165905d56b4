// Python's way to the loops of csrc/cpu/peak.h.
#pragma once

#include <pybind11/pybind11.h>

void bind_peak(pybind11::module_& m);

// The parts that the Python module is put together from, one file each.
#pragma once

#include <pybind11/pybind11.h>

void bind_blocked(pybind11::module_& module);  // norms, pooling
void bind_peak(pybind11::module_& module);     // the processor's peak
void bind_select(pybind11::module_& module);   // selection, changes of a pattern
void bind_topk(pybind11::module_& module);     // dense weight gradient, streaming top-k

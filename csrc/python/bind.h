// The parts that the Python module is put together from, one file each, and how they read what Python hands over.
#pragma once

#include <pybind11/pybind11.h>

#include <array>
#include <cstdint>

#include "fedsparse/shapes.h"

using Address = std::uintptr_t;  // of an array; 0 stands for one that is not there

template <typename T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

// The order of ConvShape's fields.
inline fedsparse::ConvShape conv_shape(const std::array<std::int64_t, 14>& s) {
  return {s[0], s[1], s[2], s[3], s[4], s[5], s[6], s[7], s[8], s[9], s[10], s[11], s[12], s[13]};
}

void bind_blocked(pybind11::module_& module);  // norms, pooling
void bind_cuda(pybind11::module_& module);     // what was built for CUDA devices
void bind_peak(pybind11::module_& module);     // the processor's peak
void bind_select(pybind11::module_& module);   // selection, changes of a pattern
void bind_topk(pybind11::module_& module);     // dense weight gradient, streaming top-k

// The parts that the Python module is put together from, one file each, and how they read what Python hands over.
#pragma once

#include <pybind11/pybind11.h>

#include <array>
#include <cstdint>
#include <tuple>
#include <utility>

#include "../cpu/activation.h"
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

// Addresses of data, scale and shift (0: none), and whether a ReLU follows.
using TermView = std::tuple<Address, Address, Address, bool>;

inline fedsparse::Term term(const TermView& v) {
  return {at<const void>(std::get<0>(v)), at<const float>(std::get<1>(v)), at<const float>(std::get<2>(v)),
          std::get<3>(v)};
}

// A term, and whether its data are bfloat16.
using HeldView = std::pair<TermView, bool>;

inline fedsparse::Held held(const HeldView& v) { return {term(v.first), v.second}; }

// Addresses of key and last.
using CutsView = std::pair<Address, Address>;

inline fedsparse::Cuts cuts(const CutsView& v) {
  return {at<const std::int32_t>(v.first), at<const std::int32_t>(v.second)};
}

// Addresses of bits, starts and values, and whether the values are bfloat16.
using PackedView = std::tuple<Address, Address, Address, bool>;

inline fedsparse::Packed packed(const PackedView& v) {
  return {at<const std::uint8_t>(std::get<0>(v)), at<const std::int32_t>(std::get<1>(v)),
          at<const void>(std::get<2>(v)), std::get<3>(v)};
}

void bind_activation(pybind11::module_& module);  // pruned, packed activations
void bind_blocked(pybind11::module_& module);  // norms, pooling
void bind_cuda(pybind11::module_& module);     // what was built for CUDA devices
void bind_cuda_selection(pybind11::module_& module);  // of that, selection
void bind_cuda_rebuilding(pybind11::module_& module);  // of that, changes of patterns
void bind_cuda_block(pybind11::module_& module);  // of that, kernels for structured weights
void bind_cuda_lists(pybind11::module_& module);  // of that, lists of many patterns
void bind_peak(pybind11::module_& module);     // the processor's peak
void bind_select(pybind11::module_& module);   // selection, changes of a pattern
void bind_topk(pybind11::module_& module);     // dense weight gradient, streaming top-k

// How the CUDA parts of the module read what Python hands over.
#pragma once

#include <pybind11/stl.h>

#include <array>
#include <cstdint>
#include <tuple>

#include "../cuda/cuda_api.h"
#include "bind.h"

using Sizes = std::array<std::int64_t, 14>;  // of a ConvShape
using release = pybind11::call_guard<pybind11::gil_scoped_release>;

// A row list on the device: addresses of row_start and column, and whether columns have 32 bits.
using RowsView = std::tuple<Address, Address, bool>;

// Rows, inputs of a group and positions of the kernel.
using WeightView = std::tuple<std::array<std::int64_t, 3>, RowsView>;

inline fedsparse::WeightRows weight_rows(const WeightView& view) {
  const auto& [sizes, rows] = view;
  const auto& [row_start, column, wide] = rows;
  return {sizes[0], sizes[1], sizes[2], at<const std::int32_t>(row_start), at<const void>(column), wide};
}

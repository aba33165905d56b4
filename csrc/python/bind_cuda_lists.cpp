// Python's way to what the CUDA kernels read of patterns; as in bind_cuda.cpp. Tables lie in main memory and, copied there
// by the caller, on the device; sizes are bytes.
#include "bind.h"

#ifdef FEDSPARSE_WITH_CUDA

#include <vector>

#include "bind_cuda.h"

namespace py = pybind11;

using fedsparse::NewList;
using fedsparse::WeightRows;

namespace {

// Sizes, backward, dtype, width (0: taps), rows, and addresses of start, offset and value.
using ListView = std::tuple<Sizes, bool, std::int64_t, std::int64_t, RowsView, std::array<Address, 3>>;

std::vector<NewList> new_lists(const std::vector<ListView>& views) {
  std::vector<NewList> lists;
  for (const auto& [sizes, backward, dtype, width, rows, arrays] : views) {
    const auto& [row_start, column, wide] = rows;
    lists.push_back({conv_shape(sizes), backward, dtype, width, at<const std::int32_t>(row_start),
                     at<const void>(column), wide, at<std::int32_t>(arrays[0]), at<std::uint16_t>(arrays[1]),
                     at<std::int32_t>(arrays[2])});
  }
  return lists;
}

}  // namespace

void bind_cuda_lists(py::module_& m) {
  m.def(
      "lists_table_size",
      [](const std::vector<ListView>& views) {
        const std::vector<NewList> lists = new_lists(views);
        return fedsparse_lists_table_size(static_cast<std::int64_t>(lists.size()), lists.data());
      },
      release());
  m.def(
      "lists_table",
      [](const std::vector<ListView>& views, Address table, Address device) {
        const std::vector<NewList> lists = new_lists(views);
        return fedsparse_lists_table(static_cast<std::int64_t>(lists.size()), lists.data(), at<void>(table),
                                     at<const void>(device));
      },
      release());
  m.def(
      "cuda_lists",
      [](Address table, Address device, Address stream) {
        return fedsparse_cuda_lists(at<const void>(table), at<const void>(device), at<void>(stream));
      },
      release());
  m.def("block_strips_table_size", &fedsparse_block_strips_table_size);
  m.def(
      "block_strips_table",
      [](const std::vector<WeightView>& views, Address table) {
        std::vector<WeightRows> weights;
        for (const WeightView& view : views) weights.push_back(weight_rows(view));
        fedsparse_block_strips_table(static_cast<std::int64_t>(weights.size()), weights.data(), at<void>(table));
      },
      release());
  m.def(
      "cuda_block_strips",
      [](std::int64_t count, Address table, Address device, Address stream) {
        return fedsparse_cuda_block_strips(count, at<const void>(table), at<void>(device), at<void>(stream));
      },
      release());
}

#endif

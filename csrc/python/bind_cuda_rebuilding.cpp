// Python's way to the CUDA kernels that change patterns, of many weights together; as in bind_cuda.cpp.
#include "bind.h"

#ifdef FEDSPARSE_WITH_CUDA

#include <deque>
#include <vector>

#include "bind_cuda.h"

namespace py = pybind11;

namespace {

// An array's address and how many numbers it has, or whether they have 32 bits.
using ListView = std::tuple<Address, std::int64_t>;
using IndexView = std::tuple<Address, bool>;

// Old rows, dropped values, grown positions, and addresses of the new row_start and column.
using ExchangeView = std::tuple<WeightView, ListView, ListView, std::array<Address, 2>>;

int exchange(const std::vector<ExchangeView>& views, Address stream) {
  std::vector<fedsparse::Exchange> changes;
  for (const auto& [old, dropped, grown, now] : views)
    changes.push_back({weight_rows(old), at<const std::int64_t>(std::get<0>(dropped)),
                       at<const std::int64_t>(std::get<0>(grown)), std::get<1>(dropped), std::get<1>(grown),
                       at<std::int32_t>(now[0]), at<void>(now[1])});
  return fedsparse_cuda_exchange(static_cast<std::int64_t>(changes.size()), changes.data(), at<void>(stream));
}

// Rows, the address of column_start, entry and rank.
using InputListView = std::tuple<WeightView, Address, IndexView, IndexView>;

int list_by_input(const std::vector<InputListView>& views, Address stream) {
  std::vector<fedsparse::InputList> lists;
  for (const auto& [rows, column_start, entry, rank] : views)
    lists.push_back({weight_rows(rows), at<std::int32_t>(column_start), at<void>(std::get<0>(entry)),
                     at<void>(std::get<0>(rank)), std::get<1>(entry), std::get<1>(rank)});
  return fedsparse_cuda_list_by_input(static_cast<std::int64_t>(lists.size()), lists.data(), at<void>(stream));
}

// Addresses of an old and a new array, and the bits of what a grown value begins with.
using ArrayView = std::tuple<Address, Address, std::uint32_t>;

// Old and new rows, the address of the places or 0, and arrays.
using MoveView = std::tuple<WeightView, WeightView, Address, std::vector<ArrayView>>;

struct Arrays {
  std::vector<const void*> from;
  std::vector<void*> to;
  std::vector<std::uint32_t> fill;

  explicit Arrays(const std::vector<ArrayView>& views) {
    for (const auto& [old, fresh, bits] : views) {
      from.push_back(at<const void>(old));
      to.push_back(at<void>(fresh));
      fill.push_back(bits);
    }
  }
};

int carry_words(const std::vector<MoveView>& views, Address stream) {
  std::deque<Arrays> held;
  std::vector<fedsparse::Move> moves;
  for (const auto& [old, now, places, arrays] : views) {
    const Arrays& a = held.emplace_back(arrays);
    moves.push_back({weight_rows(old), weight_rows(now), at<std::int32_t>(places),
                     static_cast<std::int64_t>(arrays.size()), a.from.data(), a.to.data(), a.fill.data()});
  }
  return fedsparse_cuda_carry_words(static_cast<std::int64_t>(moves.size()), moves.data(), at<void>(stream));
}

// Rows, and the positions proposed.
using GrowthView = std::tuple<WeightView, ListView>;

int check_growth(const std::vector<GrowthView>& views, Address faults, Address stream) {
  std::vector<fedsparse::Growth> growths;
  for (const auto& [rows, positions] : views)
    growths.push_back({weight_rows(rows), at<const std::int64_t>(std::get<0>(positions)), std::get<1>(positions)});
  return fedsparse_cuda_check_growth(static_cast<std::int64_t>(growths.size()), growths.data(),
                                     at<std::int32_t>(faults), at<void>(stream));
}

}  // namespace

void bind_cuda_rebuilding(py::module_& m) {
  m.def("cuda_exchange", &exchange, release());
  m.def("cuda_list_by_input", &list_by_input, release());
  m.def("cuda_carry_words", &carry_words, release());
  m.def("cuda_check_growth", &check_growth, release());
}

#endif

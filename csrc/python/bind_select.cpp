// Selection of the highest scores and changes of a pattern, for Python.
#include "bind.h"

#include "fedsparse/api.h"

namespace py = pybind11;
using namespace fedsparse;

void bind_select(py::module_& m) {
  using release = py::call_guard<py::gil_scoped_release>;
  py::enum_<SelectOrder>(m, "SelectOrder")
      .value("largest", SelectOrder::largest)
      .value("largest_magnitude", SelectOrder::largest_magnitude)
      .value("smallest_magnitude", SelectOrder::smallest_magnitude);
  m.def(
      "select_top",
      [](Address scores, Address among, std::int64_t size, std::int64_t candidates, std::int64_t k, SelectOrder order,
         int threads, Address positions, Address workspace) {
        return select_top({at<const float>(scores), at<const std::uint8_t>(among), size, candidates}, k, order, threads,
                          at<std::int64_t>(positions), at<void>(workspace));
      },
      release());

  m.def("list_flat", [](Address flat, std::int64_t nnz, std::int64_t rows, std::int64_t columns, Address row_start,
                        Address column, bool wide) {
    return list_flat(at<const std::int64_t>(flat), nnz, rows, columns, at<std::int32_t>(row_start), at<void>(column),
                     wide);
  });
  m.def("sort_positions",
        [](Address positions, Address order, std::int64_t count, std::int64_t size, Address workspace) {
          return sort_positions(at<std::int64_t>(positions), at<std::int64_t>(order), count, size,
                                at<void>(workspace));
        });
  m.def("first_kept", [](const PatternView& pattern, Address flat, std::int64_t count, int threads) {
    return first_kept(pattern, at<const std::int64_t>(flat), count, threads);
  });
  m.def("exchange", [](const PatternView& pattern, Address dropped, std::int64_t drops, Address grown,
                       std::int64_t grows, Address row_start, Address column, int threads) {
    exchange(pattern, at<const std::int64_t>(dropped), drops, at<const std::int64_t>(grown), grows,
             at<std::int32_t>(row_start), at<void>(column), threads);
  });
  m.def("carry_words", [](Address words, Address places, std::int64_t count, Address fill, Address out, int threads) {
    carry_words(at<const std::uint32_t>(words), at<const std::int32_t>(places), count, *at<const std::uint32_t>(fill),
                at<std::uint32_t>(out), threads);
  });
}

// Selection of the highest scores, for Python.
#include <pybind11/pybind11.h>

#include "fedsparse/api.h"

namespace py = pybind11;
using namespace fedsparse;

namespace {

using Address = std::uintptr_t;

template <typename T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

}  // namespace

void bind_select(py::module_& m) {
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
      py::call_guard<py::gil_scoped_release>());
}

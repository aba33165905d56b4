// fedsparse._C: pointers and sizes in, numbers out. Checks belong to the Python side; nothing here knows torch.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <string>
#include <utility>
#include <vector>

#include "../cpu/kernels.h"
#include "../cpu/memory.h"
#include "../cpu/strips.h"
#include "bind.h"
#include "fedsparse/api.h"

namespace py = pybind11;
using namespace fedsparse;

namespace {

// (rows, inputs, taps, nnz), five addresses, three widths: the order of Pattern's fields.
PatternView view(const std::array<std::int64_t, 4>& sizes, const std::array<Address, 5>& data,
                 const std::array<bool, 3>& wide) {
  PatternView p;
  p.rows = sizes[0];
  p.inputs = sizes[1];
  p.taps = sizes[2];
  p.nnz = sizes[3];
  p.row_start = at<const std::int32_t>(data[0]);
  p.column = {at<const void>(data[1]), wide[0]};
  p.column_start = at<const std::int32_t>(data[2]);
  p.entry = {at<const void>(data[3]), wide[1]};
  p.rank = {at<const void>(data[4]), wide[2]};
  return p;
}

Problem conv2d_problem(const std::string& isa, const PatternView& pattern, const std::array<std::int64_t, 14>& s,
                       int threads, bool half) {
  return {&kernels_named(isa.c_str()), conv_shape(s), false, pattern, threads, half};
}

Problem linear_problem(const std::string& isa, const PatternView& pattern, std::int64_t batch, int threads,
                       bool half) {
  const Kernels& kernels = kernels_named(isa.c_str());
  return {&kernels, linear_shape(batch, pattern.inputs, pattern.rows), true, pattern, threads, half};
}

std::vector<std::pair<std::string, int>> available_sets() {
  int count = 0;
  const Kernels* const* list = instruction_sets(&count);
  std::vector<std::pair<std::string, int>> sets;
  for (int i = 0; i < count; ++i) sets.emplace_back(list[i]->name, list[i]->lanes);
  return sets;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Native kernels of fedsparse.";
  m.def("instruction_sets", &available_sets, "Name and lanes of the instruction sets that run here, best first.");

  py::class_<PatternView>(m, "PatternView").def(py::init(&view));
  py::class_<Problem>(m, "Problem");
  m.def("conv2d_problem", &conv2d_problem);
  m.def("linear_problem", &linear_problem);
  py::class_<Strips>(m, "Strips").def_readonly("width", &Strips::width);

  m.def("count_kept", [](Address mask, std::int64_t rows, std::int64_t columns, Address row_start, int threads) {
    return count_kept(at<const std::uint8_t>(mask), rows, columns, at<std::int32_t>(row_start), threads);
  });
  m.def("list_columns", [](Address mask, std::int64_t rows, std::int64_t columns, Address row_start, Address column,
                           bool wide, int threads) {
    list_columns(at<const std::uint8_t>(mask), rows, columns, at<const std::int32_t>(row_start), at<void>(column),
                 wide, threads);
  });
  m.def("transpose_pattern", [](const PatternView& pattern, Address column_start, Address entry, bool entry_wide,
                                Address rank, bool rank_wide, Address scratch, int threads) {
    transpose_pattern(pattern, at<std::int32_t>(column_start), at<void>(entry), entry_wide, at<void>(rank), rank_wide,
                      at<std::int32_t>(scratch), threads);
  });
  m.def("carry", [](const PatternView& from, const PatternView& to, Address places, int threads) {
    carry(from, to, at<std::int32_t>(places), threads);
  });
  m.def("scatter_words", [](const PatternView& pattern, Address values, Address dense) {
    scatter_words(pattern, at<const std::uint32_t>(values), at<std::uint32_t>(dense));
  });
  m.def("gather_words", [](const PatternView& pattern, Address dense, Address values) {
    gather_words(pattern, at<const std::uint32_t>(dense), at<std::uint32_t>(values));
  });

  using release = py::call_guard<py::gil_scoped_release>;
  m.def("forward_strips", &forward_strips, release());
  m.def(
      "backward_strips",
      [](const Problem& problem, const HeldView& x, const CutsView& stays, const PackedView& instead,
         bool wants_values) { return backward_strips(problem, {held(x), cuts(stays), packed(instead)}, wants_values); },
      release());
  m.def(
      "forward",
      [](const Problem& problem, const Strips& strips, const TermView& x, Address values, Address bias, Address y,
         Address workspace) {
        return forward(problem, strips, term(x), at<const float>(values), at<const float>(bias), at<void>(y),
                       at<void>(workspace));
      },
      release());
  m.def(
      "backward",
      [](const Problem& problem, const Strips& strips, Address grad_y, const HeldView& x, const CutsView& stays,
         const PackedView& instead, Address values, Address grad_x, Address grad_values, Address workspace) {
        return backward(problem, strips, at<const void>(grad_y), {held(x), cuts(stays), packed(instead)},
                        at<const float>(values), at<void>(grad_x), at<float>(grad_values), at<void>(workspace));
      },
      release());
  m.def(
      "to_blocked",
      [](const std::string& isa, std::int64_t batch, std::int64_t size, bool half, Address rows, Address blocked,
         int threads) {
        to_blocked(kernels_named(isa.c_str()), batch, size, half, at<const void>(rows), at<void>(blocked), threads);
      },
      release());
  m.def(
      "from_blocked",
      [](const std::string& isa, std::int64_t batch, std::int64_t size, bool half, Address blocked, Address rows,
         int threads) {
        from_blocked(kernels_named(isa.c_str()), batch, size, half, at<const void>(blocked), at<void>(rows), threads);
      },
      release());

  bind_activation(m);
  bind_blocked(m);
  bind_cuda(m);
  bind_select(m);
  bind_topk(m);
  bind_peak(m);

  m.def("memory_counted", &memory_counted);
  m.def("memory_level", &memory_level);
  m.def("memory_peak", &memory_peak);
  m.def("memory_set_peak", &memory_set_peak);
}

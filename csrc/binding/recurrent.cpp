// SPDX-License-Identifier: Apache-2.0
#include "ops/recurrent.h"

#include <vector>

#include "base/offsets.h"
#include "binding/binding.h"

namespace seqrec {
namespace {

/// Addresses of tensors whose shapes and dtypes the caller has checked; 0 where there is none.
/// Without offsets all rows have the same number of tokens.
void bound_recurrent_forward(int cell, int activation, std::int64_t tokens, std::int64_t rows,
                             std::int64_t inputs, std::int64_t hidden, Address x, Address offsets,
                             Address w_ih, Address w_hh, Address b_ih, Address b_hh, Address h0,
                             Address c0, Address output, Address h_end, Address c_end,
                             Address gates, Address cells, Address hn, int threads,
                             RecurrentPacking* packing) {
  RecurrentProblem p{};
  p.cell = static_cast<RecurrentCell>(cell);
  p.activation = static_cast<CellActivation>(activation);
  p.tokens = tokens;
  p.rows = rows;
  p.inputs = inputs;
  p.hidden = hidden;
  p.x = at(x);
  p.offsets = at<const std::int64_t>(offsets);
  p.w_ih = at(w_ih);
  p.w_hh = at(w_hh);
  p.b_ih = at(b_ih);
  p.b_hh = at(b_hh);
  p.h0 = at(h0);
  p.c0 = at(c0);
  p.output = at(output);
  p.h_end = at(h_end);
  p.c_end = at(c_end);
  p.gates = at(gates);
  p.cells = at(cells);
  p.hn = at(hn);
  const KernelTable& table = kernels();
  const ReleasedLock release;
  std::vector<std::int64_t> equal;
  if (offsets == 0) {
    const std::int64_t length = rows == 0 ? 0 : tokens / rows;
    for (std::int64_t row = 0; row <= rows; ++row) equal.push_back(row * length);
    p.offsets = equal.data();
  }
  check_offsets(p.offsets, rows, tokens, "tokens of x");
  threads = thread_count(threads);
  if (packing == nullptr || tokens == 0) return recurrent_forward(p, threads, table);
  const RecurrentPacking::Weights packed = packing->of(p, threads, table);
  recurrent_run(p, packed->data(), threads, table);
}

}  // namespace

void bind_recurrent(py::module_& m) {
  // Copied or pickled, it begins empty: nothing of it is lost but time.
  py::class_<RecurrentPacking>(m, "RecurrentPacking")
      .def(py::init<>())
      .def("__reduce__",
           [](const py::object& self) { return py::make_tuple(py::type::of(self), py::tuple()); });
  m.def("recurrent_forward", &bound_recurrent_forward, py::arg("cell"), py::arg("activation"),
        py::arg("tokens"), py::arg("rows"), py::arg("inputs"), py::arg("hidden"), py::arg("x"),
        py::arg("offsets"), py::arg("w_ih"), py::arg("w_hh"), py::arg("b_ih"), py::arg("b_hh"),
        py::arg("h0"), py::arg("c0"), py::arg("output"), py::arg("h_end"), py::arg("c_end"),
        py::arg("gates"), py::arg("cells"), py::arg("hn"), py::arg("threads") = 0,
        py::arg("packing") = py::none());
}

}  // namespace seqrec

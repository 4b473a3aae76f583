// SPDX-License-Identifier: Apache-2.0
#include "ops/recurrent_backward.h"

#include "binding/binding.h"

namespace seqrec {
namespace {

/// Addresses of tensors whose shapes and dtypes the caller has checked, and offsets that the
/// forward pass has; 0 where there is none.
void bound_recurrent_backward(int cell, int activation, std::int64_t tokens, std::int64_t rows,
                              std::int64_t inputs, std::int64_t hidden, Address x, Address offsets,
                              Address w_ih, Address w_hh, Address h0, Address c0, Address output,
                              Address gates, Address cells, Address hn, Address d_output,
                              Address d_h_end, Address d_c_end, Address dx, Address dw_ih,
                              Address dw_hh, Address db_ih, Address db_hh, Address dh0, Address dc0,
                              int threads) {
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
  p.h0 = at(h0);
  p.c0 = at(c0);
  p.output = at(output);
  p.gates = at(gates);
  p.cells = at(cells);
  p.hn = at(hn);
  RecurrentGradients g{};
  g.d_output = at(d_output);
  g.d_h_end = at(d_h_end);
  g.d_c_end = at(d_c_end);
  g.dx = at(dx);
  g.dw_ih = at(dw_ih);
  g.dw_hh = at(dw_hh);
  g.db_ih = at(db_ih);
  g.db_hh = at(db_hh);
  g.dh0 = at(dh0);
  g.dc0 = at(dc0);
  const KernelTable& table = kernels();
  const ReleasedLock release;
  recurrent_backward(p, g, thread_count(threads), table);
}

}  // namespace

void bind_recurrent_backward(py::module_& m) {
  m.def("recurrent_backward", &bound_recurrent_backward, py::arg("cell"), py::arg("activation"),
        py::arg("tokens"), py::arg("rows"), py::arg("inputs"), py::arg("hidden"), py::arg("x"),
        py::arg("offsets"), py::arg("w_ih"), py::arg("w_hh"), py::arg("h0"), py::arg("c0"),
        py::arg("output"), py::arg("gates"), py::arg("cells"), py::arg("hn"), py::arg("d_output"),
        py::arg("d_h_end"), py::arg("d_c_end"), py::arg("dx"), py::arg("dw_ih"), py::arg("dw_hh"),
        py::arg("db_ih"), py::arg("db_hh"), py::arg("dh0"), py::arg("dc0"), py::arg("threads") = 0);
}

}  // namespace seqrec

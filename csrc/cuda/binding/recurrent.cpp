// SPDX-License-Identifier: Apache-2.0
#include "cuda/recurrent.h"

#include <stdexcept>
#include <string>

#include "cuda/binding/binding.h"

namespace seqrec {
namespace cuda {
namespace {

/// What decides the plan: codes of the cell and the arithmetic, sizes, whether every row has one
/// token, and the form, or -1.
RecurrentPlan plan_of(int cell, int math, std::int64_t hidden, std::int64_t rows, bool backward,
                      bool single, int form) {
  const RecurrentDevice device{
      device_attribute(cudaDevAttrMultiProcessorCount),
      device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin),
      device_attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor),
  };
  RecurrentPlan plan{};
  if (rows > 0 && !plan_recurrent({static_cast<RecurrentCell>(cell),
                                   static_cast<RecurrentMath>(math), hidden, rows, backward, single,
                                   form},
                                  device, &plan)) {
    throw std::invalid_argument("recurrent: the CUDA kernels cannot hold a layer of " +
                                std::to_string(hidden) +
                                " hidden units on this device; set SEQREC_FAST_BACKEND=reference");
  }
  return plan;
}

/// Form, teams, blocks of a team, threads of a block, slots, and the bytes of the workspace.
py::tuple bound_plan(int cell, int math, std::int64_t hidden, std::int64_t rows, bool backward,
                     bool single, int form) {
  const RecurrentPlan p = plan_of(cell, math, hidden, rows, backward, single, form);
  return py::make_tuple(static_cast<int>(p.form), p.teams, p.members, p.threads, p.slots,
                        p.workspace);
}

void check_workspace(std::int64_t given, const RecurrentPlan& plan) {
  if (given < plan.workspace) {
    throw std::invalid_argument("recurrent: the workspace does not fit the problem");
  }
}

void recurrent_forward(int cell, int math, std::int64_t hidden, std::int64_t rows, bool single,
                       int form, int activation, std::int64_t tokens, Address offsets,
                       Address workspace, std::int64_t workspace_size, Address projected,
                       Address w_hh, Address b_ih, Address b_hh, Address h0, Address c0,
                       Address output, Address h_end, Address c_end, Address gates, Address cells,
                       Address hn, Address stream) {
  RecurrentForward p{};
  p.batch = {tokens, rows, at<const std::int64_t>(offsets)};
  p.plan = plan_of(cell, math, hidden, rows, false, single, form);
  check_workspace(workspace_size, p.plan);
  p.activation = static_cast<CellActivation>(activation);
  p.workspace = at<void>(workspace);
  p.projected = at<const void>(projected);
  p.w_hh = at<const void>(w_hh);
  p.b_ih = at<const void>(b_ih);
  p.b_hh = at<const void>(b_hh);
  p.h0 = at<const void>(h0);
  p.c0 = at<const void>(c0);
  p.output = at<void>(output);
  p.h_end = at<void>(h_end);
  p.c_end = at<void>(c_end);
  p.gates = at<void>(gates);
  p.cells = at<float>(cells);
  p.hn = at<void>(hn);
  launch_recurrent_forward(p, stream_at(stream));
}

void recurrent_backward(int cell, int math, std::int64_t hidden, std::int64_t rows, bool single,
                        int form, int activation, std::int64_t tokens, Address offsets,
                        Address workspace, std::int64_t workspace_size, Address w_hh_t, Address h0,
                        Address c0, Address output, Address gates, Address cells, Address hn,
                        Address d_output, Address d_h_end, Address d_c_end, Address d_gates,
                        Address h_prev, Address dh0, Address dc0, Address stream) {
  RecurrentBackward p{};
  p.batch = {tokens, rows, at<const std::int64_t>(offsets)};
  p.plan = plan_of(cell, math, hidden, rows, true, single, form);
  check_workspace(workspace_size, p.plan);
  p.activation = static_cast<CellActivation>(activation);
  p.workspace = at<void>(workspace);
  p.w_hh_t = at<const void>(w_hh_t);
  p.h0 = at<const void>(h0);
  p.c0 = at<const void>(c0);
  p.output = at<const void>(output);
  p.gates = at<const void>(gates);
  p.cells = at<const float>(cells);
  p.hn = at<const void>(hn);
  p.d_output = at<const void>(d_output);
  p.d_h_end = at<const void>(d_h_end);
  p.d_c_end = at<const void>(d_c_end);
  p.d_gates = at<void>(d_gates);
  p.h_prev = at<void>(h_prev);
  p.dh0 = at<void>(dh0);
  p.dc0 = at<void>(dc0);
  launch_recurrent_backward(p, stream_at(stream));
}

}  // namespace

void bind_recurrent(py::module_& m) {
  m.def("recurrent_plan", &bound_plan);
  m.def("recurrent_forward", &recurrent_forward);
  m.def("recurrent_backward", &recurrent_backward);
}

}  // namespace cuda
}  // namespace seqrec

// SPDX-License-Identifier: Apache-2.0
// What the files of the Python module share: one function an area, called by module.cpp.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>

namespace py = pybind11;

namespace seqrec {

template <typename T>
using Array = py::array_t<T, py::array::c_style>;

void bind_cross_entropy(py::module_& m);
/// The memory of a tensor whose type and size the Python caller has checked; null for 0.
template <typename T>
T* at(std::uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

void bind_attention(py::module_& m);
void bind_dropout(py::module_& m);
void bind_embedding(py::module_& m);
void bind_feed_forward(py::module_& m);
void bind_layer_norm(py::module_& m);
void bind_hstu_attention(py::module_& m);
void bind_linear(py::module_& m);
void bind_peak(py::module_& m);
void bind_recurrent(py::module_& m);
void bind_recurrent_backward(py::module_& m);
void bind_topk(py::module_& m);

}  // namespace seqrec

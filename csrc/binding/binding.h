// SPDX-License-Identifier: Apache-2.0
// What the files of the Python module share: one function an area, called by module.cpp.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <unistd.h>

#include <cstdint>
#include <tuple>

#include "base/thread_pool.h"
#include "kernels/heads.h"

namespace py = pybind11;

namespace seqrec {

template <typename T>
using Array = py::array_t<T, py::array::c_style>;

using Address = std::uintptr_t;

/// The memory of a tensor whose type and size the Python caller has checked; null for 0.
template <typename T = float>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

/// Address of a [tokens, heads, width], and floats from one token and from one head to the next.
using View = std::tuple<Address, std::int64_t, std::int64_t>;

template <typename T>
HeadsView<T> heads_at(const View& view) {
  return {at<T>(std::get<0>(view)), std::get<1>(view), std::get<2>(view)};
}

/// Lets other Python threads run while it lives.
///
/// A daemon thread that comes back from a kernel after the interpreter has begun to end is ended by
/// Python where it takes the lock, by unwinding its stack. That must not go on:
/// py::gil_scoped_release would abort the process, and the arrays of the call would be released by
/// a thread without the lock. So the thread stays here for the rest of the process, as it does in
/// newer Pythons.
class ReleasedLock {
 public:
  ReleasedLock() : state_(PyEval_SaveThread()) {}
  ~ReleasedLock() {
    try {
      PyEval_RestoreThread(state_);
    } catch (...) {
      for (;;) pause();
    }
  }
  ReleasedLock(const ReleasedLock&) = delete;
  ReleasedLock& operator=(const ReleasedLock&) = delete;

 private:
  PyThreadState* state_;
};

/// Threads of a call: as asked, or the set number for 0.
inline int thread_count(int threads) { return threads == 0 ? get_num_threads() : threads; }

void bind_attention(py::module_& m);
void bind_cross_entropy(py::module_& m);
void bind_dropout(py::module_& m);
void bind_embedding(py::module_& m);
void bind_engine(py::module_& m);
void bind_feed_forward(py::module_& m);
void bind_layer_norm(py::module_& m);
void bind_hstu_attention(py::module_& m);
void bind_item_table(py::module_& m);
void bind_linear(py::module_& m);
void bind_peak(py::module_& m);
void bind_recurrent(py::module_& m);
void bind_recurrent_backward(py::module_& m);
void bind_sessions(py::module_& m);
void bind_topk(py::module_& m);

}  // namespace seqrec

// SPDX-License-Identifier: Apache-2.0
// The Python module seqrec_fast._C. Only files in this folder know Python.
//
// Arguments arrive here already checked by seqrec_fast.native for type and layout; what would read
// out of bounds is checked again, so that no call can corrupt memory.
#include <exception>
#include <stdexcept>
#include <string>

#include "base/thread_pool.h"
#include "binding/binding.h"
#include "isa/kernel_table.h"

namespace seqrec {
namespace {

#define SEQREC_TEXT_OF(x) #x
#define SEQREC_TEXT(x) SEQREC_TEXT_OF(x)

#if defined(__clang__)
constexpr const char* kCompiler = "Clang " __clang_version__;
#else
constexpr const char* kCompiler = "GCC " __VERSION__;
#endif

py::dict build_info() {
  py::dict info;
  info["version"] = SEQREC_VERSION;
  info["compiler"] = kCompiler;
  info["cxx_standard"] = static_cast<long>(__cplusplus);
  info["flags"] = SEQREC_FLAGS;
  info["isa_compiled"] = compiled_isas();
  info["isa_supported"] = supported_isas();
  info["isa"] = kernels().name;
  info["lanes"] = kernels().lanes;
  return info;
}

void set_threads(int threads) {
  if (threads < 1 || threads > kMaxThreads) {
    throw std::invalid_argument("threads: expected 1 to " + std::to_string(kMaxThreads) +
                                ", found " + std::to_string(threads));
  }
  set_num_threads(threads);
}

/// What is refused here reaches Python as the error that the rest of the library raises.
void translate(std::exception_ptr pointer) {
  try {
    if (pointer) std::rethrow_exception(pointer);
  } catch (const std::invalid_argument& error) {
    const py::object type = py::module_::import("seqrec_fast.errors").attr("InputError");
    PyErr_SetString(type.ptr(), error.what());
  }
}

}  // namespace
}  // namespace seqrec

// What threads share is locked or never changes (csrc/engine, csrc/base, RecurrentPacking), what
// they choose is atomic (use_isa, set_num_threads), and Python's lists and dictionaries are read by
// references of our own. Arrays that others write to during a call are the caller's affair, as they
// are where a kernel runs without the interpreter's lock.
PYBIND11_MODULE(_C, m, py::mod_gil_not_used()) {
  m.doc() = "Native kernels of seqrec_fast; use seqrec_fast.native instead.";
  py::register_local_exception_translator(&seqrec::translate);
  m.def("build_info", &seqrec::build_info);
  m.def("cpu_features", &seqrec::cpu_features);
  m.def("get_num_threads", &seqrec::get_num_threads);
  m.def("set_num_threads", &seqrec::set_threads, py::arg("threads"));
  m.def("use_isa", &seqrec::use_isa, py::arg("name"));
  m.def("pool_workers", &seqrec::pool_workers);
  seqrec::bind_attention(m);
  seqrec::bind_cross_entropy(m);
  seqrec::bind_dropout(m);
  seqrec::bind_embedding(m);
  seqrec::bind_item_table(m);
  seqrec::bind_engine(m);
  seqrec::bind_feed_forward(m);
  seqrec::bind_layer_norm(m);
  seqrec::bind_hstu_attention(m);
  seqrec::bind_linear(m);
  seqrec::bind_peak(m);
  seqrec::bind_recurrent(m);
  seqrec::bind_recurrent_backward(m);
  seqrec::bind_sessions(m);
  seqrec::bind_topk(m);
}

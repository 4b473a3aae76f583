// SPDX-License-Identifier: Apache-2.0
#include "ops/peak.h"

#include <stdexcept>

#include "base/thread_pool.h"
#include "binding/binding.h"

namespace seqrec {
namespace {

py::tuple bound_measure_peak(int threads, std::int64_t bytes) {
  if (threads < 0 || threads > kMaxThreads || bytes < 1) {
    throw std::invalid_argument("threads, bytes: expected 0 to " + std::to_string(kMaxThreads) +
                                " and at least 1");
  }
  const KernelTable& table = kernels();
  Peak found;
  {
    const ReleasedLock release;
    found = measure_peak(thread_count(threads), bytes, table);
  }
  return py::make_tuple(found.flops_per_second, found.bytes_per_second);
}

}  // namespace

void bind_peak(py::module_& m) {
  m.def("measure_peak", &bound_measure_peak, py::arg("threads"), py::arg("bytes"));
}

}  // namespace seqrec
